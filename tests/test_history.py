"""gpumlp.history: columns, rates and times of a training."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

import gpumlp as gm

X = np.random.default_rng(0).normal(size=(22, 3))
LABELS = (X[:, 0] > 0).astype(int)


def trainer_of(**settings) -> gm.Trainer:
    return gm.Trainer(
        gm.mlp((3, 4, 2), device="cpu"), loss="cross_entropy", optimizer=gm.SGD(0.1), **settings
    )


def train(**settings) -> gm.History:
    return trainer_of().fit(X, LABELS, **{"epochs": 5, "batch_size": 8, "progress": False, **settings})


def test_the_columns_are_those_that_were_measured():
    assert list(train()) == ["epoch", "loss", "lr", "seconds"]
    assert list(train(validation_split=0.2)) == ["epoch", "loss", "lr", "seconds", "val_loss", "val_accuracy"]
    both = train(validation_split=0.2, train_metrics=True)
    assert set(both) == {"epoch", "loss", "lr", "seconds", "accuracy", "val_loss", "val_accuracy"}
    assert {len(both[column]) for column in both} == {5}
    assert "val_loss" in both
    assert "val_f1" not in both


def test_the_trainer_names_the_columns_before_they_are_measured():
    seen: list[list[str]] = []

    class Look(gm.Callback):
        def on_train_begin(self, trainer):
            seen.append(trainer.columns())

    trainer = trainer_of(callbacks=Look())
    history = trainer.fit(
        X, LABELS, epochs=1, validation_split=0.2, train_metrics=True, progress=False, batch_size=8
    )
    assert set(seen[0]) == set(history)
    assert trainer.measures("val_accuracy")
    assert not trainer.measures("val_f1")


def test_epochs_steps_and_samples_are_counted_and_divided_by_the_seconds():
    history = train()
    assert (len(history), history.steps, history.samples) == (5, 15, 110)
    assert history["epoch"] == [1, 2, 3, 4, 5]
    assert history.train_seconds > 0
    assert history.it_per_second == pytest.approx(5 / history.train_seconds)
    assert history.steps_per_second == pytest.approx(15 / history.train_seconds)
    assert history.samples_per_second == pytest.approx(110 / history.train_seconds)
    assert f"{history.it_per_second:.1f} it/s" in repr(history)


def test_seconds_grow_from_epoch_to_epoch_up_to_the_whole():
    seconds = train(epochs=200)["seconds"]
    history = train(epochs=200, validation_split=0.2, validate_every=7)
    for column in (seconds, history["seconds"]):
        assert all(a < b for a, b in itertools.pairwise(column))
        assert column[0] > 0
    assert history["seconds"][-1] == pytest.approx(history.train_seconds)


def test_validation_callbacks_and_progress_do_not_count_as_training_time():
    import time

    def sleep(trainer, epoch, logs):
        time.sleep(0.03)

    start = time.perf_counter()
    trainer = trainer_of(callbacks=sleep)
    history = trainer.fit(X, LABELS, epochs=5, batch_size=8, progress=False)
    assert history.train_seconds < time.perf_counter() - start - 0.15 + 0.01


def test_step_losses_are_recorded_on_request_only():
    assert train().step_losses == []
    history = train(record_steps=True)
    assert len(history.step_losses) == 15
    weights = [8, 8, 6]
    for epoch, loss in enumerate(history["loss"]):
        assert loss == pytest.approx(
            np.average(history.step_losses[3 * epoch : 3 * epoch + 3], weights=weights)
        )


def test_an_untrained_history_is_empty_and_has_no_rate():
    history = gm.History()
    assert len(history) == 0
    assert history.last() == {}
    assert (history.it_per_second, history.steps_per_second, history.samples_per_second) == (0, 0, 0)
    assert "0 epochs" in repr(history)


def test_the_last_row_is_that_of_the_last_epoch():
    history = train(validation_split=0.2, validate_every=3)
    assert history.last() == {name: history[name][-1] for name in history}
    assert history.last()["epoch"] == 5


def test_epochs_that_were_not_validated_hold_nan():
    history = train(validation_split=0.2, validate_every=2)
    assert [math.isnan(v) for v in history["val_loss"]] == [True, False, True, False, False]


def test_columns_that_come_later_begin_with_nan():
    history = gm.History()
    row = {"lr": [0.1], "seconds": [0.0]}
    history.add_epochs({"epoch": [1], "loss": [3.0], **row})
    history.add_validation({"val_loss": 5.0}, step=1, epoch=1)
    history.add_epochs({"epoch": [2], "loss": [2.0], **row})
    history.add_validation({"val_loss": 4.0, "val_r2": 0.5}, step=2, epoch=2)
    history.add_validation({"val_loss": 3.0, "val_r2": 0.6}, step=3, epoch=2.5)
    assert history["val_loss"] == [5.0, 4.0]
    np.testing.assert_array_equal(history["val_r2"], [math.nan, 0.5])
    np.testing.assert_array_equal(history.validations["val_r2"], [math.nan, 0.5, 0.6])
    assert history.validations["epoch"] == [1, 2, 2.5]


def test_a_history_comes_back_from_its_dict_through_json():
    history = train(validation_split=0.2, validate_every="2 steps", record_steps=True)
    again = gm.History.from_dict(json.loads(json.dumps(history.to_dict())))
    for column in history:
        np.testing.assert_array_equal(again[column], history[column])
    assert again.to_dict()["validations"] == history.validations
    assert again.step_losses == history.step_losses
    counts = (history.steps, history.samples, history.train_seconds, history.stopped)
    assert (again.steps, again.samples, again.train_seconds, again.stopped) == counts


def test_the_dict_of_a_history_shares_nothing_with_it():
    history = train()
    taken = history.to_dict()
    again = gm.History.from_dict(taken)
    history.add_epochs({"epoch": [6], "loss": [0.0], "lr": [0.1], "seconds": [9.0]})
    assert len(taken["epochs"]["epoch"]) == len(again) == 5
    again.epochs["loss"][0] = -1.0
    assert taken["epochs"]["loss"][0] != -1.0
