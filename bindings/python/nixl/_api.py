"""Agents that move memory: register it, meet peers, make transfers, post and poll them.

The interface is the one that inference engines in the field use; names and strings are theirs.
Below it lies ``nixl._bindings``, which talks to the library.
"""

from __future__ import annotations

import enum
import operator
import os
import pickle
import sys
from collections import namedtuple

from nixl import _bindings
from nixl.logging import get_logger

nixlBind = _bindings  # as programs import it from here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import (
        Any,
        AsyncIterator,
        Dict,
        Iterable,
        List,
        NamedTuple,
        Optional,
        Sequence,
        Tuple,
        TypeVar,
        Union,
        overload,
    )

    import numpy as np

    Name = Union[str, bytes]
    Message = Union[str, bytes, bytearray]
    _H = TypeVar("_H", bound="_handle")

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

_plain = nixlBind._plain

# What a handle belonged to went with its agent, or is the parent process's.
_GONE = (nixlBind.nixlShutDownError, nixlBind.nixlForkedError)

_DEFAULT_BACKENDS = ("UCX",)
_ALL_BACKENDS: List[int] = []  # none is named: all that fit. Never changed.

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
        backends: Iterable[str] = _DEFAULT_BACKENDS,
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
        # The very list that was given: programs add to theirs afterwards.
        self.backends: Any = list(backends) if backends is _DEFAULT_BACKENDS else backends
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

    # These are made for every transfer: what they do is written out rather than shared by calls.
    __slots__ = ("_handle", "_agent", "_released", "_owners")

    if TYPE_CHECKING:
        _agent: nixlBind.nixlAgent
        _handle: int
        _released: bool
        _owners: Any

    def release(self) -> None:
        """Gives the handle back. Again does nothing."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}(0x{self._handle:x}, released={self._released})"

    def __reduce__(self) -> Any:
        # Two owners of one number would give it back twice.
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled")

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __del__(self) -> None:
        try:
            if not self._released:
                self.release()
        except Exception:
            pass  # an interpreter that ends, or a process that was forked


class nixl_prepped_dlist_handle(_handle):
    """One side of transfers to come. May be released as soon as the transfers are made."""

    __slots__ = ("_read_only",)

    def __init__(
        self,
        agent: nixlBind.nixlAgent,
        handle: int,
        owners: Any = None,  # whose memory this refers to: alive as long as this is
        read_only: bool = False,
    ) -> None:
        self._handle = handle
        self._agent = agent
        self._released = False
        self._owners = owners
        self._read_only = read_only

    def release(self) -> None:
        """Gives the handle back. Again does nothing."""
        if not self._released:
            try:
                self._agent.releasedDlistH(self._handle)
            except _GONE:
                pass
            self._released = True
            self._owners = None


class nixl_xfer_handle(_handle):
    """A transfer, to be posted any number of times. Releasing one in flight cancels it."""

    __slots__ = ()

    def __init__(self, agent: nixlBind.nixlAgent, handle: int, owners: Any = None) -> None:
        self._handle = handle
        self._agent = agent
        self._released = False
        self._owners = owners

    def release(self) -> None:
        """Gives the handle back. Again does nothing."""
        if not self._released:
            try:
                self._agent.releaseXferReq(self._handle)
            except _GONE:
                pass
            self._released = True
            self._owners = None

    def cancel(self) -> None:
        """Asks the transfer to stop, see nixl_agent.cancel_xfer()."""
        self._agent.cancelXferReq(self._handle)

    def quiesce(self, timeout: float = 1.0) -> None:
        """Cancels, and returns once no byte can land any more, see nixl_agent.quiesce_xfer()."""
        self._agent.quiesceXferReq(self._handle, timeout)


if TYPE_CHECKING:

    class nixl_event(NamedTuple):
        kind: str  # "PEER_UP", "TRANSFER_FAILED", ...
        peer: str
        incarnation: str  # 32 hexadecimal digits; "" where unknown
        transfer: int  # the handle's number; 0: not about a transfer
        code: nixlBind.nixl_status_t
        text: str
        message: bytes  # "REMOTE_FAILURE": the notification that will not come

    class nixl_piece_status(NamedTuple):
        pieces: int  # after merging
        done: int
        failed: int
        bytes_done: int
        status: List[int]  # one of nixl_status_t for each piece

else:
    nixl_event = namedtuple(
        "nixl_event", "kind peer incarnation transfer code text message", module=__name__
    )
    nixl_event.__doc__ = "What happened without being asked for, see nixl_agent.events()."
    nixl_piece_status = namedtuple(
        "nixl_piece_status", "pieces done failed bytes_done status", module=__name__
    )
    nixl_piece_status.__doc__ = "How far a transfer got, see nixl_agent.piece_status()."


class _registration:
    """Memory that is registered as long as a ``with`` block lasts."""

    __slots__ = ("_agent", "_descs", "_backends")

    def __init__(
        self, agent: nixl_agent, descs: nixlBind.nixlRegDList, backends: Sequence[str]
    ) -> None:
        self._agent = agent
        self._descs = descs
        self._backends = backends

    def __enter__(self) -> nixlBind.nixlRegDList:
        return self._descs

    def __exit__(self, *exc: object) -> None:
        try:
            self._agent.deregister_memory(self._descs, self._backends)
        except _GONE:
            pass


def _class_of(module: str, name: str) -> Any:
    """A class of a module that somebody else imported, for isinstance(); () when nobody did."""
    return getattr(sys.modules.get(module), name, ())


def _exports(memory: Any) -> bool:
    """Whether an object speaks DLPack, as arrays and tensors of most libraries do."""
    return hasattr(type(memory), "__dlpack__") and hasattr(type(memory), "__dlpack_device__")


def _on_gpu(memory: Any) -> bool:
    """Whether an object has CUDA's array interface, as Numba's arrays do."""
    return hasattr(type(memory), "__cuda_array_interface__")


def _why_no_plugin_files() -> str:
    """Why none of the plugins that should lie in files was found; empty where one was."""
    folder, problem, missing = nixlBind._plugin_search()
    if not missing:
        return ""
    if problem:
        return problem
    if any(name.startswith("libplugin_") for name in os.listdir(folder)):
        return ""
    return (
        f"{folder} has no file libplugin_*.so; unset NIXL_PLUGIN_DIR, or let it name the folder "
        "that has them"
    )


# DLPack's kinds of devices that the processor can reach: memory of its own, and pinned for GPUs.
_HOST_DEVICES = (1, 3, 11)
_GPU_DEVICES = (2, 10, 13)  # CUDA, ROCm, CUDA managed


class _Unusable(TypeError):
    """No descriptors can be made of what the user gave; the text says why."""


def _refuse_to_write(operation: str) -> None:
    side = "local" if operation == "READ" else "remote"
    raise ValueError(
        f"a {operation} writes to the {side} side, and some of the memory there is read-only; give "
        "writable arrays"
    )


def _wants_all(mode: str) -> bool:
    if mode not in ("all", "any"):
        raise ValueError(f'mode must be "all" or "any", not {mode!r}')
    return mode == "all"


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
        native.useProgThread = conf.enable_pthread
        native.useListenThread = conf.enable_listen
        native.listenPort = operator.index(conf.port)
        native.captureTelemetry = conf.capture_telemetry
        native.numThreads = min(max(0, operator.index(conf.num_threads)), 0xFFFFFFFF)
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
        nothing = _why_no_plugin_files()
        if nothing or not self.plugin_list:
            raise RuntimeError(
                "no backend plugin was found, so nothing can be moved: "
                + (nothing or "this build of nixl has none")
            )
        for name in self.plugin_list if instantiate_all else conf.backends:
            params = {}
            if conf.num_threads > 0 and name in _THREADS_OPTION:
                params[_THREADS_OPTION[name]] = str(conf.num_threads)
            params.update(self._backend_params.get(name, {}))
            try:
                self.create_backend(name, params)
            except nixlBind.nixlNotFoundError as error:
                if name in self.plugin_list and not instantiate_all:
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
        if backends == ():
            return _ALL_BACKENDS
        return [self.backends[name] for name in backends]

    # --- plugins and backends -------------------------------------------------------------------

    def _look_at_plugin(self, backend: str) -> None:
        params, mems = self.agent.getPluginParams(backend)
        self.plugin_b_options[backend] = params
        self.plugin_mem_types[backend] = mems

    def get_plugin_list(self) -> List[str]:
        """Names of the plugins found when the agent was made, loadable or not."""
        return self.plugin_list

    def get_plugin_mem_types(self, backend: str) -> List[str]:
        """Kinds of memory of a plugin, like ``"DRAM_SEG"``; none when it cannot be loaded."""
        if backend not in self.plugin_mem_types:
            try:
                self._look_at_plugin(backend)
            except Exception as error:
                logger.warning("the memory kinds of plugin %s are not known: %s", backend, error)
                return []
        return self.plugin_mem_types[backend]

    def get_plugin_params(self, backend: str) -> Dict[str, str]:
        """Options of a plugin with their defaults; none when it cannot be loaded."""
        if backend not in self.plugin_b_options:
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
        own = {} if initParams is None else initParams
        params = {**self._backend_params.get(backend, {}), **own}
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
            integers, both with ``mem_type``; or contiguous memory itself: a tensor, a NumPy array,
            an object that speaks DLPack or has CUDA's array interface, or a list of one of these.
            Lengths are bytes.
        :param mem_type: ``"DRAM"``, ``"VRAM"``, ``"FILE"``, ``"BLOCK"`` or ``"OBJ"``; memory
            itself knows its kind.
        :return: None, and a line in the log, for what it cannot be made of. The list keeps memory
            that was given itself alive, and so does every handle that is made of it.
        """
        try:
            return self._xfer_list(descs, mem_type)
        except _Unusable as why:
            logger.error("%s", why)
            return None

    def get_reg_descs(
        self, descs: Any, mem_type: Optional[str] = None
    ) -> Optional[nixlBind.nixlRegDList]:
        """What is to be registered, as a list of the library.

        Like get_xfer_descs(), but tuples have a fourth member: text or bytes for the backend, often
        empty.
        """
        try:
            return self._reg_list(descs, mem_type)
        except _Unusable as why:
            logger.error("%s", why)
            return None

    def get_remote_descs(
        self, descs: Any, mem_type: Optional[str] = None
    ) -> Optional[nixlBind.nixlRemoteDList]:
        """Ranges of several peers for a memory view: tuples (address, length, device, peer)."""
        if isinstance(descs, nixlBind.nixlRemoteDList):
            return descs
        first = descs[0]
        if isinstance(first, tuple) and len(first) == 4 and mem_type is not None:
            return nixlBind.nixlRemoteDList(self.nixl_mems[mem_type], descs)
        logger.error("a remote list is made of tuples of 4 members and a mem_type")
        return None

    def _xfer_list(self, descs: Any, mem_type: Optional[str]) -> nixlBind.nixlXferDList:
        if isinstance(descs, nixlBind.nixlRegDList):
            raise _Unusable("a registration list is no transfer list; its trim() gives one")
        made: nixlBind.nixlXferDList = self._as_list(nixlBind.nixlXferDList, 3, descs, mem_type)
        return made

    def _reg_list(self, descs: Any, mem_type: Optional[str]) -> nixlBind.nixlRegDList:
        if isinstance(descs, nixlBind.nixlXferDList):
            raise _Unusable(
                "a transfer list is no registration list: it lacks the meta information"
            )
        made: nixlBind.nixlRegDList = self._as_list(nixlBind.nixlRegDList, 4, descs, mem_type)
        return made

    def _as_list(self, cls: Any, members: int, descs: Any, mem_type: Optional[str]) -> Any:
        if isinstance(descs, cls):
            return descs
        arrays, tensors = _class_of("numpy", "ndarray"), _class_of("torch", "Tensor")
        if _exports(descs) and not isinstance(descs, (arrays, tensors)):
            return self._of_exporters(cls, [descs], mem_type)
        if _on_gpu(descs) and not isinstance(descs, tensors):
            return self._of_gpu_arrays(cls, [descs], mem_type)
        first = descs[0]

        if isinstance(first, tuple):
            if mem_type is None:
                raise _Unusable("tuples need a mem_type beside them")
            if len(first) != members:
                raise _Unusable(
                    f"descriptor 0 has {len(first)} members; {cls.__name__} takes tuples of "
                    f"{members}" + (" (register_memory() takes 3 as well)" if members == 4 else "")
                )
            return cls(self.nixl_mems[mem_type], descs)

        if isinstance(descs, arrays):
            table = descs.ndim == 2 and descs.shape[1] == 3
            if mem_type is not None and table:
                return cls(self.nixl_mems[mem_type], descs)
            if mem_type is None and not (
                table and descs.dtype.kind in "iu" and descs.itemsize == 8
            ):
                return self._of_arrays(cls, [descs])
            raise _Unusable(
                "an array is memory to move, or with a mem_type an N x 3 table of descriptors; "
                f"this one has shape {descs.shape} and type {descs.dtype}"
            )
        if isinstance(descs, tensors):
            return self._of_tensors(cls, [descs])
        if isinstance(first, tensors):
            return self._of_tensors(cls, descs)
        if isinstance(first, arrays):
            if mem_type is None or self.nixl_mems[mem_type] is nixlBind.DRAM_SEG:
                return self._of_arrays(cls, descs)
            raise _Unusable(f"arrays are host memory, not {mem_type}")
        if _exports(first):
            return self._of_exporters(cls, descs, mem_type)
        if _on_gpu(first):
            return self._of_gpu_arrays(cls, descs, mem_type)
        raise _Unusable(f"a {type(descs).__name__} holds no descriptors that {cls.__name__} takes")

    def _of_memory(
        self, cls: Any, kind: Any, ranges: List[Any], owners: Sequence[Any], read_only: bool = False
    ) -> Any:
        if cls is nixlBind.nixlRegDList:
            ranges = [(*r, b"") for r in ranges]
        descs = cls(kind, ranges)
        descs._owners = list(owners)
        descs._read_only = read_only
        return descs

    def _of_tensors(self, cls: Any, tensors: Sequence[Any]) -> Any:
        device = tensors[0].get_device()
        ranges = []
        for tensor in tensors:
            if not tensor.is_contiguous():
                raise _Unusable(
                    "a tensor that is not contiguous cannot be moved; its contiguous() gives a copy"
                )
            if tensor.get_device() != device:
                raise _Unusable("tensors of one list must be on one device")
            ranges.append(
                (tensor.data_ptr(), tensor.numel() * tensor.element_size(), max(0, device))
            )
        kind = nixlBind.DRAM_SEG if device == -1 else nixlBind.VRAM_SEG
        return self._of_memory(cls, kind, ranges, tensors)

    def _of_arrays(self, cls: Any, arrays: Sequence[np.ndarray[Any, Any]]) -> Any:
        ranges = []
        read_only = False
        for array in arrays:
            if not array.flags["C_CONTIGUOUS"]:
                raise _Unusable(
                    "an array that is not C-contiguous cannot be moved; "
                    "numpy.ascontiguousarray() gives a copy"
                )
            address, fixed = array.__array_interface__["data"]
            ranges.append((address, array.nbytes, 0))
            read_only = read_only or fixed
        return self._of_memory(cls, nixlBind.DRAM_SEG, ranges, arrays, read_only)

    def _of_exporters(self, cls: Any, exporters: Sequence[Any], mem_type: Optional[str]) -> Any:
        ranges = []
        owners = []
        kinds = set()
        read_only = False
        for exporter in exporters:
            name = type(exporter).__name__
            if not _exports(exporter):
                raise _Unusable(f"a {name} does not speak DLPack, as others of the list do")
            where = int(exporter.__dlpack_device__()[0])
            if where not in _HOST_DEVICES + _GPU_DEVICES:
                raise _Unusable(
                    f"a {name} lies on a device of DLPack's kind {where}, which is not known here"
                )
            facts = nixlBind._dlpack_memory(exporter)
            address, length, _, device, contiguous, fixed, keeper = facts
            if not contiguous:
                raise _Unusable(f"a {name} that is not contiguous cannot be moved; copy it first")
            kinds.add(nixlBind.DRAM_SEG if where in _HOST_DEVICES else nixlBind.VRAM_SEG)
            ranges.append((address, length, 0 if where in _HOST_DEVICES else device))
            owners.append((exporter, keeper))
            read_only = read_only or fixed
        if len(kinds) != 1:
            raise _Unusable("memory of one list must all be the host's or all be GPUs'")
        kind = kinds.pop()
        if mem_type is not None and self.nixl_mems[mem_type] is not kind:
            raise _Unusable(f"this memory is {kind.name[:4]}, not {mem_type}")
        return self._of_memory(cls, kind, ranges, owners, read_only)

    def _of_gpu_arrays(self, cls: Any, arrays: Sequence[Any], mem_type: Optional[str]) -> Any:
        from nixl import _gpu

        ranges = []
        read_only = False
        if mem_type is not None and self.nixl_mems[mem_type] is not nixlBind.VRAM_SEG:
            raise _Unusable(f"memory of a GPU is VRAM, not {mem_type}")
        for array in arrays:
            name = type(array).__name__
            if not _on_gpu(array):
                raise _Unusable(f"a {name} is no GPU's array, as others of the list are")
            facts = array.__cuda_array_interface__
            address, fixed = facts["data"]
            length = int(facts["typestr"][2:])  # of an element, in bytes
            stride = facts.get("strides")
            for size, step in zip(facts["shape"][::-1], (stride or facts["shape"])[::-1]):
                if stride and size > 1 and step != length:
                    raise _Unusable(
                        f"a {name} that is not contiguous cannot be moved; copy it first"
                    )
                length *= size
            device = _gpu.device_of(address)
            if device is None:
                raise _Unusable(
                    f"a {name} says that it is a GPU's, and the driver knows of no memory at "
                    f"{address:#x}"
                )
            ranges.append((address, length, device))
            read_only = read_only or fixed
        return self._of_memory(cls, nixlBind.VRAM_SEG, ranges, list(arrays), read_only)

    def get_serialized_descs(self, descs: Any) -> bytes:
        """A list as bytes, which other agents read, upstream's too."""
        return pickle.dumps(descs)

    def deserialize_descs(self, serialized_descs: bytes) -> Any:
        """The list of which get_serialized_descs() made these bytes, here or at a peer.

        It is a pickle, but only the lists' own classes are made of it: a peer cannot run anything
        here.

        :raises pickle.UnpicklingError: the bytes are something else, or name other classes.
        """
        from nixl import _pickles

        return _pickles.load(serialized_descs)

    # --- registration ---------------------------------------------------------------------------

    def register_memory(
        self, reg_list: Any, mem_type: Optional[str] = None, backends: Sequence[str] = ()
    ) -> nixlBind.nixlRegDList:
        """Makes memory known to the backends, all that take its kind or the named ones.

        :param reg_list: what get_reg_descs() takes, and tuples without meta information.
        :param backends: names; none for all that take this kind of memory.
        :return: the list to deregister. Arrays and tensors live on until then.
        :raises TypeError: no descriptors can be made of it; the text says why.
        :raises nixlNotFoundError: no backend takes this kind of memory.
        :raises nixlBackendError: none of those that take it could register it.
        """
        if isinstance(reg_list, list) and mem_type is not None:
            first = reg_list[0]
            if isinstance(first, tuple) and len(first) == 3:
                reg_list = [(*r, b"") if len(r) == 3 else r for r in reg_list]
        descs = self._reg_list(reg_list, mem_type)
        self.agent.registerMem(descs, self._handles(backends))
        if descs._owners is not None:
            for key, owner in zip(self._keys(descs), descs._owners):
                self._kept.setdefault(key, []).append(owner)
        return descs

    def registered(
        self, reg_list: Any, mem_type: Optional[str] = None, backends: Sequence[str] = ()
    ) -> _registration:
        """register_memory() for a ``with`` block, which gives the list and ends with taking back.

        Handles of transfers with that memory are released, or at least quiesced, before the end.
        """
        descs = self.register_memory(reg_list, mem_type, backends)
        return _registration(self, descs, backends)

    def deregister_memory(
        self,
        dereg_list: nixlBind.nixlRegDList,
        backends: Sequence[str] = (),
        require_quiet: bool = False,
    ) -> None:
        """Takes registrations back; each range must match one, or nothing is removed.

        What is in flight there is ended, and peers that use the memory through a transport that
        cannot refuse them are asked to let go of it: that takes a round trip, ``NIXL_QUIESCE_MS``
        (1000) at most.

        :param require_quiet: raise when a peer did not answer and may still write to the memory,
            which is not registered any more all the same. Else that is a warning in the log and an
            event ``PEER_NOT_QUIESCED``.
        :raises nixlNotQuiescedError: see there; or a transfer of this agent's own did not end, and
            then the memory stays registered.
        """
        self.agent.deregisterMem(dereg_list, self._handles(backends), require_quiet)
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
        """Facts about stored things, such as their size: one entry each, None where is none."""
        descs = self._reg_list(reg_list, mem_type)
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
                return nixl_prepped_dlist_handle(self.agent, side, self._kept)
        descs = self._xfer_list(xfer_list, mem_type)
        side = self.agent.prepXferDlist(agent_name, descs, handles)
        return nixl_prepped_dlist_handle(
            self.agent, side, (self._kept, descs._owners), descs._read_only
        )

    def make_prepped_xfer(
        self,
        operation: str,
        local_xfer_side: nixl_prepped_dlist_handle,
        local_indices: Union[Sequence[int], np.ndarray[Any, Any]],
        remote_xfer_side: nixl_prepped_dlist_handle,
        remote_indices: Union[Sequence[int], np.ndarray[Any, Any]],
        notif_msg: Message = b"",
        backends: Sequence[str] = (),
        skip_desc_merge: bool = False,
        timeout: Optional[float] = None,
    ) -> nixl_xfer_handle:
        """A transfer between equally many ranges of two prepared sides, chosen by position.

        :param operation: ``"READ"`` copies from the remote to the local side, ``"WRITE"`` the other
            way.
        :param local_indices: N positions, of any integer type; int32 arrays are read in place.
        :param remote_indices: as many of the other side; repeating is fine on either.
        :param notif_msg: sent to the peer behind the data of each post; empty for none.
        :param backends: names of those that may carry it; none for all.
        :param skip_desc_merge: neighbours stay descriptors of their own.
        :param timeout: seconds that each post may take, else it fails with nixlTimeoutError and is
            cancelled; None for any time.
        :raises nixlInvalidParamError: an index that is none, counts or lengths that differ, sides
            that are swapped or have no backend in common.
        :raises nixlNotFoundError: the peer was removed or loaded anew since its side was prepared.
        :raises ValueError: memory that would be written is known to be read-only.
        """
        op = self.nixl_ops[operation]
        if (local_xfer_side if operation == "READ" else remote_xfer_side)._read_only:
            _refuse_to_write(operation)
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
            timeout,
        )
        return nixl_xfer_handle(agent, request, (local_xfer_side._owners, remote_xfer_side._owners))

    def initialize_xfer(
        self,
        operation: str,
        local_descs: nixlBind.nixlXferDList,
        remote_descs: nixlBind.nixlXferDList,
        remote_agent: Name,
        notif_msg: Message = b"",
        backends: Sequence[str] = (),
        timeout: Optional[float] = None,
    ) -> nixl_xfer_handle:
        """A transfer of two lists, pairwise.

        Registration lists are taken as well; then ranges are split where the other side has a
        boundary, so that only the bytes on both sides must be equally many. The other parameters
        and what is raised are those of make_prepped_xfer().
        """
        op = self.nixl_ops[operation]
        owners: Any = self._kept
        if not _plain(local_descs, remote_descs):
            if getattr(local_descs if operation == "READ" else remote_descs, "_read_only", False):
                _refuse_to_write(operation)
            registered = nixlBind.nixlRegDList
            if isinstance(local_descs, registered) or isinstance(remote_descs, registered):
                local_descs, remote_descs = (
                    d.trim() if isinstance(d, registered) else d
                    for d in (local_descs, remote_descs)
                )
                local_descs, remote_descs = nixlBind._split_to_match(local_descs, remote_descs)
            owners = [getattr(descs, "_owners", None) for descs in (local_descs, remote_descs)]
            owners.append(self._kept)
        agent = self.agent
        request = agent.createXferReq(
            op, local_descs, remote_descs, remote_agent, notif_msg, self._handles(backends), timeout
        )
        return nixl_xfer_handle(agent, request, owners)

    def transfer(
        self, handle: nixl_xfer_handle, notif_msg: Message = b"", timeout: Optional[float] = None
    ) -> str:
        """Posts a transfer, for the first time or again.

        :param notif_msg: if not empty, sent after the data from now on, instead of the former one.
        :param timeout: seconds that this post may take, else it fails with nixlTimeoutError and is
            cancelled; None for what the transfer was made with.
        :return: ``"DONE"`` or ``"PROC"``.
        :raises nixlRepostActiveError: it is still in flight, and goes on.
        :raises nixlNotFoundError: the peer was removed, or memory deregistered, since it was made.
        """
        status = handle._agent.postXferReq(handle._handle, notif_msg, timeout)
        return "DONE" if status is _SUCCESS else "PROC" if status is _IN_PROG else "ERR"

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        """``"DONE"`` or ``"PROC"``; never blocks. Raises what made the transfer fail."""
        status = handle._agent.getXferStatus(handle._handle)
        return "DONE" if status is _SUCCESS else "PROC" if status is _IN_PROG else "ERR"

    async def transfer_async(
        self, handle: nixl_xfer_handle, notif_msg: Message = b"", timeout: Optional[float] = None
    ) -> str:
        """Posts a transfer and gives ``"DONE"`` once it is done; for asyncio.

        Parameters and errors are those of transfer() and check_xfer_state(). Cancelling the task
        cancels the transfer: the handle may be released at once, its memory may be used for
        something else after quiesce_xfer().
        """
        from nixl import _async

        return await _async.transfer(self, handle, notif_msg, timeout)

    if TYPE_CHECKING:

        @overload
        async def wait_async(
            self, handles: nixl_xfer_handle, timeout: Optional[float] = None, mode: str = "all"
        ) -> str: ...

        @overload
        async def wait_async(
            self,
            handles: Iterable[nixl_xfer_handle],
            timeout: Optional[float] = None,
            mode: str = "all",
        ) -> List[str]: ...

    async def wait_async(
        self,
        handles: Union[nixl_xfer_handle, Iterable[nixl_xfer_handle]],
        timeout: Optional[float] = None,
        mode: str = "all",
    ) -> Union[str, List[str]]:
        """What wait() does, while the event loop goes on. Cancelling it cancels no transfer."""
        from nixl import _async

        states: Union[str, List[str]] = await _async.wait(self, handles, timeout, mode)
        return states

    async def quiesce_async(self, handle: nixl_xfer_handle, timeout: float = 1.0) -> None:
        """What quiesce_xfer() does, while the event loop goes on."""
        from nixl import _async

        await _async.quiesce(handle, timeout)

    if TYPE_CHECKING:

        @overload
        def wait(
            self, handles: nixl_xfer_handle, timeout: Optional[float] = None, mode: str = "all"
        ) -> str: ...

        @overload
        def wait(
            self,
            handles: Sequence[nixl_xfer_handle],
            timeout: Optional[float] = None,
            mode: str = "all",
        ) -> List[str]: ...

    def wait(
        self,
        handles: Union[nixl_xfer_handle, Sequence[nixl_xfer_handle]],
        timeout: Optional[float] = None,
        mode: str = "all",
    ) -> Union[str, List[str]]:
        """Waits until transfers ended, or `timeout` seconds passed. Sleeps where it can.

        One handle gives its state, like check_xfer_state(). Several give the list of their states,
        in which a failed one is ``"ERR"``; ``mode="any"`` returns as soon as one has ended. Signals
        are handled meanwhile, so that Ctrl-C gets through.
        """
        wait_all = _wants_all(mode)
        pending = [handles] if isinstance(handles, nixl_xfer_handle) else list(handles)
        agent = pending[0]._agent if pending else self.agent
        agent.waitXferReqs([h._handle for h in pending], wait_all, timeout)
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

    async def next_notifs(
        self, timeout: Optional[float] = None, backends: Sequence[str] = ()
    ) -> Dict[str, List[bytes]]:
        """What get_new_notifs() gives, but waits for the first message; for asyncio.

        There is one queue: each message goes to whoever asks first, here or by get_new_notifs(),
        update_notifs() or check_remote_xfer_done(), in whatever thread. A task that is cancelled
        has taken none.

        :param timeout: seconds; nothing is in the result when they passed. None for any time.
        """
        from nixl import _async

        return await _async.next_notifs(self, timeout, backends)

    async def iter_notifs(
        self, backends: Sequence[str] = ()
    ) -> AsyncIterator[Dict[str, List[bytes]]]:
        """``async for`` over what next_notifs() gives, until the agent is closed (which raises)."""
        while True:
            yield await self.next_notifs(None, backends)

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
