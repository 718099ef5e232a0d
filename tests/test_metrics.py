import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumlp import metrics
from gpumlp.metrics import (
    METRICS,
    Metric,
    classes_from_probabilities,
    classification_scores,
    confusion_matrix,
    get_metric,
    per_class_scores,
    regression_scores,
)

# Three classes, seven samples. Counts (row true, column predicted):
#   class 0: 2 right, 1 taken for 1            [2 1 0]
#   class 1: 1 right, 1 taken for 2            [0 1 1]
#   class 2: 2 right                           [0 0 2]
# recall    2/3, 1/2, 1     precision 2/2, 1/2, 2/3     F1 = 2PR/(P+R): 4/5, 1/2, 4/5
TRUE3 = [0, 0, 0, 1, 1, 2, 2]
PRED3 = [0, 0, 1, 1, 2, 2, 2]
COUNTS3 = [[2, 1, 0], [0, 1, 1], [0, 0, 2]]

# Two classes, five samples: TP 2, FP 1, FN 1, TN 1; precision 2/3, recall 2/3, F1 2/3, accuracy 3/5.
TRUE2 = [1, 1, 1, 0, 0]
PRED2 = [1, 1, 0, 1, 0]
# Probabilities of class 1 that give PRED2 at 0.5. ROC AUC = share of (positive, negative) pairs in order:
# positives 0.9 0.8 0.3, negatives 0.6 0.1: 0.9 > both, 0.8 > both, 0.3 > 0.1 only: 5 of 6.
PROB2 = [0.9, 0.8, 0.3, 0.6, 0.1]
LOG_LOSS2 = -sum(math.log(p) for p in (0.9, 0.8, 0.3, 1 - 0.6, 1 - 0.1)) / 5

WORKED: dict[str, tuple[list, list, float]] = {
    "accuracy": (TRUE3, PRED3, 5 / 7),
    "misclassification": (TRUE3, PRED3, 2 / 7),
    "balanced_accuracy": (TRUE3, PRED3, (2 / 3 + 1 / 2 + 1) / 3),
    "precision": (TRUE2, PRED2, 2 / 3),
    "precision_macro": (TRUE3, PRED3, (1 + 1 / 2 + 2 / 3) / 3),
    "precision_weighted": (TRUE3, PRED3, (3 * 1 + 2 * 1 / 2 + 2 * 2 / 3) / 7),
    "recall": (TRUE2, PRED2, 2 / 3),
    "recall_macro": (TRUE3, PRED3, (2 / 3 + 1 / 2 + 1) / 3),
    "recall_weighted": (TRUE3, PRED3, 5 / 7),
    "f1": (TRUE2, PRED2, 2 / 3),
    "f1_macro": (TRUE3, PRED3, (4 / 5 + 1 / 2 + 4 / 5) / 3),
    "f1_weighted": (TRUE3, PRED3, (3 * 4 / 5 + 2 * 1 / 2 + 2 * 4 / 5) / 7),
    "log_loss": (TRUE2, PROB2, LOG_LOSS2),
    "roc_auc": (TRUE2, PROB2, 5 / 6),
    # errors 1, 0, -2, 1: squares 1 + 0 + 4 + 1 = 6; mean of y_true 3, squared deviations 4 + 1 + 1 + 4 = 10
    "mse": ([1, 2, 4, 5], [2, 2, 2, 6], 6 / 4),
    "rmse": ([1, 2, 4, 5], [2, 2, 2, 6], math.sqrt(6 / 4)),
    "mae": ([1, 2, 4, 5], [2, 2, 2, 6], 4 / 4),
    "r2": ([1, 2, 4, 5], [2, 2, 2, 6], 1 - 6 / 10),
}


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_gives_the_score_worked_by_hand(name):
    y_true, y_pred, expected = WORKED[name]
    score = get_metric(name)(np.array(y_true), np.array(y_pred))
    assert type(score) is float
    assert score == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", list(METRICS))
def test_a_weight_of_two_is_the_sample_given_twice(name):
    y_true, y_pred, _ = WORKED[name]
    weights = np.ones(len(y_true))
    weights[0] = 2
    twice = METRICS[name]([y_true[0], *y_true], [y_pred[0], *y_pred])
    weighted = METRICS[name](y_true, y_pred, weights)
    assert type(weighted) is float
    assert weighted == pytest.approx(twice, rel=1e-12)
    assert METRICS[name](y_true, y_pred, 3 * np.ones(len(y_true))) == pytest.approx(WORKED[name][2])


