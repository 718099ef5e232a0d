"""What executors need of a GPU: the `Device` protocol.

`cupy_device` implements it on a GPU, with CuPy and cuBLASLt; `host_device` on the CPU, where the same .cuh text was
built as C++, for tests on machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .. import kernel_spec

Array = Any
Launch = Callable[[], None]
"""Puts work into the device's stream and returns at once."""


@dataclass(frozen=True)
class Product:
    """A product of matrices with its epilogue, as a rewritten program calls it.

    Attributes:
        kernel: its name in the catalogue; "matmul" has no epilogue.
        operands: arrays in the order of the catalogue; None where one is absent.
        transpose_a, transpose_b: whether an operand is turned.
        precision: "float32", "tf32" or "bf16"; without meaning in float64.
    """

    kernel: str
    operands: tuple[Array | None, ...]
    transpose_a: bool
    transpose_b: bool
    precision: str


@dataclass(frozen=True)
class ProductKind:
    """What decides whether a library has a product.

    Attributes:
        kernel: its name in the catalogue.
        rows, columns: of c.
        inner: the side that is summed over.
        transpose_a, transpose_b: whether an operand is turned.
        dtype: of c.
        precision: "float32", "tf32" or "bf16"; without meaning in float64.
        last: whether the last operand is there, where it may be absent.
    """

    kernel: str
    rows: int
    columns: int
    inner: int
    transpose_a: bool
    transpose_b: bool
    dtype: str
    precision: str
    last: bool = True

    @property
    def written(self) -> tuple[int, ...]:
        """Places of the operands that are overwritten."""
        spec = kernel_spec(self.kernel)
        return tuple(range(len(spec.reads), len(spec.operands)))


class Kernels(Protocol):
    """Kernels compiled for one type."""

    def launch(self, operation: str, row: np.ndarray, blocks: int, threads: int) -> Launch:
        """Return what launches an operation on a row of the linked program, (ROW_WIDTH,) int64."""

    def launch_chain(self, rows: Array, count: int) -> Launch:
        """Return what launches `count` operations one behind the other, in one block; `rows` is as for `launch`, on
        the device, at most `MAX_CHAIN` of them.
        """

    def launch_places(self, name: str, places: np.ndarray, blocks: int, threads: int) -> Launch:
        """Return what launches a kernel of `tailored.launched`; `places` has PLACES addresses, int64."""

    def launch_resident(self, networks: Array, count: int, threads: int, shared_bytes: int) -> Launch:
        """Return what launches the resident kernel, a block for each of `count` entries at `networks`."""


class Device(Protocol):
    """A GPU, or what stands for one.

    Attributes:
        multiprocessors: how many blocks run at a time, at least.
        shared_bytes: shared memory that a block may ask for.
        has_tf32: whether its tensor cores multiply floats, in TF32: from compute capability 8.0 on.
        has_products: whether there is a library for products whose calls can be captured.
        tailors: who makes kernels for kinds of networks, by what tells them apart; of `executors.tailoring`.
    """

    multiprocessors: int
    shared_bytes: int
    has_tf32: bool
    has_products: bool
    tailors: dict[Any, Any]

    def describe(self) -> str:
        """Return its name in words."""

    def active(self) -> AbstractContextManager[Any]:
        """Make it the current device within a block."""

    def allocate(self, nbytes: int) -> Array:
        """Return zeroed memory, uint8, aligned to 256 bytes at least.

        Raises:
            MemoryError: with the bytes asked for and the bytes free.
        """

    def memory(self) -> tuple[int, int]:
        """Return the bytes that are free, and those of the device."""

    def owns(self, array: Any) -> bool:
        """Whether an array is of this device's kind and lies on it."""

    def adopt(self, array: Any) -> Array:
        """Return another library's array on a GPU as one of this device, without a copy where it lies here."""

    def copy_in(self, target: Array, source: np.ndarray) -> None:
        """Copy from the host, in the order of the stream; `source` may be reused at once."""

    def copy_out(self, source: Array, target: np.ndarray | None = None) -> np.ndarray:
        """Return a copy on the host, once all work before is done: `target`, contiguous, where that is given."""

    def stage(self, target: Array, source: np.ndarray) -> Launch:
        """Start a copy from page-locked memory beside the stream; return what waits until it is done."""

    def pinned(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return page-locked memory of the host, from which copies overlap with work."""

    def kernels(
        self,
        dtype: str,
        operations: Collection[str],
        walked: Collection[str] = frozenset(),
        chained: Collection[str] = frozenset(),
        large: bool = False,
    ) -> Kernels:
        """Return the compiled kernels of these operations.

        Args:
            dtype: of `kernels.cuda.TYPES`.
            operations: to be launched by themselves.
            walked: operations of the resident kernel, where that is wanted.
            chained: operations that chains are made of.
            large: whether some operand has more than `MOST_ELEMENTS`.
        """

    def tailored(self, text: str, names: Sequence[str]) -> Kernels:
        """Return kernels of a text of `kernels.cuda.tailored`, compiled; other threads go on meanwhile."""

    def supports_product(self, kind: ProductKind) -> bool:
        """Whether the device's library has a product and computes it right; never where there is no library."""

    def product(self, product: Product) -> Launch:
        """Return what launches a product, its algorithm chosen."""

    def capture(self, launches: Sequence[Launch]) -> Launch:
        """Return what does launches, one after the other, as one graph; none of them is run by capturing."""

    def synchronize(self) -> None:
        """Wait until all is done."""
