"""Every CUDA kernel equals the reference, over the whole catalogue: a new entry is tested by being there.

The kernels' text is built as C++ and run on the CPU. Whatever the order of its threads between barriers, a launch must
give the same bits. Operands come in sizes that a warp, a block and several blocks divide in different ways.
"""

from typing import Any

import numpy as np
import pytest

from bench.gpu_check.examples import NOT_NEGATIVE, Examples, control
from gpumlp.executors.products import ENDINGS
from gpumlp.kernels import ACTIVATIONS, BAD_STEP, CATALOGUE, EPOCH, FOR_GPUS, PRODUCTS, SEED, STEP, UPDATE
from gpumlp.kernels.cuda import OPERATIONS
from gpumlp.kernels.philox import SHUFFLE, permutation, philox
from tests.kernels import cases
from tests.kernels.cases import (
    LEARNING,
    NAMES,
    OPTIONAL,
    SHARING,
    TOLERANCE,
    assert_equal_to_the_last_digits,
    assert_masks_and_noise,
    between_guards,
    compare,
    over_all_numbers,
    results,
    run_reference,
)

ORDERS = ("ascending", "descending", "random:7")
GRIDS = ((1, 32), (1, 256), (3, 64))  # blocks, threads of each


SIZES = {
    "small": Examples(5, 7, 33),
    "packed": Examples(12, 8, 64),
    "one wide": Examples(9, 1, 1),
    "wide": Examples(3, 1100, 1500),
    "long": Examples(700, 5, 4099),
}
SMALL = SIZES["small"]
VARIANTS = [
    (name, changed)
    for name, changed in cases.VARIANTS
    if not (changed.get("transpose_a") and changed.get("transpose_b"))
]


def launch(run_cuda, size, name, values, dtype, changed, grid=(1, 32), order="ascending", gap=0, shift=0):
    """Run a kernel between guards; return all operands afterwards."""
    scalars = {**SIZES[size].scalars(name), **changed}
    return between_guards(
        lambda held: run_cuda(name, held, scalars, dtype, *grid, order), name, values, gap, shift
    )


def in_all_orders(run_cuda, size, name, values, dtype, changed, grid):
    """Launch in each order of threads, hold the bits equal, and return them."""
    first, *others = (launch(run_cuda, size, name, values, dtype, changed, grid, order) for order in ORDERS)
    for other, order in zip(others, ORDERS[1:], strict=True):
        for operand, value in first.items():
            np.testing.assert_array_equal(
                other[operand], value, err_msg=f"{name}, {operand}, {order}, {grid}"
            )
    return first


def test_there_is_an_operation_for_each_kernel_and_for_the_parts_that_blocks_share():
    parts = {
        "sum_weights",
        "sum_squares",
        "cast_bf16",
        "advance",
        "small_matmul",
        "large_matmul",
        "matmul_pair",
        "sums_of_shares",
    }
    kernels = set(FOR_GPUS) - PRODUCTS - set(ENDINGS)  # these are all the operation "matmul"
    assert set(OPERATIONS) == set(CATALOGUE) | parts | kernels
    assert sorted(o.code for o in OPERATIONS.values()) == list(range(len(OPERATIONS)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "changed"), VARIANTS)
def test_a_cuda_kernel_equals_the_reference_in_every_order_of_its_threads(
    run_cuda, name, changed, size, dtype
):
    values = SIZES[size].operands(name, dtype, changed)
    wanted = run_reference(SIZES[size], name, values, **changed)
    for grid in GRIDS:
        found = in_all_orders(run_cuda, size, name, values, dtype, changed, grid)
        compare(name, found, wanted, dtype, results(name))
        for operand in CATALOGUE[name].reads:
            np.testing.assert_array_equal(found[operand], values[operand])


@pytest.mark.parametrize("grid", [(1, 96), (2, 480), (1, 1024)], ids=str)
@pytest.mark.parametrize("name", SHARING)
def test_a_block_may_have_any_number_of_warps(run_cuda, name, grid, dtype):
    for size in ("small", "long"):
        values = SIZES[size].operands(name, dtype)
        wanted = run_reference(SIZES[size], name, values)
        found = launch(run_cuda, size, name, values, dtype, {}, grid, "random:4")
        compare(name, found, wanted, dtype, results(name))


