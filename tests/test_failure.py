"""gpumlp.failure: a loss or gradient that is not finite stops the run, keeps the last good step, and says where."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.kernels import BAD_STEP

RNG = np.random.default_rng(4)
X = RNG.normal(size=(24, 3)).astype(np.float32)
Y = (X @ RNG.normal(size=3)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int)

OPTIMIZERS = {
    "sgd": gm.SGD(0.1),
    "momentum": gm.SGD(0.005, momentum=0.9, nesterov=True),
    "keras": gm.SGD(0.005, momentum=0.9, form="keras"),
    "average": gm.SGD(0.1, momentum=0.5, form="average"),
    "adagrad": gm.Adagrad(0.1),
    "rmsprop": gm.RMSprop(0.01, momentum=0.1, centered=True),
    "adam": gm.Adam(gm.StepDecay(0.1, factor=0.5, every=2, unit="steps"), clip_norm=1.0),
    "adamw": gm.AdamW(0.01, weight_decay=1e-3, clip_value=0.5),
}


class Bad(gm.Layer):
    """Writes a value that is not finite, forward or backward, at one of its training passes."""

    def __init__(self, value: float, at: int, in_backward: bool = False) -> None:
        self.value, self.at, self.in_backward, self.passes = value, at, in_backward, 0

    def forward(self, x):
        y = x.copy()
        self.passes += self.training and not self.in_backward
        if self.training and not self.in_backward and self.passes >= self.at:
            y[0, 0] = self.value
        return y

    def backward(self, dy):
        dx = dy.copy()
        self.passes += self.in_backward
        if self.in_backward and self.passes >= self.at:
            dx[0, 0] = self.value
        return dx


def net(*more: gm.Layer) -> gm.Sequential:
    layers = gm.Linear(3, 8), gm.BatchNorm1d(8), gm.ReLU(), gm.Linear(8, 4), gm.Identity(), gm.Linear(4, 1)
    return gm.Sequential(*layers, *more, seed=1, device="cpu")


def state_of(trainer: gm.Trainer) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in trainer.state_dict()[0].items() if name != "control"}


def assert_same_state(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


class StateAfter(gm.Callback):
    """Keeps the state after each step; needs validate_every="1 steps"."""

    def __init__(self) -> None:
        self.states: list[dict[str, np.ndarray]] = []

    def on_validation(self, trainer, step, scores):
        self.states.append(state_of(trainer))


@pytest.fixture(params=["eager", "chosen"])
def executor(request, monkeypatch):
    """The reference kernels, and what this machine chooses for itself, which may be the same."""
    if request.param == "eager":
        from gpumlp.executors import EagerExecutor

        monkeypatch.setattr("gpumlp.executors.choose_executor", lambda *_: (EagerExecutor, "eager"))


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("in_backward", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_statistics_and_slots_are_those_of_the_last_good_step(name, batch_size, in_backward):
    def fails(callbacks: Any, **settings: Any) -> tuple[gm.Trainer, gm.NonFiniteLossError]:
        network = net(Bad(np.inf, 6, in_backward))
        trainer = gm.Trainer(network, loss="mse", optimizer=OPTIMIZERS[name], callbacks=callbacks)
        with pytest.raises(gm.NonFiniteLossError) as error:
            trainer.fit(X, Y, epochs=30, batch_size=batch_size, progress=False, record_steps=True, **settings)
        return trainer, error.value

    trainer, error = fails(None)
    per_epoch = 1 if batch_size is None else 3
    assert trainer.history.steps == len(trainer.history.step_losses) == 5
    assert np.isfinite(trainer.history.step_losses).all()
    assert (error.epoch, error.batch) == (5 // per_epoch + 1, 5 % per_epoch + 1)
    assert len(trainer.history) == 5 // per_epoch
    assert trainer.history.stopped == "the loss was not finite"
    assert error.lr == trainer.optimizer.schedule.rates(np.arange(6), per_epoch, 30 * per_epoch)[5]
    # a run that looks at itself after each step, in blocks of one: the state after the last of them
    after = StateAfter()
    watched, _ = fails(after, validation_data=(X[:2], Y[:2]), validate_every="1 steps")
    assert len(after.states) == 5
    assert_same_state(state_of(trainer), after.states[4])
    assert_same_state(state_of(watched), after.states[4])
    # and a run without the fault, that is one step longer, has moved on from there, all of it
    good = gm.Trainer(net(Bad(np.inf, 10**9)), loss="mse", optimizer=OPTIMIZERS[name], callbacks=StateAfter())
    good.fit(
        X,
        Y,
        epochs=30,
        batch_size=batch_size,
        progress=False,
        validation_data=(X[:2], Y[:2]),
        validate_every="1 steps",
    )
    (watching,) = good.callbacks
    assert isinstance(watching, StateAfter)
    assert_same_state(state_of(trainer), watching.states[4])
    for tensor, value in watching.states[5].items():
        if tensor != "network.0.bias":  # in front of a batch normalisation a bias has no gradient
            assert (value != watching.states[4][tensor]).any(), tensor
    assert all(np.isfinite(value).all() for value in state_of(trainer).values())


@pytest.mark.usefixtures("executor")
def test_the_run_that_is_stopped_one_step_earlier_has_the_same_bits():
    def trainer_of() -> gm.Trainer:
        return gm.Trainer(net(), loss="mse", optimizer=gm.SGD(2.0, momentum=0.9))

    failed, stopped = trainer_of(), trainer_of()
    with pytest.raises(gm.NonFiniteLossError) as error:
        failed.fit(X, Y, epochs=3000, batch_size=None, progress=False)
    good = error.value.epoch - 1
    assert good > 2
    stopped.fit(X, Y, epochs=good, batch_size=None, progress=False)
    assert_same_state(state_of(failed), state_of(stopped))
    assert failed.history["loss"] == stopped.history["loss"]
    control = stopped.control.copy()
    np.testing.assert_array_equal(failed.control[:3], control[:3])


@pytest.mark.usefixtures("executor")
def test_the_message_is_one_line_with_epoch_batch_layer_and_rate():
    trainer = gm.Trainer(net(), loss="mse", optimizer=gm.SGD(5.0))
    with pytest.raises(gm.NonFiniteLossError) as error:
        trainer.fit(X, Y, epochs=3000, batch_size=10, progress=False)
    text, found = str(error.value), error.value
    assert "\n" not in text
    match = re.match(
        r"training stopped at epoch (\d+), batch (\d+) of 3: (.*) is not finite; learning rate 5\. The", text
    )
    assert match, text
    assert (int(match[1]), int(match[2])) == (found.epoch, found.batch)
    assert found.layer is None or f"layer {found.layer}, {trainer.network[found.layer]!r}" in match[3]
    assert "Lower the learning rate, clip the gradients (clip_norm=1)" in text
    assert isinstance(found, ArithmeticError)
    again = pickle.loads(pickle.dumps(found))
    assert (str(again), again.epoch, again.batch, again.layer, again.lr) == (
        text, found.epoch, found.batch, found.layer, found.lr,
    )  # fmt: skip


# ---- where it began ----


def fail_in(layer: int, value: float, backward: bool, at: int = 5, **settings: Any) -> gm.NonFiniteLossError:
    layers: list[gm.Layer] = [gm.Linear(3, 4), gm.Tanh(), gm.Linear(4, 4), gm.Tanh(), gm.Linear(4, 1)]
    layers.insert(layer, Bad(value, at, backward))
    trainer = gm.Trainer(gm.Sequential(*layers, seed=1, device="cpu"), loss="mse", optimizer=gm.SGD(0.01))
    with pytest.raises(gm.NonFiniteLossError) as error:
        trainer.fit(X, Y, epochs=9, batch_size=8, shuffle=False, progress=False, **settings)
    return error.value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_the_layer_that_first_gave_it_is_named_and_no_later_one(layer, value):
    error = fail_in(layer, value, backward=False)
    assert (error.layer, error.epoch, error.batch) == (layer, 2, 2)  # the fifth step, of three an epoch
    assert f"the output of layer {layer}, Bad(" in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layer", [1, 2, 4])
def test_a_gradient_that_is_not_finite_stops_it_too_though_the_loss_is_finite(layer, value):
    error = fail_in(layer, value, backward=True)
    assert (error.layer, error.epoch, error.batch) == (layer, 2, 2)
    assert f"the gradient of layer {layer}, Bad(" in str(error)
    assert "\n" not in str(error)


def test_a_bad_gradient_leaves_the_weights_of_the_step_before():
    def trainer_of(at: int) -> gm.Trainer:
        layers = gm.Linear(3, 4), Bad(np.nan, at, in_backward=True), gm.Linear(4, 1)
        return gm.Trainer(gm.Sequential(*layers, seed=1, device="cpu"), loss="mse", optimizer=gm.Adam(0.01))

    failed, good = trainer_of(7), trainer_of(10**9)
    with pytest.raises(gm.NonFiniteLossError):
        failed.fit(X, Y, epochs=20, batch_size=8, progress=False)
    good.fit(X, Y, epochs=2, batch_size=8, progress=False)
    assert failed.history.steps == 6
    assert_same_state(state_of(failed), state_of(good))


@pytest.mark.usefixtures("executor")
def test_a_weight_gradient_that_overflows_names_its_layer():
    # finite outputs (all 0), a loss of 1e20 and dy of 2e10; the product with x = 1e30 is more than float32 holds
    network = gm.Sequential(gm.Linear(2, 1, weight_init="zeros"), device="cpu")
    trainer = gm.Trainer(network, loss="mse", optimizer=gm.SGD(0.1))
    with pytest.raises(gm.NonFiniteLossError, match=r"the gradient of layer 0, Linear\(2, 1\)") as error:
        trainer.fit(
            np.full((4, 2), 1e30, "f"), np.full(4, 1e10, "f"), epochs=1, batch_size=None, progress=False
        )
    assert (error.value.layer, error.value.epoch, error.value.batch) == (0, 1, 1)
    assert not np.any(network[0].weight)


@pytest.mark.usefixtures("executor")
def test_a_loss_that_overflows_by_itself_is_named_as_such():
    # outputs of 0 and targets of 1e25: only the square is more than float32 holds; with large inputs the
    # gradients overflow too, and still it began with the loss
    for x in (1.0, 1e30):
        network = gm.Sequential(gm.Linear(2, 1, weight_init="zeros"), device="cpu")
        trainer = gm.Trainer(network, loss="mse", optimizer=gm.SGD(0.1))
        with pytest.raises(gm.NonFiniteLossError, match="batch 1 of 1: the loss is not finite") as error:
            trainer.fit(
                np.full((4, 2), x, "f"), np.full(4, 1e25, "f"), epochs=1, batch_size=None, progress=False
            )
        assert error.value.layer is None
        assert not np.any(network[0].weight)


def test_a_loss_that_is_lost_where_no_memory_is_left_to_look_closer_is_still_told(monkeypatch):
    def full(*_: Any) -> None:
        raise MemoryError("the GPU has 0 bytes free")

    monkeypatch.setattr("gpumlp.failure._first_bad", full)
    trainer = gm.Trainer(net(Bad(np.inf, 3)), loss="mse", optimizer=gm.SGD(0.1))
    with pytest.raises(gm.NonFiniteLossError, match="the loss or a gradient is not finite") as error:
        trainer.fit(X, Y, epochs=5, batch_size=None, progress=False)
    assert error.value.layer is None
    assert trainer.control[BAD_STEP] >= 0


@pytest.mark.usefixtures("executor")
def test_the_short_batch_at_the_end_of_an_epoch_is_named_as_any_other():
    x, y = X[:20], Y[:20].copy()
    y[16:] = 1e25
    trainer = gm.Trainer(net(), loss="mse", optimizer=gm.SGD(1e-3))
    with pytest.raises(gm.NonFiniteLossError) as error:
        trainer.fit(x, y, epochs=2, batch_size=8, shuffle=False, progress=False)
    assert (error.value.epoch, error.value.batch) == (1, 3)
    assert trainer.history.steps == 2


def test_no_warning_of_numpy_is_shown_and_the_callbacks_end(recwarn):
    ended: list[int] = []

    class End(gm.Callback):
        def on_train_end(self, trainer):
            ended.append(trainer.history.steps)

    trainer = gm.Trainer(net(), loss="mse", optimizer=gm.SGD(5.0), callbacks=End())
    with pytest.raises(gm.NonFiniteLossError):
        trainer.fit(X, Y, epochs=3000, batch_size=None, progress=False)
    assert ended == [trainer.history.steps]
    assert not recwarn.list


@pytest.mark.usefixtures("executor")
def test_a_training_goes_on_after_a_failure():
    failed, good = (gm.Trainer(net(), loss="mse", optimizer=gm.Adam(0.01)) for _ in range(2))
    for trainer in (failed, good):
        trainer.fit(X, Y, epochs=2, batch_size=None, progress=False)
    with pytest.raises(gm.NonFiniteLossError):
        failed.fit(X, np.full(24, 1e25, "f"), epochs=2, batch_size=None, progress=False)
    histories = [t.fit(X, Y, epochs=3, batch_size=None, progress=False) for t in (failed, good)]
    assert histories[0]["loss"] == histories[1]["loss"]
    assert histories[0].stopped == ""
    assert_same_state(state_of(failed), state_of(good))


def test_an_early_stopping_gives_its_best_weights_back_also_after_a_failure():
    kept: dict[int, dict[str, np.ndarray]] = {}

    def keep(trainer: gm.Trainer, epoch: int, logs: Any) -> None:
        kept[epoch] = trainer.network.state_dict()

    stopping = gm.EarlyStopping("loss", patience=1000)
    trainer = gm.Trainer(net(), loss="mse", optimizer=gm.SGD(5.0), callbacks=[stopping, keep])
    with pytest.raises(gm.NonFiniteLossError):
        trainer.fit(X, Y, epochs=3000, batch_size=None, progress=False)
    for name, value in trainer.network.state_dict().items():
        np.testing.assert_array_equal(value, kept[stopping.best_epoch][name])


@pytest.mark.parametrize("optimizer", [gm.Adam(1e-3), gm.RMSprop(1e-3, centered=True), gm.Adagrad(1e-3)])
def test_gradients_whose_squares_overflow_stop_the_training_with_finite_weights(optimizer):
    """1e20 squared is more than float32 holds; the loss, a mean absolute error, stays finite."""
    network = gm.Sequential(gm.Linear(1, 1), device="cpu")
    trainer = gm.Trainer(network, loss="mae", optimizer=optimizer, seed=0)
    with pytest.raises(gm.NonFiniteLossError):
        trainer.fit(np.full((8, 1), 1e20), np.zeros(8), epochs=3, batch_size=4, progress=False)
    assert all(np.isfinite(v).all() for v in network.state_dict().values())


def test_a_clipped_gradient_may_be_large():
    network = gm.Sequential(gm.Linear(1, 1), device="cpu")
    trainer = gm.Trainer(network, loss="mae", optimizer=gm.Adam(1e-3, clip_value=1.0), seed=0)
    trainer.fit(np.full((8, 1), 1e20), np.zeros(8), epochs=3, batch_size=4, progress=False)
    assert all(np.isfinite(v).all() for v in network.state_dict().values())
