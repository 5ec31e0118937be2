"""One agent alone: set-up, backends, registration, transfers to itself, handles, exceptions."""

import copy
import gc
import glob
import pickle
import threading

import numpy as np
import pytest

import nixl._api as api
import nixl._bindings as nb
from binding_helpers import address, finish, run
from nixl._api import nixl_agent, nixl_agent_config, nixl_thread_sync_t


@pytest.fixture
def memory(loop):
    """A registered array of 4096 bytes, in which the first half differs from the second."""
    array = np.arange(4096, dtype=np.uint32).astype(np.uint8)
    array[2048:] = 0
    loop.register_memory([array])
    return array


def half(array, which, size=2048):
    return [(address(array) + which * 2048, size, 0)]


def copy_of(loop, memory, op="WRITE", notif_msg=b"", **more):
    """A transfer from the first half to the second (WRITE) or back."""
    return loop.initialize_xfer(
        op,
        loop.get_xfer_descs(half(memory, 0), "DRAM"),
        loop.get_xfer_descs(half(memory, 1), "DRAM"),
        loop.name,
        notif_msg,
        **more,
    )


# --- set-up -------------------------------------------------------------------------------------


def test_the_configuration_has_the_known_order_and_names():
    config = nixl_agent_config(False, True, 5555, True, 3, ["A"], None)
    assert (config.enable_pthread, config.enable_listen, config.port) == (False, True, 5555)
    assert (config.capture_telemetry, config.num_threads, config.backends) == (True, 3, ["A"])
    assert config.sync_mode is None
    assert nixl_agent_config().backends == ["UCX"]
    assert nixl_agent_config(enable_listen=True).enable_listen
    nixl_agent_config().backends.append("other")
    assert nixl_agent_config().backends == ["UCX"]


def test_the_list_of_backends_is_the_very_one_that_was_given():
    mine = []
    config = nixl_agent_config(backends=mine)
    assert config.backends is mine
    mine.append("LOOPBACK")
    with nixl_agent("a", config) as agent:
        assert list(agent.backends) == ["LOOPBACK"]
    with nixl_agent("a", nixl_agent_config(backends="XY")) as agent:  # a name is its letters
        assert agent.backends == {}
    nothing_to_iterate = nixl_agent_config(backends=5)
    with pytest.raises(TypeError):
        nixl_agent("a", nothing_to_iterate)


@pytest.mark.parametrize("threads", [-1, 0, 3, 2**64, np.int64(2)])
def test_every_number_of_threads_is_taken(threads):
    nixl_agent("a", nixl_agent_config(backends=[], num_threads=threads)).close()


@pytest.mark.parametrize("threads", [1.5, "2", None])
def test_a_number_of_threads_that_is_none_is_refused(threads):
    with pytest.raises(TypeError):
        nixl_agent("a", nixl_agent_config(backends=[], num_threads=threads))


@pytest.mark.parametrize("value", [True, 1, 2.5, None, 0, np.bool_(True)])
def test_numbers_and_none_are_flags(value):
    config = nb.nixlAgentConfig(value, value)
    assert config.useProgThread is config.useListenThread is bool(value)
    for name in ("useProgThread", "useListenThread", "captureTelemetry"):
        setattr(config, name, not value)
        setattr(config, name, value)
        assert getattr(config, name) is bool(value)
    nixl_agent("a", nixl_agent_config(value, backends=[], capture_telemetry=value)).close()


@pytest.mark.parametrize("value", ["yes", [], {}, object()])
def test_what_is_no_number_is_no_flag(value):
    with pytest.raises(TypeError):
        nb.nixlAgentConfig(value)
    with pytest.raises(TypeError):
        nb.nixlAgentConfig().captureTelemetry = value
    with pytest.raises(TypeError):
        nixl_agent("a", nixl_agent_config(value, backends=[]))


def test_a_sync_mode_of_another_type_is_refused():
    with pytest.raises(TypeError, match="sync_mode must be a nixl_thread_sync_t"):
        nixl_agent_config(sync_mode=nb.NIXL_THREAD_SYNC_RW)
    assert len(list(nixl_thread_sync_t)) == 3
    for member in nixl_thread_sync_t.__members__:
        assert nixl_thread_sync_t[member].value is getattr(nb, member)


@pytest.mark.parametrize("port", [-1, 65536, "5555", 1.5])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(TypeError):
        nixl_agent("a", nixl_agent_config(backends=[], listen_port=port))


@pytest.mark.parametrize("name", ["", b""])
def test_an_agent_needs_a_name(name):
    with pytest.raises(ValueError):
        nixl_agent(name, nixl_agent_config(backends=[]))
    with pytest.raises(TypeError):
        nixl_agent(5, nixl_agent_config(backends=[]))


