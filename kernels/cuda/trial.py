"""A product of a library, tried once on numbers that have no rounding.

What a library does with NaN, and what it keeps in auxiliary matrices, is not written down for every version and type.
The numbers are made and judged on the host, so that nothing is compiled for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import BFLOAT16, kernel_spec, mask_bytes
from ..reference import kernel_in_bfloat16
from ..reference.epilogues import unpack_mask
from ..reference.products import as_float, to_bfloat16
from .device import ProductKind

TOLERANCE = {BFLOAT16: 1e-2, "float32": 1e-3, "float64": 1e-12}
"""By the type of a result; in float32 products may be those of TF32. cuBLASLt 13.1 has a GELU in float64 that is 1e-10
off: float64 is for checking, and is not to be had with less."""


def operand_types(kind: ProductKind) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shapes and types of the operands, by name, in the order of the catalogue.

    Vectors and what is saved are of the type of the result.
    """
    m, n, k = kind.rows, kind.columns, kind.inner
    factor = BFLOAT16 if kind.precision == "bf16" else kind.dtype
    types = {
        "a": ((k, m) if kind.transpose_a else (m, k), factor),
        "b": ((n, k) if kind.transpose_b else (k, n), factor),
        "mask": ((m, mask_bytes(n)), "uint8"),
        **dict.fromkeys(("bias", "db"), ((n,), kind.dtype)),
        **dict.fromkeys(("c", "x"), ((m, n), kind.dtype)),
    }
    return {name: types[name] for name in kernel_spec(kind.kernel).operands}


def small(kind: ProductKind) -> ProductKind:
    """Return the same kind in a size that is enough to try."""
    return replace(kind, rows=min(kind.rows, 32), columns=min(kind.columns, 128), inner=min(kind.inner, 64))


def computes_right(
    kind: ProductKind, multiply: Callable[[ProductKind, list[np.ndarray | None]], Sequence[np.ndarray | None]]
) -> bool:
    """Whether a product is right, and shows NaN where it must.

    Args:
        kind: of the product.
        multiply: takes the operands, returns those that were written.
    """
    for with_nan in (False, True):
        operands = _operands(kind, with_nan)
        allowed = _allowed(kind, operands)
        found = multiply(kind, operands)
        if not any(all(map(_near, found, wanted)) for wanted in allowed):
            return False
    return True


def _operands(kind: ProductKind, with_nan: bool) -> list[np.ndarray | None]:
    """Small integers; a NaN in the first row."""
    rng = np.random.default_rng(0)
    found: list[np.ndarray | None] = []
    for name, (shape, dtype) in operand_types(kind).items():
        numbers = rng.integers(-2, 3, shape).astype(np.float64)
        if name == "a" and with_nan:
            numbers[:1, :1] = np.nan
        if dtype == "uint8":
            numbers = np.abs(numbers)
        found.append(to_bfloat16(np, numbers) if dtype == BFLOAT16 else numbers.astype(dtype))
    if not kind.last:
        found[-1] = None
    return found


def _allowed(kind: ProductKind, operands: Sequence[np.ndarray | None]) -> list[list[Any]]:
    """What may be written, of which there is more than one where NaN meets a slope of 0.

    It is NaN, or 0 where a mask selects: then the NaN still shows in the gradients of the layer above, of whose result
    it is the gradient.
    """
    after = [None if o is None else o.copy() for o in operands]
    run = kernel_in_bfloat16(kind.kernel)
    with np.errstate(all="ignore"):
        run(np, *after, kind.transpose_a, kind.transpose_b)
    allowed: list[list[Any]] = [[after[k] for k in kind.written]]
    if kind.kernel == "product_relu_grad":
        _, _, mask, c, db = after
        assert mask is not None
        assert c is not None
        selected = np.where(unpack_mask(np, mask, kind.columns), as_float(np, c), 0.0)
        allowed.append([selected, None if db is None else selected.sum(axis=0)])
    return allowed


def _near(found: np.ndarray | None, wanted: Any) -> bool:
    if found is None or found.dtype == np.uint8:  # a mask: the bits behind the last column are nobody's
        return True
    tolerance = TOLERANCE[str(found.dtype)]
    a, b = as_float(np, found), as_float(np, wanted)
    there = np.isfinite(b)
    # large sums must not hide what a function gets wrong near 0; in float64 sums of small integers are exact anyway
    double = found.dtype == np.float64
    scale = 1.0 if double else max(1.0, float(np.abs(b[there]).max(initial=0.0)))
    if not np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        return False
    off, size = (float(np.linalg.norm(x[there])) for x in (a - b, b))
    return not double or off <= tolerance * max(1.0, size)
