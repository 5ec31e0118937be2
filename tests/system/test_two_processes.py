"""Two processes move bytes and messages: every shape, over each transport, polled or not.

A process that has no order sleeps in a read of its socket (see processes.py), so "nobody polls" is
what happens unless a test says otherwise: only the progress thread of the target is at work.
"""

import os

import numpy as np
import pytest

import steps
from processes import Peer, end_all

SIZE = 48 << 20  # of each side's memory
BLOCK = 4096

# What the two processes are started with: environment, and options of the backend.
TRANSPORTS = {
    "default": ({}, {}),
    "tcp": ({"UCX_TLS": "tcp"}, {}),
    "shm": ({"UCX_TLS": "posix,self"}, {"ucx_error_handling_mode": "none"}),
}


class Pair:
    """An initiator `a` and a target `b` that know each other, with SIZE bytes each."""

    def __init__(self, env, options, **target):
        self.peers = []
        try:
            for name in ("initiator", "target"):
                # No clock may wake what nothing else does: a lost wake-up is to be a hang.
                self.peers.append(Peer(name, {"NIXL_STALL_MS": "0", **env}))
            self.a, self.b = self.peers
            # Not at a page's start: nothing may depend on that.
            blob_a, self.ours = self.a(steps.create, "initiator", SIZE, options, offset=72)
            blob_b, self.theirs = self.b(steps.create, "target", SIZE, options, offset=8, **target)
            self.a(steps.load, blob_b)
            self.b(steps.load, blob_a)
        except BaseException:
            end_all(self.peers)
            raise
        self.seed = 0

    def fill(self):
        self.seed += 2
        self.a(steps.fill, self.seed)
        self.b(steps.fill, self.seed + 1)

    def check(self, op, pieces):
        """The destination has the pieces, and nothing else of either side changed."""
        here, there, length = pieces
        nothing = ([], [], 1)
        if op == "WRITE":
            at_a, at_b = nothing, (there, here, length)
        else:
            at_a, at_b = pieces, nothing
        self.a(steps.verify, self.seed, self.seed + 1, at_a)
        self.b(steps.verify, self.seed + 1, self.seed, at_b)

    def move(self, op, shape, how="wait"):
        """Moves one shape, and checks every byte of both sides."""
        ours, theirs, pieces = shape(self)
        self.fill()
        self.a(steps.move, op, "target", ours, theirs, how=how)
        self.check(op, pieces)


def one_piece(size):
    def shape(pair):
        return [(pair.ours + 13, size, 0)], [(pair.theirs + 4099, size, 0)], ([13], [4099], size)

    return shape


