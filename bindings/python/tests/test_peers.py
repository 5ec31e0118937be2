"""Agents that move memory to each other: in one process, and in two."""

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import nixl._bindings as nb
from binding_helpers import address, run, until
from nixl._api import nixl_agent, nixl_agent_config

SPAWN = multiprocessing.get_context("spawn")


def row(array, size=None):
    return [(address(array), size or array.nbytes, 0)]


def transfer_between(a, b_name, x, y, op="WRITE", notif_msg=b"", **more):
    return a.initialize_xfer(
        op,
        a.get_xfer_descs(row(x), "DRAM"),
        a.get_xfer_descs(row(y), "DRAM"),
        b_name,
        notif_msg,
        **more,
    )


# --- in one process -----------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["WRITE", "READ"])
def test_bytes_arrive(pair, op):
    a, b, x, y = pair
    source, target = (x.copy(), y) if op == "WRITE" else (y.copy(), x)
    run(a, transfer_between(a, b.name, x, y, op))
    assert np.array_equal(target, source)


def test_the_name_of_a_peer_is_bytes_and_good_for_every_call(pair):
    a, b, x, y = pair
    name = a.add_remote_agent(b.get_agent_metadata())
    assert name == b.name.encode() and isinstance(name, bytes)
    a.make_connection(name)
    assert a.check_remote_metadata(name)
    assert a.check_remote_metadata(name, a.get_xfer_descs(row(y), "DRAM"))
    assert not a.check_remote_metadata(name, a.get_xfer_descs([(8, 8, 0)], "DRAM"))
    a.send_notif(name, b"")
    side = a.prep_xfer_dlist(name, row(y), "DRAM")
    handle = transfer_between(a, name, x, y)
    run(a, handle)
    for made in (side, handle):
        made.release()
    a.remove_remote_agent(name)
    assert not a.check_remote_metadata(name)


@pytest.mark.parametrize("blob", [bytes, bytearray])
def test_metadata_is_taken_as_bytes_or_bytearray(pair, blob):
    a, b, *_ = pair
    assert a.add_remote_agent(blob(b.get_agent_metadata())) == b.name.encode()


def test_notifications_are_bytes_by_sender(pair):
    a, b, *_ = pair
    messages = [b"plain", "té xt", bytearray(b"nul\0"), b"", b"x" * 100000]
    for message in messages:
        a.send_notif(b.name, message, backend="UCX")
    received = []

    def collect():
        notifs = b.get_new_notifs()
        assert set(notifs) <= {a.name}
        received.extend(notifs.get(a.name, []))
        return len(received) >= len(messages)

    until(collect, "notifications")
    assert received == [b"plain", "té xt".encode(), b"nul\0", b"", b"x" * 100000]
    with pytest.raises(KeyError):
        a.send_notif(b.name, b"", backend="NO_SUCH")


def test_a_transfer_brings_its_notification(pair):
    a, b, x, y = pair
    run(a, transfer_between(a, b.name, x, y, notif_msg=b"done:1"))
    until(lambda: b.check_remote_xfer_done(a.name, b"done"), "the notification")
    assert np.array_equal(x, y)


def test_names_that_are_no_utf8_come_through(make_agent, ucx):
    a, b = make_agent(ucx, name=b"\xff\xfe"), make_agent(ucx)
    assert b.add_remote_agent(a.get_agent_metadata()) == b"\xff\xfe"
    a.add_remote_agent(b.get_agent_metadata())
    a.send_notif(b.name, b"hello")
    (name,) = until(b.get_new_notifs, "a notification")
    b.send_notif(name, b"back")
    assert until(a.get_new_notifs, "the answer") == {b.name: [b"back"]}


