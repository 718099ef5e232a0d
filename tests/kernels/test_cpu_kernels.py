"""Every compiled kernel equals the reference, over the whole catalogue: a new entry is tested by being there.

Operands come in three sizes: small; a size that three workers share by columns
with a rest; and a matrix so tall that they share its rows.
"""

import numpy as np
import pytest

from bench.gpu_check.examples import NOT_NEGATIVE, Examples, control
from gpumlp.executors.linking import HAVE_IN_PLACE
from gpumlp.kernels import ACTIVATIONS, BAD_STEP, CATALOGUE, EPOCH, STEP
from gpumlp.kernels.cpu.compiling import table
from tests.kernels.cases import (
    LEARNING,
    MATRICES,
    NAMES,
    OPTIONAL,
    TOLERANCE,
    VARIANTS,
    assert_equal_to_the_last_digits,
    assert_masks_and_noise,
    between_guards,
    compare,
    over_all_numbers,
    results,
    run_reference,
)

SIZES = {"small": Examples(5, 7, 33), "shared": Examples(19, 37, 300), "long": Examples(1100, 5, 4099)}
SMALL = SIZES["small"]


def run(run_compiled, size, name, values, dtype, changed, workers=1, gap=0):
    """Run a compiled kernel between guards; return all operands afterwards."""
    scalars = {**SIZES[size].scalars(name), **changed}
    return between_guards(lambda held: run_compiled(name, held, scalars, dtype, workers), name, values, gap)


def test_the_compiled_table_has_the_whole_catalogue_and_what_linking_adds():
    in_place = {f"{name}_in_place" for name in HAVE_IN_PLACE}
    assert {name for name in HAVE_IN_PLACE if not CATALOGUE[name].in_place} == set()
    walkers = {"walk_steps", "walk_calls"}
    assert set(table()) == set(CATALOGUE) | in_place | {"outer", "dot_rows", "sum_rows"} | walkers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "changed"), VARIANTS)
def test_a_compiled_kernel_equals_the_reference(run_compiled, name, changed, size, dtype):
    values = SIZES[size].operands(name, dtype, changed)
    if changed.get("transpose_a") and changed.get("transpose_b"):
        pytest.skip("no layer writes that")
    wanted = run_reference(SIZES[size], name, values, **changed)
    alone, shared = (run(run_compiled, size, name, values, dtype, changed, n) for n in (1, 3))
    compare(name, alone, wanted, dtype, results(name))
    for operand in CATALOGUE[name].reads:
        np.testing.assert_array_equal(alone[operand], values[operand])
    for operand, value in alone.items():
        np.testing.assert_array_equal(shared[operand], value, err_msg=f"{operand}, with 3 workers")


@pytest.mark.parametrize("name", MATRICES)
def test_rows_may_lie_apart(run_compiled, name, dtype):
    for size, workers in (("small", 1), ("shared", 3), ("long", 3)):
        values = SIZES[size].operands(name, dtype)
        wanted = run(run_compiled, size, name, values, dtype, {})
        found = run(run_compiled, size, name, values, dtype, {}, workers, gap=3)
        for result in results(name):
            np.testing.assert_array_equal(found[result], wanted[result], err_msg=result)


@pytest.mark.parametrize(("name", "absent"), OPTIONAL)
def test_an_optional_operand_may_be_absent(run_compiled, name, absent, dtype):
    for size, workers in (("small", 1), ("shared", 3)):
        values = {**SIZES[size].operands(name, dtype), absent: None}
        wanted = run_reference(SIZES[size], name, values)
        found = run(run_compiled, size, name, values, dtype, {}, workers)
        compare(name, found, wanted, dtype, results(name))


@pytest.mark.parametrize("name", [n for n in NAMES if CATALOGUE[n].optional])
def test_all_optional_operands_may_be_absent_but_the_one_that_is_the_purpose(run_compiled, name, dtype):
    gone = dict.fromkeys(CATALOGUE[name].optional - {"dx"})
    values = {**SIZES["shared"].operands(name, dtype), **gone}
    wanted = run_reference(SIZES["shared"], name, values)
    compare(name, run(run_compiled, "shared", name, values, dtype, {}, 3), wanted, dtype, results(name))


@pytest.mark.parametrize("name", [n for n in NAMES if CATALOGUE[n].in_place])
def test_a_kernel_that_may_work_in_place_gives_the_same_there(run_compiled, name, dtype):
    """To rounding: a loop over memory that overlaps is compiled in another way."""
    spec = CATALOGUE[name]
    assert spec.in_place is not None
    written, read = spec.in_place
    values = SIZES["shared"].operands(name, dtype)
    apart, together = ({k: v.copy() for k, v in values.items()} for _ in range(2))
    together[written] = together[read]
    for given, workers in ((apart, 1), (together, 3)):
        run_compiled(name, given, SIZES["shared"].scalars(name), dtype, workers)
    for result in results(name):
        if result not in (written, read):
            np.testing.assert_array_equal(together[result], apart[result])
    compare(name, {written: together[written]}, apart, dtype, [written])


def lost_weights_do_not_decay(changed):
    return changed.get("weight_decay") == 0.0 or bool(changed.get("decoupled"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "changed"), VARIANTS)
