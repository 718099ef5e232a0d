"""Losses: a table over all of `LOSSES` against central differences; formulas, targets, weights, errors."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, rel_entr, softmax

import gpumlp as gm
from gpumlp.losses import LOSSES, get_loss

OUT = np.array([[0.5, -1.25, 2.0], [-0.75, 0.1, 0.3], [3.0, -2.0, 0.6], [0.0, 1.5, -0.5]])
LABELS = np.array([2, 0, 1, 1])
ONE_HOT = np.eye(3)[LABELS]
SOFT = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
VALUES = np.array([[0.25, -1.0, 1.0], [0.5, 0.2, -0.4], [1.0, -2.5, 0.6], [-1.75, 1.0, -0.25]])
BINARY = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [1.0, 0.6, 0.0]])

# --- every loss by its gradient -------------------------------------------------------------------------------------

# Settings beside the defaults; those a loss does not take are left out.
EXTRA: list[dict[str, Any]] = [
    *({}, {"reduction": "sum"}, {"from_logits": False}, {"from_logits": False, "clip": 0.01}),
    *({"label_smoothing": 0.2}, {"delta": 0.4}),
]
CASES = [
    (name, extra)
    for name, cls in LOSSES.items()
    for extra in EXTRA
    if set(extra) <= set(inspect.signature(cls).parameters)
]
cases = pytest.mark.parametrize(("name", "extra"), CASES, ids=[f"{n}-{s}" if s else n for n, s in CASES])


def drawn(loss, rng, rows, columns):
    """Outputs and targets that suit a loss: logits or probabilities, labels, shares, or values."""
    output = rng.normal(0, 2, (rows, columns))
    if loss.output_activation == "identity":
        output = expit(output) if isinstance(loss, gm.BinaryCrossEntropy) else softmax(output, axis=1)
    if not loss.is_classification:
        return output, [rng.normal(0, 2, (rows, columns))]
    soft = softmax(rng.normal(size=(rows, columns)), axis=1)
    if isinstance(loss, gm.BinaryCrossEntropy):
        return output, [rng.integers(0, 2, (rows, columns)), rng.uniform(size=(rows, columns))]
    return output, [rng.integers(0, columns, rows), soft]


@cases
@settings(max_examples=12)
@given(
    rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 2**32 - 1), weighted=st.booleans()
)
def test_a_loss_has_the_gradient_of_its_value(
    name, extra, rows, columns, seed, weighted, loss_and_gradient, central_differences, assert_close
):
    loss, rng = LOSSES[name](**extra), np.random.default_rng(seed)
    over_classes = loss.is_classification and not isinstance(loss, gm.BinaryCrossEntropy)
    columns = max(columns, 2) if over_classes else columns
    output, targets = drawn(loss, rng, rows, columns)
    if loss.output_activation == "identity":  # away from the kink where the clip begins
        clip = getattr(loss, "clip", 0)
        near = (np.abs(output - clip) < 1e-4) | (np.abs(1 - output - clip) < 1e-4)
        output = np.where(near, output + 2e-4 * np.where(output < 0.5, 1, -1), output)
    weight = rng.uniform(0.1, 2, rows) if weighted else None
    for target in targets:
        _, gradient = loss_and_gradient(loss, output, target, weight)
        numeric = central_differences(
            lambda y=target: loss_and_gradient(loss, output, y, weight)[0], output, 1e-7
        )
        if loss.output_activation == "identity":
            # below the clip the value stands still and the gradient goes on, so that training can leave there
            clip = getattr(loss, "clip", 0)
            moving = (output > clip) & (1 - output > clip)
            gradient, numeric = gradient * moving, numeric * moving
        assert_close(gradient, numeric, 1e-5)


@cases
def test_float32_follows_float64(name, extra, loss_and_gradient, assert_close):
    loss, rng = LOSSES[name](**extra), np.random.default_rng(1)
    output, targets = drawn(loss, rng, 6, 4)
    for target in targets:
        single = loss_and_gradient(loss, output.astype("float32"), target)
        double = loss_and_gradient(loss, output.astype("float32").astype("float64"), target)
        np.testing.assert_allclose(single[0], double[0], rtol=1e-5)
        assert single[1].dtype == np.float32
        assert_close(single[1], double[1], 1e-5)


@cases
def test_the_mean_is_the_weighted_mean_over_the_rows_and_the_sum_their_sum(name, extra, loss_and_gradient):
    settings_ = {k: v for k, v in extra.items() if k != "reduction"}
    rng = np.random.default_rng(2)
    mean, total = (LOSSES[name](**settings_, reduction=r) for r in ("mean", "sum"))
    output, targets = drawn(mean, rng, 5, 3)
    weight = np.array([1.0, 0.0, 2.0, 0.5, 3.0])
    for target in targets:
        each = np.array([loss_and_gradient(total, output[i : i + 1], target[i : i + 1])[0] for i in range(5)])
        slopes = np.array(
            [loss_and_gradient(total, output[i : i + 1], target[i : i + 1])[1][0] for i in range(5)]
        )
        for w in (None, weight):
            share = np.ones(5) if w is None else w
            for loss, divisor in ((mean, share.sum()), (total, 1.0)):
                value, gradient = loss_and_gradient(loss, output, target, w)
                np.testing.assert_allclose(value, (each * share).sum() / divisor, rtol=1e-12)
                np.testing.assert_allclose(
                    gradient, slopes * share[:, None] / divisor, rtol=1e-11, atol=1e-14
                )


@cases
def test_a_batch_whose_rows_all_weigh_nothing_has_no_loss_and_no_gradient(name, extra, loss_and_gradient):
    loss = LOSSES[name](**extra)
    output, targets = drawn(loss, np.random.default_rng(3), 3, 4)
    value, gradient = loss_and_gradient(loss, output, targets[0], np.zeros(3))
    assert value == 0
    assert not gradient.any()


@cases
def test_a_loss_is_made_again_from_its_description(name, extra):
    loss = LOSSES[name](**extra)
    again = get_loss(loss.to_dict())
    assert type(again) is type(loss)
    assert again.to_dict() == loss.to_dict()
    assert repr(again) == repr(loss)


# --- formulas -------------------------------------------------------------------------------------------------------


def test_a_loss_of_regression_is_the_mean_over_rows_and_outputs(loss_and_gradient):
    e = OUT - VALUES
    np.testing.assert_allclose(loss_and_gradient(gm.MSE(), OUT, VALUES)[0], (e**2).mean(), rtol=1e-14)
    np.testing.assert_allclose(loss_and_gradient(gm.MAE(), OUT, VALUES)[0], np.abs(e).mean(), rtol=1e-14)
    quadratic = np.abs(e) <= 1
    huber = np.where(quadratic, e**2 / 2, np.abs(e) - 0.5)
    assert quadratic.any()
    assert not quadratic.all()
    np.testing.assert_allclose(loss_and_gradient(gm.Huber(), OUT, VALUES)[0], huber.mean(), rtol=1e-14)


def test_one_column_of_values_may_be_a_vector(loss_and_gradient):
    vector = loss_and_gradient(gm.MSE(), OUT[:, :1], VALUES[:, 0])
    matrix = loss_and_gradient(gm.MSE(), OUT[:, :1], VALUES[:, :1])
    assert vector[0] == matrix[0]
    assert vector[1].shape == (4, 1)


def test_labels_one_hot_rows_and_soft_targets_agree(loss_and_gradient):
    for loss in (gm.CrossEntropy(), gm.CrossEntropy(label_smoothing=0.1), gm.KLDivergence(), gm.SoftmaxMSE()):
        by_labels = loss_and_gradient(loss, OUT, LABELS)
        for target in (
            ONE_HOT,
            ONE_HOT.astype(int),
            LABELS[:, None],
            LABELS.astype("float64"),
            LABELS.astype("uint8"),
        ):
            value, gradient = loss_and_gradient(loss, OUT, target)
            np.testing.assert_allclose(value, by_labels[0], rtol=1e-14)
            np.testing.assert_allclose(gradient, by_labels[1], rtol=1e-12, atol=1e-16)


def test_label_smoothing_mixes_the_target_with_the_uniform_one(loss_and_gradient):
    smoothed = 0.8 * SOFT + 0.2 / 3
    found = loss_and_gradient(gm.CrossEntropy(label_smoothing=0.2), OUT, SOFT)
    expected = loss_and_gradient(gm.CrossEntropy(), OUT, smoothed)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-14)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)
    np.testing.assert_allclose(found[0], -(smoothed * log_softmax(OUT, axis=1)).sum() / 4, rtol=1e-14)


def test_kl_divergence_is_that_of_scipy_and_0_log_0_is_0(loss_and_gradient):
    assert (SOFT == 0).any()
    expected = rel_entr(SOFT, softmax(OUT, axis=1)).sum() / 4
    np.testing.assert_allclose(loss_and_gradient(gm.KLDivergence(), OUT, SOFT)[0], expected, rtol=1e-13)
    p = softmax(OUT, axis=1)
    found = loss_and_gradient(gm.KLDivergence(from_logits=False), p, SOFT)
    np.testing.assert_allclose(found[0], expected, rtol=1e-13)
    np.testing.assert_allclose(found[1], -SOFT / p / 4, rtol=1e-13)


def test_kl_divergence_of_one_hot_targets_is_the_cross_entropy(loss_and_gradient):
    kl, ce = (loss_and_gradient(loss, OUT, LABELS) for loss in (gm.KLDivergence(), gm.CrossEntropy()))
    np.testing.assert_allclose(kl[0], ce[0], rtol=1e-14)
    np.testing.assert_allclose(kl[1], ce[1], rtol=1e-14)


def test_kl_divergence_of_a_distribution_from_itself_is_0(loss_and_gradient):
    value, gradient = loss_and_gradient(gm.KLDivergence(), OUT, softmax(OUT, axis=1))
    assert abs(value) < 1e-15
    np.testing.assert_allclose(gradient, 0, atol=1e-16)


def test_kl_divergence_of_probabilities_that_are_0_where_the_target_is(loss_and_gradient, dtype):
    p = np.array([[0.0, 1.0, 0.0]], dtype)
    value, gradient = loss_and_gradient(gm.KLDivergence(from_logits=False), p, p)
    assert value == 0
    np.testing.assert_allclose(gradient, [[0, -1, 0]])


def test_binary_cross_entropy_of_logits_and_of_probabilities_agree(loss_and_gradient):
    logits = loss_and_gradient(gm.BinaryCrossEntropy(), OUT, BINARY)
    p = expit(OUT)
    probabilities = loss_and_gradient(gm.BinaryCrossEntropy(from_logits=False), p, BINARY)
    np.testing.assert_allclose(probabilities[0], logits[0], rtol=1e-12)
    np.testing.assert_allclose(probabilities[1] * p * (1 - p), logits[1], rtol=1e-10, atol=1e-16)


def test_softmax_mse_is_the_mse_of_softmax(loss_and_gradient):
    value, _ = loss_and_gradient(gm.SoftmaxMSE(), OUT, SOFT)
    np.testing.assert_allclose(value, ((softmax(OUT, axis=1) - SOFT) ** 2).mean(), rtol=1e-13)


# --- extremes -------------------------------------------------------------------------------------------------------

EXTREME = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]])


@pytest.mark.parametrize("name", [n for n, cls in LOSSES.items() if cls().is_classification])
def test_extreme_logits_give_finite_losses_and_gradients(name, loss_and_gradient, dtype):
    for target in ([0, 0, 2], np.eye(3), np.full((3, 3), 1 / 3)):
        if name == "binary_cross_entropy" and np.ndim(target) == 1:
            continue
        value, gradient = loss_and_gradient(LOSSES[name](), EXTREME.astype(dtype), target)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_extreme_logits_have_the_loss_of_their_distance(loss_and_gradient, dtype):
    """softmax([1e4, -1e4, 0]) is one-hot: -log p is 0 for the first class and 2e4 for the second."""
    for label, expected in ((0, 0.0), (1, 2e4), (2, 1e4)):
        value, _ = loss_and_gradient(gm.CrossEntropy(), EXTREME[:1].astype(dtype), [label])
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    value, _ = loss_and_gradient(gm.BinaryCrossEntropy(), EXTREME[:1].astype(dtype), [[0.0, 1.0, 1.0]])
    np.testing.assert_allclose(value, (1e4 + 1e4 + math.log(2)) / 3, rtol=1e-6)


def test_probabilities_of_0_and_1_give_finite_losses(loss_and_gradient, dtype):
    p = np.array([[0.0, 1.0, 0.0, 1.0]], dtype)
    value, gradient = loss_and_gradient(gm.BinaryCrossEntropy(from_logits=False), p, [[0.0, 1.0, 1.0, 0.0]])
    np.testing.assert_allclose(value, -2 * math.log(1e-7) / 4, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.25, -0.25, -0.25e7, 0.25e7]], rtol=1e-6)
    value, gradient = loss_and_gradient(gm.KLDivergence(from_logits=False), p, [[0.5, 0.5, 0.0, 0.0]])
    np.testing.assert_allclose(value, math.log(0.5) - 0.5 * math.log(1e-7), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.5e7, -0.5, 0, 0]], rtol=1e-6)


def test_the_clip_bounds_the_value_of_a_loss_on_logits_and_not_its_gradient(loss_and_gradient):
    for cls, target in ((gm.CrossEntropy, [1]), (gm.KLDivergence, [1]), (gm.CrossEntropy, [[0.0, 1.0, 0.0]])):
        value, gradient = loss_and_gradient(cls(clip=1e-5), EXTREME[:1], target)
        np.testing.assert_allclose(value, -math.log(1e-5), rtol=1e-12)
        np.testing.assert_allclose(gradient, [[1, -1, 0]], atol=1e-15)
    value, gradient = loss_and_gradient(gm.BinaryCrossEntropy(clip=1e-5), EXTREME[:1], [[0.0, 1.0, 0.5]])
    np.testing.assert_allclose(value, (-2 * math.log(1e-5) + math.log(2)) / 3, rtol=1e-12)
    np.testing.assert_allclose(gradient, [[1 / 3, -1 / 3, 0]], atol=1e-15)


def test_a_settable_clip_of_probabilities(loss_and_gradient):
    p = np.array([[0.001, 0.999]])
    value, _ = loss_and_gradient(gm.BinaryCrossEntropy(from_logits=False, clip=0.01), p, [[1.0, 0.0]])
    np.testing.assert_allclose(value, -math.log(0.01), rtol=1e-12)
    value, _ = loss_and_gradient(gm.KLDivergence(from_logits=False, clip=0.01), p, [0])
    np.testing.assert_allclose(value, -math.log(0.01), rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_nan_is_nan(name, loss_and_gradient):
    """`check_loss` stops the training there."""
    loss = LOSSES[name]()
    output, targets = drawn(loss, np.random.default_rng(4), 3, 4)
    output[1, 2] = np.nan
    for target in targets:
        value, gradient = loss_and_gradient(loss, output, target)
        assert np.isnan(value)
        assert np.isnan(gradient[1, 2])
