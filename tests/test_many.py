"""gpumlp.many: many networks at once over one data set."""

import os
import signal
import tracemalloc
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import many

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (60, 2)).astype(np.float32)
Y = np.sin(3 * X[:, :1]) + X[:, 1:]
MASKED = np.ma.masked_less(Y, 0)


def make():
    return gm.Sequential(gm.Linear(2, 16), gm.Tanh(), gm.Dropout(0.1), gm.Linear(16, 1), device="cpu")


def settings(i):
    return {"optimizer": gm.SGD(lr=0.02 * (i + 1), momentum=0.5), "seed": i}


def train_alone(i, threads=1, **fit):
    trainer = gm.Trainer(make(), loss="mse", threads=threads, **settings(i))
    trainer.fit(X, Y, batch_size=16, progress=False, **fit)
    return trainer


def assert_same_bits(one, other):
    for name, value in one.network.state_dict().items():
        np.testing.assert_array_equal(value, other.network.state_dict()[name])


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_each_network_ends_with_the_bits_that_it_has_alone(workers):
    trainers = gm.make_trainers([settings(i) for i in range(5)], make, loss="mse")
    histories = gm.fit_many(trainers, X, Y, epochs=4, batch_size=16, workers=workers, progress=False)
    for i, (trainer, history) in enumerate(zip(trainers, histories, strict=True)):
        alone = train_alone(i, epochs=4)
        assert_same_bits(alone, trainer)
        assert history["loss"] == alone.history["loss"]
        assert trainer.history is history


def test_seeds_networks_and_settings_make_trainers():
    by_seed = gm.make_trainers([3, 4], make, loss="mse", optimizer="sgd")
    assert [t.seed for t in by_seed] == [3, 4]
    networks = [make(), make()]
    by_network = gm.make_trainers(networks, loss="mse", optimizer="sgd", seed=7)
    assert [t.network for t in by_network] == networks
    by_setting = gm.make_trainers([{"optimizer": "adam"}, {"optimizer": "rmsprop"}], make, loss="mse")
    assert [type(t.optimizer).__name__ for t in by_setting] == ["Adam", "RMSprop"]
    assert by_seed[0].optimizer is not by_seed[1].optimizer


def test_rows_and_held_rows_are_each_trainers_own():
    trainers = gm.make_trainers([0, 1], make, loss="mse", optimizer=gm.SGD(0.05))
    rows = [np.arange(0, 30), np.arange(30, 60)]
    gm.fit_many(trainers, X, Y, epochs=3, batch_size=16, rows=rows, held_rows=rows[::-1], progress=False)
    for i, trainer in enumerate(trainers):
        alone = gm.Trainer(make(), loss="mse", optimizer=gm.SGD(0.05), seed=i)
        alone.fit(X, Y, epochs=3, batch_size=16, rows=rows[i], held_rows=rows[1 - i], progress=False)
        assert_same_bits(alone, trainer)
        assert trainer.history["val_loss"] == alone.history["val_loss"]


def test_a_lost_loss_does_not_stop_the_others_and_is_raised_at_the_end():
    rates = [0.05, 1e6, 0.01]
    trainers = gm.make_trainers([{"optimizer": gm.SGD(lr=lr)} for lr in rates], make, loss="mse", seed=0)
    with pytest.raises(gm.NonFiniteLossError, match="learning rate 1e\\+06"):
        gm.fit_many(trainers, X, Y, epochs=40, batch_size=16, progress=False)
    assert [len(t.history) for t in trainers][::2] == [40, 40]
    assert trainers[1].history.stopped == "the loss was not finite"
    assert all(np.isfinite(v).all() for t in trainers for v in t.network.state_dict().values())


def test_an_error_in_one_ends_the_others_and_is_raised():
    def fail(trainer, epoch, logs):
        raise RuntimeError("no more")

    trainers = gm.make_trainers([0, 1], make, loss="mse", optimizer="sgd")
    trainers[0].callbacks = gm.callbacks.as_callbacks([fail])
    with pytest.raises(RuntimeError, match="no more"):
        gm.fit_many(trainers, X, Y, epochs=10**6, batch_size=16, progress=False)
    assert trainers[1].history.stopped or len(trainers[1].history) < 10**6


