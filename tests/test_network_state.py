"""What a network keeps: weights drawn by seed, states saved and loaded, copies, other types and devices."""

import copy
import pickle

import numpy as np
import pytest

import gpumlp as gm
from tests.networks import make

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 3))


def same_state(one, other):
    values, others = one.state_dict(), other.state_dict()
    assert set(values) == set(others)
    return all((values[name] == others[name]).all() for name in values)


def test_the_same_seed_draws_the_same_weights_and_another_seed_others(backend):
    one, same, other = (
        gm.mlp([3, 5, 2], seed=s, device=d) for s, d in ((4, "cpu"), (4, backend), (5, "cpu"))
    )
    assert same_state(one, same)
    assert (one.state_dict()["0.weight"] != other.state_dict()["0.weight"]).all()
    other.reset(4)
    assert same_state(one, other)


def test_reset_starts_everything_anew():
    fresh, network = make(), make()
    fresh.reset(7)
    network[1].running_mean = [1, 2, 3, 4, 5]
    network.reset(7)
    assert same_state(fresh, network)
    assert network.seed == 7
    network[0].weight = np.zeros((3, 5))
    network.reset()  # by the same seed
    assert same_state(fresh, network)


def test_the_draw_of_a_layer_does_not_depend_on_the_type():
    single, double = (gm.mlp([3, 5, 2], seed=2, dtype=dtype) for dtype in ("float32", "float64"))
    for name, value in double.state_dict().items():
        np.testing.assert_array_equal(single.state_dict()[name], value.astype("float32"))


def test_weights_are_drawn_once_by_a_trainer_of_the_seed_that_drew_them_and_again_by_another(monkeypatch):
    drawn: list[int] = []
    reset = gm.Sequential.reset

    def noted(self, seed=None):
        reset(self, seed)
        drawn.append(self.seed)

    monkeypatch.setattr(gm.Sequential, "reset", noted)
    for seed in (4, 4, 5):
        network = gm.mlp([3, 5, 2], seed=4, device="cpu")
        gm.Trainer(network, loss="mse", seed=seed)
        assert network.seed == seed
    assert drawn == [4, 4, 4, 5]


def test_a_trainer_of_another_type_has_the_weights_of_a_network_of_that_type():
    """Not those of float32 with more digits."""
    network = gm.mlp([3, 5, 2], seed=4, device="cpu")
    gm.Trainer(network, loss="mse", seed=4, dtype="float64")
    assert same_state(network, gm.mlp([3, 5, 2], seed=4, device="cpu", dtype="float64"))


def test_weights_that_were_set_to_something_are_kept_whatever_the_seed():
    network = gm.mlp([3, 5, 2], seed=4, device="cpu")
    network[0].bias = np.ones(5)
    kept = network.copy()
    gm.Trainer(network, loss="mse", seed=5)
    assert same_state(network, kept)


def test_state_dict_goes_round(backend, dtype):
    one, other = make(dtype, backend, seed=1), make(dtype, backend, seed=2)
    values = one.state_dict()
    assert set(values) == {
        *("0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"),
        *("1.running_mean", "1.running_var"),
    }
    assert all(isinstance(v, np.ndarray) and v.dtype == dtype for v in values.values())
    other.load_state_dict(values)
    assert same_state(one, other)
    np.testing.assert_array_equal(one.predict(X), other.predict(X))


