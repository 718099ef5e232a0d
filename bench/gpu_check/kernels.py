"""Every operation of the GPU against the reference kernels in float64, alone and shared by blocks."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpumlp.backend import address
from gpumlp.executors.device import CONTROL, DeviceExecutor
from gpumlp.executors.unfolding import THREADS, advance, encode_steps
from gpumlp.kernels import (
    ACTIVATIONS,
    BAD_STEP,
    CATALOGUE,
    EPOCH,
    FOR_GPUS,
    POSITION,
    SLOT,
    START,
    STEP,
    UPDATE,
    KernelSpec,
    kernel_spec,
)
from gpumlp.kernels.cuda import OPERATIONS
from gpumlp.kernels.cuda.device import Kernels
from gpumlp.kernels.reference import kernel
from gpumlp.program import Call, Memory, Operand, Program, new_control

from .checks import PRODUCT_TOLERANCE, Array, Check, Context, Failed, Values, relative_error
from .examples import Examples, variants

DTYPES = ("float32", "float64")
COMPILED_FOR = (*DTYPES, "bf16")
SIZES = {
    "small": Examples(5, 7, 33),
    "odd": Examples(67, 131, 4099),
    "long": Examples(2050, 9, 100_003),
    "wide": Examples(9, 1037, 1 << 20),
    "one column": Examples(300, 1, 5),
}
ON_HOST = ("small", "one column")

OTHERS = {"cast_bf16", "advance", *(f"narrow_{name}_grad" for name in ACTIVATIONS)}
"""Operations that the catalogue does not write, and that have checks of their own."""


class OneCall(DeviceExecutor):
    """Runs a program as it is, each call a kernel of the GPU's own.

    Args:
        blocks: that share an operation, at most; 0 for what the device holds.
        compiled: of a type; None compiles what the program needs.
    """

    uses_library = False

    def __init__(
        self, context: Context, memory: Memory, blocks: int = 0, compiled: Kernels | None = None
    ) -> None:
        super().__init__(context.backend, memory)
        self._blocks, self._compiled = blocks, compiled

    def rewrites(self, program: Program) -> tuple[Any, ...]:
        return ()

    def _most_blocks(self) -> int:
        return self._blocks or super()._most_blocks()

    def kernels(self, dtype: str) -> Kernels:
        return self._compiled or self.device.kernels(dtype, self._operations)

    def run_once(self, program: Program) -> None:
        """Run a prepared program and wait."""
        linked = self.linked(program)
        with self.backend.active():
            for launch in self.launches(linked):
                launch()
        self.device.synchronize()


class Compiled:
    """All kernels of every type, compiled at once; where that fails, each check compiles its own."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.kernels: dict[str, Kernels] = {}

    def compile(self) -> Values:
        """Compile; the seconds are those of a machine that has nothing in its cache, or of one that has."""
        device = self.context.gpu

        def one(dtype: str) -> float:
            start = time.perf_counter()
            self.kernels[dtype] = device.kernels(dtype, frozenset(OPERATIONS))
            return time.perf_counter() - start

        with ThreadPoolExecutor(len(COMPILED_FOR)) as pool:
            futures = {dtype: pool.submit(one, dtype) for dtype in COMPILED_FOR}
        return {f"{dtype} seconds": future.result() for dtype, future in futures.items()}


def checks(context: Context) -> list[Check]:
    """Each operation in each type, and that none is left out."""
    from .bfloat16 import bfloat16_checks
    from .chains import check_chains
    from .narrow import check_narrow

    compiled = Compiled(context)
    found = [Check("compile", compiled.compile, limit=170)]
    for dtype in DTYPES:
        for name in CATALOGUE:
            check = functools.partial(check_kernel, context, compiled, name, dtype)
            found.append(Check(f"{name} {dtype}", check, limit=60))
        run = functools.partial(check_advance, context, compiled, dtype)
        found.append(Check(f"advance {dtype}", run))
    found += bfloat16_checks(context, compiled)
    found.append(Check("in chains", functools.partial(check_chains, context), limit=120))
    found += [
        Check(
            f"narrow gradients {compiled_for}",
            functools.partial(check_narrow, context, compiled, compiled_for),
        )
        for compiled_for in COMPILED_FOR
    ]
    found.append(Check("every operation is checked", functools.partial(check_coverage, context, compiled)))
    return found


# --- one call --------------------------------------------------------------------------------------------------------


def place(backend: Any, value: np.ndarray, gap: int, shift: int) -> tuple[Array, Array]:
    """Put an operand on the device: its whole memory as rows, and the part of it that counts.

    Args:
        backend: the device.
        value: of the operand.
        gap: elements between the rows of a matrix.
        shift: elements before the first.
    """
    rows, columns = value.shape if value.ndim == 2 else (1, value.size)
    flat = np.zeros(shift + rows * (columns + gap), value.dtype)
    flat[shift:].reshape(rows, columns + gap)[:, :columns] = value
    memory = backend.asarray(flat)[shift:].reshape(rows, columns + gap)
    view = memory[:, :columns]
    return (memory, view) if value.ndim == 2 else (memory[0], view[0])


