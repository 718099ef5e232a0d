"""Contracts that hold for every kernel of the catalogue: a new entry is tested by being there.

An example of each kernel's operands is made from their names; a kernel with a new kind of operand or scalar fails
here until `bench/gpu_check/examples.py` knows it.
"""

import inspect
from typing import Any

import numpy as np
import pytest

from bench.gpu_check.examples import RING, Examples
from gpumlp.kernels import BAD_STEP, CATALOGUE, EPOCH, SEED, SLOT, START, STEP
from gpumlp.kernels.reference import KERNELS, kernel
from tests.kernels.cases import HOST, LEARNING, NAMES, OPTIONAL, VARIANTS, on_device, results, run_reference

EXAMPLES = Examples(5, 7, 33)


def run(name, values, backend, **changed):
    return run_reference(EXAMPLES, name, values, backend, **changed)


def is_float(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype.kind == "f"


def test_every_kernel_has_a_reference_and_there_is_no_other():
    assert set(KERNELS) == set(CATALOGUE)


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_takes_xp_then_operands_then_scalars_in_the_order_of_the_catalogue(name):
    spec, signature = CATALOGUE[name], inspect.signature(kernel(name))
    assert next(iter(signature.parameters)) == "xp"
    bound = signature.bind("xp", *spec.operands, **dict.fromkeys(spec.scalars))
    assert len(bound.args) + len(bound.kwargs) == 1 + len(spec.operands) + len(spec.scalars)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        assert tuple(signature.parameters)[1 + len(spec.operands) :] == spec.scalars


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_consistent_and_says_what_it_does(name):
    spec = CATALOGUE[name]
    assert spec.doc
    assert len(set(spec.operands)) == len(spec.operands)
    assert spec.optional <= set(spec.operands)
    assert results(name)
    if spec.in_place:
        written, read = spec.in_place
        assert written in spec.writes
        assert read in spec.reads + spec.updates


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_writes_what_its_contract_names_and_nothing_else(name, backend, dtype):
    spec, before = CATALOGUE[name], EXAMPLES.operands(name, dtype)
    after = run(name, before, backend)
    for operand in spec.reads:
        np.testing.assert_array_equal(after[operand], before[operand])
    for operand in spec.writes:  # the example's noise was overwritten, all of it
        assert after[operand].dtype == before[operand].dtype
        if operand == "index":
            assert sorted(after[operand]) == sorted(before["rows"])
        elif is_float(after[operand]):
            assert (after[operand] != before[operand]).all()
    if "ring" in spec.updates:
        others = np.arange(RING) != before["control"][SLOT]
        np.testing.assert_array_equal(after["ring"][others], before["ring"][others])
        assert (after["ring"][~others] != before["ring"][~others]).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_overwritten_is_not_read(name, backend, dtype):
    spec, values = CATALOGUE[name], EXAMPLES.operands(name, dtype)
    wanted = run(name, values, backend)
    for operand in spec.writes:
        noise = np.nan if is_float(values[operand]) else 999
        filled = {**values, operand: np.full_like(values[operand], noise)}
        found = run(name, filled, backend)
        for result in results(name):
            np.testing.assert_array_equal(found[result], wanted[result], err_msg=f"{result} by {operand}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gap", [0, 3])
def test_a_kernel_touches_nothing_around_its_operands(name, gap, backend, dtype):
    """Guards of NaN lie before and behind every operand, and with a gap between the rows of a matrix too."""
    spec, values = CATALOGUE[name], EXAMPLES.operands(name, dtype)
    wanted, held, views = run(name, values, backend), {}, {}
    for operand, value in values.items():
        if operand in HOST:
            views[operand] = value.copy()
            continue
        fill = np.nan if is_float(value) else -(10**6)
        xp = backend.xp
        wide = gap if value.ndim == 2 and operand not in ("ring", "source") else 0
        rows, width = value.shape if value.ndim == 2 else (1, value.shape[0])
        memory = xp.full(16 + rows * (width + wide) + 16, fill, dtype=value.dtype)
        inner = memory[16 : 16 + rows * (width + wide)].reshape(rows, width + wide)[:, :width]
        view = inner if value.ndim == 2 else inner[0]
        view[...] = xp.asarray(value)
        held[operand], views[operand] = memory, view
    with np.errstate(all="ignore"):
        kernel(name)(backend.xp, *views.values(), **EXAMPLES.scalars(name))
    for operand, memory in held.items():
        inside = np.array(backend.to_host(views[operand]))
        if is_float(inside):  # strides may change the order of a sum
            np.testing.assert_allclose(inside, wanted[operand], rtol=1e-5 if dtype == "float32" else 1e-12)
        else:
            np.testing.assert_array_equal(inside, wanted[operand])
        views[operand][...] = 0
        guard = np.array(backend.to_host(memory))
        untouched = np.isnan(guard) if is_float(guard) else guard == -(10**6)
        assert untouched.sum() == guard.size - inside.size, operand
    assert spec.operands == tuple(values)


@pytest.mark.parametrize("name", [n for n in NAMES if CATALOGUE[n].in_place])
def test_a_kernel_that_may_work_in_place_gives_the_same_bits_there(name, backend, dtype):
    spec, values = CATALOGUE[name], EXAMPLES.operands(name, dtype)
    assert spec.in_place is not None
    written, read = spec.in_place
    wanted = run(name, values, backend)[written]
    placed = on_device({k: v.copy() for k, v in values.items()}, backend)
    placed[written] = placed[read]
    kernel(name)(backend.xp, *placed.values(), **EXAMPLES.scalars(name))
    np.testing.assert_array_equal(backend.to_host(placed[written]), wanted)


@pytest.mark.parametrize(("name", "absent"), OPTIONAL)
def test_an_optional_operand_may_be_absent(name, absent, backend):
    """One that is written is merely not written; one that is read counts as 1 (a scale or weight) or 0.

    Without `average` rmsprop is another rule, not centred: that is tested by its formula.
    """
    spec, values = CATALOGUE[name], EXAMPLES.operands(name)
    found = run(name, {**values, absent: None}, backend)
    if absent in spec.writes:
        wanted = run(name, values, backend)
    else:
        neutral = 1.0 if absent in ("gamma", "weight") else 0.0
        wanted = run(name, {**values, absent: np.full_like(values[absent], neutral)}, backend)
    for result in set(results(name)) - {absent}:
        np.testing.assert_allclose(found[result], wanted[result], rtol=1e-12)


def relevant(name: str, operand: str, values: dict) -> np.ndarray:
    """Which entries of an operand the step at hand reads."""
    mask = np.zeros(values[operand].shape, bool)
    if operand == "rates":
        mask[values["control"][SLOT]] = True
    elif operand == "ring":
        mask[values["control"][SLOT], 0] = name == "check_loss"
    elif operand == "source":
        start = values["control"][START]
        mask[values["index"][start : start + EXAMPLES.rows]] = True
    else:
        mask[...] = True
    return mask


@pytest.mark.parametrize("absent", [False, True], ids=["all operands", "needed operands"])
@pytest.mark.parametrize(("name", "changed"), VARIANTS)
def test_nan_goes_through(name, changed, absent, backend):
    """A NaN in any entry of any float operand that is read shows in every result that depends on the entry.

    What depends on it is found by moving the entry to another number.
    """
    spec = CATALOGUE[name]
    values: dict[str, Any] = dict(EXAMPLES.operands(name, changed=changed))
    if absent:  # a layer that needs neither scale nor gradients, a loss without weights and gradient
        gone = spec.optional - {"dx"}
        values.update(dict.fromkeys(gone))
    wanted = run(name, values, backend, **changed)
    for operand in spec.reads + spec.updates:
        if not is_float(values[operand]) or (operand in ("ring",) and name != "check_loss"):
            continue
        mask = relevant(name, operand, values)
        for place in np.ndindex(values[operand].shape):
            lost, moved = ({**values, operand: values[operand].copy()} for _ in range(2))
            lost[operand][place] = np.nan
            moved[operand][place] = values[operand][place] * 0.8 + 0.03
            by_nan, by_number = (run(name, v, backend, **changed) for v in (lost, moved))
            if name in ("check_loss", "check_gradients"):
                assert by_nan["control"][BAD_STEP] == (values["control"][STEP] if mask[place] else -1)
                continue
            seen = False
            for result in results(name):
                if not is_float(wanted[result]):
                    continue
                own = np.zeros(wanted[result].shape, bool)
                if result == operand:  # what is updated keeps its own NaN, and that is no news
                    own[place] = True
                depends = (by_number[result] != wanted[result]) & ~own
                assert np.isnan(by_nan[result][depends]).all(), f"{result} lost the NaN of {operand}{place}"
                seen |= bool(np.isnan(by_nan[result]).any())
                if not mask[place]:
                    assert not depends.any(), f"{result} depends on {operand}{place}"
            if mask[place]:
                assert seen, f"the NaN of {operand}{place} is lost"


@pytest.mark.parametrize("name", [n for n in NAMES if "output" in CATALOGUE[n].reads])
def test_an_output_that_overflowed_gives_a_loss_that_check_loss_sees(name, backend):
    values = EXAMPLES.operands(name)
    values["output"][1, 2] = np.inf
    found = run(name, values, backend, **({"clip": 0.0} if "clip" in CATALOGUE[name].scalars else {}))
    assert not np.isfinite(found["ring"][values["control"][SLOT], 0])


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name, backend):
    single, double = EXAMPLES.operands(name, "float32"), EXAMPLES.operands(name, "float32")
    double = {k: v.astype("float64") if v.dtype == np.float32 else v for k, v in double.items()}
    found, wanted = run(name, single, backend), run(name, double, backend)
    for result in results(name):
        if is_float(wanted[result]):
            np.testing.assert_allclose(found[result], wanted[result], rtol=2e-4, atol=2e-6, err_msg=result)
        else:
            np.testing.assert_array_equal(found[result], wanted[result])


@pytest.mark.parametrize("name", LEARNING)
def test_a_flagged_step_changes_no_parameter_slot_or_running_statistic(name, backend, dtype):
    values = EXAMPLES.operands(name, dtype)
    values["control"][BAD_STEP] = 5
    after = run(name, values, backend)
    for operand in CATALOGUE[name].updates:
        np.testing.assert_array_equal(after[operand], values[operand])


@pytest.mark.parametrize("name", ["dropout", "dropout_grad", "gaussian_noise", "shuffle"])
@pytest.mark.parametrize("by", ["seed", "counter"])
def test_what_is_drawn_depends_on_the_seed_and_on_a_counter(name, by, backend):
    counter = SEED if by == "seed" else EPOCH if name == "shuffle" else STEP
    values, result = EXAMPLES.operands(name), CATALOGUE[name].writes[0]
    first, again = run(name, values, backend)[result], run(name, values, backend)[result]
    np.testing.assert_array_equal(first, again)
    values["control"][counter] += 1
    assert (run(name, values, backend)[result] != first).any()
