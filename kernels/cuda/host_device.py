"""A `Device` without a GPU: NumPy arrays, the kernels' own text built as C++, products by the reference.

Whole trainings run on it, and so the Python side of the GPU path is tested on machines without one. It keeps the
rules of a GPU that code is likely to break: nothing is allocated while a graph is captured, what is captured does not
run, work goes into the device's stream, a copy beside the stream comes as late as it may, and memory ends.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from .. import PRODUCTS
from ..reference import kernel_in_bfloat16
from . import CHAIN_THREADS, host
from .device import Launch, Product, ProductKind

ALIGNMENT = 256


class DeviceArray(np.ndarray):
    """An array of the stand-in: known from one of the host by its type."""


class HostKernels:
    """The kernels of one type, built by the system's compiler."""

    def __init__(self, module: host.HostModule, device: HostDevice) -> None:
        self._module = module
        self._order, self._in_stream = device.order, device.in_stream

    def launch(self, operation: str, row: np.ndarray, blocks: int, threads: int) -> Launch:
        row = row.copy()  # as the parameters of a launch are
        return self._in_stream(lambda: self._module.launch(operation, row, blocks, threads, self._order))

    def launch_places(self, name: str, places: np.ndarray, blocks: int, threads: int) -> Launch:
        places, run = places.copy(), self._module.call_with_places
        return self._in_stream(lambda: run(name, places, blocks, threads, self._order))

    def launch_chain(self, rows: np.ndarray, count: int) -> Launch:
        run = self._module.call
        return self._in_stream(
            lambda: run("gpumlp_chain", 1, CHAIN_THREADS, 0, self._order, rows.ctypes.data, count)
        )

    def launch_resident(self, networks: np.ndarray, count: int, threads: int, shared_bytes: int) -> Launch:
        run = self._module.call
        return self._in_stream(
            lambda: run("gpumlp_resident", count, threads, shared_bytes, self._order, networks.ctypes.data)
        )


class HostDevice:
    """A GPU's stand-in on the CPU.

    Args:
        memory_bytes: there are.
        shared_bytes: of a block.
        order: in which the threads of a block take turns, see `host.HostModule.launch`.
        products: names of the products that its library says to have; none stands for no library.
    """

    multiprocessors = 4
    has_tf32 = True

    def __init__(
        self,
        memory_bytes: int = 1 << 40,
        shared_bytes: int = 99 * 1024,
        order: str = "ascending",
        products: Collection[str] = PRODUCTS,
    ) -> None:
        self.memory_bytes, self.shared_bytes, self.order = memory_bytes, shared_bytes, order
        self._used, self._products = 0, frozenset(products)
        self.tailors: dict[Any, Any] = {}
        self._kernels: dict[tuple[str, bool], HostKernels] = {}
        self._thread, self._building = threading.local(), threading.Lock()

    @property
    def has_products(self) -> bool:
        return bool(self._products)

    def describe(self) -> str:
        return "stand-in for a GPU"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with self._being("active"):
            yield

    @contextlib.contextmanager
    def _being(self, state: str) -> Iterator[None]:
        """Note of this thread that it is in a state, "active" or "replaying", within the block."""
        before = self._is(state)
        setattr(self._thread, state, True)
        try:
            yield
        finally:
            setattr(self._thread, state, before)

    def _is(self, state: str) -> bool:
        return getattr(self._thread, state, False)

    def in_stream(self, work: Launch) -> Launch:
        """Return what does the work where this device is active, and raises an error elsewhere."""

        def launch() -> None:
            if not self._is("active"):
                raise RuntimeError("work was launched outside of the device's stream")
            work()

        return launch

    def allocate(self, nbytes: int) -> np.ndarray:
        if self._is("replaying"):
            raise RuntimeError("a launch of a graph allocates memory, which cannot be captured")
        if nbytes > self.memory_bytes - self._used:
            gc.collect()  # layers and their network refer to each other
        free = self.memory_bytes - self._used
        if nbytes > free:
            raise MemoryError(f"the GPU has {free:,} bytes free; {nbytes:,} were asked for")
        memory = np.zeros(nbytes + ALIGNMENT, dtype=np.uint8)
        self._used += nbytes
        weakref.finalize(memory, self._freed, nbytes)
        shift = -memory.ctypes.data % ALIGNMENT
        return memory[shift : shift + nbytes].view(DeviceArray)

    def _freed(self, nbytes: int) -> None:
        self._used -= nbytes

    def memory(self) -> tuple[int, int]:
        return self.memory_bytes - self._used, self.memory_bytes

    def owns(self, array: Any) -> bool:
        return isinstance(array, DeviceArray)

    def adopt(self, array: Any) -> np.ndarray:
        return np.asarray(array).view(DeviceArray)

    def copy_in(self, target: np.ndarray, source: np.ndarray) -> None:
        target[...] = source

    def copy_out(self, source: np.ndarray, target: np.ndarray | None = None) -> np.ndarray:
        if target is None:
            return np.array(source)
        assert target.flags.c_contiguous
        target[...] = source
        return target

    def stage(self, target: np.ndarray, source: np.ndarray) -> Launch:
        def arrive() -> None:  # as late as it may
            np.asarray(target)[...] = source

        return arrive

    def pinned(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.empty(shape, dtype)

    def kernels(
        self,
        dtype: str,
        operations: Collection[str],
        walked: Collection[str] = frozenset(),
        chained: Collection[str] = frozenset(),
        large: bool = False,
    ) -> HostKernels:
        with self._building:
            if (dtype, large) not in self._kernels:  # one build has all operations
                self._kernels[dtype, large] = HostKernels(host.HostModule(dtype, large=large), self)
            return self._kernels[dtype, large]

    def tailored(self, text: str, names: Sequence[str]) -> HostKernels:
        return HostKernels(host.HostModule(text=text), self)

    def supports_product(self, kind: ProductKind) -> bool:
        return kind.kernel in self._products

    def product(self, product: Product) -> Launch:
        if self._is("replaying"):
            raise RuntimeError(
                "a launch of a graph chooses the algorithm of a product, which cannot be captured"
            )
        run: Callable[..., None] = kernel_in_bfloat16(product.kernel)
        a, b, *others = product.operands
        assert a is not None
        assert b is not None
        rounded = product.precision == "tf32" and str(a.dtype) == "float32"

        def launch() -> None:
            given = (_to_tf32(a), _to_tf32(b)) if rounded else (a, b)
            with np.errstate(all="ignore"):
                run(np, *given, *others, product.transpose_a, product.transpose_b)

        return self.in_stream(launch)

    def capture(self, launches: Sequence[Launch]) -> Launch:
        captured = list(launches)

        def replay() -> None:
            # a graph is launched into the stream by name; what a launch does is what a GPU would capture
            with self.active(), self._being("replaying"):
                for launch in captured:
                    launch()

        return replay

    def synchronize(self) -> None:
        """Nothing is under way."""


def _to_tf32(x: np.ndarray) -> np.ndarray:
    """Float32 values rounded to the 10 bits behind the point that a tensor core reads, to nearest even."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded, bits).astype(np.uint32).view(np.float32)
