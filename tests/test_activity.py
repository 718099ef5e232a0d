"""gpumlp.activity: what the neurons of a network do, measured on a fixed probe while it trains."""

import json

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.activity import ActivationStatistics, activity_panels
from gpumlp.layers import ACTIVATIONS, get_activation
from gpumlp.probe import greatest_slopes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 0.5)
PROBE = X[:50]


def trained(activation="relu", epochs=3, seed=0, network=None, **settings):
    """Train a small classifier with the callback; return callback and trainer."""
    statistics = ActivationStatistics(PROBE, **settings)
    network = network or gm.mlp((4, 8, 6, 3), activation=activation, device="cpu")
    trainer = gm.Trainer(
        network, loss="cross_entropy", optimizer=gm.SGD(0.1), seed=seed, callbacks=[statistics]
    )
    trainer.fit(X, Y, epochs=epochs, batch_size=16, progress=False)
    return statistics, trainer


def forward_by_hand(network, f):
    """What each hidden layer is given, and gives, by NumPy in float64."""
    values = {name: array.astype(np.float64) for name, array in network.state_dict().items()}
    x, found = PROBE.astype(np.float64), []
    for key in ("0", "2"):
        z = x @ values[f"{key}.weight"] + values[f"{key}.bias"]
        x = f(z)
        found.append((z, x))
    return found


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


SLOPES = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0, 1.0),
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * (1 - sigmoid(z)), 0.25),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2, 1.0),
}


@pytest.mark.parametrize("activation", SLOPES)
def test_every_column_of_activations_is_what_its_definition_says(activation, assert_close):
    f, slope, greatest = SLOPES[activation]
    statistics, trainer = trained(activation, saturation=0.9)
    for layer, (z, out) in zip(("h1", "h2"), forward_by_hand(trainer.network, f), strict=True):
        last = {name: values[-1] for name, values in statistics.columns[layer].items()}
        assert last["inactive"] == np.mean(z <= 0)
        assert last["dead"] == np.mean((z <= 0).all(axis=0))
        assert last["zero"] == np.mean(out == 0)
        assert last["saturated"] == np.mean(slope(z) < 0.9 * greatest)
        assert 0 < last["saturated"] < 1
        assert_close([last["mean"], last["std"]], [out.mean(), out.std()], 1e-5)


def test_columns_of_weights_are_those_of_the_linear_layers_and_the_last_one_is_the_output():
    statistics, trainer = trained()
    assert list(statistics.columns) == ["h1", "h2", "output"]
    assert statistics.layers == ["h1", "h2"]
    for layer, key in (("h1", "0"), ("h2", "2"), ("output", "4")):
        weight = trainer.network.state_dict()[f"{key}.weight"]
        last = {name: values[-1] for name, values in statistics.columns[layer].items()}
        assert last["weight_norm"] == pytest.approx(np.linalg.norm(weight.astype(float)), rel=1e-6)
        assert last["weight_mean"] == pytest.approx(weight.mean(dtype=float), abs=1e-7)
        assert last["weight_std"] == pytest.approx(weight.std(dtype=float), rel=1e-6)
    assert "gradient_norm" not in statistics.columns["h1"]


def test_it_measures_before_the_first_epoch_after_each_and_after_the_last():
    statistics, _ = trained(epochs=5, every=2)
    assert statistics.epochs == [0, 2, 4, 5]
    start = gm.mlp((4, 8, 6, 3), activation="relu", device="cpu", seed=0)
    z = forward_by_hand(start, SLOPES["relu"][0])[0][0]
    assert statistics.columns["h1"]["inactive"][0] == np.mean(z <= 0)
    assert {len(v) for own in statistics.columns.values() for v in own.values()} == {4}


def test_it_changes_no_bit_of_the_training():
    _, watched = trained(y=Y[:50])
    alone = gm.Trainer(
        gm.mlp((4, 8, 6, 3), activation="relu", device="cpu"),
        loss="cross_entropy",
        optimizer=gm.SGD(0.1),
        seed=0,
    )
    alone.fit(X, Y, epochs=3, batch_size=16, progress=False)
    for name, value in alone.network.state_dict().items():
        np.testing.assert_array_equal(value, watched.network.state_dict()[name])


def test_gradient_norms_are_those_of_the_loss_on_the_probe(training_step):
    statistics, trainer = trained("tanh", y=Y[:50])
    gradients = training_step(trainer.network, "cross_entropy", PROBE, Y[:50]).gradients()
    for layer, key in (("h1", "0"), ("h2", "2"), ("output", "4")):
        expected = np.linalg.norm(gradients[f"{key}.weight"].astype(float))
        assert statistics.columns[layer]["gradient_norm"][-1] == pytest.approx(expected, rel=1e-4)


def test_neurons_that_no_row_reaches_are_dead_and_others_are_not():
    network = gm.mlp((4, 8, 6, 3), activation="relu", device="cpu")
    statistics = ActivationStatistics(PROBE)
    trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(1e-6), callbacks=[statistics])
    network[0].bias = np.array([-1e3] * 3 + [10.0] * 5)
    trainer.fit(X, Y, epochs=1, progress=False)
    assert statistics.columns["h1"]["dead"] == [3 / 8] * 2
    assert statistics.columns["h1"]["inactive"] == [3 / 8] * 2


