"""How processes begin and end: clean exits whatever is alive, forks, daemon threads."""

import pytest

START = """
import numpy as np, os, sys, threading, time
from nixl._api import nixl_agent, nixl_agent_config
import nixl._bindings as nb

def agent(name="a", backend={backend!r}, **params):
    config = nixl_agent_config(backends=[backend], backend_params={{backend: params}})
    agent = nixl_agent(name, config)
    array = np.zeros(1 << 16, np.uint8)
    agent.register_memory([array])
    return agent, array

def copy(agent, array, peer=None):
    base = array.__array_interface__["data"][0]
    descs = [agent.get_xfer_descs([(base + i, 4096, 0)], "DRAM") for i in (0, 8192)]
    return agent.initialize_xfer("WRITE", *descs, peer or agent.name)

def poll(agent, handle):
    while agent.check_xfer_state(handle) != "DONE":
        pass
"""

ENDS = {
    "an agent in a global": "a, array = agent()",
    "a handle in a global": "a, array = agent(); h = copy(a, array); a.transfer(h)",
    "an agent that was deleted": "a, array = agent(); del a",
    "an agent that was closed": "a, array = agent(); h = copy(a, array); a.close()",
    "a cycle with an agent": (
        "a, array = agent(); l = [a]; l.append(l); h = copy(a, array); a.more = h, l; del a"
    ),
    "two agents": "a, array = agent(); b, other = agent('b')",
    "an agent that waits at exit": (
        "import atexit\na, array = agent(); h = copy(a, array)\n"
        "atexit.register(lambda: (a.transfer(h), poll(a, h), print('last')))"
    ),
    "an agent that is used after its end": (
        "a, array = agent()\n"
        "class Late:\n"
        "    def __del__(self, a=a, error=nb.nixlShutDownError):\n"
        "        try: a.get_new_notifs()\n"
        "        except error: pass\n"
        "late = Late()"
    ),
    "a daemon thread that polls": (
        "a, array = agent(); h = copy(a, array)\n"
        "def work():\n"
        "    while True:\n"
        "        try: a.transfer(h)\n"
        "        except nb.nixlShutDownError: time.sleep(0.001)\n"
        "        except nb.nixlRepostActiveError: pass\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.2)"
    ),
    "sys.exit in a thread's shadow": (
        "a, array = agent(); h = copy(a, array)\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), a.transfer(h), poll(a, h))).start()\n"
        "sys.exit(0)"
    ),
}


@pytest.mark.parametrize("backend", ["LOOPBACK", "UCX"])
@pytest.mark.parametrize("name", ENDS)
def test_a_program_ends_cleanly_with(name, backend, script, request):
    if backend == "UCX":
        request.getfixturevalue("ucx")
    status, output = script(START.format(backend=backend) + ENDS[name])
    assert status == 0, output
    assert "Traceback" not in output and "leak" not in output, output


def test_a_program_ends_cleanly_with_a_transfer_in_flight(script):
    status, output = script(
        START.format(backend="LOOPBACK")
        + "a, array = agent(delay_us='60000000'); h = copy(a, array); print(a.transfer(h))"
    )
    assert status == 0 and "PROC" in output, output


def test_a_program_ends_cleanly_with_a_daemon_thread_that_waits(script):
    status, output = script(
        START.format(backend="LOOPBACK")
        + "a, array = agent(delay_us='60000000'); h = copy(a, array); a.transfer(h)\n"
        "threading.Thread(target=lambda: a.wait(h), daemon=True).start(); time.sleep(0.1)"
    )
    assert status == 0, output


def test_ctrl_c_interrupts_a_wait(script):
    status, output = script(
        START.format(backend="LOOPBACK")
        + "import signal\na, array = agent(delay_us='60000000')\n"
        "h = copy(a, array); a.transfer(h)\n"
        "threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try: a.wait(h)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    assert status == 0 and "interrupted" in output, output


FORK = """
a, array = agent()
h = copy(a, array)
child = os.fork()
if child == 0:
    said = []
    for call in (lambda: a.transfer(h), a.get_new_notifs, lambda: a.register_memory([array]),
                 lambda: copy(a, array)):
        try:
            call()
        except nb.nixlForkedError as error:
            said.append(error.sentence)
    h.release()
    print("child", len(said), "fork" in said[0] or "process" in said[0], flush=True)
    {end}
status = os.waitpid(child, 0)[1]
a.transfer(h)
poll(a, h)
print("parent", status)
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "del a, h; sys.exit(0)"])
@pytest.mark.parametrize("backend", ["LOOPBACK", "UCX"])
def test_a_forked_child_is_told_and_the_parent_goes_on(backend, end, script, request):
    if backend == "UCX":
        request.getfixturevalue("ucx")
    status, output = script(
        START.format(backend=backend) + FORK.format(end=end), PYTHONWARNINGS="ignore"
    )
    assert status == 0, output
    assert "child 4 True" in output and "parent 0" in output, output
    assert "Traceback" not in output, output


def test_a_forked_child_makes_agents_of_its_own(script):
    status, output = script(
        START.format(backend="LOOPBACK") + "a, array = agent()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    b, other = agent('b'); h = copy(b, other); b.transfer(h); poll(b, h); print('moved')\n"
        "    sys.exit(0)\n"
        "sys.exit(os.waitpid(child, 0)[1])"
    )
    assert status == 0 and "moved" in output, output
