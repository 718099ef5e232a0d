"""What the tests of compiled and of CUDA kernels have in common: operands between guards, held to the reference.

Examples are those of `test_catalogue.py`, in any size.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gpumlp.kernels import CATALOGUE

TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


def load(rows: int, columns: int, flat: int) -> ModuleType:
    """The module of the catalogue's tests with examples of another size."""
    spec = importlib.util.spec_from_file_location("examples", Path(__file__).with_name("test_catalogue.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(ROWS=rows, COLUMNS=columns, FLAT=flat)
    module.SHAPES.update(a=(rows, columns), b=(columns, 3), c=(rows, 3))
    module.SCALARS["rows"] = rows
    return module


def operands(
    examples: ModuleType, name: str, dtype: str, changed: dict[str, Any], seed: int = 3
) -> dict[str, Any]:
    values = dict(examples.example(name, dtype, seed))
    if name.startswith("relu_grad"):  # what relu gave
        values["y"] = np.maximum(values["y"], 0)
    for operand, turned in (("a", "transpose_a"), ("b", "transpose_b")):
        if changed.get(turned):
            values[operand] = values[operand].T.copy()
    return values


def fill(value: np.ndarray) -> Any:
    if value.dtype == np.uint16:
        return 0x7FC1  # a NaN of bfloat16
    return np.nan if value.dtype.kind == "f" else -(10**6)


def guarded(value: np.ndarray, gap: int = 0, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A copy of an operand inside memory that is NaN, or an unlikely number, all around and between its rows."""
    rows, width = value.shape if value.ndim == 2 else (1, value.size)
    start = 32 + shift
    memory = np.full(start + rows * (width + gap) + 32, fill(value), value.dtype)
    whole = memory[start : start + rows * (width + gap)].reshape(rows, width + gap)[:, :width]
    view = whole if value.ndim == 2 else whole[0]
    view[...] = value
    return memory, view


def between_guards(
    call: Callable[[Mapping[str, Any]], None],
    name: str,
    values: Mapping[str, Any],
    gap: int = 0,
    shift: int = 0,
) -> dict[str, np.ndarray]:
    """Call a kernel on copies of operands between guards; return all of them afterwards."""
    held: dict[str, Any] = {}
    for operand, value in values.items():
        apart = gap if value is not None and value.ndim == 2 and operand != "ring" else 0
        held[operand] = (None, None) if value is None else guarded(value, apart, shift)
    call({k: view for k, (_, view) in held.items()})
    found = {}
    for operand, (memory, view) in held.items():
        if memory is None:
            continue
        found[operand] = view.copy()
        view[...] = 0
        here = np.isnan(memory) if memory.dtype.kind == "f" else memory == fill(memory)
        assert here.sum() == memory.size - view.size, f"{name} wrote beside {operand}"
    return found


def compare(
    name: str, found: Mapping[str, Any], wanted: Mapping[str, Any], dtype: str, results: Sequence[str]
) -> None:
    """Hold results to those of the reference: by norm, and finite in the same places."""
    for result in results:
        if result not in found:
            continue
        a, b = found[result], wanted[result]
        if b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b, err_msg=result)
            continue
        finite = np.isfinite(b)
        np.testing.assert_array_equal(np.isfinite(a), finite, err_msg=f"{result}: finite in other places")
        a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
        error, size = np.linalg.norm(a - b), max(float(np.linalg.norm(b)), 1e-3)
        assert error <= TOLERANCE[dtype] * size, f"{name}, {result}: relative difference {error / size:.3g}"


def results(name: str) -> tuple[str, ...]:
    """Return the operands that a kernel changes."""
    return CATALOGUE[name].updates + CATALOGUE[name].writes
