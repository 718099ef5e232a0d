"""Values from outside, checked, and what all converters share."""

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.interop import without_output_activation
from gpumlp.interop.values import as_array, checked_values, layers_with_values, need_library


@pytest.mark.parametrize(
    ("given", "kept"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_an_array_keeps_float64_and_shorter_floats_become_float32(given, kept):
    array = as_array(np.arange(3, dtype=given), "w")
    assert array.dtype == kept
    np.testing.assert_array_equal(array, [0, 1, 2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"^weight of 'fc' holds -?(nan|inf); expected finite values"):
        as_array(np.array([0.0, value]), "weight of 'fc'")


def test_a_value_beyond_the_type_is_refused():
    with pytest.raises(ValueError, match="holds inf; expected finite values in float32"):
        as_array(np.array([1e300]), "w", "float32")


@pytest.mark.parametrize("value", [np.arange(3), np.array([True]), np.array(["a"]), [object()]])
def test_what_is_not_floating_point_is_refused(value):
    with pytest.raises(ValueError, match="expected floating-point values"):
        as_array(value, "w")


def test_values_are_named_like_the_state_dict_of_the_network():
    network = gm.Sequential(gm.ReLU(), gm.Linear(3, 2), device="cpu")
    found = checked_values(
        network[1], {"weight": np.ones((2, 3)), "bias": np.zeros(2)}, "'fc'", "float32", transposed=True
    )
    assert {name: value.shape for name, value in found.items()} == {"1.weight": (3, 2), "1.bias": (2,)}
    assert {value.dtype.name for value in found.values()} == {"float32"}


def test_a_missing_bias_and_another_shape_are_told_with_both_sides():
    network = gm.Sequential(gm.Linear(3, 2), device="cpu")
    with pytest.raises(ValueError, match=r"^'fc' has weight; layer 0, Linear\(3, 2\), holds bias, weight$"):
        checked_values(network[0], {"weight": np.ones((3, 2))}, "'fc'", "float32")
    values = {"weight": np.ones((2, 3)), "bias": np.ones(2)}
    with pytest.raises(ValueError, match=r"^weight of 'fc' has shape \(2, 3\); .* takes \(3, 2\)$"):
        checked_values(network[0], values, "'fc'", "float32")


class Scale(gm.Layer):
    """A layer of one's own with values."""

    def build(self, in_features):
        self.add_parameter("scale", (in_features,), gm.initializers.Constant(1.0))
        return in_features

    def forward(self, x):
        return x * self.scale

    def backward(self, dy):
        return dy * self.scale


def test_a_layer_of_ones_own_with_values_is_refused_by_name():
    network = gm.Sequential(gm.Linear(3, 2), Scale(), device="cpu")
    with pytest.raises(ValueError, match=r"layer 1, Scale.*is a layer of your own"):
        layers_with_values(network)


def test_a_missing_library_is_told_with_the_way_to_install_it():
    with pytest.raises(ModuleNotFoundError, match=r"needs no_such_library.*pip install 'gpumlp\[interop\]'$"):
        need_library("no_such_library", "'gpumlp[interop]'")


@pytest.mark.parametrize("last", [gm.Softmax, gm.Sigmoid])
def test_a_network_without_its_output_activation_gives_the_logits(last, randomized, rows):
    network = randomized(gm.mlp([3, 4, 2], output_activation=last(), device="cpu"))
    network[0].freeze()
    before = network.predict(rows)
    logits = without_output_activation(network)
    assert [type(layer) for layer in logits.layers] == [type(layer) for layer in network.layers[:-1]]
    assert not logits[0].trainable
    again = gm.Sequential(last(), in_features=2, device="cpu").predict(logits.predict(rows))
    np.testing.assert_array_equal(again, before)
    logits[0].weight = np.zeros((3, 4))
    np.testing.assert_array_equal(network.predict(rows), before)


def test_a_network_that_ends_otherwise_is_copied_as_it_is(randomized, rows):
    network = randomized(gm.mlp([3, 4, 2], device="cpu"))
    np.testing.assert_array_equal(without_output_activation(network).predict(rows), network.predict(rows))
    with pytest.raises(ValueError, match="without it nothing is left"):
        without_output_activation(gm.Sequential(gm.Softmax(), in_features=2, device="cpu"))
    with pytest.raises(TypeError, match=r"expected a gm\.Sequential"):
        without_output_activation(gm.Linear(2, 3))  # type: ignore[arg-type]
