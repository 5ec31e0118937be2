"""What a program or a peer gets wrong is an exception of the right class that says what, and harms
nothing: after each of them the agent still moves bytes."""

import itertools
import random

import numpy as np
import pytest

import nixl._bindings as nb
import steps
from nixl._api import nixl_agent, nixl_agent_config

SIZE = 1 << 16
TOP = 1 << 64
_numbers = itertools.count()


class Agents:
    """Two agents that know each other; `a` is what gets the bad input."""

    def __init__(self):
        number = next(_numbers)
        self.a = nixl_agent(f"a{number}", nixl_agent_config())
        self.b = nixl_agent(f"b{number}", nixl_agent_config())
        self.x, self.y = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
        self.x_descs = self.a.register_memory([self.x])
        self.b.register_memory([self.y])
        self.blob = self.b.get_agent_metadata()
        self.a.add_remote_agent(self.blob)
        self.b.add_remote_agent(self.a.get_agent_metadata())

    @property
    def ours(self):
        return self.x.__array_interface__["data"][0]

    @property
    def theirs(self):
        return self.y.__array_interface__["data"][0]

    def make(self, ours, theirs, op="WRITE", peer=None, **more):
        """A transfer of lists of (address, length, device)."""
        lists = (self.a.get_xfer_descs(rows, "DRAM") for rows in (ours, theirs))
        return self.a.initialize_xfer(op, *lists, peer or self.b.name, **more)

    def run(self, handle):
        if self.a.transfer(handle) != "DONE":
            assert self.a.wait(handle, steps.DEADLINE) == "DONE"

    def works(self):
        """Bytes still go there and back."""
        for op in ("WRITE", "READ"):
            source, target = (self.x, self.y) if op == "WRITE" else (self.y, self.x)
            source[:] = steps.pattern(next(_numbers), SIZE)
            with self.make([(self.ours, SIZE, 0)], [(self.theirs, SIZE, 0)], op) as handle:
                self.run(handle)
            assert np.array_equal(source, target)

    def close(self):
        self.a.close()
        self.b.close()


@pytest.fixture(scope="module")
def agents(ucx):
    made = Agents()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def still_works(agents):
    yield
    agents.works()


def refuses(error, call, *args, **more):
    """It raises this class, with a sentence; returns the sentence."""
    with pytest.raises(error) as caught:
        call(*args, **more)
    assert type(caught.value) is error, repr(caught.value)
    sentence = caught.value.sentence
    assert len(sentence) > 10 and not sentence.endswith("."), sentence
    assert str(caught.value).endswith(": " + sentence)
    return sentence


# --- metadata -------------------------------------------------------------------------------------

