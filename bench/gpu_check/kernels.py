"""Every operation of the GPU against the reference kernels in float64, alone and shared by blocks."""

from __future__ import annotations

import functools
from collections.abc import Collection

import numpy as np

from gpumlp.backend import address
from gpumlp.executors.device import CONTROL
from gpumlp.executors.unfolding import advance, encode_steps
from gpumlp.kernels import (
    BAD_STEP,
    CATALOGUE,
    EPOCH,
    FOR_GPUS,
    POSITION,
    SLOT,
    START,
    STEP,
    UPDATE,
    UPDATES,
    kernel_spec,
)
from gpumlp.kernels.cuda import OPERATIONS, THREADS
from gpumlp.program import Call, Memory, Operand, Program, new_control

from . import own_products
from .bfloat16 import bfloat16_checks
from .chains import PARTS, check_chains
from .checks import PRODUCT_TOLERANCE, Check, Context, Failed, Values
from .examples import variants
from .narrow import NAMES as NARROW
from .one_call import (
    DTYPES,
    ON_HOST,
    SIZES,
    Compiled,
    OneCall,
    call,
    compare,
    operations_of,
    reference,
    written,
)

OTHERS = {
    "cast_bf16",
    "advance",
    "large_matmul",
    "matmul_pair",
    "sums_of_shares",
    *NARROW,
    *(f"{name}_cast" for name in UPDATES),
}
"""Operations that the catalogue does not write, and that have checks of their own."""


def checks(context: Context) -> list[Check]:
    """Each operation in each type, and that none is left out."""
    compiled = Compiled(context, OPERATIONS)
    found = compiled.checks()
    for part, names in enumerate(PARTS, 1):  # first: they take longest
        for dtype in ("float32", "bf16"):
            run = functools.partial(check_chains, context, dtype, names)
            label = f"in chains, compiled for {dtype}, part {part} of {len(PARTS)}"
            found.append(Check(label, run, limit=120))
    for dtype in DTYPES:
        for name in CATALOGUE:
            check = functools.partial(check_kernel, context, compiled, name, dtype)
            found.append(Check(f"{name} {dtype}", check, limit=60))
        run = functools.partial(check_advance, context, compiled, dtype)
        found.append(Check(f"advance {dtype}", run))
        run = functools.partial(check_pairs, context, compiled, dtype)
        found.append(Check(f"two products at once {dtype}", run))
    found += own_products.checks(context, compiled)
    found += bfloat16_checks(context, compiled)
    found.append(Check("every operation is checked", functools.partial(check_coverage, context, compiled)))
    return found


# --- the checks ------------------------------------------------------------------------------------------------------


def check_kernel(context: Context, compiled: Compiled, name: str, dtype: str) -> Values:
    """Hold one kernel against the reference at every size, way through its code and number of blocks."""
    worst, faults = 0.0, []
    for size, examples in SIZES.items():
        if context.is_host and size not in ON_HOST:
            continue
        for changed in variants(name):
            if size != "small" and changed and context.is_host:
                continue
            values = examples.operands(name, dtype, changed)
            scalars = {**examples.scalars(name), **changed}
            if scalars.get("transpose_a") and scalars.get("transpose_b"):
                continue
            wanted = reference(name, values, scalars)
            ways: list[tuple[int, int, int]] = [(0, 0, 0), (1, 0, 0), (0, 3, 1)]
            for blocks, gap, shift in ways if not changed else ways[:1]:
                found = call(
                    context, name, values, scalars, dtype, blocks, compiled.kernels.get(dtype), gap, shift
                )
                error, wrong = compare(CATALOGUE[name], values, found, wanted, dtype)
                worst = max(worst, error)
                where = f"{size}, {changed or 'as usual'}, blocks {blocks or 'many'}, gap {gap}"
                faults += [f"{where}: {text}" for text in wrong]
    faults += lost_nan(context, compiled, name, dtype)
    result: Values = {"error": worst, "tolerance": PRODUCT_TOLERANCE[dtype]}
    if faults:
        raise Failed(faults[0], {**result, "faults": faults[:20], "number": len(faults)})
    return result


def lost_nan(context: Context, compiled: Compiled, name: str, dtype: str) -> list[str]:
    """Say where a NaN that a kernel reads does not show as it does in the reference."""
    examples, spec, faults = SIZES["small"], CATALOGUE[name], []
    rng = np.random.default_rng(5)
    scalars = examples.scalars(name)
    for operand in spec.reads:
        values = examples.operands(name, dtype)
        if values[operand].dtype.kind != "f" or operand in ("rates", "ring"):
            continue
        values[operand][tuple(rng.integers(0, n) for n in values[operand].shape)] = np.nan
        wanted = reference(name, values, scalars)
        found = call(context, name, values, scalars, dtype, 0, compiled.kernels.get(dtype))
        for result in written(spec):
            if found[result].dtype.kind == "f" and not np.array_equal(
                np.isnan(found[result]), np.isnan(wanted[result])
            ):
                faults.append(f"NaN in {operand}: {result} has it in other places")
    return faults


