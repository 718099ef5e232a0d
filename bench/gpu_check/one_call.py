"""One kernel by itself, on the device and by its reference."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpumlp.executors.device import DeviceExecutor
from gpumlp.kernels import KernelSpec
from gpumlp.kernels.cuda.device import Kernels
from gpumlp.kernels.reference import kernel
from gpumlp.program import Call, Memory, Operand, Program, new_control

from .checks import PRODUCT_TOLERANCE, Array, Check, Context, Values, relative_error
from .examples import Examples

DTYPES = ("float32", "float64")
COMPILED_FOR = (*DTYPES, "bf16")
SIZES = {
    "small": Examples(5, 7, 33),
    "odd": Examples(67, 131, 4099),
    "long": Examples(2050, 9, 100_003),
    "wide": Examples(9, 1037, 1 << 20),
    "long rows": Examples(150, 4104, 12),
    "one column": Examples(300, 1, 5),
}
ON_HOST = ("small", "one column")


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
        return self._compiled or self.device.kernels(dtype, self._alone)

    def run_once(self, program: Program) -> None:
        """Run a prepared program and wait."""
        linked = self.linked(program)
        with self.backend.active():
            for launch in self.launches(linked):
                launch()
        self.device.synchronize()


class Compiled:
    """Kernels of every type, compiled at once on the stand-in, whose compiler takes as long for one as for all.

    On a GPU each check compiles its own, within a second for most: several processes then compile side by side, and
    all of a type at once would take one process half a minute.

    Args:
        context: of the section.
        operations: to compile.
    """

    def __init__(self, context: Context, operations: Collection[str]) -> None:
        self.context, self.operations = context, frozenset(operations)
        self.kernels: dict[str, Kernels] = {}

    def checks(self) -> list[Check]:
        """Return what comes before all other checks."""
        return [Check("compile", self.compile, limit=170)] if self.context.is_host else []

    def compile(self) -> Values:
        """Compile; the seconds are those of a machine that has nothing in its cache, or of one that has."""
        device = self.context.gpu

        def one(dtype: str) -> float:
            start = time.perf_counter()
            self.kernels[dtype] = device.kernels(dtype, self.operations)
            return time.perf_counter() - start

        with ThreadPoolExecutor(len(COMPILED_FOR)) as pool:
            futures = {dtype: pool.submit(one, dtype) for dtype in COMPILED_FOR}
        return {f"{dtype} seconds": future.result() for dtype, future in futures.items()}


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


def operations_of(context: Context, name: str, examples: Examples, blocks: int = 0) -> set[str]:
    """Return the operations that the call of a kernel unfolds to; see `OneCall` for the blocks."""
    values = examples.operands(name, "float32")
    arrays: dict[str, Any] = {"control": new_control(0), "rates": np.zeros(1)}
    arrays |= {k: context.backend.asarray(v) if k not in arrays else v for k, v in values.items()}
    operands = tuple(Operand(k, "", v.shape, str(v.dtype)) for k, v in values.items())
    program = Program((Call(name, operands, examples.scalars(name)),), {}, frozenset(), 1, "float32")
    runner = OneCall(context, Memory({}, arrays), blocks)
    runner.prepare(program)
    return {step.operation for step in runner.linked(program).steps}


def written(spec: KernelSpec) -> tuple[str, ...]:
    """The operands that a kernel changes."""
    return spec.updates + spec.writes


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
