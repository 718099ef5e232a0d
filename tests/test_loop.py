"""gpumlp.loop: what happens between the steps of a training: blocks, validations, callbacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors.compiled import CompiledExecutor
from gpumlp.kernels import POSITION, STEP
from gpumlp.loop import Every, _compiling_notice
from tests.loops import LABELS, VALUES, Steps, X, trainer_of
from tests.trainers import weights_of


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