@pytest.mark.parametrize("name", ["a", b"bytes", "x" * 300, "with blank\0 and é", b"\xff\xfe"])
def test_names_are_kept_as_given(make_agent, name):
    assert make_agent(name=name).name is name


def test_an_unknown_backend_is_left_out(make_agent):
    agent = make_agent("NO_SUCH", "LOOPBACK")
    assert list(agent.backends) == ["LOOPBACK"]
    with pytest.raises(nb.nixlNotFoundError, match="NO_SUCH"):
        agent.create_backend("NO_SUCH")


def test_attributes_describe_the_backends(loop):
    assert isinstance(loop.backends["LOOPBACK"], int) and loop.backends["LOOPBACK"]
    assert loop.backend_mems["LOOPBACK"] == loop.get_backend_mem_types("LOOPBACK") == ["DRAM_SEG"]
    assert loop.backend_options["LOOPBACK"] == loop.get_backend_params("LOOPBACK") == {}
    assert loop.get_plugin_mem_types("LOOPBACK") == ["DRAM_SEG"]
    assert loop.get_plugin_params("LOOPBACK") == {"delay_us": "0"}
    assert loop.get_plugin_list() is loop.plugin_list
    assert loop.notifs == {}
    assert loop.nixl_ops == {"WRITE": nb.NIXL_WRITE, "READ": nb.NIXL_READ}


def test_what_plugins_tell_is_kept(loop):
    options = loop.get_plugin_params("LOOPBACK")
    options["mine"] = "1"
    assert loop.get_plugin_params("LOOPBACK") is options is loop.plugin_b_options["LOOPBACK"]
    assert list(loop.plugin_mem_types) == ["LOOPBACK"]
    with pytest.raises(TypeError):
        loop.get_plugin_params({})
    with pytest.raises(TypeError):
        loop.get_plugin_mem_types([])


NO_BACKENDS = [None, 5, {}, "UCX", b"x", [None], ["1"], [1.5], np.zeros(2), np.zeros((2, 2), int)]


@pytest.mark.parametrize("wrong", NO_BACKENDS, ids=repr)
def test_what_is_no_list_of_backends_is_refused(loop, memory, wrong):
    descs = loop.get_xfer_descs(half(memory, 0), "DRAM")
    registered = loop.get_reg_descs([memory])
    for call in (
        lambda: loop.agent.registerMem(registered, wrong),
        lambda: loop.agent.deregisterMem(registered, wrong),
        lambda: loop.agent.prepXferDlist("", descs, wrong),
        lambda: loop.agent.createXferReq(nb.NIXL_READ, descs, descs, loop.name, b"", wrong),
        lambda: loop.agent.getNotifs({}, wrong),
        lambda: loop.agent.genNotif(loop.name, b"", wrong),
        lambda: loop.agent.makeConnection(loop.name, wrong),
        lambda: loop.agent.getLocalPartialMD(registered, False, wrong),
    ):
        with pytest.raises(TypeError):
            call()


def test_names_of_backends_are_looked_up_in_what_is_given(loop, memory):
    for wrong, error in ((None, TypeError), (5, TypeError), ("UCX", KeyError), ([[]], TypeError)):
        for call in (
            lambda: loop.register_memory([memory], backends=wrong),
            lambda: loop.deregister_memory(loop.get_reg_descs([memory]), wrong),
            lambda: loop.prep_xfer_dlist("", half(memory, 0), "DRAM", wrong),
            lambda: loop.get_new_notifs(wrong),
            lambda: loop.update_notifs(wrong),
            lambda: loop.make_connection("nobody", wrong),
        ):
            with pytest.raises(error):
                call()


def test_unknown_backends_have_nothing_to_tell(loop):
    assert loop.get_plugin_params("NO_SUCH") == {}
    assert loop.get_plugin_mem_types("NO_SUCH") == []
    assert loop.get_backend_params("NO_SUCH") == {}
    assert loop.get_backend_mem_types("NO_SUCH") == []


def test_backend_options_come_from_the_configuration_and_the_call(make_agent):
    agent = make_agent("LOOPBACK", backend_params={"LOOPBACK": {"delay_us": "5"}})
    assert agent.backend_options["LOOPBACK"]["delay_us"] == "5"
    agent = make_agent(backend_params={"LOOPBACK": {"delay_us": "5"}})
    agent.create_backend("LOOPBACK", {"delay_us": "7"})
    assert agent.backend_options["LOOPBACK"]["delay_us"] == "7"


def test_a_backend_is_created_once(loop):
    with pytest.raises(nb.nixlInvalidParamError):
        loop.create_backend("LOOPBACK")
    for wrong in ({"delay_us": 5}, [], "text"):
        with pytest.raises(TypeError):
            loop.create_backend("LOOPBACK", wrong)


