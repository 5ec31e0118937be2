"""Runs programs in one implementation: world.py PACKAGE READ-DESCRIPTOR WRITE-DESCRIPTOR.

A program is a list of lines (name, expression). Each expression is evaluated, what it gave or
raised is described in plain values, and kept under the name for the lines that follow. Names that
are there from the start: a, b and n, agents; A and B, addresses of registrable memory, the same in
every process; and np, nb (the bindings), api, pickle, copy.

Agents a and b have UCX and live as long as the process, for making them takes long; n has no
backend and is made anew. What could bring upstream down is not done: Unsafe is raised instead, in
both implementations alike.
"""

import copy
import ctypes
import datetime
import enum
import importlib
import mmap
import os
import pickle
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

A, B = 0x100000000000, 0x100000100000
SIZE = 16384
POLL_S = 3.0  # how long to wait for what must come


class Unsafe(Exception):
    """Upstream's behaviour here is undefined, so nobody is asked."""


def memory_at(address):
    """SIZE bytes of new memory at this address, as an array."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    fixed_noreplace = 0x100000
    got = libc.mmap(
        address,
        SIZE,
        mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_noreplace,
        -1,
        0,
    )
    if got != address:
        raise OSError(ctypes.get_errno(), f"no memory at {address:#x}")
    return np.frombuffer((ctypes.c_ubyte * SIZE).from_address(address), np.uint8)


def text(name):
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name


def public_name(cls):
    """The class that a program's `except` names."""
    return next(c.__name__ for c in cls.__mro__ if not c.__name__.startswith("_"))


class Native:
    """The native agent, whose getNotifs() waits until everything that was sent has come."""

    def __init__(self, world, agent):
        self._world, self._agent = world, agent

    def __getattr__(self, name):
        return getattr(self._agent, name)

    def getNotifs(self, known, *more, **named):
        due = self._world.due
        before = sum(len(messages) for messages in known.values())
        deadline = time.monotonic() + POLL_S
        while True:
            known = self._agent.getNotifs(known, *more, **named)
            arrived = sum(len(messages) for messages in known.values()) - before
            if arrived >= due[self.name] or time.monotonic() > deadline:
                due[self.name] = max(0, due[self.name] - arrived)
                return known


