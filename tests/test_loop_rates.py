"""gpumlp.loop: the learning rate of each step, from schedules, plateaus and callbacks."""

from __future__ import annotations

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.program import RING
from gpumlp.schedules import ConstantRate
from tests.loops import LABELS, VALUES, X, trainer_of
from tests.trainers import weights_of

SCHEDULES: list[gm.schedules.Schedule] = [
    gm.StepDecay(0.1, factor=0.5, every=2),
    gm.StepDecay(0.1, factor=0.5, every=3, unit="steps"),
    gm.ExponentialDecay(0.1, factor=0.7, every=1),
    gm.CosineDecay(0.1, final=0.01, warmup=2, unit="steps"),
    gm.OneCycle(0.1),
    gm.InverseScaling(0.1),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_each_step_is_made_with_the_rate_of_the_schedule(schedule):
    steps_per_epoch, epochs = 4, 5  # of 8, 8, 8 and 6 rows
    trainer = gm.Trainer(
        gm.Sequential(gm.Linear(4, 1, weight_init="zeros"), dtype="float64", device="cpu"),
        loss="mse",
        optimizer=gm.SGD(schedule),
    )
    history = trainer.fit(X, VALUES, epochs=epochs, batch_size=8, shuffle=False, progress=False)
    rates = schedule.rates(np.arange(20), steps_per_epoch, 20)
    assert len(set(rates)) > 2
    w, b = np.zeros(4), 0.0
    for step, lr in enumerate(rates):
        start = step % 4 * 8
        x, y = X[start : start + 8], VALUES[start : start + 8]
        error = x @ w + b - y
        w, b = w - lr * 2 * x.T @ error / len(x), b - lr * 2 * error.mean()
    np.testing.assert_allclose(trainer.network[0].weight[:, 0], w, rtol=1e-11)
    np.testing.assert_allclose(trainer.network[0].bias[0], b, rtol=1e-11)
    np.testing.assert_array_equal(history["lr"], rates[3::4])  # of the last step of each epoch


def test_the_rate_of_a_second_fit_goes_on_from_the_first():
    schedule = gm.ExponentialDecay(0.1, factor=0.7, every=1)
    trainer = trainer_of(optimizer=gm.SGD(schedule))
    first = trainer.fit(X, LABELS, epochs=3, batch_size=8, progress=False)["lr"]
    second = trainer.fit(X, LABELS, epochs=2, batch_size=8, progress=False)["lr"]
    np.testing.assert_array_equal([*first, *second], schedule.rates(np.arange(3, 20, 4), 4, 20))


def test_a_training_longer_than_the_table_of_rates_goes_on():
    trainer = trainer_of(
        optimizer=gm.SGD(gm.StepDecay(0.1, factor=0.5, every=RING, unit="steps")), loss="mse"
    )
    history = trainer.fit(
        X[:2], VALUES[:2], epochs=RING + 100, batch_size=None, progress=False, record_steps=True
    )
    assert history.steps == len(history) == len(history.step_losses) == RING + 100
    assert history["lr"] == [0.1] * RING + [0.05] * 100
    assert history["epoch"] == list(range(1, RING + 101))


@pytest.mark.parametrize("after", [ConstantRate(0.01), gm.ExponentialDecay(0.01, factor=1.0, every=1)])
@pytest.mark.parametrize("before", [ConstantRate(0.1), gm.ExponentialDecay(0.1, factor=1.0, every=1)])
def test_a_callback_that_gives_the_optimizer_another_schedule_is_heeded_at_once(before, after):
    rates: list[float] = []

    def change(trainer, epoch, logs):
        rates.append(logs["lr"])
        if epoch == 5:
            trainer.optimizer.schedule = after

    trainer_of(change, gm.SGD(before)).fit(X, LABELS, epochs=8, batch_size=8, progress=False)
    assert rates == [0.1] * 5 + [0.01] * 3


# ---- reduce on plateau ----


def test_reduce_on_plateau_lowers_the_rate_of_the_epochs_that_follow():
    schedule = gm.ReduceOnPlateau(0.1, factor=0.5, patience=1, threshold=0.5, monitor="loss")
    trainer = trainer_of(optimizer=gm.SGD(schedule))
    history = trainer.fit(X, LABELS, epochs=12, batch_size=8, progress=False)
    expected = gm.ReduceOnPlateau(0.1, factor=0.5, patience=1, threshold=0.5, monitor="loss")
    rates = []
    for loss in history["loss"]:
        rates.append(expected.current_lr)
        expected.observe(loss)
    assert history["lr"] == rates
    assert len(set(rates)) > 2


def test_reduce_on_plateau_observes_only_epochs_that_were_validated():
    schedule = gm.ReduceOnPlateau(0.1, factor=0.5, patience=0, threshold=0.99)
    trainer = trainer_of(optimizer=gm.SGD(schedule))
    history = trainer.fit(
        X, LABELS, epochs=9, validation_split=0.3, validate_every=3, batch_size=8, progress=False
    )
    # the value of epoch 3 is the first, that of epoch 6 is bad
    assert history["lr"] == [0.1] * 6 + [0.05] * 3


@pytest.mark.parametrize("monitor", ["val_loss", "val_f1"])
def test_reduce_on_plateau_refuses_what_is_not_measured_before_anything_is_trained(monitor):
    trainer = trainer_of(optimizer=gm.SGD(gm.ReduceOnPlateau(0.1, monitor=monitor)))
    before = weights_of(trainer)
    with pytest.raises(
        ValueError, match=f"reduce_on_plateau monitors '{monitor}', which is not measured; expected one of"
    ) as error:
        trainer.fit(X, LABELS, epochs=3, progress=False, batch_size=8)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(weights_of(trainer), before)
