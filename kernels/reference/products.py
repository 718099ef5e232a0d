"""Products of matrices, biases and copies."""

from __future__ import annotations

from typing import Any

Array = Any


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