# What others write where we write metadata.
FOREIGN = {
    "nothing": b"",
    "one byte": b"\0",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "text": b"this is no metadata",
    "JSON": b'{"agent": "b", "backends": ["UCX"], "regions": []}',
    "a tagged serialisation": (
        b"nixlSerDes|Agent\x00\x06\x00\x00\x00\x00\x00\x00\x00agent1|Conns\x08\x00\x00\x00\x00\x00"
        b"\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00|t\x03\x00\x00\x00\x00\x00\x00\x00UCX|"
    ),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05nixl.\x94.",
    "a web server's answer": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_metadata_is_a_mismatch(agents, name):
    refuses(nb.nixlMismatchError, agents.a.add_remote_agent, FOREIGN[name])


def test_metadata_cut_anywhere_is_a_mismatch(agents):
    for length in range(0, len(agents.blob), 7):
        refuses(nb.nixlMismatchError, agents.a.add_remote_agent, agents.blob[:length])


def test_metadata_with_more_behind_it_is_a_mismatch(agents):
    for more in (b"\0", b"more", bytes(1 << 20), agents.blob):
        refuses(nb.nixlMismatchError, agents.a.add_remote_agent, agents.blob + more)


def test_metadata_with_a_flipped_bit_is_a_mismatch(agents):
    chance = random.Random(7)
    for _ in range(500):
        changed = bytearray(agents.blob)
        bit = chance.randrange(len(changed) * 8)
        changed[bit // 8] ^= 1 << bit % 8
        refuses(nb.nixlMismatchError, agents.a.add_remote_agent, bytes(changed))


def test_metadata_with_shuffled_bytes_is_a_mismatch(agents):
    chance = random.Random(8)
    for _ in range(200):
        changed = bytearray(agents.blob)
        first, last = sorted(chance.sample(range(len(changed) + 1), 2))
        changed[first:last] = chance.randbytes(last - first)
        if bytes(changed) != agents.blob:
            refuses(nb.nixlMismatchError, agents.a.add_remote_agent, bytes(changed))


def test_huge_nonsense_is_a_mismatch(agents):
    refuses(nb.nixlMismatchError, agents.a.add_remote_agent, bytes(64 << 20))
    refuses(nb.nixlMismatchError, agents.a.add_remote_agent, agents.blob[:16] + b"\xff" * (8 << 20))


def test_metadata_of_ones_own_is_refused(agents):
    refuses(nb.nixlInvalidParamError, agents.a.add_remote_agent, agents.a.get_agent_metadata())


@pytest.mark.parametrize("thing", [None, 5, 1.5, [b"blob"], object()])
def test_metadata_of_another_type_is_a_type_error(agents, thing):
    with pytest.raises(TypeError):
        agents.a.add_remote_agent(thing)


def test_secrets_are_in_no_sentence(agents):
    """Neither the bytes that came nor parts of them are quoted."""
    for wrong in (agents.blob[:-1], agents.blob[:40], b"secret words of somebody"):
        sentence = refuses(nb.nixlMismatchError, agents.a.add_remote_agent, wrong)
        assert "secret words" not in sentence and wrong[-8:].hex() not in sentence


# --- names ----------------------------------------------------------------------------------------


def test_unknown_backends(agents):
    a = agents.a
    assert "NO_SUCH" in refuses(nb.nixlNotFoundError, a.create_backend, "NO_SUCH")
    refuses(nb.nixlInvalidParamError, a.create_backend, "UCX")  # there already
    for call in (
        lambda: a.register_memory([agents.x], backends=["NO_SUCH"]),
        lambda: a.prep_xfer_dlist("", [agents.x], backends=["NO_SUCH"]),
        lambda: agents.make([(agents.ours, 8, 0)], [(agents.theirs, 8, 0)], backends=["NO_SUCH"]),
        lambda: a.send_notif(agents.b.name, b"x", backend="NO_SUCH"),
    ):
        with pytest.raises(KeyError):
            call()


@pytest.mark.parametrize(
    "options", [{"num_workers": "many"}, {"num_workers": "257"},
                {"ucx_error_handling_mode": "maybe"}, {"device_list": "no_such_device0"}],
    ids=lambda options: next(iter(options)) + "=" + next(iter(options.values())),
)  # fmt: skip
def test_options_that_make_no_sense(agents, options):
    with nixl_agent(f"c{next(_numbers)}", nixl_agent_config(backends=[])) as agent:
        (name, value), = options.items()
        sentence = refuses(nb.nixlBackendError, agent.create_backend, "UCX", options)
        assert name in sentence and value in sentence
        with pytest.raises(TypeError):
            agent.create_backend("UCX", {name: 5})
        agent.create_backend("UCX")  # and then it goes


@pytest.mark.parametrize("kind", ["dram", "", "HBM", 5, None, nb.DRAM_SEG])
def test_unknown_kinds_of_memory(agents, kind):
    rows = [(agents.ours, 8, 0)]
    if kind is None:
        assert agents.a.get_xfer_descs(rows, kind) is None
    else:
        with pytest.raises(KeyError):
            agents.a.get_xfer_descs(rows, kind)
        with pytest.raises(KeyError):
            agents.a.register_memory(rows, kind)


@pytest.mark.parametrize("kind", ["FILE", "OBJ", "BLOCK"])
def test_kinds_of_memory_that_no_backend_takes(agents, kind):
    a = agents.a
    refuses(nb.nixlNotFoundError, a.register_memory, [(0, 4096, 3, "")], kind)
    refuses(nb.nixlNotFoundError, a.prep_xfer_dlist, "", [(0, 4096, 3)], kind)
    refuses(nb.nixlNotFoundError, a.prep_xfer_dlist, agents.b.name, [(0, 4096, 3)], kind)


@pytest.mark.parametrize("name", ["nobody", "", "NIXL_INIT_AGENT", "b" * 100_000, "b\0", b"\xff"])
def test_unknown_agents(agents, name):
    a, rows = agents.a, [(agents.theirs, 8, 0)]
    remote = a.get_xfer_descs(rows, "DRAM")
    local = a.get_xfer_descs([(agents.ours, 8, 0)], "DRAM")
    refuses(nb.nixlNotFoundError, a.initialize_xfer, "WRITE", local, remote, name)
    refuses(nb.nixlNotFoundError, a.send_notif, name, b"hello")
    refuses(nb.nixlNotFoundError, a.make_connection, name)
    if name not in ("", "NIXL_INIT_AGENT"):  # which mean our own side here
        refuses(nb.nixlNotFoundError, a.prep_xfer_dlist, name, rows, "DRAM")
    assert not a.check_remote_metadata(name)
    a.remove_remote_agent(name)


def test_unknown_operations(agents):
    for op in ("write", "COPY", "", None, nb.NIXL_WRITE):
        with pytest.raises(KeyError):
            agents.make([(agents.ours, 8, 0)], [(agents.theirs, 8, 0)], op)


# --- descriptors ----------------------------------------------------------------------------------

# Ranges that no registration covers, as offset from the memory's start, length and device.
OUTSIDE = {
    "one byte too long": (0, SIZE + 1, 0),
    "one byte before": (-1, 8, 0),
    "one byte behind": (SIZE, 1, 0),
    "half": (SIZE - 4, 8, 0),
    "elsewhere": (1 << 40, 8, 0),
    "another device": (0, 8, 1),
    "a huge device": (0, 8, TOP - 1),
    "everything": (0, TOP - 1, 0),
    "wrapping by one": (SIZE - 1, TOP - 1, 0),
    "empty, outside": (SIZE + 1, 0, 0),
}


def absolute(base, ranges):
    return [((base + offset) % TOP, length, device) for offset, length, device in ranges]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("where", ["alone", "last of many"])
def test_ranges_outside_of_what_is_registered(agents, name, where):
    good = [] if where == "alone" else [(i * 64, 32, 0) for i in range(100)]
    a, bad = agents.a, [*good, OUTSIDE[name]]
    fine = [*good, (0, OUTSIDE[name][1], 0)]
    wrong = nb.nixlNotFoundError, nb.nixlInvalidParamError  # the latter where it wraps past 2^64
    for peer, base in (("", agents.ours), (agents.b.name, agents.theirs)):
        for rows in (absolute(base, bad), np.array(absolute(base, bad), np.uint64)):
            with pytest.raises(wrong) as caught:
                a.prep_xfer_dlist(peer, rows, "DRAM")
            assert caught.value.sentence
            if where != "alone":
                assert "100" in caught.value.sentence  # which of them
    with pytest.raises(wrong) as caught:
        agents.make(absolute(agents.ours, bad), absolute(agents.theirs, fine))
    assert caught.value.sentence


@pytest.mark.parametrize("row", [
    (0, 64, 0, 32, 4),  # blocks that overlap
    (0, 0, 0, 64, 4),
    (0, 64, 0, 64, 0),
    (0, 64, 0, 64, SIZE // 64 + 1),
    (0, 64, 0, TOP - 64, 2),  # backwards
    (0, 64, 0, TOP // 2, 3),
    (0, 64, 0, 64, TOP - 1),
    (0, 1, 0, TOP - 1, TOP - 1),
], ids=str)  # fmt: skip
def test_strided_rows_that_make_no_sense(agents, row):
    for peer, base in (("", agents.ours), (agents.b.name, agents.theirs)):
        table = np.array([(base + row[0], *row[1:])], np.uint64)
        with pytest.raises((nb.nixlNotFoundError, nb.nixlInvalidParamError)) as caught:
            agents.a.prep_xfer_dlist(peer, table, "DRAM")
        assert caught.value.sentence


@pytest.mark.parametrize("rows", [
    [(TOP - 8, 16, 0, "")],
    [(1, TOP - 1, 0, "")],
    [(0, 4096, 0, "")],
], ids=["wraps", "wraps by one", "null"])  # fmt: skip
def test_memory_that_cannot_be_registered(agents, rows):
    with pytest.raises((nb.nixlInvalidParamError, nb.nixlBackendError)) as caught:
        agents.a.register_memory(rows, "DRAM")
    assert caught.value.sentence


@pytest.mark.parametrize("number", [-1, TOP, 1.5, "8"])
def test_numbers_that_are_none(agents, number):
    for at in range(3):
        row = [agents.ours, 8, 0]
        row[at] = number
        with pytest.raises((RuntimeError, TypeError)):
            agents.a.get_xfer_descs([tuple(row)], "DRAM")


def test_memory_that_is_not_registered_cannot_be_deregistered(agents):
    a = agents.a
    for rows in ([(agents.ours, SIZE - 1, 0, "")], [(agents.ours, SIZE, 1, "")], [(8, 8, 0, "")]):
        descs = a.get_reg_descs([(agents.ours, SIZE, 0, ""), *rows], "DRAM")
        refuses(nb.nixlNotFoundError, a.deregister_memory, descs)  # and the good one stays
    files = a.get_reg_descs([(agents.ours, SIZE, 0, "")], "FILE")
    refuses(nb.nixlNotFoundError, a.deregister_memory, files)


def test_empty_lists(agents):
    a = agents.a
    none = nb.nixlXferDList(nb.DRAM_SEG)
    refuses(nb.nixlBackendError, a.register_memory, nb.nixlRegDList(nb.DRAM_SEG))
    refuses(nb.nixlNotFoundError, a.prep_xfer_dlist, "", none)
    refuses(nb.nixlNotFoundError, a.prep_xfer_dlist, agents.b.name, none)
    refuses(nb.nixlNotFoundError, a.initialize_xfer, "WRITE", none, none, agents.b.name)
    a.deregister_memory(nb.nixlRegDList(nb.DRAM_SEG))


def test_lists_of_different_counts_and_lengths(agents):
    ours, theirs = agents.ours, agents.theirs
    cases = [
        ([(ours, 8, 0), (ours, 8, 0)], [(theirs, 8, 0)]),
        ([(ours, 16, 0)], [(theirs, 8, 0), (theirs + 8, 8, 0)]),
        ([(ours, 8, 0)], [(theirs, 9, 0)]),
        ([(ours, 0, 0)], [(theirs, 1, 0)]),
        ([(ours, 8, 0)] * 1000, [(theirs, 8, 0)] * 999 + [(theirs, 7, 0)]),
    ]
    for local, remote in cases:
        for op in ("WRITE", "READ"):
            refuses(nb.nixlInvalidParamError, agents.make, local, remote, op)


def test_indices_that_make_no_sense(agents):
    a = agents.a
    ours = a.prep_xfer_dlist("", [(agents.ours + i * 64, 64, 0) for i in range(8)], "DRAM")
    theirs = a.prep_xfer_dlist(
        agents.b.name, [(agents.theirs + i * 64, 64 - i // 7, 0) for i in range(8)], "DRAM"
    )
    make = lambda *args: a.make_prepped_xfer("WRITE", *args)  # noqa: E731
    wrong = nb.nixlInvalidParamError
    refuses(wrong, make, ours, [], theirs, [])
    refuses(wrong, make, ours, [0], theirs, [0, 1])
    refuses(wrong, make, ours, [8], theirs, [0])
    refuses(wrong, make, ours, [0], theirs, [8])
    refuses(wrong, make, ours, [-1], theirs, [0])
    refuses(wrong, make, ours, [0], theirs, [-(2**31)])
    refuses(wrong, make, ours, [2**31 - 1], theirs, [0])
    refuses(wrong, make, ours, [7], theirs, [7])  # 64 bytes and 63
    refuses(wrong, make, theirs, [0], ours, [0])  # swapped
    refuses(wrong, make, ours, [0], ours, [0])
    refuses(wrong, make, theirs, [0], theirs, [0])
    refuses(wrong, make, ours, np.array([0, 9], np.int32), theirs, np.array([0, 1], np.int32))
    for indices in ([2**40], np.array([2**40]), np.array([[0]]), [0.5], "0", None):
        with pytest.raises((RuntimeError, ValueError, TypeError, wrong)):
            make(ours, indices, theirs, [0])
    with make(ours, [0, 0, 3], theirs, [1, 2, 3]) as handle:  # twice the same is fine
        agents.run(handle)


def test_empty_and_overlapping_ranges_are_fine(agents):
    ours, theirs = agents.ours, agents.theirs
    agents.x[:] = steps.pattern(5, SIZE)
    rows = [(0, 0), (0, 100), (50, 100), (120, 0), (0, 150)]
    with agents.make(
        [(ours + offset, length, 0) for offset, length in rows],
        [(theirs + offset, length, 0) for offset, length in rows],
    ) as handle:
        agents.run(handle)
    assert np.array_equal(agents.x[:150], agents.y[:150])
    with agents.make([(ours, 0, 0)], [(theirs, 0, 0)]) as handle:
        agents.run(handle)
    again = agents.a.register_memory([agents.x])  # twice, and a part of it
    part = agents.a.register_memory([agents.x[100:200]])
    agents.works()
    agents.a.deregister_memory(again)
    agents.a.deregister_memory(part)


# --- handles --------------------------------------------------------------------------------------


def test_handles_that_were_released(agents):
    a, rows = agents.a, ([(agents.ours, 8, 0)], [(agents.theirs, 8, 0)])
    handle = agents.make(*rows)
    agents.run(handle)
    handle.release()
    handle.release()
    wrong = nb.nixlInvalidParamError
    for call in (a.transfer, a.check_xfer_state, a.query_xfer_backend, a.estimate_xfer_cost,
                 a.explain, a.piece_status, a.cancel_xfer):  # fmt: skip
        refuses(wrong, call, handle)
    refuses(wrong, a.wait, handle, 1)
    refuses(wrong, a.wait, [handle], 1)
    local = a.prep_xfer_dlist("", rows[0], "DRAM")
    remote = a.prep_xfer_dlist(agents.b.name, rows[1], "DRAM")
    remote.release()
    refuses(wrong, a.make_prepped_xfer, "WRITE", local, [0], remote, [0])
    refuses(wrong, a.make_prepped_xfer, "WRITE", remote, [0], local, [0])


def test_handles_of_another_kind(agents):
    a = agents.a
    side = a.prep_xfer_dlist("", [(agents.ours, 8, 0)], "DRAM")
    with agents.make([(agents.ours, 8, 0)], [(agents.theirs, 8, 0)]) as handle:
        for number in (0, 1, 5, side._handle, handle._handle + 1, TOP - 1):
            refuses(nb.nixlInvalidParamError, a.agent.postXferReq, number)
            refuses(nb.nixlInvalidParamError, a.agent.getXferStatus, number)
    for thing in (None, 5, "handle", object()):
        with pytest.raises(AttributeError):
            a.transfer(thing)


def test_transfers_that_were_not_posted(agents):
    a = agents.a
    with agents.make([(agents.ours, 8, 0)], [(agents.theirs, 8, 0)]) as handle:
        refuses(nb.nixlNotPostedError, a.check_xfer_state, handle)
        refuses(nb.nixlNoTelemetryError, a.get_xfer_telemetry, handle)
        agents.run(handle)


@pytest.mark.parametrize("message", [None, 5, 1.5, [b"x"], memoryview(b"x")])
def test_messages_that_are_none(agents, message):
    with pytest.raises(TypeError):
        agents.a.send_notif(agents.b.name, message)
    with pytest.raises(TypeError):
        agents.make([(agents.ours, 8, 0)], [(agents.theirs, 8, 0)], notif_msg=message)
