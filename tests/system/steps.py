"""What a test can ask of a process. Each function gets the process's state first."""

import functools
import os
import socket
import threading
import time

import numpy as np

import nixl._bindings as nb
from nixl._api import nixl_agent, nixl_agent_config
from processes import DEADLINE, Hang


def until(condition, what, seconds=DEADLINE, pause=0.0005):
    """Looks until `condition()` gives something, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Hang(f"waited {seconds} s for {what}")
        time.sleep(pause)


# --- agents ---------------------------------------------------------------------------------------


def create(state, name, size=0, options=None, offset=0, **config):
    """Makes the agent, with `size` bytes of registered memory; returns its metadata and address."""
    close(state)
    state.agent = nixl_agent(name, nixl_agent_config(backends=[], **config))
    state.agent.create_backend("UCX", options or {})
    state.handles = {}
    if size:
        state.array = np.zeros(size + offset, np.uint8)[offset:]
        state.descs = state.agent.register_memory([state.array])
    return metadata(state), address(state)


def close(state):
    if getattr(state, "agent", None):
        state.agent.close()
    state.agent = state.array = None


def address(state):
    return 0 if state.array is None else state.array.__array_interface__["data"][0]


def metadata(state):
    return state.agent.get_agent_metadata()


def load(state, blob):
    return state.agent.add_remote_agent(blob).decode()


def call(state, method, *args, **more):
    """Any method of the agent whose arguments and result can be sent."""
    return getattr(state.agent, method)(*args, **more)


def events(state):
    return [tuple(event) for event in state.agent.events()]


def pin(state, cores):
    """All threads of this process to these cores."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:
            pass  # it ended meanwhile


def wait_for_event(state, kind, peer, message=None, seconds=DEADLINE):
    """The first event of that kind about that peer, with that message; those before it are gone."""

    def look():
        for event in state.agent.events():
            if (event.kind, event.peer) == (kind, peer) and message in (None, event.message):
                return event
        return None

    return until(look, f"the event {kind} of {peer}", seconds)


def covered(state, peer, rows):
    return state.agent.check_remote_metadata(peer, state.agent.get_xfer_descs(rows, "DRAM"))


def register_more(state, size, with_connection=True):
    """Registers an array more; returns partial metadata of it, and its row."""
    state.more = np.zeros(size, np.uint8)
    state.more_descs = descs = state.agent.register_memory([state.more])
    blob = state.agent.get_partial_agent_metadata(descs, inc_conn_info=with_connection)
    return blob, (state.more.__array_interface__["data"][0], size, 0)


def load_without_ucx(state, blob):
    with nixl_agent("without", nixl_agent_config(backends=["LOOPBACK"])) as agent:
        try:
            agent.add_remote_agent(blob)
        finally:
            assert not agent.check_remote_metadata("b")


def cut_connections(state):
    """Ends every TCP connection of this process, as a network would; returns how many."""
    cut = 0
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(fd)) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6):
                    copy.getpeername()
                    copy.shutdown(socket.SHUT_RDWR)
                    cut += 1
        except OSError:
            pass  # no socket, or not connected
    return cut


def load_often(state, blob, times):
    return [state.agent.add_remote_agent(blob) for _ in range(times)]


def resident_bytes(state):
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- bytes ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=3)
def pattern(seed, size):
    return np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8)


def fill(state, seed, size=None):
    """Writes the pattern of `seed`, to the first `size` bytes or everywhere."""
    memory = state.array[:size]
    memory[:] = pattern(seed, memory.size)


def verify(state, seed, theirs, pieces, size=None):
    """What fill() wrote is there, but for pieces that came from the pattern of seed `theirs`.

    `pieces`: offsets here, offsets there, and one length.
    """
    memory = state.array[:size]
    here, there, length = pieces
    expected = pattern(seed, memory.size).copy()
    other = pattern(theirs, memory.size)
    for to, source in zip(here, there):
        expected[to : to + length] = other[source : source + length]
    if not np.array_equal(memory, expected):
        wrong = np.flatnonzero(memory != expected)
        raise AssertionError(
            f"{len(wrong)} wrong bytes, the first at {wrong[0]}, the last at {wrong[-1]}"
        )


# --- transfers ------------------------------------------------------------------------------------


def transfer_of(agent, op, peer, ours, theirs, notif=b""):
    """A transfer of tables, N x 3 or N x 5, made from two prepared sides."""
    local = agent.prep_xfer_dlist("", np.asarray(ours, np.uint64), "DRAM")
    remote = agent.prep_xfer_dlist(peer, np.asarray(theirs, np.uint64), "DRAM")
    table = np.asarray(ours)
    count = int(table[:, 4].sum()) if table.shape[1] == 5 else len(table)
    indices = np.arange(count, dtype=np.int32)
    handle = agent.make_prepped_xfer(op, local, indices, remote, indices, notif)
    local.release()
    remote.release()
    return handle


