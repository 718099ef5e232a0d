"""CUDA kernels on operands in bfloat16, over all that the catalogue lets be so: each alone, and all together.

They compute in float32 and round once, as the reference does; the last bit may differ where a sum was rounded
differently before.
"""

from typing import Any

import numpy as np
import pytest

from bench.gpu_check.examples import Examples
from gpumlp.kernels import BAD_STEP, CATALOGUE, FOR_GPUS, IN_BFLOAT16, UPDATES
from gpumlp.kernels.reference import kernel, kernel_in_bfloat16
from gpumlp.kernels.reference.products import as_float, to_bfloat16
from tests.kernels.cases import between_guards, results

SIZES = {
    "small": Examples(5, 7, 33),
    "packed": Examples(12, 8, 64),
    "quarter": Examples(6, 20, 64),
    "wide": Examples(3, 1100, 1500),
    "long": Examples(700, 5, 4099),
}
# only a library writes the result of matmul in bfloat16
NAMES = sorted(set(IN_BFLOAT16) & set(CATALOGUE) - {"matmul"})
CASES = [
    (name, frozenset(which))
    for name in NAMES
    for which in sorted({(o,) for o in IN_BFLOAT16[name]} | {tuple(sorted(IN_BFLOAT16[name]))})
]
ORDERS = ("ascending", "descending", "random:7")


def halved(values: dict[str, Any], which: frozenset[str]) -> dict[str, Any]:
    return {k: to_bfloat16(np, v) if k in which else v for k, v in values.items()}


def reference(size, name, values, changed):
    after = {k: None if v is None else v.copy() for k, v in values.items()}
    with np.errstate(all="ignore"):
        kernel_in_bfloat16(name)(np, *after.values(), **{**SIZES[size].scalars(name), **changed})
    return after


def launch(run_cuda, size, name, values, grid=(1, 64), order="ascending", gap=0, shift=0):
    scalars = SIZES[size].scalars(name)
    return between_guards(
        lambda held: run_cuda(name, held, scalars, "bf16", *grid, order), name, values, gap, shift
    )


def assert_alike(name, found, wanted):
    for result in results(name):
        a, b = as_float(np, found[result]), as_float(np, wanted[result])
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=result)
        step = 2**-7 if found[result].dtype == np.uint16 else 4e-6  # from one number of bfloat16 to the next
        sums = np.abs(b).max(initial=1e-3, where=np.isfinite(b)) * 1e-6
        np.testing.assert_allclose(a, b, rtol=step, atol=sums, err_msg=result)
        with np.errstate(invalid="ignore"):
            assert np.mean(np.abs(a - b) > 1e-3 * np.abs(b) + sums) < 0.02, f"{result} is rounded otherwise"


def test_each_operand_of_the_table_is_one_of_the_catalogue():
    for name, which in IN_BFLOAT16.items():
        spec = CATALOGUE.get(name) or FOR_GPUS[name]
        assert which
        assert which <= set(spec.operands)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "which"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(sorted(v))
)
def test_a_kernel_on_bfloat16_equals_the_reference_in_every_order_of_its_threads(run_cuda, name, which, size):
    values = halved(SIZES[size].operands(name, "float32"), which)
    wanted = reference(size, name, values, {})
    for grid in ((1, 32), (1, 256), (3, 64)):
        first, *others = (launch(run_cuda, size, name, values, grid, order) for order in ORDERS)
        assert_alike(name, first, wanted)
        for other in others:
            for result in results(name):
                np.testing.assert_array_equal(other[result], first[result])
        for operand in CATALOGUE[name].reads:
            np.testing.assert_array_equal(first[operand], values[operand])


@pytest.mark.parametrize("name", NAMES)
def test_rows_in_bfloat16_may_lie_apart_and_start_anywhere(run_cuda, name):
    for size in ("small", "packed", "quarter"):
        values = halved(SIZES[size].operands(name, "float32"), IN_BFLOAT16[name])
        wanted = launch(run_cuda, size, name, values)
        for gap, shift in ((0, 1), (3, 0), (4, 0), (8, 0), (4, 2), (8, 4)):
            found = launch(run_cuda, size, name, values, gap=gap, shift=shift)
            for result in results(name):
                np.testing.assert_array_equal(found[result], wanted[result], err_msg=f"{gap} {shift}")


