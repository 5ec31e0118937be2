"""What a process of the chaos run does; each function gets the process's state first.

Memory of an agent, in slots of SLOT bytes, one for each pair of agents, lane and purpose: nobody
writes to another's slot, so that every byte has one explanation.
"""

import collections
import os
import socket
import subprocess
import threading
import time

import numpy as np

import nixl._bindings as nb
from nixl._api import nixl_agent, nixl_agent_config
from steps import NIXL_ERRORS

Order = collections.namedtuple(
    "Order", "sender to op lane size pieces shuffled seed message timeout base cancel"
)
SLOT = 1 << 18
LANES = 3  # transfers of one agent to one other at a time
INBOX, OUTBOX, GOT, SOURCE = range(4)  # of peers' writes; for peers' reads; own reads, own writes
SENTINEL = 0x5A
_NUMBERS = np.arange(SLOT, dtype=np.uint32)


def slot(purpose, other, lane, agents):
    return ((purpose * agents + other) * LANES + lane) * SLOT


def pattern(seed, size):
    """Bytes that no other seed has at the same places."""
    return (((_NUMBERS[:size] + np.uint32(seed)) * np.uint32(2654435761)) >> np.uint32(13)).astype(
        np.uint8
    )


def begin(state, name, agents):
    """Makes the agent anew; returns its metadata and the address of its memory."""
    state.name, state.agents = name, agents
    if not hasattr(state, "memory"):
        state.memory = np.zeros(4 * agents * LANES * SLOT, np.uint8)
        state.base = state.memory.__array_interface__["data"][0]
    state.agent = nixl_agent(name, nixl_agent_config(backends=["UCX"]))
    state.descs = state.agent.register_memory([state.memory])
    state.unquiet = {}  # (peer, lane): a failed transfer that the engine has not let go of
    return state.agent.get_agent_metadata(), state.base


def load(state, blobs):
    """Metadata of others; returns what was refused."""
    refused = []
    for blob in blobs:
        try:
            state.agent.add_remote_agent(blob)
        except NIXL_ERRORS as error:
            refused.append(f"{type(error).__name__}: {error}")
    return refused


def lay_out(state, outbox):
    """Fills the slots that others will read: (reader, lane, seed, size)."""
    for reader, lane, seed, size in outbox:
        at = slot(OUTBOX, reader, lane, state.agents)
        state.memory[at : at + size] = pattern(seed, size)


def rows(base, at, size, pieces, shuffled):
    """A slot's first `size` bytes in pieces; the same order on both sides."""
    cuts = np.linspace(0, size, pieces + 1).astype(np.uint64)
    table = np.zeros((pieces, 3), np.uint64)
    table[:, 0] = np.uint64(base + at) + cuts[:-1]
    table[:, 1] = np.diff(cuts)
    if shuffled:
        table = table[np.random.default_rng(size).permutation(pieces)]
    return table


def post(state, order):
    ours = slot(SOURCE if order.op == "WRITE" else GOT, order.to, order.lane, state.agents)
    theirs = slot(INBOX if order.op == "WRITE" else OUTBOX, order.sender, order.lane, state.agents)
    if order.op == "WRITE":
        state.memory[ours : ours + order.size] = pattern(order.seed, order.size)
    agent = state.agent
    sides = [
        agent.get_xfer_descs(rows(base, at, order.size, order.pieces, order.shuffled), "DRAM")
        for base, at in ((state.base, ours), (order.base, theirs))
    ]
    handle = agent.initialize_xfer(order.op, *sides, f"agent{order.to}", order.message,
                                   timeout=order.timeout)
    try:
        agent.transfer(handle)
    except Exception:
        handle.release()
        raise
    return handle


