"""gpumlp.loop: trainings that end early, by Ctrl-C or a callback, and those in threads, which Ctrl-C does not reach."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from tests.loops import LABELS, Steps, X, trainer_of
from tests.trainers import weights_of


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
