# Types of nixl._bindings. Arguments before a "/" are positional only, as in upstream.
# Handles are numbers; `backends` are handles of createBackend(), none for all that fit.

import datetime
import enum
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
    overload,
)

import numpy as np

_Name = Union[str, bytes]
_Message = Union[str, bytes, bytearray]
_Meta = Union[str, bytes, bytearray]
_Range = Tuple[int, int, int]
_Array = np.ndarray[Any, Any]
_Indices = Union[Iterable[int], _Array]

__version__: str
NIXL_INIT_AGENT: str
DEFAULT_COMM_PORT: int
HAVE_UCX_GPU_DEVICE_API: bool

class nixl_mem_t(enum.IntEnum):
    DRAM_SEG = 0
    VRAM_SEG = 1
    BLK_SEG = 2
    OBJ_SEG = 3
    FILE_SEG = 4

DRAM_SEG: nixl_mem_t
VRAM_SEG: nixl_mem_t
BLK_SEG: nixl_mem_t
OBJ_SEG: nixl_mem_t
FILE_SEG: nixl_mem_t

class nixl_xfer_op_t(enum.IntEnum):
    NIXL_READ = 0
    NIXL_WRITE = 1

NIXL_READ: nixl_xfer_op_t
NIXL_WRITE: nixl_xfer_op_t

class nixl_status_t(enum.IntEnum):
    NIXL_IN_PROG = 1
    NIXL_SUCCESS = 0
    NIXL_ERR_NOT_POSTED = -1
    NIXL_ERR_INVALID_PARAM = -2
    NIXL_ERR_BACKEND = -3
    NIXL_ERR_NOT_FOUND = -4
    NIXL_ERR_MISMATCH = -5
    NIXL_ERR_NOT_ALLOWED = -6
    NIXL_ERR_REPOST_ACTIVE = -7
    NIXL_ERR_UNKNOWN = -8
    NIXL_ERR_NOT_SUPPORTED = -9
    NIXL_ERR_REMOTE_DISCONNECT = -10
    NIXL_ERR_CANCELED = -11
    NIXL_ERR_NO_TELEMETRY = -12
    NIXL_ERR_TIMEOUT = -20
    NIXL_ERR_STALLED = -21
    NIXL_ERR_PARTIAL = -22
    NIXL_ERR_NOT_QUIESCED = -23
    NIXL_ERR_LIMIT = -24
    NIXL_ERR_SHUT_DOWN = -25
    NIXL_ERR_FORKED = -26

NIXL_IN_PROG: nixl_status_t
NIXL_SUCCESS: nixl_status_t
NIXL_ERR_NOT_POSTED: nixl_status_t
NIXL_ERR_INVALID_PARAM: nixl_status_t
NIXL_ERR_BACKEND: nixl_status_t
NIXL_ERR_NOT_FOUND: nixl_status_t
NIXL_ERR_MISMATCH: nixl_status_t
NIXL_ERR_NOT_ALLOWED: nixl_status_t
NIXL_ERR_REPOST_ACTIVE: nixl_status_t
NIXL_ERR_UNKNOWN: nixl_status_t
NIXL_ERR_NOT_SUPPORTED: nixl_status_t
NIXL_ERR_REMOTE_DISCONNECT: nixl_status_t
NIXL_ERR_CANCELED: nixl_status_t
NIXL_ERR_NO_TELEMETRY: nixl_status_t
NIXL_ERR_TIMEOUT: nixl_status_t
NIXL_ERR_STALLED: nixl_status_t
NIXL_ERR_PARTIAL: nixl_status_t
NIXL_ERR_NOT_QUIESCED: nixl_status_t
NIXL_ERR_LIMIT: nixl_status_t
NIXL_ERR_SHUT_DOWN: nixl_status_t
NIXL_ERR_FORKED: nixl_status_t

class nixl_thread_sync_t(enum.IntEnum):
    NIXL_THREAD_SYNC_NONE = 0
    NIXL_THREAD_SYNC_STRICT = 1
    NIXL_THREAD_SYNC_RW = 2
    NIXL_THREAD_SYNC_DEFAULT = 0

NIXL_THREAD_SYNC_NONE: nixl_thread_sync_t
NIXL_THREAD_SYNC_STRICT: nixl_thread_sync_t
NIXL_THREAD_SYNC_RW: nixl_thread_sync_t
NIXL_THREAD_SYNC_DEFAULT: nixl_thread_sync_t

