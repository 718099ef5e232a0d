"""What the tests of kernels have in common: all that there are, and operands between guards, held to the reference."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import gpumlp as gm
from bench.gpu_check.examples import Examples, control, variants
from gpumlp.kernels import CATALOGUE
from gpumlp.kernels.reference import kernel

TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


CPU = gm.get_backend("cpu")
HOST = ("control", "rates")  # these stay on the host on every backend

NAMES = sorted(CATALOGUE)
VARIANTS = [(name, changed) for name in NAMES for changed in variants(name)]
OPTIONAL = [(n, o) for n in NAMES for o in sorted(CATALOGUE[n].optional) if (n, o) != ("rmsprop", "average")]
LEARNING = [n for n in NAMES if {"parameters", "running_mean"} & set(CATALOGUE[n].updates)]
SHARING = (
    *("column_sums", "relu_grad_bias", "batch_norm", "batch_norm_grad", "layer_norm_grad", "softmax"),
    *("softmax_cross_entropy", "mse", "clip_by_norm", "adam", "matmul", "shuffle"),
)
"""A kernel of each kind in which the threads of a GPU's block share memory, and have barriers or shuffles."""
MATRICES = [
    n for n in NAMES if any(v.ndim == 2 and k != "ring" for k, v in Examples(2, 2, 2).operands(n).items())
]


def on_device(values: Mapping[str, Any], backend: gm.Backend) -> dict[str, Any]:
    return {k: v if v is None or k in HOST else backend.asarray(v) for k, v in values.items()}


def run_reference(
    examples: Examples, name: str, values: Mapping[str, Any], backend: gm.Backend = CPU, **changed: Any
) -> dict[str, Any]:
    """Run a kernel's reference on copies; return all operands on the host afterwards."""
    placed = on_device(
        {k: None if values.get(k) is None else values[k].copy() for k in CATALOGUE[name].operands}, backend
    )
    with np.errstate(all="ignore"):
        kernel(name)(backend.xp, *placed.values(), **{**examples.scalars(name), **changed})
    return {k: v if v is None or k in HOST else np.array(backend.to_host(v)) for k, v in placed.items()}


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


def over_all_numbers(name: str, dtype: str) -> dict[str, Any]:
    """Operands of a form of an activation: what it reads from the smallest number to the largest, others 1."""
    steps = np.logspace(-44 if dtype == "float32" else -320, 38, 400)
    x = np.concatenate([steps, -steps, np.linspace(-30, 30, 601), [0.0, -0.0, np.inf, -np.inf, np.nan]])
    if name.endswith("_grad_bias"):  # sums of columns would be of numbers of very different sizes
        x = np.clip(x, -1e3, 1e3)
    x = x.astype(dtype)[None, :]
    values: dict[str, Any] = {}
    for operand in CATALOGUE[name].operands:
        first = operand == CATALOGUE[name].operands[1 if name.startswith("bias_") else 0]
        shape = (x.size,) if operand in ("bias", "db") else x.shape
        saved = np.maximum(x, 0) if name.startswith("relu_grad") else x
        values[operand] = saved.copy() if first else np.full(shape, 0.0 if operand == "bias" else 1.0, dtype)
    return values


def assert_equal_to_the_last_digits(
    name: str, values: Mapping[str, Any], found: Mapping[str, Any], wanted: Mapping[str, Any], dtype: str
) -> None:
    """Hold what `over_all_numbers` gave entry by entry."""
    x, limits = values[CATALOGUE[name].operands[1 if name.startswith("bias_") else 0]], np.finfo(dtype)
    for result in CATALOGUE[name].writes:
        a, b = found[result].ravel(), wanted[result].ravel()
        with np.errstate(invalid="ignore"):
            # a value near 0 by cancellation has the error of what cancels, of the size of x at most
            scale = np.maximum(np.abs(b), np.minimum(np.abs(x.ravel()), 1))
        finite = np.isfinite(b)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_array_equal(np.isinf(a), np.isinf(b))
        error = np.abs(a[finite] - b[finite]) / np.maximum(scale[finite], limits.tiny)
        assert error.max() <= 40 * limits.eps, f"{result} at {x.ravel()[finite][error.argmax()]}"


def assert_masks_and_noise(
    run: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
    examples: Examples,
    columns: int,
    tolerance: float,
) -> None:
    """Hold dropout and noise of a width: four words of a block lie in four quarters of a row."""
    x = np.random.default_rng(columns).normal(size=(9, columns))
    for name in ("dropout", "gaussian_noise"):
        values = {"control": control(), "x": x, "y": np.zeros_like(x)}
        wanted, found = run_reference(examples, name, values)["y"], run(name, values)["y"]
        if name == "dropout":
            np.testing.assert_array_equal(found, wanted)
        else:
            np.testing.assert_allclose(found, wanted, rtol=tolerance)