@pytest.mark.parametrize("columns", [8, 64, 72, 192])
@pytest.mark.parametrize("name", ["column_sums", "relu_grad_bias", "gelu_grad_bias"])
def test_blocks_share_sums_of_columns_of_bfloat16_in_whole_lines_of_memory(run_cuda, name, columns):
    """Over rows that the threads of a tile divide and that they do not, in shares and as a whole."""
    for rows, shares in ((1, 1), (37, 1), (256, 1), (300, 3), (2100, 2), (9, 4)):
        values = halved(Examples(rows, columns, 1).operands(name, "float32"), IN_BFLOAT16[name])
        values["db"] = np.full((shares, columns) if shares > 1 else columns, np.nan, np.float32)
        given = {k: as_float(np, v).astype(np.float64) for k, v in values.items()}
        exact = {**given, "db": np.zeros(columns)}
        kernel(name)(np, *exact.values(), **Examples(rows, columns, 1).scalars(name))
        dx = exact.get("dx", given["dy"])
        each = -(-rows // shares)
        sums = np.array([dx[s * each : (s + 1) * each].sum(axis=0) for s in range(shares)])
        for grid, gap, shift in (
            ((2, 256), 0, 0),
            ((5, 64), 8, 0),
            ((2, 32), 0, 8),
            ((3, 64), 0, 3),
            ((2, 64), 4, 0),
        ):
            first, *others = (
                launch(run_cuda, "small", name, values, grid, order, gap, shift) for order in ORDERS
            )
            np.testing.assert_allclose(first["db"].reshape(sums.shape), sums, rtol=1e-5, atol=1e-4)
            if "dx" in exact:
                np.testing.assert_allclose(as_float(np, first["dx"]), dx, rtol=2**-8, atol=1e-6)
            for other in others:
                for result in results(name):
                    np.testing.assert_array_equal(other[result], first[result])


def test_nan_in_a_matrix_of_bfloat16_shows_in_its_own_sum_alone(run_cuda):
    values = halved(Examples(70, 192, 1).operands("relu_grad_bias", "float32"), IN_BFLOAT16["relu_grad_bias"])
    values["dy"][3, 100] = 0x7FC1
    values["y"][69, 191] = 0x7FC1
    found = launch(run_cuda, "small", "relu_grad_bias", values, (3, 64))
    assert set(np.flatnonzero(np.isnan(found["db"]))) == {100, 191}
    np.testing.assert_array_equal(np.argwhere(np.isnan(as_float(np, found["dx"]))), [[3, 100], [69, 191]])


@pytest.mark.parametrize("name", [n for n in NAMES if CATALOGUE[n].in_place])
def test_a_kernel_on_bfloat16_may_work_in_place(run_cuda, name):
    written, read = CATALOGUE[name].in_place
    for size in ("small", "packed", "wide"):
        values = halved(SIZES[size].operands(name, "float32"), IN_BFLOAT16[name])
        apart, together = ({k: v.copy() for k, v in values.items()} for _ in range(2))
        together[written] = together[read]
        for given in (apart, together):
            run_cuda(name, given, SIZES[size].scalars(name), "bf16", 2, 64, "random:1")
        for result in results(name):
            if result != read:
                np.testing.assert_array_equal(together[result], apart[result], err_msg=result)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_shows_in_bfloat16_where_it_does_in_the_reference(run_cuda, name, bad):
    rng = np.random.default_rng(5)
    for operand in sorted(IN_BFLOAT16[name]):
        values = SIZES["small"].operands(name, "float32")
        if operand in CATALOGUE[name].writes:
            continue
        values[operand][tuple(rng.integers(0, n) for n in values[operand].shape)] = bad
        values = halved(values, IN_BFLOAT16[name])
        wanted = reference("small", name, values, {})
        found = launch(run_cuda, "small", name, values)
        for result in results(name):
            a, b = as_float(np, found[result]), as_float(np, wanted[result])
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
            np.testing.assert_array_equal(np.isinf(a), np.isinf(b))


@pytest.mark.parametrize("size", ["small", "wide"])
@pytest.mark.parametrize("name", UPDATES)
def test_an_update_rounds_the_parameters_to_their_copy_and_changes_no_bit_of_them(run_cuda, name, size):
    values = SIZES[size].operands(name, "float32")
    plain = launch(run_cuda, size, name, values, (3, 64))
    copy = np.full(values["parameters"].shape, 0x7FC1, np.uint16)
    for order in ORDERS:

        def update(held, order=order):
            run_cuda(f"{name}_cast", held, SIZES[size].scalars(name), "bf16", 3, 64, order)

        found = between_guards(update, name, {**values, "copy": copy})
        np.testing.assert_array_equal(found.pop("copy"), to_bfloat16(np, plain["parameters"]))
        for operand, value in found.items():
            np.testing.assert_array_equal(value, plain[operand], err_msg=operand)


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_of_a_flagged_step_leaves_the_copy_too(run_cuda, name):
    values = SIZES["small"].operands(name, "float32")
    values["control"][BAD_STEP] = 3
    given = {**values, "copy": np.full(values["parameters"].shape, 77, np.uint16)}
    scalars = SIZES["small"].scalars(name)
    run_cuda(f"{name}_cast", given, scalars, "bf16", 1, 64, "ascending")
    assert (given["copy"] == 77).all()


@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("name", UPDATES)
def test_the_reference_of_an_update_with_a_copy_is_the_update_and_the_cast(name, flagged):
    values = SIZES["small"].operands(name, "float32")
    values["control"][BAD_STEP] = 3 if flagged else -1
    plain, copy = reference_of(name, values), np.full(values["parameters"].shape, 77, np.uint16)
    found = reference_of(f"{name}_cast", {**values, "copy": copy})
    np.testing.assert_array_equal(found["parameters"], plain["parameters"])
    wanted = copy if flagged else to_bfloat16(np, plain["parameters"])
    np.testing.assert_array_equal(found["copy"], wanted)


def reference_of(name, values):
    after = {k: v.copy() for k, v in values.items()}
    kernel(name)(np, *after.values(), **SIZES["small"].scalars(name.removesuffix("_cast")))
    return after


def test_kernels_whose_operands_are_floats_give_the_same_bits_as_those_compiled_for_float32(run_cuda):
    for name in ("adam", "softmax_cross_entropy_labels", "layer_norm", "matmul", "tanh", "relu_grad_bias"):
        for size in ("packed", "wide"):
            values = SIZES[size].operands(name, "float32")
            scalars = SIZES[size].scalars(name)
            found = [{k: v.copy() for k, v in values.items()} for _ in range(2)]
            for given, dtype in zip(found, ("float32", "bf16"), strict=True):
                run_cuda(name, given, scalars, dtype, 1, 64)
            for result in results(name):
                np.testing.assert_array_equal(found[0][result], found[1][result], err_msg=name)
