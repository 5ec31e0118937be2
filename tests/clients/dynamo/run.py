"""Dynamo's nixl_connect between two workers: one offers memory, the other reads and writes it.

`offering` makes readable and writable operations and hands their metadata over as JSON, `acting`
begins the reads and writes; both await them. Every byte is compared by the side that received it.
"""

import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pair

KB, MB = 1 << 10, 1 << 20
SINGLE = {64: 12, 64 * KB: 12, MB: 6, 16 * MB: 4, 64 * MB: 3}  # bytes: operations each way
TENSORS = 16  # one operation on that many tensors
AT_ONCE = 12  # operations open at the same time, by one worker on one connector
LIMIT_S = 60  # for each operation


def plan():
    """The operations in order: (kind, sizes of the tensors, seed)."""
    seed = 0
    for size, times in SINGLE.items():
        for _ in range(times):
            for kind in ("read", "write"):
                seed += 1
                yield kind, [size], seed
    for kind in ("read", "write"):
        seed += 1
        yield kind, [256 * KB + 64 * i for i in range(TENSORS)], seed


def tensors(sizes, seed=None):
    import torch

    if seed is None:
        return [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    return [torch.from_numpy(pair.pattern(size, 1000 * seed + i)) for i, size in enumerate(sizes)]


def described(memory):
    import dynamo.nixl_connect as connect

    descriptors = [connect.Descriptor(tensor) for tensor in memory]
    return descriptors if len(descriptors) > 1 else descriptors[0]


class Compared:
    def __init__(self):
        self.operations = self.bytes = 0

    def same(self, got, wanted, what):
        import torch

        for i, (one, other) in enumerate(zip(got, wanted)):
            assert torch.equal(one, other), "%s: tensor %d differs" % (what, i)
            self.bytes += one.numel()
        self.operations += 1


async def carry_out(step):
    """Every operation of the plan, one after the other, and then some at once."""
    import dynamo.nixl_connect as connect

    connector = connect.Connector()
    number = 0
    for number, (kind, sizes, seed) in enumerate(plan()):
        await step(connector, number, kind, sizes, seed)
    await asyncio.gather(*(
        step(connector, number + 1 + i, ("read", "write")[i % 2], [MB], 900 + i)
        for i in range(AT_ONCE)))


def offering(folder):
    import dynamo.nixl_connect as connect

    compared = Compared()

    async def offer(connector, number, kind, sizes, seed):
        memory = tensors(sizes, seed if kind == "read" else None)
        create = connector.create_readable if kind == "read" else connector.create_writable
        with await create(described(memory)) as operation:
            pair.put(folder, "offer-%d" % number, operation.metadata().model_dump_json().encode())
            await asyncio.wait_for(operation.wait_for_completion(), LIMIT_S)
            assert operation.status == connect.OperationStatus.COMPLETE, operation.status
        if kind == "write":
            compared.same(memory, tensors(sizes, seed), "operation %d" % number)

    asyncio.run(carry_out(offer))
    return {"operations": compared.operations, "bytes": compared.bytes}


def acting(folder):
    import dynamo.nixl_connect as connect

    compared = Compared()
    taken = {}

    async def act(connector, number, kind, sizes, seed):
        text = await asyncio.get_running_loop().run_in_executor(
            None, pair.get, folder, "offer-%d" % number)
        metadata = connect.RdmaMetadata.model_validate_json(text)
        memory = tensors(sizes, seed if kind == "write" else None)
        local = described(memory)
        start = time.perf_counter()
        begun = (connector.begin_read(metadata, local) if kind == "read"
                 else connector.begin_write(local, metadata))
        with await begun as operation:
            await asyncio.wait_for(operation.wait_for_completion(), LIMIT_S)
            assert operation.status == connect.OperationStatus.COMPLETE, operation.status
        taken.setdefault((kind, sum(sizes)), []).append(time.perf_counter() - start)
        if kind == "read":
            compared.same(memory, tensors(sizes, seed), "operation %d" % number)

    asyncio.run(carry_out(act))
    print("operation, bytes: median in ms")
    for (kind, size), durations in sorted(taken.items()):
        print("%5s %10d: %8.2f" % (kind, size, pair.median_us(durations) / 1e3))
    return {"operations": compared.operations, "bytes": compared.bytes,
            "small_ms": pair.median_us(taken["read", 64]) / 1e3,
            "large_ms": pair.median_us(taken["read", 64 * MB]) / 1e3}


def summary(results):
    offering, acting = results["offering"], results["acting"]
    return ("%d operations, %.1f MB compared; read of 64 B %.2f ms, of 64 MiB %.1f ms "
            "(medians, with the client's set-up)" % (
                offering["operations"] + acting["operations"],
                (offering["bytes"] + acting["bytes"]) / 1e6,
                acting["small_ms"], acting["large_ms"]))


if __name__ == "__main__":
    pair.main({"offering": offering, "acting": acting}, summary)