class World:
    def __init__(self, package):
        self.api = importlib.import_module(package + "._api")
        self.nb = importlib.import_module(package + "._bindings")
        self.due = {"a": 0, "b": 0, "n": 0}  # notifications under way, by receiver
        self.memories = [memory_at(A), memory_at(B)]
        self.agents = {}
        self.Agent = self.make_agent_class()
        for name in ("a", "b"):
            self.agents[name] = self.new_agent(name, ["UCX"])

    def new_agent(self, name, backends):
        agent = self.Agent(
            name, self.api.nixl_agent_config(backends=backends, capture_telemetry=True)
        )
        native = Native(self, agent.agent)
        native.name = name
        agent.agent = native
        return agent

    def make_agent_class(world):
        """nixl_agent, with transfers polled to their end, and without what is unsafe."""

        def usable(handle):
            if getattr(handle, "_released", False):
                raise Unsafe("released")

        def kept(handle, name, target=None, message=b""):
            world.kept.append(handle)
            world.facts[id(handle)] = {"agent": name, "target": target, "message": message}
            return handle

        def facts(handle):
            return world.facts.get(id(handle), {})

        class Agent(world.api.nixl_agent):
            def register_memory(self, *args, **named):
                done = super().register_memory(*args, **named)
                rows = [done[i] for i in range(done.descCount())]
                world.registered.append((self, done.getType(), rows))
                return done

            def deregister_memory(self, descs, *args, **named):
                if isinstance(descs, world.nb.nixlRegDList):
                    rows = [descs[i][:3] for i in range(descs.descCount())]
                    if len(rows) != len(set(rows)):
                        raise Unsafe("the same range twice is freed twice")
                super().deregister_memory(descs, *args, **named)
                for handle in world.kept:  # the next post of a loopback handle may crash
                    fact = facts(handle)
                    if fact["agent"] == fact["target"] == self.name:
                        fact["stale"] = True

            def prep_xfer_dlist(self, agent_name, *args, **named):
                side = super().prep_xfer_dlist(agent_name, *args, **named)
                return kept(side, self.name, text(agent_name))

            def make_prepped_xfer(self, op, local, li, remote, ri, notif_msg=b"", **named):
                for side in (local, remote):
                    usable(side)
                    if isinstance(side, world.api.nixl_xfer_handle) or facts(side).get("stale"):
                        raise Unsafe("of another kind, or stale")
                made = super().make_prepped_xfer(op, local, li, remote, ri, notif_msg, **named)
                return kept(made, self.name, facts(remote).get("target"), notif_msg)

            def initialize_xfer(self, op, local, remote, peer, notif_msg=b"", **named):
                made = super().initialize_xfer(op, local, remote, peer, notif_msg, **named)
                return kept(made, self.name, text(peer), notif_msg)

            def transfer(self, handle, *args, **named):
                usable(handle)
                if facts(handle).get("stale"):
                    raise Unsafe("memory was deregistered")
                if isinstance(handle, world.api.nixl_prepped_dlist_handle):
                    raise Unsafe("of another kind")
                state = super().transfer(handle, *args, **named)
                deadline = time.monotonic() + POLL_S
                while state == "PROC" and time.monotonic() < deadline:
                    state = super().check_xfer_state(handle)
                fact = facts(handle)
                given = named.get("notif_msg", args[0] if args else b"")
                fact["message"] = given or fact["message"]
                if fact["message"] and state == "DONE":
                    world.due[fact["target"]] += 1
                return state

            def send_notif(self, remote_agent_name, *args, **named):
                done = super().send_notif(remote_agent_name, *args, **named)
                world.due[text(remote_agent_name)] += 1
                return done

            def add_remote_agent(self, *args, **named):
                name = super().add_remote_agent(*args, **named)
                world.met.append((self, name))
                return name

        def guarded(method):
            def call(self, handle, *args, **named):
                usable(handle)
                if isinstance(handle, world.api.nixl_prepped_dlist_handle):
                    raise Unsafe("of another kind")
                return method(self, handle, *args, **named)

            return call

        def bounded(method):
            def call(self, descs, *args, **named):
                if getattr(descs, "isEmpty", bool)():  # of another class: item 0 is looked at
                    raise Unsafe("reads past the end")
                return method(self, descs, *args, **named)

            return call

        for name in ("get_xfer_descs", "get_reg_descs", "get_remote_descs"):
            setattr(Agent, name, bounded(getattr(world.api.nixl_agent, name)))
        for name in (
            "check_xfer_state",
            "get_xfer_telemetry",
            "query_xfer_backend",
            "estimate_xfer_cost",
        ):
            setattr(Agent, name, guarded(getattr(world.api.nixl_agent, name)))
        return Agent

    # --- one program ----------------------------------------------------------------------------

    def start(self):
        self.kept, self.facts, self.registered, self.met = [], {}, [], []
        self.agents["n"] = self.new_agent("n", [])
        for memory, first in zip(self.memories, (1, 101)):
            memory[:] = (np.arange(SIZE) * 7 + first + np.arange(SIZE) // 256) % 256

    def at(self, descs, i):
        if isinstance(i, int) and i >= descs.descCount():
            raise Unsafe("past the end")
        return descs[i]

    def run(self, lines):
        """What each line gave, and then what the memories and the accumulated messages are."""
        self.start()
        names = {
            **self.agents,
            "A": A,
            "B": B,
            "K": SIZE,
            "api": self.api,
            "nb": self.nb,
            "np": np,
            "pickle": pickle,
            "copy": copy,
            "datetime": datetime,
            "at": self.at,
        }
        results = []
        for name, expression in lines:
            names.pop(name, None)
            try:
                value = eval(expression, names)
            except Exception as error:
                results.append(("raised", public_name(type(error)), str(error)))
            else:
                names[name] = value
                results.append(("gave", self.described(value)))
        notifs = {name: self.described(self.agents[name].notifs) for name in ("a", "b")}
        results.append(("ended", notifs, [memory.tobytes() for memory in self.memories]))
        return results

    def described(self, value):
        """Plain values, equal where two implementations give what a program cannot tell apart."""
        nb, api = self.nb, self.api
        if value is None or isinstance(value, (bool, float, str, bytes)):
            return value
        if isinstance(value, enum.Enum) or type(value).__name__.endswith("_t"):
            return ("member", str(value), int(getattr(value, "value", value)))
        if isinstance(value, int):
            return value
        if isinstance(value, (list, tuple)):
            return (type(value).__name__, [self.described(v) for v in value])
        if isinstance(value, dict):
            return ("dict", sorted((k, self.described(v)) for k, v in value.items()))
        for cls in ("nixlXferDList", "nixlRegDList", "nixlRemoteDList"):
            if isinstance(value, getattr(nb, cls)):
                rows = [value[i] for i in range(value.descCount())]
                return (cls, str(value.getType()), rows)
        if isinstance(value, nb.nixlXferTelemetry):
            return ("telemetry", value.totalBytes, value.descCount)
        if isinstance(value, (api.nixl_xfer_handle, api.nixl_prepped_dlist_handle)):
            return ("handle", type(value).__name__, value._released)
        return ("object", type(value).__name__)

    def clean(self):
        """Makes the agents as they were; raises when that cannot be done."""
        for cls in (self.api.nixl_xfer_handle, self.api.nixl_prepped_dlist_handle):
            for handle in self.kept:
                if isinstance(handle, cls):
                    handle.release()
        for name in ("a", "b"):
            agent = self.agents[name]
            agent.agent.getNotifs({})
            if self.due[name]:
                raise RuntimeError(f"{self.due[name]} notifications to {name} did not come")
            agent.notifs = {}
        for agent, name in self.met:
            agent.remove_remote_agent(name)
        for agent, kind, rows in self.registered:
            for row in rows:
                try:
                    agent.agent.deregisterMem(self.nb.nixlRegDList(kind, [row]))
                except self.nb.nixlNotFoundError:
                    pass  # the program did so itself


def main(package, read, write):
    orders = Connection(int(read), writable=False)
    answers = Connection(int(write), readable=False)
    world = World(package)
    answers.send("ready")
    while True:
        try:
            lines = orders.recv()
        except EOFError:
            break
        results = world.run(lines)
        try:
            world.clean()
            clean = ""
        except Exception as error:
            clean = f"{type(error).__name__}: {error}"
        answers.send((results, clean))
    sys.stdout.flush()
    os._exit(0)  # upstream crashes at the interpreter's end


if __name__ == "__main__":
    main(*sys.argv[1:])
