"""Waiting in an event loop: what stands behind transfer_async() and its kin in ``nixl._api``.

Nothing polls and no thread is added: a loop in which something waits watches a duplicate of the
agent's completion descriptor. Whatever happens makes it readable; then every waiter looks whether
it was meant. Only calls that asyncio documents are used, so other loops do as well.

Several loops may wait for one agent, each in its thread. The first that wakes takes the signal off
the descriptor, and tells the others.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref

from nixl import _bindings as nixlBind
from nixl._api import _wants_all, nixl_xfer_handle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence

    from nixl._api import Message, nixl_agent

# How often a loop moves data by itself for an agent without a progress thread.
_POLL_SECONDS = 0.001


class _Hub:
    """What the loops share that wait for one agent: the descriptor, and who watches it."""

    def __init__(self, agent: nixlBind.nixlAgent) -> None:
        # Ours, so that it outlives the agent's: a number that a loop still watches must not be
        # given to another file meanwhile.
        self.fd = os.dup(agent.completionFd())
        # By the loop's id. Loops own their watchers; a loop that was closed lets go of its own.
        self.watchers: weakref.WeakValueDictionary[int, _Watcher] = weakref.WeakValueDictionary()

    def __del__(self) -> None:
        fd = self.__dict__.get("fd")
        if fd is not None:
            os.close(fd)

    def look_elsewhere(self, here: _Watcher) -> None:
        """Has all other loops look, as the signal is not there for them any more."""
        with _lock:
            others = [w for w in self.watchers.values() if w is not here]
        for watcher in others:
            try:
                watcher.loop.call_soon_threadsafe(watcher.look)
            except RuntimeError:
                pass  # that loop was closed


class _Watcher:
    """Those who wait for one agent in one loop. Used in the loop's thread alone."""

    def __init__(self, hub: _Hub, loop: asyncio.AbstractEventLoop, polls: bool) -> None:
        self.hub = hub
        self.loop = loop
        self.polls = polls
        self.timer: Optional[asyncio.TimerHandle] = None
        self.waiting: Dict[asyncio.Future[bool], Callable[[], bool]] = {}

    def add(self, agent: nixlBind.nixlAgent, ready: Callable[[], bool]) -> asyncio.Future[bool]:
        if not self.waiting:
            self.loop.add_reader(self.hub.fd, self._readable)
            if self.polls:
                self._drive(agent)
        future = self.loop.create_future()
        self.waiting[future] = ready
        return future

    def remove(self, future: asyncio.Future[bool]) -> None:
        del self.waiting[future]
        if self.waiting or self.loop.is_closed():
            return
        self.loop.remove_reader(self.hub.fd)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def look(self) -> None:
        """Wakes those for whom it is time."""
        for future, ready in list(self.waiting.items()):
            if future.done():
                continue
            try:
                if ready():
                    future.set_result(True)
            except Exception as error:  # the agent was closed, or is the parent process's
                future.set_exception(error)

    def _readable(self) -> None:
        try:
            os.read(self.hub.fd, 8)
        except BlockingIOError:
            pass  # another loop was faster
        self.hub.look_elsewhere(self)
        self.look()

    def _drive(self, agent: nixlBind.nixlAgent) -> None:
        """Moves data where no thread does, as long as somebody waits."""
        try:
            agent.waitXferReqs([], True, 0.0)
        except Exception:
            self.look()  # each waiter meets the same error
            return
        self.timer = self.loop.call_later(_POLL_SECONDS, self._drive, agent)


_lock = threading.Lock()  # guards the table and the hubs' dictionaries; nothing is called with it
_hubs: weakref.WeakKeyDictionary[nixlBind.nixlAgent, _Hub] = weakref.WeakKeyDictionary()


def _after_fork() -> None:
    """The child's agents are inert, and another thread may have held the lock."""
    global _lock, _hubs
    _lock = threading.Lock()
    _hubs = weakref.WeakKeyDictionary()


os.register_at_fork(after_in_child=_after_fork)


def _watcher(agent: nixlBind.nixlAgent, loop: asyncio.AbstractEventLoop) -> _Watcher:
    with _lock:
        hub = _hubs.get(agent)
        if hub is None:
            hub = _hubs[agent] = _Hub(agent)
        watcher = hub.watchers.get(id(loop))
        if watcher is None:
            watcher = _Watcher(hub, loop, not agent.hasProgressThread)
            hub.watchers[id(loop)] = watcher
    return watcher


def _time_over(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)


async def _until(
    agent: nixlBind.nixlAgent, ready: Callable[[], bool], timeout: Optional[float] = None
) -> bool:
    """Waits until `ready()`, which must not block; False when `timeout` seconds passed before."""
    loop = asyncio.get_running_loop()
    watcher = _watcher(agent, loop)
    future = watcher.add(agent, ready)
    timer = None
    try:
        # Only now, when nothing that happens can be missed any more.
        if ready():
            return True
        if timeout is not None:
            timer = loop.call_later(max(0.0, timeout), _time_over, future)
        agent.handOver()  # what follows is not polling
        return await future
    finally:
        if timer is not None:
            timer.cancel()
        watcher.remove(future)


async def transfer(
    agent: nixl_agent, handle: nixl_xfer_handle, notif_msg: Message, timeout: Optional[float]
) -> str:
    native, number = handle._agent, handle._handle
    state = agent.transfer(handle, notif_msg, timeout)
    try:
        while state == "PROC":
            await _until(native, lambda: native.countEndedXferReqs([number]) == 1)
            state = agent.check_xfer_state(handle)
    except BaseException:  # a cancelled task above all; asyncio has its own for that
        try:
            native.cancelXferReq(number)  # does nothing to what has ended
        except Exception:
            pass  # closed, released or forked: it is over in any case
        raise
    return state


async def wait(agent: nixl_agent, handles: Any, timeout: Optional[float], mode: str) -> Any:
    wait_all = _wants_all(mode)
    if not isinstance(handles, nixl_xfer_handle):
        handles = list(handles)
    pending = [handles] if isinstance(handles, nixl_xfer_handle) else handles
    native = pending[0]._agent if pending else agent.agent
    numbers = [h._handle for h in pending]
    enough = len(numbers) if wait_all else min(1, len(numbers))
    # Drives once, and refuses what is released or another agent's.
    if native.waitXferReqs(numbers, wait_all, 0.0) < enough:
        await _until(native, lambda: native.countEndedXferReqs(numbers) >= enough, timeout)
    return agent.wait(handles, 0.0, mode)


async def quiesce(handle: nixl_xfer_handle, timeout: float) -> None:
    native, number = handle._agent, handle._handle

    def quiet() -> bool:
        try:
            native.quiesceXferReq(number, 0.0)
        except nixlBind.nixlNotQuiescedError:
            return False
        return True

    if not await _until(native, quiet, timeout):
        native.quiesceXferReq(number, 0.0)  # raises the sentence, or it has just happened


async def next_notifs(
    agent: nixl_agent, timeout: Optional[float], backends: Sequence[str]
) -> Dict[str, List[bytes]]:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        # Taken here and returned without a pause: a task that is cancelled loses nothing.
        messages = agent.get_new_notifs(backends)
        if messages:
            return messages
        left = None if deadline is None else deadline - time.monotonic()
        native = agent.agent
        if left is not None and left <= 0 or not await _until(native, native.hasNotifs, left):
            return {}