class nixl_cost_t(enum.IntEnum):
    NIXL_COST_ANALYTICAL_BACKEND = 0
    NIXL_COST_UNKNOWN = 1

NIXL_COST_ANALYTICAL_BACKEND: nixl_cost_t
NIXL_COST_UNKNOWN: nixl_cost_t

class nixlNotPostedError(Exception):
    code: nixl_status_t
    sentence: str

class nixlInvalidParamError(Exception):
    code: nixl_status_t
    sentence: str

class nixlBackendError(Exception):
    code: nixl_status_t
    sentence: str

class nixlNotFoundError(Exception):
    code: nixl_status_t
    sentence: str

class nixlMismatchError(Exception):
    code: nixl_status_t
    sentence: str

class nixlNotAllowedError(Exception):
    code: nixl_status_t
    sentence: str

class nixlRepostActiveError(Exception):
    code: nixl_status_t
    sentence: str

class nixlUnknownError(Exception):
    code: nixl_status_t
    sentence: str

class nixlNotSupportedError(Exception):
    code: nixl_status_t
    sentence: str

class nixlRemoteDisconnectError(Exception):
    code: nixl_status_t
    sentence: str

class nixlCancelledError(Exception):
    code: nixl_status_t
    sentence: str

class nixlNoTelemetryError(Exception):
    code: nixl_status_t
    sentence: str

class nixlTimeoutError(nixlBackendError, TimeoutError):
    code: nixl_status_t
    sentence: str

class nixlStalledError(nixlBackendError):
    code: nixl_status_t
    sentence: str

class nixlPartialError(nixlBackendError):
    code: nixl_status_t
    sentence: str

class nixlNotQuiescedError(nixlBackendError):
    code: nixl_status_t
    sentence: str

class nixlLimitError(nixlBackendError):
    code: nixl_status_t
    sentence: str

class nixlShutDownError(nixlBackendError):
    code: nixl_status_t
    sentence: str

class nixlForkedError(nixlBackendError):
    code: nixl_status_t
    sentence: str

class nixlXferDList:
    @overload
    def __init__(self, type: nixl_mem_t, init_size: int = 0) -> None: ...
    @overload
    def __init__(self, type: nixl_mem_t, descs: Union[List[_Range], _Array]) -> None: ...
    def getType(self) -> nixl_mem_t: ...
    def descCount(self) -> int: ...
    def isEmpty(self) -> bool: ...
    def clear(self) -> None: ...
    def print(self) -> None: ...
    def addDesc(self, desc: _Range, /) -> None: ...
    def append(self, desc: _Range, /) -> None: ...
    def remDesc(self, index: int, /) -> None: ...
    def __getitem__(self, index: int, /) -> _Range: ...
    def __setitem__(self, index: int, desc: _Range, /) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_Range]: ...
    def __bool__(self) -> bool: ...
    def index(self, desc: _Range, /) -> int: ...
    def __getstate__(self) -> bytes: ...
    def __setstate__(self, state: bytes, /) -> None: ...
    _owners: Optional[List[Any]]  # whose memory it is
    _read_only: bool  # some of it must not be written

class nixlRegDList:
    @overload
    def __init__(self, type: nixl_mem_t, init_size: int = 0) -> None: ...
    @overload
    def __init__(
        self, type: nixl_mem_t, descs: Union[List[Tuple[int, int, int, _Meta]], _Array]
    ) -> None: ...
    def getType(self) -> nixl_mem_t: ...
    def descCount(self) -> int: ...
    def isEmpty(self) -> bool: ...
    def clear(self) -> None: ...
    def print(self) -> None: ...
    def addDesc(self, desc: Tuple[int, int, int, _Meta], /) -> None: ...
    def append(self, desc: Tuple[int, int, int, _Meta], /) -> None: ...
    def remDesc(self, index: int, /) -> None: ...
    def __getitem__(self, index: int, /) -> Tuple[int, int, int, bytes]: ...
    def __setitem__(self, index: int, desc: Tuple[int, int, int, _Meta], /) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Tuple[int, int, int, bytes]]: ...
    def __bool__(self) -> bool: ...
    def index(self, desc: Tuple[int, int, int, _Meta], /) -> int: ...
    def __getstate__(self) -> bytes: ...
    def __setstate__(self, state: bytes, /) -> None: ...
    def trim(self) -> nixlXferDList: ...
    _owners: Optional[List[Any]]  # kept alive while registered
    _read_only: bool

