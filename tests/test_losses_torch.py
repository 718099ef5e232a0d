"""Losses against torch.nn.functional: recorded figures, and live where torch is installed."""

from typing import Any

import numpy as np
import pytest

import gpumlp as gm

OUT = np.array([[0.5, -1.25, 2.0], [-0.75, 0.1, 0.3], [3.0, -2.0, 0.6], [0.0, 1.5, -0.5]])
LABELS = np.array([2, 0, 1, 1])
SOFT = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
VALUES = np.array([[0.25, -1.0, 1.0], [0.5, 0.2, -0.4], [1.0, -2.5, 0.6], [-1.75, 1.0, -0.25]])
BINARY = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [1.0, 0.6, 0.0]])
WEIGHT = np.array([1.0, 0.5, 2.0, 0.25])
CLASS_WEIGHT = [0.5, 2.0, 1.5]

# Value and gradient in float64 from torch 2.13.0 (torch.nn.functional; see LIVE for the very calls).
TORCH: dict[str, tuple[float, Any]] = {
    "mse": (
        0.9010416666666666,
        [
            [0.041666666666666664, -0.041666666666666664, 0.16666666666666666],
            [-0.20833333333333331, -0.016666666666666666, 0.11666666666666665],
            [0.3333333333333333, 0.08333333333333333, 0.0],
            [0.29166666666666663, 0.08333333333333333, -0.041666666666666664],
        ],
    ),
    "mae": (
        0.7125,
        np.array([[1, -1, 1], [-1, -1, 1], [1, 1, 0], [1, 1, -1]]) / 12,
    ),
    "huber": (
        0.28906249999999994,
        [
            [0.020833333333333332, -0.020833333333333332, 0.049999999999999996],
            [-0.049999999999999996, -0.008333333333333333, 0.049999999999999996],
            [0.049999999999999996, 0.041666666666666664, 0.0],
            [0.049999999999999996, 0.041666666666666664, -0.020833333333333332],
        ],
    ),
    "binary cross-entropy on logits": (
        1.051683145254238,
        [
            [0.05187161093348788, -0.06477498843122427, -0.009933576835176474],
            [-0.05659822493128275, 0.043748265623245, 0.04787020973430492],
            [0.054381177235202784, -0.07339975649815687, 0.05380469218548295],
            [-0.041666666666666664, 0.018131206349470307, 0.03146172239984545],
        ],
    ),
    "cross-entropy of labels": (
        1.8640214410718015,
        [
            [0.044205045526861074, 0.007681685081609108, -0.05188673060847018],
            [-0.20965983865700144, 0.09438173149233316, 0.11527810716466827],
            [0.22779958623784366, -0.24846509846151582, 0.020665512223672192],
            [0.04106290690627195, -0.06596881892185155, 0.024905912015579575],
        ],
    ),
    "cross-entropy, label smoothing": (
        1.8483964410718015,
        [
            [0.03170504552686108, -0.004818314918390891, -0.02688673060847019],
            [-0.18465983865700145, 0.08188173149233316, 0.10277810716466827],
            [0.21529958623784365, -0.22346509846151583, 0.008165512223672193],
            [0.028562906906271952, -0.04096881892185156, 0.012405912015579576],
        ],
    ),
    "cross-entropy of soft targets, smoothed": (
        2.1830839410718017,
        [
            [0.010455045526861072, -0.04731831491839089, 0.03686326939152981],
            [-0.07840983865700143, 0.028756731492333154, 0.04965310716466827],
            [0.21529958623784365, -0.22346509846151583, 0.008165512223672193],
            [-0.03518709309372805, 0.10778118107814845, -0.07259408798442044],
        ],
    ),
    "cross-entropy, class weights": (
        2.009948409729158,
        [
            [0.044205045526861074, 0.007681685081609108, -0.05188673060847018],
            [-0.06988661288566714, 0.03146057716411105, 0.03842603572155609],
            [0.3037327816504582, -0.3312867979486877, 0.027554016298229587],
            [0.05475054254169593, -0.0879584252291354, 0.03320788268743943],
        ],
    ),
    "kl divergence": (
        1.525161616389682,
        [
            [0.019205045526861073, -0.042318314918390894, 0.023113269391529828],
            [-0.08465983865700144, 0.03188173149233316, 0.05277810716466827],
            [0.22779958623784366, -0.24846509846151582, 0.020665512223672192],
            [-0.03393709309372805, 0.10903118107814845, -0.07509408798442044],
        ],
    ),
    "softmax mse": (
        0.19519523370360106,
        [
            [-0.00014224260754850497, -0.0012849929391143826, 0.0014272355466628873],
            [-0.01155040215200914, 0.0023078584506510493, 0.009242543701358089],
            [0.012177378934757935, -0.0018673345255384463, -0.010310044409219506],
            [-0.011075188470032951, 0.020526103155399104, -0.009450914685366152],
        ],
    ),
    "mse, sample weights": (
        1.0222222222222224,
        [
            [0.044444444444444446, -0.044444444444444446, 0.17777777777777778],
            [-0.11111111111111112, -0.008888888888888889, 0.06222222222222222],
            [0.7111111111111111, 0.17777777777777778, 0.0],
            [0.07777777777777778, 0.022222222222222223, -0.011111111111111112],
        ],
    ),
}

