"""How processes begin and end: clean exits whatever is alive, forks, daemon threads, signals."""

import sys

import pytest

START = """
import faulthandler
faulthandler.enable()
import asyncio, atexit, gc, numpy as np, os, signal, sys, threading, time
from nixl._api import nixl_agent, nixl_agent_config
import nixl._bindings as nb

def agent(name="a", backend={backend!r}, prog_thread=True, **params):
    config = nixl_agent_config(prog_thread, backends=[backend], backend_params={{backend: params}})
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

def in_flight(backend={backend!r}):
    # A transfer that does not end: one with a delay, or one whose target never looks.
    if backend == "LOOPBACK":
        a, array = agent("slow", delay_us="60000000")
        h = copy(a, array)
    else:
        a, array = agent("source", prog_thread=False)
        b, other = agent("target", prog_thread=False)
        a.add_remote_agent(b.get_agent_metadata())
        sides = [x.get_xfer_descs(y) for x, y in ((a, array), (b, other))]
        h = a.initialize_xfer("WRITE", *sides, "target")
        array = b, other, array
    assert a.transfer(h) == "PROC"
    return a, h, array

def wait(agent, handle):
    try:
        agent.wait(handle)
    except nb.nixlShutDownError:
        pass

def interrupt_soon(seconds=0.2):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
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
    "a transfer in flight": "a, h, memory = in_flight()",
    "a transfer in flight, the agent in a cycle": (
        "a, h, memory = in_flight(); a.me = a; h_cycle = [h]; h_cycle.append(h_cycle); del a, h"
    ),
    "a transfer in flight, the memory gone first": (
        "a, h, memory = in_flight(); del memory, a; gc.collect()"
    ),
    "daemon threads that wait": (
        "a, h, memory = in_flight()\n"
        "for _ in range(3): threading.Thread(target=wait, args=(a, h), daemon=True).start()\n"
        "time.sleep(0.1)"
    ),
    "daemon threads in every call": (
        "a, array = agent()\n"
        "def work():\n"
        "    other = np.zeros(4096, np.uint8)\n"
        "    while True:\n"
        "        try:\n"
        "            descs = a.register_memory([other]); h = copy(a, array); a.transfer(h)\n"
        "            a.wait(h, 1); a.get_new_notifs(); a.events(); a.explain(h); h.release()\n"
        "            a.deregister_memory(descs)\n"
        "        except nb.nixlShutDownError: time.sleep(0.001)\n"
        "for _ in range(4): threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.3)"
    ),
    "a daemon thread that makes agents": (
        "a, array = agent()\n"
        "def work():\n"
        "    try:\n"
        "        for i in range(10**6): agent('n%d' % i)[0].close()\n"
        "    except nb.nixlShutDownError: pass\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.3)"
    ),
    "a thread that waits to the end": (
        "a, array = agent(); h = copy(a, array); a.transfer(h)\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), a.wait(h))).start()"
    ),
    "an atexit handler that comes too late": (
        "a, array = agent()\n"
        "atexit.unregister(nb._close_all)\n"
        "def late():\n"
        "    try: a.get_new_notifs()\n"
        "    except nb.nixlShutDownError: print('late')\n"
        "atexit.register(late); atexit.register(nb._close_all)"
    ),
    "an atexit handler that makes an agent": (
        "a, array = agent()\natexit.register(lambda: agent('b'))"
    ),
    "an atexit handler after ours that makes an agent": (
        "atexit.unregister(nb._close_all)\n"
        "atexit.register(lambda: globals().update(late=in_flight()))\n"
        "atexit.register(nb._close_all)"
    ),
    "a loop that was never closed": (
        "a, h, memory = in_flight()\n"
        "loop = asyncio.new_event_loop()\n"
        "task = loop.create_task(a.wait_async(h))\n"
        "loop.run_until_complete(asyncio.sleep(0.05))"
    ),
    "a loop in a daemon thread": (
        "a, h, memory = in_flight()\n"
        "async def main():\n"
        "    try: await a.wait_async(h)\n"
        "    except nb.nixlShutDownError: pass\n"
        "threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()\n"
        "time.sleep(0.2)"
    ),
    "sys.exit in a callback of a loop": (
        "a, h, memory = in_flight()\n"
        "async def main():\n"
        "    asyncio.get_running_loop().call_later(0.05, sys.exit, 0)\n"
        "    await a.transfer_async(copy(*agent())); await a.wait_async(h)\n"
        "asyncio.run(main())"
    ),
    "sys.exit in a signal handler": (
        "a, h, memory = in_flight()\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(0))\n"
        "interrupt_soon(); a.wait(h)"
    ),
    "sys.exit in a finaliser": (
        "a, array = agent()\n"
        "class Last:\n"
        "    def __del__(self): a.close()\n"
        "last = [Last()]; last.append(last); sys.exit(0)"
    ),
    "an exception that ends it": (
        "a, h, memory = in_flight()\n"
        "sys.excepthook = lambda *_: print('ended')\n"
        "atexit.register(os._exit, 0)\n"
        "raise RuntimeError('as planned')"
    ),
    "standard output closed": "a, h, memory = in_flight(); sys.stdout.flush(); os.close(1)",
    "every descriptor of the agent watched": (
        "import select\n"
        "a, h, memory = in_flight(); poller = select.epoll(); poller.register(a.completion_fd())"
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


# Calls during which Ctrl-C comes. None of them ends by itself.
INTERRUPTED = {
    "wait": "a.wait(h)",
    "wait for several": "a.wait([h, h], mode='any')",
    "a loop that polls": "while True: a.check_xfer_state(h)",
    "a loop that posts": "a, array = agent('c'); g = copy(a, array)\n    while True: a.transfer(g)",
    "a loop that registers": (
        "\n    while True: a.deregister_memory(a.register_memory([np.zeros(4096, np.uint8)]))"
    ),
    "asyncio": "asyncio.run(a.wait_async(h))",
    "a transfer in asyncio": "asyncio.run(a.next_notifs())",
}


@pytest.mark.parametrize("backend", ["LOOPBACK", "UCX"])
@pytest.mark.parametrize("call", INTERRUPTED)
def test_ctrl_c_interrupts(call, backend, script, request):
    if backend == "UCX":
        request.getfixturevalue("ucx")
    status, output = script(
        START.format(backend=backend)
        + "a, h, memory = in_flight(); interrupt_soon()\n"
        + f"try:\n    {INTERRUPTED[call]}\n"
        + "except KeyboardInterrupt: print('interrupted')"
    )
    assert status == 0 and "interrupted" in output, output
    assert "Traceback" not in output, output


def test_ctrl_c_interrupts_quiescing(script):
    # Nothing can end this: the engine takes its time whatever it is asked.
    status, output = script(
        START.format(backend="LOOPBACK")
        + "a, h, memory = in_flight(); interrupt_soon()\n"
        "try:\n"
        "    while True: a.quiesce_xfer(h, 30); a.transfer(h)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    assert status == 0 and "interrupted" in output, output


def test_ctrl_c_that_nobody_catches_is_seen_by_the_shell(script):
    status, output = script(
        START.format(backend="LOOPBACK")
        + "a, h, memory = in_flight(); interrupt_soon(); a.wait(h)"
    )
    assert status == -2 and "KeyboardInterrupt" in output, (status, output)


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


@pytest.mark.parametrize("backend", ["LOOPBACK", "UCX"])
def test_a_thread_forks_while_others_wait(backend, script, request):
    if backend == "UCX":
        request.getfixturevalue("ucx")
    status, output = script(
        START.format(backend=backend) + "a, h, memory = in_flight()\n"
        "for _ in range(2): threading.Thread(target=wait, args=(a, h), daemon=True).start()\n"
        "async def main():\n"
        "    waiting = asyncio.ensure_future(a.wait_async(h))\n"
        "    await asyncio.sleep(0.05)\n"
        "    for i in range(5):\n"
        "        child = os.fork()\n"
        "        if child == 0:\n"
        "            h.release(); a.close(); os._exit(0)\n"
        "        assert os.waitpid(child, 0)[1] == 0\n"
        "    waiting.cancel()\n"
        "asyncio.run(main()); print('parent', a.check_xfer_state(h))",
        PYTHONWARNINGS="ignore",
    )
    assert status == 0 and "parent PROC" in output, output
    assert "Traceback" not in output, output


WORKERS = """
import sys, multiprocessing
{start}

