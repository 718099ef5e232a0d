"""Scores of predictions on host arrays: scikit-learn's metrics, checked, quiet, and by name.

Every score is a Python float. `METRICS` has them by name; `classification_scores`, `per_class_scores` and
`regression_scores` give all that apply at once. Averages over classes are over those that occur in `y_true`
or `y_pred`, as in scikit-learn; what divides by zero counts as 0.

Arguments are the same everywhere: labels (n,), whole numbers or text; class codes (n,), 0 to classes - 1;
probabilities (n, classes), or (n,) or (n, 1) of class 1 of two; values (n,) or (n, outputs);
`sample_weight` (n,), or None. NaN, inf, other shapes and other lengths are a ValueError, other kinds of data
a TypeError.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpumlp.predictions import (
    Codes,
    Floats,
    Weights,
    as_codes,
    as_labels,
    code_pair,
    probability_pair,
    probability_rows,
    same_length,
    score_weights,
    sum_to_one,
    value_pair,
)
from gpumlp.registry import look_up

Average: TypeAlias = Literal["binary", "macro", "weighted"]


def _sklearn(score: str, *arrays: NDArray[Any], **settings: Any) -> Any:
    """Call a function of sklearn.metrics without its warnings: this module decides the cases they tell of."""
    from sklearn import metrics

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        return getattr(metrics, score)(*arrays, **settings)


def _score_classes(
    score: str, y_true: ArrayLike, y_pred: ArrayLike, sample_weight: Weights, **settings: Any
) -> float:
    true, predicted = as_labels("y_true", y_true), as_labels("y_pred", y_pred)
    if true.dtype.kind != predicted.dtype.kind:
        raise TypeError("one of y_true and y_pred has text, the other numbers; expected the same labels")
    same_length(len(true), "y_pred", len(predicted))
    if settings.get("average") == "binary":
        present = np.union1d(true, predicted).tolist()
        if not set(present) <= {0, 1}:
            raise ValueError(
                f"found the classes {present[:5]}; expected 0 and 1; average 'macro' or 'weighted'"
            )
    return float(
        _sklearn(score, true, predicted, sample_weight=score_weights(sample_weight, len(true)), **settings)
    )


def _average(score: str, y_true: ArrayLike, y_pred: ArrayLike, average: str, sample_weight: Weights) -> float:
    if average not in ("binary", "macro", "weighted"):
        raise ValueError(f"average is {average!r}; expected 'binary', 'macro' or 'weighted'")
    return _score_classes(score, y_true, y_pred, sample_weight, average=average, zero_division=0)


def _score_values(score: str, y_true: ArrayLike, y_pred: ArrayLike, sample_weight: Weights) -> float:
    true, predicted = value_pair(y_true, y_pred)
    return float(_sklearn(score, true, predicted, sample_weight=score_weights(sample_weight, len(true))))


# ---- classes ----


def classes_from_probabilities(probabilities: ArrayLike, threshold: float = 0.5) -> Codes:
    """Return the class code of each row, int64 (n,).

    With two classes that is 1 where the probability of class 1 is above `threshold` (0 to 1), else 0; with
    more, the most probable one, the first of equals, whatever the threshold.

    Raises:
        ValueError: a probability or the threshold outside 0 to 1, NaN, or another shape.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold is {threshold}; expected a number from 0 to 1")
    rows = probability_rows(probabilities)
    return (rows[:, 1] > threshold).astype(np.int64) if rows.shape[1] == 2 else rows.argmax(axis=1)


def accuracy(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: Weights = None) -> float:
    """Return the part of the samples whose label is right."""
    return _score_classes("accuracy_score", y_true, y_pred, sample_weight)


def misclassification(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: Weights = None) -> float:
    """Return the part of the samples whose label is wrong, 1 - accuracy."""
    return 1.0 - accuracy(y_true, y_pred, sample_weight=sample_weight)


def balanced_accuracy(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: Weights = None) -> float:
    """Return the mean of the recalls of the classes in `y_true` (Brodersen et al. 2010)."""
    return _score_classes("balanced_accuracy_score", y_true, y_pred, sample_weight)


def precision(
    y_true: ArrayLike, y_pred: ArrayLike, *, average: Average = "binary", sample_weight: Weights = None
) -> float:
    """Return true positives / predicted positives, 0 where none is predicted.

    `average` is "binary" for class 1 of the classes 0 and 1, "macro" for the mean over the classes,
    "weighted" for the mean weighted by how often each occurs in `y_true`.
    """
    return _average("precision_score", y_true, y_pred, average, sample_weight)


def recall(
    y_true: ArrayLike, y_pred: ArrayLike, *, average: Average = "binary", sample_weight: Weights = None
) -> float:
    """Return true positives / positives in `y_true`, 0 where there are none; `average` as in `precision`."""
    return _average("recall_score", y_true, y_pred, average, sample_weight)


def f1(
    y_true: ArrayLike, y_pred: ArrayLike, *, average: Average = "binary", sample_weight: Weights = None
) -> float:
    """Return 2 precision recall / (precision + recall), 0 where both are; `average` as in `precision`."""
    return _average("f1_score", y_true, y_pred, average, sample_weight)


