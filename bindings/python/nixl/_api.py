"""Agents that move memory: register it, meet peers, make transfers, post and poll them.

The interface is the one that inference engines in the field use; names and strings are theirs.
Below it lies ``nixl._bindings``, which talks to the library.
"""

from __future__ import annotations

import enum
import operator
import pickle
import sys
from collections import namedtuple

from nixl import _bindings as nixlBind
from nixl.logging import get_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

    import numpy as np

    Name = Union[str, bytes]
    Message = Union[str, bytes, bytearray]

logger = get_logger(__name__.rpartition(".")[2])

DEFAULT_COMM_PORT: int = nixlBind.DEFAULT_COMM_PORT
nixl_backend_handle = int

__all__ = [
    "DEFAULT_COMM_PORT",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]

_SUCCESS = nixlBind.NIXL_SUCCESS
_IN_PROG = nixlBind.NIXL_IN_PROG

# What `num_threads` of the configuration is called by the backends that know it.
_THREADS_OPTION = {
    "UCX": "num_threads",
    "OBJ": "num_threads",
    "LIBFABRIC": "num_threads",
    "GDS_MT": "thread_count",
    "UCCL": "num_cpus",
}


class nixl_thread_sync_t(enum.Enum):
    """How calls from several threads are kept apart: ours always are. Programs may still say."""

    NIXL_THREAD_SYNC_NONE = nixlBind.NIXL_THREAD_SYNC_NONE
    NIXL_THREAD_SYNC_STRICT = nixlBind.NIXL_THREAD_SYNC_STRICT
    NIXL_THREAD_SYNC_RW = nixlBind.NIXL_THREAD_SYNC_RW
    NIXL_THREAD_SYNC_DEFAULT = nixlBind.NIXL_THREAD_SYNC_DEFAULT


class nixl_agent_config:
    """How an agent is set up.

    :param enable_prog_thread: data moves without being polled for.
    :param enable_listen_thread: answer peers that ask for metadata (``enable_listen`` is the same).
    :param listen_port: port of that listener; 0 lets the system choose (``agent.listen_port()``).
    :param capture_telemetry: measure transfers, unless ``NIXL_TELEMETRY_ENABLE`` forbids it.
    :param num_threads: for backends that use threads of their own; 0 leaves it to them.
    :param backends: created with the agent, in this order; one that is no plugin is skipped.
    :param sync_mode: kept, and without effect: every call may come from any thread.
    :param backend_params: options of backends, by the backend's name.
    :param use_etcd: True requires the central store, False never uses it, None uses it if set up.
    """

    def __init__(
        self,
        enable_prog_thread: bool = True,
        enable_listen_thread: bool = False,
        listen_port: int = DEFAULT_COMM_PORT,
        capture_telemetry: bool = False,
        num_threads: int = 0,
        backends: Iterable[str] = ("UCX",),
        sync_mode: Optional[nixl_thread_sync_t] = None,
        *,
        enable_listen: Optional[bool] = None,
        backend_params: Optional[Dict[str, Dict[str, str]]] = None,
        use_etcd: Optional[bool] = None,
    ) -> None:
        if sync_mode is not None and not isinstance(sync_mode, nixl_thread_sync_t):
            raise TypeError(
                f"sync_mode must be a nixl_thread_sync_t or None, not {type(sync_mode).__name__}"
            )
        self.backends = list(backends)
        self.enable_pthread = enable_prog_thread
        self.enable_listen = enable_listen_thread if enable_listen is None else enable_listen
        self.port = listen_port
        self.capture_telemetry = capture_telemetry
        self.num_threads = num_threads
        self.sync_mode = sync_mode
        self.backend_params = {
            name: dict(options) for name, options in (backend_params or {}).items()
        }
        self.use_etcd = use_etcd


