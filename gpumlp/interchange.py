"""Arrays of other libraries: taken where they lie, and results given back as the kind that was given.

An array on a GPU speaks ``__cuda_array_interface__`` or DLPack (https://dmlc.github.io/dlpack); one on the host speaks
``__array__`` or DLPack.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .backend import Backend

Array = Any

_ON_CUDA = (2, 13)  # DLPack's numbers of CUDA memory and of CUDA's managed memory


def is_on_gpu(x: Any) -> bool:
    """Whether an array of any library lies on an NVIDIA GPU."""
    if isinstance(x, np.ndarray | list | tuple):
        return False
    try:
        if hasattr(x, "__dlpack_device__"):
            return int(x.__dlpack_device__()[0]) in _ON_CUDA
        return hasattr(x, "__cuda_array_interface__")
    except (RuntimeError, BufferError, TypeError):  # a tensor that is part of a graph of gradients, for one
        return False


def to_host(x: Any) -> Any:
    """Return arrays of a GPU and of DLPack as NumPy arrays; everything else as it is, for NumPy to read.

    Raises:
        ValueError: an array that its library does not give away.
    """
    if isinstance(x, np.ndarray | list | tuple) or x is None:
        return x
    try:
        if hasattr(x, "get") and type(x).__module__.startswith("cupy"):
            return x.get()
        if is_on_gpu(x):
            import importlib

            cupy = importlib.import_module("cupy")
            return (cupy.asarray(x) if hasattr(x, "__cuda_array_interface__") else cupy.from_dlpack(x)).get()
        if hasattr(x, "__dlpack__"):
            return np.from_dlpack(x)
    except (RuntimeError, BufferError, TypeError) as error:
        if hasattr(x, "__array__") and not is_on_gpu(x) and "grad" not in str(error):
            return x
        raise ValueError(
            f"an array of {_library(x)} cannot be read: {str(error).splitlines()[0]}; give a plain array, for "
            "example x.detach()"
        ) from None
    return x


def like(given: Any, result: np.ndarray, backend: Backend) -> Array:
    """Return a host array as the kind that was given: an array of the same library, on the same kind of device.

    Lists, tables and NumPy arrays give NumPy arrays.
    """
    if isinstance(given, np.ndarray | list | tuple) or not hasattr(given, "__dlpack__"):
        return result
    if backend.device is not None and backend.owns(given):
        return backend.asarray(result)
    module = sys.modules.get(_library(given))
    from_dlpack = getattr(module, "from_dlpack", None) or getattr(
        getattr(module, "dlpack", None), "from_dlpack", None
    )
    if from_dlpack is None:
        return result
    on_device = (
        backend.asarray(result) if is_on_gpu(given) and backend.is_gpu else np.ascontiguousarray(result)
    )
    return from_dlpack(on_device)


def _library(x: Any) -> str:
    """The package that an array is of; JAX's arrays are made in a package of another name."""
    name = type(x).__module__.partition(".")[0]
    return "jax" if name == "jaxlib" else name