class nixlRemoteDList:
    @overload
    def __init__(self, type: nixl_mem_t, init_size: int = 0) -> None: ...
    @overload
    def __init__(self, type: nixl_mem_t, descs: List[Tuple[int, int, int, _Name]]) -> None: ...
    def getType(self) -> nixl_mem_t: ...
    def descCount(self) -> int: ...
    def isEmpty(self) -> bool: ...
    def clear(self) -> None: ...
    def print(self) -> None: ...
    def addDesc(self, desc: Tuple[int, int, int, _Name], /) -> None: ...
    def append(self, desc: Tuple[int, int, int, _Name], /) -> None: ...
    def remDesc(self, index: int, /) -> None: ...
    def __getitem__(self, index: int, /) -> Tuple[int, int, int, str]: ...
    def __setitem__(self, index: int, desc: Tuple[int, int, int, _Name], /) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Tuple[int, int, int, str]]: ...
    def __bool__(self) -> bool: ...

class nixlAgentConfig:
    def __init__(
        self,
        useProgThread: bool = False,
        useListenThread: bool = False,
        listenPort: int = 8888,
        syncMode: nixl_thread_sync_t = ...,
        num_workers: int = 1,
        pthrDelay: int = 0,
        lthrDelay: int = 100000,
        captureTelemetry: bool = False,
        /,
    ) -> None: ...
    useProgThread: bool
    useListenThread: bool
    listenPort: int
    syncMode: nixl_thread_sync_t
    pthrDelay: int
    lthrDelay: int
    captureTelemetry: bool
    etcdWatchTimeout: datetime.timedelta
    useStore: Optional[bool]
    numThreads: int

class nixlXferTelemetry:
    def __init__(self) -> None: ...
    @property
    def startTime(self) -> int: ...
    @property
    def postDuration(self) -> int: ...
    @property
    def xferDuration(self) -> int: ...
    @property
    def totalBytes(self) -> int: ...
    @property
    def descCount(self) -> int: ...