class _handle:
    """A number of the library's that gives itself back. Use as a context manager, or release()."""

    __slots__ = ("_handle", "_agent", "_released")

    def __init__(self, agent: nixlBind.nixlAgent, handle: int) -> None:
        self._handle = handle
        self._agent = agent
        self._released = False

    def _give_back(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        """Gives the handle back. Again does nothing."""
        if not self._released:
            try:
                self._give_back()
            except (nixlBind.nixlShutDownError, nixlBind.nixlForkedError):
                pass  # it went with its agent, or is the parent process's
            self._released = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}(0x{self._handle:x}, released={self._released})"

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __del__(self) -> None:
        try:
            self.release()
        except Exception:
            pass  # an interpreter that ends, or a process that was forked


class nixl_prepped_dlist_handle(_handle):
    """One side of transfers to come. May be released as soon as the transfers are made."""

    __slots__ = ()

    def _give_back(self) -> None:
        self._agent.releasedDlistH(self._handle)


class nixl_xfer_handle(_handle):
    """A transfer, to be posted any number of times. Releasing one in flight cancels it."""

    __slots__ = ()

    def _give_back(self) -> None:
        self._agent.releaseXferReq(self._handle)


nixl_event = namedtuple(
    "nixl_event", "kind peer incarnation transfer code text message", module=__name__
)
nixl_event.__doc__ = "What happened without being asked for, see nixl_agent.events()."

nixl_piece_status = namedtuple(
    "nixl_piece_status", "pieces done failed bytes_done status", module=__name__
)
nixl_piece_status.__doc__ = "How far a transfer got, see nixl_agent.piece_status()."


def _class_of(module: str, name: str):
    """A class of a module that somebody else imported, for isinstance(); () when nobody did."""
    return getattr(sys.modules.get(module), name, ())


def _made(descs: Any) -> Any:
    """`descs`, unless nothing could be made of what the user gave."""
    if descs is None:
        raise TypeError("these descriptors cannot be used; the log says why")
    return descs


