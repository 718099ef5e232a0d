import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumlp as gm

RNG = np.random.default_rng(0)
X = RNG.normal([1, -2, 30], [0.5, 3, 10], (40, 3))


def trained(network, training_step, steps=1, rows=X, **settings):
    step = training_step(network, "mse", rows, np.zeros((len(rows), network.out_features)), **settings)
    assert step.run(steps) == steps
    return network


def test_batch_norm_gives_each_feature_mean_0_and_variance_1_over_the_batch():
    y = gm.BatchNorm1d(3, eps=0.0).forward(X)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=0), 1, rtol=1e-12)


def test_layer_norm_gives_each_row_mean_0_and_variance_1():
    y = gm.LayerNorm(3, eps=0.0).forward(X)
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("make", [gm.BatchNorm1d, gm.LayerNorm])
def test_scale_and_shift_come_after(make):
    layer, plain = make(3), make(3, affine=False)
    layer.weight, layer.bias = [2, -1, 0.5], [0.125, 0.25, 0.375]
    expected = plain.forward(X) * [2, -1, 0.5] + [0.125, 0.25, 0.375]
    np.testing.assert_allclose(layer.forward(X), expected, rtol=1e-12)
    assert not plain.parameter_specs


@settings(max_examples=20)
@given(steps=st.integers(1, 4), rows=st.integers(1, 8), momentum=st.sampled_from([0.0, 0.1, 0.7, 1.0]))
def test_running_statistics_follow_the_formula_of_torch(steps, rows, momentum, training_step):
    """running += momentum (batch - running), the variance unbiased; the batches go round in order."""
    network = gm.Sequential(gm.BatchNorm1d(3, momentum=momentum), dtype="float64", device="cpu")
    trained(network, training_step, steps, X[: 2 * rows], batch_rows=rows)
    mean, var = np.zeros(3), np.ones(3)
    for i in range(steps):
        batch = X[: 2 * rows][rows * (i % 2) : rows * (i % 2) + rows]
        unbiased = batch.var(axis=0) * rows / max(rows - 1, 1)
        mean += momentum * (batch.mean(axis=0) - mean)
        var += momentum * (unbiased - var)
    np.testing.assert_allclose(network[0].running_mean, mean, rtol=1e-10)
    np.testing.assert_allclose(network[0].running_var, var, rtol=1e-10)


def test_inference_uses_the_running_statistics_and_leaves_them_alone(training_step):
    network = gm.Sequential(gm.BatchNorm1d(3, eps=1e-3), dtype="float64", device="cpu")
    trained(network, training_step, 3)
    mean, var = np.array(network[0].running_mean), np.array(network[0].running_var)
    y = network.predict(X[:5])
    np.testing.assert_allclose(y, (X[:5] - mean) / np.sqrt(var + 1e-3), rtol=1e-12)
    np.testing.assert_array_equal(network[0].running_mean, mean)


def test_a_forward_pass_by_hand_leaves_the_running_statistics_alone():
    network = gm.Sequential(gm.BatchNorm1d(3), dtype="float64", device="cpu")
    network.backward(np.ones_like(network.forward(X)))
    np.testing.assert_array_equal(network[0].running_mean, 0)
    np.testing.assert_array_equal(network[0].running_var, 1)


def test_a_frozen_batch_norm_uses_its_running_statistics_in_training_too(training_step):
    layer = gm.BatchNorm1d(3, eps=0.0).freeze()
    network = gm.Sequential(layer, gm.Linear(3, 1), dtype="float64", device="cpu")
    layer.running_mean, layer.running_var = [1, 2, 3], [4, 9, 16]
    np.testing.assert_allclose(network.forward(X, layers=[layer]), (X - [1, 2, 3]) / [2, 3, 4], rtol=1e-12)
    trained(network, training_step, 3)
    np.testing.assert_array_equal(layer.running_mean, [1, 2, 3])
    np.testing.assert_array_equal(layer.running_var, [4, 9, 16])
    layer.unfreeze()
    trained(network, training_step, 1)
    assert (layer.running_mean != [1, 2, 3]).all()


def test_a_batch_of_one_row_gives_the_shift_and_no_nan():
    layer = gm.BatchNorm1d(3)
    layer.bias = [1, 2, 3]
    np.testing.assert_array_equal(layer.forward(X[:1]), [[1, 2, 3]])
    np.testing.assert_array_equal(layer.backward(np.ones((1, 3))), 0)


def test_a_row_of_one_feature_gives_the_shift_and_no_nan():
    layer = gm.LayerNorm(1)
    layer.bias = [7]
    np.testing.assert_array_equal(layer.forward(X[:, :1]), 7)
    np.testing.assert_array_equal(layer.backward(np.ones((40, 1))), 0)


def test_running_statistics_are_saved_with_the_network_and_not_learnt():
    network = gm.Sequential(gm.BatchNorm1d(3), device="cpu")
    assert set(network.state_dict()) == {"0.weight", "0.bias", "0.running_mean", "0.running_var"}
    assert set(network.parameters) == {"0.weight", "0.bias"}
    assert network.n_parameters() == 6
    network[0].running_mean = [1, 2, 3]
    network.reset(0)
    np.testing.assert_array_equal(network[0].running_mean, 0)


def test_widths_stand_under_torchs_names():
    assert gm.BatchNorm1d(3).num_features == 3
    assert gm.LayerNorm(4).normalized_features == 4
