"""exp, tanh, sigmoid, erf and log1p that LLVM vectorises, in float32; the C library's in float64.

Numba has no vector maths library: `math.tanh` in a loop is a call for each element. The polynomials here are
minimax fits of our own over the ranges named; tests hold their errors to 4 ulp. Functions are compiled with
"contract" alone: reassociation would undo the two-step reduction of the argument. They are inlined always: LLVM
takes a long one for a call, and a loop with a call in it is not vectorised. NaN goes through.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit

from .intrinsics import bits_to_float

FAST = {"contract", "arcp", "nsz", "reassoc"}
"""What loops may do; not "nnan" or "ninf": a NaN must stay visible."""

F = np.float32


def specialise(function: Callable[..., Any], names: dict[str, Any], name: str) -> FunctionType:
    """Return a copy of `function` of that name, whose global `names` are bound."""
    assert isinstance(function, FunctionType)
    code, given = function.__code__, {**function.__globals__, **names}
    copy = FunctionType(code, given, function.__name__, function.__defaults__)
    copy.__qualname__ = name
    return copy


@njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
def exp32(x):
    """exp(x) = 2^n exp(r), r = x - n log 2 in [-log 2 / 2, log 2 / 2]; 0 below the normal numbers."""
    bounded = x if x > F(-87.33654) else F(-87.33654)
    bounded = bounded if bounded < F(88.72284) else F(88.72284)
    # np.floor stays in float32; math.floor would give an int64, and float64 from there on
    n = np.floor(bounded * F(1.4426950408889634) + F(0.5))
    r = bounded - n * F(0.693359375)
    r = r - n * F(-2.12194440e-4)
    q = F(1.99155973e-4)
    q = q * r + F(1.394614419e-3)
    q = q * r + F(8.333269678e-3)
    q = q * r + F(4.166626863e-2)
    q = q * r + F(1.666666684e-1)
    q = q * r + F(5.000000078e-1)
    y = q * (r * r) + r + F(1)
    # 2^n in two halves: n = 128 does not fit one exponent
    whole = np.int32(n)
    half = whole >> np.int32(1)
    y = y * bits_to_float(np.int32((half + np.int32(127)) << np.int32(23)))
    y = y * bits_to_float(np.int32((whole - half + np.int32(127)) << np.int32(23)))
    y = y if x >= F(-87.33654) else F(0)
    y = y if x <= F(88.72284) else F(np.inf)
    return y if x == x else x


@njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
def tanh32(x):
    """An odd polynomial up to 0.55, beyond it 1 - 2 / (exp(2 |x|) + 1)."""
    size = abs(x)
    s = x * x
    q = F(2.398989985e-3)
    q = q * s + F(-8.4167853e-3)
    q = q * s + F(2.178376515e-2)
    q = q * s + F(-5.3959791963e-2)
    q = q * s + F(1.33332946301e-1)
    q = q * s + F(-3.33333327418e-1)
    small = x + x * s * q
    large = F(1) - F(2) / (exp32(size + size) + F(1))
    large = large if x > F(0) else -large
    y = small if size < F(0.55) else large
    return y if x == x else x


@njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
def sigmoid32(x):
    e = exp32(-abs(x))
    d = F(1) / (F(1) + e)
    return d if x >= F(0) else e * d


@njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
def erf32(x):
    """x q(x^2) up to 1, 1 - exp(p(|x|)) up to 4, then 1."""
    size = abs(x)
    s = x * x
    q = F(-9.680126249e-6)
    q = q * s + F(1.127054094530e-4)
    q = q * s + F(-8.484710962830e-4)
    q = q * s + F(5.221074845030e-3)
    q = q * s + F(-2.686544580986e-2)
    q = q * s + F(1.128378274701e-1)
    q = q * s + F(-3.761263848380e-1)
    q = q * s + F(1.128379167063)
    small = x * q
    t = size if size < F(4) else F(4)
    p = F(-2.168708545976e-05)
    p = p * t + F(4.413392649189e-04)
    p = p * t + F(-4.204576731902e-03)
    p = p * t + F(2.520829832791e-02)
    p = p * t + F(-1.084186457634e-01)
    p = p * t + F(-6.332198268750e-01)
    p = p * t + F(-1.129578459172)
    p = p * t + F(1.880479691367e-04)
    large = F(1) - exp32(p)
    large = large if x > F(0) else -large
    y = small if size < F(1) else large
    return y if x == x else x


@njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
def log1p32(u):
    """log(1 + u) for u in [0, 1]: 2 artanh(u / (2 + u))."""
    s = u / (F(2) + u)
    z = s * s
    q = F(1.09001772891e-1)
    q = q * z + F(8.5727263808e-2)
    q = q * z + F(1.11508834323e-1)
    q = q * z + F(1.42841913745e-1)
    q = q * z + F(2.00000266442e-1)
    q = q * z + F(3.33333331786e-1)
    return F(2) * (s + s * z * q)


@njit(error_model="numpy")
def sigmoid64(x):
    e = math.exp(-abs(x))
    return 1.0 / (1.0 + e) if x >= 0 else e / (1.0 + e)


@njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
def unit_softplus32(x):
    """log(1 + exp(x))."""
    return (F(0) if x < F(0) else x) + log1p32(exp32(-abs(x)))


@njit(error_model="numpy")
def unit_softplus64(x):
    return (0.0 if x < 0 else x) + math.log1p(math.exp(-abs(x)))


def names(dtype: str) -> dict[str, Any]:
    """What the free names of a kernel are bound to for a type."""
    if dtype == "float32":
        return {
            "T": np.float32,
            "exp": exp32,
            "tanh": tanh32,
            "sigmoid": sigmoid32,
            "erf": erf32,
            "unit_softplus": unit_softplus32,
        }
    return {
        "T": np.float64,
        "exp": math.exp,
        "tanh": math.tanh,
        "sigmoid": sigmoid64,
        "erf": math.erf,
        "unit_softplus": unit_softplus64,
    }


@functools.cache
def scalar_function(name: str, dtype: str) -> Any:
    """The element-wise function of that name of `activations` or `losses`, compiled for a type."""
    from . import activations, losses

    module = activations if hasattr(activations, name) else losses
    typed = specialise(getattr(module, name), names(dtype), f"{name}_{dtype}")
    return njit(fastmath={"contract"}, error_model="numpy", forceinline=True)(typed)


# The free names, for readers and for tools that look names up; `specialise` binds them anew.
T: Any = np.float64
exp: Any = math.exp
tanh: Any = math.tanh
sigmoid: Any = sigmoid64
erf: Any = math.erf
unit_softplus: Any = unit_softplus64
