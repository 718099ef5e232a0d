"""Losses: class weights, the targets they take, and the settings they refuse."""

from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.losses import get_loss

LABELS = np.array([2, 0, 1, 1])
ONE_HOT = np.eye(3)[LABELS]
SOFT = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
VALUES = np.array([[0.25, -1.0, 1.0], [0.5, 0.2, -0.4], [1.0, -2.5, 0.6], [-1.75, 1.0, -0.25]])
BINARY = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [1.0, 0.6, 0.0]])
WEIGHT = np.array([1.0, 0.5, 2.0, 0.25])
CLASS_WEIGHT = [0.5, 2.0, 1.5]


# --- class weights ---------------------------------------------------------------------------------------------------


def weights_of(loss, y, outputs=3, **settings_):
    return loss.row_weights(loss.prepare_target(np.asarray(y), outputs, "float64"), outputs, **settings_)


@pytest.mark.parametrize("class_weight", [CLASS_WEIGHT, tuple(CLASS_WEIGHT), dict(enumerate(CLASS_WEIGHT))])
@pytest.mark.parametrize("cls", [gm.CrossEntropy, gm.KLDivergence, gm.SoftmaxMSE])
def test_class_weights_weigh_the_rows_of_a_class(cls, class_weight):
    loss = cls(class_weight=class_weight)
    for y in (LABELS, ONE_HOT):
        np.testing.assert_allclose(weights_of(loss, y), [1.5, 0.5, 2, 2])
    np.testing.assert_allclose(weights_of(loss, LABELS, sample_weight=WEIGHT), [1.5, 0.25, 4, 0.5])
    np.testing.assert_allclose(weights_of(loss, SOFT), SOFT @ CLASS_WEIGHT)


def test_class_weights_by_the_names_of_the_classes():
    loss = gm.CrossEntropy(class_weight={"cat": 2, "dog": 0.5, "eel": 1})
    np.testing.assert_allclose(weights_of(loss, LABELS, classes=["cat", "dog", "eel"]), [1, 2, 0.5, 0.5])


def test_balanced_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_sample_weight

    y = np.array([0, 0, 0, 1, 2, 2])
    loss = gm.CrossEntropy(class_weight="balanced")
    expected = compute_sample_weight("balanced", y)
    np.testing.assert_allclose(weights_of(loss, y), expected)
    np.testing.assert_allclose(weights_of(loss, np.eye(3)[y]), expected)
    binary = gm.BinaryCrossEntropy(class_weight="balanced")
    y = np.array([0, 1, 1, 1])
    np.testing.assert_allclose(weights_of(binary, y, 1), compute_sample_weight("balanced", y))


def test_class_weights_of_a_single_logit():
    loss = gm.BinaryCrossEntropy(class_weight={0: 1.0, 1: 3.0})
    np.testing.assert_allclose(weights_of(loss, [0, 1, 1], 1), [1, 3, 3])
    np.testing.assert_allclose(weights_of(loss, [0.25, 1, 0], 1), [1.5, 3, 1])


def test_without_weights_there_are_none():
    assert weights_of(gm.CrossEntropy(), LABELS) is None
    assert weights_of(gm.MSE(), VALUES) is None
    np.testing.assert_array_equal(weights_of(gm.MSE(), VALUES, sample_weight=WEIGHT), WEIGHT)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ([1.0, 2.0], r"class_weight is \[1.0, 2.0\]; expected 3 finite weights of at least 0"),
        ([1.0, -2.0, 1.0], "expected 3 finite weights of at least 0"),
        ([1.0, float("nan"), 1.0], "expected 3 finite weights"),
        (
            {0: 1.0, 1: 2.0},
            r"class_weight has the classes \['0', '1'\]; expected one for each of \[0, 1, 2\]",
        ),
        ({0: 1.0, 1: 2.0, 2: 1, 3: 1}, "class_weight has the classes"),
        ("even", "class_weight is 'even'; expected \"balanced\", a mapping or a list"),
    ],
)
def test_class_weights_that_do_not_fit_are_refused(class_weight, message):
    with pytest.raises(ValueError, match=message):
        weights_of(gm.CrossEntropy(class_weight=class_weight), LABELS)


def test_class_weights_need_classes():
    with pytest.raises(ValueError, match="MSE is a loss of regression and takes no class_weight"):
        gm.MSE(class_weight=[1, 2])
    with pytest.raises(ValueError, match="class_weight of binary_cross_entropy needs one output"):
        weights_of(gm.BinaryCrossEntropy(class_weight=[1, 2]), BINARY)


