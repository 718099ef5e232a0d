"""A product with a short inner side in one pass with the gradient of an activation."""

from __future__ import annotations

import numpy as np

from gpumlp.kernels import ACTIVATIONS, kernel_spec
from gpumlp.kernels.reference.products import as_float, to_bfloat16

from .bfloat16 import ROUNDED
from .checks import PRODUCT_TOLERANCE, Context, Failed, Values, relative_error
from .examples import SCALARS
from .one_call import Compiled, call, reference

# rows, columns, inner side
SHAPES = (5, 7, 3), (64, 100, 10), (6000, 1000, 10), (700, 513, 16), (280, 1, 1)
ON_HOST = SHAPES[:2]


def check_narrow(context: Context, compiled: Compiled, dtype: str) -> Values:
    """Hold the gradient of each activation against the reference in float64, at several shapes; NaN goes through."""
    worst, faults = 0.0, []
    real = "float32" if dtype == "bf16" else dtype
    for name in (f"narrow_{activation}_grad" for activation in ACTIVATIONS):
        scalars = {s: SCALARS[s] for s in kernel_spec(name).scalars}
        for rows, columns, inner in context.either(SHAPES, ON_HOST):
            rng = np.random.default_rng(rows)
            saved = rng.normal(size=(rows, columns))
            values: dict[str, np.ndarray | None] = {
                "a": rng.normal(size=(rows, inner)).astype(real),
                "b": rng.normal(size=(columns, inner)).astype(real),
                kernel_spec(name).operands[2]: (
                    np.maximum(saved, 0) if name == "narrow_relu_grad" else saved
                ).astype(real),
                "dx": np.zeros((rows, columns), real),
            }
            for lost in (False, True):
                given = {k: None if v is None else v.copy() for k, v in values.items()}
                if lost:
                    first = given["a"]
                    assert first is not None
                    first[-1, -1] = np.nan
                if dtype == "bf16":
                    given = {k: None if v is None else to_bfloat16(np, v) for k, v in given.items()}
                wanted = reference(
                    name, {k: None if v is None else as_float(np, v) for k, v in given.items()}, scalars
                )["dx"]
                for blocks, gap, shift in ((0, 0, 0), (1, 0, 0), (0, 3, 1)):
                    kernels = compiled.kernels.get(dtype)
                    dx = call(context, name, given, scalars, dtype, blocks, kernels, gap, shift)["dx"]
                    error, fault = _judge(as_float(np, dx), wanted, dtype)
                    worst = max(worst, error)
                    where = f"{name}, {rows} x {columns} x {inner}, blocks {blocks or 'many'}, gap {gap}"
                    faults += [f"{where}: {fault}"] if fault else []
    if faults:
        raise Failed(faults[0], {"error": worst, "faults": faults[:20]})
    return {"error": worst, "kernels": len(ACTIVATIONS)}


def _judge(found: np.ndarray, wanted: np.ndarray, dtype: str) -> tuple[float, str]:
    """Return the relative error, and what is wrong, if anything."""
    there = ~np.isnan(wanted)
    if not np.array_equal(~np.isnan(found), there):
        return 0.0, "NaN in other places"
    error, limit = (
        relative_error(found[there], wanted[there]),
        ROUNDED if dtype == "bf16" else PRODUCT_TOLERANCE[dtype],
    )
    return error, "" if error <= limit else f"{error:.3g} off, expected at most {limit:g}"
