"""What the compiled executor keeps: its bits whatever the number of workers, its memory, the interpreter's lock.

That it equals the eager executor is in `test_agreement.py`.
"""

import functools
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors import EagerExecutor, choose_executor
from gpumlp.executors.compiled import CompiledExecutor
from gpumlp.failure import NonFiniteLossError
from gpumlp.kernels import BAD_STEP, CONTROL_SIZE, SLOT, STEP
from gpumlp.optimizers import OPTIMIZERS
from gpumlp.program import RING
from tests.executors.trainings import BATCH, FEATURES, LABELS, OUTPUTS, REGRESSION, WIDTH, X, build, step_of


def compiled(workers):
    return functools.partial(CompiledExecutor, workers=workers)


def steps_of(training_step, layers, loss, y, dtype, executors, **settings):
    """The same training on each of several executors."""
    return [step_of(training_step, kind, layers, loss, y, dtype, **settings) for kind in executors]


def deep():
    return [
        *(gm.Linear(FEATURES, WIDTH), gm.BatchNorm1d(WIDTH), gm.ReLU(), gm.Dropout(0.3)),
        *(gm.LayerNorm(WIDTH), gm.GELU(), gm.Linear(WIDTH, OUTPUTS)),
    ]


NARROW = (lambda: [gm.Linear(2, 5), gm.Tanh(), gm.Linear(5, 4), gm.ReLU(), gm.Linear(4, 1)], 2, 1, 1500)
BROAD = (
    lambda: [
        *(
            gm.Linear(9, 70),
            gm.BatchNorm1d(70),
            gm.GELU(),
            gm.Dropout(0.2),
            gm.Linear(70, 41),
            gm.LayerNorm(41),
        ),
        *(gm.Mish(), gm.PerUnit(["relu"] * 20 + ["tanh"] * 21), gm.GaussianNoise(0.1), gm.Linear(41, 17)),
    ],
    9,
    17,
    40,
)
LONG = (lambda: [gm.Linear(3, 33), gm.Sigmoid(), gm.Linear(33, 18), gm.ReLU(), gm.Linear(18, 3)], 3, 3, 1300)


@pytest.mark.parametrize("network", [NARROW, BROAD, LONG], ids=["narrow", "broad", "long"])
def test_the_number_of_workers_changes_no_bit(training_step, everything_of, network, dtype):
    layers, features, outputs, rows = network
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows * 2 + 7, features)), rng.normal(size=(rows * 2 + 7, outputs))
    executors = [compiled(n) for n in (1, 1, 2, 3, 5)]
    made = steps_of(
        training_step, layers, "mse", y, dtype, executors, optimizer=gm.Adam, x=x, batch_rows=rows
    )
    for step in made:
        assert step.run(7) == 7
    for name, wanted in everything_of(made[0]).items():
        for step in made[1:]:
            np.testing.assert_array_equal(everything_of(step)[name], wanted, err_msg=name)


def test_workers_that_run_into_each_other_change_no_bit(training_step):
    """Many short blocks: the workers start at times of their own, three of them where two may have a processor."""
    layers, features, outputs, rows = BROAD
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows + 9, features)), rng.normal(size=(rows + 9, outputs))
    executors = [compiled(1), compiled(3)]
    alone, shared = steps_of(
        training_step, layers, "mse", y, "float32", executors, optimizer=gm.Adam, x=x, batch_rows=rows
    )
    for n in [1, 2, 1, 5] * 10:
        assert alone.run(n) == shared.run(n) == n
        np.testing.assert_array_equal(shared.network.parameters.memory, alone.network.parameters.memory)


