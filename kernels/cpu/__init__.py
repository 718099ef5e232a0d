"""The catalogue compiled by Numba: one small function for each kernel and type, walked by `walker.walk_steps`.

A function takes ``(row, ctx, like)``: the addresses and shapes of its operands, the worker's number and count, and
a pointer that only carries the type. It is compiled on first use and kept on disk as an object file; a process that
finds it there loads it without Numba, whose import takes more time and memory than all kernels together. So this
module, `cache`, `loading`, `processor` and `sizes` do without Numba, and no other module of this folder does.

The functions of this folder are written once, with the names ``T``, ``exp``, ``tanh``, ... free; `mathlib.specialise`
binds those to a type.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from . import cache
from .loading import load

_LOADED: dict[tuple[str, str], int] = {}
"""Addresses by kernel and type."""

_LOCK = threading.Lock()


def address(name: str, dtype: str, on_compile: Callable[[], None] | None = None) -> int:
    """Return the address of a compiled kernel, compiling it or loading it from the cache.

    Args:
        name: in the catalogue, or a form that linking chooses.
        dtype: "float32" or "float64".
        on_compile: called before a kernel that is not in the cache is compiled.

    Raises:
        OSError: the system gives no memory for machine code.
    """
    with _LOCK:  # trainings that start together need the same kernels
        if (name, dtype) not in _LOADED:
            symbol = f"gpumlp_{name}_{dtype}"
            code = cache.read(name, dtype)
            if code is None:
                if on_compile is not None:
                    on_compile()
                from .compiling import compile_kernel

                code = compile_kernel(name, dtype, symbol)
                cache.write(name, dtype, code)
            _LOADED[name, dtype] = load(code, symbol)
    return _LOADED[name, dtype]
