"""gpumlp.trainer: targets in every form, sample weights and class weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

import gpumlp as gm
from tests.trainers import (
    LABELS,
    NAMES,
    VALUES,
    X,
    assert_equal_within_rounding,
    assert_same,
    classifier,
    fitted,
    weights_of,
)


def line() -> gm.Sequential:
    return gm.Sequential(gm.Linear(4, 1, weight_init="zeros"), dtype="float64", device="cpu", seed=6)


# ---- targets ----


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_targets_of_one_output_may_be_a_vector_or_a_column(loss):
    network = [gm.mlp((4, 5, 1), dtype="float64", seed=1) for _ in range(2)]
    vector, column = (
        fitted(n, X, y, loss, batch_size=8) for n, y in zip(network, (VALUES, VALUES[:, None]), strict=True)
    )
    assert_same(vector, column)
    assert vector.evaluate(X, VALUES) == vector.evaluate(X, VALUES[:, None])
    assert vector.predict(X).shape == (45, 1)


@pytest.mark.parametrize("loss", ["cross_entropy", "kl_div", "softmax_mse"])
def test_labels_may_be_numbers_one_hot_rows_or_text(loss):
    settings = {"batch_size": 8, "validation_split": 0.2, "metrics": ["accuracy"]}
    numbers = fitted(classifier(), X, LABELS, loss, **settings)
    column = fitted(classifier(), X, LABELS[:, None], loss, **settings)
    text = fitted(classifier(), X, NAMES[LABELS], loss, **settings)
    objects = fitted(classifier(), X, NAMES[LABELS].astype(object).tolist(), loss, **settings)
    floats = fitted(classifier(), X, LABELS.astype(float), loss, **settings)
    for other in (column, text, objects, floats):
        assert_same(numbers, other)
    whole = {"batch_size": 8, "metrics": ["accuracy"]}  # rows of one-hot targets are not held out by class
    one_hot = fitted(classifier(), X, np.eye(3)[LABELS], loss, **whole)
    assert_equal_within_rounding(one_hot, fitted(classifier(), X, LABELS, loss, **whole))
    assert text.classes == ["cat", "dog", "eel"]
    assert numbers.classes is None
    np.testing.assert_array_equal(text.predict_classes(X), NAMES[numbers.predict_classes(X)])
    assert text.evaluate(X, NAMES[LABELS]) == numbers.evaluate(X, LABELS)


def test_text_classes_stay_those_of_the_first_fit_and_new_ones_are_refused():
    trainer = fitted(classifier(), X, NAMES[LABELS], "cross_entropy")
    some = LABELS != 1
    trainer.fit(X[some], NAMES[LABELS][some], epochs=1, batch_size=None, progress=False)
    assert trainer.classes == ["cat", "dog", "eel"]
    renamed = np.where(LABELS == 2, "fox", NAMES[LABELS])
    with pytest.raises(
        ValueError, match=r"y has the labels 'fox', unseen in training; expected 'cat', 'dog', 'eel'"
    ):
        trainer.fit(X, renamed, epochs=1, progress=False)
    with pytest.raises(ValueError, match="unseen in training"):
        trainer.evaluate(X, renamed)


BINARY = (LABELS == 0).astype(int)


def test_binary_cross_entropy_on_one_output_takes_numbers_booleans_columns_and_text():
    loss, settings = "binary_cross_entropy", {"batch_size": 9}
    numbers = fitted(classifier(1), X, BINARY, loss, **settings)
    text = np.array(["no", "yes"])[BINARY]
    for y in (BINARY.astype(bool), BINARY[:, None], BINARY.astype("f"), text):
        assert_same(numbers, fitted(classifier(1), X, y, loss, **settings))
    logits = numbers.network.predict(X)
    p = numbers.predict(X)
    assert p.shape == (45, 1)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-logits)), rtol=1e-12)
    for threshold in (0.2, 0.5, 0.9):
        np.testing.assert_array_equal(
            numbers.predict_classes(X, threshold), (p[:, 0] > threshold).astype(int)
        )
    assert numbers.evaluate(X, BINARY)["accuracy"] == np.mean(numbers.predict_classes(X) == BINARY)
    named = fitted(classifier(1), X, text, loss, **settings).predict_classes(X, threshold=0.7)
    np.testing.assert_array_equal(named, np.array(["no", "yes"])[(p[:, 0] > 0.7).astype(int)])


def test_binary_cross_entropy_on_several_outputs_asks_each_by_itself():
    y = np.column_stack([BINARY, X[:, 0] > 0, X[:, 1] + X[:, 2] > 0])
    trainer = fitted(
        classifier(3), X, y, "binary_cross_entropy", epochs=30, batch_size=9, validation_split=0.2,
        optimizer=gm.Adam(0.05),
    )  # fmt: skip
    p = trainer.predict(X)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-trainer.network.predict(X))), rtol=1e-12)
    classes = trainer.predict_classes(X, threshold=0.3)
    np.testing.assert_array_equal(classes, (p > 0.3).astype(int))
    scores = trainer.evaluate(X, y)
    assert scores["accuracy"] == pytest.approx(np.mean((p > 0.5) == y))
    assert scores["loss"] == pytest.approx(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
    assert scores["accuracy"] > 0.9
    assert trainer.history["val_accuracy"][-1] > 0.7


# ---- sample weights and class weights ----

SMALL = LABELS[:12]


def twice(y: np.ndarray) -> np.ndarray:
    return np.concatenate([y, y[:4]])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("loss", "y"), [(gm.CrossEntropy, LABELS), (gm.MSE, VALUES), (gm.KLDivergence, LABELS)]
)
def test_a_row_of_weight_2_is_the_row_twice_and_one_of_weight_0_is_not_there(loss, y, reduction):
    weight = np.ones(16)
    weight[:4], weight[12:] = 2.0, 0.0
    outputs = 1 if loss is gm.MSE else 3
    optimizer = gm.SGD(0.02, momentum=0.5)
    settings = {"optimizer": optimizer, "epochs": 6}
    weighted = fitted(
        classifier(outputs), X[:16], y[:16], loss(reduction=reduction), sample_weight=weight, **settings
    )
    plain = fitted(classifier(outputs), twice(X[:12]), twice(y[:12]), loss(reduction=reduction), **settings)
    assert_equal_within_rounding(weighted, plain)
    np.testing.assert_allclose(weighted.history["loss"], plain.history["loss"], rtol=1e-11)
    a = weighted.evaluate(X[:16], y[:16], sample_weight=weight)["loss"]
    assert a == pytest.approx(plain.evaluate(twice(X[:12]), twice(y[:12]))["loss"], rel=1e-11)


def test_sample_weights_follow_their_rows_into_minibatches():
    # a row of weight 0 moves nothing, wherever the order puts it: its target may be anything
    weight = np.where(np.arange(45) % 3, 1.5, 0.0)
    wrong = np.where(weight == 0, VALUES + 1e3, VALUES)
    a, b = (
        fitted(line(), X, y, "mse", sample_weight=weight, batch_size=4, optimizer=gm.SGD(0.02))
        for y in (VALUES, wrong)
    )
    assert_same(a, b)
    assert a.history["loss"] == b.history["loss"]


@pytest.fixture(params=["eager", "chosen"])
def executor(request, monkeypatch):
    """The reference kernels, and what this machine chooses for itself, which may be the same."""
    if request.param == "eager":
        from gpumlp.executors import EagerExecutor

        monkeypatch.setattr("gpumlp.executors.choose_executor", lambda *_: (EagerExecutor, "eager"))


@pytest.mark.usefixtures("executor")
def test_a_batch_whose_rows_all_weigh_nothing_changes_nothing_and_does_not_fail():
    weight = np.r_[np.zeros(40), np.ones(5)]
    trainer = fitted(
        line(),
        X,
        VALUES,
        "mse",
        sample_weight=weight,
        batch_size=5,
        shuffle=False,
        optimizer=gm.SGD(0.1),
        epochs=1,
    )
    assert np.isfinite(weights_of(trainer)).all()
    assert_same(
        trainer,
        fitted(
            line(), X[40:], VALUES[40:], "mse", batch_size=5, shuffle=False, optimizer=gm.SGD(0.1), epochs=1
        ),
    )


def test_class_weights_are_sample_weights_by_class():
    given = {0: 1.0, 1: 3.0, 2: 0.5}
    by_row = np.array([given[label] for label in LABELS])
    settings = {"batch_size": 8}
    expected = fitted(classifier(), X, LABELS, "cross_entropy", sample_weight=by_row, **settings)
    forms: tuple[Any, ...] = (given, [1.0, 3.0, 0.5], np.array([1.0, 3.0, 0.5]))
    for class_weight in forms:
        assert_same(
            expected, fitted(classifier(), X, LABELS, gm.CrossEntropy(class_weight=class_weight), **settings)
        )
    named = gm.CrossEntropy(class_weight={"eel": 0.5, "cat": 1.0, "dog": 3.0})
    assert_same(expected, fitted(classifier(), X, NAMES[LABELS], named, **settings))
    one_hot = gm.CrossEntropy(class_weight=given)
    assert_equal_within_rounding(expected, fitted(classifier(), X, np.eye(3)[LABELS], one_hot, **settings))


def test_balanced_class_weights_are_those_of_scikit_learn():
    assert len(set(compute_class_weight("balanced", classes=np.arange(3), y=LABELS))) > 1
    by_row = compute_sample_weight("balanced", LABELS)
    expected = fitted(classifier(), X, LABELS, "cross_entropy", sample_weight=by_row, batch_size=8)
    balanced = gm.CrossEntropy(class_weight="balanced")
    assert_equal_within_rounding(expected, fitted(classifier(), X, LABELS, balanced, batch_size=8))


def test_class_weights_multiply_sample_weights_and_work_for_two_classes():
    sample = np.linspace(0.5, 2, 45)
    by_row = np.where(BINARY, 4.0, 1.0) * sample
    loss = gm.BinaryCrossEntropy(class_weight=[1.0, 4.0])
    both = fitted(classifier(1), X, BINARY, loss, sample_weight=sample, batch_size=8)
    assert_equal_within_rounding(
        both, fitted(classifier(1), X, BINARY, "binary_cross_entropy", sample_weight=by_row, batch_size=8)
    )