def work(base):
    a, array = agent("child")
    array[:4096] = base
    h = copy(a, array)
    assert asyncio.run(a.transfer_async(h)) == "DONE"
    return int(array[8192:12288].min())

if __name__ == "__main__":
    if not {before!r}:
        here, h, memory = in_flight()
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        if {before!r}:
            here, h, memory = in_flight()
        print(pool.map(work, range(1, 5)))
        pool.close()
        pool.join()
    print("here", here.check_xfer_state(h))
"""


@pytest.mark.parametrize("backend", ["LOOPBACK", "UCX"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_have_agents_of_their_own(method, backend, program, request):
    if backend == "UCX":
        request.getfixturevalue("ucx")
    # UCX's helper thread does not survive a fork: workers come before the first agent there.
    before = (method, backend) == ("fork", "UCX")
    text = WORKERS.format(start=START.format(backend=backend), method=method, before=before)
    status, output = program(text, PYTHONWARNINGS="ignore")
    assert status == 0, output
    assert "[1, 2, 3, 4]" in output and "here PROC" in output, output
    assert "Traceback" not in output, output


SUBINTERPRETER = """
import sys
{start}
a, array = agent()
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
inner = interpreters.create()
program = (
    "try:\\n    import nixl\\nexcept ImportError as error:\\n    print('refused:', error)\\n"
    "else:\\n    print('works', nixl.__version__)"
)
try:
    result = interpreters.{run}(inner, program)
finally:
    interpreters.destroy(inner)
h = copy(a, array); a.transfer(h); poll(a, h)
print("outer goes on")
"""


def test_a_subinterpreter_is_refused_or_works(script):
    run = "exec" if sys.version_info >= (3, 13) else "run_string"
    status, output = script(SUBINTERPRETER.format(start=START.format(backend="LOOPBACK"), run=run))
    assert status == 0, output
    assert "refused: " in output and "interpreter" in output and "outer goes on" in output, output