def scattered(count):
    def shape(pair):
        order = np.random.default_rng(count)
        here = order.permutation(SIZE // BLOCK)[:count] * BLOCK
        there = order.permutation(SIZE // BLOCK)[:count] * BLOCK
        table = lambda base, offsets: [(base + int(o), BLOCK, 0) for o in offsets]  # noqa: E731
        return table(pair.ours, here), table(pair.theirs, there), (here, there, BLOCK)

    return shape


def strided(pair):
    """Rows of blocks with gaps here; the same blocks, packed as densely as can be, there."""
    rows, blocks, stride, length = 5, 300, 10240, 3000
    starts = [row * blocks * stride + 11 for row in range(rows)]
    here = [start + block * stride for start in starts for block in range(blocks)]
    there = [7 + i * length for i in range(rows * blocks)]
    ours = [(pair.ours + start, length, 0, stride, blocks) for start in starts]
    theirs = [(pair.theirs + 7, length, 0, length, rows * blocks)]
    return ours, theirs, (here, there, length)


SHAPES = {
    "1 byte": one_piece(1),
    "4095 bytes": one_piece(4095),
    "64 KiB and 1": one_piece((64 << 10) + 1),
    "32 MiB and 3": one_piece((32 << 20) + 3),
    "10,000 scattered blocks": scattered(10_000),
    "strided rows": strided,
}


@pytest.fixture(scope="module", params=TRANSPORTS)
def pair(request, ucx):
    made = Pair(*TRANSPORTS[request.param])
    yield made
    end_all(made.peers)


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def cores(request, pair):
    """Both processes on so many cores."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < request.param:
        pytest.skip(f"{request.param} cores are needed, and there are {len(allowed)}")
    for peer in (pair.a, pair.b):
        peer(steps.pin, set(allowed[: request.param]))
    yield request.param
    for peer in (pair.a, pair.b):
        peer(steps.pin, set(allowed))


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["WRITE", "READ"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bytes_arrive_though_nobody_polls_at_the_target(pair, shape, op):
    pair.move(op, shape)


@pytest.mark.parametrize("op", ["WRITE", "READ"])
def test_bytes_arrive_when_both_poll(pair, op):
    pair.b(steps.start_polling)
    pair.move(op, SHAPES["10,000 scattered blocks"], how="check")
    pair.move(op, SHAPES["32 MiB and 3"], how="check")
    assert pair.b(steps.stop_polling, 0) == []


@pytest.mark.parametrize("how", ["wait", "check"])
def test_bytes_and_messages_arrive_on_few_cores(pair, cores, how):
    for op in ("WRITE", "READ"):
        pair.move(op, SHAPES["strided rows"], how)
    row = [(pair.ours, BLOCK, 0)], [(pair.theirs, BLOCK, 0)]
    for number in range(20):
        pair.a(steps.move, "WRITE", "target", *row, notif=b"%d" % number, how=how)
    assert pair.b(steps.notified, "initiator", 20) == [b"%d" % number for number in range(20)]


def test_the_target_may_be_the_initiator_too(pair):
    row = [(pair.ours + (1 << 20), 1 << 20, 0)], [(pair.theirs + (1 << 20), 1 << 20, 0)]
    pair.fill()
    pair.b(steps.move, "WRITE", "initiator", row[1], row[0])
    pair.a(steps.verify, pair.seed, pair.seed + 1, ([1 << 20], [1 << 20], 1 << 20))


def test_a_transfer_is_posted_again_with_what_the_memory_holds_then(pair):
    pieces = ([64], [64], 100_000)
    row = [(pair.ours + 64, 100_000, 0)], [(pair.theirs + 64, 100_000, 0)]
    pair.a(steps.prepare, "again", "WRITE", "target", *row)
    for _ in range(3):
        pair.fill()
        if pair.a(steps.post, "again") != "DONE":
            pair.a(steps.finish, "again")
        pair.check("WRITE", pieces)
    pair.a(steps.release, "again")


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("polling", [False, True], ids=["nobody polls", "both poll"])
def test_messages_keep_their_order(pair, polling):
    messages = [b"message %d " % number + b"." * (number % 7 * 300) for number in range(500)]
    if polling:
        pair.b(steps.start_polling)
    pair.a(steps.notify, "target", messages)
    if polling:
        assert pair.b(steps.stop_polling, 500) == messages
    else:
        assert pair.b(steps.notified, "initiator", 500) == messages


@pytest.mark.parametrize("size", [0, 1, 100_000, 4_000_000])
def test_messages_of_any_size_arrive(pair, size):
    message = steps.pattern(size, size).tobytes()
    pair.a(steps.notify, "target", [message, b"next"])
    assert pair.b(steps.notified, "initiator", 2) == [message, b"next"]


@pytest.mark.parametrize("shape", ["1 byte", "32 MiB and 3", "10,000 scattered blocks"])
def test_a_message_comes_after_the_data_of_its_transfer(pair, shape):
    ours, theirs, (here, there, length) = SHAPES[shape](pair)
    pair.fill()
    pair.b.begin(steps.notified, "initiator", 1)  # polls meanwhile
    pair.a(steps.prepare, "with data", "WRITE", "target", ours, theirs, b"all of it")
    pair.a(steps.post, "with data")
    pair.a.begin(steps.finish, "with data")
    assert pair.b.result() == [b"all of it"]
    pair.b(steps.verify, pair.seed + 1, pair.seed, (there, here, length))
    pair.a.result()
    pair.a(steps.release, "with data")


def test_messages_of_transfers_and_others_keep_their_order(pair):
    row = [(pair.ours, 64, 0)], [(pair.theirs, 64, 0)]
    expected = []
    for number in range(25):
        pair.a(steps.move, "WRITE", "target", *row, notif=b"with data %d" % number)
        pair.a(steps.notify, "target", [b"alone %d" % number])
        expected += [b"with data %d" % number, b"alone %d" % number]
    assert pair.b(steps.notified, "initiator", 50) == expected


def test_messages_go_both_ways(pair):
    for number in range(20):
        pair.a(steps.notify, "target", [b"ping %d" % number])
        assert pair.b(steps.notified, "initiator", 1) == [b"ping %d" % number]
        pair.b(steps.notify, "initiator", [b"pong %d" % number])
        assert pair.a(steps.notified, "target", 1) == [b"pong %d" % number]


# --- a target without a progress thread -----------------------------------------------------------


@pytest.mark.parametrize("transport", ["default", "tcp"])
def test_a_target_without_a_progress_thread_serves_while_it_polls(ucx, transport):
    pair = Pair(*TRANSPORTS[transport], enable_prog_thread=False)
    try:
        pair.b(steps.start_polling)
        for op in ("WRITE", "READ"):
            for shape in ("1 byte", "32 MiB and 3", "10,000 scattered blocks"):
                pair.move(op, SHAPES[shape])
        pair.a(steps.notify, "target", [b"message"])
        assert pair.b(steps.stop_polling, 1) == [b"message"]
    finally:
        end_all(pair.peers)


@pytest.mark.parametrize("how", ["wait", "check"])
def test_an_initiator_without_a_progress_thread_moves_what_it_waits_for(ucx, how):
    pair = Pair(*TRANSPORTS["tcp"])
    try:
        blob, pair.ours = pair.a(
            steps.create, "waiter", SIZE, TRANSPORTS["tcp"][1], enable_prog_thread=False
        )
        pair.b(steps.load, blob)
        pair.a(steps.load, pair.b(steps.metadata))
        pair.move("WRITE", SHAPES["10,000 scattered blocks"], how)
        pair.move("READ", SHAPES["32 MiB and 3"], how)
    finally:
        end_all(pair.peers)
