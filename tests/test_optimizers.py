"""gpumlp.optimizers: whole trajectories against PyTorch, the forms that it has not, and every setting at work."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.optimizers import get_optimizer

RECORDED = Path(__file__).parent / "recorded"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_trajectories", RECORDED / "make_trajectories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


T = _generator()
TENSORS = ("0.weight", "0.bias", "2.weight", "2.bias")

# the cases of make_trajectories.py, as gpumlp says them
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "sgd": (gm.SGD, {"lr": 0.4}),
    "momentum": (gm.SGD, {"lr": 0.2, "momentum": 0.9}),
    "dampening": (gm.SGD, {"lr": 0.4, "momentum": 0.8, "dampening": 0.3}),
    "nesterov": (gm.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": (gm.Adagrad, {"lr": 0.2, "lr_decay": 0.05, "eps": 1e-6}),
    "adagrad_accumulator": (gm.Adagrad, {"lr": 0.2, "initial_accumulator": 0.3}),
    "rmsprop": (gm.RMSprop, {"lr": 0.02, "alpha": 0.9, "eps": 1e-5}),
    "rmsprop_centered": (gm.RMSprop, {"lr": 0.02, "alpha": 0.95, "centered": True}),
    "rmsprop_momentum": (gm.RMSprop, {"lr": 0.01, "momentum": 0.7, "centered": True}),
    "adam": (gm.Adam, {"lr": 0.03, "beta1": 0.8, "beta2": 0.95, "eps": 1e-4}),
    "adamw": (gm.AdamW, {"lr": 0.03, "beta1": 0.9, "beta2": 0.99}),
}


def optimizer_of(case: str, variant: str) -> gm.optimizers.Optimizer:
    cls, settings = CASES[case]
    settings = {"weight_decay": 0.0, **settings}
    if variant in ("decay", "decay_bias"):
        settings |= {"weight_decay": T.DECAY, "decay_bias": variant == "decay_bias"}
    if variant in ("clip_value", "clip_both"):
        settings["clip_value"] = T.CLIP_VALUE
    if variant in ("clip_norm", "clip_both"):
        settings["clip_norm"] = T.CLIP_NORM
    if variant == "falling":
        settings["lr"] = gm.ExponentialDecay(settings["lr"], factor=T.FALL, every=1, unit="steps")
    return cls(**settings)


class AfterEachStep(gm.Callback):
    """Keeps a copy of the parameters after each step; needs validate_every="1 steps"."""

    def __init__(self) -> None:
        self.tensors: list[dict[str, np.ndarray]] = []

    def on_validation(self, trainer, step, scores):
        self.tensors.append(trainer.network.state_dict())


def train(
    optimizer: Any, epochs: int, dtype: str = "float64", frozen: tuple[int, ...] = (), **settings: Any
) -> tuple[gm.Trainer, list[dict[str, np.ndarray]]]:
    """Train the net of the recorded trajectories; return the trainer and the tensors after each step."""
    given = T.problem()
    network = gm.Sequential(gm.Linear(5, 7), gm.Tanh(), gm.Linear(7, 3), device="cpu", dtype=dtype)
    network.load_state_dict({name: given[name] for name in TENSORS})
    for i in frozen:
        network[i].freeze()
    after = AfterEachStep()
    trainer = gm.Trainer(network, loss="mse", optimizer=optimizer, callbacks=after)
    X, y = given["X"].astype(dtype), given["y"]
    settings = {"batch_size": T.BATCH, "shuffle": False, "progress": False, **settings}
    trainer.fit(X, y, epochs=epochs, validation_data=(X[:2], y[:2]), validate_every="1 steps", **settings)
    return trainer, after.tensors


def in_one(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in TENSORS])


def assert_trajectory(found: list[dict[str, np.ndarray]], expected: np.ndarray) -> None:
    sizes = [35, 7, 21, 3]
    for step, flat in enumerate(expected):
        for name, true in zip(TENSORS, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
            ours = found[step][name].ravel()
            error = np.linalg.norm(ours - true) / np.linalg.norm(true)
            assert error < 1e-10, f"{name} after step {step + 1}: relative error {error:.2e}"


# ---- PyTorch ----


@pytest.fixture(params=["eager", "chosen"])
def executor(request, monkeypatch):
    """The reference kernels, and what this machine chooses for itself, which may be the same."""
    if request.param == "eager":
        from gpumlp.executors import EagerExecutor

        monkeypatch.setattr("gpumlp.executors.choose_executor", lambda *_: (EagerExecutor, "eager"))


def test_the_recorded_cases_are_those_of_this_file():
    assert set(CASES) == set(T.CASES)
    with np.load(RECORDED / "trajectories.npz", allow_pickle=False) as recorded:
        assert set(recorded) == {"torch_version", *T.problem()} | {f"{c}-{v}" for c, v in T.RECORDED}
        assert str(recorded["torch_version"]).startswith("2.")
        for name, array in T.problem().items():
            np.testing.assert_array_equal(recorded[name], array)
    assert sum(path.stat().st_size for path in RECORDED.iterdir() if path.is_file()) < 250_000


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize(("case", "variant"), T.RECORDED)
def test_each_tensor_after_each_of_20_steps_is_that_of_pytorch_as_recorded(case, variant):
    with np.load(RECORDED / "trajectories.npz", allow_pickle=False) as recorded:
        expected = recorded[f"{case}-{variant}"]
    assert expected.shape == (20, 66)
    _, found = train(optimizer_of(case, variant), epochs=7)
    assert_trajectory(found, expected)


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("variant", T.VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_each_tensor_after_each_of_20_steps_is_that_of_pytorch_live(case, variant):
    pytest.importorskip("torch")
    _, found = train(optimizer_of(case, variant), epochs=7)
    assert_trajectory(found, T.trajectory(case, variant))


@pytest.mark.parametrize("variant", ["clip_norm", "clip_value", "decay", "decay_bias", "falling"])
def test_every_recorded_variant_differs_from_the_plain_one(variant):
    # otherwise, say where no gradient reaches the bound, the trajectories above would prove nothing
    plain, other = (train(optimizer_of("adam", v), epochs=7)[1][19] for v in ("", variant))
    assert np.linalg.norm(in_one(plain) - in_one(other)) > 1e-4 * np.linalg.norm(in_one(plain))


# ---- forms that PyTorch has not, against plain NumPy loops ----


def gradients_at(tensors: dict[str, np.ndarray], step: int) -> np.ndarray:
    """The gradient of the mean squared error on the batch of a step, written out."""
    given = T.problem()
    start = step % 3 * T.BATCH
    x, y = given["X"][start : start + T.BATCH], given["y"][start : start + T.BATCH]
    h = np.tanh(x @ tensors["0.weight"] + tensors["0.bias"])
    dy = 2 * (h @ tensors["2.weight"] + tensors["2.bias"] - y) / y.size
    dh = (dy @ tensors["2.weight"].T) * (1 - h**2)
    return in_one({"0.weight": x.T @ dh, "0.bias": dh.sum(0), "2.weight": h.T @ dy, "2.bias": dy.sum(0)})


def by_hand(form: str, rates: np.ndarray, m: float) -> np.ndarray:
    """The trajectory of a momentum form, (steps, 66)."""
    given, shapes = T.problem(), [(5, 7), (7,), (7, 3), (3,)]
    p, v, after = in_one(given), np.zeros(66), []
    for step, lr in enumerate(rates):
        parts = np.split(p, [35, 42, 63])
        g = gradients_at({n: a.reshape(s) for n, a, s in zip(TENSORS, parts, shapes, strict=True)}, step)
        if form == "average":
            v = m * v + (1 - m) * g
            p = p - lr * v
        elif form == "keras":
            v = m * v - lr * g
            p = p + v
        elif form == "keras nesterov":
            v = m * v - lr * g
            p = p + m * v - lr * g
        elif form == "pytorch":
            v = m * v + g
            p = p - lr * v
        elif form == "pytorch nesterov":
            v = m * v + g
            p = p - lr * (g + m * v)
        after.append(p)
    return np.array(after)


FALLING = gm.ExponentialDecay(0.2, factor=0.8, every=1, unit="steps")
FALLING_RATES = 0.2 * 0.8 ** np.arange(20.0)


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("form", ["keras", "keras nesterov", "average", "pytorch", "pytorch nesterov"])
def test_each_momentum_form_follows_its_formula_while_the_rate_changes(form):
    name, _, nesterov = form.partition(" ")
    optimizer = gm.SGD(FALLING, momentum=0.85, form=name, nesterov=bool(nesterov))
    _, found = train(optimizer, epochs=7)
    assert_trajectory(found, by_hand(form, FALLING_RATES, 0.85))


@pytest.mark.parametrize("nesterov", [False, True])
def test_forms_of_keras_and_pytorch_are_equal_at_a_constant_rate_and_differ_when_it_changes(nesterov):
    def both(rate: Any) -> list[np.ndarray]:
        optimizers = (gm.SGD(rate, momentum=0.85, nesterov=nesterov, form=f) for f in ("keras", "pytorch"))
        return [in_one(train(optimizer, epochs=7)[1][19]) for optimizer in optimizers]

    keras, pytorch = both(0.1)
    np.testing.assert_allclose(keras, pytorch, rtol=1e-11, atol=1e-13)
    keras, pytorch = both(FALLING)
    assert np.linalg.norm(keras - pytorch) > 1e-3 * np.linalg.norm(pytorch)


def test_the_moving_average_is_pytorchs_form_at_the_rate_times_1_minus_momentum():
    average = train(gm.SGD(0.4, momentum=0.75, form="average"), epochs=7)[1]
    pytorch = train(gm.SGD(0.1, momentum=0.75), epochs=7)[1]
    for a, b in zip(average, pytorch, strict=True):
        np.testing.assert_allclose(in_one(a), in_one(b), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("form", ["pytorch", "keras", "average"])
def test_without_momentum_every_form_is_plain_descent_with_no_slot(form):
    trainer, found = train(gm.SGD(0.4, form=form), epochs=2)
    assert trainer.slots == {}
    np.testing.assert_array_equal(in_one(found[5]), in_one(train(gm.SGD(0.4), epochs=2)[1][5]))


# ---- the flat arena ----

EVERY = {
    "sgd": gm.SGD(0.1),
    "momentum": gm.SGD(0.1, momentum=0.9, dampening=0.2),
    "nesterov": gm.SGD(0.1, momentum=0.9, nesterov=True),
    "keras": gm.SGD(0.1, momentum=0.9, form="keras"),
    "average": gm.SGD(0.1, momentum=0.9, form="average"),
    "adagrad": gm.Adagrad(0.1, initial_accumulator=0.1),
    "rmsprop": gm.RMSprop(0.01, momentum=0.5, centered=True),
    "adam": gm.Adam(0.01),
    "adamw": gm.AdamW(0.01, weight_decay=0.1),
}


def with_settings(name: str, **settings: Any) -> gm.optimizers.Optimizer:
    return get_optimizer({**EVERY[name].to_dict(), **settings})


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("frozen", [(0,), (2,)])
def test_frozen_layers_and_their_slots_stay_bit_for_bit_while_the_others_learn(name, frozen):
    optimizer = with_settings(name, weight_decay=0.1, decay_bias=True, clip_norm=1.0)
    trainer, found = train(optimizer, epochs=2, dtype="float32", frozen=frozen)
    given = T.problem()
    for tensor in TENSORS:
        before = given[tensor].astype(np.float32)
        if tensor.startswith(str(frozen[0])):
            np.testing.assert_array_equal(found[-1][tensor], before)
        else:
            assert (found[-1][tensor] != before).any()
    for slot, value in trainer.optimizer.initial_slots().items():
        for tensor, array in trainer.slots[f"slot.{slot}"].items():
            kept = (array == np.float32(value)).all()
            assert kept == tensor.startswith(str(frozen[0])), (slot, tensor)


def test_clipping_by_norm_leaves_the_gradients_of_frozen_layers_out():
    # with layer 2 alone learning, the bound applies to the norm of its gradient only, at any size of the others
    _, found = train(gm.SGD(1.0, clip_norm=1e-3), epochs=1, frozen=(0,))
    moved = in_one(found[0]) - in_one(T.problem())
    assert np.linalg.norm(moved) == pytest.approx(1e-3, rel=0.01)


def test_a_network_that_is_frozen_as_a_whole_trains_to_no_effect():
    _, found = train(gm.Adam(0.1), epochs=1, frozen=(0, 2))
    np.testing.assert_array_equal(in_one(found[-1]), in_one(T.problem()))


@pytest.mark.parametrize("name", EVERY)
def test_weight_decay_is_on_weights_and_not_on_biases_unless_asked(name):
    def after(**settings: Any) -> dict[str, np.ndarray]:
        return train(with_settings(name, **settings), epochs=1, batch_size=None)[1][0]

    none, weights, everything = (
        after(weight_decay=0.0), after(weight_decay=0.3), after(weight_decay=0.3, decay_bias=True)
    )  # fmt: skip
    for tensor in TENSORS:
        is_bias = tensor.endswith("bias")
        assert (none[tensor] == weights[tensor]).all() == is_bias
        assert (weights[tensor] == everything[tensor]).all() != is_bias


def test_scales_of_normalisation_do_not_decay():
    network = gm.Sequential(gm.Linear(3, 4), gm.LayerNorm(4), gm.Linear(4, 1), dtype="float64")
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3))[:, :, :1].repeat(3, axis=2), np.zeros(6)
    trained = []
    for decay in (0.0, 0.5):
        network.reset(0)
        gm.Trainer(network, loss="mse", optimizer=gm.SGD(0.01, weight_decay=decay)).fit(
            x[0], y, epochs=1, batch_size=None, progress=False
        )
        trained.append(network.state_dict())
    same = {name for name in trained[0] if (trained[0][name] == trained[1][name]).all()}
    assert same == {"0.bias", "1.weight", "1.bias", "2.bias"}


@pytest.mark.parametrize(
    ("frozen", "settings", "expected"),
    [
        ((), {}, 1),  # one range, whatever the depth
        ((), {"weight_decay": 0.1}, 2),  # weights, then biases
        ((), {"weight_decay": 0.1, "decay_bias": True}, 1),
        ((2,), {"weight_decay": 0.1}, 4),  # weights 0 and 4, biases 0 and 4
        ((0, 2, 4), {}, 0),
    ],
)
def test_an_update_is_one_call_for_each_range_of_equal_flags(frozen, settings, expected):
    from gpumlp.losses import get_loss
    from gpumlp.step import DataShape, training_step

    network = gm.mlp((4, 8, 8, 3))
    for i in frozen:
        network[i].freeze()
    program = training_step(
        network, get_loss("mse"), gm.Adam(**settings), DataShape(10, 10, 4, (3,), False), 5
    )
    assert sum(call.kernel == "adam" for call in program.calls) == expected


def test_slots_start_from_their_values_and_reset_brings_them_back():
    trainer, _ = train(gm.Adagrad(0.1, initial_accumulator=0.25), epochs=1)
    assert all((a > 0.25).any() for _, a in trainer.slots["slot.accumulator"].items())
    trainer.reset()
    for _, array in trainer.slots["slot.accumulator"].items():
        np.testing.assert_array_equal(array, 0.25)


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("name", EVERY)
def test_a_flagged_step_updates_neither_parameters_nor_slots(name):
    from gpumlp.kernels import BAD_STEP

    trainer, found = train(with_settings(name, weight_decay=0.1, clip_value=1.0), epochs=2)
    before = {slot: arena.to_host() for slot, arena in trainer.slots.items()}
    x, y = T.problem()["X"].copy(), T.problem()["y"]
    # finite data whose squared error overflows float64
    with pytest.raises(gm.NonFiniteLossError):
        trainer.fit(x, y * 1e200, epochs=1, batch_size=None, progress=False)
    assert trainer.control[BAD_STEP] >= 0
    np.testing.assert_array_equal(in_one(trainer.network.state_dict()), in_one(found[-1]))
    for slot, arena in trainer.slots.items():
        for tensor, array in arena.items():
            np.testing.assert_array_equal(array, before[slot][tensor])


# ---- settings ----


@pytest.mark.parametrize("name", EVERY)
def test_an_optimizer_comes_back_from_its_dict_with_every_setting(name):
    changed = with_settings(name, weight_decay=0.02, decay_bias=True, clip_norm=2.0, clip_value=0.5)
    again = get_optimizer(changed.to_dict())
    assert type(again) is type(changed)
    assert again.to_dict() == changed.to_dict()
    assert {k: v for k, v in vars(again).items() if k != "schedule"} == {
        k: v for k, v in vars(changed).items() if k != "schedule"
    }
    assert again.schedule == changed.schedule
    assert "clip_norm=2.0" in repr(again)


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (gm.SGD, {"momentum": 0.7, "dampening": 0.1, "form": "pytorch"}),
        (gm.SGD, {"momentum": 0.7, "nesterov": True, "form": "keras"}),
        (gm.Adagrad, {"lr_decay": 0.3, "initial_accumulator": 0.4, "eps": 0.5}),
        (gm.RMSprop, {"alpha": 0.8, "eps": 0.2, "momentum": 0.3, "centered": True}),
        (gm.Adam, {"beta1": 0.5, "beta2": 0.6, "eps": 0.7}),
        (gm.AdamW, {"beta1": 0.5, "beta2": 0.6, "eps": 0.7, "weight_decay": 0.8}),
    ],
)
def test_every_constant_can_be_set_and_changes_the_training(optimizer, settings):
    made = optimizer(0.05, **settings)
    for name, value in settings.items():
        assert getattr(made, name) == value
        assert made.to_dict()[name] == value
    full = in_one(train(made, epochs=2)[1][-1])
    for name in settings:
        if name == "form" and settings["form"] == "pytorch":
            continue
        needed = {"nesterov": False, "dampening": 0.0} if name == "momentum" else {}
        rest = {k: v for k, v in settings.items() if k != name} | {
            k: needed[k] for k in needed if k in settings
        }
        if name == "form":  # at a constant rate the two forms are equal
            assert np.allclose(full, in_one(train(optimizer(0.05, **rest), epochs=2)[1][-1]))
        else:
            assert not np.allclose(full, in_one(train(optimizer(0.05, **rest), epochs=2)[1][-1]), rtol=1e-9)