def burst(state, orders, disturbance=None, after=0.0):
    """Carries out orders side by side; the disturbance comes from another thread meanwhile.

    Returns for each order (outcome, seconds), what the disturbance returned, and the lanes that may
    not be used yet.
    """
    told = {}

    def disturb():
        time.sleep(after)
        try:
            told["value"] = disturbance[0](state, *disturbance[1:])
        except Exception as error:  # the driver decides
            told["error"] = f"{type(error).__name__}: {error}"

    thread = threading.Thread(target=disturb) if disturbance else None
    if thread:
        thread.start()
    started = [time.monotonic() for _ in orders]
    outcomes = [None] * len(orders)
    handles = {}
    for i, order in enumerate(orders):
        started[i] = time.monotonic()
        try:
            if order.cancel:
                handles[i] = post(state, order)
                handles[i].cancel()
            else:
                handles[i] = post(state, order)
        except NIXL_ERRORS as error:
            outcomes[i] = (type(error).__name__, time.monotonic() - started[i])
    while handles:
        for i, handle in list(handles.items()):
            order = orders[i]
            try:
                how = state.agent.check_xfer_state(handle)
            except NIXL_ERRORS as error:
                how = type(error).__name__
            if how == "PROC":
                if time.monotonic() - started[i] < order.timeout + 20:
                    continue
                how = "HANG"
            outcomes[i] = (how, time.monotonic() - started[i])
            del handles[i]
            if how == "DONE":
                handle.release()
            else:
                state.unquiet[(order.to, order.lane)] = handle
        time.sleep(0.0005)
    if thread:
        thread.join(60)
        assert not thread.is_alive(), "a disturbance hangs"
    overwritten = disturbance and disturbance[0] is reuse_memory  # by ourselves, what was read too
    for i, order in enumerate(orders):
        if outcomes[i][0] == "DONE" and order.op == "READ" and not overwritten:
            at = slot(GOT, order.to, order.lane, state.agents)
            got = state.memory[at : at + order.size]
            wrong = np.flatnonzero(got != pattern(order.seed, order.size))
            if len(wrong):
                reused = np.count_nonzero(got[wrong] == SENTINEL)
                if reused == len(wrong):
                    outcomes[i] = ("READ OF REUSED MEMORY", outcomes[i][1])
                    continue
                outcomes[i] = (f"WRONG BYTES ({len(wrong)} of {order.size}, from {wrong[0]}; "
                               f"{reused} are those of memory in other use)", outcomes[i][1])
    return outcomes, told, quiet(state)


def quiet(state):
    """Lets go of failed transfers that have ended; the lanes of those that have not."""
    for key, handle in list(state.unquiet.items()):
        try:
            handle.quiesce(0.2)
        except nb.nixlNotQuiescedError:
            continue
        except NIXL_ERRORS:
            pass  # its agent has ended
        handle.release()
        del state.unquiet[key]
    return list(state.unquiet)


def verify(state, expected):
    """Which of (writer, lane, seed, size) did not arrive whole."""
    wrong = []
    for writer, lane, seed, size in expected:
        at = slot(INBOX, writer, lane, state.agents)
        if not np.array_equal(state.memory[at : at + size], pattern(seed, size)):
            wrong.append((writer, lane, seed, size))
    return wrong


def messages(state):
    """What came since: {sender: [bytes]}."""
    return {sender: list(got) for sender, got in state.agent.get_new_notifs().items()}


def resources(state):
    """Descriptors, threads, resident bytes, of this process."""
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident


# ---- disturbances, from a second thread ------------------------------------------------------------


def reuse_memory(state):
    """Gives all memory back, uses it for something else, and registers it again.

    Returns the new metadata, what of the other use was overwritten, and whether all peers let go.
    """
    quiet_peers = True
    try:
        state.agent.deregister_memory(state.descs, require_quiet=True)
    except nb.nixlNotQuiescedError:
        quiet_peers = False
    landed = ""
    if quiet_peers:
        state.memory[:] = SENTINEL
        time.sleep(0.05)
        # Into SOURCE the burst itself writes, from the other thread.
        others = state.memory[: slot(SOURCE, 0, 0, state.agents)]
        where = np.flatnonzero(others != SENTINEL)
        if len(where):
            other, lane = divmod(int(where[0]) // SLOT, LANES)
            purpose, other = divmod(other, state.agents)
            landed = (f"{len(where)} bytes, in the slot {('INBOX', 'OUTBOX', 'GOT', 'SOURCE')[purpose]}"
                      f" of agent{other}, lane {lane},")
    state.descs = state.agent.register_memory([state.memory])
    return state.agent.get_agent_metadata(), landed, quiet_peers


def start_anew(state):
    """The agent ends and another one takes its name, in one process."""
    state.agent.close()
    return begin(state, state.name, state.agents)


def cut(state):
    """The kernel ends every TCP connection of this process, as when a firewall forgets them.

    (A shutdown() from inside, which no network does, makes UCX 1.22 abort the process now and then:
    ucp_request.inl:356, "unexpected error: Endpoint timeout".)
    """
    for fd in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(fd))) as copy:
                if copy.family != socket.AF_INET:
                    continue
                copy.getpeername()
                port = copy.getsockname()[1]
        except OSError:
            continue  # no socket, or not connected
        done = subprocess.run(["ss", "-K", "-t", "sport", "=", str(port)], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stdout.decode()


def forget(state, name):
    state.agent.remove_remote_agent(name)
