"""Waiting in event loops: transfer_async(), wait_async(), next_notifs() and their ends."""

import asyncio
import selectors
import threading

import numpy as np
import pytest

import nixl._bindings as nb
from binding_helpers import address, until

MS = 1000  # in microseconds, as LOOPBACK takes its delay
MINUTE = 60000 * MS


def run(coroutine, seconds=40):
    """Runs it in a loop of its own, under a deadline."""

    async def bounded():
        return await asyncio.wait_for(coroutine, seconds)

    return asyncio.run(bounded())


class Copier:
    """An agent that copies within its own memory, after a delay."""

    def __init__(self, agent):
        self.agent = agent
        self.array = np.arange(8192, dtype=np.uint32).astype(np.uint8)
        self.array[4096:] = 0
        agent.register_memory(self.array)

    def handle(self, notif_msg=b"", **more):
        agent, base = self.agent, address(self.array)
        sides = [agent.get_xfer_descs([(base + at, 4096, 0)], "DRAM") for at in (0, 4096)]
        return agent.initialize_xfer("WRITE", *sides, agent.name, notif_msg, **more)


@pytest.fixture
def copier(make_agent):
    def make(delay_us=0, **config):
        params = {"LOOPBACK": {"delay_us": str(delay_us)}}
        return Copier(make_agent("LOOPBACK", backend_params=params, **config))

    return make


async def start(coroutine):
    """A task that waits already."""
    task = asyncio.ensure_future(coroutine)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    return task


# --- transfers ----------------------------------------------------------------------------------


def test_importing_does_not_import_asyncio(script):
    assert script("import nixl, sys; print('asyncio' in sys.modules)") == (0, "False\n")


@pytest.mark.parametrize("delay_us", [0, 20 * MS])
def test_a_transfer_is_awaited(copier, delay_us):
    c = copier(delay_us)
    assert run(c.agent.transfer_async(c.handle(), b"there")) == "DONE"
    assert np.array_equal(c.array[:4096], c.array[4096:])
    assert run(c.agent.next_notifs(0)) == {c.agent.name: [b"there"]}


def test_many_transfers_are_awaited_at_once(copier):
    c = copier(10 * MS)
    handles = [c.handle() for _ in range(200)]

    async def all_of_them():
        return await asyncio.gather(*[c.agent.transfer_async(h) for h in handles])

    assert run(all_of_them()) == ["DONE"] * 200


def test_a_failure_is_raised(copier):
    c = copier(MINUTE)
    handle = c.handle()

    async def main():
        task = await start(c.agent.transfer_async(handle))
        c.agent.cancel_xfer(handle)
        await task

    with pytest.raises(nb.nixlCancelledError):
        run(main())
    with pytest.raises(nb.nixlInvalidParamError):
        handle.release()
        run(c.agent.transfer_async(handle))


@pytest.mark.parametrize("where", ["post", "handle"])
def test_a_deadline_ends_it(copier, where):
    c = copier(MINUTE)
    handle = c.handle(timeout=0.01) if where == "handle" else c.handle()
    with pytest.raises(nb.nixlTimeoutError) as caught:
        run(c.agent.transfer_async(handle, timeout=0.01 if where == "post" else None))
    assert isinstance(caught.value, TimeoutError) and "deadline" in caught.value.sentence
    run(c.agent.quiesce_async(handle, 20))
    handle.release()


def test_a_cancelled_task_cancels_its_transfer(copier):
    c = copier(MINUTE)
    handle = c.handle(b"never sent")

    async def main():
        task = await start(c.agent.transfer_async(handle))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await c.agent.quiesce_async(handle, 20)

    run(main())
    with pytest.raises(nb.nixlCancelledError):
        c.agent.check_xfer_state(handle)
    assert c.agent.get_new_notifs() == {}
    handle.release()


def test_an_impatient_wait_for_cancels_too(copier):
    c = copier(MINUTE)
    handle = c.handle()

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(c.agent.transfer_async(handle), 0.01)

    run(main())
    c.agent.quiesce_xfer(handle, 20)
    with pytest.raises(nb.nixlCancelledError):
        c.agent.check_xfer_state(handle)


def test_a_handle_that_is_released_meanwhile_is_said(copier):
    c = copier(50 * MS)
    handle = c.handle()

    async def main():
        task = await start(c.agent.transfer_async(handle))
        handle.release()
        with pytest.raises(nb.nixlInvalidParamError):
            await task

    run(main())


# --- several handles ----------------------------------------------------------------------------