def test_a_required_store_that_is_not_there_is_said(make_agent):
    with pytest.raises(RuntimeError):
        make_agent(use_etcd=True)
    make_agent(use_etcd=False)


def test_the_native_agent_may_be_exchanged(loop):
    config = api.nixlBind.nixlAgentConfig()
    for name in ("useProgThread", "useListenThread", "listenPort", "syncMode", "captureTelemetry"):
        setattr(config, name, getattr(config, name))
    loop.agent = api.nixlBind.nixlAgent(loop.name, config)
    loop.plugin_list = loop.agent.getAvailPlugins()
    loop.backends = {}
    loop.create_backend("LOOPBACK")
    array = np.zeros(8, np.uint8)
    loop.deregister_memory(loop.register_memory([array]))


def test_native_configurations_take_positions_only():
    config = nb.nixlAgentConfig(True, True, 7, nb.NIXL_THREAD_SYNC_RW, 1, 2, 3, True)
    assert (config.useProgThread, config.useListenThread, config.listenPort) == (True, True, 7)
    assert (config.syncMode, config.pthrDelay, config.lthrDelay) == (nb.NIXL_THREAD_SYNC_RW, 2, 3)
    assert config.captureTelemetry
    plain = nb.nixlAgentConfig()
    assert (plain.useProgThread, plain.listenPort, plain.lthrDelay) == (False, 8888, 100000)
    assert plain.etcdWatchTimeout.total_seconds() == 5
    with pytest.raises(TypeError):
        nb.nixlAgentConfig(useProgThread=True)
    for name, value in {
        "listenPort": 70000,
        "pthrDelay": -1,
        "syncMode": 1,
        "etcdWatchTimeout": 1,
    }.items():
        with pytest.raises(TypeError):
            setattr(plain, name, value)
    with pytest.raises(AttributeError):
        plain.unknown = 1


# --- registration -------------------------------------------------------------------------------


def test_registration_gives_the_list_back(loop):
    array = np.zeros(64, np.uint8)
    descs = loop.get_reg_descs([(address(array), 64, 0, "")], "DRAM")
    assert loop.register_memory(descs) is descs
    loop.deregister_memory(descs)
    with pytest.raises(nb.nixlNotFoundError):
        loop.deregister_memory(descs)


def test_registrations_are_counted(loop):
    descs = loop.register_memory([np.zeros(64, np.uint8)])
    loop.register_memory(descs)
    loop.deregister_memory(descs)
    loop.deregister_memory(descs)
    with pytest.raises(nb.nixlNotFoundError):
        loop.deregister_memory(descs)


@pytest.mark.parametrize(
    "error, call",
    [
        (nb.nixlNotFoundError, lambda a: a.register_memory([(1, 2, 3, "")], "VRAM")),
        (nb.nixlBackendError, lambda a: a.register_memory(nb.nixlRegDList(nb.DRAM_SEG))),
        (TypeError, lambda a: a.register_memory([(1, 2)], "DRAM")),
        (KeyError, lambda a: a.register_memory([(1, 2, 3, "")], "DRAM", backends=["UCX"])),
        (TypeError, lambda a: a.deregister_memory([(1, 2, 3, "")])),
        (TypeError, lambda a: a.deregister_memory(None)),
        (ValueError, lambda a: a.query_memory([(0, 0, 0, "k")], "NO_SUCH", "DRAM")),
        (nb.nixlNotSupportedError, lambda a: a.query_memory([(0, 0, 0, "k")], "LOOPBACK", "DRAM")),
        (IndexError, lambda a: a.query_memory([], "LOOPBACK", "DRAM")),
    ],
)
def test_wrong_registrations_raise(loop, error, call):
    with pytest.raises(error):
        call(loop)


def test_deregistering_nothing_does_nothing(loop):
    loop.deregister_memory(nb.nixlRegDList(nb.DRAM_SEG))


# --- transfers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["WRITE", "READ"])
def test_a_transfer_moves_bytes(loop, memory, op):
    first, second = memory[:2048].copy(), memory[2048:].copy()
    run(loop, copy_of(loop, memory, op))
    wanted = first if op == "WRITE" else second
    assert np.array_equal(memory[:2048], wanted) and np.array_equal(memory[2048:], wanted)


