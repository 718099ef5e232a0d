"""The device of a GPU on stand-ins for CuPy and nvmath: what it asks of them is right, on machines that have neither.

Arrays lie in the host's memory, kernels are those built as C++, and products are computed from what cuBLASLt is told
about them, column by column as its documentation has it. The stand-ins are as strict as the real ones where a mistake
would only show on a GPU: no kernel in CUDA's default stream or on another device than its own, nothing allocated or
loaded while a stream is captured, copies from the host as late as they may come, alignments as they were promised.
"""

# mypy: ignore-errors
# The stand-ins are modules and classes put together from attributes, which types cannot follow.

import ctypes
import enum
import gc
import importlib
import importlib.machinery
import inspect
import itertools
import sys
import threading
import types
import weakref

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import executors, feed
from gpumlp.backend import Backend, register_backend, unregister_backend
from gpumlp.executors import branches, graph
from gpumlp.failure import NonFiniteLossError
from gpumlp.kernels.cuda import OPERATIONS, cupy_device, host
from gpumlp.kernels.cuda.cublaslt import EPILOGUES
from gpumlp.kernels.cuda.device import Node, ProductKind
from gpumlp.kernels.layout import ROW_WIDTH
from gpumlp.kernels.reference.products import to_bfloat16

# --- CuPy ---------------------------------------------------------------------------------------------------------


class CudaError(RuntimeError):
    """What a GPU would refuse, or do wrong."""


def check(holds, message):
    if not holds:
        raise CudaError(message)


class DeviceArray(np.ndarray):
    """As `cupy.ndarray`: of a device, and without memory where it has no elements."""

    index = 0

    def __array_finalize__(self, source):
        self.index = getattr(source, "index", 0)

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)

    @property
    def ctypes(self):
        return super().ctypes if self.size else types.SimpleNamespace(data=0)

    @property
    def device(self):
        return types.SimpleNamespace(id=self.index)

    def _reached(self):
        """The plain array, from the device that is current: another would need access to its peer's memory."""
        check(self.index == CUDA.device, "an array of another device than the current one")
        return self.view(np.ndarray)

    def __setitem__(self, place, value):
        self._reached()[place] = value

    def copy(self, order="C"):
        return CUDA.copied(self._reached())

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **settings):
        given = [[a._reached() if isinstance(a, DeviceArray) else a for a in part] for part in (inputs, out)]
        if out:
            settings["out"] = tuple(given[1])
        result = getattr(ufunc, method)(*given[0], **settings)
        if out or not isinstance(result, np.ndarray):
            return out[0] if out else result
        return CUDA.copied(result)

    def set(self, arr, stream=None):
        assert type(arr) is np.ndarray
        assert (arr.dtype, arr.shape) == (self.dtype, self.shape)
        assert self.flags.c_contiguous
        assert arr.flags.c_contiguous  # or CuPy's copy would be freed under a copy that goes on
        stream = stream or CUDA.stream
        check(not stream.captures, "a copy from the host while its stream is captured")
        stream.copies.append(lambda: self.view(np.ndarray).__setitem__(..., arr))

    def get(self):
        CUDA.stream.synchronize()
        return np.array(self.view(np.ndarray))


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.stream, self.capture, self.behind = None, None, frozenset()

    def record(self, stream=None):
        self.stream = stream or CUDA.stream
        self.capture, self.behind = self.stream.captures, self.stream.behind

    def synchronize(self):
        self.stream.synchronize()


class Stream:
    """In order; copies from the host are done once something waits for them, or a kernel comes behind them."""

    numbers = itertools.count(0x1000)

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr, self.device_id = (0, -1) if null else (next(self.numbers), CUDA.device)
        self.non_blocking, self.copies, self.captures = non_blocking, [], None
        self.behind = frozenset()  # the captured work that comes before what comes next

    def __enter__(self):
        check(self.device_id in (-1, CUDA.device), "a stream of another device than the current one")
        CUDA.here.streams.append(self)
        return self

    def __exit__(self, *error):
        CUDA.here.streams.pop()

    def synchronize(self):
        check(not self.captures, "a stream that is captured cannot be waited for")
        while self.copies:
            self.copies.pop(0)()

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        check((event.capture is not None) >= (self.captures is not None), "a wait for what is not captured")
        if event.capture is not None:
            if self.captures is None:  # this stream takes part from now on
                self.captures, self.behind = event.capture, frozenset()
                CUDA.here.taking_part.append(self)
            check(self.captures is event.capture, "two captures wait for each other")
            self.behind |= event.behind
            return
        CUDA.waits.append((self.ptr, event.stream.ptr))
        event.synchronize()

    def begin_capture(self, mode=None):
        assert mode == Runtime.streamCaptureModeThreadLocal
        check(self.ptr != 0, "cannot capture on the default (legacy) stream")
        self.captures = CUDA.here.captures = []
        self.behind, CUDA.here.taking_part = frozenset(), []

    def end_capture(self):
        work, self.captures, CUDA.here.captures = self.captures, None, None
        for stream in CUDA.here.taking_part:
            stream.captures = None
        check(self.behind == frozenset(range(len(work))), "work of another stream was not joined")
        CUDA.lanes = max(CUDA.lanes, 1 + len(CUDA.here.taking_part))
        return Graph(work)

    def put(self, work):
        """Do work that comes in this stream, or note it while it is captured."""
        if self.captures is not None:
            self.captures.append((work, self.behind))
            self.behind |= {len(self.captures) - 1}
        else:
            self.synchronize()
            work()