def test_what_is_not_finite_shows_where_it_shows_in_the_reference(run_compiled, name, changed, bad):
    """One entry of each float operand in turn, at places drawn at random."""
    spec, rng = CATALOGUE[name], np.random.default_rng(5)
    values = SIZES["small"].operands(name, "float64", changed)
    for operand in spec.reads + spec.updates:
        if values[operand].dtype.kind != "f" or (operand == "ring" and name != "check_loss"):
            continue
        if bad == -np.inf and (operand in NOT_NEGATIVE or name.startswith("relu_grad")):
            continue
        for _ in range(3):
            lost = {**values, operand: values[operand].copy()}
            lost[operand][tuple(rng.integers(0, n) for n in lost[operand].shape)] = bad
            wanted = run_reference(SMALL, name, lost, **changed)
            found = run(run_compiled, "small", name, lost, "float64", changed)
            # 0 times a lost weight: the reference leaves a decay of 0 out, and so a slot stays finite that is of no use
            seen = (
                ["parameters"]
                if operand == "parameters" and lost_weights_do_not_decay(changed)
                else results(name)
            )
            compare(f"{name} with {operand} {bad}", found, wanted, "float64", seen)
            if np.isnan(bad):
                for result in seen:
                    if lost[result] is not None and wanted[result].dtype.kind == "f":
                        np.testing.assert_array_equal(np.isnan(found[result]), np.isnan(wanted[result]))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("form", ["{}", "{}_grad", "bias_{}", "{}_grad_bias"])
def test_activations_over_the_whole_range_of_numbers(run_compiled, name, form, dtype):
    """From the smallest to the largest, with zeros and infinities; NaN is where the reference has it."""
    name = form.format(name)
    values = over_all_numbers(name, dtype)
    wanted = run_reference(SMALL, name, values)
    found = run(run_compiled, "small", name, values, dtype, {})
    assert_equal_to_the_last_digits(name, values, found, wanted, dtype)


@pytest.mark.parametrize("name", LEARNING)
def test_a_flagged_step_changes_no_parameter_slot_or_running_statistic(run_compiled, name, dtype):
    values = SIZES["shared"].operands(name, dtype)
    values["control"][BAD_STEP] = 5
    found = run(run_compiled, "shared", name, values, dtype, {}, 3)
    for operand in CATALOGUE[name].updates:
        np.testing.assert_array_equal(found[operand], values[operand])


def test_the_first_bad_step_stays_in_the_control_block(run_compiled):
    for name in ("check_loss", "check_gradients"):
        values = SIZES["small"].operands(name, "float64")
        values["ring" if name == "check_loss" else "gradients"][...] = np.nan
        assert run(run_compiled, "small", name, values, "float64", {})["control"][BAD_STEP] == 6
        values["control"][[STEP, BAD_STEP]] = 9, 2
        assert run(run_compiled, "small", name, values, "float64", {})["control"][BAD_STEP] == 2


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 31, 33])
def test_masks_and_noise_are_those_of_the_reference_for_every_width(run_compiled, columns, workers):
    """The last quarter of a row may be short, or empty."""
    assert_masks_and_noise(
        lambda name, values: run(run_compiled, "small", name, values, "float64", {}, workers),
        SMALL,
        columns,
        1e-13,
    )


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 70_001])
def test_an_epoch_has_the_order_of_the_reference(run_compiled, rows):
    counters = control()
    given = np.arange(10, 10 + rows)
    for epoch in (0, 1, 2**31):
        counters[EPOCH] = epoch
        values = {"control": counters, "rows": given, "index": np.zeros(rows, np.int64)}
        wanted = run_reference(SMALL, "shuffle", values)["index"]
        found = run(run_compiled, "small", "shuffle", values, "float32", {})["index"]
        np.testing.assert_array_equal(found, wanted)


SIDES_OF_1 = [
    (1, 9, 7),
    (9, 1, 7),
    (9, 7, 1),
    (1, 1, 7),
    (1, 7, 1),
    (7, 1, 1),
    (1, 1, 1),
    (1200, 1, 9),
    (9, 1, 1200),
]


@pytest.mark.parametrize("sizes", SIDES_OF_1, ids=str)
@pytest.mark.parametrize("form", [(False, False), (True, False), (False, True)], ids=str)
def test_products_with_a_side_of_1(run_compiled, form, sizes, dtype):
    (m, n, k), (ta, tb), rng = sizes, form, np.random.default_rng(1)
    a, b = (rng.normal(size=s).astype(dtype) for s in ((k, m) if ta else (m, k), (n, k) if tb else (k, n)))
    values, changed = {"a": a, "b": b, "c": np.zeros((m, n), dtype)}, {"transpose_a": ta, "transpose_b": tb}
    wanted = (a.T if ta else a).astype(np.float64) @ (b.T if tb else b).astype(np.float64)
    # an entry may be small by cancellation: the size of what is summed is |a| |b|
    scale = max(np.linalg.norm(wanted), np.linalg.norm(a) * np.linalg.norm(b) / np.sqrt(k))
    for gap in (0, 2):  # with a gap a column does not lie together, and another kernel is chosen
        alone, shared = (
            run(run_compiled, "small", "matmul", values, dtype, changed, workers, gap)["c"]
            for workers in (1, 3)
        )
        assert np.linalg.norm(alone - wanted) <= TOLERANCE[dtype] * scale
        np.testing.assert_array_equal(shared, alone)
