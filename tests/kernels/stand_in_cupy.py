"""A stand-in for CuPy on machines that have none: arrays lie in the host's memory, kernels are those built as C++.

It is as strict as the real one where a mistake would only show on a GPU: no kernel in CUDA's default stream or on
another device than its own, nothing allocated or loaded while a stream is captured, copies from the host as late as
they may come.
"""

# mypy: ignore-errors
# It is put together from attributes, which types cannot follow.

import itertools
import threading
import types

import numpy as np

from gpumlp.kernels.cuda import host
from gpumlp.kernels.cuda.tailored import PLACES
from gpumlp.kernels.layout import ROW_WIDTH


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

    def get(self, out=None):
        CUDA.stream.synchronize()
        if out is None:
            return np.array(self.view(np.ndarray))
        assert type(out) is np.ndarray
        assert (out.dtype, out.shape) == (self.dtype, self.shape)
        assert out.flags.c_contiguous
        out[...] = self.view(np.ndarray)
        return out


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.stream = None

    def record(self, stream=None):
        self.stream = stream or CUDA.stream

    def synchronize(self):
        self.stream.synchronize()


class Stream:
    """In order; copies from the host are done once something waits for them, or a kernel comes behind them."""

    numbers = itertools.count(0x1000)

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr, self.device_id = (0, -1) if null else (next(self.numbers), CUDA.device)
        self.non_blocking, self.copies, self.captures = non_blocking, [], None

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
        check(self.captures is None, "a wait for what is not captured")
        CUDA.waits.append((self.ptr, event.stream.ptr))
        event.synchronize()

    def begin_capture(self, mode=None):
        assert mode == Runtime.streamCaptureModeThreadLocal
        check(self.ptr != 0, "cannot capture on the default (legacy) stream")
        self.captures = CUDA.here.captures = []

    def end_capture(self):
        work, self.captures, CUDA.here.captures = self.captures, None, None
        return Graph(work)

    def put(self, work):
        """Do work that comes in this stream, or note it while it is captured."""
        if self.captures is not None:
            self.captures.append(work)
        else:
            self.synchronize()
            work()


class Graph:
    def __init__(self, work):
        check(work, "an empty graph")
        self.work = work

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
        self.compute_capability = "90"

    def __enter__(self):
        CUDA.here.devices.append(self.id)
        return self

    def __exit__(self, *error):
        CUDA.here.devices.pop()


class RawKernel:
    shared_size_bytes = 8192
    preferred_shared_memory_carveout = -1  # per cent; as the driver sees fit

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
        check(
            self.preferred_shared_memory_carveout == 100 or shared_mem <= 48 * 1024,
            "a kernel that lives on shared memory leaves it to the driver how much there is",
        )
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
            assert (type(given), given.size) == (np.ndarray, 1)
            words, built = given.view(np.int64).reshape(-1).copy(), self.module.built
            if words.size == PLACES:
                stream.put(lambda: built.call_with_places(self.name, words, blocks, threads))
            else:
                assert words.size == ROW_WIDTH
                name = self.name.removeprefix("gpumlp_")
                stream.put(lambda: built.launch(name, words, blocks, threads))


class RawModule:
    def __init__(self, *, code=None, path=None, options=(), backend="nvrtc", name_expressions=None):
        CUDA.modules += 1
        self.code, self.device = code, CUDA.device
        mixed = "MIXED = 1" in code
        double = "<double>(row, Block" in code or "<double>(row_at(" in code  # by itself, or walked
        self.built = (
            host.HostModule(text=code)
            if "known_threads" in code or "struct Places" in code  # tailored: no text like another
            else host.HostModule("bf16" if mixed else "float64" if double else "float32")
        )

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
        self.devices, self.streams, self.captures = [0], [], None


class Cuda:
    def __init__(self):
        self.here, self.waits, self.graphs, self.modules, self.free = Here(), [], 0, 0, 10**9
        self.products, self.types = [], set()

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
