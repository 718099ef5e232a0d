"""Other learners to compare networks with: scikit-learn's, fitted, timed and scored by the same metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import as_matrix, check_count, check_lengths
from .cpus import cpu_counts
from .metrics import METRICS, Metric, regression_scores
from .registry import call_with, look_up
from .splits import split_rows


@dataclass
class Baseline:
    """A fitted learner and what it scored.

    Attributes:
        name: in `BASELINES`.
        settings: that were given for it.
        scores: {"train": {"accuracy": ..., ...}, "test": {...}}, by names of `METRICS`, as networks have them.
        rows: that it was fitted on; all of them are scored as "train".
        fit_seconds: of fitting.
        predict_seconds: of predicting both parts.
        estimator: scikit-learn's.
    """

    name: str
    settings: dict[str, Any]
    scores: dict[str, dict[str, float]]
    rows: int
    fit_seconds: float
    predict_seconds: float
    estimator: Any

    def to_dict(self) -> dict[str, Any]:
        """Return all but the estimator as plain values."""
        return {k: v for k, v in vars(self).items() if k != "estimator"}


def _svm(seed: int, workers: int, **settings: Any) -> Any:
    from sklearn.svm import SVC

    # the kernel cache decides the time of large sets; its default of 200 MB holds few rows of 60,000
    return SVC(**{"kernel": "rbf", "cache_size": 1000, "random_state": seed, **settings})


def _knn(seed: int, workers: int, **settings: Any) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(**{"n_neighbors": 5, "n_jobs": workers, **settings})


def _logistic_regression(seed: int, workers: int, **settings: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(**{"max_iter": 1000, "random_state": seed, **settings})


def _linear_regression(seed: int, workers: int, **settings: Any) -> Any:
    from sklearn.linear_model import LinearRegression

    return LinearRegression(**settings)


def _svr(seed: int, workers: int, **settings: Any) -> Any:
    from sklearn.svm import SVR

    return SVR(**{"kernel": "rbf", "cache_size": 1000, **settings})


def _knn_regression(seed: int, workers: int, **settings: Any) -> Any:
    from sklearn.neighbors import KNeighborsRegressor

    return KNeighborsRegressor(**{"n_neighbors": 5, "n_jobs": workers, **settings})


# name -> (makes the estimator, whether it tells classes apart)
BASELINES: dict[str, tuple[Callable[..., Any], bool]] = {
    "svm": (_svm, True),
    "knn": (_knn, True),
    "logistic_regression": (_logistic_regression, True),
    "svm_regression": (_svr, False),
    "knn_regression": (_knn_regression, False),
    "linear_regression": (_linear_regression, False),
}


def fit_baseline(
    name: str,
    X: Any,
    y: Any,
    test: tuple[Any, Any] | None = None,
    *,
    subset: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> Baseline:
    """Fit one of `BASELINES` and score it on its training rows and on the test rows.

    "svm" is a support vector machine with an RBF kernel (one against one), "knn" the 5 nearest neighbours,
    "logistic_regression" and "linear_regression" are a single layer without hidden neurons. The time of an SVM grows
    faster than the square of the rows.

    Args:
        name: of the learner.
        X: (n, features), finite numbers; scale them before where the learner needs it.
        y: class codes or names (n,); values (n,) or (n, 1) for regression.
        test: (X, y) that take no part in the fit.
        subset: fit on that many rows only, drawn by the seed, of each class alike; None for all.
        workers: threads that share predictions, and neighbours; None for the CPUs that are there.
        seed: of the subset and of what the learner draws.
        settings: of scikit-learn's estimator: C, gamma, n_neighbors, ...

    Raises:
        ValueError: an unknown name or setting, data that do not fit, one class only.
    """
    make, is_classifier = look_up("baseline", name, BASELINES)
    count = int(cpu_counts()["usable"] or 1) if workers is None else check_count("workers", workers)
    parts = {"train": _checked(X, y, is_classifier)}
    if test is not None:
        parts["test"] = _checked(*test, is_classifier, like=parts["train"][0])
    x, target = parts["train"]
    if subset is not None and check_count("subset", subset) < len(x):
        share = 1 - subset / len(x)
        rows, _ = split_rows(len(x), share, _codes(target) if is_classifier else None, seed)
        x, target = parts["train"] = x[rows], target[rows]
    if is_classifier and (target == target[0]).all():
        raise ValueError(f"y has one class only, {target[0]}; a classifier needs at least two")
    estimator = _estimator(name, make, seed, count, settings)
    start = time.perf_counter()
    estimator.fit(x, target)
    fit_seconds = time.perf_counter() - start
    start = time.perf_counter()
    found = {part: _predict(estimator, own, count) for part, (own, _) in parts.items()}
    predict_seconds = time.perf_counter() - start
    score = _classification if is_classifier else regression_scores
    scores = {part: score(true, found[part]) for part, (_, true) in parts.items()}
    return Baseline(name, dict(settings), scores, len(x), fit_seconds, predict_seconds, estimator)


def baseline_table(found: Sequence[Baseline], columns: Sequence[str] | None = None) -> str:
    """Return a text table, a row a learner.

    Args:
        found: of `fit_baseline`.
        columns: such as "test.accuracy"; None for accuracy, or mse and r2, of both parts.
    """
    rows = [{f"{part}.{k}": v for part, own in b.scores.items() for k, v in own.items()} for b in found]
    if columns is None:
        wanted = [f"{part}.{name}" for part in ("train", "test") for name in ("accuracy", "mse", "r2")]
        columns = [column for column in wanted if any(column in row for row in rows)]
    width = max(len(b.name) for b in found)
    lines = [" " * width + "".join(f"{c:>16}" for c in [*columns, "rows", "fit s", "predict s"])]
    for b, row in zip(found, rows, strict=True):
        cells = [f"{row[c]:.6g}" if c in row else "-" for c in columns]
        cells += [str(b.rows), f"{b.fit_seconds:.3g}", f"{b.predict_seconds:.3g}"]
        lines.append(b.name.ljust(width) + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _checked(
    X: Any, y: Any, is_classifier: bool, like: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(X)
    x = as_matrix(array, "float64" if array.dtype == np.float64 else "float32")
    check_lengths(len(x), y=y)
    if like is not None and x.shape[1] != like.shape[1]:
        raise ValueError(f"the test rows have {x.shape[1]} features and the training rows {like.shape[1]}")
    target = np.asarray(y)
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 1:
        expected = "class codes or names (n,)" if is_classifier else "values (n,)"
        raise ValueError(f"y has shape {target.shape}; expected {expected}")
    if is_classifier and target.dtype.kind == "f" and (target != np.floor(target)).any():
        raise ValueError("y has fractions; expected class codes or names: a regression is for values")
    return x, target


def _codes(target: np.ndarray) -> np.ndarray:
    return np.unique(target, return_inverse=True)[1]


def _estimator(
    name: str, make: Callable[..., Any], seed: int, workers: int, settings: Mapping[str, Any]
) -> Any:
    """Make the estimator; its own parameters are what may be set."""
    known = type(make(seed, workers))
    call_with(f"baseline {name!r}", known, settings)
    return make(seed, workers, **settings)


def _predict(estimator: Any, x: np.ndarray, workers: int) -> np.ndarray:
    """Predict in threads: libsvm gives the interpreter free, and neighbours share one call of BLAS already."""
    if not hasattr(estimator, "support_") or workers == 1 or len(x) < 2 * workers:
        return np.asarray(estimator.predict(x))
    from joblib import Parallel, delayed

    parts = np.array_split(x, 4 * workers)
    with Parallel(n_jobs=workers, prefer="threads") as pool:
        return np.concatenate(pool(delayed(estimator.predict)(part) for part in parts if len(part)))


def _classification(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Every score of classes by its name; plain precision, recall and f1 for the codes 0 and 1 only."""
    labels = set(np.unique(np.concatenate([true, predicted])).tolist())
    binary = ("precision", "recall", "f1")

    def applies(metric: Metric) -> bool:
        return metric.needs == "classes" and (metric.name not in binary or labels <= {0, 1})

    return {metric.name: metric(true, predicted) for metric in METRICS.values() if applies(metric)}