class Graph:
    def __init__(self, work):
        check(work, "an empty graph")
        self.work, left, done = [], dict(enumerate(work)), set()
        while left:  # of what need not wait, the latest that was captured
            i = max(i for i, (_, behind) in left.items() if behind <= done)
            self.work.append(left.pop(i)[0])
            done.add(i)

    def launch(self, stream=None):
        stream = stream or CUDA.stream
        CUDA.graphs += 1
        for work in self.work:
            stream.put(work)


class Device:
    """Two of them."""

    def __init__(self, device=None):
        self.id = CUDA.device if device is None else int(device)
        self.attributes = {"MultiProcessorCount": 4, "MaxSharedMemoryPerBlockOptin": 99 * 1024}

    def __enter__(self):
        CUDA.here.devices.append(self.id)
        return self

    def __exit__(self, *error):
        CUDA.here.devices.pop()


class RawKernel:
    shared_size_bytes = 8192

    def __init__(self, module, name):
        self.module, self.name, self._limit = module, name, 48 * 1024 - self.shared_size_bytes

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._limit

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes):
        check(nbytes + self.shared_size_bytes <= 99 * 1024, "more shared memory than a block may ask for")
        self._limit = nbytes

    def __call__(self, grid, block, args, *, shared_mem=0):
        stream = CUDA.stream
        check(stream.ptr != 0, "a kernel in the default stream")
        check(CUDA.device == self.module.device, "a kernel of a module of another device")
        check(shared_mem <= self._limit, "more shared memory than was asked for")
        ((blocks,), (threads,), (given, *more)) = grid, block, args
        if isinstance(given, DeviceArray):
            pointer, run = given.data.ptr, self.module.built.call
            assert all(type(number) is np.int64 for number in more)  # as long as the kernel's own
            stream.put(
                lambda: run(self.name, blocks, threads, shared_mem, "ascending", pointer, *map(int, more))
            )
        else:
            assert (type(given), given.size, given.nbytes) == (np.ndarray, 1, 8 * ROW_WIDTH)
            row = given.view(np.int64).reshape(ROW_WIDTH).copy()
            run, name = self.module.built.launch, self.name.removeprefix("gpumlp_")
            stream.put(lambda: run(name, row, blocks, threads, "ascending"))


class RawModule:
    def __init__(self, *, code=None, path=None, options=(), backend="nvrtc", name_expressions=None):
        CUDA.modules += 1
        self.code, self.device = code, CUDA.device
        mixed, double = "MIXED = 1" in code, "<double>(row, Block" in code
        self.built = host.HostModule("bf16" if mixed else "float64" if double else "float32")

    def get_function(self, name):
        check(CUDA.here.captures is None, "a module is loaded while a stream is captured")
        assert f" {name}(" in self.code
        return RawKernel(self, name)


class OutOfMemoryError(MemoryError):
    pass


class Runtime:
    streamCaptureModeThreadLocal = 1

    @staticmethod
    def getDeviceProperties(index):
        return {"name": b"Stand-in"}

    @staticmethod
    def memGetInfo():
        return CUDA.free, 10**9


class Here(threading.local):
    """What CUDA and CuPy know of a thread."""

    def __init__(self):
        self.devices, self.streams, self.captures, self.taking_part = [0], [], None, []


class Cuda:
    def __init__(self):
        self.here, self.waits, self.graphs, self.modules, self.free = Here(), [], 0, 0, 10**9
        self.products, self.types, self.lanes = [], set(), 1
        self.workspaces = {}

    @property
    def device(self):
        return self.here.devices[-1]

    @property
    def stream(self):
        return self.here.streams[-1] if self.here.streams else NULL

    def allocate(self, shape, dtype=float):
        check(self.here.captures is None, "memory is allocated while a stream is captured")
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if nbytes > self.free:
            raise OutOfMemoryError(nbytes)
        memory = np.zeros(nbytes + 512, np.uint8)
        first = -memory.ctypes.data % 512
        array = memory[first : first + nbytes].view(dtype).reshape(shape).view(DeviceArray)
        array.index = self.device
        return array

    def copied(self, array, dtype=None):
        array = np.asarray(array)
        made = self.allocate(array.shape, dtype or array.dtype)
        made.view(np.ndarray)[...] = array
        return made


CUDA = Cuda()
NULL = Stream(null=True)


class Cupy(types.ModuleType):
    """Beside what is here, NumPy's functions: those of reference kernels."""

    def __getattr__(self, name):
        return getattr(np, name)


