import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp.kernels import STEP
from gpumlp.kernels.philox import DROPOUT, NOISE, random_normals, random_words


def network_of(*layers, in_features=6, seed=3, **settings):
    return gm.Sequential(
        *layers, in_features=in_features, dtype="float64", seed=seed, device="cpu", **settings
    )


def test_dropout_keeps_or_drops_and_backward_takes_the_same_mask():
    layer = gm.Dropout(0.4)
    mask = layer.forward(np.ones((50, 6)))
    assert set(np.unique(mask)) == {0.0, 1 / 0.6}
    dy = np.random.default_rng(0).normal(size=(50, 6))
    np.testing.assert_allclose(layer.backward(dy), dy * mask, rtol=1e-15)


def test_dropout_draws_another_mask_at_each_pass():
    layer = gm.Dropout(0.5)
    first = layer.forward(np.ones((50, 6)))
    assert (first != layer.forward(np.ones((50, 6)))).any()


def test_noise_adds_normals_of_its_deviation_and_passes_the_gradient_on():
    layer, x = gm.GaussianNoise(0.5), np.random.default_rng(0).normal(size=(400, 6))
    noise = layer.forward(x) - x
    assert abs(noise.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(noise.size)
    dy = np.random.default_rng(1).normal(size=(400, 6))
    np.testing.assert_array_equal(layer.backward(dy), dy)


@pytest.mark.parametrize("layer", [gm.Dropout(0.5), gm.GaussianNoise(0.5)])
def test_inference_adds_no_noise(layer):
    x = np.random.default_rng(0).normal(size=(5, 6))
    network = network_of(layer)
    np.testing.assert_array_equal(network.forward(x, training=False), x)
    np.testing.assert_array_equal(network.predict(x), x)
    assert (network.forward(x) != x).any()


@pytest.mark.parametrize("layer", [gm.Dropout(0.0), gm.GaussianNoise(0.0)])
def test_noise_of_nothing_changes_nothing(layer):
    x = np.random.default_rng(0).normal(size=(5, 6))
    np.testing.assert_array_equal(layer.forward(x), x)
    np.testing.assert_array_equal(layer.backward(x), x)


def test_two_layers_of_noise_in_a_network_draw_different_masks():
    network = network_of(gm.Dropout(0.5), gm.Identity(), gm.Dropout(0.5))
    y = network.forward(np.ones((200, 6)))
    assert set(np.unique(y)) == {0.0, 4.0}
    assert abs((y > 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / y.size)  # one mask twice would keep half


@settings(max_examples=10)
@given(rows=st.integers(1, 9), rate=st.sampled_from([0.25, 0.5]), step=st.integers(0, 2**31 - 1))
def test_the_mask_of_a_step_is_that_of_seed_layer_step_and_row(rows, rate, step, training_step):
    """With ones through the identity and a target of 0, a column's loss counts the rows that keep it."""
    network = network_of(gm.Identity(), gm.Dropout(rate), gm.Linear(6, 6, bias=False))
    network[2].weight = np.eye(6)
    run = training_step(network, gm.MSE(reduction="sum"), np.ones((rows, 6)), np.zeros((rows, 6)))
    run.control[STEP] = step
    kept = random_words(np, rows, 6, DROPOUT, 3, step, 1) >= rate * 2**32
    np.testing.assert_allclose(run.loss(), kept.sum() / (1 - rate) ** 2 / 6, rtol=1e-12)
    # weight' of the identity: the gradient of its entry (j, j) is 2 / 6 times that count, column by column
    diagonal = np.diag(network.gradients["2.weight"])
    np.testing.assert_allclose(diagonal, 2 / 6 * kept.sum(axis=0) / (1 - rate) ** 2, rtol=1e-12)


def test_noise_of_a_step_is_that_of_its_counters(training_step):
    network = network_of(gm.Identity(), gm.GaussianNoise(0.3), gm.Linear(6, 1), seed=8)
    network[2].weight = np.eye(6)[:, :1]
    step = training_step(network, gm.MSE(reduction="sum"), np.zeros((4, 6)), np.zeros((4, 1)))
    step.control[STEP] = 12
    expected = 0.3 * random_normals(np, 4, 6, NOISE, 8, 12, 1)[:, 0]
    np.testing.assert_allclose(step.loss(), (expected**2).sum(), rtol=1e-12)
