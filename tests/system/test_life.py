"""How processes begin and end, and what agents leave behind: nothing."""

import re

import pytest

# A line of ours on stderr or stdout; anything else there comes from somewhere it should not.
OUR_LINE = re.compile(r"^([TDIWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \S+\] |.{19} NIXL )")

# Every program starts with this: two agents of one process that know each other.
START = '''
import os, sys, threading, time
import numpy as np
import nixl._bindings as nb
from nixl._api import nixl_agent, nixl_agent_config

def make(name, size=1 << 20, **config):
    agent = nixl_agent(name, nixl_agent_config(**config))
    array = np.zeros(size, np.uint8)
    agent.register_memory([array])
    return agent, array

def meet(a, b):
    a.add_remote_agent(b.get_agent_metadata())
    b.add_remote_agent(a.get_agent_metadata())

def copy(a, x, peer, y, op="WRITE", notif=b""):
    return a.initialize_xfer(op, a.get_xfer_descs([x]), a.get_xfer_descs([y]), peer, notif)

def run(a, handle):
    if a.transfer(handle) != "DONE":
        assert a.wait(handle, 60) == "DONE"

def pair(size=1 << 20, **config):
    (a, x), (b, y) = make("a", size, **config), make("b", size, **config)
    meet(a, b)
    return a, x, b, y

def works(a, x, b, y):
    for value, op in ((17, "WRITE"), (99, "READ")):
        source, target = (x, y) if op == "WRITE" else (y, x)
        source[:] = value
        handle = copy(a, x, b.name, y, op)
        run(a, handle)
        handle.release()
        assert target.min() == target.max() == value

def daemon(work, *args):
    """A thread that goes on until an agent is closed, which the interpreter's end does."""
    def body():
        try:
            work(*args)
        except (nb.nixlShutDownError, nb.nixlRemoteDisconnectError, nb.nixlNotFoundError):
            pass
    threading.Thread(target=body, daemon=True).start()

def until(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)
'''


def strange(output):
    """The lines that are neither ours nor the test's, which begin with "> "."""
    lines = output.splitlines()
    return [line for line in lines if not OUR_LINE.match(line) and not line.startswith(">")]


@pytest.fixture
def lives(ucx, program):
    """lives(text): runs it after START; it must end with 0 and write nothing strange."""

    def run(text, status=0, allowed=(), **env):
        got, output = program(START + text, **env)
        assert got == status, f"ended with {got}\n{output}"
        lines = [line for line in strange(output) if not any(word in line for word in allowed)]
        assert not lines, output
        return output

    return run


# --- two agents in one process --------------------------------------------------------------------


@pytest.mark.parametrize("env", [{}, {"UCX_TLS": "tcp"}], ids=["default", "tcp"])
@pytest.mark.parametrize("progress", [True, False], ids=["progress thread", "none"])
def test_two_agents_of_a_process_talk_to_each_other(lives, env, progress):
    waits = "works(a, x, b, y); works(b, y, a, x)"
    polls = """
stop = threading.Event()
def poll():
    while not stop.is_set():
        a.get_new_notifs(); b.get_new_notifs(); time.sleep(0)
poller = threading.Thread(target=poll)
poller.start()
works(a, x, b, y); works(b, y, a, x)
stop.set(); poller.join()
"""
    lives(
        f"a, x, b, y = pair(4 << 20, enable_prog_thread={progress})\n"
        + (waits if progress else polls)
        + """
a.send_notif("b", b"there")
got = {}
until(lambda: got.update(b.get_new_notifs()) or (a.get_new_notifs(), got)[1], "a message")
assert got == {"a": [b"there"]}, got
""",
        **env,
    )


# --- fork -----------------------------------------------------------------------------------------

CHILD = """
def child():
    said = []
    for call in (lambda: a.transfer(h), lambda: a.check_xfer_state(h), a.get_new_notifs, a.events,
                 lambda: a.send_notif("b", b"x"), a.get_agent_metadata, lambda: a.wait(h, 1),
                 lambda: a.register_memory([x]), lambda: copy(a, x, "b", y),
                 lambda: a.add_remote_agent(blob), lambda: a.prep_xfer_dlist("", x)):
        try:
            call()
        except nb.nixlForkedError as error:
            assert "fork" in error.sentence, error.sentence
            said.append(error)
    assert len(said) == 11, len(said)
    assert not a.check_remote_metadata("b")  # it never raises
    h.release()
    {end}

a, x, b, y = pair()
blob = b.get_agent_metadata()
h = copy(a, x, "b", y)
run(a, h)
"""

FORK = """
pid = os.fork()
if pid == 0:
    try:
        child()
    except Exception:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
works(a, x, b, y)
deadline = time.monotonic() + 60
while True:
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        break
    if time.monotonic() > deadline:
        os.kill(pid, 9)
        sys.exit("the child did not end")
    time.sleep(0.01)
works(a, x, b, y)
print(">", status)
"""


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "a.close(); b.close()"])
def test_a_forked_child_is_told_and_the_parent_goes_on(lives, end):
    """sys.exit() goes through the interpreter's whole end, in the child."""
    assert "> 0" in lives(CHILD.format(end=end) + FORK)