@pytest.mark.parametrize("name", NAMES)
def test_rows_may_lie_apart_and_start_anywhere(run_cuda, name, dtype):
    """Accesses of 16 bytes are taken where they are possible, and change nothing."""
    for size in ("small", "packed"):
        values = SIZES[size].operands(name, dtype)
        wanted = launch(run_cuda, size, name, values, dtype, {}, (1, 64))
        for gap, shift in ((0, 1), (3, 0), (4, 0), (4, 2)):
            found = launch(run_cuda, size, name, values, dtype, {}, (1, 64), "ascending", gap, shift)
            if name in ("clip_by_norm", "matmul"):  # what is added up apart is other elements
                compare(name, found, wanted, dtype, results(name))
                continue
            for result in results(name):
                np.testing.assert_array_equal(
                    found[result], wanted[result], err_msg=f"{result} {gap} {shift}"
                )


@pytest.mark.parametrize(("name", "absent"), OPTIONAL)
def test_an_optional_operand_may_be_absent(run_cuda, name, absent, dtype):
    for size, grid in (("small", (1, 32)), ("packed", (2, 64))):
        values = {**SIZES[size].operands(name, dtype), absent: None}
        wanted = run_reference(SIZES[size], name, values)
        found = launch(run_cuda, size, name, values, dtype, {}, grid)
        compare(name, found, wanted, dtype, results(name))


@pytest.mark.parametrize("name", [n for n in NAMES if "ring" in CATALOGUE[n].updates])
def test_a_batch_whose_rows_weigh_nothing_has_no_loss_and_no_gradient(run_cuda, name, dtype):
    values = SMALL.operands(name, dtype)
    values["weight"][...] = 0
    found = launch(run_cuda, "small", name, values, dtype, {"mean": True})
    np.testing.assert_array_equal(found["ring"][1], [0, 0])
    np.testing.assert_array_equal(found["grad"], np.zeros_like(found["grad"]))


@pytest.mark.parametrize("name", [n for n in NAMES if CATALOGUE[n].optional])
def test_all_optional_operands_may_be_absent_but_the_one_that_is_the_purpose(run_cuda, name, dtype):
    gone = dict.fromkeys(CATALOGUE[name].optional - {"dx"})
    values = {**SIZES["small"].operands(name, dtype), **gone}
    wanted = run_reference(SMALL, name, values)
    compare(name, launch(run_cuda, "small", name, values, dtype, {}), wanted, dtype, results(name))


@pytest.mark.parametrize("name", [n for n in NAMES if CATALOGUE[n].in_place])
@pytest.mark.parametrize("size", ["small", "packed"])
def test_a_kernel_that_may_work_in_place_gives_the_same_bits_there(run_cuda, name, size, dtype):
    spec = CATALOGUE[name]
    assert spec.in_place is not None
    written, read = spec.in_place
    values = SIZES[size].operands(name, dtype)
    apart, together = ({k: v.copy() for k, v in values.items()} for _ in range(2))
    together[written] = together[read]
    for given in (apart, together):
        run_cuda(name, given, SIZES[size].scalars(name), dtype, 2, 64, "random:1")
    for result in results(name):
        if result != read:
            np.testing.assert_array_equal(together[result], apart[result], err_msg=result)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "changed"), VARIANTS)
def test_what_is_not_finite_shows_where_it_shows_in_the_reference(run_cuda, name, changed, bad):
    """One entry of each float operand in turn, at a place drawn at random."""
    spec, rng = CATALOGUE[name], np.random.default_rng(5)
    values = SIZES["small"].operands(name, "float64", changed)
    # 0 times a lost weight: the reference leaves a decay of 0 out, and so a slot stays finite that is of no use
    no_decay = changed.get("weight_decay") == 0.0 or bool(changed.get("decoupled"))
    for operand in spec.reads + spec.updates:
        if values[operand].dtype.kind != "f" or (operand == "ring" and name != "check_loss"):
            continue
        if bad == -np.inf and (operand in NOT_NEGATIVE or name.startswith("relu_grad")):
            continue
        lost = {**values, operand: values[operand].copy()}
        lost[operand][tuple(rng.integers(0, n) for n in lost[operand].shape)] = bad
        wanted = run_reference(SMALL, name, lost, **changed)
        found = launch(run_cuda, "small", name, lost, "float64", changed)
        seen = ["parameters"] if operand == "parameters" and no_decay else results(name)
        compare(f"{name} with {operand} {bad}", found, wanted, "float64", seen)
        if np.isnan(bad):
            for result in seen:
                if wanted[result].dtype.kind == "f":
                    np.testing.assert_array_equal(np.isnan(found[result]), np.isnan(wanted[result]))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("form", ["{}", "{}_grad", "bias_{}", "{}_grad_bias"])
