"""Every layer against central differences in float64: a table over all of `LAYERS`.

A new entry of `LAYERS` is tested by being there; one whose settings cannot be guessed needs a line in `SETTINGS`.
"""

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp.layers import ACTIVATIONS, LAYERS, layer_from_dict

UNITS: list[Any] = [
    "relu",
    "tanh",
    "tanh",
    {"name": "elu", "alpha": 0.5},
    "identity",
    "sigmoid",
    "sigmoid",
    "gelu",
]


def _units(width):
    return [UNITS[i % len(UNITS)] for i in range(width)]


# Beside the default settings, further ones; and what a layer needs that is not the width.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"out_features": 1}, {"out_features": 4, "bias": False}, {"out_features": 3}],
    "leaky_relu": [{}, {"negative_slope": 0.3}, {"negative_slope": 0.0}],
    "elu": [{}, {"alpha": 0.4}],
    "gelu": [{}, {"approximate": "tanh"}],
    "softplus": [{}, {"beta": 3.0}],
    "dropout": [{}, {"rate": 0.2}, {"rate": 0.0}],
    "gaussian_noise": [{}, {"std": 0.0}],
    "layer_norm": [{}, {"affine": False}, {"eps": 0.5}],
    "batch_norm": [{}, {"affine": False}, {"eps": 0.5}],
    "per_unit": [{}],
}
CASES = [(name, s) for name in sorted(LAYERS) for s in SETTINGS.get(name, [{}])]
DRAWN_ANEW = {"dropout", "gaussian_noise"}  # at every pass
WIDTHS = {"in_features", "normalized_features", "num_features"}

cases = pytest.mark.parametrize(("name", "extra"), CASES, ids=[f"{n}-{s}" if s else n for n, s in CASES])
shapes = given(rows=st.integers(1, 5), width=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))


def make(name, extra, width):
    """Return a layer of `LAYERS` that takes `width` features."""
    parameters = inspect.signature(LAYERS[name]).parameters
    spec = {"name": name, **extra, **{key: width for key in parameters if key in WIDTHS}}
    if "units" in parameters:
        spec["units"] = _units(width)
    return layer_from_dict(spec)


def inputs(rng, rows, width):
    """Values away from the kinks at 0, and rows that differ."""
    x = rng.normal(0, 2, (rows, width))
    return x + np.sign(x) * 1e-3


def stir(network, rng):
    """Give every parameter a random value: scales of 1 and shifts of 0 would hide mistakes."""
    for _, view in network.parameters.items():
        view[...] = network.backend.asarray(rng.normal(0.3, 0.7, view.shape))


def tolerance(name):
    # where a norm is taken over one value, or over two near ones, the numeric gradient loses digits
    return 1e-4 if "norm" in name else 1e-6


@cases
@settings(max_examples=15)
@shapes
def test_a_layer_by_itself_has_the_gradients_of_its_forward(
    name, extra, rows, width, seed, central_differences, assert_close
):
    """The gradient of the input, which is always given here, and of every parameter."""
    if name in DRAWN_ANEW:
        return  # see the tests of noise, and the networks below
    rng = np.random.default_rng(seed)
    layer, x = make(name, extra, width), inputs(rng, rows, width)
    y = layer.forward(x)
    stir(layer._chain, rng)
    dy = rng.normal(size=y.shape)
    layer.forward(x)
    dx = np.array(layer.backward(dy))
    gradients = {key: np.array(value) for key, value in layer.grads.items()}

    def value():
        return float((np.asarray(layer.forward(x)) * dy).sum())

    bound = tolerance(name)
    assert_close(dx, central_differences(value, x), bound)
    assert set(gradients) == set(layer.parameter_specs)
    for key, gradient in gradients.items():
        assert_close(gradient, central_differences(value, getattr(layer, key)), bound)


PLACES = ("first", "middle", "after a frozen layer")


@pytest.mark.parametrize("place", PLACES)
@cases
@settings(max_examples=6)
@shapes
def test_a_training_step_has_the_gradients_of_its_loss(
    name, extra, place, rows, width, seed, training_step, central_differences, assert_close
):
    """As the first layer (no gradient of the input is taken), between others, and behind a frozen one.

    Dropout and noise stand at fixed counters; batch norm takes the statistics of the batch.
    """
    rng = np.random.default_rng(seed)
    layer = make(name, extra, width)
    out = extra.get("out_features", width)
    before = {"first": [], "middle": [gm.Linear(width, width)]}.get(place, [gm.Linear(width, width).freeze()])
    network = gm.Sequential(
        *before, layer, gm.Linear(out, 2), in_features=width, dtype="float64", device="cpu"
    )
    stir(network, rng)
    x, y = inputs(rng, rows, width), rng.normal(size=(rows, 2))
    step = training_step(network, "mse", x, y)
    gradients = step.gradients()
    frozen = {s.name for s in network.segments() if not s.trainable}
    assert bool(frozen) == (place == "after a frozen layer")
    for key, gradient in gradients.items():
        if key in frozen:
            assert not gradient.any()
            continue
        numeric = central_differences(step.loss, network.parameters[key])
        assert_close(gradient, numeric, 20 * tolerance(name))