def prepare(state, key, op, peer, ours, theirs, notif=b""):
    state.handles[key] = transfer_of(state.agent, op, peer, ours, theirs, notif)


def post(state, key):
    return state.agent.transfer(state.handles[key])


def wait(state, key, seconds=DEADLINE):
    return state.agent.wait(state.handles[key], seconds)


def finish(state, key, how="wait", seconds=DEADLINE):
    """Until it is done, sleeping in the library or polling; a failure raises."""
    agent, handle = state.agent, state.handles[key]
    if how == "wait":
        if agent.wait(handle, seconds) != "DONE":
            raise Hang(f"waited {seconds} s for a transfer: {agent.explain(handle)}")
    else:
        done = lambda: agent.check_xfer_state(handle) == "DONE"  # noqa: E731
        until(done, "a transfer", seconds, pause=0.0001)


def move(state, op, peer, ours, theirs, notif=b"", how="wait"):
    """A whole transfer, from preparation to its end."""
    prepare(state, "move", op, peer, ours, theirs, notif)
    try:
        if post(state, "move") != "DONE":
            finish(state, "move", how)
    finally:
        state.handles.pop("move").release()


def repeat_until_it_fails(state, key, how="wait", seconds=DEADLINE):
    """Posts again and again; returns how often it was done. What it fails with is raised."""
    deadline = time.monotonic() + seconds
    done = 0
    while time.monotonic() < deadline:
        if state.agent.transfer(state.handles[key]) != "DONE":
            finish(state, key, how, seconds)
        done += 1
    raise Hang(f"{done} transfers were done, and none failed")


def release(state, key):
    """Releases a transfer, and returns how many seconds that took."""
    before = time.monotonic()
    state.handles.pop(key).release()
    return time.monotonic() - before


def deregister(state):
    state.agent.deregister_memory(state.descs)


def deregister_and_fill(state, seed, require_quiet=False):
    """Gives the memory back, and uses it for something else at once."""
    state.agent.deregister_memory(state.descs, require_quiet=require_quiet)
    fill(state, seed)


def deregister_more(state):
    state.agent.deregister_memory(state.more_descs)


def close_and_fill(state, seed):
    memory = state.array
    state.agent.close()
    state.agent, state.array = None, memory
    fill(state, seed)


def sleep(state, seconds):
    time.sleep(seconds)


def register_again(state):
    state.descs = state.agent.register_memory([state.array])


def prepare_side(state, key, peer, rows):
    state.handles[key] = state.agent.prep_xfer_dlist(peer, np.asarray(rows, np.uint64), "DRAM")


def join_sides(state, op, ours, theirs):
    """A transfer of two prepared sides that this process keeps, posted."""
    agent = state.agent
    made = agent.make_prepped_xfer(op, state.handles[ours], [0], state.handles[theirs], [0])
    if agent.transfer(made) != "DONE":
        agent.wait(made, DEADLINE)
    made.release()


# --- notifications --------------------------------------------------------------------------------


def notify(state, peer, messages):
    for message in messages:
        state.agent.send_notif(peer, message)


def notified(state, peer, count):
    """Polls until `count` messages of a peer came; returns them, and nothing else may have come."""
    got = []

    def look():
        for sender, messages in state.agent.get_new_notifs().items():
            assert sender == peer, f"a message of {sender}"
            got.extend(messages)
        return len(got) >= count

    until(look, f"{count} messages, and {len(got)} came")
    return got


def start_polling(state):
    """A thread that collects notifications as fast as it can."""
    state.polling = threading.Event()
    state.collected = []

    def poll():
        while not state.polling.is_set():
            for messages in state.agent.get_new_notifs().values():
                state.collected.extend(messages)
            time.sleep(0)

    state.poller = threading.Thread(target=poll, daemon=True)
    state.poller.start()


def stop_polling(state, count):
    """Ends the thread once it has collected `count` messages, and returns them."""
    try:
        until(lambda: len(state.collected) >= count, f"{count} messages")
    finally:
        state.polling.set()
        state.poller.join(DEADLINE)
        state.polling = None
    return state.collected


# --- errors ---------------------------------------------------------------------------------------

NIXL_ERRORS = tuple(
    value for name, value in vars(nb).items() if name.startswith("nixl") and name.endswith("Error")
)
