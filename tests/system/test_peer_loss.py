"""A peer dies, stops, starts anew, or memory goes away: errors in time, and the agent goes on."""

import time

import pytest

import nixl._bindings as nb
import steps
from processes import DEADLINE

TCP = {"UCX_TLS": "tcp"}
BIG = 256 << 20
SMALL = 1 << 20


class Side:
    """A process and what others need to reach its agent."""

    def __init__(self, start, name, size, env=TCP, label=None, **config):
        self.peer = start(label or name, env=env)
        self.name = name
        self.size = size
        self.blob, self.base = self.peer(steps.create, name, size, **config)

    @property
    def row(self):
        return [(self.base, self.size, 0)]

    def behind(self, offset):
        return [(self.base + offset, self.size - offset, 0)]

    def meet(self, other):
        self.peer(steps.load, other.blob)
        other.peer(steps.load, self.blob)


def known(side, name):
    return side.peer(steps.call, "check_remote_metadata", name)


def move(side, other, size=SMALL):
    """Proves that bytes still go there and back."""
    ours, theirs = [(side.base, size, 0)], [(other.base, size, 0)]
    side.peer(steps.fill, 1, size)
    other.peer(steps.fill, 2, size)
    side.peer(steps.move, "WRITE", other.name, ours, theirs)
    other.peer(steps.verify, 2, 1, ([0], [0], size), size)
    other.peer(steps.fill, 3, size)
    side.peer(steps.move, "READ", other.name, ours, theirs)
    side.peer(steps.verify, 1, 3, ([0], [0], size), size)


def fails(call, *args):
    """Runs it, and returns the failure, which must be the library's and say something."""
    with pytest.raises(steps.NIXL_ERRORS) as caught:
        call(*args)
    assert caught.value.sentence, caught.value
    return caught.value


def gone(side, name, failure):
    """The failure is that of a lost peer, and what was known of the peer is void."""
    assert isinstance(failure, nb.nixlRemoteDisconnectError), failure
    assert name in failure.sentence
    assert not known(side, name)
    for call in (
        lambda: side.peer(steps.prepare_side, "new", name, [(4096, 8, 0)]),
        lambda: side.peer(steps.notify, name, [b"hello"]),
        lambda: side.peer(steps.call, "make_connection", name),
    ):
        assert isinstance(fails(call), nb.nixlNotFoundError)


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


# --- started anew ---------------------------------------------------------------------------------


def restarted(start, before):
    """A new process with an agent of the same name."""
    return Side(start, before.name, before.size, label=f"{before.name}, started anew")


def test_a_peer_that_starts_anew_takes_over(start):
    """Nobody noticed that the former one died."""
    a, b = Side(start, "a", SMALL), Side(start, "b", SMALL)
    a.meet(b)
    move(a, b)
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    b.peer.kill()
    again = restarted(start, b)
    a.meet(again)
    move(a, again)
    assert isinstance(fails(a.peer, steps.post, "x"), nb.nixlNotFoundError)
    assert isinstance(fails(a.peer, steps.load, b.blob), nb.nixlNotAllowedError)
    assert ("PEER_REPLACED", "b") in [event[:2] for event in a.peer(steps.events)]
    move(a, again)


def test_a_peer_that_starts_anew_takes_over_after_its_loss_was_seen(start):
    a, b = Side(start, "a", SMALL), Side(start, "b", SMALL)
    a.meet(b)
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    b.peer.kill()
    gone(a, "b", fails(a.peer, steps.repeat_until_it_fails, "x"))
    again = restarted(start, b)
    a.meet(again)
    move(a, again)
    assert isinstance(fails(a.peer, steps.load, b.blob), nb.nixlNotAllowedError)
    move(a, again)


def test_what_was_saved_of_an_incarnation_is_good_while_it_lives(start):
    a, b = Side(start, "a", SMALL), Side(start, "b", SMALL)
    a.meet(b)
    move(a, b)
    a.peer(steps.call, "remove_remote_agent", "b")
    assert not known(a, "b")
    for _ in range(3):
        a.peer(steps.load, b.blob)
    move(a, b)


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
    move(a, b)


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