def fake_cupy():
    cupy = Cupy("cupy")
    cupy.ndarray, cupy.RawModule = DeviceArray, RawModule
    cupy.zeros = cupy.empty = lambda shape, dtype=float: CUDA.allocate(shape, dtype)
    cupy.array = CUDA.copied
    cupy.asarray = lambda a, dtype=None: a if isinstance(a, DeviceArray) else CUDA.copied(a, dtype)
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=lambda: None)
    cupy.cuda = types.SimpleNamespace(
        Device=Device,
        Stream=Stream,
        Event=Event,
        runtime=Runtime,
        get_current_stream=lambda: CUDA.stream,
        alloc_pinned_memory=bytearray,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    )
    return cupy


# --- cuBLASLt -----------------------------------------------------------------------------------------------------

CUDA_TYPES = enum.IntEnum("CudaDataType", {"CUDA_R_32F": 0, "CUDA_R_64F": 1, "CUDA_R_16BF": 14})
COMPUTE = enum.IntEnum("ComputeType", {"COMPUTE_32F": 68, "COMPUTE_64F": 70, "COMPUTE_32F_FAST_TF32": 77})
OPERATION = enum.IntEnum("Operation", {"N": 0, "T": 1})
RELU, BIAS, GELU, AUX, DRELU, DGELU, BGRADA = 2, 4, 32, 128, 136, 192, 256
EPILOGUE = enum.IntEnum(
    "Epilogue",
    {
        "DEFAULT": 1,
        "BIAS": BIAS,
        "RELU_BIAS": RELU | BIAS,
        "RELU_AUX_BIAS": RELU | BIAS | AUX,
        "GELU_BIAS": GELU | BIAS,
        "GELU_AUX_BIAS": GELU | BIAS | AUX,
        "DRELU": DRELU,
        "DRELU_BGRAD": DRELU | 16,
        "DGELU": DGELU,
        "DGELU_BGRAD": DGELU | 16,
        "BGRADA": BGRADA,
    },
)
ATTRIBUTE_TYPES = {
    "TRANSA": np.int32,
    "TRANSB": np.int32,
    "EPILOGUE": np.uint32,
    "BIAS_POINTER": np.int64,
    "EPILOGUE_AUX_POINTER": np.int64,
    "EPILOGUE_AUX_LD": np.int64,
}
ATTRIBUTES = enum.IntEnum("MatmulDescAttribute", [*ATTRIBUTE_TYPES], start=3)
PREFERENCE_TYPES = {
    "MAX_WORKSPACE_BYTES": np.uint64,
    **{f"MIN_ALIGNMENT_{m}_BYTES": np.uint32 for m in "ABCD"},
}
PREFERENCES = enum.IntEnum("MatmulPreferenceAttribute", [*PREFERENCE_TYPES], start=1)


class cuBLASLtError(Exception):
    pass


class MatmulHeuristicResult:
    def __init__(self, size=1):
        self.words = np.zeros((size, 10), np.uint64)
        self.ptr = self.words.ctypes.data

    @property
    def algo(self):
        return {"data_": self.words[:, :8]}


def column_major(pointer, layout):
    """The library's matrix as a view of the memory."""
    kind, rows, cols, ld = layout
    dtype = {CUDA_TYPES.CUDA_R_32F: "f4", CUDA_TYPES.CUDA_R_64F: "f8", CUDA_TYPES.CUDA_R_16BF: "u2"}[kind]
    size = np.dtype(dtype).itemsize
    check(ld >= rows, "a leading dimension below the rows")
    memory = np.frombuffer((ctypes.c_char * (((cols - 1) * ld + rows) * size)).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(memory, (rows, cols), (size, ld * size))


def as_numbers(matrix):
    if matrix.dtype == np.uint16:
        matrix = (matrix.astype(np.uint32) << 16).view(np.float32)
    return matrix.astype(np.float64)


def store(numbers, target):
    """Numbers as a matrix of the library's keeps them."""
    target[...] = to_bfloat16(np, numbers) if target.dtype == np.uint16 else numbers


def gelu_parts(x):
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + t), slope


