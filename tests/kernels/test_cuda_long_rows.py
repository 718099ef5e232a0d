"""Losses whose rows are so long that a whole block takes each, held to the reference in float64.

As in the other tests of kernels, the text is built as C++; whatever the order of its threads, the bits are the same.
"""

from typing import Any

import numpy as np
import pytest

from bench.gpu_check.examples import Examples
from gpumlp.kernels import CATALOGUE
from gpumlp.kernels.cuda import LONG_ROW, LONG_ROWS, OPERATIONS, THREADS, blocks
from gpumlp.kernels.reference.products import as_float, to_bfloat16
from tests.kernels.cases import TOLERANCE, between_guards, results, run_reference

NAMES: list[str] = sorted(LONG_ROWS)
GRIDS = ((1, 32), (2, 256), (3, 512))
# one thread's packs and more, columns that are no whole packs, the shortest of long rows, and the longest of others
COLUMNS = (LONG_ROW, LONG_ROW + 1, LONG_ROW - 4, 2 * LONG_ROW + 4, 5 * LONG_ROW + 252)
ORDERS = ("ascending", "descending", "random:7")


def operands(name, columns, rows=5, dtype="float64"):
    values = Examples(rows, columns, 1).operands(name, dtype)
    values["output"] *= 3
    return values


def launch(run_cuda, name, values, dtype, changed, grid=(2, 64), order="ascending", gap=0, shift=0):
    scalars = {**Examples(len(values["output"]), 1, 1).scalars(name), **changed}
    return between_guards(
        lambda held: run_cuda(name, held, scalars, dtype, *grid, order), name, values, gap, shift
    )


