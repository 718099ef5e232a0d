"""A `Device` that is a GPU: arrays, streams, compiled kernels and graphs through CuPy, products through cuBLASLt.

With `cublaslt` this is all that only a machine with a GPU can run.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from . import CHAIN_THREADS, OPTIONS, source
from .cublaslt import CublasLt, is_installed
from .device import Launch, Product, ProductKind

Array = Any


_DEVICES: dict[int, CupyDevice] = {}
_LOCK = threading.RLock()
"""Held while something is made that threads share: a second stream, or a module compiled for each of hundreds of
threads that begin at once, would be worse than waiting."""


def cupy_device(index: int) -> CupyDevice:
    """Return the GPU of that number, always the same object: its streams and kernels are shared."""
    with _LOCK:
        if index not in _DEVICES:
            _DEVICES[index] = CupyDevice(index)
        return _DEVICES[index]


class CupyKernels:
    """The kernels of one module.

    Args:
        cupy: the module of that name.
        text: from `kernels.cuda.source`.
        names: of the kernels.
        shared_bytes: shared memory that a block of the device may ask for.
    """

    def __init__(
        self,
        cupy: Any,
        text: str,
        names: Sequence[str],
        shared_bytes: int,
    ) -> None:
        self._module = cupy.RawModule(code=text, options=OPTIONS)
        # nothing may be loaded while a graph is captured, and CUDA loads a function when it is first asked about
        self._functions = {name: self._module.get_function(name) for name in names}
        static = {name: function.shared_size_bytes for name, function in self._functions.items()}
        if "gpumlp_resident" in names:
            # once, for all launches: another thread's smaller network must not take from a larger one
            function = self._functions["gpumlp_resident"]
            function.max_dynamic_shared_size_bytes = shared_bytes - static["gpumlp_resident"]
            # all of it is to be shared memory, and no cache: enough for one block may not be enough for two
            function.preferred_shared_memory_carveout = 100

    def launch(self, operation: str, row: np.ndarray, blocks: int, threads: int) -> Launch:
        function = self._functions[f"gpumlp_{operation}"]
        by_value = row.copy().view(np.dtype((np.void, row.nbytes)))
        return lambda: function((blocks,), (threads,), (by_value,))

    def launch_places(self, name: str, places: np.ndarray, blocks: int, threads: int) -> Launch:
        function = self._functions[name]
        by_value = places.copy().view(np.dtype((np.void, places.nbytes)))
        return lambda: function((blocks,), (threads,), (by_value,))

    def launch_chain(self, rows: Array, count: int) -> Launch:
        function, number = self._functions["gpumlp_chain"], np.int64(count)
        return lambda: function((1,), (CHAIN_THREADS,), (rows, number))

    def launch_resident(self, networks: Array, count: int, threads: int, shared_bytes: int) -> Launch:
        function = self._functions["gpumlp_resident"]
        return lambda: function((count,), (threads,), (networks,), shared_mem=shared_bytes)


class CupyDevice:
    """An NVIDIA GPU.

    Args:
        index: of the GPU, from 0.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._cupy = importlib.import_module("cupy")
        self._modules: dict[str, CupyKernels] = {}  # by their texts
        self._streams: tuple[Any, Any] | None = None
        self.tailors: dict[Any, Any] = {}

    @functools.cached_property
    def _attributes(self) -> dict[str, int]:
        attributes: dict[str, int] = self._cupy.cuda.Device(self.index).attributes
        return attributes

    @property
    def multiprocessors(self) -> int:
        return self._attributes["MultiProcessorCount"]

    @property
    def shared_bytes(self) -> int:
        return self._attributes["MaxSharedMemoryPerBlockOptin"]

    @property
    def has_tf32(self) -> bool:
        return int(self._cupy.cuda.Device(self.index).compute_capability) >= 80

    def _both_streams(self) -> tuple[Any, Any]:
        if self._streams is None:
            with _LOCK, self._cupy.cuda.Device(self.index):
                if self._streams is None:
                    new = self._cupy.cuda.Stream
                    # in order with the default stream, which users' own CuPy and PyTorch code runs in
                    self._streams = new(non_blocking=False), new(non_blocking=True)
        return self._streams

    @property
    def _stream(self) -> Any:
        """Where all work goes."""
        return self._both_streams()[0]

    @property
    def _copying(self) -> Any:
        """Where copies go that overlap with it."""
        return self._both_streams()[1]

    def describe(self) -> str:
        properties = self._cupy.cuda.runtime.getDeviceProperties(self.index)
        return f"{properties['name'].decode()}, CuPy"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        stream = self._stream
        with self._cupy.cuda.Device(self.index):
            caller = self._cupy.cuda.get_current_stream()
            apart = caller.ptr not in (0, stream.ptr)  # a stream of the user's own: each waits for the other
            if apart:
                stream.wait_event(caller.record())
            try:
                with stream:
                    yield
            finally:
                if apart:
                    caller.wait_event(stream.record())

    # --- memory --------------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Array:
        with self.active():
            for _ in range(2):
                try:
                    return self._cupy.zeros(nbytes, dtype=self._cupy.uint8)
                except self._cupy.cuda.memory.OutOfMemoryError:
                    gc.collect()  # layers and their network refer to each other
                    free, total = self.memory()
        raise MemoryError(f"the GPU has {free:,} of {total:,} bytes free; {nbytes:,} were asked for")

    def memory(self) -> tuple[int, int]:
        with self._cupy.cuda.Device(self.index):
            pool = self._cupy.get_default_memory_pool()
            pool.free_all_blocks()  # what the pool keeps is free too
            free, total = self._cupy.cuda.runtime.memGetInfo()
            return free, total

    def owns(self, array: Any) -> bool:
        return isinstance(array, self._cupy.ndarray) and int(array.device.id) == self.index

    def adopt(self, array: Any) -> Array:
        with self.active():
            if isinstance(array, self._cupy.ndarray):  # of another GPU
                return self._cupy.array(array)
            # by DLPack where it can be: its library then waits for what makes the array
            take = self._cupy.from_dlpack if hasattr(array, "__dlpack__") else self._cupy.asarray
            found = take(array)
            return found if self.owns(found) else self._cupy.array(found)

    def copy_in(self, target: Array, source: np.ndarray) -> None:
        with self.active():
            given = np.ascontiguousarray(source, dtype=target.dtype).reshape(target.shape)
            target.set(given)
            self._stream.synchronize()  # CuPy does not wait, and a GPU may read the host's memory in place

    def copy_out(self, source: Array, target: np.ndarray | None = None) -> np.ndarray:
        with self.active():
            return np.asarray(source.get(out=target))

    def stage(self, target: Array, source: np.ndarray) -> Launch:
        with self._cupy.cuda.Device(self.index):
            target.set(source, stream=self._copying)
            event = self._cupy.cuda.Event(block=True, disable_timing=True)
            event.record(self._copying)
        wait: Launch = event.synchronize
        return wait

    def pinned(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        count = int(np.prod(shape))
        with self.active():  # it belongs to the context of a device
            memory = self._cupy.cuda.alloc_pinned_memory(count * np.dtype(dtype).itemsize)
        return np.frombuffer(memory, dtype, count).reshape(shape)

    # --- work ----------------------------------------------------------------------------------------------------

    def kernels(
        self,
        dtype: str,
        operations: Collection[str],
        walked: Collection[str] = frozenset(),
        chained: Collection[str] = frozenset(),
        large: bool = False,
    ) -> CupyKernels:
        text = source(dtype, operations, walked, chained, large)
        names = [f"gpumlp_{name}" for name in sorted(operations)]
        names += ["gpumlp_resident"] if walked else []
        names += ["gpumlp_chain"] if chained else []
        with _LOCK:
            if text not in self._modules:
                with self.active():
                    self._modules[text] = CupyKernels(self._cupy, text, names, self.shared_bytes)
            return self._modules[text]

    def tailored(self, text: str, names: Sequence[str]) -> CupyKernels:
        with self.active():  # the lock is not held: it takes seconds, and trainings begin meanwhile
            return CupyKernels(self._cupy, text, names, self.shared_bytes)

    @property
    def has_products(self) -> bool:
        return is_installed()

    @functools.cached_property
    def _products(self) -> Any:
        """The library for products, or None where nvmath-python is not installed."""
        if not self.has_products:
            return None
        with self.active():
            return CublasLt(self._cupy, self.allocate)

    def supports_product(self, kind: ProductKind) -> bool:
        with _LOCK, self.active():
            return self._products is not None and self._products.supports(kind)

    def product(self, product: Product) -> Launch:
        with _LOCK, self.active():
            launch: Launch = self._products.plan(product)
            launch()  # what it needs is loaded now, and not while a graph is captured; its result is written anew
            return launch

    def capture(self, launches: Sequence[Launch]) -> Launch:
        if not launches:
            return lambda: None
        # alone, since what libraries are asked meanwhile might touch the capture; and in a stream of its own:
        # what other threads put into the device's stream is not captured
        with self._cupy.cuda.Device(self.index), _LOCK:
            graph = self._captured(launches)
        return lambda: graph.launch(self._stream)

    def _captured(self, launches: Sequence[Launch]) -> Any:
        stream, collects = self._cupy.cuda.Stream(non_blocking=True), gc.isenabled()
        try:
            gc.disable()  # a graph that is destroyed meanwhile, whosever it is, would end the capture
            stream.begin_capture(self._cupy.cuda.runtime.streamCaptureModeThreadLocal)
            with stream:
                for launch in launches:
                    launch()
            return stream.end_capture()
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                stream.end_capture()
            raise
        finally:
            if collects:
                gc.enable()

    def synchronize(self) -> None:
        self._stream.synchronize()