class FakeCublasLt(types.ModuleType):
    """`nvmath.bindings.cublasLt`; handles are numbers, and must be destroyed once."""

    cuBLASLtError = cuBLASLtError
    MatmulHeuristicResult = MatmulHeuristicResult
    Epilogue, MatmulDescAttribute, MatmulPreferenceAttribute = EPILOGUE, ATTRIBUTES, PREFERENCES

    def __init__(self):
        super().__init__("nvmath.bindings.cublasLt")
        self.things, self.numbers = {}, itertools.count(1)

    def _new(self, thing):
        number = next(self.numbers)
        self.things[number] = thing
        return number

    def create(self):
        return self._new(("handle", CUDA.device))

    def matmul_desc_create(self, compute_type, scale_type):
        double = compute_type == COMPUTE.COMPUTE_64F
        assert scale_type == (CUDA_TYPES.CUDA_R_64F if double else CUDA_TYPES.CUDA_R_32F)
        return self._new({"compute": COMPUTE(compute_type), "scale": "f8" if double else "f4"})

    def matmul_desc_destroy(self, matmul_desc):
        del self.things[matmul_desc]

    def get_matmul_desc_attribute_dtype(self, attr):
        return ATTRIBUTE_TYPES[ATTRIBUTES(attr).name]

    def matmul_desc_set_attribute(self, matmul_desc, attr, buf, size_in_bytes):
        dtype = np.dtype(ATTRIBUTE_TYPES[ATTRIBUTES(attr).name])
        assert size_in_bytes == dtype.itemsize
        self.things[matmul_desc][ATTRIBUTES(attr).name] = int(
            np.frombuffer(ctypes.string_at(buf, size_in_bytes), dtype)[0]
        )

    def matrix_layout_create(self, type, rows, cols, ld):
        return self._new((CUDA_TYPES(type), rows, cols, ld))

    def matrix_layout_destroy(self, mat_layout):
        del self.things[mat_layout]

    def matmul_preference_create(self):
        return self._new({})

    def matmul_preference_destroy(self, pref):
        del self.things[pref]

    def get_matmul_preference_attribute_dtype(self, attr):
        return PREFERENCE_TYPES[PREFERENCES(attr).name]

    def matmul_preference_set_attribute(self, pref, attr, buf, size_in_bytes):
        dtype = np.dtype(PREFERENCE_TYPES[PREFERENCES(attr).name])
        assert size_in_bytes == dtype.itemsize
        self.things[pref][PREFERENCES(attr).name] = int(
            np.frombuffer(ctypes.string_at(buf, size_in_bytes), dtype)[0]
        )

    def matmul_algo_get_heuristic(
        self,
        light_handle,
        operation_desc,
        adesc,
        bdesc,
        cdesc,
        ddesc,
        preference,
        requested_algo_count,
        heuristic_results_array,
        return_algo_count,
    ):
        check(CUDA.here.captures is None, "an algorithm is chosen while a stream is captured")
        assert self.things[light_handle] == ("handle", CUDA.device)
        assert requested_algo_count == 1
        d = self.things[operation_desc]
        relu, gelu = d["EPILOGUE"] & (RELU | 8), d["EPILOGUE"] & (GELU | 64)
        if d["EPILOGUE"] & AUX and d["EPILOGUE_AUX_LD"] % (128 if relu else 8 if gelu else 1):
            raise cuBLASLtError("NOT_SUPPORTED")
        chosen = self._new(dict(self.things[preference]))  # an algorithm is for these alignments
        ctypes.c_uint64.from_address(heuristic_results_array).value = chosen
        ctypes.c_int32.from_address(return_algo_count).value = 1

    def matmul(
        self,
        light_handle,
        compute_desc,
        alpha,
        a,
        adesc,
        b,
        bdesc,
        beta,
        c,
        cdesc,
        d,
        ddesc,
        algo,
        workspace,
        workspace_size_in_bytes,
        stream,
    ):
        assert self.things[light_handle] == ("handle", CUDA.device)
        check(stream == CUDA.stream.ptr != 0, "a product in another stream than the current one")
        asked = self.things[compute_desc]
        for number, value in ((alpha, 1), (beta, 0)):
            assert np.frombuffer(ctypes.string_at(number, int(asked["scale"][1])), asked["scale"])[0] == value
        promised = self.things[ctypes.c_uint64.from_address(algo).value]
        assert workspace % 256 == 0
        if CUDA.stream.captures is not None:  # those of several streams may be under way at once
            held = CUDA.workspaces.setdefault((id(CUDA.stream.captures), workspace), stream)
            check(held == stream, "products side by side in one workspace")
        assert workspace_size_in_bytes >= promised["MAX_WORKSPACE_BYTES"]
        for name, pointer in zip("ABCD", (a, b, c, d), strict=True):
            check(
                pointer % promised[f"MIN_ALIGNMENT_{name}_BYTES"] == 0, "an alignment that was not promised"
            )
        check((c, cdesc) == (d, ddesc), "c is not d")
        layouts = [self.things[layout] for layout in (adesc, bdesc, ddesc)]
        given = dict(asked)
        CUDA.stream.put(lambda: self._compute(given, (a, b, d), layouts))

    def _compute(self, given, pointers, layouts):
        a, b, d = (column_major(*pair) for pair in zip(pointers, layouts, strict=True))
        CUDA.products.append(EPILOGUE(given["EPILOGUE"]).name)
        CUDA.types.add((given["compute"].name, *(kind.name for kind, *_ in layouts)))
        left, right = as_numbers(a), as_numbers(b)
        left = left.T if given["TRANSA"] else left
        right = right.T if given["TRANSB"] else right
        assert (left.shape[0], right.shape[1]) == d.shape
        assert left.shape[1] == right.shape[0]
        with np.errstate(all="ignore"):
            store(self._epilogue(given, left, left @ right, layouts[2][0]), d)

    def _epilogue(self, given, left, x, kind):
        epilogue, (m, n) = given["EPILOGUE"], x.shape
        if epilogue in (DRELU, DRELU | 16, DGELU, DGELU | 16, BGRADA) and left.shape[1] == 1:
            return np.full_like(x, np.nan)  # which nvmath refuses, as the library computes something else
        vector = None  # of the type of the result, as what is saved is
        if "BIAS_POINTER" in given:
            vector = column_major(given["BIAS_POINTER"], (kind, m, 1, m))
        if epilogue & BIAS:
            x = x + as_numbers(vector)
        if "EPILOGUE_AUX_POINTER" in given:
            ld, pointer = given["EPILOGUE_AUX_LD"], given["EPILOGUE_AUX_POINTER"]
            check(pointer % 16 == 0, "an auxiliary matrix that is not aligned to 16 bytes")
            if epilogue & (RELU | 8):
                check(ld % 128 == 0, "a mask whose columns do not begin at 16 bytes")
                check(ld >= m, "a mask whose columns are too short")
                memory = (ctypes.c_uint8 * (ld * n // 8)).from_address(pointer)
                bits = np.frombuffer(memory, np.uint8).reshape(n, ld // 8)
            else:
                saved = column_major(pointer, (kind, m, n, ld))
        if epilogue in (RELU | BIAS | AUX, RELU | BIAS):
            if epilogue & AUX:
                packed = np.packbits(x.T > 0, axis=1, bitorder="little")
                bits[:, : packed.shape[1]] = packed
            return np.maximum(x, 0)
        if epilogue in (GELU | BIAS | AUX, GELU | BIAS):
            if epilogue & AUX:
                store(x, saved)
            return gelu_parts(x)[0]
        if epilogue in (DRELU, DRELU | 16):
            x = x * np.unpackbits(bits, axis=1, count=m, bitorder="little").T
        elif epilogue in (DGELU, DGELU | 16):
            x = x * gelu_parts(as_numbers(saved))[1]
        if epilogue == BGRADA:
            store(left.sum(axis=1), vector[:, 0])
        elif epilogue & 16:
            store(x.sum(axis=1), vector[:, 0])
        return x


# --- devices on them ----------------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch, host_compiler):
    """CuPy's and nvmath's stand-ins in the place of the modules; the one of cuBLASLt."""
    lt, nvmath = FakeCublasLt(), types.ModuleType("nvmath")
    nvmath.CudaDataType, nvmath.__spec__ = CUDA_TYPES, importlib.machinery.ModuleSpec("nvmath", None)
    cublas = types.SimpleNamespace(ComputeType=COMPUTE, Operation=OPERATION)
    modules = {"cupy": fake_cupy(), "nvmath": nvmath, "nvmath.bindings": types.ModuleType("nvmath.bindings")}
    modules |= {"nvmath.bindings.cublasLt": lt, "nvmath.bindings.cublas": cublas}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cupy_device, "_DEVICES", {})
    CUDA.__init__()
    return lt


@pytest.fixture
def gpu(library):
    """Make a GPU of a number: ``gpu(1)`` returns its backend, "fake:1"."""
    made = []

    def make(index=0):
        device = cupy_device.cupy_device(index)
        made.append(f"fake:{index}")
        register_backend(Backend(made[-1], sys.modules["cupy"], device))
        return gm.get_backend(made[-1])

    yield make
    for name in made:
        unregister_backend(name)


@pytest.fixture(params=["graph", "resident", "streaming"])
def kind(request, monkeypatch):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 1 << 40 if request.param == "resident" else 0)
    if request.param == "streaming":
        monkeypatch.setattr(feed, "_must_stream", lambda backend, *_: backend.is_gpu)
        monkeypatch.setattr(feed, "CHUNK_BYTES", 2000)
    return request.param


RNG = np.random.default_rng(1)
X = RNG.normal(size=(70, 5)).astype(np.float32)
LABELS = RNG.integers(0, 3, 70)


def train(device, activation="relu", dtype="float32", epochs=2, batch_size=16, **settings):
    network = gm.mlp((5, 24, 16, 3), activation=activation, device=device, dtype=dtype, seed=1)
    precision = settings.pop("precision", "float32")
    trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.Adam(1e-2), seed=5, precision=precision)
    history = trainer.fit(X, LABELS, epochs=epochs, batch_size=batch_size, progress=False, **settings)
    return network.state_dict(), history["loss"], network.predict(X[:9])