@pytest.mark.parametrize("name", list(METRICS))
def test_a_perfect_prediction_is_never_worse_than_a_poor_one(name):
    y_true, y_pred, _ = WORKED[name]
    perfect, poor = METRICS[name](y_true, y_true), METRICS[name](y_true, y_pred)
    assert (perfect > poor) if METRICS[name].greater_is_better else (perfect < poor)
    assert METRICS[name].note


def test_confusion_matrix_and_per_class_scores_worked_by_hand():
    counts = confusion_matrix(np.array(TRUE3), np.array(PRED3), 3)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, COUNTS3)
    scores = per_class_scores(TRUE3, PRED3, 3)
    assert scores["precision"] == pytest.approx([1, 1 / 2, 2 / 3])
    assert scores["recall"] == pytest.approx([2 / 3, 1 / 2, 1])
    assert scores["f1"] == pytest.approx([4 / 5, 1 / 2, 4 / 5])
    assert scores["support"] == [3, 2, 2]
    assert all(type(value) is float for column in scores.values() for value in column)


def test_classes_that_do_not_occur_have_zeros_and_keep_their_place():
    np.testing.assert_array_equal(confusion_matrix([1, 1], [1, 3], 4)[1], [0, 1, 0, 1])
    scores = per_class_scores([1, 1], [1, 3], 4, sample_weight=[1, 3])
    assert scores["recall"] == [0, 0.25, 0, 0]
    assert scores["precision"] == [0, 1, 0, 0]
    assert scores["support"] == [0, 4, 0, 0]


def test_labels_may_be_text_booleans_columns_or_whole_floats():
    names = np.array(["ant", "bee", "cat"])
    assert metrics.accuracy(names[TRUE3], names[PRED3]) == metrics.accuracy(TRUE3, PRED3)
    assert metrics.f1(names[TRUE3].astype(object), names[PRED3], average="macro") == pytest.approx(0.7)
    assert metrics.precision(np.array(TRUE2, bool), np.array(PRED2, np.float32)) == pytest.approx(2 / 3)
    assert metrics.recall(np.array(TRUE2)[:, None], PRED2) == pytest.approx(2 / 3)


def test_a_score_that_divides_by_zero_is_zero_without_a_warning():
    for score in (metrics.precision, metrics.recall, metrics.f1):
        assert score([0, 0], [0, 0]) == 0.0
    assert metrics.precision([1, 1], [0, 0]) == 0.0
    assert metrics.balanced_accuracy([0, 0], [0, 1]) == 0.5  # a class of y_pred only does not count


def test_a_class_for_nearly_every_sample_gives_no_warning():
    codes = np.arange(30)  # scikit-learn suspects a regression here
    assert metrics.accuracy(codes, codes) == 1.0
    assert confusion_matrix(codes, codes, 30).trace() == 30


# ---- probabilities ----


def test_two_classes_follow_the_threshold_in_every_shape_of_probabilities():
    rows = np.stack([1 - np.array(PROB2), PROB2], axis=1)
    for probabilities in (PROB2, np.array(PROB2)[:, None], rows, rows.astype(np.float32)):
        codes = classes_from_probabilities(probabilities)
        assert codes.dtype == np.int64
        np.testing.assert_array_equal(codes, PRED2)
        np.testing.assert_array_equal(classes_from_probabilities(probabilities, 0.2), [1, 1, 1, 1, 0])
    np.testing.assert_array_equal(classes_from_probabilities([0.5, 0.5000001]), [0, 1])  # above, not at
    np.testing.assert_array_equal(classes_from_probabilities([[0.2, 0.4, 0.4]], 0.9), [1])


def test_multiclass_roc_auc_is_the_mean_of_each_class_against_the_rest():
    # class 0: positive 0.5, rest 0.2, 0.6: 1 of 2 pairs; class 1: positive 0.3, rest 0.2, 0.1: 2 of 2;
    # class 2: positive 0.3, rest 0.3 (a tie, 1/2), 0.5: 1/2 of 2
    rows = [[0.5, 0.2, 0.3], [0.2, 0.3, 0.5], [0.6, 0.1, 0.3]]
    assert metrics.roc_auc([0, 1, 2], rows) == pytest.approx((1 / 2 + 1 + 1 / 4) / 3)