def test_activations_over_the_whole_range_of_numbers(run_cuda, name, form, dtype):
    """From the smallest to the largest, with zeros and infinities; NaN is where the reference has it."""
    name = form.format(name)
    values = over_all_numbers(name, dtype)
    wanted = run_reference(SMALL, name, values)
    found = launch(run_cuda, "small", name, values, dtype, {}, (2, 64))
    assert_equal_to_the_last_digits(name, values, found, wanted, dtype)


@pytest.mark.parametrize("name", LEARNING)
def test_an_update_knows_how_many_were_before(run_cuda, name, dtype):
    """Bias corrections, decays of the rate, and the first velocity depend on it."""
    for update in (1, 7, 100_000):
        values = SIZES["packed"].operands(name, dtype)
        values["control"][UPDATE] = update
        wanted = run_reference(SIZES["packed"], name, values)
        compare(name, launch(run_cuda, "packed", name, values, dtype, {}), wanted, dtype, results(name))


@pytest.mark.parametrize("name", LEARNING)
def test_a_flagged_step_changes_no_parameter_slot_or_running_statistic(run_cuda, name, dtype):
    values = SIZES["packed"].operands(name, dtype)
    values["control"][BAD_STEP] = 5
    found = launch(run_cuda, "packed", name, values, dtype, {}, (2, 64))
    for operand in CATALOGUE[name].updates:
        np.testing.assert_array_equal(found[operand], values[operand])


LOSSES = [n for n in NAMES if "ring" in CATALOGUE[n].updates]


@pytest.mark.parametrize("name", ["check_loss", "check_gradients", *LOSSES])
def test_the_first_bad_step_stays_in_the_control_block(run_cuda, name):
    values = SIZES["packed"].operands(name, "float64")
    lost = {"check_loss": "ring", "check_gradients": "gradients"}.get(name, "output")
    values[lost][...] = np.nan
    found = launch(run_cuda, "packed", name, values, "float64", {}, (2, 64))
    assert found["control"][BAD_STEP] == 6
    values["control"][[STEP, BAD_STEP]] = 9, 2
    assert launch(run_cuda, "packed", name, values, "float64", {})["control"][BAD_STEP] == 2


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 31, 33])
def test_masks_and_noise_are_those_of_the_reference_for_every_width(run_cuda, columns, grid):
    """The last quarter of a row may be short, or empty."""
    assert_masks_and_noise(
        lambda name, values: launch(run_cuda, "small", name, values, "float64", {}, grid),
        SMALL,
        columns,
        1e-12,
    )


@pytest.mark.parametrize(
    ("rows", "grid"),
    [
        *((rows, (1, 32)) for rows in (1, 2, 3, 31, 32, 33, 100)),
        *((rows, (1, 256)) for rows in (255, 280, 896, 1024, 1025)),
        # in two ranges of many rows there is no room for the keys
        *((257, (2, 32)), (1500, (2, 256)), (2200, (5, 256)), (4096, (16, 256)), (700, (40, 64))),
    ],
    ids=str,
)
def test_an_epoch_has_the_order_of_the_reference(run_cuda, rows, grid):
    """One block puts few rows into bins and sorts more, in its own memory while they find room; several have ranges."""
    counters = control()
    given = np.arange(10, 10 + rows)
    for epoch in (0, 1, 2**31):
        counters[EPOCH] = epoch
        values = {"control": counters, "rows": given, "index": np.zeros(rows, np.int64)}
        wanted = run_reference(SMALL, "shuffle", values)["index"]
        found = in_all_orders(run_cuda, "small", "shuffle", values, "float32", {}, grid)["index"]
        np.testing.assert_array_equal(found, wanted)


def test_rows_whose_keys_have_equal_halves_have_the_order_of_whole_keys(run_cuda):
    counters = control()
    counters[SEED], counters[EPOCH] = 7, 1032
    keys, *_ = philox(np, (np.arange(500, dtype=np.uint64), 0, 1032, SHUFFLE << 16), 7)
    assert len(np.unique(keys)) == 499
    values = {"control": counters, "rows": np.arange(500), "index": np.zeros(500, np.int64)}
    run_cuda("shuffle", values, {}, "float32", 1, 128)
    np.testing.assert_array_equal(values["index"], permutation(np, 500, 7, 1032))


PLAIN = {"transpose_a": False, "transpose_b": False}
SIDES = [
    *((1, 9, 7), (9, 1, 7), (9, 7, 1), (1, 1, 7), (1, 7, 1), (7, 1, 1), (1, 1, 1), (300, 1, 9), (9, 1, 300)),
    *((1, 1, 700), (32, 64, 128), (64, 128, 32), (16, 32, 5), (33, 50, 50), (10, 10, 513), (4, 256, 64)),
]


