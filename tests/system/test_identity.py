"""Restarted peers, saved metadata, two holders of a name: the rows of docs/identity.md."""

import re
from pathlib import Path

import pytest

import nixl._bindings as nb
import steps
from parties import SMALL, TCP, Side, fails, gone, known, move

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "identity.md"


def restarted(start, before):
    """A new process with an agent of the same name."""
    return Side(start, before.name, before.size, label=f"{before.name}, started anew")


def kinds(side):
    return [event[:2] for event in side.peer(steps.events)]


def load(side, blob):
    return side.peer(steps.load, blob)


def covered(side, name, rows):
    return side.peer(steps.covered, name, rows)


@pytest.fixture
def two(start):
    """Agents a and b that know each other."""
    a, b = Side(start, "a", SMALL), Side(start, "b", SMALL)
    a.meet(b)
    return a, b


def test_every_row_has_its_test():
    table, rest = DOCUMENT.read_text().split("## After", 1)
    rows = set(re.findall(r"\| `(\w+)` \|$", table, re.M)) | set(re.findall(r"test `(\w+)`", rest))
    tests = {name[len("test_"):] for name in globals() if name.startswith("test_")}
    assert rows == tests - {"every_row_has_its_test"}


def test_first_load(two):
    a, b = two
    assert known(a, "b")
    move(a, b)
    a.peer(steps.wait_for_event, "PEER_UP", "b")


def test_loaded_again(two):
    a, b = two
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    newer = b.peer(steps.metadata)
    for blob in (newer, b.blob, b.blob, newer):
        assert load(a, blob) == "b"
    assert a.peer(steps.post, "x") in ("DONE", "PROC")
    a.peer(steps.finish, "x")
    move(a, b)


def test_partial_a_thousand_times(two):
    a, b = two
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    blob, row = b.peer(steps.register_more, 4096)
    assert not covered(a, "b", [row])
    assert a.peer(steps.load_often, blob, 100)
    assert covered(a, "b", [row])
    before = a.peer(steps.resident_bytes)
    a.peer(steps.load_often, blob, 1000)
    assert a.peer(steps.resident_bytes) - before < 1 << 20
    a.peer(steps.post, "x")
    a.peer(steps.finish, "x")
    a.peer(steps.move, "WRITE", "b", [(a.base, 4096, 0)], [row])


def test_regions_without_connection(start):
    a, b = Side(start, "a", SMALL), Side(start, "b", SMALL)
    blob, row = b.peer(steps.register_more, 4096, False)
    assert isinstance(fails(load, a, blob), nb.nixlNotFoundError)
    assert not known(a, "b")
    load(a, b.blob)
    load(a, blob)
    assert covered(a, "b", [row])


def test_own_name(two):
    a, _ = two
    assert isinstance(fails(load, a, a.blob), nb.nixlInvalidParamError)


def test_damaged(two):
    a, b = two
    for blob in (b.blob[:-1], b.blob[:40], b"", bytes([b.blob[0] ^ 1]) + b.blob[1:]):
        assert isinstance(fails(load, a, blob), nb.nixlMismatchError)
    move(a, b)


def test_nothing_in_common(two):
    a, b = two
    assert isinstance(fails(a.peer, steps.load_without_ucx, b.blob), nb.nixlBackendError)


def test_removed_and_back(two):
    a, b = two
    move(a, b)
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    a.peer(steps.prepare_side, "ours", "", a.row)
    a.peer(steps.prepare_side, "theirs", "b", b.row)
    a.peer(steps.call, "remove_remote_agent", "b")
    assert not known(a, "b")
    for _ in range(3):
        load(a, b.blob)
    assert isinstance(fails(a.peer, steps.post, "x"), nb.nixlNotFoundError)
    joined = fails(a.peer, steps.join_sides, "WRITE", "ours", "theirs")
    assert isinstance(joined, nb.nixlNotFoundError)
    move(a, b)


