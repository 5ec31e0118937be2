"""A peer dies, stops, starts anew, or memory goes away: errors in time, and the agent goes on."""

import time

import pytest

import nixl._bindings as nb
import steps
from processes import DEADLINE
from parties import BIG, SMALL, TCP, Side, fails, gone, known, move

# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["wait", "check"])
@pytest.mark.parametrize("transport", ["default", "tcp"])
def test_a_peer_that_died_before_the_first_transfer(start, transport, how):
    env = TCP if transport == "tcp" else {}
    a, b, c = (Side(start, name, SMALL, env) for name in "abc")
    a.meet(b)
    a.meet(c)
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    b.peer.kill()
    gone(a, "b", fails(a.peer, steps.repeat_until_it_fails, "x", how))
    move(a, c)


@pytest.mark.parametrize("op", ["WRITE", "READ"])
@pytest.mark.parametrize("how", ["wait", "check"])
def test_a_peer_that_dies_while_bytes_move(start, op, how):
    a, b, c = Side(start, "a", BIG), Side(start, "b", BIG), Side(start, "c", SMALL)
    a.meet(b)
    a.meet(c)
    a.peer(steps.prepare, "x", op, "b", a.row, b.row, b"a message that must not come")
    a.peer.begin(steps.repeat_until_it_fails, "x", how)
    time.sleep(1)  # whatever they are at then
    b.peer.kill()
    gone(a, "b", fails(a.peer.result))
    move(a, c)


def test_a_peer_that_dies_with_a_transfer_before_it(start):
    """It was stopped first, so the transfer is in flight for certain."""
    a, b, c = Side(start, "a", BIG), Side(start, "b", BIG), Side(start, "c", SMALL)
    a.meet(b)
    a.meet(c)
    a.peer(steps.move, "WRITE", "b", [(a.base, 64, 0)], [(b.base, 64, 0)])
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    b.peer.stop()
    assert a.peer(steps.post, "x") == "PROC"
    a.peer.begin(steps.finish, "x")
    b.peer.kill()
    gone(a, "b", fails(a.peer.result))
    move(a, c)


@pytest.mark.parametrize("transport", ["default", "tcp"])
def test_a_peer_that_died_after_a_transfer(start, transport):
    env = TCP if transport == "tcp" else {}
    a, b, c = (Side(start, name, SMALL, env) for name in "abc")
    a.meet(b)
    a.meet(c)
    move(a, b)
    a.peer(steps.prepare_side, "ours", "", a.row)
    a.peer(steps.prepare_side, "theirs", "b", b.row)
    a.peer(steps.join_sides, "WRITE", "ours", "theirs")
    a.peer(steps.prepare, "x", "READ", "b", a.row, b.row)
    b.peer.kill()
    gone(a, "b", fails(a.peer, steps.repeat_until_it_fails, "x"))
    failure = fails(a.peer, steps.join_sides, "WRITE", "ours", "theirs")
    assert isinstance(failure, nb.nixlNotFoundError)
    assert isinstance(fails(a.peer, steps.post, "x"), nb.nixlNotFoundError)
    move(a, c)
    assert ("PEER_DOWN", "b") in [event[:2] for event in a.peer(steps.events)]


def test_a_message_to_a_peer_that_died_fails_in_the_end(start):
    a, b = Side(start, "a", SMALL), Side(start, "b", SMALL)
    a.meet(b)
    move(a, b)
    b.peer.kill()
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            a.peer(steps.notify, "b", [b"are you there?"])
        except steps.NIXL_ERRORS as error:
            gone(a, "b", error)
            return
        assert time.monotonic() < deadline, "messages to a dead peer never fail"
        time.sleep(0.05)


# --- stopped --------------------------------------------------------------------------------------


