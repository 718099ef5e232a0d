"""Products by kernels of our own, and what they do on the way: biases, relu, its gradient, sums of a bias's."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gpumlp.executors.products import ENDINGS
from gpumlp.kernels import kernel_spec

from .checks import PRODUCT_TOLERANCE, Check, Context, Failed, Values
from .one_call import DTYPES, Compiled, call, compare, reference

# rows, columns, inner side
SIZES = (
    *((32, 128, 64), (64, 128, 32), (1, 64, 32), (33, 35, 37), (64, 10, 100), (3, 20, 12)),
    *((64, 500, 784), (784, 500, 64), (500, 250, 64), (64, 64, 4000)),
)
ON_HOST = SIZES[:4]
FORMS = {"plain": (False, False), "first turned": (True, False), "second turned": (False, True)}


def checks(context: Context, compiled: Compiled) -> list[Check]:
    """Each ending in each type."""
    return [
        Check(
            f"{name} by a kernel of our own, {dtype}",
            functools.partial(check, context, compiled, name, dtype),
        )
        for name in ENDINGS
        for dtype in DTYPES
    ]


def operands(name: str, size: tuple[int, int, int], form: str, dtype: str) -> dict[str, Any]:
    """Return operands of a product, of which those that it writes are full of NaN.

    Args:
        name: of `ENDINGS`.
        size: rows, columns and inner side.
        form: of `FORMS`.
        dtype: of all.
    """
    (rows, columns, inner), (turned_a, turned_b) = size, FORMS[form]
    rng = np.random.default_rng(inner)
    values: dict[str, Any] = {
        "a": rng.normal(size=(inner, rows) if turned_a else (rows, inner)),
        "b": rng.normal(size=(columns, inner) if turned_b else (inner, columns)),
        "bias": rng.normal(size=columns),
        "y": np.maximum(rng.normal(size=(rows, columns)), 0),
        "c": np.full((rows, columns), np.nan),
        "db": np.full(columns, np.nan),
        "mask": None,
    }
    taken = {operand: values[operand] for operand in kernel_spec(name).operands}
    return {operand: None if v is None else v.astype(dtype) for operand, v in taken.items()}


def check(context: Context, compiled: Compiled, name: str, dtype: str) -> Values:
    """Hold one against the reference in float64, by many blocks and by one; the same bits twice."""
    worst, faults = 0.0, []
    for size in context.either(SIZES, ON_HOST):
        for form, (turned_a, turned_b) in FORMS.items():
            if name == "product_bias_grad" and not turned_a:
                continue  # it is the gradient of a weight
            values = operands(name, size, form, dtype)
            scalars = {"transpose_a": turned_a, "transpose_b": turned_b}
            wanted = reference(name, values, scalars)
            for blocks in (0, 1):
                found, again = (
                    call(context, name, values, scalars, dtype, blocks, compiled.kernels.get(dtype))
                    for _ in range(2)
                )
                error, wrong = compare(kernel_spec(name), values, found, wanted, dtype)
                worst = max(worst, error)
                if any(not np.array_equal(found[k], again[k]) for k in found):
                    wrong.append("other bits the second time")
                faults += [f"{size}, {form}, blocks {blocks or 'many'}: {text}" for text in wrong]
    result: Values = {"error": worst, "tolerance": PRODUCT_TOLERANCE[dtype]}
    if faults:
        raise Failed(faults[0], {**result, "faults": faults[:20], "number": len(faults)})
    return result
