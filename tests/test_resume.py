"""gpumlp.trainer: a saved state goes on bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.checkpoint import load_tensors, save_tensors
from tests.trainers import LABELS, NAMES, X, assert_same, classifier, fitted


def noisy(seed: int) -> gm.Sequential:
    layers = gm.Linear(4, 16), gm.ReLU(), gm.Dropout(0.3), gm.GaussianNoise(0.1), gm.Linear(16, 3)
    return gm.Sequential(*layers, seed=seed, device="cpu")


# ---- going on from a saved state ----


def settings_of(schedule: Any) -> dict[str, Any]:
    return {"loss": "cross_entropy", "optimizer": gm.SGD(schedule, momentum=0.9, nesterov=True), "seed": 8}


SCHEDULES = {
    "plateau": gm.ReduceOnPlateau(0.2, factor=0.5, patience=0, threshold=0.3),
    "cosine": gm.CosineDecay(0.2, warmup=1),
    "adam": None,
}


class StopAt(gm.Callback):
    """Stops at a step, within an epoch, or after an epoch."""

    def __init__(self, step: int = 0, epoch: int = 0) -> None:
        self.step, self.epoch = step, epoch

    def on_validation(self, trainer, step, scores):
        if step == self.step:
            trainer.stop("here")

    def on_epoch_end(self, trainer, epoch, logs):
        if epoch == self.epoch:
            trainer.stop("here")


@pytest.fixture(params=["eager", "chosen"])
def executor(request, monkeypatch):
    """The reference kernels, and what this machine chooses for itself, which may be the same."""
    if request.param == "eager":
        from gpumlp.executors import EagerExecutor

        monkeypatch.setattr("gpumlp.executors.choose_executor", lambda *_: (EagerExecutor, "eager"))


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stop", [{"epoch": 3}, {"step": 10}, {"step": 14}])
def test_a_saved_state_goes_on_bit_for_bit_also_from_the_middle_of_an_epoch(schedule, stop, tmp_path):
    def start(callbacks: Any) -> gm.Trainer:
        layers = (
            gm.Linear(4, 16), gm.BatchNorm1d(16), gm.ReLU(), gm.Dropout(0.3), gm.GaussianNoise(0.1), gm.Linear(16, 3),
        )  # fmt: skip
        settings = settings_of(SCHEDULES[schedule]) if schedule != "adam" else {
            "loss": "cross_entropy", "optimizer": gm.Adam(0.02), "seed": 8,
        }  # fmt: skip
        return gm.Trainer(gm.Sequential(*layers, device="cpu"), callbacks=callbacks, **settings)

    def fit(trainer: gm.Trainer) -> gm.History:
        return trainer.fit(
            X, NAMES[LABELS], epochs=8, batch_size=9, validation_split=0.2, validate_every="2 steps",
            record_steps=True, progress=False,
        )  # fmt: skip

    whole = start(None)
    expected = fit(whole)
    assert whole.history.steps == 32
    stopped = start(StopAt(**stop))
    fit(stopped)
    assert stopped.history.stopped == "here"
    assert stopped.history.steps == (12 if "epoch" in stop else stop["step"])
    save_tensors(tmp_path / "state", *stopped.state_dict())  # what is saved, is all that there is
    arrays, values = load_tensors(tmp_path / "state")
    resumed = start(None)
    resumed.load_state_dict(arrays, values)
    found = fit(resumed)
    assert_same(resumed, whole)
    np.testing.assert_array_equal(resumed.control, whole.control)
    for slot, arena in whole.slots.items():
        for name, array in arena.items():
            np.testing.assert_array_equal(resumed.slots[slot][name], array)
    assert list(found) == list(expected)
    for column in set(expected) - {"seconds"}:
        np.testing.assert_array_equal(found[column], expected[column])
    assert found.step_losses == expected.step_losses
    assert found.validations == expected.validations
    assert (found.steps, found.samples, found.stopped) == (expected.steps, expected.samples, "")
    assert found["seconds"] == sorted(found["seconds"])
    if schedule == "plateau":
        assert len(set(expected["lr"])) > 2
        assert resumed.state_dict()[1]["plateau"] == whole.state_dict()[1]["plateau"]


def test_a_state_taken_while_training_goes_on_is_that_of_its_moment():
    taken: list[Any] = []

    def take(trainer: gm.Trainer, epoch: int, logs: Any) -> None:
        if epoch == 2:
            taken.append(trainer.state_dict())

    whole = fitted(noisy(3), X, LABELS, "cross_entropy", epochs=5, batch_size=9, callbacks=take)
    resumed = gm.Trainer(noisy(3), loss="cross_entropy", optimizer=gm.SGD(0.3, momentum=0.5))
    resumed.load_state_dict(*taken[0])
    assert len(resumed.history) == 2
    resumed.fit(X, LABELS, epochs=5, batch_size=9, progress=False)
    assert_same(resumed, whole)
    assert resumed.history["loss"] == whole.history["loss"]


def test_a_training_that_was_finished_has_nothing_left_to_do_when_it_is_resumed():
    done = fitted(noisy(3), X, LABELS, "cross_entropy", epochs=3)
    resumed = gm.Trainer(noisy(3), loss="cross_entropy", optimizer=gm.SGD(0.3, momentum=0.5))
    resumed.load_state_dict(*done.state_dict())
    assert resumed.fit(X, LABELS, epochs=3, batch_size=None, progress=False)["loss"] == done.history["loss"]
    assert_same(resumed, done)


def test_a_state_of_another_optimizer_or_network_is_refused_and_changes_nothing():
    state = fitted(noisy(3), X, LABELS, "cross_entropy", optimizer="adam").state_dict()
    trainer = fitted(noisy(3), X, LABELS, "cross_entropy", optimizer="sgd")
    before = trainer.state_dict()
    with pytest.raises(
        ValueError, match="the saved state is of another optimizer; resume with the settings of"
    ):
        trainer.load_state_dict(*state)
    narrow = fitted(classifier(), X, LABELS, "cross_entropy", optimizer="sgd").state_dict()
    with pytest.raises(ValueError, match=r"state_dict does not fit|state_dict has 0.weight of shape"):
        trainer.load_state_dict(*narrow)
    for name, array in trainer.state_dict()[0].items():
        np.testing.assert_array_equal(array, before[0][name])
    assert trainer.state_dict()[1] == before[1]