def test_state_dict_is_a_copy():
    network = make()
    values, before = network.state_dict(), network.predict(X)
    for value in values.values():
        value[...] = 0
    np.testing.assert_array_equal(network.predict(X), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("4.bias"), r"state_dict does not fit: missing \['4.bias'\], unknown \[\]"),
        (lambda v: v.update({"9.weight": np.ones(2)}), r"missing \[\], unknown \['9.weight'\]"),
        (lambda v: v.update({"4.weight": np.ones((2, 5))}), r"4.weight of shape \(2, 5\); expected \(5, 2\)"),
        (
            lambda v: v.update({"1.running_var": np.ones(4)}),
            r"1.running_var of shape \(4,\); expected \(5,\)",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    network = make()
    before, values = network.state_dict(), {k: v + 1 for k, v in network.state_dict().items()}
    change(values)
    with pytest.raises(ValueError, match=message):
        network.load_state_dict(values)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_state_of_values_that_are_no_numbers_changes_nothing():
    network = make()
    before = network.state_dict()
    values = {**{k: v + 1 for k, v in before.items()}, "4.weight": np.full((5, 2), "a")}
    with pytest.raises(ValueError, match="state_dict has values that are not numbers"):
        network.load_state_dict(values)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "twin_of",
    [copy.deepcopy, lambda n: n.copy(), lambda n: pickle.loads(pickle.dumps(n))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_a_copy_gives_equal_outputs_and_has_memory_of_its_own(twin_of, own, backend):
    network = make(device=backend, own=own)
    network[0].freeze()
    network.forward(X)
    twin = twin_of(network)
    assert same_state(network, twin)
    np.testing.assert_array_equal(twin.predict(X), network.predict(X))
    assert [layer.trainable for layer in twin.layers] == [layer.trainable for layer in network.layers]
    assert (twin.dtype, twin.seed, twin.backend.name) == (network.dtype, network.seed, network.backend.name)
    before = network.predict(X)
    twin[0].weight[...] = 0
    np.testing.assert_array_equal(network.predict(X), before)


def test_a_copy_goes_on_training_like_its_original():
    network = make("float64")
    y = RNG.normal(size=(11, 2))
    results = []
    for each in (network.copy(), copy.deepcopy(network)):
        gm.Trainer(each, loss="mse").fit(X, y, epochs=2, batch_size=4, progress=False)
        results.append(each)
    assert same_state(*results)


def test_another_type_keeps_the_values():
    network = make("float64")
    before, outputs = network.state_dict(), network.predict(X)
    assert network.to(dtype="float32") is network
    assert network.dtype == "float32"
    for name, value in network.state_dict().items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, before[name], rtol=1e-6)
    np.testing.assert_allclose(network.predict(X), outputs, rtol=1e-4, atol=1e-5)
    network[0].weight = np.ones((3, 5))  # the layers see the new memory
    np.testing.assert_array_equal(network.state_dict()["0.weight"], 1)
    assert network.forward(X).dtype == np.float32


def test_another_device_keeps_the_values(backend):
    network = make("float64")
    before = network.predict(X)
    network.to(device=backend)
    assert network.backend.name == backend.name
    np.testing.assert_allclose(network.predict(X), before, rtol=1e-10)


def test_the_architecture_goes_round():
    units = gm.PerUnit(["relu", {"name": "elu", "alpha": 0.5}])
    layers = (
        gm.Linear(3, 2, bias=False, weight_init="he_uniform").freeze(),
        units,
        gm.LeakyReLU(0.2),
        gm.LayerNorm(2),
    )
    network = gm.Sequential(*layers, gm.Linear(2, 1, bias_init=0.25), dtype="float64", seed=9)
    again = gm.Sequential.from_dict(network.to_dict())
    assert again.to_dict() == network.to_dict()
    assert repr(again) == repr(network)
    assert not again[0].trainable
    assert same_state(again, network)  # drawn by the same seed


def test_a_copied_layer_keeps_what_it_learnt():
    network = gm.Sequential(gm.Linear(3, 4), gm.BatchNorm1d(4), gm.Linear(4, 2), seed=5, device="cpu")
    network[1].running_mean = np.arange(4)
    for layer in network.layers:
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert layer.values()
            for name, value in layer.values().items():
                np.testing.assert_array_equal(getattr(copied, name), value)
    other = gm.Sequential(copy.deepcopy(network[0]), gm.Linear(4, 1), seed=9, device="cpu")
    np.testing.assert_array_equal(other[0].weight, network[0].weight)