def check_advance(context: Context, compiled: Compiled, dtype: str) -> Values:
    """The counters move on after a good step, and stay after a bad one."""
    control = new_control(4)
    runner = OneCall(context, Memory({}, {"control": control, "rates": np.zeros(1)}))
    empty = Program((), {}, frozenset(), 1, dtype)
    runner.prepare(empty)
    step = advance(CONTROL, runner.memory, runner.linked(empty).activations, 32, 3)
    scalars = context.backend.asarray(np.array([[32.0, 3.0, *[0.0] * 6]]))
    rows, _ = encode_steps([step], address(scalars), 0)
    kernels = compiled.kernels.get(dtype) or context.gpu.kernels(dtype, {"advance"})
    launch = kernels.launch("advance", rows[0], 1, THREADS)
    seen = []
    with context.backend.active():
        for _ in range(4):
            launch()
            seen.append(context.backend.to_host(runner.memory.arrays["control"]).copy())
    places = [STEP, UPDATE, SLOT, POSITION, EPOCH, START]
    wanted = [[n, n, n, n % 3, int(n >= 3), 32 * (n % 3)] for n in range(1, 5)]
    found = [[int(c[k] - control[k]) for k in places] for c in seen]
    if found != wanted:
        raise Failed("the counters are not those of the steps done", {"found": found, "expected": wanted})
    bad = seen[-1].copy()
    bad[BAD_STEP] = 3
    context.gpu.copy_in(runner.memory.arrays["control"], bad)
    with context.backend.active():
        launch()
    after = context.backend.to_host(runner.memory.arrays["control"])
    if not np.array_equal(after, bad):
        raise Failed("the counters moved on after a bad step", {"found": after, "expected": bad})
    return {"steps": 4}


def check_pairs(context: Context, compiled: Compiled, dtype: str) -> Values:
    """The gradients of a layer's weight and of its input, in one launch."""
    worst = 0.0
    for rows, width, outputs in context.either(
        ((32, 64, 128), (64, 250, 100), (67, 131, 45)), ((32, 64, 48),)
    ):
        sides = {"x": (rows, width), "w": (width, outputs), "dy": (rows, outputs)}
        sides |= {"dw": sides["w"], "dx": sides["x"]}
        rng = np.random.default_rng(6)
        values = {name: rng.normal(size=shape).astype(dtype) for name, shape in sides.items()}
        o = {name: Operand(name, "", shape, dtype) for name, shape in sides.items()}
        calls = (
            Call("matmul", (o["x"], o["dy"], o["dw"]), {"transpose_a": True, "transpose_b": False}),
            Call("matmul", (o["dy"], o["w"], o["dx"]), {"transpose_a": False, "transpose_b": True}),
        )
        arrays = {name: context.backend.asarray(value) for name, value in values.items()}
        arrays |= {"control": new_control(0), "rates": np.zeros(1)}
        runner = OneCall(context, Memory({}, arrays), compiled=compiled.kernels.get(dtype))
        program = Program(calls, {}, frozenset(), rows, dtype)
        runner.prepare(program)
        operations = [step.operation for step in runner.linked(program).steps]
        if operations != ["matmul_pair"]:
            raise Failed("two products became no pair", {"operations": operations})
        runner.run_once(program)
        x, w, dy = (values[name].astype(np.float64) for name in ("x", "w", "dy"))
        for name, wanted in (("dw", x.T @ dy), ("dx", dy @ w.T)):
            found = context.backend.to_host(arrays[name]).astype(np.float64)
            worst = max(worst, float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
    result: Values = {"error": worst, "tolerance": PRODUCT_TOLERANCE[dtype]}
    if not worst <= PRODUCT_TOLERANCE[dtype]:
        raise Failed(f"the relative error is {worst:.3g}", result)
    return result


def check_coverage(context: Context, compiled: Compiled) -> Values:
    """What the calls of the checks unfold to is all that there is."""
    seen: set[str] = set(OTHERS)
    for name in CATALOGUE:
        seen |= operations_of(context, name, SIZES["small"])
    for name, size in (("matmul", "odd"), ("mse", "one column")):  # more than one block has work
        seen |= operations_of(context, name, SIZES[size])
    missing: Collection[str] = set(OPERATIONS) - seen
    if missing:
        raise Failed(f"no check runs {', '.join(sorted(missing))}")
    assert kernel_spec("cast_bf16") is FOR_GPUS["cast_bf16"]
    return {"operations": len(OPERATIONS)}