class nixl_agent:
    """A named endpoint that owns registered memory, backends and what it knows of its peers.

    Use it as a context manager, or ``close()`` it; the interpreter's end closes it as well. Every
    method may be called from any thread. What can wait or copy lets other Python threads run.

    Failures raise the exceptions of ``nixl._bindings``, among them a transfer's own, from
    ``transfer`` and ``check_xfer_state``. Their text is the status and a sentence; ``code`` and
    ``sentence`` are attributes as well.
    """

    def __init__(
        self,
        agent_name: Name,
        nixl_conf: Optional[nixl_agent_config] = None,
        instantiate_all: bool = False,
    ) -> None:
        if nixl_conf is not None and instantiate_all:
            logger.warning("instantiate_all is ignored, because a configuration was given")
            instantiate_all = False
        conf = nixl_agent_config() if nixl_conf is None else nixl_conf

        self._leaked_xfer_handles: List[int] = []
        self._kept: Dict[Tuple[int, int, int, int], List[Any]] = {}
        self._backend_params = getattr(conf, "backend_params", {})

        native = nixlBind.nixlAgentConfig()
        native.useProgThread = bool(conf.enable_pthread)
        native.useListenThread = bool(conf.enable_listen)
        native.listenPort = operator.index(conf.port)
        native.captureTelemetry = bool(conf.capture_telemetry)
        native.numThreads = max(0, conf.num_threads)
        native.useStore = getattr(conf, "use_etcd", None)
        if conf.sync_mode is not None:
            native.syncMode = conf.sync_mode.value
        elif conf.enable_listen:
            native.syncMode = nixlBind.NIXL_THREAD_SYNC_STRICT
        self.agent = nixlBind.nixlAgent(agent_name, native)

        self.name = agent_name
        self.notifs: Dict[str, List[bytes]] = {}
        self.backends: Dict[str, int] = {}
        self.backend_mems: Dict[str, List[str]] = {}
        self.backend_options: Dict[str, Dict[str, str]] = {}
        self.plugin_b_options: Dict[str, Dict[str, str]] = {}
        self.plugin_mem_types: Dict[str, List[str]] = {}
        self.nixl_mems = {
            "DRAM": nixlBind.DRAM_SEG,
            "VRAM": nixlBind.VRAM_SEG,
            "FILE": nixlBind.FILE_SEG,
            "BLOCK": nixlBind.BLK_SEG,
            "OBJ": nixlBind.OBJ_SEG,
            "cpu": nixlBind.DRAM_SEG,
            "cuda": nixlBind.VRAM_SEG,
        }
        self.nixl_ops = {"WRITE": nixlBind.NIXL_WRITE, "READ": nixlBind.NIXL_READ}

        self.plugin_list: List[str] = self.agent.getAvailPlugins()
        if not self.plugin_list:
            raise RuntimeError(
                "no backend plugin was found, so nothing can be moved; "
                "NIXL_PLUGIN_DIR names their folder"
            )
        for name in self.plugin_list if instantiate_all else conf.backends:
            params = {}
            if conf.num_threads > 0 and name in _THREADS_OPTION:
                params[_THREADS_OPTION[name]] = str(conf.num_threads)
            params.update(self._backend_params.get(name, {}))
            try:
                self.create_backend(name, params)
            except nixlBind.nixlNotFoundError as error:
                if name in self.plugin_list:
                    raise
                logger.warning("backend %s is left out: %s", name, error.sentence)
        logger.info("agent %s is ready", agent_name)

    def close(self) -> None:
        """Ends what is in flight, gives everything back. Later calls raise nixlShutDownError."""
        self.agent.close()
        self._kept.clear()

    def __enter__(self) -> nixl_agent:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        for handle in self.__dict__.get("_leaked_xfer_handles", ()):
            try:
                self.agent.releaseXferReq(handle)
            except Exception:
                pass  # the agent may be gone, or forked

    def _handles(self, backends: Sequence[str]) -> List[int]:
        return [self.backends[name] for name in backends] if backends else []

    # --- plugins and backends -------------------------------------------------------------------

    def _look_at_plugin(self, backend: str) -> None:
        if backend not in self.plugin_b_options:
            params, mems = self.agent.getPluginParams(backend)
            self.plugin_b_options[backend] = params
            self.plugin_mem_types[backend] = mems

    def get_plugin_list(self) -> List[str]:
        """Names of the plugins found when the agent was made, loadable or not."""
        return self.plugin_list

    def get_plugin_mem_types(self, backend: str) -> List[str]:
        """Kinds of memory of a plugin, like ``"DRAM_SEG"``; none when it cannot be loaded."""
        try:
            self._look_at_plugin(backend)
        except Exception as error:
            logger.warning("the memory kinds of plugin %s are not known: %s", backend, error)
            return []
        return self.plugin_mem_types[backend]

    def get_plugin_params(self, backend: str) -> Dict[str, str]:
        """Options of a plugin with their defaults; none when it cannot be loaded."""
        try:
            self._look_at_plugin(backend)
        except Exception as error:
            logger.warning("the options of plugin %s are not known: %s", backend, error)
            return {}
        return self.plugin_b_options[backend]

    def get_backend_mem_types(self, backend: str) -> List[str]:
        """Kinds of memory of a backend of this agent."""
        if backend not in self.backend_mems:
            logger.warning("this agent has no backend %s", backend)
            return []
        return self.backend_mems[backend]

    def get_backend_params(self, backend: str) -> Dict[str, str]:
        """Options that a backend of this agent was created with."""
        if backend not in self.backend_options:
            logger.warning("this agent has no backend %s", backend)
            return {}
        return self.backend_options[backend]

    def create_backend(self, backend: str, initParams: Optional[Dict[str, str]] = None) -> None:
        """Starts a backend. Options given here win over ``backend_params`` of the configuration."""
        params = {**self._backend_params.get(backend, {}), **(initParams or {})}
        handle = self.agent.createBackend(backend, params)
        self.backends[backend] = handle
        options, mems = self.agent.getBackendParams(handle)
        self.backend_options[backend] = options
        self.backend_mems[backend] = mems
        logger.info("backend %s is ready", backend)

    # --- descriptors ----------------------------------------------------------------------------

    def get_xfer_descs(
        self, descs: Any, mem_type: Optional[str] = None
    ) -> Optional[nixlBind.nixlXferDList]:
        """What a transfer covers, as a list of the library.

        :param descs: tuples (address, length, device) or a C-contiguous N x 3 array of 64 bit
            integers, both with ``mem_type``; or memory itself: a tensor, a NumPy array, or a list
            of either.
        :return: None, and a line in the log, for what it cannot be made of.
        """
        if isinstance(descs, nixlBind.nixlRegDList):
            logger.error("a registration list is no transfer list; its trim() gives one")
            return None
        return self._as_list(nixlBind.nixlXferDList, 3, descs, mem_type)

    def get_reg_descs(
        self, descs: Any, mem_type: Optional[str] = None
    ) -> Optional[nixlBind.nixlRegDList]:
        """What is to be registered, as a list of the library.

        Like get_xfer_descs(), but tuples have a fourth member: text or bytes for the backend, often
        empty.
        """
        if isinstance(descs, nixlBind.nixlXferDList):
            logger.error("a transfer list is no registration list: it lacks the meta information")
            return None
        return self._as_list(nixlBind.nixlRegDList, 4, descs, mem_type)

    def get_remote_descs(
        self, descs: Any, mem_type: Optional[str] = None
    ) -> Optional[nixlBind.nixlRemoteDList]:
        """Ranges of several peers for a memory view: tuples (address, length, device, peer)."""
        if isinstance(descs, nixlBind.nixlRemoteDList):
            return descs
        if mem_type is not None and isinstance(descs, list) and len(descs[0]) == 4:
            return nixlBind.nixlRemoteDList(self.nixl_mems[mem_type], descs)
        logger.error("a remote list is made of tuples of 4 members and a mem_type")
        return None

    def _as_list(self, cls: Any, members: int, descs: Any, mem_type: Optional[str]) -> Any:
        if isinstance(descs, cls):
            return descs
        first = descs[0]
        arrays, tensors = _class_of("numpy", "ndarray"), _class_of("torch", "Tensor")

        if isinstance(first, tuple):
            if mem_type is None:
                logger.error("tuples need a mem_type beside them")
                return None
            if len(first) != members:
                logger.error(
                    "descriptor 0 has %d members; %s takes tuples of %d%s",
                    len(first),
                    cls.__name__,
                    members,
                    " (register_memory() takes 3 as well)" if members == 4 else "",
                )
                return None
            return cls(self.nixl_mems[mem_type], descs)

        if isinstance(descs, arrays):
            table = descs.ndim == 2 and descs.shape[1] == 3
            if mem_type is not None and table:
                return cls(self.nixl_mems[mem_type], descs)
            if mem_type is None and not (
                table and descs.dtype.kind in "iu" and descs.itemsize == 8
            ):
                return self._of_arrays(cls, [descs])
            logger.error(
                "an array is memory to move, or with a mem_type an N x 3 table of descriptors; "
                "this one has shape %s and type %s",
                descs.shape,
                descs.dtype,
            )
            return None
        if isinstance(descs, tensors):
            return self._of_tensors(cls, [descs])
        if isinstance(first, tensors):
            return self._of_tensors(cls, descs)
        if isinstance(first, arrays):
            if mem_type is None or self.nixl_mems[mem_type] is nixlBind.DRAM_SEG:
                return self._of_arrays(cls, descs)
            logger.error("arrays are host memory, not %s", mem_type)
            return None
        logger.error("a %s holds no descriptors that %s takes", type(descs).__name__, cls.__name__)
        return None

    def _of_memory(self, cls: Any, kind: Any, ranges: List[Tuple], owners: Sequence[Any]) -> Any:
        if cls is nixlBind.nixlRegDList:
            descs = cls(kind, [(*r, b"") for r in ranges])
            descs._owners = list(owners)
            return descs
        return cls(kind, ranges)

    def _of_tensors(self, cls: Any, tensors: Sequence[Any]) -> Any:
        device = tensors[0].get_device()
        ranges = []
        for tensor in tensors:
            if not tensor.is_contiguous():
                logger.error("a tensor that is not contiguous cannot be moved")
                return None
            if tensor.get_device() != device:
                logger.error("tensors of one list must be on one device")
                return None
            ranges.append(
                (tensor.data_ptr(), tensor.numel() * tensor.element_size(), max(0, device))
            )
        kind = nixlBind.DRAM_SEG if device == -1 else nixlBind.VRAM_SEG
        return self._of_memory(cls, kind, ranges, tensors)

    def _of_arrays(self, cls: Any, arrays: Sequence[np.ndarray]) -> Any:
        ranges = []
        for array in arrays:
            if not array.flags["C_CONTIGUOUS"]:
                logger.error("an array that is not C-contiguous cannot be moved")
                return None
            ranges.append((array.__array_interface__["data"][0], array.nbytes, 0))
        return self._of_memory(cls, nixlBind.DRAM_SEG, ranges, arrays)

    def get_serialized_descs(self, descs: Any) -> bytes:
        """A list as bytes, which other agents read, upstream's too."""
        return pickle.dumps(descs)

    def deserialize_descs(self, serialized_descs: bytes) -> Any:
        """The list of get_serialized_descs(). It is a pickle: read only what you trust."""
        return pickle.loads(serialized_descs)

    # --- registration ---------------------------------------------------------------------------

    def register_memory(
        self, reg_list: Any, mem_type: Optional[str] = None, backends: Sequence[str] = ()
    ) -> nixlBind.nixlRegDList:
        """Makes memory known to the backends, all that take its kind or the named ones.

        :param reg_list: what get_reg_descs() takes, and tuples without meta information.
        :return: the list to deregister. Arrays and tensors live on until then.
        """
        if isinstance(reg_list, list) and mem_type is not None:
            first = reg_list[0]
            if isinstance(first, tuple) and len(first) == 3:
                reg_list = [(*r, b"") if len(r) == 3 else r for r in reg_list]
        descs = _made(self.get_reg_descs(reg_list, mem_type))
        self.agent.registerMem(descs, self._handles(backends))
        if descs._owners is not None:
            for key, owner in zip(self._keys(descs), descs._owners):
                self._kept.setdefault(key, []).append(owner)
        return descs

    def deregister_memory(
        self, dereg_list: nixlBind.nixlRegDList, backends: Sequence[str] = ()
    ) -> None:
        """Takes registrations back; each range must match one, or nothing is removed."""
        self.agent.deregisterMem(dereg_list, self._handles(backends))
        if self._kept:
            for key in self._keys(dereg_list):
                owners = self._kept.get(key)
                if owners:
                    owners.pop()
                    if not owners:
                        del self._kept[key]

    @staticmethod
    def _keys(descs: nixlBind.nixlRegDList) -> Iterable[Tuple[int, int, int, int]]:
        kind = int(descs.getType())
        return [(kind, *descs[i][:3]) for i in range(descs.descCount())]

    def query_memory(
        self, reg_list: Any, backend: str, mem_type: Optional[str] = None
    ) -> List[Optional[Dict[str, str]]]:
        """Facts about stored things, such as their size: one entry each, None where there is none."""
        descs = _made(self.get_reg_descs(reg_list, mem_type))
        if backend not in self.backends:
            raise ValueError(
                f"this agent has no backend {backend!r}; there are {sorted(self.backends)}"
            )
        return self.agent.queryMem(descs, self.backends[backend])

    # --- transfers ------------------------------------------------------------------------------

    def make_connection(self, remote_agent: Name, backends: Sequence[str] = ()) -> None:
        """Connects now what the first transfer would connect."""
        self.agent.makeConnection(remote_agent, self._handles(backends))

    def prep_xfer_dlist(
        self,
        agent_name: Name,
        xfer_list: Any,
        mem_type: Optional[str] = None,
        backends: Sequence[str] = (),
    ) -> nixl_prepped_dlist_handle:
        """Resolves one side of transfers to come.

        :param agent_name: a peer; ``""`` or ``"NIXL_INIT_AGENT"`` for our side; our own name for
            ourselves as the target.
        :param xfer_list: what get_xfer_descs() takes, or a C-contiguous N x 5 array with rows
            (address, length, device, stride, count): ``count`` blocks of ``length`` bytes that
            start ``stride`` bytes apart. Indices of make_prepped_xfer() count blocks, row by row.
        """
        if agent_name == "NIXL_INIT_AGENT":
            agent_name = nixlBind.NIXL_INIT_AGENT
        handles = self._handles(backends)
        if isinstance(xfer_list, _class_of("numpy", "ndarray")) and xfer_list.ndim == 2:
            columns = xfer_list.shape[1]
            if mem_type is None:
                if columns == 5:
                    raise ValueError("a table of descriptors needs a mem_type beside it")
            elif columns == 5 or (columns == 3 and len(xfer_list)):
                # Read in place, without a list between.
                side = self.agent.prepXferDlist(
                    agent_name, self.nixl_mems[mem_type], xfer_list, handles
                )
                return nixl_prepped_dlist_handle(self.agent, side)
        descs = _made(self.get_xfer_descs(xfer_list, mem_type))
        return nixl_prepped_dlist_handle(
            self.agent, self.agent.prepXferDlist(agent_name, descs, handles)
        )

    def make_prepped_xfer(
        self,
        operation: str,
        local_xfer_side: nixl_prepped_dlist_handle,
        local_indices: Union[Sequence[int], np.ndarray],
        remote_xfer_side: nixl_prepped_dlist_handle,
        remote_indices: Union[Sequence[int], np.ndarray],
        notif_msg: Message = b"",
        backends: Sequence[str] = (),
        skip_desc_merge: bool = False,
    ) -> nixl_xfer_handle:
        """A transfer between equally many ranges of two prepared sides, chosen by position.

        ``"READ"`` copies from the remote to the local side, ``"WRITE"`` the other way. int32 arrays
        are read in place.
        """
        op = self.nixl_ops[operation]
        agent = self.agent
        request = agent.makeXferReq(
            op,
            local_xfer_side._handle,
            local_indices,
            remote_xfer_side._handle,
            remote_indices,
            notif_msg,
            self._handles(backends),
            skip_desc_merge,
        )
        return nixl_xfer_handle(agent, request)

    def initialize_xfer(
        self,
        operation: str,
        local_descs: nixlBind.nixlXferDList,
        remote_descs: nixlBind.nixlXferDList,
        remote_agent: Name,
        notif_msg: Message = b"",
        backends: Sequence[str] = (),
    ) -> nixl_xfer_handle:
        """A transfer of two lists, pairwise.

        Registration lists are taken as well; then ranges are split where the other side has a
        boundary, so that only the bytes on both sides must be equally many.
        """
        op = self.nixl_ops[operation]
        registered = nixlBind.nixlRegDList
        if isinstance(local_descs, registered) or isinstance(remote_descs, registered):
            local_descs, remote_descs = (
                d.trim() if isinstance(d, registered) else d for d in (local_descs, remote_descs)
            )
            local_descs, remote_descs = nixlBind._split_to_match(local_descs, remote_descs)
        agent = self.agent
        request = agent.createXferReq(
            op, local_descs, remote_descs, remote_agent, notif_msg, self._handles(backends)
        )
        return nixl_xfer_handle(agent, request)

    def transfer(self, handle: nixl_xfer_handle, notif_msg: Message = b"") -> str:
        """Posts a transfer, for the first time or again.

        :param notif_msg: if not empty, sent after the data from now on, instead of the former one.
        :return: ``"DONE"`` or ``"PROC"``.
        """
        status = handle._agent.postXferReq(handle._handle, notif_msg)
        return "DONE" if status is _SUCCESS else "PROC" if status is _IN_PROG else "ERR"

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        """``"DONE"`` or ``"PROC"``; never blocks. Raises what made the transfer fail."""
        status = handle._agent.getXferStatus(handle._handle)
        return "DONE" if status is _SUCCESS else "PROC" if status is _IN_PROG else "ERR"

    def wait(
        self,
        handles: Union[nixl_xfer_handle, Sequence[nixl_xfer_handle]],
        timeout: Optional[float] = None,
        mode: str = "all",
    ) -> Union[str, List[str]]:
        """Waits until transfers ended, or `timeout` seconds passed. Sleeps where it can.

        One handle gives its state, like check_xfer_state(). Several give the list of their states,
        in which a failed one is ``"ERR"``; ``mode="any"`` returns as soon as one has ended.
        """
        if mode not in ("all", "any"):
            raise ValueError(f'mode must be "all" or "any", not {mode!r}')
        pending = [handles] if isinstance(handles, nixl_xfer_handle) else list(handles)
        agent = pending[0]._agent if pending else self.agent
        agent.waitXferReqs([h._handle for h in pending], mode == "all", timeout)
        if isinstance(handles, nixl_xfer_handle):
            return self.check_xfer_state(handles)
        states = []
        for handle in pending:
            try:
                states.append(self.check_xfer_state(handle))
            except (
                nixlBind.nixlShutDownError,
                nixlBind.nixlForkedError,
                nixlBind.nixlInvalidParamError,
            ):
                raise  # not the transfer's failure
            except Exception:
                states.append("ERR")
        return states

    def cancel_xfer(self, handle: nixl_xfer_handle) -> None:
        """Asks a transfer to stop. It has when check_xfer_state() raises nixlCancelledError."""
        handle._agent.cancelXferReq(handle._handle)

    def quiesce_xfer(self, handle: nixl_xfer_handle, timeout: float = 1.0) -> None:
        """Cancels, and returns once no byte can land any more; else nixlNotQuiescedError."""
        handle._agent.quiesceXferReq(handle._handle, timeout)

    def piece_status(self, handle: nixl_xfer_handle) -> nixl_piece_status:
        """How many pieces and bytes of a transfer are done, and the status of each piece."""
        return nixl_piece_status(*handle._agent.getPieceStatus(handle._handle))

    def explain(self, handle: nixl_xfer_handle) -> str:
        """Which path a transfer takes, and why not a better one; for people."""
        return handle._agent.explainXferReq(handle._handle)

    def estimate_xfer_cost(self, req_handle: nixl_xfer_handle) -> Tuple[int, int, str]:
        """Microseconds, their margin, and how they were found ("UNKNOWN": not at all)."""
        duration, margin, method = req_handle._agent.estimateXferCost(req_handle._handle)
        known = method == nixlBind.NIXL_COST_ANALYTICAL_BACKEND
        return duration, margin, "ANALYTICAL_BACKEND" if known else "UNKNOWN"

    def get_xfer_telemetry(self, handle: nixl_xfer_handle) -> nixlBind.nixlXferTelemetry:
        """Times and sizes of the last post. Needs ``capture_telemetry``."""
        return handle._agent.getXferTelemetry(handle._handle)

    def query_xfer_backend(self, handle: nixl_xfer_handle) -> str:
        """Name of the backend that a transfer uses."""
        number = handle._agent.queryXferBackend(handle._handle)
        for name, known in self.backends.items():
            if known == number:
                return name
        return handle._agent.backendName(number)

    def release_xfer_handle(self, handle: nixl_xfer_handle) -> None:
        """Gives a transfer back; one in flight is cancelled, and its notification is not sent."""
        handle.release()

    def release_dlist_handle(self, handle: nixl_prepped_dlist_handle) -> None:
        """Gives a prepared side back."""
        handle.release()

    # --- memory views ---------------------------------------------------------------------------

    def prep_mem_view(self, dlist: Any, *, backends: Optional[Sequence[str]] = None) -> int:
        """A view for transfers that a GPU starts. Raises nixlNotSupportedError here."""
        return self.agent.prepMemView(dlist, self._handles(backends or ()))

    def release_mem_view(self, mvh: int) -> None:
        """Gives a view back. Never raises."""
        self.agent.releaseMemView(mvh)

    # --- notifications --------------------------------------------------------------------------

    def get_new_notifs(self, backends: Sequence[str] = ()) -> Dict[str, List[bytes]]:
        """Messages that came since the last collection, by sender."""
        return self.agent.getNotifs({}, self._handles(backends))

    def update_notifs(self, backends: Sequence[str] = ()) -> Dict[str, List[bytes]]:
        """Adds new messages to ``self.notifs``, and returns it."""
        self.notifs = self.agent.getNotifs(self.notifs, self._handles(backends))
        return self.notifs

    def check_remote_xfer_done(
        self,
        remote_agent_name: Name,
        lookup_tag: bytes,
        backends: Sequence[str] = (),
        tag_is_prefix: bool = True,
    ) -> bool:
        """Whether a peer sent a message that starts with (or contains) the tag; takes that one."""
        self.update_notifs(backends)
        if isinstance(remote_agent_name, bytes):
            remote_agent_name = remote_agent_name.decode("utf-8", "surrogateescape")
        messages = self.notifs.get(remote_agent_name, [])
        for i, message in enumerate(messages):
            if message.startswith(lookup_tag) if tag_is_prefix else lookup_tag in message:
                del messages[i]
                return True
        return False

    def send_notif(
        self, remote_agent_name: Name, notif_msg: Message, backend: Optional[str] = None
    ) -> None:
        """Sends a message that belongs to no transfer."""
        handles = [] if backend is None else [self.backends[backend]]
        self.agent.genNotif(remote_agent_name, notif_msg, handles)

    def events(self) -> List[nixl_event]:
        """What happened since the last call: peers that came or went, transfers that failed."""
        return [nixl_event(*event) for event in self.agent.getEvents()]

    # --- metadata -------------------------------------------------------------------------------

    def get_agent_metadata(self) -> bytes:
        """Everything that a peer needs to reach this agent. Secret: it opens registered memory."""
        return self.agent.getLocalMD()

    def get_partial_agent_metadata(
        self,
        descs: nixlBind.nixlRegDList,
        inc_conn_info: bool = False,
        backends: Sequence[str] = (),
    ) -> bytes:
        """The same for some registrations; for none, how to connect."""
        return self.agent.getLocalPartialMD(descs, inc_conn_info, self._handles(backends))

    def add_remote_agent(self, metadata: Message) -> bytes:
        """Loads a peer's metadata, again if need be. Returns its name, good for every call."""
        return self.agent.loadRemoteMD(metadata)

    def remove_remote_agent(self, agent: Name) -> None:
        """Forgets a peer. One that is not known is fine."""
        self.agent.invalidateRemoteMD(agent)

    def send_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Gives our metadata to a listener, or to the central store. Returns at once."""
        self.agent.sendLocalMD(ip_addr, port)

    def send_partial_agent_metadata(
        self,
        descs: nixlBind.nixlRegDList,
        inc_conn_info: bool = False,
        backends: Sequence[str] = (),
        ip_addr: str = "",
        port: int = DEFAULT_COMM_PORT,
        label: str = "",
    ) -> None:
        """Gives metadata of some registrations. A central store needs a label for them."""
        self.agent.sendLocalPartialMD(
            descs, inc_conn_info, self._handles(backends), ip_addr, port, label
        )

    def fetch_remote_metadata(
        self, remote_agent: Name, ip_addr: str = "", port: int = DEFAULT_COMM_PORT, label: str = ""
    ) -> None:
        """Asks a listener or the central store. Returns at once; poll check_remote_metadata()."""
        self.agent.fetchRemoteMD(remote_agent, ip_addr, port, label)

    def invalidate_local_metadata(self, ip_addr: str = "", port: int = DEFAULT_COMM_PORT) -> None:
        """Takes our metadata back, from a peer or the central store."""
        self.agent.invalidateLocalMD(ip_addr, port)

    def check_remote_metadata(
        self, agent: Name, descs: Optional[nixlBind.nixlXferDList] = None
    ) -> bool:
        """Whether a peer is known and, if there are ranges, whether one backend covers them all."""
        if descs is None:
            descs = nixlBind.nixlXferDList(nixlBind.DRAM_SEG)
        return self.agent.checkRemoteMD(agent, descs) is _SUCCESS

    def listen_port(self) -> int:
        """Port of our metadata listener; 0 when there is none."""
        return self.agent.listenPort()

    def completion_fd(self) -> int:
        """A descriptor that becomes readable when a transfer ended or a message came."""
        return self.agent.completionFd()
