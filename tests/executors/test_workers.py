"""Workers: how many, and what happens where programs and threads of the user meet."""

import functools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors import workers as module
from gpumlp.executors.compiled import CompiledExecutor
from gpumlp.executors.workers import WORK_FOR_ANOTHER_WORKER, Pace, default_workers, multiply_adds
from gpumlp.kernels import BAD_STEP, EPOCH, POSITION, SLOT, STEP, UPDATE
from gpumlp.program import RING, Builder, Operand
from tests.executors.small_trainings import X, Y, fit, weights


def product(rows, inner, columns, transpose_a=False, transpose_b=False, times=1):
    b = Builder(rows, "float32", training=True)
    for i in range(times):
        shapes = {
            "a": (inner, rows) if transpose_a else (rows, inner),
            "b": (columns, inner) if transpose_b else (inner, columns),
        }
        a, w = (Operand(name, "", shape, "float32") for name, shape in shapes.items())
        c = b.buffer(f"c{i}", rows, columns)
        b.call("matmul", a, w, c, transpose_a=transpose_a, transpose_b=transpose_b)
    return b.finish()


@pytest.mark.parametrize(("ta", "tb"), [(False, False), (True, False), (False, True)])
def test_multiply_adds_are_those_of_all_products(ta, tb):
    assert multiply_adds(product(3, 5, 7, ta, tb, times=2)) == 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    ("sizes", "usable", "expected"),
    [
        ((1, 1, 1), 8, 1),
        ((100, 100, 100), 8, 1),
        ((100, 200, 100), 8, 1),  # a whole one's work, and no more
        ((200, 200, 100), 8, 2),
        ((1000, 1000, 1000), 8, 8),
        ((1000, 1000, 1000), 2, 2),
        ((1000, 1000, 1000), None, 1),
    ],
)
def test_the_default_is_by_size_and_by_the_cpus_that_are_there(monkeypatch, sizes, usable, expected):
    assert WORK_FOR_ANOTHER_WORKER == 2_000_000  # what the sizes above are chosen by
    monkeypatch.setattr(module, "cpu_counts", lambda: {"usable": usable})
    assert default_workers(product(*sizes)) == expected


def test_affinity_and_quota_bound_the_default(monkeypatch):
    large = product(1000, 1000, 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr("gpumlp.cpus.cgroup_quota", lambda: None)
    assert default_workers(large) == 6
    monkeypatch.setattr("gpumlp.cpus.cgroup_quota", lambda: 2.5)
    assert default_workers(large) == 3
    monkeypatch.setattr("gpumlp.cpus.cgroup_quota", lambda: 0.2)
    assert default_workers(large) == 1


def test_programs_of_one_training_take_the_number_of_the_largest(training_step, monkeypatch):
    monkeypatch.setattr(module, "cpu_counts", lambda: {"usable": 4})
    x = np.random.default_rng(0).normal(size=(1100, 300))
    network = gm.mlp([300, 40, 1], seed=0, device="cpu")
    step = training_step(network, "mse", x, x[:, :1], batch_rows=1000, executor=CompiledExecutor)
    assert step.executor.workers == 4  # the last batch of 100 rows alone would take 1
    assert step.run(4) == 4


def test_trainings_at_once_each_give_the_bits_that_they_give_alone():
    settings = [(seed, 1 + seed % 3) for seed in range(8)]
    alone = [weights(fit(*s)) for s in settings]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda s: weights(fit(*s)), settings))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({w.tobytes() for w in alone}) == len(alone)


def test_more_workers_than_processors_come_to_an_end():
    np.testing.assert_array_equal(weights(fit(1, 7)), weights(fit(1, 1)))


def test_no_thread_is_left_behind(training_step):
    before = set(threading.enumerate())
    fit(0, 3)
    assert set(threading.enumerate()) == before


def test_threads_are_joined_when_the_block_ends_early(training_step):
    x = X.copy()
    x[40] = 3e38
    network = gm.mlp([8, 40, 1], seed=0, device="cpu")
    before = set(threading.enumerate())
    trainer = gm.Trainer(network, loss="mse", threads=3)
    with pytest.raises(gm.NonFiniteLossError):
        trainer.fit(x, Y, epochs=5, batch_size=32, progress=False)
    assert set(threading.enumerate()) == before


def test_threads_is_a_number_of_at_least_1():
    bad: Any
    for bad in (0, -1, 1.5, "two"):
        with pytest.raises((ValueError, TypeError), match="threads"):
            gm.Trainer(gm.mlp([8, 4, 1], device="cpu"), loss="mse", threads=bad)


# --- ends of a block, and threads that do not start -----------------------------------------------------------


class Hasty(CompiledExecutor):
    longest_run = 0.0005


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_run_ends_early_once_it_lasted_long_enough_and_goes_on_from_there(training_step, workers):
    """A block that was planned far too long, as one is where another process takes a processor away."""
    network = gm.mlp([8, 30, 1], seed=0, device="cpu")
    long = training_step(
        network, "mse", X, Y, batch_rows=16, shuffle=True, executor=functools.partial(Hasty, workers=workers)
    )
    done = long.run(RING)
    assert 0 < done < RING
    assert long.control[[STEP, UPDATE, SLOT]].tolist() == [done] * 3
    assert long.control[POSITION] == done % long.plan.steps
    done += long.run(3)
    network = gm.mlp([8, 30, 1], seed=0, device="cpu")
    same = training_step(network, "mse", X, Y, batch_rows=16, shuffle=True, executor=CompiledExecutor)
    assert same.run(done) == done
    np.testing.assert_array_equal(long.network.parameters.memory, same.network.parameters.memory)
    counters = [STEP, UPDATE, EPOCH, POSITION, BAD_STEP]
    np.testing.assert_array_equal(long.control[counters], same.control[counters])


