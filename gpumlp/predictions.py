"""What scores are computed from: labels, class codes, probabilities, values and weights, checked and in one form.

NaN, inf, other shapes and other lengths are a ValueError, other kinds of data a TypeError.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights: TypeAlias = ArrayLike | None
Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.int64]

# By how much a row of probabilities may miss 1, after products in reduced precision; it is then normalised.
_SUM_TOLERANCE = 1e-2
_ROUNDING = 1e-6


def _finite(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has the dtype {array.dtype}; expected numbers")
    array = array.astype(np.float64, copy=False)
    if array.size == 0:
        raise ValueError(f"{name} is empty; expected at least one sample")
    wrong = array[~np.isfinite(array)]
    if wrong.size:
        raise ValueError(f"{name} has {wrong[0]}; expected finite numbers; leave such samples out")
    return array


def same_length(n: int, name: str, other: int) -> None:
    """Refuse what has another length than `y_true`, which has n samples."""
    if n != other:
        raise ValueError(f"y_true has {n} samples and {name} {other}; expected the same number")


def _column(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return (n,) or (n, 1) as (n,)."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} has the shape {array.shape}; expected one number or label a sample, (n,)")
    return array


def as_labels(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return labels (n,) as int64 or as text."""
    array = _column(name, values)
    kind = array.dtype.kind
    if kind in "UT" or (kind == "O" and array.size and all(isinstance(label, str) for label in array)):
        return array.astype(str)
    numbers = _finite(name, array)
    broken = numbers[numbers != np.floor(numbers)]
    if broken.size:
        raise ValueError(f"{name} has {broken[0]}; expected classes: whole numbers or text")
    return array.astype(np.int64)


def as_codes(name: str, values: ArrayLike, n_classes: int) -> Codes:
    """Return class codes (n,), each from 0 to n_classes - 1."""
    codes = as_labels(name, values)
    if codes.dtype.kind == "U":
        raise TypeError(f"{name} has text; expected class codes, 0 to {n_classes - 1}")
    outside = codes[(codes < 0) | (codes >= n_classes)]
    if outside.size:
        raise ValueError(f"{name} has the class code {outside[0]}; expected 0 to {n_classes - 1}")
    return codes


def code_pair(y_true: ArrayLike, y_pred: ArrayLike, n_classes: int) -> tuple[Codes, Codes]:
    """Return both as class codes of the same length."""
    true, predicted = as_codes("y_true", y_true, n_classes), as_codes("y_pred", y_pred, n_classes)
    same_length(len(true), "y_pred", len(predicted))
    return true, predicted


def score_weights(sample_weight: Weights, n: int) -> Floats | None:
    """Return weights (n,), or None for none."""
    if sample_weight is None:
        return None
    weights = _finite("sample_weight", _column("sample_weight", sample_weight))
    same_length(n, "sample_weight", len(weights))
    if weights.min() < 0 or weights.sum() == 0:
        raise ValueError("sample_weight has a negative number, or only zeros; expected numbers >= 0")
    return weights


def probability_rows(probabilities: ArrayLike) -> Floats:
    """Return probabilities as (n, classes), from 0 to 1; the rows need not sum to 1."""
    rows = _finite("probabilities", probabilities)
    outside = rows[(rows < 0) | (rows > 1 + _ROUNDING)]
    if outside.size:
        raise ValueError(f"probabilities has {outside[0]}; expected 0 to 1; apply sigmoid or softmax first")
    rows = np.minimum(rows, 1.0)
    if rows.ndim == 1 or (rows.ndim == 2 and rows.shape[1] == 1):
        return np.stack([1.0 - rows.ravel(), rows.ravel()], axis=1)
    if rows.ndim != 2:
        raise ValueError(f"probabilities has the shape {rows.shape}; expected (n, classes) or (n,)")
    return rows


def sum_to_one(rows: Floats) -> bool:
    """Whether each row of probabilities sums to 1, within the rounding of reduced precision."""
    return bool(np.abs(rows.sum(axis=1) - 1.0).max() <= _SUM_TOLERANCE)


def probability_pair(
    y_true: ArrayLike, probabilities: ArrayLike, sample_weight: Weights
) -> tuple[Codes, Floats, Floats | None]:
    """Return class codes, probabilities whose rows are made to sum to 1, and weights."""
    rows = probability_rows(probabilities)
    if not sum_to_one(rows):
        raise ValueError("the rows of probabilities do not sum to 1; expected one probability a class")
    codes = as_codes("y_true", y_true, rows.shape[1])
    same_length(len(codes), "probabilities", len(rows))
    return codes, rows / rows.sum(axis=1, keepdims=True), score_weights(sample_weight, len(codes))


def value_pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[Floats, Floats]:
    """Return both as (n, outputs), so that (n,) against (n, 1) is never broadcast to (n, n)."""
    true, predicted = _finite("y_true", y_true), _finite("y_pred", y_pred)
    true, predicted = (array[:, None] if array.ndim == 1 else array for array in (true, predicted))
    if true.shape != predicted.shape or true.ndim != 2:
        shapes = f"y_true has the shape {np.shape(y_true)} and y_pred {np.shape(y_pred)}"
        raise ValueError(f"{shapes}; expected the same, (n,) or (n, outputs)")
    return true, predicted
