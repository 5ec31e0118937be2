"""What programs in the field lean on beyond results: names of arguments, attributes, settings."""

import gc
import os

import numpy as np
import pytest

import nixl._bindings as nb
from binding_helpers import address, run
from nixl._api import nixl_agent, nixl_agent_config, nixl_thread_sync_t


@pytest.fixture
def descs(loop):
    """(memory, two lists that a transfer of `loop` may have)."""
    array = np.zeros(4096, np.uint8)
    loop.register_memory([array])
    at = address(array)
    return (
        array,
        loop.get_xfer_descs([(at, 64, 0)], "DRAM"),
        loop.get_xfer_descs([(at + 64, 64, 0)], "DRAM"),
    )


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, *nixl_thread_sync_t])
def test_every_sync_mode_makes_an_agent(mode):
    nixl_agent("a", nixl_agent_config(backends=["LOOPBACK"], sync_mode=mode)).close()


def test_instantiate_all_makes_every_plugin_that_can_run_here(ucx, capsys):
    with nixl_agent("a", instantiate_all=True) as agent:
        assert "UCX" in agent.backends and set(agent.backends) <= set(agent.plugin_list)
        told = capsys.readouterr().out
        for name in set(agent.plugin_list) - set(agent.backends):
            assert f"backend {name} is left out" in told


def test_a_configuration_wins_over_instantiate_all(capsys):
    with nixl_agent("a", nixl_agent_config(backends=[]), instantiate_all=True) as agent:
        assert agent.backends == {}
    assert "instantiate_all" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    "words, on",
    [("y yes YES on 1 true enable Enable", True), ("n no off OFF 0 false disable", False)],
)
def test_the_environment_switches_telemetry(monkeypatch, make_agent, words, on, asked):
    for word in words.split():
        monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", word)
        agent = make_agent("LOOPBACK", capture_telemetry=asked)
        array = np.zeros(128, np.uint8)
        agent.register_memory([array])
        both = [agent.get_xfer_descs([(address(array) + i, 64, 0)], "DRAM") for i in (0, 64)]
        handle = agent.initialize_xfer("WRITE", *both, agent.name)
        run(agent, handle)
        if on:
            assert agent.get_xfer_telemetry(handle).totalBytes == 64
        else:
            with pytest.raises(nb.nixlNoTelemetryError):
                agent.get_xfer_telemetry(handle)


@pytest.mark.parametrize("word", ["", "maybe", "2"])
def test_another_word_for_telemetry_is_an_error(monkeypatch, word):
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", word)
    with pytest.raises(RuntimeError, match="NIXL_TELEMETRY_ENABLE"):
        nixl_agent("a", nixl_agent_config(backends=[]))


def test_two_agents_may_have_one_name(make_agent):
    assert make_agent(name="twin").name == make_agent(name="twin").name


# --- attributes ---------------------------------------------------------------------------------


class Recorder:
    """A native agent that notes which of its methods are called."""

    def __init__(self, agent):
        self.agent, self.called = agent, set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(self.agent, name)