def test_waiting_for_several_is_like_wait(copier):
    c = copier(20 * MS)
    handles = [c.handle() for _ in range(5)]
    for handle in handles:
        c.agent.transfer(handle)

    async def main():
        wait = c.agent.wait_async
        assert await wait(handles[0], 0) == "PROC"
        assert "DONE" in await wait(handles, mode="any")
        assert await wait(handles) == ["DONE"] * 5
        assert await wait(tuple(handles), 0) == ["DONE"] * 5
        assert await wait(iter(handles)) == ["DONE"] * 5
        assert await wait(handles[0], mode="all") == "DONE"
        assert await wait([]) == []
        with pytest.raises(ValueError, match="mode"):
            await wait(handles, mode="some")

    run(main())


def test_time_that_is_over_leaves_transfers_alone(copier):
    c = copier(MINUTE)
    handle = c.handle()
    c.agent.transfer(handle)
    assert run(c.agent.wait_async([handle], timeout=0.01)) == ["PROC"]

    async def main():
        task = await start(c.agent.wait_async([handle]))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert c.agent.check_xfer_state(handle) == "PROC"
    c.agent.cancel_xfer(handle)
    assert run(c.agent.wait_async([handle])) == ["ERR"]


def test_handles_of_another_agent_are_refused(copier):
    a, b = copier(), copier()
    with pytest.raises(nb.nixlInvalidParamError):
        run(a.agent.wait_async([a.handle(), b.handle()]))


def test_quiescing_says_when_it_could_not(copier):
    c = copier()
    handle = c.handle()
    assert run(c.agent.transfer_async(handle)) == "DONE"
    assert run(c.agent.quiesce_async(handle)) is None
    handle.release()
    with pytest.raises(nb.nixlInvalidParamError):
        run(c.agent.quiesce_async(handle))


# --- notifications ------------------------------------------------------------------------------


def test_a_message_wakes_who_waits_for_it(copier):
    c = copier(20 * MS)

    async def main():
        waiting = await start(c.agent.next_notifs())
        await c.agent.transfer_async(c.handle(b"one"))
        assert await waiting == {c.agent.name: [b"one"]}
        assert await c.agent.next_notifs(0) == {}
        assert await c.agent.next_notifs(0.01) == {}

    run(main())


def test_messages_come_from_another_agent(pair):
    a, b, _, _ = pair

    async def main():
        waiting = await start(b.next_notifs())
        a.send_notif(b.name, b"hello")
        assert await waiting == {a.name: [b"hello"]}

    run(main())


def test_messages_are_iterated(copier):
    c = copier()

    async def main():
        texts = []
        for i in range(5):
            await c.agent.transfer_async(c.handle(b"%d" % i))
        async for notifs in c.agent.iter_notifs():
            texts += notifs[c.agent.name]
            if len(texts) == 6:
                break
            await c.agent.transfer_async(c.handle(b"last"))
        assert texts == [b"0", b"1", b"2", b"3", b"4", b"last"]

    run(main())


def test_one_queue_serves_everybody_and_loses_nothing(copier):
    c = copier()
    count, seen, done = 300, [], threading.Event()

    def thread():
        while not done.is_set():
            seen.extend(c.agent.get_new_notifs().get(c.agent.name, []))

    async def taker():
        while True:
            seen.extend((await c.agent.next_notifs()).get(c.agent.name, []))

    async def main():
        takers = [asyncio.ensure_future(taker()) for _ in range(3)]
        for i in range(count):
            await c.agent.transfer_async(c.handle(b"%d" % i))
            if i % 10 == 0:  # one that is cancelled takes nothing with it
                takers.append(asyncio.ensure_future(taker()))
                takers.pop(0).cancel()
            await asyncio.sleep(0)
        while len(seen) < count:
            await asyncio.sleep(0.001)
        for task in takers:
            task.cancel()

    other = threading.Thread(target=thread)
    other.start()
    try:
        run(main())
    finally:
        done.set()
        other.join(20)
    assert sorted(seen) == sorted(b"%d" % i for i in range(count))
    assert c.agent.get_new_notifs() == {}


def test_an_agent_that_cannot_be_notified_says_so(make_agent):
    with pytest.raises(nb.nixlBackendError):
        run(make_agent().next_notifs())


# --- loops --------------------------------------------------------------------------------------


class CountingSelector(selectors.DefaultSelector):
    """Counts how often a loop turns."""

    turns = 0

    def select(self, timeout=None):
        self.turns += 1
        return super().select(timeout)