# --- targets and settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "y", "outputs", "message"),
    [
        (
            "mse",
            np.ones((4, 2)),
            3,
            r"y has shape \(4, 2\); expected \(rows, 3\), one column for each output",
        ),
        ("mse", np.ones(4), 3, r"y has shape \(4, 1\)"),
        ("huber", np.ones((2, 2, 2)), 2, r"y has shape \(2, 2, 2\)"),
        ("cross_entropy", [0, 3], 3, "y has the label 3; expected 0 ... 2 for a network with 3 outputs"),
        ("cross_entropy", [0, -1], 3, "y has the label -1"),
        ("kl_div", [0, 7], 3, "y has the label 7"),
        ("cross_entropy", [0.5, 1.0], 3, "expected whole labels 0 ... 2"),
        ("cross_entropy", [float("nan"), 1.0], 3, "expected whole labels"),
        ("cross_entropy", ["a", "b"], 3, "expected whole labels"),
        ("cross_entropy", np.ones((4, 2)), 3, r"y has shape \(4, 2\)"),
        ("cross_entropy", [[0.5, 1.5, 0.0]], 3, "y has the value 1.5; expected a row of probabilities"),
        ("softmax_mse", [[-0.5, 0.5, 1.0]], 3, "y has the value -0.5"),
        (
            "cross_entropy",
            [0, 1],
            1,
            "the network has 1 output; a loss over classes needs one for each class",
        ),
        ("binary_cross_entropy", [0, 2], 1, "y has the value 2; expected labels 0 and 1"),
        ("binary_cross_entropy", [-1, 1], 1, "y has the value -1; expected labels 0 and 1"),
        ("binary_cross_entropy", np.ones((3, 2)), 3, r"y has shape \(3, 2\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused(loss, y, outputs, message):
    with pytest.raises(ValueError, match=message) as error:
        get_loss(loss).prepare_target(np.asarray(y), outputs, "float64")
    assert "\n" not in str(error.value)


def test_prepared_targets_have_the_types_that_kernels_take():
    labels = gm.CrossEntropy().prepare_target(np.array([0, 2], "uint8"), 3, "float32")
    assert labels.dtype == np.int64
    assert labels.shape == (2,)
    for loss, y in ((gm.KLDivergence(), [0, 2]), (gm.CrossEntropy(), SOFT), (gm.MSE(), VALUES)):
        target = loss.prepare_target(np.asarray(y), 3, "float32")
        assert target.dtype == np.float32
        assert target.shape[1] == 3
        assert target.flags.c_contiguous
    given_y = VALUES.astype("float32")
    assert gm.MSE().prepare_target(given_y, 3, "float32") is given_y  # no copy of what fits


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gm.MSE(reduction="none"), 'reduction is \'none\'; expected "mean" or "sum"'),
        (lambda: gm.Huber(delta=0), "delta of huber is 0; expected a finite number greater than 0"),
        (lambda: gm.Huber(delta=float("inf")), "delta of huber is inf"),
        (
            lambda: gm.CrossEntropy(label_smoothing=1.0),
            "label_smoothing is 1.0; expected a number of at least 0",
        ),
        (lambda: gm.CrossEntropy(label_smoothing=-0.1), "label_smoothing is -0.1"),
        (
            lambda: gm.CrossEntropy(clip=0.5),
            "clip of cross_entropy is 0.5; expected a number of at least 0 and less",
        ),
        (lambda: gm.CrossEntropy(clip=float("nan")), "clip of cross_entropy is nan"),
        (
            lambda: gm.BinaryCrossEntropy(from_logits=False, clip=0),
            "clip of binary_cross_entropy is 0; expected",
        ),
        (lambda: gm.KLDivergence(clip=-1e-3), "clip of kl_div is -0.001"),
        (lambda: get_loss("cross_entrpy"), "unknown loss 'cross_entrpy'; did you mean 'cross_entropy'?"),
        (
            lambda: get_loss({"name": "huber", "detla": 2}),
            "unknown setting 'detla' of loss 'huber'; did you mean 'delta'",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


def test_what_a_loss_predicts():
    """Regression, classes by softmax or sigmoid, or probabilities already."""
    assert not gm.MSE().is_classification
    assert gm.CrossEntropy().n_classes(4) == 4
    assert gm.BinaryCrossEntropy().n_classes(1) == 2
    assert gm.BinaryCrossEntropy().n_classes(5) == 5
    assert gm.BinaryCrossEntropy(from_logits=False).output_activation == "identity"
    assert gm.KLDivergence().output_activation == "softmax"


def test_a_loss_with_class_weights_is_made_again_from_its_description():
    for weight in ([0.5, 2.0, 1.5], {"a": 1.0, "b": 2.0, "c": 1.0}, "balanced"):
        loss = gm.CrossEntropy(class_weight=weight, label_smoothing=0.1)
        again = get_loss(loss.to_dict())
        assert again.to_dict() == loss.to_dict()
        assert again.to_dict()["class_weight"] == weight


def test_class_weights_of_numpy_are_plain_values_in_the_description():
    given: dict[int, Any] = {0: np.float32(0.5), 1: np.float32(2)}
    assert repr(gm.CrossEntropy(class_weight=given).to_dict()["class_weight"]) == "{'0': 0.5, '1': 2.0}"
