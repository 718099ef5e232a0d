"""A device's own best product, which workloads are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import Backend

PEAK_SIDE = {True: 8192, False: 1024}
"""Side of the matrices whose product is a device's limit, on a GPU and on the CPU."""


class Peak:
    """A device's own best rate of square matrix products, in GFLOP/s: what the workloads are held against.

    On a GPU it is a product of the library that training steps use, in the same precision.

    Args:
        backend: the device.
        dtype: of the matrices.
        precision: of the product, on a GPU.
    """

    def __init__(self, backend: Backend, dtype: str = "float32", precision: str = "float32") -> None:
        n = self.n = PEAK_SIDE[backend.is_gpu and backend.xp is not np]
        self.backend, self.dtype, self.precision = backend, dtype, precision
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((n, n), dtype=np.float32).astype(dtype) for _ in range(2))
        self._multiply = _multiplication(backend, a, b, precision)
        self._times = 1
        self.gflops = 0.0
        self._product()
        if backend.is_gpu:  # so many that waiting for the last does not show
            self._times = max(1, min(100, round(0.02 / self._product())))

    def _product(self) -> float:
        start = time.perf_counter()
        with self.backend.active():
            for _ in range(self._times):
                self._multiply()
        self.backend.synchronize()
        return (time.perf_counter() - start) / self._times

    def measure(self, seconds: float = 0.2) -> None:
        """Multiply for about that long; the best product so far counts."""
        spent = 0.0
        while spent < seconds:
            took = self._product()
            spent += took * self._times
            self.gflops = max(self.gflops, 2 * self.n**3 / took / 1e9)

    def result(self) -> dict[str, Any]:
        """Return the rate, and of what product."""
        return {
            "device": self.backend.name,
            "precision": self.precision,
            "gflops": self.gflops,
            "product": [self.n] * 3,
            "dtype": self.dtype,
        }


def _multiplication(backend: Backend, a: np.ndarray, b: np.ndarray, precision: str) -> Callable[[], Any]:
    """Return what multiplies two matrices on a device.

    Raises:
        ValueError: a precision that the device has no products in.
    """
    device = backend.device
    if device is None or not device.has_products:
        if precision != "float32":
            raise ValueError(
                f"precision {precision!r} needs products that can be captured; install nvmath-python, or use float32"
            )
        x, y, out = backend.asarray(a), backend.asarray(b), backend.asarray(np.empty_like(a))
        return lambda: backend.xp.matmul(x, y, out=out)
    from ..kernels.cuda.device import Product
    from ..kernels.reference.products import to_bfloat16

    out = backend.asarray(np.empty_like(a))
    if precision == "bf16":
        a, b = to_bfloat16(np, a), to_bfloat16(np, b)
    operands = (backend.asarray(a), backend.asarray(b), out)
    with backend.active():
        return device.product(Product("matmul", operands, False, False, precision))
