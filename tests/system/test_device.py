"""GPU memory from Python, and nixlbench on GPUs, over the software driver of tests/fakes/libcuda.

With NIXL_TEST_REAL_GPU=1 the machine's own driver and GPUs are used.
"""

import ctypes
import json
import os
import subprocess
import sys

import build_tree
import pytest

FAKE = build_tree.BUILD / "tests" / "fakes" / "libcuda" / "libnixl_fake_cuda.so"
NIXLBENCH = build_tree.BUILD / "tools" / "nixlbench" / "nixlbench"
REAL = bool(os.environ.get("NIXL_TEST_REAL_GPU"))

pytestmark = pytest.mark.skipif(
    not REAL and not FAKE.exists(), reason="the software GPU driver was not built here"
)


class Cuda:
    """As much of a driver as a program needs that has memory on a GPU."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)
        context = ctypes.c_void_p()
        self("cuInit", 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self("cuCtxPushCurrent_v2", context)

    def __call__(self, name, *arguments):
        code = getattr(self._library, name)(*arguments)
        assert code == 0, f"{name}: CUDA error {code}"

    def allocate(self, size):
        address = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def write(self, address, data):
        self("cuMemcpyHtoD_v2", ctypes.c_uint64(address), bytes(data), ctypes.c_size_t(len(data)))

    def read(self, address, size):
        data = ctypes.create_string_buffer(size)
        self("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return data.raw


class _Tensor(ctypes.Structure):  # DLPack's
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int),
        ("device_id", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
    ]


class DlpackArray:
    """Bytes of a GPU, as other libraries' tensors show them."""

    def __init__(self, address, size, device=0):
        self._shape = (ctypes.c_int64 * 1)(size)
        self.managed = _Managed(
            _Tensor(address, 2, device, 1, 1, 8, 1, self._shape, None, 0),
            None,
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None),
        )

    def __dlpack_device__(self):
        return (2, self.managed.tensor.device_id)

    def __dlpack__(self, **options):
        if options:
            raise TypeError("this exporter knows no versions")
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self.managed), b"dltensor", None)