@pytest.mark.parametrize(
    "indices",
    [
        [3, 1],
        (3, 1),
        range(3, 0, -2),
        np.array([3, 1]),
        np.array([3, 1], np.int32),
        np.array([3, 1], np.uint32),
        np.array([3, 1], np.uint8),
        np.array([3, 1], ">i4"),
        np.array([3, 0, 1, 0])[::2],
        np.array([3.0, 1.0]),
        [np.int64(3), np.uint8(1)],
    ],
    ids=lambda i: type(i).__name__ + str(getattr(i, "dtype", "")),
)
def test_indices_of_every_kind_choose_descriptors(loop, memory, indices):
    memory[:2048] = np.repeat(np.arange(8, dtype=np.uint8), 256)
    rows = np.array([[address(memory) + i * 256, 256, 0] for i in range(16)], np.uint64)
    local = loop.prep_xfer_dlist("NIXL_INIT_AGENT", rows[:8], "DRAM")
    remote = loop.prep_xfer_dlist(loop.name, rows[8:], "DRAM")
    run(loop, loop.make_prepped_xfer("WRITE", local, indices, remote, indices))
    assert memory[2048:].reshape(8, 256)[:, 0].tolist() == [0, 1, 0, 3, 0, 0, 0, 0]


@pytest.mark.parametrize("unordered", [lambda: {0, 1}, lambda: (i for i in range(2))])
def test_sets_and_generators_are_indices(loop, memory, unordered):
    rows = [(address(memory) + i * 1024, 1024, 0) for i in range(4)]
    local = loop.prep_xfer_dlist("", rows[:2], "DRAM")
    remote = loop.prep_xfer_dlist(loop.name, rows[2:], "DRAM")
    run(loop, loop.make_prepped_xfer("WRITE", local, unordered(), remote, unordered()))
    assert np.array_equal(memory[:2048], memory[2048:])


@pytest.mark.parametrize(
    "error, indices",
    [
        (nb.nixlInvalidParamError, []),
        (nb.nixlInvalidParamError, [4]),
        (nb.nixlInvalidParamError, [-1]),
        (nb.nixlInvalidParamError, np.array([2**40])),
        (nb.nixlInvalidParamError, np.array([2**32 - 1], np.uint32)),
        (nb.nixlInvalidParamError, np.array([-(2**31) - 1])),
        (ValueError, np.array([[0]])),
        (RuntimeError, np.array(0)),
        (RuntimeError, 0),
        (RuntimeError, None),
        (RuntimeError, "0"),
        (RuntimeError, b"\0"),
        (RuntimeError, [0.0]),
        (RuntimeError, [2**40]),
    ],
)
def test_what_is_no_index_is_refused(loop, memory, error, indices):
    local = loop.prep_xfer_dlist("", half(memory, 0) * 4, "DRAM")
    remote = loop.prep_xfer_dlist(loop.name, half(memory, 1) * 4, "DRAM")
    with pytest.raises(error):
        loop.make_prepped_xfer("WRITE", local, indices, remote, indices)


def test_a_list_of_indices_that_changes_while_it_is_read_is_refused(loop, memory):
    class Clearing:
        def __index__(self):
            del indices[1:]
            return 0

    local = loop.prep_xfer_dlist("", half(memory, 0) * 4, "DRAM")
    remote = loop.prep_xfer_dlist(loop.name, half(memory, 1) * 4, "DRAM")
    indices = [Clearing(), 1, 2, 3]
    with pytest.raises(RuntimeError, match="changed while it was read"):
        loop.make_prepped_xfer("WRITE", local, indices, remote, [0, 1, 2, 3])


def test_unequal_counts_and_sides_are_refused(loop, memory):
    local = loop.prep_xfer_dlist("", half(memory, 0), "DRAM")
    remote = loop.prep_xfer_dlist(loop.name, half(memory, 1), "DRAM")
    short = loop.prep_xfer_dlist(loop.name, half(memory, 1, 100), "DRAM")
    for a, i, b, j in (
        (local, [0, 0], remote, [0]),
        (remote, [0], local, [0]),
        (local, [0], local, [0]),
        (local, [0], short, [0]),
    ):
        with pytest.raises(nb.nixlInvalidParamError):
            loop.make_prepped_xfer("READ", a, i, b, j)
    with pytest.raises(KeyError):
        loop.make_prepped_xfer("read", None, [0], None, [0])


STRIDED = [0, 256, 0, 512, 4]  # address, length, device, stride, count


def strided(memory, rows=1, dtype=np.uint64, **changes):
    table = np.array([STRIDED] * rows, dtype)
    table[:, 0] = address(memory) + np.arange(rows, dtype=dtype) * dtype(2048)
    for column, value in changes.items():
        table[-1, "address length device stride count".split().index(column)] = value
    return table


@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_strided_rows_stand_for_blocks(loop, memory, dtype):
    memory[:2048] = np.repeat(np.arange(8, dtype=np.uint8), 256)
    local = loop.prep_xfer_dlist("", strided(memory, dtype=dtype), "DRAM")
    rows = [(address(memory) + 2048 + i * 256, 256, 0) for i in range(4)]
    remote = loop.prep_xfer_dlist(loop.name, rows, "DRAM")
    run(loop, loop.make_prepped_xfer("WRITE", local, [0, 1, 2, 3], remote, [3, 2, 1, 0]))
    assert memory[2048:3072].reshape(4, 256)[:, 0].tolist() == [6, 4, 2, 0]


