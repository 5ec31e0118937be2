"""Ray's direct transport: tensors go between actors with tensor_transport="nixl", on CPU memory.

Two sources and a victim make tensors, a reader takes and compares them. The victim is killed while
the reader is reading from it and while more of its tensors are outstanding: the reader must get an
error (or, of what was moved before, right bytes), and go on with the sources.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import pair

KB, MB = 1 << 10, 1 << 20
ROUNDS = {64: 20, 64 * KB: 20, MB: 20, 16 * MB: 5, 64 * MB: 3}
DTYPES = ("uint8", "int32", "float64")
LARGE = 512 * MB  # takes long enough to be killed in
CALL_LIMIT_S = 120  # for each ray.get here


def made(size, seed, count=1):
    """`count` tensors that together are `size` bytes, of several types; `seed` gives the bytes."""
    import torch

    data = pair.pattern(size, seed)
    if count == 1:
        return [torch.from_numpy(data)]
    each = size // count
    return [torch.from_numpy(data[i * each:(i + 1) * each].view(DTYPES[i % len(DTYPES)]).copy())
            for i in range(count)]


def work(folder):
    import ray
    import torch

    class Source:
        @ray.method(tensor_transport="nixl")
        def make(self, size, seed, count=1):
            return made(size, seed, count)

        def put(self, size, seed):
            return [ray.put(made(size, seed)[0], _tensor_transport="nixl")]

        def ready(self):
            return os.getpid()

    class Reader:
        def check(self, tensors, size, seed, count=1):
            """The number of bytes compared; raises if one differs."""
            wanted = made(size, seed, count)
            assert len(tensors) == len(wanted), (len(tensors), len(wanted))
            for got, want in zip(tensors, wanted):
                assert got.dtype == want.dtype and torch.equal(
                    got.view(torch.uint8), want.view(torch.uint8)), "a tensor differs"
            return size

        def fetch(self, references, size, seed):
            """The same, where the reader itself asks for the data by ray.get."""
            return self.check([ray.get(references[0])], size, seed)

        def fetch_into(self, references, size, seed):
            """The same, into a tensor that is there already."""
            target = torch.zeros(size, dtype=torch.uint8)
            ray.experimental.set_target_for_ref(references[0], [target])
            got = ray.get(references[0])
            assert got.data_ptr() == target.data_ptr(), "not the given tensor"
            return self.check([target], size, seed)

        def time(self, references):
            """How long ray.get takes for each, in seconds."""
            taken = []
            for reference in references:
                before = time.perf_counter()
                ray.get(reference)
                taken.append(time.perf_counter() - before)
            return taken

        def ready(self):
            return os.getpid()

    def get(reference):
        return ray.get(reference, timeout=CALL_LIMIT_S)

    place = tempfile.mkdtemp(prefix="nr.")  # short: the paths of unix sockets begin with it
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_AUTH_MODE="disabled",
                      PYTHONPATH=str(HERE.parent))
    counted = {"transfers": 0, "bytes": 0}

    def count(size):
        counted["transfers"] += 1
        counted["bytes"] += size

    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 * MB, _temp_dir=place)
    try:
        source_class = ray.remote(Source)
        reader_class = ray.remote(enable_tensor_transport=True)(Reader)
        source, other, victim = (source_class.remote() for _ in range(3))
        reader = reader_class.remote()
        pids = [get(actor.ready.remote()) for actor in (source, other, victim, reader)]

        for size, rounds in ROUNDS.items():
            for i in range(rounds):
                seed = size + i
                whose = (source, other)[i % 2]
                count(get(reader.check.remote(whose.make.remote(size, seed), size, seed)))
        for count_of in (3, 60):
            size = 24 * count_of * 100
            count(get(reader.check.remote(source.make.remote(size, 5, count_of), size, 5,
                                          count_of)))
        for call in (reader.fetch, reader.fetch_into):
            for size in ROUNDS:
                count(get(call.remote(get(source.put.remote(size, 9)), size, 9)))
        mine = get(source.make.remote(MB, 11))  # this process reads too
        assert torch.equal(mine[0], made(MB, 11)[0])
        count(MB)

        taken = {}
        for size in (64, 64 * MB):
            references = [get(source.put.remote(size, i))[0] for i in range(10)]
            taken[size] = get(reader.time.remote(references))
            del references

        # The victim dies. First everything is there and the reader knows it.
        count(get(reader.check.remote(victim.make.remote(MB, 21), MB, 21)))
        outstanding = [victim.make.remote(MB, 30 + i) for i in range(3)]
        large = victim.make.remote(LARGE, 22)
        get(victim.ready.remote())
        running = reader.check.remote(large, LARGE, 22)
        time.sleep(0.3)
        ray.kill(victim)
        killed = time.monotonic()
        ends = []
        for reference, size, seed in [(running, LARGE, 22)] + [
                (reader.check.remote(r, MB, 30 + i), MB, 30 + i)
                for i, r in enumerate(outstanding)]:
            try:
                count(get(reference))
                ends.append("right bytes")
            except ray.exceptions.GetTimeoutError:
                raise  # nobody may wait for ever
            except Exception as error:
                ends.append(type(error).__name__ + ": " + str(error).strip().splitlines()[-1])
        told_s = time.monotonic() - killed
        assert all(end != "right bytes" for end in ends[1:]), "read from a dead process"
        for i in range(10):
            whose = (source, other)[i % 2]
            count(get(reader.check.remote(whose.make.remote(4 * MB, 40 + i), 4 * MB, 40 + i)))
        assert get(reader.ready.remote()) == pids[3], "the reader was started anew"

        for actor in (source, other, reader):
            actor.__ray_terminate__.remote()
        deadline = time.monotonic() + 30
        while any(os.path.exists("/proc/%d" % pid) for pid in pids):
            assert time.monotonic() < deadline, "an actor did not end"
            time.sleep(0.1)
        print("after the kill: " + "; ".join(ends))
    finally:
        ray.shutdown()
        logs = Path(folder) / "ray-logs"
        shutil.copytree(os.path.join(place, "session_latest", "logs"), str(logs),
                        dirs_exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
    crashed = [path.name for path in logs.glob("*.err")
               if "SIGSEGV" in path.read_text(errors="replace")]
    return dict(counted, small_ms=pair.median_us(taken[64]) / 1e3,
                large_ms=pair.median_us(taken[64 * MB]) / 1e3, ends=ends, told_s=told_s,
                crashed=crashed)


def summary(results):
    work = results["work"]
    errors = sum(end != "right bytes" for end in work["ends"])
    return ("%d transfers, %.1f MB compared; ray.get of 64 B %.2f ms, of 64 MiB %.1f ms (medians); "
            "source killed: %d of %d readings refused in %.1f s, the reader went on; "
            "crash reports of actors: %d" % (
                work["transfers"], work["bytes"] / 1e6, work["small_ms"], work["large_ms"], errors,
                len(work["ends"]), work["told_s"], len(work["crashed"])))


if __name__ == "__main__":
    pair.main({"work": work}, summary)
