"""Whose memory it is: owners that live long enough, DLPack, read-only and stepped memory, times."""

import gc
import logging
import weakref

import numpy as np
import pytest

import nixl._bindings as nb
from binding_helpers import address, finish, run


class Owned(np.ndarray):
    """An array that can be watched going away."""


def owned(size=4096, value=0):
    array = np.full(size, value, np.uint8).view(Owned)
    return array, weakref.ref(array)


def alive(reference):
    gc.collect()
    return reference() is not None


class Exporter:
    """What other libraries' tensors have in common: DLPack, and nothing else."""

    def __init__(self, array, device=None, versions=True):
        self.array = array
        self.device = device
        self.versions = versions
        self.given = 0

    def __dlpack_device__(self):
        return self.device or self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        if options and not self.versions:
            raise TypeError("this one knows no versions")
        self.given += 1
        return self.array.__dlpack__(**options)


versioned = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy before 2.1 has no DLPack 1.0"
)


# --- owners -------------------------------------------------------------------------------------


def test_a_registration_keeps_memory_as_long_as_a_handle_needs_it(make_agent):
    agent = make_agent("LOOPBACK")
    source, source_alive = owned(value=7)
    target, target_alive = owned()
    there = np.frombuffer(target, np.uint8)  # the same memory, which keeps nothing alive here
    agent.register_memory([source, target])
    handle = agent.initialize_xfer(
        "WRITE", agent.get_xfer_descs(source), agent.get_xfer_descs(target), agent.name
    )
    del there, source, target, agent
    # The agent's Python part may be gone; the transfer and what it moves are not.
    assert alive(source_alive) and alive(target_alive)
    handle._agent.postXferReq(handle._handle)
    assert source_alive().min() == 7


def test_lists_and_handles_keep_memory_that_was_registered_by_address(loop):
    array, array_alive = owned()
    descs = loop.register_memory([(address(array), 4096, 0)], "DRAM")
    half = [array[:2048], array[2048:]]
    local, remote = loop.get_xfer_descs(half[0]), loop.get_xfer_descs(half[1])
    handle = loop.initialize_xfer("WRITE", local, remote, loop.name)
    side = loop.prep_xfer_dlist("", half[0])
    other = loop.prep_xfer_dlist(loop.name, half[1])
    made = loop.make_prepped_xfer("WRITE", side, [0], other, [0])
    del array, half
    assert alive(array_alive)
    del local, remote
    handle.release()
    assert alive(array_alive)
    side.release()
    other.release()
    run(loop, made)
    assert alive(array_alive)
    made.release()
    assert not alive(array_alive)
    loop.deregister_memory(descs)


def test_a_trimmed_list_keeps_memory(loop):
    array, array_alive = owned()
    descs = loop.get_reg_descs(array).trim()
    del array
    assert alive(array_alive)
    del descs
    assert not alive(array_alive)


@pytest.mark.parametrize("by", ["deregister", "close"])
def test_giving_back_lets_memory_go(make_agent, by):
    agent = make_agent("LOOPBACK")
    array, array_alive = owned()
    descs = agent.register_memory(array)
    handle = agent.initialize_xfer("READ", descs.trim(), descs.trim(), agent.name)
    handle.release()
    del array
    assert alive(array_alive)
    if by == "close":
        agent.close()
    else:
        agent.deregister_memory(descs)
    del descs
    assert not alive(array_alive)


def test_a_block_registers_and_takes_back(make_agent):
    agent = make_agent("LOOPBACK")
    array, array_alive = owned()
    with agent.registered(array, backends=["LOOPBACK"]) as descs:
        assert list(descs) == [(address(array), 4096, 0, b"")]
        with agent.initialize_xfer("READ", descs.trim(), descs.trim(), agent.name) as handle:
            run(agent, handle)
    with pytest.raises(nb.nixlNotFoundError):
        agent.deregister_memory(descs)
    del array, descs
    assert not alive(array_alive)
    with pytest.raises(KeyError), agent.registered(np.zeros(8), backends=["NO_SUCH"]):
        pytest.fail("it is not registered")
    with agent.registered(np.zeros(8)):
        agent.close()  # takes everything back by itself