@pytest.mark.parametrize(
    "error, changes",
    [
        (nb.nixlNotFoundError, {"count": 0}),
        (nb.nixlNotFoundError, {"length": 0}),
        (nb.nixlNotFoundError, {"stride": 255}),
        (nb.nixlNotFoundError, {"stride": 255, "count": 1}),
        (nb.nixlNotFoundError, {"count": 9}),
        (nb.nixlNotFoundError, {"device": 1}),
        (nb.nixlNotFoundError, {"stride": -512}),
        (nb.nixlNotFoundError, {"count": -1}),
        (nb.nixlNotFoundError, {"stride": 2**62, "count": 16}),
    ],
)
def test_strided_rows_are_checked(loop, memory, error, changes):
    with pytest.raises(error):
        loop.prep_xfer_dlist("", strided(memory, 2, np.int64, **changes), "DRAM")


def test_strided_tables_of_other_shapes_are_refused(loop, memory):
    table = strided(memory, 2)
    for wrong in (table.astype(float), table.astype(np.int32), table[:, ::-1], table.astype(">u8")):
        with pytest.raises(ValueError):
            loop.prep_xfer_dlist("", wrong, "DRAM")
    with pytest.raises(ValueError):
        loop.prep_xfer_dlist("", table)
    with pytest.raises(KeyError):
        loop.prep_xfer_dlist("", table, "DISK")
    with pytest.raises(nb.nixlNotFoundError):
        loop.prep_xfer_dlist("", table[:0], "DRAM")


@pytest.mark.parametrize(
    "error, call",
    [
        (nb.nixlNotFoundError, lambda a, d: a.prep_xfer_dlist("nobody", d)),
        (nb.nixlNotFoundError, lambda a, d: a.prep_xfer_dlist(b"NIXL_INIT_AGENT", d)),
        (nb.nixlNotFoundError, lambda a, d: a.prep_xfer_dlist("", [(8, 8, 0)], "DRAM")),
        (nb.nixlNotFoundError, lambda a, d: a.prep_xfer_dlist("", nb.nixlXferDList(nb.DRAM_SEG))),
        (TypeError, lambda a, d: a.prep_xfer_dlist("", [(1, 2, 3)])),
        (nb.nixlNotFoundError, lambda a, d: a.initialize_xfer("READ", d, d, "nobody")),
        (nb.nixlNotFoundError, lambda a, d: a.initialize_xfer("READ", d, d, "")),
        (nb.nixlNotFoundError, lambda a, d: a.initialize_xfer("READ", d, d, "NIXL_INIT_AGENT")),
        (KeyError, lambda a, d: a.initialize_xfer("COPY", None, None, None)),
        (TypeError, lambda a, d: a.initialize_xfer("READ", None, d, a.name)),
        (TypeError, lambda a, d: a.initialize_xfer("READ", d, [(1, 2, 3)], a.name)),
        (KeyError, lambda a, d: a.initialize_xfer("READ", d, d, a.name, b"", ["UCX"])),
        (AttributeError, lambda a, d: a.transfer(5)),
        (AttributeError, lambda a, d: a.check_xfer_state(None)),
        (nb.nixlNotFoundError, lambda a, d: a.make_connection("nobody")),
        (nb.nixlNotFoundError, lambda a, d: a.send_notif("nobody", b"x")),
        (TypeError, lambda a, d: a.send_notif(a.name, memoryview(b"x"))),
        (TypeError, lambda a, d: a.send_notif(a.name, 5)),
        (nb.nixlNotSupportedError, lambda a, d: a.prep_mem_view(d)),
        (TypeError, lambda a, d: a.prep_mem_view([])),
        (TypeError, lambda a, d: a.add_remote_agent(5)),
        (nb.nixlMismatchError, lambda a, d: a.add_remote_agent(b"nonsense")),
    ],
)
def test_wrong_calls_raise(loop, memory, error, call):
    with pytest.raises(error):
        call(loop, loop.get_xfer_descs(half(memory, 0), "DRAM"))


def test_counts_and_lengths_must_match(loop, memory):
    one = loop.get_xfer_descs(half(memory, 0), "DRAM")
    two = loop.get_xfer_descs(half(memory, 1) * 2, "DRAM")
    short = loop.get_xfer_descs(half(memory, 1, 100), "DRAM")
    for other in (two, short):
        with pytest.raises(nb.nixlInvalidParamError):
            loop.initialize_xfer("WRITE", one, other, loop.name)