def test_dropout_batch_norm_and_units_of_their_own_are_measured_in_inference_mode():
    layers = [
        gm.Linear(4, 6),
        gm.BatchNorm1d(6),
        gm.PerUnit(["relu", "relu", "tanh", "tanh", "sigmoid", "sigmoid"]),
        gm.Dropout(0.5),
        gm.Linear(6, 3),
    ]
    statistics, trainer = trained(network=gm.Sequential(*layers, device="cpu"), y=Y[:50])
    assert statistics.layers == ["h1"]
    values = {name: array.astype(float) for name, array in trainer.network.state_dict().items()}
    z = PROBE @ values["0.weight"] + values["0.bias"]
    z = (z - values["1.running_mean"]) / np.sqrt(values["1.running_var"] + 1e-5)
    z = z * values["1.weight"] + values["1.bias"]
    assert statistics.columns["h1"]["inactive"][-1] == np.mean(z <= 0)
    assert np.isfinite(statistics.columns["output"]["gradient_norm"]).all()


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"softmax"}))
def test_the_greatest_slope_is_that_of_finite_differences(name):
    activation = get_activation(name)
    grid = np.linspace(-10, 10, 4001)[:, None]
    network = gm.Sequential(get_activation(name), in_features=1, device="cpu", dtype="float64")
    slope = np.abs(np.diff(network.predict(grid)[:, 0])).max() / (grid[1, 0] - grid[0, 0])
    assert greatest_slopes(activation)[0] == pytest.approx(slope, rel=5e-3)


def test_each_unit_of_its_own_has_its_own_greatest_slope():
    assert greatest_slopes(gm.PerUnit(["sigmoid", "tanh", "relu"])).tolist() == pytest.approx([0.25, 1, 1])


def test_histograms_count_every_value_of_the_first_and_the_last_epoch():
    statistics, trainer = trained("tanh", bins=10)
    panels = statistics.histogram_panels()
    assert list(panels) == ["h1", "h2"]
    edges, counts = panels["h1"]["epoch 3"]
    assert sum(counts) == 50 * 8
    assert len(edges) == 11
    _, out = forward_by_hand(trainer.network, np.tanh)[0]
    assert (edges[0], edges[-1]) == pytest.approx((out.min(), out.max()), rel=1e-5)
    weights = statistics.histogram_panels("weights", epochs=[1])
    assert list(weights["output"]) == ["epoch 1"]
    assert sum(weights["output"]["epoch 1"][1]) == 6 * 3


def test_it_is_the_same_after_going_on_as_in_one_go():
    whole, _ = trained(epochs=4)
    first, trainer = trained(epochs=2)
    arrays, values = trainer.state_dict()
    values = json.loads(json.dumps(values))
    again = ActivationStatistics(PROBE)
    other = gm.Trainer(
        gm.mlp((4, 8, 6, 3), activation="relu", device="cpu"),
        loss="cross_entropy",
        optimizer=gm.SGD(0.1),
        seed=0,
        callbacks=[again],
    )
    other.load_state_dict(arrays, values)
    other.fit(X, Y, epochs=4, batch_size=16, progress=False)
    assert again.epochs == [0, 1, 2, 3, 4]
    assert again.columns == whole.columns
    assert first.epochs == [0, 1, 2]


def test_it_works_side_by_side():
    statistics = [ActivationStatistics(PROBE) for _ in range(2)]
    members = [{"seed": s, "callbacks": [own]} for s, own in enumerate(statistics)]
    trainers = gm.make_trainers(
        members, lambda: gm.mlp((4, 8, 6, 3), device="cpu"), loss="cross_entropy", optimizer=gm.SGD(0.1)
    )
    gm.fit_many(trainers, X, Y, epochs=3, batch_size=16, progress=False)
    alone, _ = trained()
    assert statistics[0].columns == alone.columns
    assert statistics[1].columns != alone.columns


def test_panels_put_activations_side_by_side_by_layer():
    statistics = {name: trained(name)[0] for name in ("tanh", "relu")}
    panels = activity_panels(statistics)
    assert {layer: list(curves) for layer, curves in panels.items()} == {
        "h1": ["tanh", "relu"],
        "h2": ["tanh", "relu"],
    }
    epochs, values = panels["h1"]["relu"]
    assert epochs == [0, 1, 2, 3]
    assert values == statistics["relu"].columns["h1"]["inactive"]


def test_what_it_found_can_be_written_as_json():
    statistics, _ = trained(y=Y[:50])
    assert json.loads(json.dumps(statistics.to_dict()))["columns"] == statistics.columns


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ActivationStatistics(PROBE, every=0), "every is 0"),
        (lambda: ActivationStatistics(PROBE, saturation=1.0), "saturation is 1.0; expected a number above 0"),
        (lambda: ActivationStatistics(PROBE, bins=-1), "bins is -1"),
        (lambda: ActivationStatistics(PROBE).curves("inactive"), "nothing was measured yet"),
        (lambda: trained()[0].curves("inactve"), "no column 'inactve'; did you mean 'inactive'"),
        (lambda: trained(bins=0)[0].histogram_panels(), "no histograms of 'activations'; none were kept"),
        (lambda: trained()[0].histogram_panels(epochs=[9]), "epoch 9 was not measured"),
        (lambda: trained(y=Y[:49]), "X has 50 rows and y has 49"),
        (lambda: trained(network=gm.mlp((4, 3), device="cpu")), "found no hidden layer"),
    ],
)
def test_a_mistake_is_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_probe_of_another_width_is_refused_as_the_training_begins():
    statistics = ActivationStatistics(PROBE[:, :3])
    trainer = gm.Trainer(gm.mlp((4, 8, 3), device="cpu"), loss="cross_entropy", callbacks=[statistics])
    with pytest.raises(ValueError, match="X has 3 features; the network takes 4"):
        trainer.fit(X, Y, epochs=1, progress=False)