def test_log_loss_takes_float32_rows_that_miss_one_by_a_rounding_and_a_certain_error():
    rows = np.random.default_rng(0).random((50, 7)).astype(np.float32)
    rows /= rows.sum(axis=1, keepdims=True)
    codes = np.arange(50) % 7
    expected = -np.log(rows[np.arange(50), codes].astype(float)).mean()
    assert metrics.log_loss(codes, rows) == pytest.approx(expected, rel=1e-6)
    assert metrics.log_loss(codes, rows * np.float32(1.004)) == pytest.approx(expected, rel=1e-6)
    # certain and wrong: -ln(2.2e-16), the epsilon of float64
    assert metrics.log_loss([0], [[0.0, 1.0]]) == pytest.approx(-math.log(np.finfo(float).eps), rel=1e-6)
    assert metrics.log_loss([0, 1], np.array([1.0000002, 0.5], np.float32)) > 0  # above 1 by a rounding


def test_classification_scores_of_two_classes_are_the_metrics_by_name():
    scores = classification_scores(TRUE2, PROB2, 2)
    names = [name for name, metric in METRICS.items() if metric.needs != "values"]
    assert sorted(scores) == sorted(names)
    for name, score in scores.items():
        assert type(score) is float
        y_pred = PROB2 if METRICS[name].needs == "probabilities" else PRED2
        assert score == METRICS[name](TRUE2, y_pred)
    assert classification_scores(TRUE2, PROB2, 2, threshold=0.2)["recall"] == 1.0


def test_classification_scores_of_three_classes_leave_out_what_is_for_two():
    rows = 0.9 * np.eye(3)[PRED3] + 0.1 / 3
    scores = classification_scores(TRUE3, rows, 3)
    assert not {"precision", "recall", "f1"} & set(scores)
    assert scores["f1_macro"] == pytest.approx(0.7)
    assert scores["log_loss"] == pytest.approx(-(5 * math.log(0.9 + 0.1 / 3) + 2 * math.log(0.1 / 3)) / 7)
    weighted = classification_scores(TRUE3, rows, 3, sample_weight=[1, 1, 0, 1, 0, 1, 1])
    assert weighted["accuracy"] == 1.0


def test_scores_that_do_not_exist_are_left_out_in_silence():
    assert "roc_auc" not in classification_scores([1, 1], [0.9, 0.2], 2)
    assert "roc_auc" not in classification_scores([0, 1], [0.9, 0.2], 2, sample_weight=[0, 1])
    assert "roc_auc" not in classification_scores([0, 1], np.full((2, 3), 1 / 3), 3)
    own_sigmoids = classification_scores([0, 1], [[0.9, 0.8], [0.1, 0.3]], 2)  # rows do not sum to 1
    assert not {"roc_auc", "log_loss"} & set(own_sigmoids)
    assert set(regression_scores([1.0], [2.0])) == {"mse", "rmse", "mae"}
    assert set(regression_scores([0.0, 1.0], [1e200, 0.0])) == {"mae"}


def test_regression_of_several_outputs_averages_over_them():
    # errors of the first output 1, -1: mse 1, rmse 1, mae 1, r2 1 - 2/2 = 0
    # errors of the second output 0, 3: mse 9/2, rmse 3/sqrt(2), mae 3/2, r2 1 - 9/2
    true, predicted = [[0.0, 0.0], [2.0, 2.0]], [[1.0, 0.0], [1.0, 5.0]]
    scores = regression_scores(true, predicted)
    assert scores["mse"] == pytest.approx((1 + 9 / 2) / 2)
    assert scores["rmse"] == pytest.approx((1 + 3 / math.sqrt(2)) / 2)
    assert scores["mae"] == pytest.approx((1 + 3 / 2) / 2)
    assert scores["r2"] == pytest.approx((0 + 1 - 9 / 2) / 2)
    assert all(type(score) is float for score in scores.values())


def test_a_column_against_a_flat_array_is_not_broadcast():
    true, predicted, expected = WORKED["mse"]
    assert metrics.mse(np.array(true)[:, None], predicted) == pytest.approx(expected)
    assert regression_scores(true, np.array(predicted)[:, None])["r2"] == pytest.approx(0.4)