# The loss, its target and sample weights for each of TORCH.
OURS: dict[str, tuple[gm.losses.Loss, np.ndarray, np.ndarray | None]] = {
    "mse": (gm.MSE(), VALUES, None),
    "mae": (gm.MAE(), VALUES, None),
    "huber": (gm.Huber(delta=0.6), VALUES, None),
    "binary cross-entropy on logits": (gm.BinaryCrossEntropy(), BINARY, None),
    "cross-entropy of labels": (gm.CrossEntropy(), LABELS, None),
    "cross-entropy, label smoothing": (gm.CrossEntropy(label_smoothing=0.15), LABELS, None),
    "cross-entropy of soft targets, smoothed": (gm.CrossEntropy(label_smoothing=0.15), SOFT, None),
    "cross-entropy, class weights": (gm.CrossEntropy(class_weight=CLASS_WEIGHT), LABELS, None),
    "kl divergence": (gm.KLDivergence(), SOFT, None),
    "softmax mse": (gm.SoftmaxMSE(), SOFT, None),
    "mse, sample weights": (gm.MSE(), VALUES, WEIGHT),
}


def live(name, F, out, tensor):
    """The same by torch."""
    return {
        "mse": lambda: F.mse_loss(out, tensor(VALUES)),
        "mae": lambda: F.l1_loss(out, tensor(VALUES)),
        "huber": lambda: F.huber_loss(out, tensor(VALUES), delta=0.6),
        "binary cross-entropy on logits": lambda: F.binary_cross_entropy_with_logits(out, tensor(BINARY)),
        "cross-entropy of labels": lambda: F.cross_entropy(out, tensor(LABELS)),
        "cross-entropy, label smoothing": lambda: F.cross_entropy(out, tensor(LABELS), label_smoothing=0.15),
        "cross-entropy of soft targets, smoothed": lambda: F.cross_entropy(
            out, tensor(SOFT), label_smoothing=0.15
        ),
        "cross-entropy, class weights": lambda: F.cross_entropy(
            out, tensor(LABELS), weight=tensor(CLASS_WEIGHT)
        ),
        "kl divergence": lambda: F.kl_div(F.log_softmax(out, 1), tensor(SOFT), reduction="batchmean"),
        "softmax mse": lambda: F.mse_loss(F.softmax(out, 1), tensor(SOFT)),
        "mse, sample weights": lambda: (
            (tensor(WEIGHT) * ((out - tensor(VALUES)) ** 2).mean(1)).sum() / tensor(WEIGHT).sum()
        ),
    }[name]()


def by_torch(name):
    torch = pytest.importorskip("torch")
    out = torch.tensor(OUT, requires_grad=True)
    value = live(name, torch.nn.functional, out, lambda v: torch.as_tensor(np.asarray(v)))
    (gradient,) = torch.autograd.grad(value, out)
    return value.item(), gradient.numpy()


def ours(name, loss_and_gradient, backend=None):
    loss, y, weight = OURS[name]
    weight = loss.row_weights(loss.prepare_target(y, 3, "float64"), 3, weight)
    return loss_and_gradient(loss, OUT, y, weight, backend=backend)


@pytest.mark.parametrize("name", TORCH)
def test_value_and_gradient_are_those_of_torch(name, loss_and_gradient, backend):
    value, gradient = ours(name, loss_and_gradient, backend)
    np.testing.assert_allclose(value, TORCH[name][0], rtol=1e-12)
    np.testing.assert_allclose(gradient, TORCH[name][1], rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient_are_those_of_the_torch_that_is_installed(name, loss_and_gradient):
    value, gradient = ours(name, loss_and_gradient)
    expected = by_torch(name)
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-11, atol=1e-15)