def test_partial_metadata_adds_up(make_agent, ucx):
    a, b = make_agent(ucx), make_agent(ucx)
    x, y, z = (np.full(512, n, np.uint8) for n in range(3))
    a.register_memory([x])
    first, second = b.register_memory([y]), b.register_memory([z])
    a.add_remote_agent(b.get_partial_agent_metadata(nb.nixlRegDList(nb.DRAM_SEG)))
    assert a.check_remote_metadata(b.name)
    covered = lambda array: a.check_remote_metadata(b.name, a.get_xfer_descs(row(array), "DRAM"))
    assert not covered(y) and not covered(z)
    a.add_remote_agent(b.get_partial_agent_metadata(first, inc_conn_info=True, backends=["UCX"]))
    assert covered(y) and not covered(z)
    a.add_remote_agent(b.get_partial_agent_metadata(second))
    assert covered(y) and covered(z)
    run(a, transfer_between(a, b.name, x, z))
    assert z[0] == 0
    with pytest.raises(nb.nixlNotFoundError):
        b.get_partial_agent_metadata(nb.nixlRegDList(nb.DRAM_SEG, [(8, 8, 0, b"")]))
    with pytest.raises(TypeError):
        b.get_partial_agent_metadata([(8, 8, 0, b"")])


def progress_turns():
    """How often the progress threads of this process have gone to sleep."""
    turns = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == "nixl-progress":
            status = (task / "status").read_text()
            turns += int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.M).group(1))
    return turns


def test_metadata_that_is_known_leaves_the_progress_thread_asleep(pair):
    a, b, _, _ = pair
    known = b.get_agent_metadata()
    a.add_remote_agent(known)
    seen = [progress_turns()]

    def quiet():  # connecting has its turns first
        time.sleep(0.1)
        seen.append(progress_turns())
        return seen[-1] == seen[-2]

    until(quiet, "the progress threads to fall asleep")
    before = progress_turns()
    for _ in range(200):  # with time for the thread to fall asleep again
        a.add_remote_agent(known)
        time.sleep(0.0005)
    assert progress_turns() - before < 100