def test_registration_lists_are_split_to_match(loop):
    parts = [np.full(n, n % 251, np.uint8) for n in (100, 300, 50)]
    whole = np.zeros(450, np.uint8)
    sources, target = loop.register_memory(parts), loop.register_memory(whole)
    run(loop, loop.initialize_xfer("WRITE", sources, target, loop.name))
    assert np.array_equal(whole, np.concatenate(parts))
    with pytest.raises(nb.nixlInvalidParamError):
        loop.initialize_xfer("WRITE", loop.register_memory(parts[:2]), target, loop.name)


# --- handles ------------------------------------------------------------------------------------


def test_states_before_and_after_a_post(loop, memory):
    handle = copy_of(loop, memory)
    with pytest.raises(nb.nixlNotPostedError):
        loop.check_xfer_state(handle)
    run(loop, handle)
    assert loop.check_xfer_state(handle) == "DONE"
    run(loop, handle)


def test_a_transfer_in_flight_is_not_posted_again(make_agent):
    agent = make_agent("LOOPBACK", backend_params={"LOOPBACK": {"delay_us": "300000"}})
    array = np.zeros(4096, np.uint8)
    agent.register_memory([array])
    handle = copy_of(agent, array)
    assert agent.transfer(handle) == "PROC"
    with pytest.raises(nb.nixlRepostActiveError):
        agent.transfer(handle)
    finish(agent, handle)


def test_waiting_sleeps_until_the_end(make_agent):
    agent = make_agent("LOOPBACK", backend_params={"LOOPBACK": {"delay_us": "100000"}})
    array = np.zeros(4096, np.uint8)
    agent.register_memory([array])
    handles = [copy_of(agent, array) for _ in range(3)]
    for handle in handles:
        agent.transfer(handle)
    assert agent.wait(handles[0], timeout=0) == "PROC"
    assert "DONE" in agent.wait(handles, 20, "any")
    assert agent.wait(handles, timeout=20) == ["DONE"] * 3
    assert agent.wait(handles[0]) == "DONE"
    assert agent.wait([]) == []
    with pytest.raises(ValueError):
        agent.wait(handles, mode="some")


def test_a_cancelled_transfer_says_so(make_agent):
    agent = make_agent("LOOPBACK", backend_params={"LOOPBACK": {"delay_us": "5000000"}})
    array = np.zeros(4096, np.uint8)
    agent.register_memory([array])
    handle = copy_of(agent, array)
    agent.transfer(handle)
    agent.cancel_xfer(handle)
    agent.quiesce_xfer(handle, 5)
    with pytest.raises(nb.nixlCancelledError):
        agent.check_xfer_state(handle)
    assert agent.wait([handle]) == ["ERR"]


def test_a_released_handle_is_refused(loop, memory):
    handle = copy_of(loop, memory)
    side = loop.prep_xfer_dlist("", half(memory, 0), "DRAM")
    remote = loop.prep_xfer_dlist(loop.name, half(memory, 1), "DRAM")
    loop.release_xfer_handle(handle)
    loop.release_dlist_handle(side)
    handle.release()
    side.release()
    assert "released=True" in repr(handle) and "released=True" in repr(side)
    for call in (
        lambda: loop.transfer(handle),
        lambda: loop.check_xfer_state(handle),
        lambda: loop.get_xfer_telemetry(handle),
        lambda: loop.query_xfer_backend(handle),
        lambda: loop.explain(handle),
        lambda: loop.piece_status(handle),
        lambda: loop.make_prepped_xfer("READ", side, [0], remote, [0]),
        lambda: loop.check_xfer_state(side),
        lambda: loop.transfer(remote),
    ):
        with pytest.raises((nb.nixlInvalidParamError, nb.nixlNoTelemetryError)):
            call()


def test_handles_are_true_hashable_and_closed(loop, memory):
    with copy_of(loop, memory) as handle:
        assert handle and handle in {handle} and handle != copy_of(loop, memory)
        assert repr(handle).startswith("nixl_xfer_handle(0x") and "released=False" in repr(handle)
        with pytest.raises(AttributeError):
            handle.more = 1
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                duplicate(handle)
    assert handle._released
    with loop.prep_xfer_dlist("", half(memory, 0), "DRAM") as side:
        assert side and repr(side).startswith("nixl_prepped_dlist_handle(0x")


def test_dropped_handles_are_released(loop, memory):
    for _ in range(3):
        handle = copy_of(loop, memory)
        number = handle._handle
        del handle
        gc.collect()
        with pytest.raises(nb.nixlInvalidParamError):
            loop.agent.getXferStatus(number)


def test_a_handle_acts_on_its_own_agent(loop, memory, make_agent):
    handle = copy_of(loop, memory)
    run(make_agent("LOOPBACK"), handle)
    assert np.array_equal(memory[:2048], memory[2048:])


def test_a_closed_agent_says_so(loop, memory):
    handle = copy_of(loop, memory)
    with loop:
        pass
    loop.close()
    for call in (
        lambda: loop.transfer(handle),
        lambda: loop.get_new_notifs(),
        lambda: loop.register_memory([memory]),
    ):
        with pytest.raises(nb.nixlShutDownError, match=loop.name):
            call()
    handle.release()