# --- DLPack -------------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", [True, False])
def test_memory_of_any_library_is_moved(loop, versions):
    a = np.arange(1000, dtype=np.float32).reshape(10, 100)
    b = np.zeros(1000, np.float32)
    source, target = Exporter(a, versions=versions), Exporter(b, versions=versions)
    descs = loop.register_memory([source, target])
    assert list(descs) == [(address(x), 4000, 0, b"") for x in (a, b)]
    assert descs.getType() is nb.DRAM_SEG
    assert list(loop.get_xfer_descs(source, "DRAM")) == [(address(a), 4000, 0)]
    handle = loop.initialize_xfer(
        "WRITE", loop.get_xfer_descs(source), loop.get_xfer_descs(target), loop.name
    )
    run(loop, handle)
    assert np.array_equal(a.ravel(), b)
    loop.deregister_memory(descs)


def test_exported_memory_lives_as_long_as_an_array_would(loop):
    array, array_alive = owned()
    descs = loop.register_memory(Exporter(array))
    where = address(array)
    again = nb.nixlRegDList(nb.DRAM_SEG, list(descs))
    del array, descs
    assert alive(array_alive) and where == again[0][0]
    loop.deregister_memory(again)
    assert not alive(array_alive)


def test_a_part_of_exported_memory_begins_where_it_should(loop):
    array = np.zeros((8, 16), np.int16)
    assert list(loop.get_xfer_descs(Exporter(array[2:4]))) == [(address(array) + 64, 64, 0)]
    assert list(loop.get_xfer_descs(Exporter(array[:1, :8]))) == [(address(array), 16, 0)]


class Odd:
    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, **options):
        return "nothing of the kind"


class Broken(Odd):
    def __dlpack__(self, **options):
        raise BufferError("the tensor needs its gradient")


