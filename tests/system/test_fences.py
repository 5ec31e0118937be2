"""Memory that is deregistered while a peer uses it: afterwards not one byte of it changes.

UCX over TCP and process_vm_writev() cannot refuse a peer: that nothing lands is the doing of the
two libraries, which docs/guide/failures.md describes.
"""

import pytest

import nixl._bindings as nb
import steps
from parties import BIG, SMALL, TCP, Side, fails, move

CMA = {"UCX_TLS": None}  # what UCX takes on one host by itself


@pytest.mark.parametrize("acquainted", [True, False], ids=["both_know", "one_knows"])
@pytest.mark.parametrize("env", [TCP, CMA], ids=["tcp", "cma"])
def test_nothing_lands_afterwards(start, env, acquainted):
    writer, owner = Side(start, "writer", 4 * SMALL, env=env), Side(start, "owner", 4 * SMALL,
                                                                   env=env)
    writer.peer(steps.load, owner.blob)
    if acquainted:
        owner.peer(steps.load, writer.blob)
    for _ in range(3):
        writer.peer(steps.fill, 1)
        writer.peer(steps.prepare, "x", "WRITE", "owner", [(writer.base, writer.size, 0)],
                    owner.row)
        writer.peer(steps.move, "WRITE", "owner", [(writer.base, writer.size, 0)], owner.row)
        writer.peer.begin(steps.repeat_until_it_fails, "x")
        owner.peer(steps.sleep, 0.05)
        owner.peer(steps.deregister_and_fill, 2, require_quiet=True)
        owner.peer(steps.sleep, 0.3)
        owner.peer(steps.verify, 2, 2, ([], [], 0))
        failure = fails(writer.peer.result)
        assert isinstance(failure, nb.nixlNotFoundError)
        assert "owner" in failure.sentence and "deregistered" in failure.sentence
        again = fails(writer.peer, steps.post, "x")  # and it stays so
        assert isinstance(again, nb.nixlNotFoundError) and "deregistered" in again.sentence
        writer.peer(steps.release, "x")
        # The same memory, registered again, is there as soon as its metadata is.
        owner.peer(steps.register_again)
        writer.peer(steps.load, owner.peer(steps.metadata))
        writer.peer(steps.fill, 3)
        writer.peer(steps.move, "WRITE", "owner", [(writer.base, writer.size, 0)], owner.row)
        owner.peer(steps.verify, 3, 3, ([], [], 0))


def test_reader_is_told(start):
    """Who reads memory that goes gets its bytes or a failure, never what comes there next."""
    size = BIG // 4
    patient = dict(TCP, NIXL_QUIESCE_MS="60000")  # the question waits behind the answer's bytes
    reader, owner = (Side(start, name, size, env=patient) for name in ("reader", "owner"))
    reader.meet(owner)
    owner.peer(steps.fill, 1)
    reader.peer(steps.prepare, "x", "READ", "owner", reader.row, owner.row)
    reader.peer(steps.post, "x")
    owner.peer(steps.deregister_and_fill, 2, require_quiet=True)
    try:
        reader.peer(steps.finish, "x")
    except nb.nixlNotFoundError as failure:
        assert "deregistered" in failure.sentence
    else:
        reader.peer(steps.verify, 1, 1, ([], [], 0))
    assert isinstance(fails(reader.peer, steps.post, "x"), nb.nixlNotFoundError)


def test_other_memory_goes_on(start):
    writer, owner = Side(start, "writer", SMALL), Side(start, "owner", SMALL)
    writer.meet(owner)
    blob, (base, _, _) = owner.peer(steps.register_more, SMALL)
    writer.peer(steps.load, blob)
    writer.peer(steps.prepare, "kept", "WRITE", "owner", writer.row, owner.row)
    writer.peer(steps.prepare, "gone", "WRITE", "owner", writer.row, [(base, SMALL, 0)])
    for key in ("kept", "gone"):
        writer.peer(steps.post, key)
        writer.peer(steps.finish, key)
    owner.peer(steps.sleep, 0.5)  # its introduction may be overtaken: docs/guide/failures.md
    owner.peer(steps.deregister_more)
    writer.peer(steps.post, "kept")
    writer.peer(steps.finish, "kept")
    assert isinstance(fails(writer.peer, steps.post, "gone"), nb.nixlNotFoundError)
    move(writer, owner)
    # What was published before does not bring it back; what is published now need not name it.
    writer.peer(steps.load, blob)
    assert isinstance(
        fails(writer.peer, steps.prepare_side, "old", "owner", [(base, 8, 0)]),
        nb.nixlNotFoundError,
    )
    writer.peer(steps.load, owner.peer(steps.metadata))
    move(writer, owner)


