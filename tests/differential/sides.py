"""The two implementations, each in a process of its own that is started again when it dies."""

import os
import subprocess
from multiprocessing.connection import Connection
from pathlib import Path

WORLD = Path(__file__).resolve().parent / "world.py"
START_S, PROGRAM_S = 60, 20


class Died(Exception):
    """The process ended, or did not answer in time, while it ran a program."""


class Side:
    """One implementation. Use as a context manager."""

    def __init__(self, python, package, env=None):
        self.python, self.package, self.env = str(python), package, env
        self.process = None
        self.starts = 0

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()

    def start(self):
        theirs_read, self_write = os.pipe()
        self_read, theirs_write = os.pipe()
        self.process = subprocess.Popen(
            [self.python, str(WORLD), self.package, str(theirs_read), str(theirs_write)],
            env=self.env,
            pass_fds=(theirs_read, theirs_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_read)
        os.close(theirs_write)
        self.orders = Connection(self_write, readable=False)
        self.answers = Connection(self_read, writable=False)
        self.starts += 1
        self.receive(START_S)

    def receive(self, seconds):
        try:
            if self.answers.poll(seconds):
                return self.answers.recv()
            how = f"did not answer within {seconds} s"
        except (EOFError, OSError):
            how = f"ended with status {self.process.wait(PROGRAM_S)}"
        self.stop()
        raise Died(f"{self.package} {how}")

    def stop(self):
        """Ends the process; the next program starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.orders.close()
            self.answers.close()
            self.process = None

    def run(self, lines):
        """The results of a program's lines, see world.py. Raises Died."""
        if self.process is None:
            self.start()
        try:
            self.orders.send(lines)
        except OSError:
            pass  # receive() finds out how it ended
        results, unclean = self.receive(PROGRAM_S)
        if unclean:
            self.stop()
        return results