def assert_same(found, expected, tolerance=1e-4):
    for name, value in expected[0].items():
        error = np.linalg.norm(found[0][name] - value) / max(np.linalg.norm(value), 1e-3)
        assert error < tolerance, name
    np.testing.assert_allclose(found[1], expected[1], rtol=tolerance)
    np.testing.assert_allclose(found[2], expected[2], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": gm.GELU(approximate="tanh")},
        {"dtype": "float64"},
        {"batch_size": None},
        {"batch_size": 1, "epochs": 1},
        {"validation_split": 0.2},
    ],
    ids=str,
)
def test_a_training_gives_what_the_cpu_gives(settings, kind, gpu):
    gpu()
    assert_same(train("fake:0", **settings), train("cpu", **settings))


def test_the_second_gpu_has_its_own_device_current_for_all_it_does(kind, gpu):
    gpu(1)
    assert_same(train("fake:1"), train("cpu"))
    assert CUDA.device == 0
    assert CUDA.stream is NULL


def test_what_is_done_by_hand_on_the_second_gpu_stays_there(gpu):
    backend = gpu(1)
    networks = [gm.mlp((5, 8, 3), device=device, seed=1) for device in ("fake:1", "cpu")]
    outputs, gradients = [], []
    for network in networks:
        network.load_state_dict(networks[0].copy().state_dict())
        network.layers[0].bias = np.full(8, 0.5)
        outputs.append(network.backend.to_host(network.forward(X)))
        gradients.append(network.backend.to_host(network.backward(np.ones((70, 3)))))
    assert backend.owns(networks[0].forward(X))
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_the_best_weights_are_restored_on_the_second_gpu(gpu):
    gpu(1)
    stop = gm.EarlyStopping(patience=1, restore_best=True)
    network = gm.mlp((5, 8, 3), device="fake:1", seed=1)
    trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(2.0), seed=1, callbacks=[stop])
    history = trainer.fit(X, LABELS, epochs=30, validation_split=0.3, progress=False)
    arrays, values = trainer.state_dict()
    trainer.load_state_dict(arrays, values)
    assert len(history) < 30