def call(
    context: Context,
    name: str,
    values: Mapping[str, np.ndarray | None],
    scalars: Mapping[str, Any],
    dtype: str,
    blocks: int = 0,
    compiled: Kernels | None = None,
    gap: int = 0,
    shift: int = 0,
    kind: type[OneCall] | None = None,
) -> dict[str, np.ndarray]:
    """Run one kernel on the device; return all operands afterwards, on the host."""
    views: dict[str, Array] = {}
    arrays: dict[str, Any] = {"control": new_control(0), "rates": np.zeros(1)}
    operands: list[Operand | None] = []
    for operand, value in values.items():
        if value is None:
            operands.append(None)
            continue
        apart = gap if value.ndim == 2 and operand != "ring" else 0
        if operand in ("control", "rates"):
            arrays[operand] = value.copy()
        else:
            moved = shift if operand != "ring" else 0
            arrays[operand], views[operand] = place(context.backend, value, apart, moved)
        stride = value.shape[1] + apart if apart else None
        operands.append(Operand(operand, "", value.shape, str(value.dtype), stride=stride))
    program = Program((Call(name, tuple(operands), dict(scalars)),), {}, frozenset(), 1, dtype)
    runner = (kind or OneCall)(context, Memory({}, arrays), blocks, compiled)
    runner.prepare(program)
    runner.run_once(program)
    views |= {name: runner.memory.arrays[name] for name in ("control", "rates") if name in values}
    return {name: np.array(context.backend.to_host(view)) for name, view in views.items()}


def reference(
    name: str, values: Mapping[str, np.ndarray | None], scalars: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Run the reference of a kernel in float64; return all operands afterwards."""
    wide = {
        k: None if v is None else v.astype(np.float64) if v.dtype.kind == "f" else v.copy()
        for k, v in values.items()
    }
    with np.errstate(all="ignore"):
        kernel(name)(np, *wide.values(), **scalars)
    return {k: v for k, v in wide.items() if v is not None}


def written(spec: KernelSpec) -> tuple[str, ...]:
    """The operands that a kernel changes."""
    return spec.updates + spec.writes


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


def compare(
    spec: KernelSpec,
    before: Mapping[str, np.ndarray | None],
    found: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    dtype: str,
) -> tuple[float, list[str]]:
    """Return the largest relative error of what a kernel wrote, and in words what is wrong."""
    worst, faults = 0.0, []
    for operand, value in found.items():
        if operand not in written(spec):
            if not np.array_equal(value, np.asarray(before[operand]), equal_nan=value.dtype.kind == "f"):
                faults.append(f"{operand}, which is read only, was changed")
            continue
        if value.dtype.kind != "f":
            if not np.array_equal(value, wanted[operand]):
                faults.append(f"{operand}: {(value != wanted[operand]).sum()} of {value.size} differ")
            continue
        finite = np.isfinite(wanted[operand])
        if not np.array_equal(np.isfinite(value), finite):
            faults.append(f"{operand}: finite in other places")
            continue
        error = relative_error(value[finite], wanted[operand][finite])
        worst = max(worst, error)
        if not error <= PRODUCT_TOLERANCE[dtype]:
            faults.append(f"{operand}: relative error {error:.3g}, expected {PRODUCT_TOLERANCE[dtype]:g}")
    return worst, faults


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


def check_coverage(context: Context, compiled: Compiled) -> Values:
    """What the calls of the checks unfold to is all that there is."""
    seen: set[str] = set(OTHERS)
    examples = SIZES["small"]
    for name in CATALOGUE:
        seen |= _operations_of(context, name, examples)
    missing: Collection[str] = set(OPERATIONS) - seen
    if missing:
        raise Failed(f"no check runs {', '.join(sorted(missing))}")
    assert kernel_spec("cast_bf16") is FOR_GPUS["cast_bf16"]
    return {"operations": len(OPERATIONS)}


def _operations_of(context: Context, name: str, examples: Examples) -> set[str]:
    values = examples.operands(name, "float32")
    arrays: dict[str, Any] = {"control": new_control(0), "rates": np.zeros(1)}
    arrays |= {k: context.backend.asarray(v) if k not in arrays else v for k, v in values.items()}
    operands = tuple(Operand(k, "", v.shape, str(v.dtype)) for k, v in values.items())
    program = Program((Call(name, operands, examples.scalars(name)),), {}, frozenset(), 1, "float32")
    runner = OneCall(context, Memory({}, arrays))
    runner.prepare(program)
    return {step.operation for step in runner.linked(program).steps}