def test_facts_about_a_transfer(loop, memory):
    handle = copy_of(loop, memory)
    run(loop, handle)
    assert loop.query_xfer_backend(handle) == "LOOPBACK"
    assert "LOOPBACK" in loop.explain(handle)
    status = loop.piece_status(handle)
    assert status.done == status.pieces >= 1 and status.failed == 0 and status.bytes_done == 2048
    duration, margin, method = loop.estimate_xfer_cost(handle)
    assert duration >= 0 and margin >= 0 and method in ("ANALYTICAL_BACKEND", "UNKNOWN")


def test_telemetry_counts_merged_descriptors(make_agent):
    agent = make_agent("LOOPBACK", capture_telemetry=True)
    array = np.zeros(4096, np.uint8)
    agent.register_memory([array])
    rows = np.array([[address(array) + i * 256, 256, 0] for i in range(16)], np.uint64)
    local = agent.prep_xfer_dlist("", rows[:8], "DRAM")
    remote = agent.prep_xfer_dlist(agent.name, rows[8:], "DRAM")
    for merged, skip in ((1, False), (8, True)):
        handle = agent.make_prepped_xfer(
            "WRITE", local, range(8), remote, range(8), skip_desc_merge=skip
        )
        with pytest.raises(nb.nixlNotPostedError):
            agent.get_xfer_telemetry(handle)
        run(agent, handle)
        figures = agent.get_xfer_telemetry(handle)
        assert (figures.descCount, figures.totalBytes) == (merged, 2048)
        assert figures.startTime > 0 and figures.xferDuration >= figures.postDuration >= 0
        with pytest.raises(AttributeError):
            figures.totalBytes = 0


def test_telemetry_that_is_off_is_said(loop, memory):
    with pytest.raises(nb.nixlNoTelemetryError):
        loop.get_xfer_telemetry(copy_of(loop, memory))
    empty = nb.nixlXferTelemetry()
    assert (empty.startTime, empty.postDuration, empty.xferDuration) == (0, 0, 0)


# --- notifications ------------------------------------------------------------------------------


def test_a_transfer_notifies_after_every_post(loop, memory):
    handle = copy_of(loop, memory, notif_msg="first")
    run(loop, handle)
    run(loop, handle)
    run(loop, handle, bytearray(b"second\0"))
    run(loop, handle)
    assert loop.get_new_notifs() == {loop.name: [b"first"] * 2 + [b"second\0"] * 2}
    assert loop.get_new_notifs() == {}


def test_notifications_accumulate_and_are_looked_up(loop, memory):
    def send(*messages):
        for message in messages:
            run(loop, copy_of(loop, memory, notif_msg=message))

    send(b"tag:1", b"other", b"tag:2")
    assert loop.update_notifs() is loop.notifs == {loop.name: [b"tag:1", b"other", b"tag:2"]}
    assert loop.check_remote_xfer_done(loop.name, b"tag")
    assert loop.notifs == {loop.name: [b"other", b"tag:2"]}
    assert not loop.check_remote_xfer_done(loop.name, b"ther")
    assert loop.check_remote_xfer_done(loop.name, b"ther", tag_is_prefix=False)
    assert loop.check_remote_xfer_done(loop.name, b"")
    assert not loop.check_remote_xfer_done(loop.name, b"")
    assert loop.notifs == {loop.name: []}
    assert not loop.check_remote_xfer_done("nobody", b"")
    send(b"x")
    with pytest.raises(TypeError):
        loop.check_remote_xfer_done(loop.name, "x")


def test_what_is_put_into_notifs_is_checked(loop):
    assert loop.agent.getNotifs({"a": (b"1", b"2")}) == {"a": [b"1", b"2"]}
    assert loop.agent.getNotifs({b"a": [b"1"]}) == {"a": [b"1"]}
    for wrong in ({"a": [1]}, {"a": "text"}, {"a": b"bytes"}, {5: []}, {None: [b"1"]}, [], None):
        with pytest.raises(TypeError):
            loop.agent.getNotifs(wrong)


def test_an_agent_without_such_a_backend_cannot_collect_notifications(make_agent):
    with pytest.raises(nb.nixlBackendError):
        make_agent().get_new_notifs()


# --- metadata -----------------------------------------------------------------------------------


def test_an_agent_that_nobody_can_reach_has_no_metadata(loop):
    with pytest.raises(nb.nixlInvalidParamError):
        loop.get_agent_metadata()


def test_unknown_peers_are_harmless(loop):
    assert loop.check_remote_metadata("nobody") is False
    loop.remove_remote_agent("nobody")
    assert (
        loop.agent.checkRemoteMD("nobody", nb.nixlXferDList(nb.DRAM_SEG)) == nb.NIXL_ERR_NOT_FOUND
    )