class nixlAgent:
    def __init__(self, name: _Name, config: nixlAgentConfig) -> None: ...

    # Plugins and backends: options first, then kinds of memory.
    def getAvailPlugins(self) -> List[str]: ...
    def getPluginParams(self, name: _Name, /) -> Tuple[Dict[str, str], List[str]]: ...
    def getBackendParams(self, backend: int, /) -> Tuple[Dict[str, str], List[str]]: ...
    def createBackend(self, name: _Name, params: Dict[str, str], /) -> int: ...
    def backendName(self, backend: int, /) -> str: ...

    # Memory.
    def registerMem(self, descs: nixlRegDList, backends: Sequence[int] = ...) -> nixl_status_t: ...
    def deregisterMem(
        self,
        descs: nixlRegDList,
        backends: Sequence[int] = ...,
        require_quiet: bool = ...,
    ) -> nixl_status_t: ...
    def queryMem(self, descs: nixlRegDList, backend: int) -> List[Optional[Dict[str, str]]]: ...
    def prepMemView(
        self, dlist: Union[nixlXferDList, nixlRemoteDList], backends: Sequence[int] = ...
    ) -> int: ...
    def releaseMemView(self, mvh: int) -> None: ...

    # Sides.
    @overload
    def prepXferDlist(
        self, agent_name: _Name, descs: nixlXferDList, backend: Sequence[int] = ...
    ) -> int: ...
    @overload
    def prepXferDlist(self, descs: nixlXferDList, backend: Sequence[int] = ...) -> int: ...
    @overload
    def prepXferDlist(
        self,
        agent_name: _Name,
        mem_type: nixl_mem_t,
        descs: _Array,
        backend: Sequence[int] = ...,
    ) -> int: ...
    def releasedDlistH(self, side: int, /) -> nixl_status_t: ...

    # Transfers.
    def makeXferReq(
        self,
        operation: nixl_xfer_op_t,
        local_side: int,
        local_indices: _Indices,
        remote_side: int,
        remote_indices: _Indices,
        notif_msg: _Message = "",
        backend: Sequence[int] = ...,
        skip_desc_merg: bool = False,
        timeout: Optional[float] = None,
    ) -> int: ...
    def createXferReq(
        self,
        operation: nixl_xfer_op_t,
        local_descs: nixlXferDList,
        remote_descs: nixlXferDList,
        remote_agent: _Name,
        notif_msg: _Message = "",
        backend: Sequence[int] = ...,
        timeout: Optional[float] = None,
    ) -> int: ...
    def postXferReq(
        self, reqh: int, notif_msg: _Message = "", timeout: Optional[float] = None
    ) -> nixl_status_t: ...
    def getXferStatus(self, reqh: int, /) -> nixl_status_t: ...
    def getXferTelemetry(self, reqh: int) -> nixlXferTelemetry: ...
    def queryXferBackend(self, reqh: int, /) -> int: ...
    def releaseXferReq(self, reqh: int, /) -> nixl_status_t: ...
    def estimateXferCost(self, req_handle: int) -> Tuple[int, int, int]: ...
    def waitXferReqs(
        self, reqhs: Sequence[int], wait_all: bool = True, timeout: Optional[float] = None
    ) -> int: ...
    def countEndedXferReqs(self, reqhs: Sequence[int], /) -> int: ...
    def cancelXferReq(self, reqh: int, /) -> nixl_status_t: ...
    def quiesceXferReq(self, reqh: int, timeout: float, /) -> nixl_status_t: ...
    def explainXferReq(self, reqh: int, /) -> str: ...
    def getPieceStatus(self, reqh: int, /) -> Tuple[int, int, int, int, List[int]]: ...

    # Notifications and events.
    def getNotifs(
        self, notif_map: Mapping[str, Sequence[bytes]], backends: Sequence[int] = ...
    ) -> Dict[str, List[bytes]]: ...
    def hasNotifs(self) -> bool: ...
    def genNotif(
        self, remote_agent: _Name, msg: _Message, backends: Sequence[int] = ...
    ) -> nixl_status_t: ...
    def getEvents(self) -> List[Tuple[str, str, str, int, nixl_status_t, str, bytes]]: ...

    # Metadata.
    def getLocalMD(self) -> bytes: ...
    def getLocalPartialMD(
        self, descs: nixlRegDList, inc_conn_info: bool = False, backends: Sequence[int] = ...
    ) -> bytes: ...
    def loadRemoteMD(self, blob: _Message, /) -> bytes: ...
    def invalidateRemoteMD(self, name: _Name, /) -> nixl_status_t: ...
    def checkRemoteMD(self, name: _Name, descs: nixlXferDList, /) -> nixl_status_t: ...
    def makeConnection(self, remote_agent: _Name, backends: Sequence[int], /) -> nixl_status_t: ...
    def sendLocalMD(self, ip_addr: _Name = "", port: int = 0) -> None: ...
    def sendLocalPartialMD(
        self,
        descs: nixlRegDList,
        inc_conn_info: bool = False,
        backends: Sequence[int] = ...,
        ip_addr: _Name = "",
        port: int = 0,
        label: _Name = "",
    ) -> None: ...
    def fetchRemoteMD(
        self, remote_agent: _Name, ip_addr: _Name = "", port: int = 0, label: _Name = ""
    ) -> None: ...
    def invalidateLocalMD(self, ip_addr: _Name = "", port: int = 0) -> None: ...

    # The agent itself.
    def completionFd(self) -> int: ...
    def handOver(self) -> None: ...
    def listenPort(self) -> int: ...
    def incarnation(self) -> str: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def hasProgressThread(self) -> bool: ...

class _memory:
    @staticmethod
    def malloc_passthru(size: int) -> int: ...
    @staticmethod
    def free_passthru(addr: int) -> None: ...
    @staticmethod
    def ba_buf(addr: int, size: int) -> None: ...
    @staticmethod
    def verify_transfer(addr1: int, addr2: int, size: int) -> None: ...

def _split_to_match(
    a: nixlXferDList, b: nixlXferDList, /
) -> Tuple[nixlXferDList, nixlXferDList]: ...

# Whether both are transfer lists, with no owners to keep alive and nothing read-only.
def _plain(a: Any, b: Any, /) -> bool: ...

# Address, bytes, kind of device and its number as DLPack has them, whether it is contiguous,
# whether it is read-only, and what keeps it alive.
def _dlpack_memory(exporter: Any, /) -> Tuple[int, int, int, int, bool, bool, object]: ...
def _close_all() -> None: ...

# For nixl.get_capabilities(): what each plugin says of itself, tried out in a process of its own.
def _inspect_plugins(seconds: float) -> List[Dict[str, Any]]: ...

# The folder of plugins, why it cannot be read ("": it can), and (name, file) of what is missing.
def _plugin_search() -> Tuple[str, str, List[Tuple[str, str]]]: ...
