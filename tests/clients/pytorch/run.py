"""PyTorch's one-sided transport, torch.distributed._transport, over NIXL between two processes.

`owner` exposes tensors, `mover` reads and writes them; then both write to each other at once. The
two meet through a TCPStore, as two ranks of a job do. Every byte is compared.
"""

import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pair

KB, MB = 1 << 10, 1 << 20
# size in bytes: how many transfers of it, in either direction
ROUNDS = {64: 200, 4 * KB: 100, 64 * KB: 50, MB: 20, MB + 13: 5, 16 * MB: 5, 64 * MB: 3}
VIEWS, VIEW_SIZE = 64, 64 * KB  # that many in flight at once, out of one tensor
BOTH, BOTH_SIZE = 16, 4 * MB  # both sides writing at once
OWNER, MOVER = 0, 1


def meet(folder, rank):
    """The store that both ranks use, this rank's transport, connected, and how long that took."""
    from datetime import timedelta

    import torch.distributed as dist
    from torch.distributed._transport import new_transport_rank

    if rank == OWNER:
        store = dist.TCPStore("127.0.0.1", 0, 2, True, timedelta(seconds=120),
                              wait_for_workers=False)
        pair.put(folder, "port", str(store.port).encode())
    else:
        port = int(pair.get(folder, "port"))
        store = dist.TCPStore("127.0.0.1", port, 2, False, timedelta(seconds=120))
    barrier(store, "imported")
    start = time.perf_counter()
    transport = new_transport_rank("nixl", "cpu", store=store, rank=rank, peer_rank=1 - rank)
    assert transport.connected()
    return store, transport, time.perf_counter() - start


def barrier(store, name):
    """Both ranks have come here."""
    if store.add("at/" + name, 1) == 2:
        store.set("through/" + name, "1")
    store.wait(["through/" + name])


def expose(store, name, memory):
    store.set(name, memory.to_remote_buffer().serialize())


def reach(store, name):
    from torch.distributed._transport.nixl import NIXLRemoteBuffer

    return NIXLRemoteBuffer.deserialize(store.get(name))


def tensor(size, seed=None):
    """A uint8 tensor of `size` bytes: a pattern, or zeros."""
    import torch

    return torch.zeros(size, dtype=torch.uint8) if seed is None else torch.from_numpy(
        pair.pattern(size, seed))


class Compared:
    """Counts what was compared; the first difference ends the run."""

    def __init__(self):
        self.transfers = self.bytes = 0

    def same(self, got, wanted, what):
        import torch

        if not torch.equal(got, wanted):
            where = int((got != wanted).nonzero()[0])
            raise AssertionError("%s: byte %d of %d differs" % (what, where, got.numel()))
        self.transfers += 1
        self.bytes += got.numel()


def write_both_ways(store, transport, rank, compared):
    """Each rank writes into the other's inbox while the other does so too."""
    inbox = tensor(BOTH * BOTH_SIZE)
    for i, part in enumerate(inbox.split(BOTH_SIZE)):
        expose(store, "inbox/%d/%d" % (rank, i), transport.register_memory(part))
    outgoing = transport.register_memory(tensor(BOTH * BOTH_SIZE, seed=7000 + rank))
    there = [reach(store, "inbox/%d/%d" % (1 - rank, i)) for i in range(BOTH)]
    barrier(store, "before both")
    works = [transport.write(outgoing.to_view(i * BOTH_SIZE, BOTH_SIZE), there[i], async_op=True)
             for i in range(BOTH)]
    for work in works:
        work.wait()
        assert work.is_success()
    barrier(store, "after both")
    compared.same(inbox, tensor(BOTH * BOTH_SIZE, seed=7000 + 1 - rank), "both ways")


