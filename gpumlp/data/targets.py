"""Targets: the task they ask for, class names and codes, and standardised regression targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gpumlp.data.columns import as_column, first_missing, kind_of, listing, numbers, text
from gpumlp.registry import nearest

if TYPE_CHECKING:
    import pyarrow as pa

Task = Literal["classification", "regression"]

MOST_INTEGER_CLASSES = 20


def check_task(task: str | None) -> Task | None:
    """Return the task itself; anything but "classification", "regression" and None is a ValueError."""
    if task is None or task == "classification" or task == "regression":
        return task  # type: ignore[return-value]
    raise ValueError(f"unknown task {task!r}{nearest(task, ('classification', 'regression'))}")


def detect_task(column: pa.ChunkedArray, name: str) -> Task:
    """Return the task that a target column asks for.

    Text, booleans and dictionaries are classes. Whole-number types are classes where there are at most 20
    different values and at least two rows for each on average; other numbers, and all floating point numbers,
    are quantities.
    """
    import pyarrow as pa

    if kind_of(column, name) != "numeric":
        return "classification"
    if not pa.types.is_integer(column.type):
        return "regression"
    different = len(column.drop_null().unique())
    return (
        "classification"
        if different <= MOST_INTEGER_CLASSES and 2 * different <= len(column)
        else "regression"
    )


def encode_classes(column: pa.ChunkedArray, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return (codes, class names) of a target column: int64 codes (n,), 0 for the first name in sorted order.

    Numbers sort as numbers, text by its characters.

    Raises:
        ValueError: a missing label, or one class only.
    """
    _refuse_missing(column, name)
    kind = kind_of(column, name)
    names, codes = _distinct(text(column))
    if len(names) < 2:
        raise ValueError(
            f"target {name!r} holds one class only ({names[0]!r}); classification needs two or more: give "
            "rows of the others"
        )
    order = sorted(range(len(names)), key=lambda k: float(names[k]) if kind == "numeric" else names[k])
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return rank[codes], [names[k] for k in order]


def encode_labels(labels: Any, classes: Sequence[str], name: str = "y") -> npt.NDArray[np.int64]:
    """Return the code of each label, int64 (n,): its place among the classes that a model was trained on.

    Args:
        labels: (n,) text, numbers or booleans; a number stands for the class of that name (3 and 3.0 for
            "3").
        classes: class names in the order of their codes.
        name: what the line about a mistake calls the labels.

    Raises:
        ValueError: a missing label, or labels that are none of the classes; the message names them.
    """
    column = as_column(labels)
    _refuse_missing(column, name)
    names, codes = _distinct(text(column))
    place = {label: code for code, label in enumerate(classes)}
    unseen = sorted(label for label in names if label not in place)
    if unseen:
        raise ValueError(
            f"target {name!r} holds labels unseen in training: {listing([repr(u) for u in unseen])}; "
            f"the model knows {listing(list(classes))}"
        )
    return np.array([place[label] for label in names], np.int64)[codes]


def _distinct(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int64]]:
    encoded = column.dictionary_encode().unify_dictionaries()
    if not len(encoded):
        return [], np.empty(0, np.int64)
    codes = np.concatenate([np.asarray(chunk.indices, np.int64) for chunk in encoded.chunks])
    return encoded.chunk(0).dictionary.to_pylist(), codes


def quantities(columns: Sequence[pa.ChunkedArray], names: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return regression targets as float32: (n,) for one column, (n, k) for several.

    Raises:
        ValueError: text, a missing value, or one that is not finite in float32.
    """
    y = np.empty((len(columns[0]), len(columns)), np.float32)
    for j, (column, name) in enumerate(zip(columns, names, strict=True)):
        if kind_of(column, name) == "text":
            raise ValueError(
                f"target {name!r} holds text; regression needs numbers: give task='classification'"
            )
        _refuse_missing(column, name)
        with np.errstate(over="ignore"):
            y[:, j] = numbers(column)
        bad = np.flatnonzero(~np.isfinite(y[:, j]))
        if bad.size:
            raise ValueError(
                f"target {name!r} holds {numbers(column)[bad[0]]} in row {bad[0] + 1}; "
                "expected finite numbers that float32 can hold: mend or remove the row"
            )
    return y[:, 0].copy() if len(columns) == 1 else y


def _refuse_missing(column: pa.ChunkedArray, name: str) -> None:
    at = first_missing(column)
    if at is not None:
        raise ValueError(
            f"target {name!r} has no value in row {at + 1} (counted from 1, without a header); "
            "every row needs its target: mend or remove the row"
        )


class TargetScaler:
    """Standardises regression targets, (y - mean) / std, and turns predictions back into the units of y."""

    FORMAT = "gpumlp target scaler"

    def __init__(self, mean: npt.ArrayLike = 0.0, std: npt.ArrayLike = 1.0) -> None:
        self.mean = np.atleast_1d(np.asarray(mean, np.float64))
        self.std = np.atleast_1d(np.asarray(std, np.float64))

    @classmethod
    def fit(cls, y: npt.ArrayLike) -> TargetScaler:
        """Take mean and population deviation of y, (n,) or (n, k); a constant column keeps deviation 1."""
        values = np.asarray(y, np.float64)
        values = values.reshape(len(values), -1)
        constant = values.min(axis=0) == values.max(axis=0)
        mean = np.where(constant, values[0], values.mean(axis=0))
        return cls(mean, np.where(constant, 1.0, values.std(axis=0)))

    def transform(self, y: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return y, (n,) or (n, k), standardised, in float32."""
        return self._shaped(y, lambda values: (values - self.mean) / self.std)

    def inverse(self, y: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return standardised values or predictions, (n,) or (n, k), in the units of y, in float32."""
        return self._shaped(y, lambda values: values * self.std + self.mean)

    def _shaped(self, y: npt.ArrayLike, change: Any) -> npt.NDArray[np.float32]:
        values = np.asarray(y, np.float64)
        width = 1 if values.ndim == 1 else values.shape[-1]
        if width != len(self.mean):
            raise ValueError(f"y has {width} columns; the target scaler was fitted on {len(self.mean)}")
        return np.asarray(change(values.reshape(len(values), -1)).reshape(values.shape), dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values for JSON; `from_dict` gives the same scaler back, to the bit."""
        return {"format": self.FORMAT, "mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TargetScaler:
        """Return the scaler that `to_dict` wrote.

        Raises:
            ValueError: a mapping that `to_dict` did not write.
        """
        if not isinstance(values, Mapping) or values.get("format") != cls.FORMAT:
            raise ValueError(f"not a target scaler of gpumlp: expected a table with format {cls.FORMAT!r}")
        mean, std = number_list(values, "mean"), number_list(values, "std")
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(
                "the target scaler needs as many deviations as means, all above 0; the file is damaged"
            )
        return cls(mean, std)


def number_list(values: Mapping[str, Any], key: str) -> list[float]:
    """Return ``values[key]`` where it is a list of finite numbers, else raise a ValueError with the key."""
    found = values.get(key)
    if not isinstance(found, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in found
    ):
        raise ValueError(
            f"{key!r} is not a list of finite numbers; the file is damaged or not written by gpumlp"
        )
    return [float(v) for v in found]
