"""gpumlp.loop: what happens between the steps of a training: rates, validations, Ctrl-C, threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors.compiled import CompiledExecutor
from gpumlp.kernels import POSITION, STEP
from gpumlp.loop import Every, _compiling_notice
from gpumlp.schedules import ConstantRate
from gpumlp.step import RING

RNG = np.random.default_rng(4)
X = RNG.normal(size=(30, 4))
LABELS = (X @ RNG.normal(size=(4, 3))).argmax(axis=1)
VALUES = X @ RNG.normal(size=4)


def trainer_of(
    callbacks: Any = None, optimizer: Any = None, loss: str = "cross_entropy", **settings: Any
) -> gm.Trainer:
    network = gm.mlp((4, 6, 3 if loss == "cross_entropy" else 1), dtype="float64", seed=2, device="cpu")
    optimizer = gm.SGD(0.1, momentum=0.9) if optimizer is None else optimizer
    return gm.Trainer(network, loss=loss, optimizer=optimizer, callbacks=callbacks, **settings)


def weights_of(trainer: gm.Trainer) -> np.ndarray:
    return np.concatenate([v.ravel() for v in trainer.network.state_dict().values()])


class Steps(gm.Callback):
    """The steps at which a training was validated, with the weights of that moment."""

    every_epoch = False

    def __init__(self) -> None:
        self.at: list[int] = []
        self.weights: list[np.ndarray] = []

    def on_validation(self, trainer, step, scores):
        self.at.append(step)
        self.weights.append(weights_of(trainer))


# ---- the rate of each step ----

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


def test_the_blocks_in_which_steps_run_change_no_bit():
    class EachEpoch(gm.Callback):
        pass

    def run(callbacks: Any, **settings: Any) -> gm.Trainer:
        schedule = gm.CosineDecay(0.1, warmup=3, unit="steps")
        trainer = trainer_of(callbacks, gm.Adam(schedule))
        trainer.fit(X, LABELS, epochs=30, batch_size=8, progress=False, record_steps=True, **settings)
        return trainer

    plain = run(None)
    data = {"validation_data": (X, LABELS)}
    for other in (
        run(EachEpoch()),
        run(None, validate_every="1 steps", **data),
        run(Steps(), validate_every=7, **data),
    ):
        np.testing.assert_array_equal(weights_of(other), weights_of(plain))
        assert other.history.step_losses == plain.history.step_losses
        assert other.history["loss"] == pytest.approx(plain.history["loss"], rel=1e-14)


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


# ---- validations ----


@pytest.mark.parametrize(
    ("every", "epochs", "expected"),
    [
        (1, 3, [4, 8, 12]),
        (2, 5, [8, 16, 20]),  # every second epoch, and at the end
        ("2 epochs", 4, [8, 16]),
        (100, 2, [8]),  # at the end
        ("3 steps", 2, [3, 6, 8]),  # within epochs, and at the end
        ("4 steps", 2, [4, 8]),
        ("1 step", 1, [1, 2, 3, 4]),
        ("1000 steps", 2, [8]),
    ],
)
def test_validations_come_when_they_were_asked_for_and_at_the_end(every, epochs, expected):
    steps = Steps()
    trainer = trainer_of(steps)
    history = trainer.fit(
        X,
        LABELS,
        epochs=epochs,
        batch_size=8,
        validation_data=(X[:5], LABELS[:5]),
        validate_every=every,
        progress=False,
    )
    assert steps.at == expected == history.validations["step"]
    assert history.validations["epoch"] == [s / 4 for s in expected]
    at_ends = {
        s // 4: loss for s, loss in zip(expected, history.validations["val_loss"], strict=True) if s % 4 == 0
    }
    found = {int(e): v for e, v in zip(history["epoch"], history["val_loss"], strict=True) if v == v}
    assert found == at_ends


def test_a_validation_within_an_epoch_measures_the_weights_of_that_step():
    steps = Steps()
    trainer = trainer_of(steps)
    held = (X[:5], LABELS[:5])
    history = trainer.fit(
        X, LABELS, epochs=2, batch_size=8, validation_data=held, validate_every="3 steps", progress=False
    )
    network = trainer.network.copy()
    names = list(network.state_dict())
    for weights, loss, accuracy in zip(
        steps.weights, history.validations["val_loss"], history.validations["val_accuracy"], strict=True
    ):
        parts = np.split(weights, np.cumsum([network.state_dict()[n].size for n in names])[:-1])
        network.load_state_dict(
            {n: p.reshape(network.state_dict()[n].shape) for n, p in zip(names, parts, strict=True)}
        )
        assert gm.Trainer(network, loss="cross_entropy").evaluate(*held) == {
            "loss": loss,
            "accuracy": accuracy,
        }


def test_validations_of_a_second_fit_are_counted_from_its_own_begin():
    steps = Steps()
    trainer = trainer_of(steps)
    settings: dict[str, Any] = {
        "batch_size": 8,
        "validation_data": (X, LABELS),
        "validate_every": "3 steps",
        "progress": False,
    }
    trainer.fit(X, LABELS, epochs=1, **settings)
    trainer.fit(X, LABELS, epochs=1, **settings)
    assert steps.at == [3, 4, 7, 8]


def test_train_metrics_are_those_of_the_training_rows_with_each_validation():
    trainer = trainer_of()
    history = trainer.fit(
        X[:20], LABELS[:20], epochs=5, batch_size=8, validation_data=(X[20:], LABELS[20:]), validate_every=2,
        train_metrics=True, progress=False,
    )  # fmt: skip
    assert np.isnan(history["accuracy"]).tolist() == [True, False, True, False, False]
    assert history["accuracy"][-1] == trainer.evaluate(X[:20], LABELS[:20])["accuracy"]
    assert history["val_accuracy"][-1] == trainer.evaluate(X[20:], LABELS[20:])["accuracy"]
    alone = trainer_of()
    history = alone.fit(X[:20], LABELS[:20], epochs=2, batch_size=8, train_metrics=True, progress=False)
    assert history["accuracy"][-1] == alone.evaluate(X[:20], LABELS[:20])["accuracy"]
    assert "val_loss" not in history


@pytest.mark.parametrize(
    "spec", [0, -1, 1.5, "often", "3 hours", "0 steps", "-2 steps", "", None, True, "1.5 epochs"]
)
def test_validate_every_is_a_count_of_epochs_or_steps(spec):
    with pytest.raises(ValueError, match=r"^validate_every is .*; expected") as error:
        Every.parse(spec)
    assert "\n" not in str(error.value)


# ---- Ctrl-C ----


class PressAt(gm.Callback):
    """Presses Ctrl-C after an epoch."""

    def __init__(self, epoch: int, times: int = 1) -> None:
        self.epoch, self.times, self.ended = epoch, times, 0

    def on_epoch_end(self, trainer, epoch, logs):
        if epoch == self.epoch:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)

    def on_train_end(self, trainer):
        self.ended += 1


@pytest.fixture
def own_handler():
    """Python's own handler of Ctrl-C, whatever the process that runs the tests has set."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # given back by the training
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("own_handler")
def test_ctrl_c_keeps_what_was_trained_and_says_so():
    press = PressAt(3)
    trainer = trainer_of(press)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(X, LABELS, epochs=10, batch_size=8, progress=False)
    assert trainer.history.stopped == "interrupted"
    assert (len(trainer.history), trainer.history.steps, press.ended) == (3, 12, 1)
    three = trainer_of()
    three.fit(X, LABELS, epochs=3, batch_size=8, progress=False)
    np.testing.assert_array_equal(weights_of(trainer), weights_of(three))
    assert trainer.history["loss"] == three.history["loss"]
    press.epoch = -1
    trainer.fit(X, LABELS, epochs=2, batch_size=8, progress=False)  # and it goes on
    three.fit(X, LABELS, epochs=2, batch_size=8, progress=False)
    np.testing.assert_array_equal(weights_of(trainer), weights_of(three))
    assert trainer.history.stopped == ""