def test_a_peer_that_is_stopped_and_goes_on_later(start):
    stalls = {**TCP, "NIXL_STALL_MS": "2000"}
    a, b, c = Side(start, "a", BIG, stalls), Side(start, "b", BIG), Side(start, "c", SMALL)
    a.meet(b)
    a.meet(c)
    move(a, b)
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    b.peer.stop()
    assert a.peer(steps.post, "x") == "PROC"
    failure = fails(a.peer, steps.finish, "x")
    assert isinstance(failure, nb.nixlStalledError) and "NIXL_STALL_MS" in failure.sentence
    assert isinstance(fails(a.peer, steps.finish, "x", "check"), nb.nixlStalledError)
    move(a, c)
    b.peer.go_on()
    a.peer(steps.release, "x")
    for attempt in range(20):  # what was under way to b goes first, which may take its time
        try:
            move(a, b)
            break
        except nb.nixlStalledError:
            assert attempt < 19


@pytest.mark.parametrize("op", ["WRITE", "READ"])
def test_a_transfer_is_released_while_the_peer_does_nothing(start, op):
    a, b, c = Side(start, "a", BIG), Side(start, "b", BIG), Side(start, "c", SMALL)
    a.meet(b)
    a.meet(c)
    move(a, b)
    # Behind what move() uses: released without quiescing, it may land late, as UCX cannot recall it.
    ours, theirs = a.behind(SMALL), b.behind(SMALL)
    a.peer(steps.prepare, "x", op, "b", ours, theirs, b"a message that must not come")
    b.peer.stop()
    assert a.peer(steps.post, "x") == "PROC"
    assert a.peer(steps.release, "x") < DEADLINE / 2
    move(a, c)
    b.peer.go_on()
    move(a, b)
    a.peer(steps.notify, "b", [b"the only one"])
    assert b.peer(steps.notified, "a", 1) == [b"the only one"]


# --- memory that goes away ------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["WRITE", "READ"])
def test_memory_is_deregistered_while_its_bytes_move(start, op):
    a, b = Side(start, "a", BIG), Side(start, "b", BIG)
    a.meet(b)
    move(a, b)
    a.peer(steps.prepare, "x", op, "b", a.row, b.row)
    a.peer(steps.post, "x")
    try:
        a.peer(steps.deregister)
    except nb.nixlNotQuiescedError as error:
        # It said that the memory is still in use: true while what was posted is on its way.
        assert error.sentence
    try:
        a.peer(steps.finish, "x")
    except steps.NIXL_ERRORS as error:
        assert isinstance(error, nb.nixlCancelledError), error
    assert isinstance(fails(a.peer, steps.post, "x"), nb.nixlNotFoundError)
    a.peer(steps.register_again)
    move(a, b)


def test_memory_is_deregistered_while_the_peer_does_nothing(start):
    a, b, c = Side(start, "a", BIG), Side(start, "b", BIG), Side(start, "c", SMALL)
    a.meet(b)
    a.meet(c)
    move(a, b)
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    b.peer.stop()
    assert a.peer(steps.post, "x") == "PROC"
    assert isinstance(fails(a.peer, steps.deregister), nb.nixlNotQuiescedError)
    assert isinstance(fails(a.peer, steps.prepare_side, "s", "", a.row), nb.nixlNotFoundError)
    b.peer.go_on()
    a.peer(steps.register_again)
    move(a, c)
    move(a, b)


def test_the_target_deregisters_what_is_being_written(start):
    """UCX over TCP cannot keep the bytes out (its fence is "none"); nobody may hang or crash."""
    a, b = Side(start, "a", BIG), Side(start, "b", BIG)
    a.meet(b)
    move(a, b)
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    a.peer(steps.post, "x")
    b.peer(steps.deregister)
    try:
        a.peer(steps.finish, "x")
    except steps.NIXL_ERRORS as error:
        assert error.sentence
    b.peer(steps.register_again)
    b.blob = b.peer(steps.metadata)
    a.peer(steps.load, b.blob)
    move(a, b)