def test_a_process_that_forks_often_while_bytes_move(lives):
    lives("""
a, x, b, y = pair(8 << 20)
stop = threading.Event()
failures = []
def move():
    try:
        while not stop.is_set():
            works(a, x, b, y)
    except BaseException as error:
        failures.append(error)
mover = threading.Thread(target=move)
mover.start()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
mover.join(60)
assert not mover.is_alive() and not failures, failures
""")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_make_agents_of_their_own(lives, tmp_path, method):
    """Spawned ones move bytes. Forked ones may be refused, with the reason: UCX does not fork."""
    program = tmp_path / "program.py"
    program.write_text(
        START
        + """
def child(results):
    try:
        c, x, d, y = pair()
    except nb.nixlBackendError as error:
        assert "fork" in error.sentence, error.sentence
        results.put("refused")
    else:
        works(c, x, d, y)
        results.put("moved")

if __name__ == "__main__":
    import multiprocessing
    context = multiprocessing.get_context("%s")
    a, x, b, y = pair()
    works(a, x, b, y)
    results = context.Queue()
    children = [context.Process(target=child, args=(results,)) for _ in range(2)]
    for process in children:
        process.start()
    for process in children:
        assert results.get(timeout=60) in %r
        process.join(60)
    assert [process.exitcode for process in children] == [0, 0]
    works(a, x, b, y)
"""
        % (method, ("moved", "refused") if method == "fork" else ("moved",))
    )
    lives(f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')")


# --- the interpreter's end ------------------------------------------------------------------------

ENDS = {
    "agents in globals": "a, x, b, y = pair(); works(a, x, b, y)",
    "agents that were deleted": "a, x, b, y = pair(); works(a, x, b, y); del a, b",
    "agents that were closed": "a, x, b, y = pair(); h = copy(a, x, 'b', y); a.close(); b.close()",
    "memory that went first": "a, x, b, y = pair(); h = copy(a, x, 'b', y); run(a, h); del x, y",
    "a transfer in flight": (
        "a, x, b, y = pair(64 << 20); h = copy(a, x, 'b', y, notif=b'm'); a.transfer(h)"
    ),
    "a hundred transfers in flight": (
        "a, x, b, y = pair(1 << 20); hs = [copy(a, x, 'b', y) for _ in range(100)]\n"
        "for h in hs: a.transfer(h)"
    ),
    "daemon threads that poll": (
        "a, x, b, y = pair()\n"
        "def poll(agent):\n"
        "    while True: agent.get_new_notifs()\n"
        "for agent in (a, b, a, b): daemon(poll, agent)\n"
        "works(a, x, b, y)"
    ),
    "daemon threads that move": (
        "a, x, b, y = pair()\n"
        "def move(h):\n"
        "    while True:\n"
        "        if a.transfer(h) != 'DONE': a.wait(h)\n"
        "for _ in range(3): daemon(move, copy(a, x, 'b', y))\n"
        "time.sleep(0.2)"
    ),
    "a daemon thread that waits": (
        "a, x, b, y = pair(64 << 20)\n"
        "c, z = make('c', 64 << 20, enable_prog_thread=False); meet(a, c)\n"
        "h = copy(a, x, 'c', z); a.transfer(h)\n"
        "daemon(a.wait, h); time.sleep(0.2)"
    ),
    "a listener": "a, x = make('a', enable_listen_thread=True, listen_port=0)",
}


@pytest.mark.parametrize("env", [{}, {"UCX_TLS": "tcp"}], ids=["default", "tcp"])
@pytest.mark.parametrize("name", ENDS)
def test_a_program_ends_well_with(lives, name, env):
    lives(ENDS[name], **env)


@pytest.mark.parametrize("end, status, word", [
    ("raise ValueError('on purpose')", 1, "ValueError: on purpose"),
    ("sys.exit(7)", 7, ""),
    ("sys.exit('a sentence')", 1, "a sentence"),
])  # fmt: skip
def test_exit_codes_are_the_programs_own(lives, end, status, word):
    output = lives(
        f"a, x, b, y = pair(64 << 20); h = copy(a, x, 'b', y); a.transfer(h)\n{end}",
        status=status,
        allowed=("Traceback", "File ", word or "nothing"),
    )
    assert word in output


def test_a_program_that_os_exits_with_everything_alive(lives):
    lives("a, x, b, y = pair(64 << 20); h = copy(a, x, 'b', y); a.transfer(h); os._exit(0)")


# --- nothing is left ------------------------------------------------------------------------------


def test_agents_leave_no_descriptors_threads_or_mappings(lives):
    output = lives("""
def cycle():
    a, x, b, y = pair(1 << 16, enable_listen_thread=True, listen_port=0)
    works(a, x, b, y)
    a.fetch_remote_metadata("b", "127.0.0.1", b.listen_port())
    b.completion_fd()
    a.close()
    b.close()

def count():
    with open("/proc/self/status") as file:
        resident = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    with open("/proc/self/maps") as file:
        mappings = len(file.readlines())
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), mappings, resident

for _ in range(3):  # libraries load, pools grow
    cycle()
before = count()
for _ in range(20):
    cycle()
until(lambda: count()[:2] == before[:2], f"{before} before, {count()} after")
after = count()
print(">", *before, *after)
""")
    numbers = [int(word) for word in re.search(r"^> (.*)$", output, re.M).group(1).split()]
    fds, threads, mappings, resident = (numbers[i + 4] - numbers[i] for i in range(4))
    assert (fds, threads) == (0, 0)
    assert mappings < 40, "20 cycles left mappings behind"
    assert resident < 60_000, f"20 cycles grew the process by {resident} KiB"


def test_idle_agents_use_no_processor(lives):
    output = lives("""
a, x, b, y = pair(enable_listen_thread=True, listen_port=0)
works(a, x, b, y)
a.send_notif("b", b"x")
until(b.get_new_notifs, "a message")

def idle():
    before = os.times()
    time.sleep(1)
    after = os.times()
    return (after.user - before.user) + (after.system - before.system)

least = min(idle() for _ in range(3))
print("> used", least)
""")
    used = float(re.search(r"^> used (.*)$", output, re.M).group(1))
    assert used <= 0.05, f"{used} s of processor time in a second"