@pytest.mark.parametrize("sizes", SIDES, ids=str)
@pytest.mark.parametrize("form", [(False, False), (True, False), (False, True)], ids=str)
def test_products_of_every_shape_that_a_resident_network_has(run_cuda, form, sizes, dtype):
    (m, n, k), (ta, tb), rng = sizes, form, np.random.default_rng(1)
    a, b = (rng.normal(size=s).astype(dtype) for s in ((k, m) if ta else (m, k), (n, k) if tb else (k, n)))
    values, changed = {"a": a, "b": b, "c": np.zeros((m, n), dtype)}, {"transpose_a": ta, "transpose_b": tb}
    wanted = (a.T if ta else a).astype(np.float64) @ (b.T if tb else b).astype(np.float64)
    # an entry may be small by cancellation: the size of what is summed is |a| |b|
    scale = max(np.linalg.norm(wanted), np.linalg.norm(a) * np.linalg.norm(b) / np.sqrt(k))
    for grid, gap in (((1, 256), 0), ((2, 64), 0), ((1, 32), 1), ((1, 64), 4)):
        found = launch(run_cuda, "small", "matmul", values, dtype, changed, grid, "random:3", gap)["c"]
        assert np.linalg.norm(found - wanted) <= TOLERANCE[dtype] * scale, grid


@pytest.mark.parametrize("name", ["product_bias", "product_bias_relu"])
@pytest.mark.parametrize("sizes", SIDES, ids=str)
def test_a_bias_and_relu_go_along_with_a_product(run_cuda, name, sizes, dtype):
    (m, n, k), rng = sizes, np.random.default_rng(4)
    a, b, bias = (rng.normal(size=s).astype(dtype) for s in ((m, k), (k, n), (n,)))
    wanted = a.astype(np.float64) @ b.astype(np.float64) + bias
    scale = np.linalg.norm(wanted) + np.sqrt(k)  # before relu, which may leave nothing
    a[0, 0] = np.nan  # relu keeps it
    wanted[0] = np.nan
    values: dict[str, Any] = {"a": a, "b": b, "bias": bias, "c": np.zeros((m, n), dtype)}
    if name == "product_bias_relu":
        wanted[wanted < 0] = 0
        values["mask"] = None
    for grid, shift in (((1, 256), 0), ((3, 64), 1)):

        def run(held, grid=grid):
            run_cuda(name, held, PLAIN, dtype, *grid, "random:3")

        found = between_guards(run, name, values, 0, shift)["c"]
        np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
        assert np.linalg.norm(np.nan_to_num(found - wanted)) <= TOLERANCE[dtype] * scale, grid


@pytest.mark.parametrize("name", SHARING)
def test_kernels_that_count_by_64_bits_give_the_same_bits(run_cuda, run_cuda_large, name):
    for size, grid in (("small", (1, 64)), ("long", (3, 64))):
        values = SIZES[size].operands(name, "float32")
        wanted = launch(run_cuda, size, name, values, "float32", {}, grid)
        found = launch(run_cuda_large, size, name, values, "float32", {}, grid)
        for operand in results(name):
            np.testing.assert_array_equal(found[operand], wanted[operand], err_msg=operand)


def test_sums_of_many_rows_are_as_exact_as_float32_allows(run_cuda):
    """In one long sum the error grows with the number of rows: 100,000 times 0.1 would be wrong in the third digit."""
    dy = np.full((100_000, 2), 0.1, np.float32)
    values = {"dy": dy, "db": np.zeros(2, np.float32)}
    found = launch(run_cuda, "small", "column_sums", values, "float32", {}, (1, 64))["db"]
    np.testing.assert_allclose(found, dy.sum(axis=0, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("name", ["column_sums", "relu_grad_bias"])
def test_sums_of_columns_may_be_split_over_shares_of_the_rows(run_cuda, name):
    """With several rows in ``db`` each is the sum over a share: blocks work side by side, and a second pass adds up."""
    rng = np.random.default_rng(0)
    dy, y = rng.normal(size=(2, 103, 37))
    y = np.maximum(y, 0)
    db, dx = np.zeros((4, 37)), np.zeros((103, 37))
    values = {"dy": dy, "db": db} if name == "column_sums" else {"y": y, "dy": dy, "dx": dx, "db": db}
    found = in_all_orders(run_cuda, "small", name, values, "float64", {}, (5, 64))
    wanted = dy if name == "column_sums" else dy * (y > 0)
    parts = [wanted[start : start + 26].sum(axis=0) for start in range(0, 103, 26)]
    np.testing.assert_allclose(found["db"], parts, rtol=1e-12)
    if "dx" in found:
        np.testing.assert_array_equal(found["dx"], wanted)
