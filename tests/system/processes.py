"""Python processes that do what a test asks of them, and are always reaped.

A `Peer` is an interpreter that waits for orders on a socket. An order is a function of `steps`,
with arguments; its result, or its exception, comes back. While it waits for the next one the process
sleeps in the kernel: nothing of it polls, unless an order started something that does.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection

DEADLINE = 90  # seconds; only to tell a hang from a busy machine


class Hang(AssertionError):
    """Something did not come in time."""


class Peer:
    """A process that carries out steps: peer(steps.something, ...) is what the step returned.

    :param name: what its agent is called, and what messages say.
    :param env: environment variables it has beside ours; None removes one.
    :param prefix: words in front of the interpreter's command line.
    """

    def __init__(self, name, env=None, prefix=()):
        self.name = name
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()
        environment = {**os.environ, **(env or {})}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c",
             f"import processes; processes.serve({theirs.fileno()})"],  # fmt: skip
            env={key: value for key, value in environment.items() if value is not None},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        theirs.close()
        self._pipe = Connection(ours.detach())
        self._killed = self._stopped = self._ended = False

    def __call__(self, step, *args, **more):
        self.begin(step, *args, **more)
        return self.result()

    def begin(self, step, *args, **more):
        """Gives an order without waiting for its result."""
        self._pipe.send((step, args, more))

    def result(self, seconds=DEADLINE):
        """Waits for the result of the last order."""
        if not self._pipe.poll(seconds):
            raise Hang(f"{self.name} did not answer within {seconds} s\n{self._stacks()}")
        try:
            failed, value = self._pipe.recv()
        except (EOFError, OSError):
            status = self.process.wait(DEADLINE)
            raise AssertionError(f"{self.name} ended with {status}\n{self.output()}") from None
        if failed:
            raise value
        return value

    def output(self):
        """What the process wrote so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def _stacks(self):
        if self.process.poll() is None and not self._stopped:
            self.process.send_signal(signal.SIGUSR1)  # faulthandler writes where it is
            time.sleep(1)
        return self.output()

    def kill(self):
        """As if the machine had lost it; returns when it is gone."""
        self._killed = True
        self.process.kill()
        self.process.wait(DEADLINE)

    def stop(self):
        """It is there, and does nothing any more."""
        self._stopped = True
        self.process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + DEADLINE
        while "T" not in _state(self.process.pid):
            assert time.monotonic() < deadline, f"{self.name} was not stopped"
            time.sleep(0.01)

    def go_on(self):
        self._stopped = False
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        """Ends the process, and returns what was wrong about how it ended."""
        if self._ended:
            return []
        self._ended = True
        if self._stopped:
            self.go_on()
        self._pipe.close()  # which it takes for the end
        try:
            status = self.process.wait(DEADLINE)
            hung = False
        except subprocess.TimeoutExpired:
            hung, stacks = True, self._stacks()
            self.process.kill()
            status = self.process.wait()
        output = self.output()
        self._log.close()
        if hung:
            return [f"{self.name} did not end within {DEADLINE} s\n{stacks}"]
        if not self._killed and (status != 0 or "Traceback" in output):
            return [f"{self.name} ended with {status}\n{output}"]
        return []


def end_all(peers):
    """Ends all of them, also when the first ones do not end well; then says so."""
    complaints = [complaint for peer in peers for complaint in peer.end()]
    assert not complaints, "\n".join(complaints)


def _state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def serve(fd):
    """What a Peer's process does, until the other end of the socket is closed."""
    import faulthandler
    from types import SimpleNamespace

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    os.set_inheritable(fd, False)
    pipe = Connection(fd)
    state = SimpleNamespace()
    while True:
        try:
            step, args, more = pipe.recv()
        except (EOFError, OSError):
            break
        try:
            answer = (False, step(state, *args, **more))
        except Exception as error:
            answer = (True, error)
        try:
            pipe.send(answer)
        except BrokenPipeError:
            break
        except Exception:
            pipe.send((True, AssertionError(traceback.format_exc())))
        del answer
    if getattr(state, "polling", None):
        state.polling.set()
        state.poller.join(DEADLINE)
    if getattr(state, "agent", None):
        state.agent.close()


def run_program(text, seconds=DEADLINE, **env):
    """Runs a program of its own, and returns (exit status, what it wrote)."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", text],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler writes where it is
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            status = "no exit status: it hung"
        log.seek(0)
        return status, log.read().decode(errors="replace")