def test_every_call_goes_to_the_native_agent_of_the_moment(loop, descs):
    array, one, other = descs
    loop.agent = recorder = Recorder(loop.agent)
    registered = loop.get_reg_descs([array])
    attempts = {
        "getPluginParams": lambda: loop.get_plugin_params("LOOPBACK"),
        "createBackend": lambda: loop.create_backend("LOOPBACK"),
        "registerMem": lambda: loop.register_memory(registered),
        "deregisterMem": lambda: loop.deregister_memory(registered),
        "queryMem": lambda: loop.query_memory(registered, "LOOPBACK"),
        "makeConnection": lambda: loop.make_connection("nobody"),
        "prepXferDlist": lambda: loop.prep_xfer_dlist("", one),
        "makeXferReq": lambda: loop.make_prepped_xfer(
            "READ", loop.prep_xfer_dlist("", one), [0], loop.prep_xfer_dlist(loop.name, other), [0]
        ),
        "createXferReq": lambda: loop.initialize_xfer("READ", one, other, loop.name),
        "prepMemView": lambda: loop.prep_mem_view(one),
        "releaseMemView": lambda: loop.release_mem_view(0),
        "getNotifs": loop.get_new_notifs,
        "genNotif": lambda: loop.send_notif("nobody", b""),
        "getLocalMD": loop.get_agent_metadata,
        "getLocalPartialMD": lambda: loop.get_partial_agent_metadata(registered),
        "loadRemoteMD": lambda: loop.add_remote_agent(b""),
        "invalidateRemoteMD": lambda: loop.remove_remote_agent("nobody"),
        "sendLocalMD": loop.send_local_metadata,
        "sendLocalPartialMD": lambda: loop.send_partial_agent_metadata(registered),
        "fetchRemoteMD": lambda: loop.fetch_remote_metadata("nobody"),
        "invalidateLocalMD": loop.invalidate_local_metadata,
        "checkRemoteMD": lambda: loop.check_remote_metadata("nobody"),
    }
    for name, attempt in attempts.items():
        recorder.called.clear()
        try:
            attempt()
        except Exception:
            pass  # what it answers is tested elsewhere
        assert name in recorder.called, name


def test_a_handle_keeps_its_agent_alive(descs, loop, make_agent):
    agent = nixl_agent("short-lived", nixl_agent_config(backends=["LOOPBACK"]))
    array = np.arange(128, dtype=np.uint8)
    agent.register_memory([array])
    both = [agent.get_xfer_descs([(address(array) + i, 64, 0)], "DRAM") for i in (0, 64)]
    handle = agent.initialize_xfer("WRITE", *both, agent.name)
    del agent
    gc.collect()
    run(loop, handle)
    assert np.array_equal(array[:64], array[64:])


def test_handles_that_were_left_behind_are_released_with_the_agent(loop, descs):
    _, one, other = descs
    number = loop.agent.createXferReq(nb.NIXL_READ, one, other, loop.name)
    native = loop.agent
    other_face = nixl_agent("other", nixl_agent_config(backends=[]))
    other_face.agent = native
    other_face._leaked_xfer_handles.append(number)
    other_face._leaked_xfer_handles.append(2**40)  # there is none: not worth a word
    del other_face
    gc.collect()
    with pytest.raises(nb.nixlInvalidParamError):
        native.getXferStatus(number)


# --- the native agent ---------------------------------------------------------------------------


def test_arguments_of_the_native_agent_have_their_known_names(loop, descs):
    array, one, other = descs
    native, number = loop.agent, loop.backends["LOOPBACK"]
    registered = loop.get_reg_descs([array])
    assert native.registerMem(descs=registered, backends=[number]) is nb.NIXL_SUCCESS
    assert native.deregisterMem(descs=registered, backends=(number,)) is nb.NIXL_SUCCESS
    with pytest.raises(nb.nixlNotSupportedError):
        native.queryMem(descs=registered, backend=number)
    here = native.prepXferDlist(descs=one, backend=[number])
    there = native.prepXferDlist(agent_name=loop.name, descs=other, backend=[])
    table = np.array([[address(array), 64, 0, 64, 4]], np.uint64)
    strided = native.prepXferDlist(agent_name="", mem_type=nb.DRAM_SEG, descs=table, backend=[])
    made = native.makeXferReq(
        operation=nb.NIXL_WRITE,
        local_side=here,
        local_indices=[0],
        remote_side=there,
        remote_indices=[0],
        notif_msg="",
        backend=[],
        skip_desc_merg=True,
    )
    created = native.createXferReq(
        operation=nb.NIXL_READ,
        local_descs=one,
        remote_descs=other,
        remote_agent=loop.name,
        notif_msg="text",
        backend=[number],
    )
    assert native.postXferReq(reqh=created, notif_msg=b"bytes") in (
        nb.NIXL_SUCCESS,
        nb.NIXL_IN_PROG,
    )
    while native.getXferStatus(created) is nb.NIXL_IN_PROG:
        pass
    assert native.getNotifs(notif_map={}, backends=[]) == {loop.name: [b"bytes"]}
    assert len(native.estimateXferCost(req_handle=created)) == 3
    with pytest.raises(nb.nixlNoTelemetryError):
        native.getXferTelemetry(reqh=created)
    with pytest.raises(nb.nixlNotFoundError):
        native.genNotif(remote_agent="nobody", msg="", backends=[])
    assert native.queryXferBackend(created) == number
    with pytest.raises(nb.nixlBackendError):  # nobody can reach this agent
        native.getLocalPartialMD(descs=registered, inc_conn_info=None, backends=[])
    for side in (here, there, strided):
        assert native.releasedDlistH(side) is nb.NIXL_SUCCESS
    for request in (made, created):
        assert native.releaseXferReq(request) is nb.NIXL_SUCCESS
    assert native.getPluginParams("LOOPBACK") == ({"delay_us": "0"}, ["DRAM_SEG"])
    assert native.getBackendParams(number) == ({}, ["DRAM_SEG"])
    assert native.invalidateRemoteMD("nobody") is nb.NIXL_ERR_NOT_FOUND
    assert native.releaseMemView(mvh=5) is None