@pytest.mark.parametrize("sorted_on_host_from", [10, 1 << 14])
def test_a_lost_loss_is_explained_as_on_the_cpu(sorted_on_host_from, kind, gpu, monkeypatch):
    monkeypatch.setattr(graph, "SORTED_ON_HOST_FROM", sorted_on_host_from)
    gpu(1)
    bad = X.copy()
    bad[33] = 1e30
    messages = []
    for device in ("fake:1", "cpu"):
        network = gm.mlp((5, 16, 2), device=device, seed=1)
        with pytest.raises(NonFiniteLossError) as error:
            gm.Trainer(network, loss="mse", optimizer=gm.SGD(0.01), seed=5).fit(
                bad, X[:, :2], epochs=9, batch_size=16, progress=False
            )
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("first", [0, 1])
def test_a_part_of_a_larger_array_of_the_gpu_lies_aligned_for_the_kernels(first, gpu):
    device = gpu().device
    large = device.allocate(4 * (X.size + 1)).view(np.float32)
    part = large[first : first + X.size].reshape(
        X.shape
    )  # at an address that 16 does not divide, where first is 1
    device.copy_in(part, X)
    found = feed.Shared().upload(gm.get_backend("fake:0"), part)
    assert found.data.ptr % 16 == 0
    assert (found is part) is (first == 0)
    np.testing.assert_array_equal(device.copy_out(found), X)


def test_a_graph_takes_epilogues_along(gpu, monkeypatch):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    gpu()
    train("fake:0")
    assert CUDA.graphs
    assert {"RELU_AUX_BIAS", "DRELU_BGRAD", "BGRADA", "BIAS"} <= set(CUDA.products)


@pytest.mark.parametrize(
    ("precision", "types_of_a_product"),
    [
        ("float32", ("COMPUTE_32F", "CUDA_R_32F", "CUDA_R_32F", "CUDA_R_32F")),
        ("tf32", ("COMPUTE_32F_FAST_TF32", "CUDA_R_32F", "CUDA_R_32F", "CUDA_R_32F")),
        ("bf16", ("COMPUTE_32F", "CUDA_R_16BF", "CUDA_R_16BF", "CUDA_R_32F")),  # gradients of the weights
        ("bf16", ("COMPUTE_32F", "CUDA_R_16BF", "CUDA_R_16BF", "CUDA_R_16BF")),  # what lies between layers
    ],
)
def test_products_are_of_the_precision_that_was_asked_for(precision, types_of_a_product, gpu, monkeypatch):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    gpu()
    found = train("fake:0", precision=precision)
    np.testing.assert_allclose(found[1], train("cpu")[1], rtol=3e-2)
    assert types_of_a_product in CUDA.types


KINDS = [
    ProductKind(name, 40, 24, inner, ta, tb, dtype, precision)
    for name in EPILOGUES
    for ta, tb in ((False, False), (True, False), (False, True))
    for dtype, precision in (
        *(("float32", "float32"), ("float32", "tf32"), ("float64", "float32")),
        *(("float32", "bf16"), ("uint16", "bf16")),
    )
    for inner in (1, 17)
    if name != "product_bias_grad" or ta  # weights' gradients alone have it
]


@pytest.mark.parametrize("product", KINDS, ids=lambda k: f"{k.kernel}-{k.inner}-{k.dtype}-{k.precision}")
def test_every_product_is_described_as_the_library_computes_it(product, gpu):
    has_gradient = product.kernel.endswith("grad")
    assert gpu().device.supports_product(product) is not (has_gradient and product.inner == 1)