@pytest.mark.parametrize("started", [0, 1, 2])
def test_where_the_system_gives_no_more_threads_fewer_share_the_work(monkeypatch, started):
    wanted, before, starts = weights(fit(2, 4)), threading.Thread.start, []

    def start(thread):
        if thread.daemon:  # a worker
            starts.append(thread)
            if len(starts) % 4 > started:
                raise RuntimeError("can't start new thread")
        before(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    np.testing.assert_array_equal(weights(fit(2, 4)), wanted)
    assert starts
    monkeypatch.undo()
    assert not [t for t in threading.enumerate() if t.daemon and t.name.startswith("Thread")]


def test_workers_that_wait_for_one_that_never_comes_are_let_go(training_step):
    """A second Ctrl-C, just before worker 0 begins."""
    network = gm.mlp([8, 40, 1], seed=0, device="cpu")
    step = training_step(
        network, "mse", X, Y, batch_rows=16, executor=functools.partial(CompiledExecutor, workers=3)
    )
    step.run(2)
    job, before, counters = step.executor._job, network.state_dict(), step.control.copy()
    work = job._work

    def interrupted(worker):
        if worker == 0:
            time.sleep(0.05)  # for the others to come to their barrier
            raise KeyboardInterrupt
        work(worker)

    job._work = interrupted
    with pytest.raises(KeyboardInterrupt):
        step.run(100)
    job._work = work
    for name, value in before.items():
        np.testing.assert_array_equal(network.state_dict()[name], value)
    np.testing.assert_array_equal(step.control, counters)
    assert step.run(5) == 5


# --- the pace ---------------------------------------------------------------------------------------------------


def test_a_pace_goes_over_to_one_worker_where_several_are_slower_and_back_again():
    pace = Pace(2)
    assert pace.trial(100) == (2, 0)  # nothing to compare with yet
    pace.took(2, 1.0)
    assert pace.trial(160) == (1, 10)  # one worker is tried once
    pace.took(1, 1.5)
    assert pace.current == 2
    pace.took(2, 1.0)
    assert pace.trial(160)[1] == 0
    pace.took(2, 14.0)  # another process took a processor away
    assert pace.trial(160) == (1, 10)
    pace.took(1, 1.6)
    assert pace.current == 1
    trials = []
    for _ in range(2 * Pace.PATIENCE):
        workers, steps = pace.trial(160)
        if steps:
            trials.append(workers)
            pace.took(workers, 1.0)  # it is free again
        pace.took(pace.current, 1.0 if pace.current == 2 else 1.6)
        if pace.current == 2:
            break
    assert trials == [2]
    assert pace.current == 2


def test_several_workers_that_are_not_far_behind_at_first_get_a_longer_trial():
    """Their caches hold nothing yet: judged by the first steps, one worker would stay alone."""
    pace = Pace(2)
    pace.took(2, 14.0)
    pace.took(1, 1.6)
    assert pace.current == 1
    assert pace.longer_trial(160) == (2, 0)
    for longer, ends_with in ((1.7, 1), (1.0, 2)):
        while not (trial := pace.trial(160))[1]:
            pace.took(1, 1.6)
        assert trial == (2, 10)
        pace.took(2, 2.0)
        assert pace.current == 1
        assert pace.longer_trial(150) == (2, 37)
        pace.took(2, longer)
        assert pace.current == ends_with
        assert pace.longer_trial(113) == (2, 0)
    pace.took(1, 0.1)
    while not pace.trial(160)[1]:
        pace.took(1, 0.1)
    pace.took(2, 14.0)  # a processor is taken away
    assert pace.longer_trial(150) == (2, 0)


def test_a_longer_trial_is_of_another_number_of_workers_and_of_no_more_steps_than_are_left():
    pace = Pace(3)
    pace.took(3, 1.0)
    pace.took(2, 1.5)
    assert pace.longer_trial(100) == (3, 0)
    pace = Pace(2)
    pace.took(2, 1.0)
    pace.took(1, 0.5)
    pace.took(2, 0.6)
    assert pace.longer_trial(1) == (2, 1)
    assert pace.longer_trial(0) == (2, 0)


def test_a_pace_of_one_worker_and_a_block_of_few_steps_try_nothing():
    alone, few = Pace(1), Pace(4)
    alone.took(1, 1.0)
    few.took(4, 1.0)
    assert alone.trial(1000) == (1, 0)
    assert few.trial(3)[1] == 0


def test_changing_the_number_of_workers_while_training_changes_no_bit(monkeypatch):
    """Every block another number: what a busy machine may cause."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 20)).astype("float32"), rng.integers(0, 5, 96)

    def train():
        network = gm.Sequential(
            *(gm.Linear(20, 70), gm.BatchNorm1d(70), gm.Tanh(), gm.Dropout(0.2), gm.Linear(70, 5)),
            device="cpu",
        )
        trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.Adam(1e-3), seed=3)
        trainer.fit(x, y, epochs=40, batch_size=16, progress=False)
        return trainer

    alone = train()
    numbers = iter(range(10**9))
    monkeypatch.setattr("gpumlp.executors.compiled.default_workers", lambda program: 3)
    monkeypatch.setattr(module.Pace, "trial", lambda self, n: (1 + next(numbers) % 3, n // 2))
    mixed = train()
    assert next(numbers) > 1
    for name, value in alone.network.state_dict().items():
        np.testing.assert_array_equal(value, mixed.network.state_dict()[name])
    assert alone.history["loss"] == mixed.history["loss"]
