"""Products by kernels of our own: small ones with what they do on the way (biases, relu, its gradient, sums), and large
ones.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gpumlp.executors import products
from gpumlp.executors.products import ENDINGS
from gpumlp.kernels import kernel_spec

from .checks import PRODUCT_TOLERANCE, Check, Context, Failed, Skipped, Values, relative_error
from .one_call import DTYPES, Compiled, call, compare, reference

# rows, columns, inner side
SIZES = (
    *((32, 128, 64), (64, 128, 32), (1, 64, 32), (33, 35, 37), (64, 10, 100), (3, 20, 12)),
    *((64, 500, 784), (784, 500, 64), (500, 250, 64), (64, 64, 4000)),
)
ON_HOST = SIZES[:4]
# of `mlpnn`, forward and the gradient of a weight, whose inner side is cut; and with sides that tiles do not divide
LARGE = (
    *((60_000, 1000, 784, "plain"), (784, 1000, 60_000, "first turned")),
    *((2050, 1037, 1301, "plain"), (1037, 515, 2050, "first turned"), (3000, 784, 1000, "second turned")),
)
LARGE_ON_HOST = ((136, 132, 40, "plain"), (130, 129, 33, "first turned"), (128, 131, 16, "second turned"))
SAMPLE = 64  # columns of a large product that are held against float64
FORMS = {"plain": (False, False), "first turned": (True, False), "second turned": (False, True)}


def checks(context: Context, compiled: Compiled) -> list[Check]:
    """Each ending in each type, and the large ones."""
    large = functools.partial(check_large, context, compiled)
    return [
        Check("large products by a kernel of our own", large, limit=120),
        *_endings(context, compiled),
    ]


def _endings(context: Context, compiled: Compiled) -> list[Check]:
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


def check_large(context: Context, compiled: Compiled) -> Values:
    """Hold some columns against float64; the same bits twice."""
    if not context.gpu.has_tf32:
        raise Skipped("its tensor cores take no floats: products are left to the library")
    errors: dict[str, float] = {}
    usual, products.LARGE_PRODUCT_FROM = products.LARGE_PRODUCT_FROM, 0
    try:
        for rows, columns, inner, form in context.either(LARGE, LARGE_ON_HOST):
            turned_a, turned_b = FORMS[form]
            values = operands("matmul", (rows, columns, inner), form, "float32")
            scalars = {"transpose_a": turned_a, "transpose_b": turned_b}
            found, again = (
                call(context, "matmul", values, scalars, "float32", compiled=compiled.kernels.get("float32"))[
                    "c"
                ]
                for _ in range(2)
            )
            label = f"{rows} x {inner} by {inner} x {columns}, {form}"
            if not np.array_equal(found, again):
                raise Failed(f"{label}: other bits the second time", errors)
            chosen = np.random.default_rng(1).permutation(columns)[:SAMPLE]
            a = values["a"].T if turned_a else values["a"]
            b = values["b"][chosen].T if turned_b else values["b"][:, chosen]
            errors[label] = relative_error(found[:, chosen], a.astype(np.float64) @ b.astype(np.float64))
    finally:
        products.LARGE_PRODUCT_FROM = usual
    worst = max(errors.values())
    result: Values = {"error": worst, "tolerance": PRODUCT_TOLERANCE["float32"], "errors": errors}
    if not worst <= PRODUCT_TOLERANCE["float32"]:
        raise Failed(f"the relative error is {worst:.3g}", result)
    return result
