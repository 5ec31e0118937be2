"""LMCache's transfer channel, driven by LMCache's own benchmark of it, with --verify.

A server process offers objects of a gigabyte of its memory, a client reads some of them through the
channel (make_prepped_xfer with list indices) and compares every byte that came.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pair

TOOL = [sys.executable, "-m", "lmcache.tools.transfer_channel_benchmark"]
KB, MB = 1 << 10, 1 << 20
ROUNDS = [  # page, object, objects in a read; a page is a descriptor
    (512 * KB, 10 * MB, 20),
    (64 * KB, 4 * MB, 50),
    (4 * KB, 64 * KB, 1000),
]
BUFFER = 1 << 30
DEADLINE_S = 150  # for each round


def one_round(folder, number, page, size, count):
    """(what the client printed, complaints) of one server and one client."""
    channel, catalog = pair.free_port(), pair.free_port()
    same = ["--page-size", page, "--object-size", size, "--num-objects", count,
            "--url", "127.0.0.1:%d" % channel, "--control-url", "127.0.0.1:%d" % catalog]
    environment = dict(os.environ, LMCACHE_TRACK_USAGE="false")
    deadline = time.monotonic() + DEADLINE_S

    def start(role, more):
        return pair.Process("%s-%d" % (role, number),
                            list(map(str, TOOL + ["--role", role] + same + more)), folder,
                            environment)

    server = start("server", ["--buffer-size", BUFFER, "--num-source-objects", 2 * count,
                              "--server-timeout", DEADLINE_S])
    client = start("client", ["--listen-url", "127.0.0.1:%d" % pair.free_port(), "--iters", 10,
                              "--warmup", 2, "--seed", number, "--verify"])
    statuses = {}
    try:
        statuses["client"] = client.wait(deadline)
        server.popen.send_signal(signal.SIGINT)  # how its user ends it
        statuses["server"] = server.wait(deadline)
    finally:
        left = [process.name for process in (client, server) if process.end()]
    said = client.log.read_text(errors="replace")
    complaints = ["%s ended with status %s" % item for item in statuses.items() if item[1] != 0]
    complaints += ["%s left processes behind" % name for name in left]
    if "verify OK: %d objects" % count not in said:
        complaints.append("the client did not verify %d objects" % count)
    if complaints:
        for process in (server, client):
            print("--- the end of what %s said:" % process.name)
            print("\n".join(process.tail()))
    return said, statuses, complaints


def main():
    with pair.run_folder() as folder:
        complaints, figures, ends, compared = [], [], [], 0
        for number, (page, size, count) in enumerate(ROUNDS):
            said, statuses, wrong = one_round(folder, number, page, size, count)
            complaints += ["round %d: %s" % (number, what) for what in wrong]
            ends.append("%s/%s" % (statuses["server"], statuses["client"]))
            if "verify OK: %d objects" % count in said:
                compared += size * count
            median = re.search(r"median\s*:\s*([\d.]+ ms)\s+([\d.]+ GB/s)", said)
            figures.append("%d pages of %d KiB in %s" % (
                size // page * count, page // KB,
                " (".join(median.groups()) + ")" if median else "?"))
    pair.finish("%.1f MB compared; median of a read: %s; exit statuses: server/client %s" % (
        compared / 1e6, ", ".join(figures), ", ".join(ends)), complaints)


if __name__ == "__main__":
    main()