def test_evaluation_and_prediction_agree_with_eager(training_step, monkeypatch, dtype, assert_close):
    network = build(deep, dtype)
    trainer = gm.Trainer(network, loss=gm.CrossEntropy(), optimizer="adam", threads=1)
    trainer.fit(X, LABELS, epochs=2, batch_size=BATCH, progress=False)
    found = trainer.predict(X, batch_size=10), trainer.evaluate(X, LABELS)
    monkeypatch.setattr(
        "gpumlp.inference.make_executor", lambda backend, memory, *_: EagerExecutor(backend, memory)
    )
    again = gm.Trainer(network, loss=gm.CrossEntropy(), optimizer="adam")
    wanted = again.predict(X, batch_size=10), again.evaluate(X, LABELS)
    assert_close(found[0], wanted[0], {"float32": 2e-6, "float64": 1e-12}[dtype])
    assert found[1] == pytest.approx(wanted[1], rel={"float32": 2e-6, "float64": 1e-12}[dtype])


# --- what is not finite -------------------------------------------------------------------------------------------


def overflowing_gradient():
    """Outputs and loss are finite, the gradients of the first layers are not, in float32."""
    network = gm.Sequential(
        *(gm.Linear(1, 1, bias=False) for _ in range(3)), dtype="float32", seed=0, device="cpu"
    )
    for layer, value in zip(network.layers, (1e-37, 1e25, 1e25), strict=True):
        layer.weight[...] = value
    return network, np.ones((8, 1)), np.zeros((8, 1)), {}


def bad_row():
    network = build(deep, "float32")
    x = X.copy()
    x[20] = 3e38  # overflows in the first product
    return network, x, LABELS, {"loss": "cross_entropy"}


def diverging():
    network = build(lambda: [gm.Linear(FEATURES, WIDTH), gm.ReLU(), gm.Linear(WIDTH, OUTPUTS)], "float32")
    return network, X, REGRESSION, {"optimizer": gm.SGD(lr=1e6, momentum=0.9)}


def fit_until_it_fails(make, workers, epochs=60):
    network, x, y, settings = make()
    settings = {"loss": "mse", "optimizer": gm.SGD(lr=1e-3, momentum=0.9), **settings}
    trainer = gm.Trainer(network, threads=workers, **settings)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(x, y, epochs=epochs, batch_size=4, shuffle=False, progress=False)
    return caught.value, trainer


@pytest.mark.parametrize("make", [overflowing_gradient, bad_row, diverging], ids=lambda f: f.__name__)
def test_a_run_that_fails_ends_at_the_step_and_layer_that_eager_names(make, monkeypatch, assert_agree):
    found = [fit_until_it_fails(make, workers) for workers in (1, 3)]
    monkeypatch.setattr(
        "gpumlp.feed.make_executor", lambda backend, memory, *_: EagerExecutor(backend, memory)
    )
    error, truth = fit_until_it_fails(make, None)
    for other, trainer in found:
        assert (other.epoch, other.batch, other.layer) == (error.epoch, error.batch, error.layer)
        assert str(other) == str(error)
        counters = np.arange(CONTROL_SIZE) != SLOT  # where blocks end is a matter of time
        np.testing.assert_array_equal(trainer.control[counters], truth.control[counters])
        assert trainer.history.steps == truth.history.steps
        assert_agree(state_of(trainer), state_of(truth), 1e-4)  # many steps, from their own states


def state_of(trainer):
    slots = {f"{slot}.{k}": v for slot, arena in trainer.slots.items() for k, v in arena.to_host().items()}
    return {**{f"network.{k}": np.array(v) for k, v in trainer.network.state_dict().items()}, **slots}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("optimizer", [c for c in OPTIMIZERS if c != "adamw"])
def test_a_bad_step_changes_no_weight_slot_or_running_statistic(training_step, optimizer, workers):
    x = X.copy()
    x[BATCH] = 3e38  # without shuffling, in the second batch
    made = [
        steps_of(
            training_step, deep, "cross_entropy", LABELS, "float32", [compiled(workers)],
            optimizer=OPTIMIZERS[optimizer], shuffle=False, x=given,
        )[0]
        for given in (X, x)
    ]  # fmt: skip
    good, bad = made
    assert good.run(1) == 1
    assert bad.run(9) == 1
    assert bad.control[BAD_STEP] == 1
    for role in ("parameters", "state", *good.slots):
        np.testing.assert_array_equal(bad.memory.arenas[role].memory, good.memory.arenas[role].memory)
    # and it goes on where the cause is gone
    bad.memory.arrays["X"][...] = X
    bad.control[BAD_STEP] = -1
    assert bad.run(5) == good.run(5) == 5
    np.testing.assert_array_equal(bad.network.parameters.memory, good.network.parameters.memory)