def owner(folder):
    store, transport, _ = meet(folder, OWNER)
    compared = Compared()
    targets = {}
    for size in ROUNDS:
        expose(store, "source/%d" % size, transport.register_memory(tensor(size, seed=size)))
        targets[size] = tensor(size)
        expose(store, "target/%d" % size, transport.register_memory(targets[size]))
    barrier(store, "moved")
    for size, rounds in ROUNDS.items():  # the last write is seen by its target's own process
        compared.same(targets[size], tensor(size, seed=size + rounds - 1), "write seen by owner")

    write_both_ways(store, transport, OWNER, compared)

    again = tensor(MB, seed=1)  # registered, given back, and registered anew
    memory = transport.register_memory(again)
    transport.unregister_memory(memory)
    expose(store, "again", transport.register_memory(again))
    barrier(store, "read again")
    transport.close()
    return {"transfers": compared.transfers, "bytes": compared.bytes}


def mover(folder):
    store, transport, met_s = meet(folder, MOVER)
    compared = Compared()
    reads, writes = {}, {}
    for size, rounds in ROUNDS.items():
        wanted = tensor(size, seed=size)
        here = tensor(size)
        memory = transport.register_memory(here)
        source, target = reach(store, "source/%d" % size), reach(store, "target/%d" % size)
        into, out_of = memory.to_mutable_view(), memory.to_view()
        reads[size], writes[size] = [], []
        for _ in range(rounds):
            here.zero_()
            before = time.perf_counter()
            transport.read(into, source)
            reads[size].append(time.perf_counter() - before)
            compared.same(here, wanted, "read of %d bytes" % size)
        for i in range(rounds):
            sent = tensor(size, seed=size + i)
            here.copy_(sent)
            before = time.perf_counter()
            transport.write(out_of, target)
            writes[size].append(time.perf_counter() - before)
            here.zero_()
            transport.read(into, target)
            compared.same(here, sent, "write of %d bytes, read back" % size)
        transport.unregister_memory(memory)

    # Many at once: as Work objects, then as coroutines.
    large = max(ROUNDS)
    source, wanted = reach(store, "source/%d" % large), tensor(large, seed=large)
    here = tensor(VIEWS * VIEW_SIZE)
    memory = transport.register_memory(here)
    views = [memory.to_mutable_view(i * VIEW_SIZE, VIEW_SIZE) for i in range(VIEWS)]
    for work in [transport.read(view, source, async_op=True) for view in views]:
        work.wait()
    for i in range(VIEWS):
        compared.same(here[i * VIEW_SIZE:(i + 1) * VIEW_SIZE], wanted[:VIEW_SIZE], "Work %d" % i)
    here.zero_()

    async def read_all():
        await asyncio.gather(*(transport.read_async(view, source) for view in views))

    asyncio.run(read_all())
    for i in range(VIEWS):
        compared.same(here[i * VIEW_SIZE:(i + 1) * VIEW_SIZE], wanted[:VIEW_SIZE], "task %d" % i)
    barrier(store, "moved")

    write_both_ways(store, transport, MOVER, compared)

    again = transport.register_memory(tensor(MB))
    transport.read(again.to_mutable_view(), reach(store, "again"))
    compared.same(again._registration.tensor, tensor(MB, seed=1), "registered again")
    barrier(store, "read again")
    asyncio.run(transport.close_async())
    print("size in bytes: median of a read, of a write, in us")
    for size in ROUNDS:
        print("%10d: %10.1f %10.1f" % (size, pair.median_us(reads[size]),
                                       pair.median_us(writes[size])))
    return {"transfers": compared.transfers, "bytes": compared.bytes, "met_s": met_s,
            "read_small_us": pair.median_us(reads[64]),
            "read_large_ms": pair.median_us(reads[large]) / 1e3,
            "write_large_ms": pair.median_us(writes[large]) / 1e3}


def summary(results):
    mover, owner = results["mover"], results["owner"]
    return ("%d transfers, %.1f MB compared; met in %.2f s; read of 64 B %.1f us, of 64 MiB "
            "%.1f ms, write of 64 MiB %.1f ms (medians)" % (
                mover["transfers"] + owner["transfers"], (mover["bytes"] + owner["bytes"]) / 1e6,
                mover["met_s"], mover["read_small_us"], mover["read_large_ms"],
                mover["write_large_ms"]))


if __name__ == "__main__":
    pair.main({"owner": owner, "mover": mover}, summary)
