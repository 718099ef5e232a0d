"""What each layer computes, and what it refuses. The figures of activations are with their kernels."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.special

import gpumlp as gm
from gpumlp.layers import ACTIVATIONS, LAYERS, get_activation, layer_from_dict

X = np.array([[-2.0, -0.5, 0.0, 0.5, 3.0], [1.0, -1.0, 2.0, -3.0, 0.25]])

# f(x) by NumPy and SciPy, for every name of ACTIVATIONS with its default settings.
FORMULAS = {
    "identity": lambda x: x,
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "silu": lambda x: x * scipy.special.expit(x),
    "swish": lambda x: x * scipy.special.expit(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sigmoid": scipy.special.expit,
    "tanh": np.tanh,
    "softmax": lambda x: scipy.special.softmax(x, axis=1),
}


def test_every_activation_has_a_formula_here():
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("training", [True, False])
def test_an_activation_computes_its_formula(name, training, backend, dtype):
    network = gm.Sequential(get_activation(name), in_features=5, dtype=dtype, device=backend)
    y = backend.to_host(network.forward(backend.asarray(X), training=training))
    np.testing.assert_allclose(y, FORMULAS[name](X), rtol=1e-12 if dtype == "float64" else 1e-5, atol=1e-7)
    assert y.dtype == dtype


@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (gm.LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
        (gm.ELU(0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
        (gm.Softplus(4.0), lambda x: np.log1p(np.exp(4 * x)) / 4),
        (gm.GELU("tanh"), lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))),
    ],
)
def test_settings_of_an_activation_count(layer, formula):
    np.testing.assert_allclose(layer.forward(X), formula(X), rtol=1e-12)


def test_linear_is_x_weight_plus_bias_and_weight_is_in_by_out(backend):
    """By hand: [1, 2] times [[1, 2, 3], [4, 5, 6]] = [9, 12, 15], plus the bias."""
    layer = gm.Linear(2, 3)
    layer.weight = [[1, 2, 3], [4, 5, 6]]
    layer.bias = [0.5, 0, -0.5]
    network = gm.Sequential(layer, device=backend)
    y = network.forward(backend.asarray(np.array([[1.0, 2.0]])))
    np.testing.assert_array_equal(backend.to_host(y), [[9.5, 12, 14.5]])
    assert layer.weight.shape == (2, 3)
    dx = network.backward(backend.asarray(np.array([[1.0, 0.0, -1.0]])))
    np.testing.assert_array_equal(backend.to_host(dx), [[-2, -2]])  # dy weight'
    np.testing.assert_array_equal(backend.to_host(layer.grads["weight"]), [[1, 0, -1], [2, 0, -2]])  # x' dy
    np.testing.assert_array_equal(backend.to_host(layer.grads["bias"]), [1, 0, -1])


def test_linear_without_a_bias():
    layer = gm.Linear(2, 3, bias=False, weight_init="ones")
    np.testing.assert_array_equal(layer.forward(np.array([[1.0, 2.0]])), [[3, 3, 3]])
    assert list(layer.parameter_specs) == ["weight"]
    with pytest.raises(AttributeError, match="Linear has no attribute 'bias'"):
        _ = layer.bias


def test_weights_decay_and_biases_do_not():
    network = gm.Sequential(gm.Linear(2, 3), gm.BatchNorm1d(3), gm.LayerNorm(3))
    flags = {s.name: s.decays for s in network.segments()}
    assert flags == {
        "0.weight": True,
        "0.bias": False,
        "1.weight": False,
        "1.bias": False,
        "2.weight": False,
        "2.bias": False,
    }


def test_initializers_of_a_linear_layer_are_those_asked_for():
    layer = gm.Linear(200, 100, weight_init={"name": "normal", "mean": 1.0, "std": 0.5}, bias_init=3.0)
    assert abs(layer.weight.mean() - 1) < 0.02
    assert abs(layer.weight.std() - 0.5) < 0.02
    np.testing.assert_array_equal(layer.bias, 3)


def test_per_unit_applies_each_units_own_activation(backend):
    units: list[Any] = [
        "tanh",
        "tanh",
        gm.LeakyReLU(0.1),
        "relu",
        {"name": "leaky_relu", "negative_slope": 0.3},
    ]
    layer = gm.PerUnit(units)
    network = gm.Sequential(layer, dtype="float64", device=backend)
    y = backend.to_host(network.forward(backend.asarray(X)))
    expected = [
        *(np.tanh(X[:, 0]), np.tanh(X[:, 1]), np.where(X[:, 2] > 0, X[:, 2], 0.1 * X[:, 2])),
        *(np.maximum(X[:, 3], 0), np.where(X[:, 4] > 0, X[:, 4], 0.3 * X[:, 4])),
    ]
    np.testing.assert_allclose(y, np.transpose(expected), rtol=1e-14)
    assert network.in_features == network.out_features == 5
    assert "2 Tanh()" in repr(layer)


def test_per_unit_makes_one_call_of_a_run_of_equal_units():
    from gpumlp.program import Builder

    def n_calls(units):
        network = gm.Sequential(gm.PerUnit(units))
        b = Builder(3, "float32", training=True)
        network.emit_forward(b, b.buffer("x", 3, len(units)))
        return len(b.finish().calls)

    assert n_calls(["relu"] * 6) == 1
    assert n_calls(["relu", "relu", "tanh", "relu"]) == 3
    assert n_calls([gm.ELU(0.5), gm.ELU(0.5), gm.ELU(0.6)]) == 2  # settings count


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gm.Linear(0, 3), "in_features is 0; expected a whole number of at least 1"),
        (
            lambda: gm.Linear(3, 2.5),  # type: ignore[arg-type]
            "out_features is 2.5",
        ),
        (lambda: gm.Linear(True, 2), "in_features is True"),
        (
            lambda: gm.Linear(2, "3"),  # type: ignore[arg-type]
            "out_features is '3'",
        ),
        (lambda: gm.Linear(2, 3, weight_init="glorot"), "unknown initializer 'glorot'"),
        (lambda: gm.GELU("erf"), 'approximate of GELU is \'erf\'; expected "none" or "tanh"'),
        (lambda: gm.Softplus(0), "beta of Softplus is 0; expected a number greater than 0"),
        (lambda: gm.Softplus(float("nan")), "beta of Softplus is nan"),
        (lambda: gm.Dropout(1.0), "dropout rate is 1.0; expected a number of at least 0 and less than 1"),
        (lambda: gm.Dropout(-0.1), "dropout rate is -0.1"),
        (lambda: gm.Dropout(float("nan")), "dropout rate is nan"),
        (lambda: gm.GaussianNoise(-1), "std of the noise is -1"),
        (lambda: gm.LeakyReLU(float("nan")), "negative_slope of LeakyReLU is nan; expected a finite number"),
        (lambda: gm.ELU(float("inf")), "alpha of ELU is inf; expected a finite number"),
        (lambda: gm.GaussianNoise(float("inf")), "std of the noise is inf"),
        (lambda: gm.LayerNorm(0), "the number of features is 0"),
        (lambda: gm.LayerNorm(3, eps=-1), "eps of LayerNorm is -1"),
        (
            lambda: gm.BatchNorm1d(3, momentum=1.5),
            "momentum of BatchNorm1d is 1.5; expected a number from 0 to 1",
        ),
        (lambda: gm.BatchNorm1d(3, eps=float("nan")), "eps of BatchNorm1d is nan"),
        (lambda: gm.PerUnit([]), "PerUnit got no units"),
        (lambda: gm.PerUnit(["relu", "softmax"]), "PerUnit got softmax, which needs a whole row"),
        (lambda: gm.PerUnit(["relu", "tahn"]), "unknown activation 'tahn'; did you mean 'tanh'?"),
        (lambda: get_activation("rely"), "unknown activation 'rely'; did you mean 'relu'?"),
        (
            lambda: get_activation({"name": "elu", "alfa": 1}),
            "unknown setting 'alfa' of activation 'elu'; did",
        ),
        (lambda: layer_from_dict("conv2d"), "unknown layer 'conv2d'; expected one of"),
        (lambda: layer_from_dict({"name": "linear", "in_features": 2}), "layer 'linear' needs the setting"),
        (lambda: layer_from_dict({"rate": 0.5}), "a layer given as a table needs a name"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [gm.LeakyReLU, gm.ELU, gm.Softplus, gm.Dropout, gm.GaussianNoise, partial(gm.LayerNorm, 3)],
)
@pytest.mark.parametrize("value", ["0.5", None, [0.5], True])
def test_a_setting_that_is_no_number_is_a_type_error_of_one_line(make, value):
    with pytest.raises(TypeError, match=r"^[\w ]+ is .*; expected a [\w ]+$"):
        make(value)


def test_what_is_no_layer_is_a_type_error():
    with pytest.raises(TypeError, match="layer is a int; expected a Layer, or one of the names"):
        layer_from_dict(3)  # type: ignore[arg-type]


def test_a_class_stands_for_its_defaults():
    assert isinstance(get_activation(gm.ReLU), gm.ReLU)  # type: ignore[arg-type]


def test_names_of_layers_forgive_case_and_hyphens():
    assert isinstance(layer_from_dict("Leaky-ReLU"), gm.LeakyReLU)
    assert isinstance(layer_from_dict({"name": "Layer Norm", "normalized_features": 3}), gm.LayerNorm)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_layer_says_in_one_line_what_it_is(name):
    doc = LAYERS[name].__doc__
    assert doc
    assert doc.strip().split("\n")[0].rstrip().endswith((".", ":"))


def test_repr_shows_what_was_set():
    layers = [
        gm.Linear(2, 3, bias=False),
        gm.ReLU(),
        gm.ELU(0.5),
        gm.Dropout(0.2),
        gm.BatchNorm1d(3, momentum=0.2),
    ]
    shown = ["Linear(2, 3, bias=False)", "ReLU()", "ELU(alpha=0.5)", "Dropout(rate=0.2)"]
    assert [repr(layer) for layer in layers] == [*shown, "BatchNorm1d(3, momentum=0.2)"]


# --- a layer by itself ---------------------------------------------------------------------------------------------


def test_a_layer_alone_knows_its_weights_at_once():
    layer = gm.Linear(3, 2)
    assert layer.weight.shape == (3, 2)
    layer.weight = np.ones((3, 2))
    np.testing.assert_array_equal(layer.forward(np.ones((1, 3))), [[3, 3]])


def test_assigning_copies_into_the_arena_and_checks_the_shape():
    network = gm.Sequential(gm.Linear(3, 2), gm.BatchNorm1d(2), dtype="float64", device="cpu")
    layer, view = network[0], network[0].weight
    values = np.arange(6.0).reshape(3, 2)
    layer.weight = values
    assert layer.weight is view
    assert layer.weight is not values
    np.testing.assert_array_equal(network.parameters["0.weight"], values)
    values[...] = -1
    assert layer.weight[0, 1] == 1
    network[1].running_mean = [4, 5]
    np.testing.assert_array_equal(network.state["1.running_mean"], [4, 5])
    with pytest.raises(ValueError, match=r"weight of Linear\(3, 2\) has shape \(3, 2\); got \(2, 3\)"):
        layer.weight = np.ones((2, 3))
    layer.bias[...] = 7  # the view itself can be written too
    np.testing.assert_array_equal(network.state_dict()["0.bias"], [7, 7])


def test_what_a_layer_learnt_alone_goes_with_it_into_a_network():
    layer = gm.Linear(2, 2)
    layer.weight = [[1, 2], [3, 4]]
    network = gm.Sequential(layer, gm.ReLU(), seed=5, device="cpu")
    np.testing.assert_array_equal(network[0].weight, [[1, 2], [3, 4]])


def test_a_layer_alone_computes_in_the_type_of_its_input():
    assert gm.Tanh().forward(np.ones((2, 2))).dtype == np.float64
    assert gm.Tanh().forward(np.ones((2, 2), "float32")).dtype == np.float32
    assert gm.Tanh().forward([[1, 2], [3, 4]]).shape == (2, 2)


def test_a_layer_alone_goes_over_to_float64_with_what_it_learnt_and_never_back():
    layer = gm.Linear(2, 1)
    layer.weight = [[0.5], [0.25]]
    assert layer.weight.dtype == np.float32
    x = np.array([[1 / 3, 1e-9]])
    np.testing.assert_allclose(layer.forward(x), [[0.5 / 3 + 0.25e-9]], rtol=1e-15)
    assert layer.weight.dtype == np.float64
    layer.weight = [[1 / 3], [0]]
    layer.forward(x.astype("float32"))
    assert layer.weight[0, 0] == 1 / 3


def test_an_activation_alone_takes_inputs_of_changing_widths():
    layer = gm.ReLU()
    for width in (3, 5, 3):
        assert layer.forward(np.ones((2, width))).shape == (2, width)
        assert layer.backward(np.ones((2, width))).shape == (2, width)


def test_a_layer_alone_refuses_another_width():
    with pytest.raises(ValueError, match=r"x has shape \(1, 4\); expected \(rows, 3\)"):
        gm.Linear(3, 2).forward(np.ones((1, 4)))


def test_backward_before_forward_says_what_to_do():
    layer = gm.Linear(3, 2)
    with pytest.raises(ValueError, match="backward needs a forward pass before it"):
        layer.backward(np.ones((1, 2)))
    with pytest.raises(ValueError, match="does not know its input width yet"):
        gm.ReLU().backward(np.ones((1, 2)))


def test_a_gradient_of_another_shape_is_refused():
    layer = gm.Linear(3, 2)
    layer.forward(np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"dy has shape \(4, 3\); expected that of the output, \(4, 2\)"):
        layer.backward(np.ones((4, 3)))


def test_reset_of_a_layer_alone_draws_by_its_seed():
    one, other = gm.Linear(4, 3), gm.Linear(4, 3)
    one.reset(3)
    other.reset(4)
    assert (one.weight != other.weight).any()
    other.reset(3)
    np.testing.assert_array_equal(one.weight, other.weight)