# --- blocks of machine code ---------------------------------------------------------------------------------------


def long_step(training_step, workers=1):
    (step,) = steps_of(training_step, deep, "cross_entropy", LABELS, "float32", [compiled(workers)])
    return step


@pytest.mark.parametrize(("workers", "steps"), [(1, RING), (2, 1000)])
def test_a_block_never_waits_for_the_interpreter(training_step, workers, steps):
    """While a block runs this thread keeps the interpreter to itself: a call back into Python would stop the block."""
    step, before = long_step(training_step, workers), sys.getswitchinterval()
    thread = threading.Thread(target=step.run, args=(steps,))
    thread.start()
    while step.control[STEP] == 0 and thread.is_alive():
        time.sleep(1e-4)
    try:
        sys.setswitchinterval(1000)
        at_first, end = int(step.control[STEP]), time.perf_counter() + 60
        while step.control[STEP] < steps and time.perf_counter() < end:
            pass  # nothing here lets go of the interpreter
        at_last = int(step.control[STEP])
    finally:
        sys.setswitchinterval(before)
    thread.join()
    assert 0 < at_first < steps
    assert at_last == steps


def test_steps_allocate_nothing(training_step):
    step = long_step(training_step)
    step.run(10)
    tracemalloc.start()
    try:
        step.run(10)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        step.run(3000)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - before < 4096
    assert peak - before < 16_384  # contexts and threads of one block, however long


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")
def test_memory_does_not_grow_with_steps_or_fits(training_step):
    step = long_step(training_step)

    def work():
        for _ in range(10):
            trainer = gm.Trainer(build(deep, "float32"), loss="cross_entropy", optimizer="adam", threads=2)
            trainer.fit(X, LABELS, epochs=3, batch_size=BATCH, progress=False)
        step.run(4000)

    work()
    before = resident_bytes()
    for _ in range(3):
        work()
    assert resident_bytes() - before < 4 * 2**20


def test_the_data_set_is_read_where_it_lies():
    x = np.random.default_rng(0).normal(size=(50_000, 40)).astype(np.float32)
    trainer = gm.Trainer(gm.mlp([40, 8, 1], device="cpu"), loss="mse", threads=1)
    y = x[:, :1].copy()
    trainer.fit(x[:500], y[:500], epochs=1, batch_size=64, progress=False)
    tracemalloc.start()
    try:
        trainer.fit(x, y, epochs=1, batch_size=512, progress=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 2


@pytest.mark.parametrize("workers", [1, 2])
def test_two_runs_have_the_same_bits(workers):
    weights = []
    for _ in range(2):
        trainer = gm.Trainer(
            build(deep, "float32"), loss="cross_entropy", optimizer="adam", seed=5, threads=workers
        )
        trainer.fit(X, LABELS, epochs=9, batch_size=BATCH, progress=False)
        weights.append(state_of(trainer))
    for name, value in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], value)


def test_a_network_with_a_layer_in_python_runs_on_eager_by_itself():
    backend = gm.get_backend("cpu")
    assert choose_executor(backend, has_python=False) == (CompiledExecutor, "compiled")
    executor, why = choose_executor(backend, has_python=True)
    assert executor is EagerExecutor
    assert "layer of your own" in why


def test_operands_that_do_not_fit_are_refused_when_prepared(training_step):
    step = long_step(training_step)
    step.memory.arrays["X"] = step.memory.arrays["X"][:, :-1].copy()
    with pytest.raises(ValueError, match="operand X"):
        step.executor.prepare(*step.plan.programs)
