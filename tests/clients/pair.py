"""What the drivers of tests/clients share: processes with a deadline, bytes that can be checked.

A driver `run.py` starts itself again, once for each role, and puts together what the roles left:

    if __name__ == "__main__":
        pair.main({"owner": owner, "mover": mover}, summary)

A role is a function of one argument, the folder that all roles of the run see; what it returns (a
dict that JSON can hold) is kept there. `summary(results)` gives the line that ends the output.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEADLINE_S = 300  # for all roles of a run together
PR_SET_PDEATHSIG = 1


def free_port():
    """A TCP port of 127.0.0.1 that nobody listens on right now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pattern(size, seed):
    """`size` bytes as a uint8 array: random, and the same for the same seed in every process."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def median_us(seconds):
    """The median of a list of durations, in microseconds."""
    return statistics.median(seconds) * 1e6


def put(folder, name, data):
    """Leaves bytes for the other roles, whole or not at all."""
    draft = Path(folder) / (name + ".draft-" + str(os.getpid()))
    draft.write_bytes(data)
    draft.replace(Path(folder) / name)


def get(folder, name, timeout_s=120):
    """The bytes that another role put; waits for them.

    Raises TimeoutError when they do not come in `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    path = Path(folder) / name
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("'%s' was not left by another role in %d s" % (name, timeout_s))
        time.sleep(0.005)
    return path.read_bytes()


def prepare_child():
    """Run in a new child: it shall not outlive the driver, and SIGINT shall reach it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it


class Process:
    """One started process, with its output in a file and in a session of its own."""

    def __init__(self, name, command, folder, environment=None):
        self.name = name
        self.log = Path(folder) / (name + ".log")
        with open(str(self.log), "wb") as log:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True, preexec_fn=prepare_child)

    def wait(self, deadline):
        """The exit status: negative for a signal, None when it is still running at `deadline`."""
        try:
            return self.popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def end(self, grace_s=5):
        """Ends it with all that it started. True if it had ended, and left processes behind.

        What it started may take `grace_s` seconds longer to end, as helpers of multiprocessing do.
        """
        ended = self.popen.poll() is not None
        deadline = time.monotonic() + (grace_s if ended else 0)
        try:
            os.killpg(self.popen.pid, 0)
            while time.monotonic() < deadline:
                time.sleep(0.05)
                os.killpg(self.popen.pid, 0)
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            ended = False  # nothing is left
        self.popen.wait()
        return ended

    def tail(self, lines=15):
        return self.log.read_text(errors="replace").splitlines()[-lines:]


def run_role(roles, name, folder):
    result = roles[name](folder)
    put(folder, name + ".json", json.dumps(result).encode())


def run_roles(roles, folder):
    """Runs each role in a process of its own. Returns (results, exit statuses, complaints)."""
    script = os.path.abspath(sys.argv[0])
    started = [Process(name, [sys.executable, script, name, str(folder)], folder)
               for name in roles]
    deadline = time.monotonic() + DEADLINE_S
    statuses, results, complaints = {}, {}, []
    try:
        for process in started:
            statuses[process.name] = process.wait(deadline)
    finally:
        left = [process.name for process in started if process.end()]
    for process in started:
        wrong = []
        path = Path(folder) / (process.name + ".json")
        if path.exists():
            results[process.name] = json.loads(path.read_text())
        else:
            wrong.append("did not finish its work")
        if statuses[process.name] is None:
            wrong.append("was still running after %d s" % DEADLINE_S)
        elif statuses[process.name] != 0:
            wrong.append("ended with status %d" % statuses[process.name])
        if process.name in left:
            wrong.append("left processes behind")
        if wrong:
            print("--- the end of what %s said:" % process.name)
            print("\n".join(process.tail()))
            complaints += ["%s %s" % (process.name, what) for what in wrong]
    return results, statuses, complaints


@contextlib.contextmanager
def run_folder():
    """The folder of this run: the one that NIXL_CLIENTS_LOGS names, or one that is removed."""
    logs = os.environ.get("NIXL_CLIENTS_LOGS")
    if logs:
        yield logs
    else:
        with tempfile.TemporaryDirectory(prefix="nixl-client.") as fresh:
            yield fresh


def finish(line, complaints):
    """Prints the summary as the last line, and ends with 0 if there is no complaint."""
    for complaint in complaints:
        print("wrong: " + complaint)
    print(line, flush=True)
    sys.exit(1 if complaints else 0)


def main(roles, summary):
    """The driver's main program: every role, or the one that the command line names."""
    if len(sys.argv) == 3:
        run_role(roles, sys.argv[1], sys.argv[2])
        return
    with run_folder() as folder:
        results, statuses, complaints = run_roles(roles, folder)
        said = summary(results) if len(results) == len(roles) else "not finished"
    ends = ", ".join("%s %s" % (name, statuses[name]) for name in roles)
    finish("%s; exit statuses: %s" % (said, ends), complaints)