def test_a_loop_sleeps_and_watches_no_longer_than_needed(copier):
    c = copier(300 * MS)
    selector = CountingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    try:
        watched = len(selector.get_map())
        tasks = [c.agent.transfer_async(c.handle()) for _ in range(3)] + [c.agent.next_notifs(0.1)]

        async def main():
            waiting = [asyncio.ensure_future(t) for t in tasks]
            await asyncio.sleep(0.01)
            during = len(selector.get_map())
            return during, await asyncio.gather(*waiting)

        during, results = loop.run_until_complete(main())
        assert results == ["DONE"] * 3 + [{}]
        assert during == watched + 1  # one descriptor, however many wait
        assert len(selector.get_map()) == watched
        assert selector.turns < 60, "the loop was busy"
    finally:
        loop.close()


def test_without_a_progress_thread_the_loop_moves_the_data(copier):
    c = copier(20 * MS, enable_prog_thread=False)
    assert run(c.agent.transfer_async(c.handle(b"x"))) == "DONE"
    assert run(c.agent.next_notifs()) == {c.agent.name: [b"x"]}


def test_loops_of_several_threads_share_an_agent(copier):
    c = copier(2 * MS)
    failures, results = [], []

    async def work():
        for _ in range(30):
            results.append(await c.agent.transfer_async(c.handle()))
            handle = c.handle()
            c.agent.transfer(handle)
            results.append(await c.agent.wait_async(handle))

    def thread():
        try:
            run(work())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(50)
    assert not failures and results == ["DONE"] * 240


def test_a_loop_that_was_closed_leaves_the_others_alone(copier):
    c = copier(50 * MS)
    handle = c.handle()
    loop = asyncio.new_event_loop()

    async def begin():
        return await start(c.agent.transfer_async(handle))

    task = loop.run_until_complete(begin())
    loop.close()
    assert run(c.agent.transfer_async(c.handle())) == "DONE"
    assert c.agent.wait(handle, 20) == "DONE"
    del task


@pytest.mark.parametrize("how", ["here", "elsewhere", "below"])
def test_closing_the_agent_ends_every_wait(copier, how):
    c = copier(MINUTE)
    handle, other = c.handle(), c.handle()
    c.agent.transfer(other)
    close = c.agent.agent.close if how == "below" else c.agent.close

    async def main():
        waiting = [
            await start(c.agent.transfer_async(handle)),
            await start(c.agent.wait_async(other)),
            await start(c.agent.next_notifs()),
        ]
        if how == "elsewhere":
            await asyncio.get_running_loop().run_in_executor(None, close)
        else:
            close()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, nb.nixlShutDownError), result
        with pytest.raises(nb.nixlShutDownError):
            await c.agent.next_notifs()

    run(main())


def test_an_agent_that_is_not_waited_for_may_go(copier):
    import gc
    import weakref

    c = copier(5 * MS)
    run(c.agent.transfer_async(c.handle()))
    from nixl import _async

    hub = weakref.ref(_async._hubs[c.agent.agent])
    c.agent.agent.close()
    native = weakref.ref(c.agent.agent)
    c.agent.agent = None
    gc.collect()
    assert native() is None and hub() is None

    class Closed:
        def close(self):
            pass

    c.agent.agent = Closed()  # for the fixture


def test_a_forked_child_is_told(script):
    status, output = script(
        "import asyncio, os, sys, numpy as np, nixl\n"
        "a = nixl.nixl_agent('a', nixl.nixl_agent_config(backends=['LOOPBACK']))\n"
        "asyncio.run(a.next_notifs(0.01))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try: asyncio.run(a.next_notifs())\n"
        "    except nixl.nixlForkedError: print('told', flush=True)\n"
        "    os._exit(0)\n"
        "print(os.waitpid(child, 0)[1], asyncio.run(a.next_notifs(0.01)))",
        PYTHONWARNINGS="ignore",
    )
    assert status == 0 and "told" in output and "0 {}" in output, output


def test_another_kind_of_loop_will_do(copier):
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    c = copier(10 * MS)

    async def main():
        waiting = await start(c.agent.next_notifs())
        results = await asyncio.gather(*[c.agent.transfer_async(c.handle()) for _ in range(20)])
        assert results == ["DONE"] * 20
        await c.agent.transfer_async(c.handle(b"x"))
        assert await waiting == {c.agent.name: [b"x"]}
        waiting = await start(c.agent.next_notifs())
        c.agent.close()
        with pytest.raises(nb.nixlShutDownError):
            await waiting

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 40))
    finally:
        loop.close()


def test_a_thread_that_posts_wakes_a_loop_that_waits(copier):
    c = copier(20 * MS)
    handle = c.handle(b"from the thread")

    async def main():
        waiting = await start(c.agent.next_notifs())
        poster = threading.Timer(0.01, c.agent.transfer, (handle,))
        poster.start()
        assert await waiting == {c.agent.name: [b"from the thread"]}
        poster.join()

    run(main())
    until(lambda: c.agent.check_xfer_state(handle) == "DONE", "the transfer")
