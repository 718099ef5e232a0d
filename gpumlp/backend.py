"""Where arrays live: NumPy on the CPU, CuPy on a GPU.

A backend is resolved once per network, never per operation. CuPy is imported here, when a GPU is first asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .kernels.cuda.device import Device

ALIGNMENT = 256
"""Bytes; CUDA's own allocation alignment, and a multiple of every CPU's cache line and vector."""

PRECISIONS = ("float32", "tf32", "bf16")
"""What a GPU may compute products of float32 matrices in; their sums are in float32 always."""

Array = Any


class Backend:
    """A device, its array module `xp`, and the copies to and from the host.

    Attributes:
        name: "cpu", "gpu:0", "gpu:1", ...
        xp: the module `numpy` or `cupy`.
        device: what executors speak to a GPU through; None on the CPU.
    """

    def __init__(self, name: str, xp: Any, device: Device | None = None) -> None:
        self.name = name
        self.xp = xp
        self.device = device

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU, or the stand-in for one that tests have."""
        return self.device is not None

    def __repr__(self) -> str:
        return f"<Backend {self.describe()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_backend, (self.name,)

    def describe(self) -> str:
        """Return the device in words, as reports and `summary` show it."""
        return "cpu (NumPy)" if self.device is None else f"{self.name} ({self.device.describe()})"

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """Make this device the current one within the block."""
        return contextlib.nullcontext() if self.device is None else self.device.active()

    def allocate(self, nbytes: int) -> Array:
        """Return zeroed memory of `nbytes` bytes (uint8) whose address is a multiple of `ALIGNMENT`.

        Raises:
            MemoryError: a GPU has less; the message has the bytes asked for and the bytes free.
        """
        return _allocate_on_host(nbytes) if self.device is None else self.device.allocate(nbytes)

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        """Return `array` on this device, C-contiguous; no copy where it is so already, whatever library it is of.

        Raises:
            MemoryError: as in `allocate`.
        """
        if self.device is None:
            return np.ascontiguousarray(np.asarray(array, dtype=dtype))
        if not self.owns(array):
            taken = hasattr(array, "__dlpack__") or hasattr(array, "__cuda_array_interface__")
            if isinstance(array, np.ndarray) or not taken:
                return self._upload(np.ascontiguousarray(array, dtype=dtype))
            array = self.device.adopt(array)
        if array.flags.c_contiguous and dtype in (None, array.dtype):
            return array
        with self.active():
            return array.astype(array.dtype if dtype is None else dtype, order="C")

    def write(self, view: Array, values: Any) -> None:
        """Copy an array of any library, or a number, into memory of this device."""
        given = values if np.isscalar(values) else self.asarray(values, dtype=view.dtype)
        with self.active():
            view[...] = given

    def _upload(self, host: np.ndarray) -> Array:
        assert self.device is not None
        target = self.device.allocate(host.nbytes)[: host.nbytes].view(host.dtype).reshape(host.shape)
        self.device.copy_in(target, host)
        return target

    def owns(self, array: Any) -> bool:
        """Whether an array is one of this backend's own kind, on its device."""
        return isinstance(array, np.ndarray) if self.device is None else self.device.owns(array)

    def to_host(self, array: Array) -> np.ndarray:
        """Return a NumPy array: the same one on the CPU, a copy from a GPU."""
        return array if self.device is None else self.device.copy_out(array)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.device is not None:
            self.device.synchronize()


def _allocate_on_host(nbytes: int) -> np.ndarray:
    memory = np.zeros(nbytes + ALIGNMENT, dtype=np.uint8)
    shift = -memory.ctypes.data % ALIGNMENT
    return memory[shift : shift + nbytes]


def address(array: Array) -> int:
    """Return where the first element of an array lies, in the memory of its device."""
    return int(array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data.ptr)


_REGISTERED: dict[str, Backend] = {}


def register_backend(backend: Backend) -> None:
    """Let `get_backend` return this backend for its name: a stand-in for a GPU, on machines without one."""
    _REGISTERED[backend.name] = backend


def unregister_backend(name: str) -> None:
    """Forget a registered backend; nothing happens where there is none of that name."""
    _REGISTERED.pop(name, None)


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
    if device in _REGISTERED:
        return _REGISTERED[device]
    match = re.fullmatch(r"(auto|cpu|gpu)(?::(\d+))?", str(device).strip().lower())
    if not match or (match[2] and match[1] != "gpu"):
        raise ValueError(f'unknown device {device!r}; expected "auto", "cpu", "gpu" or "gpu:N"')
    if match[1] == "cpu":
        return Backend("cpu", np)
    index = int(match[2] or 0)
    cupy, missing = _find_gpu(index)
    if missing is None:
        from .kernels.cuda.cupy_device import cupy_device

        return Backend(f"gpu:{index}", cupy, cupy_device(index))
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
