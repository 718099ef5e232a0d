"""A rewrite that lets gradients of weights read the data turned: a copy in which each column of the data is a row.

The tensor cores read factors in TF32 along the side that is summed over, which for the gradient of a weight is the
rows of the batch. Data that lie row by row are turned again in each step on their way there; but they do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..program import Call, Operand, Program
from .lowering import Rewrite

DATA_TURNED = "X.turned"
"""The array that holds the data turned, (features, rows)."""

OF_WEIGHTS = frozenset(["matmul", "product_bias_grad"])
"""Products that may be the gradient of a weight."""

ROWS_TOGETHER = 4
"""What the number of rows must be a multiple of: rows of the copy then begin at multiples of 16 bytes, as the quick
kernels of a library want it."""


def read_turned(pays: Callable[[Call], bool]) -> Rewrite:
    """Return a rewrite that lets products read `DATA_TURNED` in place of data that they turn themselves.

    It comes behind `read_full_batch_in_place`; the copy is for the executor to make.

    Args:
        pays: whether that is worth it for a product, which is given as it was.
    """

    def rewrite(program: Program) -> Program:
        calls = tuple(turned(call) if _turns_data(call) and pays(call) else call for call in program.calls)
        return replace(program, calls=calls)

    return rewrite


def turned(product: Call) -> Call:
    """Return the same product of the turned data."""
    a, *others = product.operands
    assert a is not None
    copy = Operand(DATA_TURNED, "", a.shape[::-1], a.dtype)
    return replace(product, operands=(copy, *others), scalars={**product.scalars, "transpose_a": False})


def _turns_data(call: Call) -> bool:
    if call.kernel not in OF_WEIGHTS or not call.scalars["transpose_a"]:
        return False
    a = call.operands[0]
    assert a is not None
    whole = a == Operand("X", "", a.shape, "float32")
    return whole and a.shape[0] % ROWS_TOGETHER == 0
