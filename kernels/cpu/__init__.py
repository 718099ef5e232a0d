"""The catalogue compiled by Numba: one small function for each kernel and type, walked by `walker.run`.

A function takes ``(row, ctx, like)``: the addresses and shapes of its operands, the worker's number and count, and
a pointer that only carries the type. It is compiled on first use and cached on disk.

The functions of this folder are written once, with the names ``T``, ``exp``, ``tanh``, ... free; `specialise` binds
those to a type, and gives each copy a name with a hash of all sources of kernels in it. Numba files its cache by that
name, while it looks only at the file of the function itself to decide whether a cached one is stale: with the hash,
an edit of any of them is seen.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

MODULES = ("activations", "batches", "losses", "normalisation", "optimizers", "products")


@functools.cache
def stamp() -> str:
    """A hash of all sources of kernels: constants of the catalogue and of the layout are compiled in too."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def specialise(function: Callable[..., Any], names: dict[str, Any], suffix: str) -> FunctionType:
    """Return a copy of `function` whose global `names` are bound, with a name and a cache of its own."""
    assert isinstance(function, FunctionType)
    code, given = function.__code__, {**function.__globals__, **names}
    copy = FunctionType(code, given, function.__name__, function.__defaults__)
    copy.__qualname__ = f"{suffix}_{stamp()}"
    return copy


@functools.cache
def table() -> dict[str, tuple[Callable[..., Any], dict[str, str]]]:
    """Kernel name -> (function to specialise, names of the scalar functions that it takes)."""
    found: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {}
    for name in MODULES:
        found.update(importlib.import_module(f"{__name__}.{name}").KERNELS)
    return found


_COMPILED: dict[tuple[str, tuple[str, ...], str], Any] = {}
"""What was compiled or loaded, by function, the scalar functions in it, and type; it must stay alive."""


_LOCK = threading.Lock()


def address(name: str, dtype: str, on_compile: Callable[[], None] | None = None) -> int:
    """Return the address of a compiled kernel, compiling it or loading it from the cache.

    Args:
        name: in the catalogue, or a form that linking chooses.
        dtype: "float32" or "float64".
        on_compile: called after a kernel that was not in the cache.
    """
    function, scalars = table()[name]
    key = (function.__name__, tuple(scalars.values()), dtype)
    with _LOCK:  # trainings that start together need the same kernels
        if key not in _COMPILED:
            _COMPILED[key] = _compile(function, scalars, key)
            if on_compile is not None and not _COMPILED[key].cache_hits:
                on_compile()
    return _COMPILED[key].address


def _compile(
    function: Callable[..., Any], scalars: dict[str, str], key: tuple[str, tuple[str, ...], str]
) -> Any:
    from numba import cfunc, types

    from . import mathlib

    dtype = key[2]
    names = dict(mathlib.names(dtype))
    for free, scalar in scalars.items():
        names[free] = mathlib.scalar_function(scalar, dtype)
    typed = specialise(function, names, "_".join((key[0], *key[1], dtype)))
    integer = types.CPointer(types.int64)
    signature = types.void(integer, integer, types.CPointer(getattr(types, dtype)))
    return cfunc(signature, cache=True, error_model="numpy", fastmath=mathlib.FAST)(typed)