def test_metadata_that_is_wrong_is_refused(pair):
    a, b, *_ = pair
    blob = b.get_agent_metadata()
    for wrong in (b"", b"nonsense", blob[:-1], blob[: len(blob) // 2]):
        with pytest.raises(nb.nixlMismatchError):
            a.add_remote_agent(wrong)
    with pytest.raises(nb.nixlInvalidParamError):
        a.add_remote_agent(a.get_agent_metadata())


def test_after_a_peer_was_removed_its_lists_are_stale(pair):
    a, b, x, y = pair
    blob = b.get_agent_metadata()
    local = a.prep_xfer_dlist("", row(x), "DRAM")
    remote = a.prep_xfer_dlist(b.name, row(y), "DRAM")
    handle = a.make_prepped_xfer("WRITE", local, [0], remote, [0])
    run(a, handle)
    a.remove_remote_agent(b.name)
    a.add_remote_agent(blob)
    with pytest.raises(nb.nixlNotFoundError):
        a.transfer(handle)
    with pytest.raises(nb.nixlNotFoundError):
        a.make_prepped_xfer("WRITE", local, [0], remote, [0])
    remote = a.prep_xfer_dlist(b.name, row(y), "DRAM")
    run(a, a.make_prepped_xfer("WRITE", local, [0], remote, [0]))


def test_events_tell_of_peers(pair):
    a, b, *_ = pair
    events = a.events()
    assert any(e.kind == "PEER_UP" and e.peer == b.name for e in events)
    assert all(isinstance(e.message, bytes) and e.code <= 1 for e in events)
    a.remove_remote_agent(b.name)
    assert a.events() is not None


def test_metadata_is_fetched_without_a_listener_of_ones_own(make_agent, ucx):
    target = make_agent(ucx, enable_listen=True, listen_port=0)
    initiator = make_agent(ucx)
    port = target.listen_port()
    assert port and not initiator.listen_port()
    initiator.fetch_remote_metadata(target.name, "127.0.0.1", port)
    initiator.send_local_metadata("127.0.0.1", port)
    until(lambda: initiator.check_remote_metadata(target.name), "the target's metadata")
    until(lambda: target.check_remote_metadata(initiator.name), "the initiator's metadata")
    initiator.invalidate_local_metadata("127.0.0.1", port)
    until(lambda: not target.check_remote_metadata(initiator.name), "the metadata's end")


def test_partial_metadata_is_sent_to_a_listener(make_agent, ucx):
    target = make_agent(ucx, enable_listen_thread=True, listen_port=0)
    initiator = make_agent(ucx)
    array = np.zeros(64, np.uint8)
    descs = initiator.register_memory([array])
    initiator.send_partial_agent_metadata(
        descs, inc_conn_info=True, ip_addr="127.0.0.1", port=target.listen_port()
    )
    wanted = target.get_xfer_descs(row(array), "DRAM")
    until(lambda: target.check_remote_metadata(initiator.name, wanted), "the metadata")


def test_a_port_in_use_is_said(make_agent):
    first = make_agent(enable_listen=True, listen_port=0)
    with pytest.raises(RuntimeError, match=str(first.listen_port())):
        make_agent(enable_listen=True, listen_port=first.listen_port())


@pytest.mark.parametrize("port", [-1, 65536])
def test_numbers_that_are_no_port_are_refused(loop, port):
    with pytest.raises(nb.nixlInvalidParamError):
        loop.send_local_metadata("127.0.0.1", port)


# --- in two processes ---------------------------------------------------------------------------


def target_process(conn, name):
    """Registers memory, and does what the other side asks for until it says "quit"."""
    agent = nixl_agent(name, nixl_agent_config(backends=["UCX"]))
    array = np.zeros(1 << 20, np.uint8)
    descs = agent.register_memory([array])
    conn.send((agent.get_agent_metadata(), agent.get_serialized_descs(descs.trim())))
    agent.add_remote_agent(conn.recv())
    while True:
        if conn.poll(0.001):
            order = conn.recv()
            if order == "quit":
                return
            if order == "sum":
                conn.send(int(array.sum()))
            if order == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        for peer, messages in agent.get_new_notifs().items():
            for message in messages:
                agent.send_notif(peer, b"echo:" + message)


@pytest.fixture
def other(make_agent, ucx):
    """A second process: (our agent, its name, its transfer list, how to talk to it)."""
    conn, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target_process, args=(theirs, "target"), daemon=True)
    process.start()
    theirs.close()
    agent = make_agent(ucx)
    assert conn.poll(30), "the second process did not start"
    metadata, descs = conn.recv()
    name = agent.add_remote_agent(metadata)
    conn.send(agent.get_agent_metadata())
    yield agent, name, agent.deserialize_descs(descs), conn
    try:
        conn.send("quit")
    except OSError:
        pass
    process.join(20)
    assert process.exitcode in (0, -signal.SIGKILL)


def test_two_processes_exchange_bytes_and_notifications(other):
    agent, name, remote, conn = other
    array = np.full(1 << 20, 3, np.uint8)
    agent.register_memory([array])
    local = agent.get_xfer_descs([array])
    run(agent, agent.initialize_xfer("WRITE", local, remote, name, b"written"))
    until(lambda: agent.check_remote_xfer_done("target", b"echo:written"), "the echo")
    conn.send("sum")
    assert conn.poll(20) and conn.recv() == 3 << 20
    array[:] = 0
    run(agent, agent.initialize_xfer("READ", local, remote, name))
    assert array.min() == 3


def test_a_list_of_another_process_is_read_item_by_item(other):
    _, _, remote, _ = other
    assert remote.descCount() == 1
    addr, length, device = remote[0]
    assert length == remote[0][1] == 1 << 20 and device == 0 and addr


def test_a_dead_peer_is_an_exception_and_not_a_hang(other):
    agent, name, remote, conn = other
    array = np.zeros(1 << 20, np.uint8)
    agent.register_memory([array])
    handle = agent.initialize_xfer("WRITE", agent.get_xfer_descs([array]), remote, name)
    run(agent, handle)
    conn.send("die")
    with pytest.raises(
        (nb.nixlRemoteDisconnectError, nb.nixlNotFoundError, nb.nixlBackendError)
    ) as caught:

        def fails():
            if agent.transfer(handle) == "PROC":
                agent.wait(handle, 5)
            return False

        until(fails, "a failure", 30)
    assert str(caught.value).startswith("NIXL_ERR_")