def confusion_matrix(y_true: ArrayLike, y_pred: ArrayLike, n_classes: int) -> Codes:
    """Return counts (n_classes, n_classes), int64: row the true class code, column the predicted one."""
    true, predicted = code_pair(y_true, y_pred, n_classes)
    return np.asarray(_sklearn("confusion_matrix", true, predicted, labels=np.arange(n_classes)), np.int64)


# ---- probabilities ----


def log_loss(y_true: ArrayLike, probabilities: ArrayLike, *, sample_weight: Weights = None) -> float:
    """Return the mean of -ln(probability of the true class code), a probability of 0 counted as 2.2e-16."""
    codes, rows, weights = probability_pair(y_true, probabilities, sample_weight)
    return float(_sklearn("log_loss", codes, rows, labels=np.arange(rows.shape[1]), sample_weight=weights))


def _all_occur(codes: Codes, n_classes: int, weights: Floats | None) -> bool:
    return len(np.unique(codes if weights is None else codes[weights > 0])) == n_classes


def roc_auc(y_true: ArrayLike, probabilities: ArrayLike, *, sample_weight: Weights = None) -> float:
    """Return the area under the ROC curve; of more than two classes, the mean of each against the rest.

    Raises:
        ValueError: also when a class does not occur in `y_true`; its curve does not exist.
    """
    codes, rows, weights = probability_pair(y_true, probabilities, sample_weight)
    classes = np.arange(rows.shape[1])
    if not _all_occur(codes, len(classes), weights):
        raise ValueError(
            f"roc_auc needs all {len(classes)} classes in y_true; found {np.unique(codes).tolist()}"
        )
    scores = rows[:, 1] if len(classes) == 2 else rows
    settings = {"multi_class": "ovr", "labels": classes, "sample_weight": weights}
    return float(_sklearn("roc_auc_score", codes, scores, **settings))


# ---- values ----


def mse(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: Weights = None) -> float:
    """Return the mean squared error, the mean over the outputs."""
    return _score_values("mean_squared_error", y_true, y_pred, sample_weight)


def rmse(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: Weights = None) -> float:
    """Return the root of the mean squared error, taken for each output before the mean over the outputs."""
    return _score_values("root_mean_squared_error", y_true, y_pred, sample_weight)


def mae(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: Weights = None) -> float:
    """Return the mean absolute error, the mean over the outputs."""
    return _score_values("mean_absolute_error", y_true, y_pred, sample_weight)


def r2(y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: Weights = None) -> float:
    """Return 1 - squared error / squared deviation of `y_true` from its mean, the mean over the outputs.

    An output constant in `y_true` counts 1 where it is met exactly and 0 otherwise, as in scikit-learn.

    Raises:
        ValueError: also with fewer than two samples.
    """
    if np.size(y_true) and len(np.atleast_1d(y_true)) < 2:
        raise ValueError("r2 needs at least two samples; one does not deviate from its mean")
    return _score_values("r2_score", y_true, y_pred, sample_weight)


# ---- by name ----


@dataclass(frozen=True)
class Metric:
    """A score and what a trainer must know of it; call it with (y_true, y_pred, sample_weight=None).

    Args:
        name: under which its values are kept.
        function: (y_true, y_pred) -> number; it takes ``sample_weight=`` if it is to be weighted.
        needs: what y_pred is: "classes", "probabilities", or "values" (what the network gives).
        greater_is_better: the direction in which the score improves.
        note: one line that says what it is.
    """

    name: str
    function: Callable[..., float]
    needs: Literal["classes", "probabilities", "values"]
    greater_is_better: bool
    note: str = ""

    def __call__(self, y_true: ArrayLike, y_pred: ArrayLike, sample_weight: Weights = None) -> float:
        weighted = {} if sample_weight is None else {"sample_weight": sample_weight}
        return float(self.function(y_true, y_pred, **weighted))


def _averages(name: str, function: Callable[..., float], note: str) -> list[Metric]:
    macro = functools.partial(function, average="macro")
    weighted = functools.partial(function, average="weighted")
    return [
        Metric(name, function, "classes", True, f"{note}, of class 1 of two"),
        Metric(f"{name}_macro", macro, "classes", True, f"{note}, mean over the classes"),
        Metric(f"{name}_weighted", weighted, "classes", True, f"{note}, mean weighted by class size"),
    ]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in [
        Metric("accuracy", accuracy, "classes", True, "part of the samples that is right"),
        Metric("misclassification", misclassification, "classes", False, "part that is wrong"),
        Metric("balanced_accuracy", balanced_accuracy, "classes", True, "mean recall of the classes"),
        *_averages("precision", precision, "true positives / predicted positives"),
        *_averages("recall", recall, "true positives / positives"),
        *_averages("f1", f1, "harmonic mean of precision and recall"),
        Metric("log_loss", log_loss, "probabilities", False, "mean -ln probability of the true class"),
        Metric("roc_auc", roc_auc, "probabilities", True, "area under the ROC curve, one against the rest"),
        Metric("mse", mse, "values", False, "mean squared error"),
        Metric("rmse", rmse, "values", False, "root of the mean squared error"),
        Metric("mae", mae, "values", False, "mean absolute error"),
        Metric("r2", r2, "values", True, "coefficient of determination"),
    ]
}