class PressCtrlC(gm.Callback):
    """Ctrl-C, once its training runs."""

    every_epoch = False

    def __init__(self):
        self.pressed = False

    def on_epoch_end(self, trainer, epoch, logs):
        if not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_what_was_trained():
    trainers = gm.make_trainers([0, 1], make, loss="mse", optimizer="sgd")
    trainers[1].callbacks = [PressCtrlC()]
    before = [t.network.state_dict() for t in trainers]
    # where tests run in workers it is ignored
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            gm.fit_many(trainers, X, Y, epochs=10**6, batch_size=16, progress=False)
    finally:
        signal.signal(signal.SIGINT, handler)
    for trainer, weights in zip(trainers, before, strict=True):
        assert trainer.history.stopped == "interrupted"
        assert any((trainer.network.state_dict()[k] != v).any() for k, v in weights.items())


def test_the_data_are_shared_and_not_copied():
    big = RNG.random((20000, 250), dtype=np.float32)  # 20 MB
    target = big[:, 0].copy()
    trainers = gm.make_trainers(
        [0, 1, 2, 3], lambda: gm.mlp((250, 4, 1), device="cpu"), loss="mse", optimizer=gm.SGD(1e-3)
    )
    gm.fit_many(trainers, big[:64], target[:64], epochs=1, progress=False)
    tracemalloc.start()
    try:
        gm.fit_many(trainers, big, target, epochs=1, progress=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6


def test_one_bar_counts_the_epochs_of_all(capsys):
    trainers = gm.make_trainers([0, 1], make, loss="mse", optimizer="sgd")
    gm.fit_many(trainers, X, Y, epochs=10, batch_size=16)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert lines[-1].startswith("20/20 epochs: best loss")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gm.make_trainers([], make, loss="mse"), "there is no network to train"),
        (lambda: gm.make_trainers([1], loss="mse"), "make_network is not given"),
        (lambda: gm.make_trainers([-1], make, loss="mse"), "seed is -1"),
        (lambda: gm.make_trainers([make()] * 2, loss="mse"), "the same network twice"),
        (lambda: gm.make_trainers([1], make(), loss="mse"), "make_network is a Sequential"),
        (lambda: gm.fit_many([], X, Y), "at least one trainer"),
        (lambda: gm.fit_many(gm.make_trainers([1], make, loss="mse"), X, MASKED), "y is a masked array with"),
        (lambda: gm.cross_validate(make, X, MASKED, loss="mse"), "y is a masked array with"),
        (lambda: gm.cross_validate(make, np.ma.masked_less(X, 0), Y, loss="mse"), "X is a masked array with"),
        (lambda: gm.fit_many(cast(Any, gm.Trainer(make(), loss="mse")), X, Y), "trainers is one Trainer"),
        (lambda: gm.fit_many(gm.make_trainers([1], make, loss="mse"), X, Y, rows=[]), "rows has 0 entries"),
        (lambda: gm.fit_many(gm.make_trainers([1], make, loss="mse"), X, Y[:5]), "X has 60 rows and y has 5"),
        (lambda: gm.fit_many(gm.make_trainers([1], make, loss="mse"), X, Y, workers=0), "workers is 0"),
        (lambda: gm.fit_many(gm.make_trainers([1], make, loss="mse"), X, Y, epochs=0), "epochs is 0"),
        (lambda: gm.fit_many(gm.make_trainers([1], make, loss="mse"), X, Y, batch_size=0), "batch_size is 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, message):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_networks_that_end_one_behind_the_other_are_not_all_asked_how_far_they_are_each_time(monkeypatch):
    class Noting(list):
        asked = 0

        def __iter__(self):
            self.asked += 1
            return super().__iter__()

    shown = []

    class Bar:
        def advanced(self, count, text):
            shown.append((count, text))

    monkeypatch.setattr(many, "WATCH_SECONDS", 60.0)
    futures: list[Any] = [Future() for _ in range(50)]
    counts = Noting(many._Count() for _ in futures)
    for future, count in zip(futures, list(counts), strict=True):
        future.set_result(None)
        count.done, count.loss = 2, 0.5
    counts.asked = 0
    many._watch(futures, counts, Bar(), lambda: False)  # type: ignore[arg-type]
    assert counts.asked <= 4
    assert shown == [(100, "best loss 0.5")]