@pytest.mark.parametrize("lost", [0.0, 5.0])
@pytest.mark.parametrize("last", [True, False])
def test_a_gradient_of_relu_may_select_by_its_mask_where_a_nan_times_0_is_nan(
    last, lost, gpu, library, monkeypatch
):
    """Nothing is lost by 0: the gradient above has the NaN. Another number there is wrong."""
    right = library._epilogue

    def selecting(given, left, x, kind):
        masked = right(given, left, np.ones_like(x), kind) == 0
        product = right(given, left, np.where(masked, 0, x), kind)  # writes the sums of the columns too
        return np.where(masked & np.isnan(x), lost, product)

    monkeypatch.setattr(library, "_epilogue", selecting)
    kind = ProductKind("product_relu_grad", 8, 24, 16, False, True, "float32", "float32", last)
    assert gpu().device.supports_product(kind) is (lost == 0)


def test_an_epilogue_that_the_library_computes_wrong_is_not_taken(gpu, library, monkeypatch):
    right = library._epilogue
    monkeypatch.setattr(library, "_epilogue", lambda *given: 1.01 * right(*given))
    assert not gpu().device.supports_product(
        ProductKind("product_bias", 8, 8, 8, False, False, "float32", "float32")
    )


def test_what_the_library_has_not_is_one_clear_error(gpu, library, monkeypatch):
    device = gpu().device
    with device.active():
        a, b, c = (sys.modules["cupy"].zeros((8, 8), np.float32) for _ in range(3))
    product = cupy_device.Product("matmul", (a, b, c), False, False, "tf32")

    def refuse(*given):
        raise cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(library, "matmul_algo_get_heuristic", refuse)
    with pytest.raises(
        ValueError, match=r"no algorithm for matmul of \(8, 8\) and \(8, 8\), float32, in tf32; train"
    ):
        device.product(product)


def test_whether_there_is_an_algorithm_is_asked_without_memory_for_the_matrices(gpu):
    device = gpu().device
    CUDA.free = 40 << 20  # less than the matrices of this product
    huge = ProductKind("product_bias", 60_000, 1000, 784, False, False, "float32", "float32")
    assert device.supports_product(huge)


def test_descriptions_are_destroyed_with_what_they_describe(gpu, library, monkeypatch):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    gpu()
    counts = []
    for _ in range(3):
        train("fake:0", epochs=1)
        gc.collect()
        counts.append(sum(isinstance(t, tuple) or "compute" in t for t in library.things.values()))
    assert counts[0] == counts[1] == counts[2]


# --- the device by itself -----------------------------------------------------------------------------------------


def test_a_host_array_may_be_changed_as_soon_as_it_is_copied_in(gpu):
    device = gpu().device
    target, source = device.allocate(64), np.arange(64, dtype=np.uint8)
    device.copy_in(target, source)
    source[:] = 0
    assert device.copy_out(target).tolist() == list(range(64))


def test_a_staged_copy_is_there_once_it_was_waited_for(gpu):
    device = gpu().device
    target, source = device.allocate(64), device.pinned((64,), "uint8")
    source[:] = 7
    wait = device.stage(target, source)
    assert not device.copy_out(target).any()  # it does not hold up the stream
    wait()
    assert (device.copy_out(target) == 7).all()


def test_a_stream_of_the_users_own_and_the_devices_wait_for_each_other(gpu):
    device = gpu().device
    with device.active():
        own = CUDA.stream
    CUDA.waits.clear()
    with Stream(non_blocking=True) as users, device.active(), device.active():
        assert CUDA.stream is own
    assert CUDA.waits == [(own.ptr, users.ptr), (users.ptr, own.ptr)]


def test_the_devices_stream_is_in_order_with_the_default_one(gpu):
    with gpu().device.active():
        assert not CUDA.stream.non_blocking


def test_a_capture_that_fails_leaves_nothing_captured(gpu):
    device = gpu().device

    def fail():
        raise ZeroDivisionError

    for lane in (0, 1):
        with pytest.raises(ZeroDivisionError):
            device.capture(lambda lane=lane: [[Node(lambda: None), Node(fail, lane)]])
    assert CUDA.here.captures is None
    assert CUDA.stream is NULL


def test_a_graph_of_nothing_does_nothing(gpu):
    gpu().device.capture(list)()
    gpu().device.capture(lambda: [[], []])()
    assert CUDA.graphs == 0


def test_launches_that_need_not_wait_for_each_other_are_captured_side_by_side(gpu, monkeypatch):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    gpu()
    found = train("fake:0")
    assert CUDA.lanes > 1
    monkeypatch.setattr(branches, "TILE", 0)  # a product of any size fills the GPU
    CUDA.lanes = 1
    alone = train("fake:0")
    assert CUDA.lanes == 1
    for name, value in found[0].items():
        np.testing.assert_array_equal(alone[0][name], value)


def test_a_lane_that_does_not_wait_for_another_is_noticed(gpu, monkeypatch):
    """The stand-in runs what is captured in another order, where nothing forbids it: this test tests that."""
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    gpu()
    right = train("fake:0")
    put = cupy_device._put

    def impatient(section, lanes):  # the update does not wait for all gradients
        *others, update = section
        return put([*others, Node(update.launch, update.lane)], lanes)

    monkeypatch.setattr(cupy_device, "_put", impatient)
    wrong = train("fake:0")
    assert any((right[0][name] != wrong[0][name]).any() for name in right[0])