def test_r2_of_a_constant_target_is_one_when_met_and_zero_otherwise():
    assert metrics.r2([2, 2], [2, 2]) == 1.0
    assert metrics.r2([2, 2], [2, 3]) == 0.0


# ---- properties ----

# in millionths, so that no square falls below the smallest float64
VALUES = st.integers(-(10**12), 10**12).map(lambda millionths: millionths / 1e6)


@st.composite
def class_pairs(draw):
    n_classes, n = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    codes = st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n)
    return np.array(draw(codes)), np.array(draw(codes)), n_classes


@settings(deadline=None, max_examples=40)
@given(class_pairs())
def test_scores_of_classes_agree_with_each_other(pair):
    true, predicted, n_classes = pair
    counts = confusion_matrix(true, predicted, n_classes)
    assert counts.shape == (n_classes, n_classes)
    assert counts.sum() == len(true)
    accuracy = metrics.accuracy(true, predicted)
    assert accuracy == pytest.approx(counts.trace() / len(true))
    assert metrics.misclassification(true, predicted) == pytest.approx(1 - accuracy)
    assert metrics.recall(true, predicted, average="weighted") == pytest.approx(accuracy)
    scores = per_class_scores(true, predicted, n_classes)
    assert scores["support"] == counts.sum(axis=1).tolist()
    occurs = (counts.sum(axis=0) + counts.sum(axis=1)) > 0
    assert np.mean(np.array(scores["f1"])[occurs]) == pytest.approx(
        metrics.f1(true, predicted, average="macro")
    )
    in_true = counts.sum(axis=1) > 0
    assert np.mean(np.array(scores["recall"])[in_true]) == pytest.approx(
        metrics.balanced_accuracy(true, predicted)
    )


@settings(deadline=None, max_examples=40)
@given(class_pairs(), st.floats(0, 1), st.integers(0, 1000))
def test_classification_scores_are_finite_and_in_range_whatever_comes(pair, threshold, seed):
    true, _, n_classes = pair
    rows = np.random.default_rng(seed).dirichlet(np.full(n_classes, 0.3), size=len(true))
    scores = classification_scores(true, rows, n_classes, threshold)
    assert all(type(score) is float and math.isfinite(score) for score in scores.values())
    assert all(0 <= score <= 1 for name, score in scores.items() if name != "log_loss")
    assert scores["log_loss"] >= 0
    assert ("roc_auc" in scores) == (len(set(true.tolist())) == n_classes)


@settings(deadline=None, max_examples=10)
@given(class_pairs(), st.booleans(), st.integers(0, 1000))
def test_classification_scores_are_those_of_each_metric_by_itself(pair, weighted, seed):
    true, _, n_classes = pair
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 2, len(true)) if weighted else None
    rows = rng.dirichlet(np.full(n_classes, 0.3), size=len(true))
    predicted = classes_from_probabilities(rows)
    scores = classification_scores(true, rows, n_classes, sample_weight=weights)
    of_classes = [name for name in scores if METRICS[name].needs == "classes"]
    assert len(of_classes) == (12 if n_classes == 2 else 9)
    for name in of_classes:
        assert scores[name] == METRICS[name](true, predicted, weights)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=30))
def test_regression_scores_agree_with_each_other(pairs):
    true, predicted = np.array(pairs).T
    scores = regression_scores(true, predicted)
    assert scores["rmse"] == pytest.approx(math.sqrt(scores["mse"]))
    assert scores["mae"] <= scores["rmse"] * (1 + 1e-12)
    assert scores.get("r2", 0.0) <= 1.0
    assert scores["mse"] == metrics.mse(predicted, true)


# ---- by name ----


def test_a_metric_is_found_by_name_by_function_or_as_itself():
    assert get_metric("Balanced-Accuracy") is METRICS["balanced_accuracy"]
    assert get_metric(metrics.log_loss) is METRICS["log_loss"]
    assert get_metric(METRICS["r2"]) is METRICS["r2"]
    assert set(METRICS) == {metric.name for metric in METRICS.values()}


