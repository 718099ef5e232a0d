"""Operations on operands in bfloat16, and the rounding to it."""

from __future__ import annotations

import functools

import numpy as np

from gpumlp.kernels import CATALOGUE, IN_BFLOAT16, UPDATES
from gpumlp.kernels.reference import kernel
from gpumlp.kernels.reference.products import as_float, from_bfloat16, to_bfloat16

from .checks import PRODUCT_TOLERANCE, Check, Context, Failed, Values, relative_error
from .one_call import ON_HOST, SIZES, Compiled, call, reference, written

ROUNDED = 2.0**-8
"""Relative error of numbers that were rounded to bfloat16, by norm; half of it is the most of one."""


def bfloat16_checks(context: Context, compiled: Compiled) -> list[Check]:
    """Each operation whose operands may be bfloat16, and the cast."""
    names = sorted(set(IN_BFLOAT16) & set(CATALOGUE) - {"matmul"})  # results of products are the library's
    found = [
        Check(f"{name} on bfloat16", functools.partial(check_halves, context, compiled, name), limit=60)
        for name in names
    ]
    found.append(Check("cast_bf16", functools.partial(check_cast, context, compiled)))
    return [*found, Check("updates with a copy", functools.partial(check_updates, context, compiled))]


def check_halves(context: Context, compiled: Compiled, name: str) -> Values:
    """Hold one kernel on bfloat16 against the reference in float64 on the same numbers, at every size."""
    worst, faults = 0.0, []
    for size, examples in SIZES.items():
        if context.is_host and size not in ON_HOST:
            continue
        values = examples.operands(name, "float32")
        halves = {k: to_bfloat16(np, v) if k in IN_BFLOAT16[name] else v for k, v in values.items()}
        rounded = {k: as_float(np, v) for k, v in halves.items()}
        scalars = examples.scalars(name)
        wanted = reference(name, rounded, scalars)
        for blocks, gap, shift in ((0, 0, 0), (1, 0, 0), (0, 3, 1)):
            kernels = compiled.kernels.get("bf16")
            found = call(context, name, halves, scalars, "bf16", blocks, kernels, gap, shift)
            for result in written(CATALOGUE[name]):
                is_half = result in IN_BFLOAT16[name]
                error = relative_error(as_float(np, found[result]), wanted[result])
                worst = max(worst, error)
                limit = ROUNDED if is_half else PRODUCT_TOLERANCE["float32"]
                if not error <= limit:
                    faults.append(
                        f"{size}, blocks {blocks or 'many'}, gap {gap}: {result} is {error:.3g} off"
                    )
    if faults:
        raise Failed(faults[0], {"error": worst, "faults": faults[:20]})
    return {"error": worst, "tolerance": ROUNDED}


def check_updates(context: Context, compiled: Compiled) -> Values:
    """Updates that round the parameters to a copy change what plain ones do, bit for bit."""
    kernels = compiled.kernels.get("bf16")
    for name in UPDATES:
        for size in context.either(("small", "odd"), ("small",)):
            values, scalars = SIZES[size].operands(name, "float32"), SIZES[size].scalars(name)
            plain = call(context, name, values, scalars, "bf16", 0, kernels)
            given = {**values, "copy": np.zeros(values["parameters"].shape, np.uint16)}
            found = call(context, f"{name}_cast", given, scalars, "bf16", 0, kernels)
            wanted = {**plain, "copy": to_bfloat16(np, plain["parameters"])}
            for operand, value in found.items():
                if not np.array_equal(value, wanted[operand], equal_nan=value.dtype.kind == "f"):
                    raise Failed(f"{name}_cast, {size}: {operand} is not that of {name}")
    return {"rules": len(UPDATES)}


def check_cast(context: Context, compiled: Compiled) -> Values:
    """Rounding to bfloat16 gives the bits of the reference: to nearest even, infinities and NaN kept."""
    rng = np.random.default_rng(1)
    special = [0.0, -0.0, np.inf, -np.inf, 1e-40, 3.4e38, -3.4e38, 1.00390625, 1.01171875]
    x = np.concatenate([special, rng.normal(size=4096) * 10.0 ** rng.integers(-30, 30, 4096)])
    x = x.astype(np.float32)[: 4096 // 8 * 8].reshape(-1, 8)
    x[7, 3] = np.nan
    values: dict[str, np.ndarray | None] = {"x": x, "y": np.zeros(x.shape, np.uint16)}
    wanted = np.zeros(x.shape, np.uint16)
    kernel("cast_bf16")(np, x, wanted)
    nan = np.isnan(x)
    for dtype in ("float32", "bf16"):
        found = call(context, "cast_bf16", values, {}, dtype, 0, compiled.kernels.get(dtype))["y"]
        if not np.array_equal(found[~nan], wanted[~nan]):
            raise Failed(f"{(found[~nan] != wanted[~nan]).sum()} of {x.size} differ, compiled for {dtype}")
        if not np.isnan(from_bfloat16(np, found[nan])).all():
            raise Failed("a NaN became a number")
    return {"numbers": int(x.size)}
