"""Products of matrices, biases and copies."""

from __future__ import annotations

from typing import Any

Array = Any


def to_bfloat16(xp: Any, x: Array) -> Array:
    """Return float32 values rounded to nearest even as bfloat16, in uint16; NaN stays NaN."""
    bits = x.astype(xp.float32).view(xp.uint32)
    rounded = (bits + xp.uint32(0x7FFF) + ((bits >> xp.uint32(16)) & xp.uint32(1))) >> xp.uint32(16)
    # rounding could carry a NaN over into an infinity or zero: it keeps its sign and its quiet bit
    quiet = (bits >> xp.uint32(16)) | xp.uint32(0x40)
    return xp.where(xp.isnan(x), quiet, rounded).astype(xp.uint16)


def from_bfloat16(xp: Any, x: Array) -> Array:
    """Return the float32 values of bfloat16 in uint16."""
    return (x.astype(xp.uint32) << xp.uint32(16)).view(xp.float32)


def as_float(xp: Any, x: Array) -> Array:
    """Return `x`, or the values of what is bfloat16."""
    return from_bfloat16(xp, x) if x.dtype == xp.uint16 else x


def matmul(
    xp: Any, a: Array, b: Array, c: Array, transpose_a: bool = False, transpose_b: bool = False
) -> None:
    xp.matmul(a.T if transpose_a else a, b.T if transpose_b else b, out=c)


def add_bias(xp: Any, bias: Array, x: Array) -> None:
    x += bias


def column_sums(xp: Any, dy: Array, db: Array) -> None:
    xp.sum(dy, axis=0, out=db)


def copy(xp: Any, x: Array, y: Array) -> None:
    y[...] = x