def test_writer_that_is_stopped(start):
    writer, owner = Side(start, "writer", SMALL), Side(start, "owner", SMALL)
    writer.meet(owner)
    move(writer, owner)
    writer.peer.stop()
    failure = fails(owner.peer, steps.deregister_and_fill, 2, require_quiet=True)
    assert isinstance(failure, nb.nixlNotQuiescedError)
    assert "writer" in failure.sentence and "NIXL_QUIESCE_MS" in failure.sentence
    event = owner.peer(steps.wait_for_event, "PEER_NOT_QUIESCED", "writer")
    assert "may still write" in event.text
    # It is not waited for again, and programs that do not ask are not troubled.
    owner.peer(steps.register_again)
    owner.peer(steps.metadata)
    owner.peer(steps.deregister_and_fill, 2)
    writer.peer.go_on()
    owner.peer(steps.register_again)
    writer.peer(steps.load, owner.peer(steps.metadata))
    move(writer, owner)


def test_writer_that_died(start):
    writer, owner = Side(start, "writer", SMALL), Side(start, "owner", SMALL)
    writer.meet(owner)
    move(writer, owner)
    writer.peer.kill()
    owner.peer(steps.wait_for_event, "PEER_DOWN", "writer")
    owner.peer(steps.deregister_and_fill, 2, require_quiet=True)


def test_writer_that_nobody_polls(start):
    writer = Side(start, "writer", SMALL, enable_prog_thread=False)
    owner = Side(start, "owner", SMALL)
    writer.meet(owner)
    move(writer, owner)
    failure = fails(owner.peer, steps.deregister_and_fill, 2, require_quiet=True)
    assert isinstance(failure, nb.nixlNotQuiescedError)
    assert "polled" in owner.peer(steps.wait_for_event, "PEER_NOT_QUIESCED", "writer").text
    writer.peer(steps.call, "get_new_notifs")  # looks, and answers
    owner.peer(steps.sleep, 0.1)
    owner.peer(steps.register_again)
    writer.peer(steps.load, owner.peer(steps.metadata))
    move(writer, owner)
    writer.peer(steps.start_polling)
    owner.peer(steps.deregister_and_fill, 2, require_quiet=True)


def test_writer_that_forgot_the_owner(start):
    writer, owner = Side(start, "writer", SMALL), Side(start, "owner", SMALL)
    writer.peer(steps.load, owner.blob)  # the owner cannot reach it but by its introduction
    writer.peer(steps.move, "WRITE", "owner", writer.row, owner.row)
    writer.peer(steps.call, "remove_remote_agent", "owner")
    owner.peer(steps.deregister_and_fill, 2, require_quiet=True)


def test_agent_that_ends(start):
    """Destroying the owner's agent gives all of its memory back."""
    writer, owner = Side(start, "writer", 4 * SMALL), Side(start, "owner", 4 * SMALL)
    writer.meet(owner)
    writer.peer(steps.prepare, "x", "WRITE", "owner", writer.row, owner.row)
    writer.peer(steps.move, "WRITE", "owner", writer.row, owner.row)
    writer.peer.begin(steps.repeat_until_it_fails, "x")
    owner.peer(steps.sleep, 0.05)
    owner.peer(steps.close_and_fill, 2)
    owner.peer(steps.sleep, 0.3)
    owner.peer(steps.verify, 2, 2, ([], [], 0))
    failure = fails(writer.peer.result)
    assert isinstance(failure, (nb.nixlNotFoundError, nb.nixlRemoteDisconnectError))


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "polled"])
def test_agents_of_one_process(program, threads):
    status, output = program(f"""
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config
config = nixl_agent_config(backends=["UCX"], enable_prog_thread={threads})
a, b = nixl_agent("a", config), nixl_agent("b", config)
mine, yours = np.zeros(65536, np.uint8), np.zeros(65536, np.uint8)
ours = a.register_memory([mine])
for _ in range(3):
    theirs = b.register_memory([yours])
    a.add_remote_agent(b.get_agent_metadata())
    handle = a.initialize_xfer("WRITE", ours.trim(), theirs.trim(), "b")
    state = a.transfer(handle)
    while state != "DONE":
        state = a.check_xfer_state(handle)
        b.get_new_notifs()
    b.deregister_memory(theirs)
    a.get_new_notifs()
    b.get_new_notifs()
    handle.release()
""")
    assert status == 0, output