UNUSABLE = {
    "stepped": (lambda: Exporter(np.zeros((4, 6))[:, ::2]), "not contiguous"),
    "in Fortran order": (lambda: Exporter(np.asfortranarray(np.zeros((4, 6)))), "not contiguous"),
    "on a device unknown": (lambda: Exporter(np.zeros(4), (99, 0)), "99"),
    "of two kinds": (lambda: [Exporter(np.zeros(4)), Exporter(np.zeros(4), (2, 0))], "all be"),
    "a number among them": (lambda: [Exporter(np.zeros(4)), 5], "DLPack"),
    "a stepped array": (lambda: np.zeros((4, 6))[:, ::2], "C-contiguous"),
    "a GPU's as the host's": (lambda: Exporter(np.zeros(4), (2, 0)), "VRAM"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_moved_is_logged_or_raised(loop, name, caplog, monkeypatch):
    make, words = UNUSABLE[name]
    mem_type = "DRAM" if name == "a GPU's as the host's" else None
    monkeypatch.setattr(logging.getLogger("nixl"), "propagate", True)
    for convert in (loop.get_xfer_descs, loop.get_reg_descs):
        caplog.clear()
        assert convert(make(), mem_type) is None
        assert words in caplog.text
    for call in (
        lambda: loop.register_memory(make(), mem_type),
        lambda: loop.prep_xfer_dlist("", make(), mem_type),
        lambda: loop.query_memory(make(), "LOOPBACK", mem_type),
    ):
        with pytest.raises(TypeError, match=words):
            call()


def test_an_exporter_that_fails_says_so_itself(loop):
    with pytest.raises(BufferError, match="gradient"):
        loop.register_memory(Broken())
    with pytest.raises(TypeError, match="DLPack capsule"):
        loop.register_memory(Odd())


# --- read-only memory ---------------------------------------------------------------------------


def fixed(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("wrap", ["array", pytest.param("exporter", marks=versioned)])
def test_read_only_memory_is_read_and_never_written(loop, wrap):
    constant = fixed(np.full(4096, 7, np.uint8))
    target = np.zeros(4096, np.uint8)
    memory = Exporter(constant) if wrap == "exporter" else constant
    loop.register_memory(memory)
    loop.register_memory(target)
    theirs, ours = loop.get_xfer_descs(target), loop.get_xfer_descs(memory)
    run(loop, loop.initialize_xfer("WRITE", ours, theirs, loop.name))
    assert target.min() == 7
    run(loop, loop.initialize_xfer("READ", theirs, ours, loop.name))

    sides = [loop.prep_xfer_dlist(name, memory) for name in ("", loop.name)]
    others = [loop.prep_xfer_dlist(name, target) for name in ("", loop.name)]
    run(loop, loop.make_prepped_xfer("WRITE", sides[0], [0], others[1], [0]))
    for call, which in (
        (lambda: loop.initialize_xfer("READ", ours, theirs, loop.name), "local"),
        (lambda: loop.initialize_xfer("WRITE", theirs, ours, loop.name), "remote"),
        (lambda: loop.make_prepped_xfer("READ", sides[0], [0], others[1], [0]), "local"),
        (lambda: loop.make_prepped_xfer("WRITE", others[0], [0], sides[1], [0]), "remote"),
        (
            lambda: loop.initialize_xfer(
                "READ", loop.get_reg_descs(memory), loop.get_reg_descs(target), loop.name
            ),
            "local",
        ),
    ):
        with pytest.raises(ValueError, match=f"{which} side.*read-only"):
            call()


# --- times --------------------------------------------------------------------------------------


def slow_copy(make_agent, **more):
    agent = make_agent("LOOPBACK", backend_params={"LOOPBACK": {"delay_us": "60000000"}})
    array = np.zeros((2, 4096), np.uint8)
    agent.register_memory(array)
    sides = [agent.get_xfer_descs(half) for half in array]
    return agent, agent.initialize_xfer("WRITE", *sides, agent.name, **more)


def test_a_transfer_has_a_deadline_for_each_post(make_agent):
    agent, handle = slow_copy(make_agent, timeout=0.01)
    for _ in range(2):
        assert agent.transfer(handle) == "PROC"
        with pytest.raises(nb.nixlTimeoutError, match="deadline of 10 ms"):
            finish(agent, handle)
        handle.quiesce(20)
    assert agent.transfer(handle, timeout=float("inf")) == "PROC"
    assert agent.wait(handle, 0.05) == "PROC"
    handle.cancel()
    handle.quiesce(20)
    with pytest.raises(nb.nixlCancelledError):
        agent.check_xfer_state(handle)


@pytest.mark.parametrize("timeout", [0, -1, 1e-12])
def test_a_post_may_have_a_deadline_of_its_own(make_agent, timeout):
    agent, handle = slow_copy(make_agent)
    with pytest.raises(nb.nixlTimeoutError):
        agent.transfer(handle, timeout=timeout)
        finish(agent, handle)


def test_prepared_sides_take_a_deadline_too(make_agent):
    agent, _ = slow_copy(make_agent)
    array = np.zeros((2, 4096), np.uint8)
    agent.register_memory(array)
    local, remote = agent.prep_xfer_dlist("", array[0]), agent.prep_xfer_dlist(agent.name, array[1])
    handle = agent.make_prepped_xfer("READ", local, [0], remote, [0], timeout=0.01)
    agent.transfer(handle)
    with pytest.raises(TimeoutError):
        agent.wait(handle)
    # A time as a position is not mistaken for another parameter.
    handle = agent.make_prepped_xfer("READ", local, [0], remote, [0], b"", [], True, 0.01)
    agent.transfer(handle)
    assert agent.wait([handle]) == ["ERR"]


def test_a_time_that_is_no_number_is_refused(make_agent):
    with pytest.raises(ValueError, match="NaN"):
        slow_copy(make_agent, timeout=float("nan"))
    with pytest.raises(TypeError):
        slow_copy(make_agent, timeout="1")