@pytest.mark.usefixtures("own_handler")
def test_ctrl_c_at_any_time_ends_the_training_after_the_block_in_progress():
    trainer = trainer_of()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(X, LABELS, epochs=10**7, batch_size=8, progress=False)
    timer.join()
    assert time.perf_counter() - start < 5
    steps = trainer.history.steps
    assert 4 * len(trainer.history) <= steps < 4 * len(trainer.history) + 4
    assert np.isfinite(weights_of(trainer)).all()
    # the state is that of a whole number of steps: it goes on like a training that was never interrupted
    resumed = trainer_of()
    resumed.load_state_dict(*trainer.state_dict())
    epochs = len(trainer.history) + 2
    resumed.fit(X, LABELS, epochs=epochs, batch_size=8, progress=False)
    whole = trainer_of()
    whole.fit(X, LABELS, epochs=epochs, batch_size=8, progress=False)
    np.testing.assert_array_equal(weights_of(resumed), weights_of(whole))


@pytest.mark.usefixtures("own_handler")
def test_a_second_ctrl_c_is_raised_at_once():
    trainer = trainer_of([PressAt(2, times=2), lambda trainer, epoch, logs: seen.append(epoch)])
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(X, LABELS, epochs=5, batch_size=8, progress=False)
    assert seen == [1]  # the second callback of epoch 2 was not reached
    assert trainer.history.stopped == "interrupted"