class CudaArray:
    """The same, with CUDA's array interface alone."""

    def __init__(self, address, size, strides=None, read_only=False):
        self._facts = {
            "shape": (size // 8, 2),
            "typestr": "<i4",
            "data": (address, read_only),
            "strides": strides,
            "version": 3,
        }

    @property
    def __cuda_array_interface__(self):
        return self._facts


SIZE = 100_000


@pytest.fixture
def cuda(monkeypatch):
    if REAL:
        monkeypatch.delenv("NIXL_CUDA_PATH", raising=False)
        try:
            made = Cuda("libcuda.so.1")
        except OSError as error:
            pytest.skip(f"NIXL_TEST_REAL_GPU is set, and there is no driver: {error}")
    else:
        monkeypatch.setenv("NIXL_CUDA_PATH", str(FAKE))
        made = Cuda(str(FAKE))
    yield made
    made("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@pytest.fixture
def agent(cuda):
    from nixl._api import nixl_agent, nixl_agent_config

    with nixl_agent("on-gpu", nixl_agent_config(backends=["DEVICE"])) as made:
        yield made


def finish(agent, handle):
    state = agent.transfer(handle)
    while state == "PROC":
        state = agent.check_xfer_state(handle)
    assert state == "DONE"
    agent.release_xfer_handle(handle)


def test_tuples_of_gpu_memory_move_to_and_from_arrays(agent, cuda):
    np = pytest.importorskip("numpy")
    address = cuda.allocate(SIZE)
    source = np.arange(SIZE, dtype=np.uint8)
    target = np.zeros(SIZE, dtype=np.uint8)
    agent.register_memory([(address, SIZE, 0, "")], "VRAM")
    agent.register_memory([source, target])
    there = [(address + at, 1000, 0) for at in range(0, SIZE, 1000)]
    for op, array in (("WRITE", source), ("READ", target)):
        here = [(array.ctypes.data + at, 1000, 0) for at in range(0, SIZE, 1000)]
        finish(
            agent,
            agent.initialize_xfer(
                op,
                agent.get_xfer_descs(here, "DRAM"),
                agent.get_xfer_descs(there, "VRAM"),
                agent.name,
            ),
        )
    assert cuda.read(address, SIZE) == source.tobytes()
    assert (source == target).all()


@pytest.mark.parametrize("kind", [DlpackArray, CudaArray])
def test_arrays_of_a_gpu_are_registered_as_they_are(agent, cuda, kind):
    first, second = cuda.allocate(SIZE), cuda.allocate(SIZE)
    data = bytes(range(250)) * (SIZE // 250)
    cuda.write(first, data)
    for memory in (kind(first, SIZE), [kind(second, SIZE)]):
        descs = agent.register_memory(memory)
        assert descs.getType().name == "VRAM_SEG" and descs[0][1] == SIZE
    finish(
        agent,
        agent.initialize_xfer(
            "WRITE",
            agent.get_xfer_descs(kind(first, SIZE)),
            agent.get_xfer_descs([kind(second, SIZE)]),
            agent.name,
        ),
    )
    assert cuda.read(second, SIZE) == data


def test_beside_a_network_backend_somebody_moves_it(cuda, ucx):
    np = pytest.importorskip("numpy")
    from nixl._api import nixl_agent, nixl_agent_config

    address = cuda.allocate(SIZE)
    source = np.arange(SIZE, dtype=np.uint8)
    with nixl_agent("both", nixl_agent_config(backends=["UCX", "DEVICE"])) as agent:
        agent.register_memory([source])
        agent.register_memory([(address, SIZE, 0, "")], "VRAM")
        handle = agent.initialize_xfer(
            "WRITE",
            agent.get_xfer_descs([source]),
            agent.get_xfer_descs([(address, SIZE, 0)], "VRAM"),
            agent.name,
        )
        finish(agent, handle)
    assert cuda.read(address, SIZE) == source.tobytes()


def test_arrays_that_cannot_be_moved_are_refused(agent, cuda):
    address = cuda.allocate(SIZE)
    with pytest.raises(TypeError, match="not contiguous"):
        agent.register_memory(CudaArray(address, SIZE, strides=(16, 4)))
    assert agent.register_memory(CudaArray(address, SIZE, strides=(8, 4)))
    with pytest.raises(TypeError, match="VRAM, not DRAM"):
        agent.register_memory(CudaArray(address, SIZE), "DRAM")
    with pytest.raises(TypeError, match="knows of no memory"):
        agent.register_memory(CudaArray(ctypes.addressof(ctypes.c_int()), 8))


def test_memory_of_another_device_is_refused(agent, cuda):
    import nixl._bindings as nb

    address = cuda.allocate(64)
    with pytest.raises(nb.nixlBackendError, match="there is no GPU 77"):
        agent.register_memory([(address, 64, 77, "")], "VRAM")
    with pytest.raises(nb.nixlBackendError, match="before the range does"):
        agent.register_memory([(address, 1 << 40, 0, "")], "VRAM")


def test_an_agent_of_the_parent_is_inert_after_fork(agent, cuda):
    address = cuda.allocate(64)
    agent.register_memory([(address, 64, 0, "")], "VRAM")
    child = os.fork()
    if child == 0:
        try:
            agent.get_xfer_descs([(address, 64, 0)], "VRAM")
            agent.register_memory([(address, 64, 0, "")], "VRAM")
        except Exception as error:
            os._exit(7 if "FORKED" in str(error) or "fork" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] >> 8 == 7
    agent.deregister_memory(agent.get_reg_descs([(address, 64, 0, "")], "VRAM"))


def test_without_a_driver_it_says_what_is_missing():
    program = (
        "import nixl._bindings as nb\n"
        "from nixl._api import nixl_agent, nixl_agent_config\n"
        "agent = nixl_agent('a', nixl_agent_config(backends=[]))\n"
        "assert 'DEVICE' in agent.get_plugin_list()\n"
        "try:\n"
        "    agent.create_backend('DEVICE')\n"
        "except nb.nixlNotFoundError as error:\n"
        "    print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NIXL_CUDA_PATH": "/nonexistent"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=60,
    ).stdout  # fmt: skip
    assert 'NIXL_CUDA_PATH is "/nonexistent"' in told, told


# --- nixlbench --------------------------------------------------------------------------------


def bench(*arguments):
    if not NIXLBENCH.exists():
        pytest.skip("nixlbench was not built here")
    return subprocess.run(
        [str(NIXLBENCH), "--backend", "device", "--one-process", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=120,
    )  # fmt: skip


PLACES = {
    "cpu to gpu": (["--src-type", "cpu", "--dst-type", "gpu"], "DRAM -> VRAM (GPU 0)"),
    "gpu to cpu": (["--src-type", "gpu", "--dst-type", "cpu"], "VRAM (GPU 0) -> DRAM"),
    "gpu to gpu": (["--src-type", "gpu", "--dst-type", "gpu"], "VRAM (GPU 0) -> VRAM (GPU 0)"),
    "two gpus": (
        ["--src-type", "gpu", "--src-device", "0", "--dst-type", "gpu", "--dst-device", "1"],
        "VRAM (GPU 0) -> VRAM (GPU 1)",
    ),
}


@pytest.mark.parametrize("op", ["WRITE", "READ"])
@pytest.mark.parametrize("where", PLACES)
def test_nixlbench_moves_and_verifies(cuda, where, op):
    places, title = PLACES[where]
    if REAL and where == "two gpus":
        pytest.skip("the number of GPUs is not known here")
    done = bench(*places, "--op", op, "--size", "4KB,1MB", "--iterations", "5")
    assert done.returncode == 0, done.stderr
    assert title in done.stdout, done.stdout
    assert "Backend: DEVICE" in done.stdout and "all equal" in done.stdout
    done = bench(*places, "--op", op, "--block-size", "4KB", "--block-count", "300", "--scattered",
                 "--iterations", "3", "--output", "json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["bytes_verified"] == 300 * 4096 and told["backend"] == "DEVICE"
    assert told["src"] == {"type": places[1], "device": 0}
    assert told["dst"]["type"] == places[places.index("--dst-type") + 1]


def test_nixlbench_says_which_gpus_there_are(cuda):
    done = bench("--dst-type", "gpu", "--dst-device", "63", "--size", "4KB")
    assert done.returncode != 0 and done.stdout == ""
    assert "use GPU 63: this process sees" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(REAL, reason="only the software driver can be told to have little memory")
def test_nixlbench_says_when_gpu_memory_is_short(cuda, monkeypatch):
    monkeypatch.setenv("NIXL_FAKE_CUDA_MEMORY", "64M")
    done = bench("--dst-type", "gpu", "--size", "100MB")
    assert done.returncode != 0
    assert "CUDA" in done.stderr or "free" in done.stderr, done.stderr
    assert "GPU 0" in done.stderr and done.stderr.count("\n") == 1