def test_a_users_function_is_a_metric_on_values():
    def largest_error(y_true, y_pred):
        return np.abs(np.subtract(y_true, y_pred)).max()

    metric = get_metric(largest_error)
    assert (metric.name, metric.needs, metric.greater_is_better) == ("largest_error", "values", True)
    assert metric([1, 2], [1, 5]) == 3.0
    assert type(metric([1, 2], [1, 5])) is float
    assert get_metric(Metric("worst", largest_error, "values", False)).greater_is_better is False


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: get_metric("acuracy"), ValueError, "unknown metric 'acuracy'; did you mean 'accuracy'"),
        (lambda: get_metric(3), TypeError, "metric is a int; expected a function or one of"),  # type: ignore[arg-type]
        (lambda: metrics.accuracy([0, 1], [0]), ValueError, "y_true has 2 samples and y_pred 1"),
        (lambda: metrics.accuracy([], []), ValueError, "y_true is empty; expected at least one sample"),
        (lambda: metrics.accuracy([0, math.nan], [0, 1]), ValueError, "y_true has nan; expected finite"),
        (lambda: metrics.accuracy([0, 1], [0, 0.5]), ValueError, "y_pred has 0.5; expected classes"),
        (lambda: metrics.accuracy(["a"], [1]), TypeError, "one of y_true and y_pred has text"),
        (lambda: metrics.accuracy([None], [1]), TypeError, "y_true has the dtype object; expected numbers"),  # type: ignore[arg-type]
        (lambda: metrics.accuracy(np.eye(2), [0, 1]), ValueError, r"y_true has the shape \(2, 2\)"),
        (lambda: metrics.precision(TRUE3, PRED3), ValueError, "found the classes .*; expected 0 and 1"),
        (lambda: metrics.recall(["a"], ["b"]), ValueError, "found the classes .*; expected 0 and 1"),
        (lambda: metrics.f1(TRUE2, PRED2, average="micro"), ValueError, "average is 'micro'; expected"),  # type: ignore[arg-type]
        (lambda: confusion_matrix([0, 5], [0, 1], 3), ValueError, "class code 5; expected 0 to 2"),
        (lambda: confusion_matrix([0], ["b"], 3), TypeError, "y_pred has text; expected class codes"),
        (lambda: confusion_matrix([0, 1], [0], 3), ValueError, "y_true has 2 samples and y_pred 1"),
        (lambda: metrics.log_loss([0], [1.5]), ValueError, "probabilities has 1.5; expected 0 to 1; apply"),
        (lambda: metrics.log_loss([0], [math.inf]), ValueError, "probabilities has inf"),
        (lambda: metrics.log_loss([0], [[0.5, 0.4]]), ValueError, "do not sum to 1"),
        (lambda: metrics.log_loss([2], [0.5]), ValueError, "y_true has the class code 2; expected 0 to 1"),
        (lambda: metrics.log_loss([0], np.ones((1, 1, 1))), ValueError, r"has the shape \(1, 1, 1\)"),
        (lambda: metrics.roc_auc([1, 1], [0.5, 0.5]), ValueError, r"needs all 2 classes .* found \[1\]"),
        (
            lambda: classes_from_probabilities([0.5], 2),
            ValueError,
            "threshold is 2; expected a number from 0",
        ),
        (lambda: classes_from_probabilities([0.5], math.nan), ValueError, "threshold is nan"),
        (lambda: classification_scores([0], [0.5], 3), ValueError, "has 2 classes and n_classes is 3"),
        (lambda: classification_scores([0, 1], [0.5], 2), ValueError, "2 samples and probabilities 1"),
        (lambda: metrics.mse([1, 2], [[1, 2], [3, 4]]), ValueError, r"shape \(2,\) and y_pred \(2, 2\)"),
        (lambda: metrics.mae([1, 2], [1, math.inf]), ValueError, "y_pred has inf; expected finite numbers"),
        (lambda: metrics.mae([1], ["a"]), TypeError, "y_pred has the dtype <U1; expected numbers"),
        (lambda: metrics.r2([1], [1]), ValueError, "r2 needs at least two samples"),
        (lambda: metrics.mse([1, 2], [1, 2], sample_weight=[1]), ValueError, "2 samples and sample_weight 1"),
        (lambda: metrics.mse([1], [1], sample_weight=[-1]), ValueError, "sample_weight has a negative"),
        (lambda: metrics.mse([1], [1], sample_weight=[0]), ValueError, "or only zeros"),
    ],
)
def test_a_mistake_ends_in_one_line_that_says_what_was_expected(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_no_metric_is_forgotten_in_the_worked_examples():
    assert set(WORKED) == set(METRICS)