def test_a_handler_of_somebody_else_is_left_in_place():
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, frame: pressed.append(signum))
    try:
        trainer = trainer_of(PressAt(2))
        history = trainer.fit(X, LABELS, epochs=4, batch_size=8, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [signal.SIGINT]
    assert (len(history), history.stopped) == (4, "")


def test_fit_works_in_another_thread():
    trainers = [trainer_of() for _ in range(3)]
    threads = [
        threading.Thread(
            target=t.fit, args=(X, LABELS), kwargs={"epochs": 5, "batch_size": 8, "progress": False}
        )
        for t in trainers[:2]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trainers[2].fit(X, LABELS, epochs=5, batch_size=8, progress=False)
    for trainer in trainers[:2]:
        assert len(trainer.history) == 5
        np.testing.assert_array_equal(weights_of(trainer), weights_of(trainers[2]))


def test_a_callback_stops_the_training_with_its_reason():
    def stop(trainer: gm.Trainer, epoch: int, logs: Any) -> None:
        if epoch == 2:
            trainer.stop("enough")

    trainer = trainer_of(stop)
    history = trainer.fit(X, LABELS, epochs=10, batch_size=8, progress=False)
    assert (len(history), history.steps, history.stopped) == (2, 8, "enough")


def test_an_epoch_cut_short_leaves_the_next_fit_a_fresh_epoch():
    class StopWithin(Steps):
        def on_validation(self, trainer, step, scores):
            super().on_validation(trainer, step, scores)
            if step == 6:
                trainer.stop()

    trainer = trainer_of(StopWithin())
    settings: dict[str, Any] = {"batch_size": 8, "progress": False}
    held: dict[str, Any] = {"validation_data": (X, LABELS), "validate_every": "6 steps"}
    first = trainer.fit(X, LABELS, epochs=3, **settings, **held)
    assert (len(first), first.steps, first.samples) == (1, 6, 30 + 16)
    second = trainer.fit(X, LABELS, epochs=1, record_steps=True, **settings)
    assert (len(second), second.steps, second.samples) == (1, 4, 30)
    assert second["loss"][0] == pytest.approx(np.average(second.step_losses, weights=[8, 8, 8, 6]))


# ---- epochs one by one, for callbacks that ask for them ----


class EachEpoch(gm.Callback):
    """What a callback sees at the end of each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_epoch_end(self, trainer, epoch, logs):
        history = trainer.history
        self.seen.append(
            {
                "epoch": epoch,
                "logs": dict(logs),
                "last": history.last(),
                "counts": (len(history), history.steps, history.samples, int(trainer.control[STEP])),
                "position": int(trainer.control[POSITION]),
                "weights": weights_of(trainer),
            }
        )


OPTIMIZERS = {
    "constant": lambda: gm.SGD(0.1, momentum=0.9),
    "schedule": lambda: gm.SGD(gm.ExponentialDecay(0.1, factor=0.9, every=1, unit="steps")),
    "plateau": lambda: gm.SGD(gm.ReduceOnPlateau(0.1, monitor="loss", factor=0.5, patience=2)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_callbacks_of_each_epoch_see_that_epoch_and_change_no_bit(optimizer, reduction, weighted):
    settings: dict[str, Any] = {"epochs": 23, "batch_size": 8, "progress": False, "record_steps": True}
    if weighted:
        settings["sample_weight"] = np.linspace(0.5, 2, len(X))

    def fit(callbacks, **how):
        trainer = trainer_of(callbacks, OPTIMIZERS[optimizer](), seed=1)
        trainer.loss = gm.CrossEntropy(reduction=reduction)
        trainer.fit(X, LABELS, **{**settings, **how})
        return trainer

    look = EachEpoch()
    watched, alone = fit([look]), fit([])
    for column in ("epoch", "loss", "lr"):
        assert watched.history[column] == alone.history[column]
    assert watched.history.step_losses == alone.history.step_losses
    np.testing.assert_array_equal(weights_of(watched), weights_of(alone))
    assert [s["epoch"] for s in look.seen] == list(range(1, 24))
    for i, seen in enumerate(look.seen):
        assert seen["logs"] == seen["last"] == {name: watched.history[name][i] for name in watched.history}
        assert seen["counts"] == (i + 1, 4 * (i + 1), 30 * (i + 1), 4 * (i + 1))
        assert seen["position"] == 0
    assert watched.history["seconds"] == sorted(watched.history["seconds"])
    some = fit([], epochs=7) if optimizer != "schedule" else None
    if some is not None:
        np.testing.assert_array_equal(look.seen[6]["weights"], weights_of(some))


@pytest.mark.parametrize("every", [3, "7 steps"])
def test_validations_between_epochs_one_by_one_come_when_they_were_asked_for(every):
    look, steps = EachEpoch(), Steps()
    trainer = trainer_of([look, steps])
    trainer.fit(
        X, LABELS, epochs=10, batch_size=8, validation_data=(X, LABELS), validate_every=every, progress=False
    )
    alone = trainer_of([])
    alone.fit(
        X, LABELS, epochs=10, batch_size=8, validation_data=(X, LABELS), validate_every=every, progress=False
    )
    distance = 7 if every == "7 steps" else 12
    assert steps.at == sorted({*range(distance, 41, distance), 40})
    assert trainer.history.validations == alone.history.validations
    assert [s["epoch"] for s in look.seen] == list(range(1, 11))
    found = [s["logs"].get("val_loss", float("nan")) for s in look.seen]
    np.testing.assert_array_equal(found, trainer.history["val_loss"])
    assert np.isfinite(found).sum() == (4 if every == 3 else 2)


def test_a_run_that_is_cut_short_by_time_goes_on(monkeypatch):
    """`Executor.run` may end early where other processes take the processor away."""
    wanted = trainer_of([])
    wanted.fit(X, LABELS, epochs=30, batch_size=4, progress=False)
    run, calls = CompiledExecutor.run, iter(range(10**6))
    monkeypatch.setattr(
        CompiledExecutor, "run", lambda self, plan, n: run(self, plan, min(n, 1 + next(calls) % 11))
    )
    for callbacks in ([], [EachEpoch()]):
        trainer = trainer_of(callbacks)
        trainer.fit(X, LABELS, epochs=30, batch_size=4, progress=False)
        for column in ("epoch", "loss", "lr"):
            assert trainer.history[column] == wanted.history[column]
        np.testing.assert_array_equal(weights_of(trainer), weights_of(wanted))
        for callback in callbacks:
            assert [s["epoch"] for s in callback.seen] == list(range(1, 31))
            assert [s["position"] for s in callback.seen] == [0] * 30


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


@pytest.mark.parametrize("every_epoch", [False, True])
def test_a_loss_that_is_lost_after_epochs_one_by_one_keeps_them(every_epoch):
    look = EachEpoch()
    look.every_epoch = every_epoch
    trainer = trainer_of([look], gm.SGD(0.5), "mse")
    with pytest.raises(gm.NonFiniteLossError) as caught:
        trainer.fit(X, VALUES, epochs=10_000, batch_size=8, progress=False)
    history = trainer.history
    assert history.stopped == "the loss was not finite"
    assert len(look.seen) == len(history) == caught.value.epoch - 1 > 1
    assert np.isfinite(history["loss"]).all()
    assert history.steps == 4 * len(history) + caught.value.batch - 1


# ---- what is said ----


def test_that_kernels_are_compiled_is_said_once(capsys):
    say = _compiling_notice()
    say()
    say()
    assert capsys.readouterr().err.splitlines() == [
        "compiling kernels for this processor; later runs load them"
    ]
