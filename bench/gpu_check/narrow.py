"""Products of layers with few outputs in one pass with an activation or its gradient."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpumlp.kernels import FOR_GPUS, IN_BFLOAT16, kernel_spec
from gpumlp.kernels.reference.products import as_float, to_bfloat16

from .bfloat16 import ROUNDED
from .checks import PRODUCT_TOLERANCE, Check, Context, Failed, Values, relative_error
from .examples import SCALARS
from .one_call import COMPILED_FOR, Compiled, call, reference, written

NAMES = tuple(sorted(name for name in FOR_GPUS if "narrow" in name))

# rows, columns, the few
SHAPES = (5, 7, 3), (64, 100, 10), (1500, 1000, 10), (700, 513, 16), (280, 1, 1), (8000, 40, 2)
ON_HOST = SHAPES[:2]


def checks(context: Context) -> list[Check]:
    """Each of them, compiled for each type."""
    compiled = Compiled(context, {*NAMES, "advance"})
    found = compiled.checks()
    for name in NAMES:
        for dtype in COMPILED_FOR:
            check = functools.partial(check_narrow, context, compiled, name, dtype)
            found.append(Check(f"{name} {dtype}", check))
    return found


def operands(name: str, shape: tuple[int, int, int], dtype: str) -> dict[str, Any]:
    """Return operands of one of `NAMES`, those that it writes full of zeros.

    Args:
        shape: rows, columns, and the few: columns of a product, or its inner side.
        dtype: of all.
    """
    rows, columns, few = shape
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("x", "y", "dx"), (rows, columns))
    shapes |= {"a": (rows, few), "b": (columns, few), "c": (rows, few), "dw": (columns, few)}
    shapes |= {"bias": (columns,), "db": (columns,), "added": (few,), "da": (few,)}
    rng, spec = np.random.default_rng(rows), kernel_spec(name)
    values: dict[str, Any] = {}
    for operand in spec.operands:
        size = shapes[operand]
        drawn = np.zeros(size) if operand in spec.writes else rng.normal(size=size)
        values[operand] = drawn.astype(dtype)
    if "relu" in name and "y" in spec.reads:
        values["y"] = np.maximum(rng.normal(size=(rows, columns)), 0).astype(dtype)
    return values


def scalars(name: str) -> dict[str, float]:
    """Return the scalars of one of `NAMES`."""
    return {s: SCALARS[s] for s in kernel_spec(name).scalars}


def check_narrow(context: Context, compiled: Compiled, name: str, dtype: str) -> Values:
    """Hold one of them against the reference in float64, at several shapes; NaN goes through."""
    worst, faults = 0.0, []
    real = "float32" if dtype == "bf16" else dtype
    for shape in context.either(SHAPES, ON_HOST):
        for n, given in enumerate(_given(name, operands(name, shape, real), dtype)):
            wide = {k: None if v is None else as_float(np, v) for k, v in given.items()}
            wanted = reference(name, wide, scalars(name))
            # by one block, and with gaps, only the operands as they are
            for blocks, gap, shift in ((0, 0, 0), (1, 0, 0), (0, 3, 1))[: 1 if n else 3]:
                if gap and "dw" in given:  # the gradient of a weight lies together
                    continue
                kernels = compiled.kernels.get(dtype)
                found = call(context, name, given, scalars(name), dtype, blocks, kernels, gap, shift)
                for operand in written(kernel_spec(name)):
                    if given[operand] is None:
                        continue
                    error, fault = _judge(found[operand], wanted[operand], dtype)
                    worst = max(worst, error)
                    where = f"{shape}, blocks {blocks or 'many'}, gap {gap}: {operand}"
                    faults += [f"{where}: {fault}"] if fault else []
    if faults:
        raise Failed(faults[0], {"error": worst, "faults": faults[:20]})
    return {"error": worst}


def _given(name: str, values: dict[str, Any], dtype: str) -> Iterator[dict[str, Any]]:
    """The operands as they are, with a NaN, and without those that may be absent; in bfloat16 where they may be."""
    spec = kernel_spec(name)
    first = "x" if name.endswith("_narrow") else "a"
    for lost, absent in ((False, False), (True, False), (False, True)):
        given: dict[str, Any] = {k: v.copy() for k, v in values.items()}
        if lost:
            given[first][-1, -1] = np.nan
        if absent:
            given |= dict.fromkeys(spec.optional)
        if dtype == "bf16":
            given |= {
                k: to_bfloat16(np, v) for k, v in given.items() if v is not None and k in IN_BFLOAT16[name]
            }
        yield given


def _judge(found: np.ndarray, wanted: np.ndarray, dtype: str) -> tuple[float, str]:
    """Return the relative error, and what is wrong, if anything."""
    limit = (
        ROUNDED if found.dtype == np.uint16 else PRODUCT_TOLERANCE["float32" if dtype == "bf16" else dtype]
    )
    value, there = as_float(np, found), ~np.isnan(wanted)
    if not np.array_equal(~np.isnan(value), there):
        return 0.0, "NaN in other places"
    error = relative_error(value[there], wanted[there])
    return error, "" if error <= limit else f"{error:.3g} off, expected at most {limit:g}"
