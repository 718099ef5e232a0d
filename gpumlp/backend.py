"""Where arrays live: NumPy on the CPU, CuPy on a GPU.

A backend is resolved once per network, never per operation. CuPy is imported here, when a GPU is first asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

ALIGNMENT = 256
"""Bytes; CUDA's own allocation alignment, and a multiple of every CPU's cache line and vector."""

Array = Any


class Backend:
    """A device, its array module `xp`, and the copies to and from the host.

    Attributes:
        name: "cpu", "gpu:0", "gpu:1", ...
        xp: the module `numpy` or `cupy`.
    """

    def __init__(self, name: str, xp: Any, index: int | None = None) -> None:
        self.name = name
        self.xp = xp
        self._index = index

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU, with CuPy's arrays."""
        return self._index is not None

    def __repr__(self) -> str:
        return f"<Backend {self.describe()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_backend, (self.name,)

    def describe(self) -> str:
        """Return the device in words, as reports and `summary` show it."""
        if not self.is_gpu:
            return "cpu (NumPy)"
        properties = self.xp.cuda.runtime.getDeviceProperties(self._index)
        return f"{self.name} ({properties['name'].decode()}, CuPy)"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make this device the current one within the block."""
        if self.is_gpu:
            with self.xp.cuda.Device(self._index):
                yield
        else:
            yield

    def allocate(self, nbytes: int) -> Array:
        """Return zeroed memory of `nbytes` bytes (uint8) whose address is a multiple of `ALIGNMENT`."""
        with self.active():
            memory = self.xp.zeros(nbytes + (0 if self.is_gpu else ALIGNMENT), dtype=self.xp.uint8)
        if self.is_gpu:  # CuPy's pool hands out multiples of 512
            return memory
        shift = -memory.ctypes.data % ALIGNMENT
        return memory[shift : shift + nbytes]

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        """Return `array` on this device, C-contiguous; no copy where it is so already."""
        with self.active():
            return self.xp.ascontiguousarray(self.xp.asarray(array, dtype=dtype))

    def to_host(self, array: Array) -> np.ndarray:
        """Return a NumPy array: the same one on the CPU, a copy from a GPU."""
        return array.get() if self.is_gpu else array

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.is_gpu:
            with self.active():
                self.xp.cuda.get_current_stream().synchronize()


def get_backend(device: str | Backend = "auto") -> Backend:
    """Return the backend of a device.

    Args:
        device: "cpu", "gpu" (the first one), "gpu:1", or "auto": the GPU when CuPy imports and a device
            answers, else the CPU; `Backend.describe` says which it was.

    Raises:
        ValueError: an unknown name, or a GPU that is not there; the message says what is missing.
    """
    if isinstance(device, Backend):
        return device
    match = re.fullmatch(r"(auto|cpu|gpu)(?::(\d+))?", str(device).strip().lower())
    if not match or (match[2] and match[1] != "gpu"):
        raise ValueError(f'unknown device {device!r}; expected "auto", "cpu", "gpu" or "gpu:N"')
    if match[1] == "cpu":
        return Backend("cpu", np)
    index = int(match[2] or 0)
    cupy, missing = _find_gpu(index)
    if missing is None:
        return Backend(f"gpu:{index}", cupy, index)
    if match[1] == "auto":
        return Backend("cpu", np)
    raise ValueError(f'device {device!r} was asked for, but {missing}; or use device="cpu"')


def _find_gpu(index: int) -> tuple[Any, str | None]:
    """Return CuPy and None, or None and what is missing."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return None, (
            f"CuPy does not import ({error}); install it with: pip install 'gpumlp[cuda12]' or 'gpumlp[cuda13]'"
        )
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises its own CUDARuntimeError, which cannot be named without CuPy
        return None, f"no NVIDIA GPU answers ({error}); check the driver with: nvidia-smi"
    if index >= count:
        return None, f"this machine has {count} GPU{'s' if count != 1 else ''}, numbered from 0"
    return cupy, None


def array_module(array: Any) -> Any:
    """Return the module of an array, `numpy` or `cupy`, without importing CuPy."""
    return importlib.import_module("cupy") if type(array).__module__.startswith("cupy") else np