@pytest.mark.parametrize(
    "method, words",
    [
        ("createBackend", {"name": "LOOPBACK", "params": {}}),
        ("makeConnection", {"remote_agent": "a", "backends": []}),
        ("getXferStatus", {"reqh": 1}),
        ("queryXferBackend", {"reqh": 1}),
        ("releaseXferReq", {"reqh": 1}),
        ("releasedDlistH", {"handle": 1}),
        ("loadRemoteMD", {"remote_metadata": b""}),
        ("invalidateRemoteMD", {"agent": "a"}),
        ("checkRemoteMD", {"agent": "a", "descs": nb.nixlXferDList(nb.DRAM_SEG)}),
        ("getPluginParams", {"name": "LOOPBACK"}),
        ("getBackendParams", {"backend": 1}),
    ],
)
def test_some_arguments_of_the_native_agent_are_positions_only(loop, method, words):
    with pytest.raises(TypeError):
        getattr(loop.agent, method)(**words)


def test_a_native_agent_is_made_by_position_or_name():
    config = nb.nixlAgentConfig()
    assert nb.nixlAgent("a", config).getAvailPlugins() == nb.nixlAgent(
        name=b"a", config=config
    ).getAvailPlugins()
    for wrong in (("a",), ("a", None), (5, config), ("a", nixl_agent_config())):
        with pytest.raises(TypeError):
            nb.nixlAgent(*wrong)
    with pytest.raises(ValueError):
        nb.nixlAgent("", config)


def test_releasing_a_view_that_is_none_does_nothing(loop):
    for value in (0, 5, 2**40):
        assert loop.release_mem_view(value) is None
    for value in (None, "x"):
        with pytest.raises(TypeError):
            loop.release_mem_view(value)


@pytest.mark.parametrize("port", [2**31, 2**64, -(2**31) - 1, 1.5, "80", None])
def test_what_is_no_number_of_a_port_is_a_type_error(loop, port):
    for call in (
        lambda: loop.send_local_metadata("127.0.0.1", port),
        lambda: loop.fetch_remote_metadata("x", "127.0.0.1", port),
        lambda: loop.invalidate_local_metadata("127.0.0.1", port),
    ):
        with pytest.raises(TypeError):
            call()


def test_a_folder_without_plugins_is_said(script, tmp_path):
    status, output = script(
        "from nixl._api import nixl_agent, nixl_agent_config\n"
        "try: print(nixl_agent('a', nixl_agent_config(backends=[])).plugin_list)\n"
        "except RuntimeError as error: print('said:', error)",
        NIXL_PLUGIN_DIR=str(tmp_path),
        NIXL_LOG_LEVEL="ERROR",
        LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", ""),
    )
    assert status == 0, output
    assert "NIXL_PLUGIN_DIR" in output, output