def assert_near(found, wanted, dtype, names=("grad", "ring")):
    for name in names:
        a, b = as_float(np, found[name]).astype(np.float64), wanted[name].astype(np.float64)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=name)
        a, b = np.nan_to_num(a), np.nan_to_num(b)
        tolerance = 2**-8 if found[name].dtype == np.uint16 else TOLERANCE[dtype]
        assert np.linalg.norm(a - b) <= tolerance * max(float(np.linalg.norm(b)), 1e-3), name


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize(
    "changed", [{}, {"smoothing": 0.0}, {"smoothing": 0.0, "clip": 0.0}, {"mean": False}], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_a_block_takes_a_long_row_in_every_order_of_its_threads(run_cuda, name, changed, columns):
    changed = {k: v for k, v in changed.items() if k in CATALOGUE[name].scalars}
    exact = operands(name, columns)
    for dtype in ("float64", "float32"):
        values = {
            k: v.astype(dtype) if k in ("output", "target") and v.dtype.kind == "f" else v
            for k, v in exact.items()
        }
        values |= {k: v.astype(dtype) for k, v in exact.items() if k in ("weight", "grad")}
        wanted = run_reference(Examples(5, columns, 1), name, _as_float64(values), **changed)
        for grid in GRIDS:
            first, *others = (launch(run_cuda, name, values, dtype, changed, grid, order) for order in ORDERS)
            assert_near(first, wanted, dtype)
            for other in others:
                for result in results(name):
                    np.testing.assert_array_equal(other[result], first[result])


def _as_float64(values):
    return {k: v.astype("float64") if v.dtype == np.float32 else v for k, v in values.items()}


@pytest.mark.parametrize("name", NAMES)
def test_long_rows_may_lie_apart_start_anywhere_and_have_no_gradient_and_no_weights(run_cuda, name):
    for columns in (LONG_ROW, LONG_ROW + 3):
        values = operands(name, columns, dtype="float32")
        wanted = launch(run_cuda, name, values, "float32", {})
        for gap, shift in ((0, 1), (3, 0), (4, 0), (4, 2)):
            found = launch(run_cuda, name, values, "float32", {}, gap=gap, shift=shift)
            for result in results(name):
                np.testing.assert_array_equal(found[result], wanted[result], err_msg=f"{gap} {shift}")
        gone = {**values, "grad": None}
        np.testing.assert_array_equal(launch(run_cuda, name, gone, "float32", {})["ring"], wanted["ring"])
        even = {**values, "weight": None}
        assert_near(
            launch(run_cuda, name, even, "float32", {}),
            run_reference(Examples(5, columns, 1), name, even),
            "float32",
        )


@pytest.mark.parametrize("columns", [LONG_ROW, 2 * LONG_ROW + 4, 2 * LONG_ROW + 5])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_long_row_may_be_bfloat16(run_cuda, name, columns):
    values = operands(name, columns, dtype="float32")
    wanted = run_reference(Examples(5, columns, 1), name, _as_float64(values))
    halved = {**values, "grad": to_bfloat16(np, values["grad"])}
    found = launch(run_cuda, name, halved, "bf16", {}, (2, 256))
    assert_near(found, wanted, "float32")
    for gap, shift in ((8, 0), (4, 4), (1, 0), (0, 3)):
        other = launch(run_cuda, name, halved, "bf16", {}, (2, 256), gap=gap, shift=shift)
        for result in results(name):
            np.testing.assert_array_equal(other[result], found[result])
    whole = launch(run_cuda, name, values, "bf16", {}, (2, 256))
    np.testing.assert_array_equal(to_bfloat16(np, whole["grad"]), found["grad"])


@pytest.mark.parametrize("columns", [LONG_ROW, LONG_ROW + 1, 3 * LONG_ROW])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_in_a_long_row_shows_where_it_shows_in_the_reference(run_cuda, name, columns):
    """NaN, infinities, a row of -infinity alone, and one in which a thread, a warp, or all but one number are."""
    values = operands(name, columns, rows=9)
    if name == "softmax_cross_entropy_labels":
        values["target"][:] = [7, 7, 7, 7, columns - 1, columns - 1, columns - 1, -5, 2**40 + 3]
    x = values["output"]
    x[0, 1000], x[1, 5], x[2, columns - 1] = np.nan, np.inf, -np.inf
    x[3] = -np.inf
    x[4, :4], x[5, :130], x[6, : columns - 1] = -np.inf, -np.inf, -np.inf
    if name != "softmax_cross_entropy_labels":  # where the target has no part
        values["target"][np.isinf(x)] = 0
    for smoothing in (0.1, 0.0):
        changed: dict[str, Any] = {"smoothing": smoothing} if "smoothing" in CATALOGUE[name].scalars else {}
        wanted = run_reference(Examples(9, columns, 1), name, values, **changed)
        for grid in ((1, 256), (4, 32)):
            found = launch(run_cuda, name, values, "float64", changed, grid)
            assert_near(found, wanted, "float64")


def test_a_long_row_of_float32_with_large_numbers_is_as_exact_as_a_short_one(run_cuda):
    """What is far below the largest has no part; numbers far from 0 lose no more digits than they have."""
    values = operands("softmax_cross_entropy_labels", 2 * LONG_ROW, dtype="float32")
    values["output"] += np.float32(3000)
    values["output"][:, ::7] -= np.float32(200)
    wanted = run_reference(Examples(5, 2 * LONG_ROW, 1), "softmax_cross_entropy_labels", _as_float64(values))
    assert_near(
        launch(run_cuda, "softmax_cross_entropy_labels", values, "float32", {}, (2, 256)), wanted, "float32"
    )


def test_a_long_row_has_a_block_of_its_own_as_far_as_blocks_run_at_once():
    operation = OPERATIONS["softmax_cross_entropy_labels"]
    assert blocks(operation, 4096, 4096, THREADS, 1056) == 528  # four on each of 132 multiprocessors
    assert blocks(operation, 100, 4096, THREADS, 1056) == 100
    assert blocks(operation, 100, LONG_ROW, THREADS, 1) == 1
    assert blocks(operation, 60_000, 10, THREADS, 1056) == blocks(
        OPERATIONS["softmax"], 60_000, 10, THREADS, 1056
    )