@cases
@settings(max_examples=5)
@shapes
def test_a_frozen_layer_passes_the_gradient_on_and_takes_none(
    name, extra, rows, width, seed, training_step, central_differences, assert_close
):
    """Batch norm then uses its running statistics, in training too."""
    rng = np.random.default_rng(seed)
    layer = make(name, extra, width).freeze()
    out = extra.get("out_features", width)
    network = gm.Sequential(gm.Linear(width, width), layer, gm.Linear(out, 2), dtype="float64", device="cpu")
    stir(network, rng)
    for key, view in network.state.items():
        view[...] = rng.normal(size=view.shape) if "mean" in key else rng.uniform(0.5, 2, view.shape)
    before = network.state_dict()
    step = training_step(network, "mse", inputs(rng, rows, width), rng.normal(size=(rows, 2)))
    gradients = step.gradients()
    for key, gradient in gradients.items():
        if key.startswith("1."):
            assert not gradient.any()
        else:
            assert_close(gradient, central_differences(step.loss, network.parameters[key]), 1e-4)
    step.rates[...] = 0.1
    step.run(2)
    for key, value in network.state_dict().items():
        if key.startswith("1."):
            np.testing.assert_array_equal(value, before[key])
    assert (network.state_dict()["2.bias"] != before["2.bias"]).any()


@cases
def test_a_layer_alone_gives_what_it_gives_in_a_network(name, extra, backend, assert_close):
    rng = np.random.default_rng(3)
    x, width = inputs(rng, 6, 4), 4
    alone, inside = make(name, extra, width), make(name, extra, width)
    network = gm.Sequential(inside, in_features=width, dtype="float64", device=backend, seed=0)
    given_x = backend.asarray(x)
    alone.forward(given_x)
    for key in alone.parameter_specs:
        setattr(alone, key, rng.normal(size=getattr(alone, key).shape))
        setattr(inside, key, backend.to_host(getattr(alone, key)))
    if name in DRAWN_ANEW:
        network.forward(given_x)  # the same pass of each
    y = backend.to_host(alone.forward(given_x))
    np.testing.assert_array_equal(y, backend.to_host(network.forward(given_x)))
    dy = backend.asarray(rng.normal(size=y.shape))
    dx = backend.to_host(alone.backward(dy))
    np.testing.assert_array_equal(dx, backend.to_host(network.backward(dy)))
    for key in alone.parameter_specs:
        own = backend.to_host(alone.grads[key])
        np.testing.assert_array_equal(own, backend.to_host(inside.grads[key]))
        np.testing.assert_array_equal(own, backend.to_host(network.gradients[f"0.{key}"]))


@cases
def test_inference_of_a_layer_does_not_depend_on_the_other_rows(name, extra):
    """No statistic of the batch, no mask: each row by itself gives what it gives among others."""
    x = inputs(np.random.default_rng(4), 5, 4)
    network = gm.Sequential(make(name, extra, 4), in_features=4, dtype="float64", device="cpu")
    whole = network.forward(x, training=False)
    rows = [network.forward(x[i : i + 1], training=False)[0] for i in range(5)]
    np.testing.assert_allclose(whole, rows, rtol=1e-12, atol=1e-15)


@cases
def test_a_layer_is_made_again_from_its_description(name, extra):
    layer = make(name, extra, 4)
    again = layer_from_dict(layer.to_dict())
    assert type(again) is type(layer)
    assert again.to_dict() == layer.to_dict()
    assert repr(again) == repr(layer)


@cases
def test_float32_follows_float64(name, extra, training_step, assert_close):
    rng = np.random.default_rng(5)
    x, y = inputs(rng, 7, 4), rng.normal(size=(7, 2))
    results = []
    for dtype in ("float32", "float64"):
        layers = gm.Linear(4, 4), make(name, extra, 4), gm.Linear(extra.get("out_features", 4), 2)
        network = gm.Sequential(*layers, dtype=dtype, device="cpu", seed=1)
        results.append(training_step(network, "mse", x, y).gradients())
    for key, single in results[0].items():
        assert single.dtype == np.float32
        assert_close(single, results[1][key], 1e-4, floor=1e-2)


def test_every_activation_is_a_layer_too():
    assert {n for n in ACTIVATIONS if n != "linear"} <= set(LAYERS)
    assert LAYERS["linear"] is gm.Linear  # and not the activation of that name