def get_metric(spec: str | Metric | Callable[..., float]) -> Metric:
    """Return the metric for a name, a `Metric` or a function of (y_true, y_pred).

    A function of this module is its entry in `METRICS`. Any other is taken to need "values" and to be better
    when greater, as by scikit-learn's make_scorer; wrap it in a `Metric` to say otherwise.

    Raises:
        ValueError: unknown name.
        TypeError: none of the three.
    """
    if isinstance(spec, Metric):
        return spec
    if isinstance(spec, str):
        return look_up("metric", spec, METRICS)
    if not callable(spec):
        names = ", ".join(METRICS)
        raise TypeError(f"metric is a {type(spec).__name__}; expected a function or one of {names}")
    own = [metric for metric in METRICS.values() if metric.function is spec]
    return own[0] if own else Metric(getattr(spec, "__name__", type(spec).__name__), spec, "values", True)


# ---- all that apply ----


def classification_scores(
    y_true_codes: ArrayLike,
    probabilities: ArrayLike,
    n_classes: int,
    threshold: float = 0.5,
    *,
    sample_weight: Weights = None,
) -> dict[str, float]:
    """Return every score of classification that exists for these predictions, by its name in `METRICS`.

    All are finite. Plain precision, recall and f1 are there for two classes only; log_loss and roc_auc only
    where the rows sum to 1, roc_auc only where every class occurs. `threshold` as in
    `classes_from_probabilities`.

    Raises:
        ValueError: also when `n_classes` is below 2 or not that of `probabilities`.
    """
    rows = probability_rows(probabilities)
    if n_classes < 2 or rows.shape[1] != n_classes:
        found = f"probabilities has {rows.shape[1]} classes and n_classes is {n_classes}"
        raise ValueError(f"{found}; expected the same number, at least 2")
    codes = as_codes("y_true", y_true_codes, n_classes)
    same_length(len(codes), "probabilities", len(rows))
    weights = score_weights(sample_weight, len(codes))
    predicted = classes_from_probabilities(rows, threshold)
    right = accuracy(codes, predicted, sample_weight=weights)
    scores = {
        "accuracy": right,
        "misclassification": 1.0 - right,
        "balanced_accuracy": balanced_accuracy(codes, predicted, sample_weight=weights),
        **_averaged_scores(codes, predicted, weights, n_classes == 2),
    }
    if sum_to_one(rows):
        scores["log_loss"] = log_loss(codes, rows, sample_weight=weights)
        if _all_occur(codes, n_classes, weights):
            scores["roc_auc"] = roc_auc(codes, rows, sample_weight=weights)
    return scores


def _averaged_scores(true: Codes, predicted: Codes, weights: Floats | None, binary: bool) -> dict[str, float]:
    """Return precision, recall and f1 with each average, from one pass over the classes.

    As `precision` and the others give them: a call of scikit-learn for each takes ten times as long where samples
    are few.
    """
    settings = {"sample_weight": weights, "zero_division": 0}
    *by_class, support = _sklearn("precision_recall_fscore_support", true, predicted, **settings)
    is_one = np.union1d(true, predicted) == 1
    scores: dict[str, float] = {}
    for name, values in zip(("precision", "recall", "f1"), by_class, strict=True):
        if binary:
            scores[name] = float(values[is_one].sum())  # 0 where nobody has class 1
        scores[f"{name}_macro"] = float(np.average(values))
        scores[f"{name}_weighted"] = float(np.average(values, weights=support))
    return scores


def per_class_scores(
    y_true: ArrayLike, y_pred: ArrayLike, n_classes: int, *, sample_weight: Weights = None
) -> dict[str, list[float]]:
    """Return precision, recall, f1 and support of class codes as lists of n_classes floats, by class code.

    The support is the number of samples of a class in `y_true`, or the sum of their weights.
    """
    true, predicted = code_pair(y_true, y_pred, n_classes)
    settings = {"labels": np.arange(n_classes), "zero_division": 0}
    weights = score_weights(sample_weight, len(true))
    columns = _sklearn("precision_recall_fscore_support", true, predicted, sample_weight=weights, **settings)
    names = ("precision", "recall", "f1", "support")
    return {name: [float(v) for v in column] for name, column in zip(names, columns, strict=True)}


def regression_scores(
    y_true: ArrayLike, y_pred: ArrayLike, *, sample_weight: Weights = None
) -> dict[str, float]:
    """Return mse, rmse, mae and r2 of values; what is not finite (r2 of one sample, overflow) is left out."""
    true, predicted = value_pair(y_true, y_pred)
    names = ("mse", "rmse", "mae", "r2") if len(true) > 1 else ("mse", "rmse", "mae")
    scores = {name: METRICS[name](true, predicted, sample_weight) for name in names}
    return {name: score for name, score in scores.items() if math.isfinite(score)}
