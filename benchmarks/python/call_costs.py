"""What single Python calls cost, in this interpreter's package or side by side with another's.

    python benchmarks/python/call_costs.py
    python benchmarks/python/call_costs.py --other peer/bin/python --rounds 5

With --other, two interpreters run in turn, and each figure is the median of their rounds; the ratio
is that of the same round, so that a machine which is busy for a while does not favour either.
Times are microseconds a call; memory is bytes of the process a descriptor of a prepared list.
"""

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np


def find_package():
    for name in ("nixl", "nixl_cu12", "nixl_cu13"):
        try:
            return importlib.import_module(name + "._api")
        except ImportError:
            continue
    raise SystemExit("this interpreter has no nixl")


def per_call(function, calls=200, batches=25):
    """Microseconds a call: the median of batches, without garbage collection."""
    function()
    times = []
    gc.disable()
    for _ in range(batches):
        start = time.perf_counter_ns()
        for _ in range(calls):
            function()
        times.append((time.perf_counter_ns() - start) / calls / 1000)
    gc.enable()
    return statistics.median(times)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure():
    api = find_package()
    a, b = (api.nixl_agent(name, api.nixl_agent_config(backends=["UCX"])) for name in "ab")
    size = 64 << 20
    memory = [np.zeros(size, np.uint8) for _ in range(2)]
    ours, theirs = (array.ctypes.data for array in memory)
    for agent, base in ((a, ours), (b, theirs)):
        agent.register_memory([(base, size, 0, "")], "DRAM")
    blob = b.get_agent_metadata()
    a.add_remote_agent(blob)

    def table(base, count, length=4096):
        rows = np.zeros((count, 3), np.uint64)
        rows[:, 0] = base + length * np.arange(count, dtype=np.uint64)
        rows[:, 1] = length
        return rows

    tuples = [(ours + 4096 * i, 4096, 0) for i in range(16)]
    n1024 = table(ours, 1024)
    local = a.prep_xfer_dlist("", table(ours, 4096), "DRAM")
    remote = a.prep_xfer_dlist("b", table(theirs, 4096), "DRAM")
    order = np.random.default_rng(1).permutation(4096).astype(np.int32)
    one_local = a.get_xfer_descs([(ours, 8, 0)], "DRAM")
    one_remote = a.get_xfer_descs([(theirs, 8, 0)], "DRAM")
    small = a.initialize_xfer("WRITE", one_local, one_remote, "b", b"")

    def run(handle):
        state = a.transfer(handle)
        while state != "DONE":
            state = a.check_xfer_state(handle)

    for _ in range(100):
        run(small)

    def made(count, indices=None):
        chosen = order[:count] if indices is None else indices

        def call():
            a.make_prepped_xfer("WRITE", local, chosen, remote, chosen).release()

        return call

    def initialize():
        a.initialize_xfer("WRITE", one_local, one_remote, "b", b"").release()

    def prepare(rows):
        return lambda: a.prep_xfer_dlist("", rows, "DRAM").release()

    def registered():
        descs = a.register_memory([(ours, 4096, 0, "")], "DRAM")
        a.deregister_memory(descs)

    costs = {
        "get_xfer_descs, 16 tuples": per_call(lambda: a.get_xfer_descs(tuples, "DRAM")),
        "get_xfer_descs, 1,024 x 3 array": per_call(lambda: a.get_xfer_descs(n1024, "DRAM")),
        "prep_xfer_dlist + release, 16 tuples": per_call(prepare(tuples)),
        "prep_xfer_dlist + release, 1,024 x 3 array": per_call(prepare(n1024), 50),
        "make_prepped_xfer + release, 1 index": per_call(made(1)),
        "make_prepped_xfer + release, 16 indices": per_call(made(16)),
        "make_prepped_xfer + release, 512 indices": per_call(made(512), 50),
        "make_prepped_xfer + release, list of 512": per_call(made(0, order[:512].tolist()), 50),
        "initialize_xfer + release, 1 descriptor": per_call(initialize),
        "transfer, 8 bytes, done inside": per_call(lambda: run(small)),
        "check_xfer_state, done": per_call(lambda: a.check_xfer_state(small)),
        "get_new_notifs, none": per_call(a.get_new_notifs),
        "add_remote_agent, known already": per_call(lambda: a.add_remote_agent(blob), 20),
        "check_remote_metadata": per_call(lambda: a.check_remote_metadata("b")),
        "register_memory + deregister_memory": per_call(registered, 20),
    }
    if hasattr(small, "release"):
        small.release()

    for what, peer, base in (("local", "", ours), ("remote", "b", theirs)):
        rows = table(base, 1 << 20, 64)
        np.random.default_rng(2).shuffle(rows)  # what is regular may be kept as less
        gc.collect()
        before = resident()
        lists = [a.prep_xfer_dlist(peer, rows, "DRAM") for _ in range(4)]
        costs[f"memory of a descriptor, prepared {what} list"] = (resident() - before) / (4 << 20)
        for made_list in lists:
            made_list.release()
    print(json.dumps(costs), flush=True)
    os._exit(0)  # some libraries do not survive the interpreter's own end


def child(python):
    done = subprocess.run(
        [python, os.path.abspath(__file__), "--measure"],
        stdout=subprocess.PIPE,
        universal_newlines=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{python} measured nothing, exit status {done.returncode}")
    return json.loads(lines[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", metavar="PYTHON", help="the interpreter to compare with")
    parser.add_argument("--ours", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure()
    rounds = [
        (child(options.other) if options.other else None, child(options.ours))
        for _ in range(options.rounds)
    ]
    if options.other:
        print("| call | other | ours | ratio |\n|---|---|---|---|")
    else:
        print("| call | cost |\n|---|---|")
    for name in rounds[0][1]:
        unit = "B" if name.startswith("memory") else "us"
        ours = statistics.median(r[1][name] for r in rounds)
        if not options.other:
            print(f"| {name} | {ours:.2f} {unit} |")
            continue
        other = statistics.median(r[0][name] for r in rounds)
        ratio = statistics.median(r[0][name] / max(r[1][name], 1e-9) for r in rounds)
        print(f"| {name} | {other:.2f} {unit} | {ours:.2f} {unit} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