def test_nothing_is_collected_while_a_graph_is_captured(gpu):
    """A graph that is destroyed meanwhile would end the capture."""
    seen = []
    device = gpu().device

    def look():
        seen.append(gc.isenabled())
        CUDA.stream.put(lambda: None)

    assert gc.isenabled()
    device.capture(lambda: [[Node(look)]])
    assert seen == [False]
    assert gc.isenabled()


def test_threads_that_want_the_same_kernels_compile_them_once(gpu):
    device = gpu().device
    found = []
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait()
        found.append(device.kernels("float32", {"relu", "advance"}, resident=True))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert CUDA.modules == 1
    assert len(set(map(id, found))) == 1


def test_launches_of_other_sizes_do_not_take_shared_memory_from_a_large_one(gpu):
    device = gpu().device
    kernels = device.kernels("float32", sorted(OPERATIONS), resident=True)
    networks = device.allocate(88).view(np.int64)  # no step to do
    large = kernels.launch_resident(networks, 1, 256, 90 * 1024)
    kernels.launch_resident(networks, 1, 256, 1024)
    with device.active():
        large()


def test_too_little_memory_says_what_was_asked_for_and_what_is_free(gpu):
    device = gpu().device
    CUDA.free = 1000
    with pytest.raises(
        MemoryError, match="the GPU has 1,000 of 1,000,000,000 bytes free; 2,000 were asked for"
    ):
        device.allocate(2000)


def test_an_array_of_another_gpu_is_copied_to_this_one(gpu):
    device = gpu(1).device
    other = CUDA.copied(np.arange(3.0))
    assert not device.owns(other)
    found = device.adopt(other)
    assert device.owns(found)
    assert found.tolist() == [0, 1, 2]


def test_a_member_of_a_gang_that_fails_lets_the_others_end(gpu, monkeypatch):
    gpu()
    y = np.stack([X[:, 0] * X[:, 1], np.sin(X[:, 2])], axis=1)
    trainers = [
        gm.Trainer(gm.mlp((5, 8, 2), device="fake:0"), loss="mse", optimizer=gm.SGD(lr), seed=1)
        for lr in (0.01, 1e6, 0.02)
    ]
    with pytest.raises(NonFiniteLossError):
        gm.fit_many(trainers, X, y, epochs=4, batch_size=16, progress=False)
    assert [len(t.history) for t in (trainers[0], trainers[2])] == [4, 4]
    alone = gm.Trainer(gm.mlp((5, 8, 2), device="fake:0"), loss="mse", optimizer=gm.SGD(0.01), seed=1)
    alone.fit(X, y, epochs=4, batch_size=16, progress=False)
    for name, value in alone.network.state_dict().items():
        np.testing.assert_array_equal(trainers[0].network.state_dict()[name], value)


def test_memory_goes_with_the_training_that_took_it(kind, gpu, monkeypatch):
    gpu()
    taken: list[weakref.ref] = []
    allocate = CUDA.allocate

    def noted(*given):
        array = allocate(*given)
        taken.append(weakref.ref(array.base))
        return array

    monkeypatch.setattr(CUDA, "allocate", noted, raising=False)
    left = []
    for _ in range(3):
        train("fake:0", epochs=1)
        gc.collect()  # layers and their network refer to each other
        left.append(sum(memory() is not None for memory in taken))
    assert len(taken) > 30
    assert left[0] == left[1] == left[2] <= branches.LANES  # workspaces of the library


def test_trainings_in_several_threads_do_not_meet(kind, gpu):
    gpu(1)
    expected, found = train("fake:1")[0], []
    threads = [threading.Thread(target=lambda: found.append(train("fake:1")[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for weights in found:
        for name, value in expected.items():
            np.testing.assert_array_equal(weights[name], value)


# --- the real ones, where they are --------------------------------------------------------------------------------


def test_the_stand_in_takes_what_nvmath_takes():
    real = pytest.importorskip("nvmath.bindings.cublasLt", reason="nvmath-python is not installed")
    for name, function in vars(FakeCublasLt).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            own = list(inspect.signature(function).parameters)[1:]
            assert list(inspect.signature(getattr(real, name)).parameters) == own, name


def test_the_stand_in_numbers_epilogues_and_types_as_nvmath_does():
    real = pytest.importorskip("nvmath.bindings.cublasLt", reason="nvmath-python is not installed")
    for member in EPILOGUE:
        assert real.Epilogue[member.name] == member
    for name, dtype in ATTRIBUTE_TYPES.items():
        assert real.get_matmul_desc_attribute_dtype(real.MatmulDescAttribute[name]) == dtype
    for name, dtype in PREFERENCE_TYPES.items():
        attribute = real.MatmulPreferenceAttribute[name]
        assert real.get_matmul_preference_attribute_dtype(attribute) == dtype
    algorithms = np.array(real.MatmulHeuristicResult(1).algo["data_"]).reshape(-1)
    assert (algorithms.size, algorithms.itemsize) == (8, 8)
