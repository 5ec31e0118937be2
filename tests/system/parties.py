"""Processes with an agent each, and what tests of several of them ask."""

import pytest

import nixl._bindings as nb
import steps

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


def fails(call, *args, **more):
    """Runs it, and returns the failure, which must be the library's and say something."""
    with pytest.raises(steps.NIXL_ERRORS) as caught:
        call(*args, **more)
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
