"""Programs as users write them, for type checkers: test_typing.py has mypy read this strictly.

Each function is a way of using the package that is seen in the field. Nothing here is run.
"""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List, Optional, Tuple
from uuid import uuid4

import numpy as np

import nixl
from nixl._api import (
    nixl_agent,
    nixl_agent_config,
    nixl_prepped_dlist_handle,
    nixl_thread_sync_t,
    nixl_xfer_handle,
    nixlBind,
)
from nixl._bindings import (
    nixlBackendError,
    nixlCancelledError,
    nixlRegDList,
    nixlRemoteDisconnectError,
    nixlTimeoutError,
    nixlXferDList,
    nixlXferTelemetry,
)
from nixl.logging import get_logger

logger = get_logger(__name__)


class PagedCacheWorker:
    """A connector of an engine with a paged cache: prepared lists, indices, polling."""

    def __init__(self, base: int, pages: int, page_bytes: int) -> None:
        config = nixl_agent_config(num_threads=4, capture_telemetry=True, backends=["UCX"])
        self.wrapper = nixl_agent(str(uuid4()), config)
        regions: List[Tuple[int, int, int, str]] = [(base, pages * page_bytes, 0, "")]
        descs = self.wrapper.get_reg_descs(regions, "DRAM")
        assert descs is not None
        self.registered: nixlRegDList = self.wrapper.register_memory(descs, backends=["UCX"])
        blocks = [(base + i * page_bytes, page_bytes, 0) for i in range(pages)]
        local = self.wrapper.get_xfer_descs(blocks, "DRAM")
        self.side: nixl_prepped_dlist_handle = self.wrapper.prep_xfer_dlist(
            "NIXL_INIT_AGENT", local
        )
        self.sides: Dict[bytes, nixl_prepped_dlist_handle] = {}
        self.running: List[nixl_xfer_handle] = []

    def handshake(self, metadata: bytes, rows: np.ndarray[Any, np.dtype[np.uint64]]) -> bytes:
        name = self.wrapper.add_remote_agent(metadata)
        self.sides[name] = self.wrapper.prep_xfer_dlist(name, rows, "DRAM")
        return name

    def read(self, peer: bytes, ours: List[int], theirs: np.ndarray[Any, Any]) -> None:
        handle = self.wrapper.make_prepped_xfer(
            "READ", self.side, ours, self.sides[peer], theirs, notif_msg=b"done:1", timeout=30.0
        )
        if self.wrapper.transfer(handle) != "DONE":
            self.running.append(handle)

    def poll(self) -> Tuple[List[nixlXferTelemetry], int]:
        ended = []
        failed = 0
        for handle in list(self.running):
            try:
                state = self.wrapper.check_xfer_state(handle)
            except nixlRemoteDisconnectError as error:
                logger.warning("%s (%d)", error.sentence, error.code)
                state = "ERR"
            if state == "PROC":
                continue
            self.running.remove(handle)
            if state == "DONE":
                ended.append(self.wrapper.get_xfer_telemetry(handle))
            else:
                failed += 1
            self.wrapper.release_xfer_handle(handle)
        return ended, failed

    def finished(self) -> Dict[str, List[bytes]]:
        return self.wrapper.get_new_notifs()


class DisaggregatedManager:
    """A manager with threads of its own: lists from arrays, states as text, strict threads."""

    def __init__(self, name: str) -> None:
        config = nixl_agent_config(
            backends=[], num_threads=8, sync_mode=nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        )
        self.agent = nixl_agent(name, config)
        if "UCX" in self.agent.get_plugin_list():
            self.agent.create_backend("UCX", {"num_threads": "8"})

    def send(
        self, peer: str, source: List[Tuple[int, int, int]], target: nixlXferDList
    ) -> Optional[nixl_xfer_handle]:
        descs = self.agent.get_xfer_descs(source, "DRAM")
        if descs is None:
            return None
        handle = self.agent.initialize_xfer("WRITE", descs, target, peer, b"aux")
        try:
            if self.agent.transfer(handle) == "ERR":
                return None
        except (nixlBackendError, nixlCancelledError):
            if not self.agent.check_remote_metadata(peer):
                self.agent.remove_remote_agent(peer)
            return None
        return handle

    def storage(self, keys: List[str]) -> List[bool]:
        found = self.agent.query_memory([(0, 0, 0, key) for key in keys], "OBJ", mem_type="OBJ")
        return [facts is not None for facts in found]


class HierarchicalCache:
    """A cache that exchanges the native agent under the wrapper."""

    def __init__(self, name: str) -> None:
        wanted = nixl_agent_config(backends=[])
        self.agent = nixl_agent(name, wanted)
        config = nixlBind.nixlAgentConfig()
        config.useProgThread = wanted.enable_pthread
        config.useListenThread = wanted.enable_listen
        config.listenPort = wanted.port
        config.syncMode = nixlBind.NIXL_THREAD_SYNC_RW
        config.captureTelemetry = wanted.capture_telemetry
        self.agent.agent = nixlBind.nixlAgent(name, config)
        self.agent.plugin_list = self.agent.agent.getAvailPlugins()

    def trimmed(self, files: List[Tuple[int, int, int, str]]) -> nixlXferDList:
        return self.agent.register_memory(files, "FILE").trim()


def rows_of(descs: nixlXferDList) -> List[Tuple[int, int, int]]:
    return [descs[i] for i in range(descs.descCount())] + [row for row in descs]


async def serve(agent: nixl.nixl_agent, handles: List[nixl_xfer_handle]) -> List[str]:
    """A server in asyncio."""
    with agent.initialize_xfer(
        "READ", nixlXferDList(nixl.DRAM_SEG), nixlXferDList(nixl.DRAM_SEG), "peer"
    ) as one:
        try:
            state: str = await agent.transfer_async(one, b"id", timeout=5)
            logger.info(state)
        except nixlTimeoutError as error:
            logger.warning(error.sentence)
            await agent.quiesce_async(one)
    for handle in handles:
        agent.transfer(handle)
    some: List[str] = await agent.wait_async(handles, timeout=1, mode="any")
    first: str = await agent.wait_async(handles[0])
    both: Tuple[str, str] = await asyncio.gather(
        agent.transfer_async(handles[0]), agent.transfer_async(handles[1])
    )
    async for notifs in agent.iter_notifs():
        for sender, messages in notifs.items():
            logger.info("%s: %d", sender, len(messages))
        break
    more: Dict[str, List[bytes]] = await agent.next_notifs(1.0)
    return some + [first, *both, *more]


def look(agent: nixl_agent, handle: nixl_xfer_handle) -> Tuple[int, str, List[str]]:
    one: str = agent.wait(handle, timeout=2.5)
    several: List[str] = agent.wait([handle, handle], 1, "any")
    status = agent.piece_status(handle)
    kinds: List[str] = [event.kind for event in agent.events() if event.transfer == 0]
    handle.cancel()
    handle.quiesce(timeout=1)
    done: int = status.bytes_done
    with agent.registered(np.zeros(8)) as descs:
        trimmed: nixlXferDList = descs.trim()
        done += trimmed.descCount()
    return done, agent.explain(handle) + one, several + kinds
