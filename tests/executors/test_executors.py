"""What every executor keeps of `run`: blocks, counters, order of the rows, and the end at a bad step."""

import functools
import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp.executors import EagerExecutor, Executor
from gpumlp.kernels import BAD_STEP, EPOCH, POSITION, SEED, SLOT, STEP, UPDATE

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(11, 3)), RNG.integers(0, 3, 11)


def _classes() -> list[type[Executor]]:
    classes: list[type[Executor]] = [EagerExecutor]
    if importlib.util.find_spec("numba"):
        from gpumlp.executors.compiled import CompiledExecutor

        classes.append(CompiledExecutor)
    return classes


@pytest.fixture(scope="module", params=_classes(), ids=lambda cls: cls.name)
def training_step(request, training_step):
    """A `Step` on each of the executors that this machine has."""
    return functools.partial(training_step, executor=request.param)


def make(training_step, batch_rows=4, dtype="float32", x=X, optimizer=None, device="cpu", **settings):
    network = gm.Sequential(
        *(gm.Linear(3, 6), gm.BatchNorm1d(6), gm.ReLU(), gm.Dropout(0.3), gm.GaussianNoise(0.1)),
        gm.Linear(6, 3),
        dtype=dtype,
        seed=2,
        device=device,
    )
    optimizer = optimizer or gm.Adam(lr=0.05)
    step = training_step(
        network, "cross_entropy", x, Y, optimizer=optimizer, batch_rows=batch_rows, shuffle=True, **settings
    )
    step.rates[...] = np.linspace(0.05, 0.01, step.rates.size)
    return step


def state(step):
    slots = {f"{slot}.{k}": v for slot, arena in step.slots.items() for k, v in arena.to_host().items()}
    return {**step.network.state_dict(), **slots}


def run_in_blocks(step, blocks):
    """Train block by block; the table of rates of a block begins with that of its first step."""
    rates, losses, done = step.rates.copy(), [], 0
    for n in blocks:
        step.rates[:n] = rates[done : done + n]
        assert step.run(n) == n
        losses.append(np.array(step.network.backend.to_host(step.ring))[:n, 0])
        done += n
    return np.concatenate(losses)


@settings(max_examples=8)
@given(cuts=st.lists(st.integers(1, 16), max_size=3))
@pytest.mark.parametrize("batch_rows", [4, 11, 1])
def test_blocks_of_any_size_give_the_same_bits_as_single_steps(batch_rows, cuts, training_step):
    total = 17
    edges = [0, *sorted(set(cuts)), total]
    single, blocks = make(training_step, batch_rows), make(training_step, batch_rows)
    losses = run_in_blocks(single, [1] * total)
    found = run_in_blocks(blocks, np.diff(edges))
    np.testing.assert_array_equal(found, losses)
    for name, expected in state(single).items():
        np.testing.assert_array_equal(state(blocks)[name], expected, err_msg=name)
    counters = [STEP, UPDATE, EPOCH, POSITION, BAD_STEP]
    np.testing.assert_array_equal(blocks.control[counters], single.control[counters])


def test_counters_tell_steps_epochs_and_the_place_in_the_epoch(training_step):
    step = make(training_step, batch_rows=4)  # 11 rows: batches of 4, 4 and 3
    for n, (steps, epoch, position) in ((2, (2, 0, 2)), (1, (3, 1, 0)), (7, (10, 3, 1))):
        assert step.run(n) == n
        assert tuple(step.control[[STEP, EPOCH, POSITION]]) == (steps, epoch, position)
        assert step.control[UPDATE] == steps
        assert step.control[SLOT] == n


def test_every_epoch_reads_each_row_once_in_an_order_of_its_own(training_step):
    step = make(training_step, batch_rows=4)
    orders = []
    for _ in range(3):
        step.run(3)
        order = np.array(step.memory.arrays["index"])
        assert sorted(order) == list(range(11))
        orders.append(tuple(order))
    assert len(set(orders)) == 3


def test_the_short_last_batch_has_the_loss_of_its_rows(training_step, loss_and_gradient):
    network = gm.mlp([3, 3], dtype="float64", seed=0, device="cpu")
    step = training_step(network, "cross_entropy", X, Y, batch_rows=4)
    assert step.run(3) == 3
    outputs = network.predict(X)
    for slot, rows in enumerate((slice(0, 4), slice(4, 8), slice(8, 11))):
        value, _ = loss_and_gradient(gm.CrossEntropy(), outputs[rows], Y[rows])
        np.testing.assert_allclose(step.ring[slot], [value, len(Y[rows])], rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_ends_at_the_first_bad_step_and_keeps_the_weights_before_it(optimizer, training_step):
    x = X.copy()
    x[9] = np.inf  # without shuffling, in the third batch
    network = gm.Sequential(
        gm.Linear(3, 4), gm.BatchNorm1d(4), gm.Linear(4, 3), dtype="float64", device="cpu"
    )
    good = gm.Sequential(gm.Linear(3, 4), gm.BatchNorm1d(4), gm.Linear(4, 3), dtype="float64", device="cpu")
    bad_step, good_step = (
        training_step(
            n, "cross_entropy", given_x, Y, batch_rows=4, optimizer=gm.optimizers.get_optimizer(optimizer)
        )
        for n, given_x in ((network, x), (good, X))
    )
    for step in (bad_step, good_step):
        step.rates[...] = 0.05
    assert good_step.run(2) == 2
    assert bad_step.run(6) == 2
    assert bad_step.control[BAD_STEP] == 2
    assert tuple(bad_step.control[[STEP, POSITION, SLOT]]) == (2, 2, 2)
    for name, expected in state(good_step).items():
        np.testing.assert_array_equal(state(bad_step)[name], expected, err_msg=name)


def test_the_same_seed_gives_the_same_bits_twice_and_another_seed_others(training_step, dtype):
    runs = []
    for seed in (5, 5, 6):
        step = make(training_step, dtype=dtype)
        step.control[SEED] = seed
        step.run(12)
        runs.append(state(step))
    for name, expected in runs[0].items():
        np.testing.assert_array_equal(runs[1][name], expected)
    assert any((runs[2][name] != expected).any() for name, expected in runs[0].items())


def test_executors_agree_step_by_step(training_step, assert_close):
    """Each step from the same state; two orders of summation drift apart over many steps.

    Plain descent: the bias in front of the batch norm has a gradient of 0, whose noise Adam would blow up.
    """
    eager = functools.partial(training_step.func, executor=EagerExecutor)
    step, truth = (make(s, dtype="float64", optimizer=gm.SGD(0.1)) for s in (training_step, eager))
    for _ in range(7):
        for name, arena in truth.memory.arenas.items():
            step.memory.arenas[name].memory[...] = arena.memory
        assert step.run(1) == truth.run(1) == 1
        np.testing.assert_allclose(step.ring[0], truth.ring[0], rtol=1e-12)
        for name, expected in state(truth).items():
            assert_close(state(step)[name], expected, 1e-12)