def test_restarted_unnoticed(two, start):
    a, b = two
    move(a, b)
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    b.peer.kill()
    again = restarted(start, b)
    a.meet(again)
    move(a, again)
    assert isinstance(fails(a.peer, steps.post, "x"), nb.nixlNotFoundError)
    refused = fails(a.peer, steps.load, b.blob)
    assert isinstance(refused, nb.nixlNotAllowedError)
    assert len(re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", refused.sentence)) == 2
    assert ("PEER_REPLACED", "b") in kinds(a)
    move(a, again)


def test_restarted_after_its_loss_was_seen(two, start):
    a, b = two
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    b.peer.kill()
    gone(a, "b", fails(a.peer, steps.repeat_until_it_fails, "x"))
    again = restarted(start, b)
    a.meet(again)
    move(a, again)
    assert isinstance(fails(a.peer, steps.load, b.blob), nb.nixlNotAllowedError)
    move(a, again)


def test_removed_then_its_successor(two, start):
    a, b = two
    move(a, b)
    a.peer(steps.call, "remove_remote_agent", "b")
    b.peer.kill()
    again = restarted(start, b)
    a.meet(again)
    assert isinstance(fails(a.peer, steps.load, b.blob), nb.nixlNotAllowedError)
    move(a, again)


def test_down_is_not_retired(start):
    """The connections end, b's process and its memory are what they were."""
    a, b = Side(start, "a", SMALL, TCP), Side(start, "b", SMALL, TCP)
    a.meet(b)
    move(a, b)
    move(b, a)
    a.peer(steps.prepare, "x", "WRITE", "b", a.row, b.row)
    assert b.peer(steps.cut_connections)
    gone(a, "b", fails(a.peer, steps.repeat_until_it_fails, "x"))
    b.peer(steps.wait_for_event, "PEER_DOWN", "a")  # which no call of b's has told it
    a.meet(b)
    move(a, b)
    move(b, a)


def test_forgotten_while_it_reads(start):
    """Who was forgotten while its READ was under way learns of it, and does not wait for ever."""
    env = dict(TCP, NIXL_STALL_MS="10000")  # which is not what ends it
    a, b = Side(start, "a", SMALL, env=env), Side(start, "b", SMALL, env=env)
    a.meet(b)
    for _ in range(3):
        a.peer(steps.prepare, "x", "READ", "b", a.row, b.row)
        b.peer(steps.prepare, "y", "READ", "a", b.row, a.row)
        b.peer.begin(steps.post, "y")
        a.peer(steps.post, "x")
        a.peer(steps.call, "remove_remote_agent", "b")
        b.peer.result()
        a.peer(steps.release, "x")
        b.peer(steps.release, "y")
        a.meet(b)
        for _ in range(4):  # of what b still holds of the former connection it is told
            try:
                b.peer(steps.move, "READ", "a", b.row, a.row)
                break
            except nb.nixlRemoteDisconnectError:
                b.peer(steps.load, a.blob)
        else:
            raise AssertionError("the connection does not come back")
        move(b, a)


def test_two_holders_of_a_name(start):
    a, b, rival = Side(start, "a", SMALL), Side(start, "b", SMALL), Side(start, "b", SMALL)
    a.meet(b)
    move(a, b)
    a.meet(rival)
    move(a, rival)
    a.peer(steps.wait_for_event, "NAME_CONFLICT", "b")
    for holder in (b, rival):
        assert "\"a\"" in holder.peer(steps.wait_for_event, "NAME_CONFLICT", "b").text
    b.peer(steps.notify, "a", [b"of the former one"])
    told = a.peer(steps.wait_for_event, "NAME_CONFLICT", "b", message=b"of the former one")
    assert "name" in told.text
    rival.peer(steps.notify, "a", [b"of the present one"])
    assert a.peer(steps.notified, "b", 1) == [b"of the present one"]
    move(a, rival)


def test_withdrawn(start):
    a = Side(start, "a", SMALL, enable_listen=True, listen_port=0)
    b = Side(start, "b", SMALL)
    a.meet(b)
    move(a, b)
    port = a.peer(steps.call, "listen_port")
    b.peer(steps.call, "invalidate_local_metadata", "127.0.0.1", port)
    a.peer(steps.wait_for_event, "PEER_INVALIDATED", "b")
    assert not known(a, "b")
    load(a, b.blob)
    move(a, b)


def test_after_remote_disconnect(two, start):
    a, b = two
    c = Side(start, "c", SMALL)
    a.meet(c)
    for key in ("x", "y"):
        a.peer(steps.prepare, key, "WRITE", "b", a.row, b.row)
    a.peer(steps.prepare_side, "ours", "", a.row)
    a.peer(steps.prepare_side, "theirs", "b", b.row)
    b.peer.kill()
    gone(a, "b", fails(a.peer, steps.repeat_until_it_fails, "x"))
    for _ in range(3):
        again = fails(a.peer, steps.finish, "x", "check")
        assert isinstance(again, nb.nixlRemoteDisconnectError)
    for step, *arguments in (
        (steps.post, "x"),
        (steps.post, "y"),
        (steps.join_sides, "WRITE", "ours", "theirs"),
        (steps.move, "WRITE", "b", a.row, b.row),
    ):
        assert isinstance(fails(a.peer, step, *arguments), nb.nixlNotFoundError)
    assert a.peer(steps.call, "remove_remote_agent", "b") is None
    for key in ("x", "y", "ours", "theirs"):
        a.peer(steps.release, key)
    a.peer(steps.deregister)
    a.peer(steps.register_again)
    load(c, a.peer(steps.metadata))
    move(a, c)
    refused = fails(load, a, b.blob)  # over TCP the dead process shows at once
    assert isinstance(refused, nb.nixlBackendError) and not known(a, "b")