def test_without_address_and_store_metadata_goes_nowhere(loop):
    for call in (loop.send_local_metadata, lambda: loop.fetch_remote_metadata("x")):
        with pytest.raises((nb.nixlInvalidParamError, nb.nixlNotSupportedError)):
            call()


# --- exceptions ---------------------------------------------------------------------------------

STATUSES = {
    "NotPosted": "NOT_POSTED",
    "InvalidParam": "INVALID_PARAM",
    "Backend": "BACKEND",
    "NotFound": "NOT_FOUND",
    "Mismatch": "MISMATCH",
    "NotAllowed": "NOT_ALLOWED",
    "RepostActive": "REPOST_ACTIVE",
    "Unknown": "UNKNOWN",
    "NotSupported": "NOT_SUPPORTED",
    "RemoteDisconnect": "REMOTE_DISCONNECT",
    "Cancelled": "CANCELED",
    "NoTelemetry": "NO_TELEMETRY",
}


@pytest.mark.parametrize("name", STATUSES)
def test_every_status_has_its_exception(name):
    cls = getattr(nb, f"nixl{name}Error")
    assert cls.__bases__ == (Exception,)
    assert cls.code is getattr(nb, f"NIXL_ERR_{STATUSES[name]}")


def test_our_own_failures_are_backend_errors():
    for name in ("Timeout", "Stalled", "Partial", "NotQuiesced", "Limit", "ShutDown", "Forked"):
        assert issubclass(getattr(nb, f"nixl{name}Error"), nb.nixlBackendError)


def test_an_exception_has_status_and_sentence(loop):
    with pytest.raises(nb.nixlNotFoundError) as caught:
        loop.send_notif("nobody", b"")
    error = caught.value
    assert str(error) == f"NIXL_ERR_NOT_FOUND: {error.sentence}"
    assert "nobody" in error.sentence and error.code == -4


# --- threads ------------------------------------------------------------------------------------


def test_threads_share_an_agent(loop):
    failures = []

    def work(number):
        try:
            array = np.full(4096, number, np.uint8)
            array[2048:] = 0
            descs = loop.register_memory([array])
            for _ in range(50):
                with copy_of(loop, array, notif_msg=b"%d" % number) as handle:
                    run(loop, handle)
                    assert array[2048:].min() == number
                    array[2048:] = 0
            loop.deregister_memory(descs)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    received = []
    while any(t.is_alive() for t in threads):
        received += loop.get_new_notifs().get(loop.name, [])
    received += loop.get_new_notifs().get(loop.name, [])
    assert not failures
    assert sorted(received) == sorted(b"%d" % n for n in range(1, 5) for _ in range(50))


def test_waiting_lets_other_threads_run(make_agent):
    agent = make_agent("LOOPBACK", backend_params={"LOOPBACK": {"delay_us": "200000"}})
    array = np.zeros(4096, np.uint8)
    agent.register_memory([array])
    handle = copy_of(agent, array)
    agent.transfer(handle)
    waiting = threading.Thread(target=agent.wait, args=(handle,))
    waiting.start()
    turns = 0
    while waiting.is_alive():
        turns += 1
    assert turns > 100


def test_closing_ends_a_wait_of_another_thread(make_agent):
    agent = make_agent("LOOPBACK", backend_params={"LOOPBACK": {"delay_us": "30000000"}})
    array = np.zeros(4096, np.uint8)
    agent.register_memory([array])
    handle = copy_of(agent, array)
    agent.transfer(handle)
    raised = []

    def wait():
        try:
            agent.wait(handle)
        except nb.nixlShutDownError as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    agent.close()
    waiting.join(20)
    assert raised


def test_an_old_ucx_says_that_it_is_slow(script, ucx):
    old = glob.glob("/usr/lib/*/libucp.so.0.0.0")
    _, version = script(
        "import ctypes, sys\n"
        "numbers = [ctypes.c_uint() for _ in range(3)]\n"
        f"ctypes.CDLL({old[:1]!r}[0]).ucp_get_version(*map(ctypes.byref, numbers))\n"
        "print(*(n.value for n in numbers))"
    )
    if version.split()[:2] != ["1", "13"]:
        pytest.skip("UCX 1.13 is not installed (Debian 12's package libucx0 has it)")
    text = (
        "from nixl._api import nixl_agent, nixl_agent_config\n"
        "for name in 'ab':\n"
        "    nixl_agent(name, nixl_agent_config(backends=['UCX']))\n"
    )
    status, output = script(text, NIXL_UCX_PATH=old[0])
    assert status == 0 and output.count("pip install libucx") == 1, output
    status, output = script(text)
    assert status == 0 and "pip install libucx" not in output, output
