"""Mean, deviation and fill values of numeric columns, taken block by block with missing values left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpumlp.data.columns import Rows

Vector = npt.NDArray[np.float64]

MISSING_RULES = ("refuse", "mean", "median", "most_frequent")


def missing_line(name: str, row: int) -> str:
    """Return the line about a missing value in a row, which is counted from 0 here and from 1 in the line."""
    return (
        f"column {name!r} has no value in row {row + 1} (counted from 1, without a header); "
        "mend or remove the row, or say how to fill it: missing='mean', 'median', 'most_frequent' or a number "
        "(gpumlp train: --set data.missing=mean)"
    )


def check_finite(
    block: npt.NDArray[Any], names: Sequence[str], start: int, rows: Rows | None, *, allow_missing: bool
) -> None:
    """Raise a ValueError that names column and row of the first infinite, or missing, value of a block.

    Args:
        block: (m, f) numbers.
        names: the f columns.
        start: row number of the block's first row.
        rows: the row in the file of each row, where they are not in the order of the file.
        allow_missing: whether NaN may stand.
    """
    if block.dtype.kind not in "fc":
        return
    finite = np.isfinite(block)
    if finite.all():
        return
    bad = np.isinf(block) if allow_missing else ~finite
    if not bad.any():
        return
    i, j = np.argwhere(bad)[0]
    row = int(start + i if rows is None else rows[start + i])
    if np.isnan(block[i, j]):
        raise ValueError(missing_line(names[j], row))
    raise ValueError(
        f"column {names[j]!r} holds {block[i, j]} in row {row + 1} (counted from 1, without a header); "
        "expected finite numbers that float32 can hold: mend or remove the row"
    )


class Moments:
    """Count, mean, sum of squared deviations, minimum and maximum of each of f columns, NaN left out.

    Blocks are merged as Chan, Golub and LeVeque do (1983, The American Statistician 37, 242-247), which is
    stable however far the mean is from 0.
    """

    def __init__(self, n_columns: int) -> None:
        self.count, self.mean, self.m2 = np.zeros(n_columns), np.zeros(n_columns), np.zeros(n_columns)
        self.low, self.high = np.full(n_columns, np.inf), np.full(n_columns, -np.inf)

    def update(self, block: npt.NDArray[np.float64]) -> None:
        """Take in a block of rows, float64 (m, f)."""
        present = ~np.isnan(block)
        count = present.sum(axis=0).astype(np.float64)
        some = np.maximum(count, 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.where(present, block, 0.0).sum(axis=0) / some
            m2 = np.square(np.where(present, block - mean, 0.0)).sum(axis=0)
            self._merge(count, mean, m2)
        self.low = np.fmin(self.low, np.fmin.reduce(block, axis=0))
        self.high = np.fmax(self.high, np.fmax.reduce(block, axis=0))

    def _merge(self, count: Vector, mean: Vector, m2: Vector) -> None:
        total = np.maximum(self.count + count, 1.0)
        delta = mean - self.mean
        self.m2 = self.m2 + m2 + np.square(delta) * self.count * count / total
        self.mean = self.mean + delta * count / total
        self.count = self.count + count

    def with_filled(self, fill: Vector, n_rows: int, names: Sequence[str]) -> tuple[Vector, Vector]:
        """Return (mean, population deviation) of the columns once each missing value is the fill value.

        Raises:
            ValueError: numbers so large that their squares overflow.
        """
        missing = n_rows - self.count
        filled = missing > 0
        value = np.where(filled, fill, self.mean)
        with np.errstate(over="ignore", invalid="ignore"):
            self._merge(missing, value, np.zeros_like(value))
            std = np.sqrt(self.m2 / n_rows)
        overflow = np.flatnonzero(~(np.isfinite(self.mean) & np.isfinite(std)))
        if overflow.size:
            j = overflow[0]
            raise ValueError(
                f"column {names[j]!r} reaches from {self.low[j]:g} to {self.high[j]:g}, too far to "
                "standardise; rescale it"
            )
        low = np.where(filled, np.fmin(self.low, value), self.low)
        high = np.where(filled, np.fmax(self.high, value), self.high)
        # exactly constant: rounding in the sums would otherwise leave a tiny deviation that blows up a new
        # value
        constant = (low == high) | (std == 0)
        return np.where(constant, low, self.mean), np.where(constant, 1.0, std)


def fill_values(
    rule: str | float, moments: Moments, values: npt.NDArray[Any], rows: Rows | None, names: Sequence[str]
) -> Vector:
    """Return what stands in for a missing value of each column, float64 (f,); NaN where they are refused.

    Args:
        rule: one of `MISSING_RULES`, or a number.
        moments: of the training rows.
        values: (n, f), all rows.
        rows: the training rows.
        names: the f columns.

    Raises:
        ValueError: a column with no value to learn from.
    """
    if rule == "refuse":
        return np.full(len(names), np.nan)
    if not isinstance(rule, str):
        return np.full(len(names), float(rule))
    empty = np.flatnonzero(moments.count == 0)
    if empty.size:
        raise ValueError(
            f"column {names[empty[0]]!r} holds no value in the training rows; leave it out (drop), or give "
            "missing a number"
        )
    if rule == "mean":
        return moments.mean.copy()
    middle = np.median if rule == "median" else _most_frequent
    return np.array([middle(_present(values, rows, j)) for j in range(len(names))], np.float64)


def _present(values: npt.NDArray[Any], rows: Rows | None, j: int) -> Vector:
    column = np.asarray(values[:, j] if rows is None else values[rows, j], np.float64)
    return column[~np.isnan(column)]


def _most_frequent(column: Vector) -> float:
    found, counts = np.unique(column, return_counts=True)
    return float(found[np.argmax(counts)])
