"""Categorical columns: the categories of the training rows, and one-hot columns for them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpumlp.data.columns import Kind, first_missing, kind_of, listing, text
from gpumlp.data.statistics import missing_line

if TYPE_CHECKING:
    import pyarrow as pa

MOST_CATEGORIES = 1000

MANY_NUMBERS = 10
"""Different numbers to each text of a column from which on the texts look like mistakes."""


def fit_categories(column: pa.ChunkedArray, name: str) -> tuple[list[str], str]:
    """Return (the categories of a column in sorted order, the most frequent of them).

    Raises:
        ValueError: no value at all, or more than 1000 categories.
    """
    import pyarrow.compute as pc

    counts = sorted(
        (entry["values"], entry["counts"]) for entry in pc.value_counts(text(column).drop_null()).to_pylist()
    )
    if not counts:
        raise ValueError(f"column {name!r} holds no value in the training rows; leave it out (drop)")
    _tell_strays(name, [value for value, _ in counts])
    if len(counts) > MOST_CATEGORIES:
        raise ValueError(
            f"column {name!r} holds {len(counts)} different texts; at most {MOST_CATEGORIES} can be one-hot "
            "encoded: "
            "leave it out (drop) or turn it into numbers"
        )
    return [value for value, _ in counts], max(counts, key=lambda entry: entry[1])[0]


def _tell_strays(name: str, values: Sequence[str]) -> None:
    """Warn where a few texts among many numbers make categories of a column that was to be numeric."""
    strays = [repr(value) for value in values if not _is_number(value)]
    numbers = len(values) - len(strays)
    if strays and numbers >= MANY_NUMBERS * len(strays):
        warnings.warn(
            f"column {name!r} holds {listing(strays)} among {numbers} different numbers, and so all of it is text, "
            "one-hot encoded; mend those rows (an empty field is a missing value) to make it numeric",
            UserWarning,
            stacklevel=4,
        )


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def category_codes(
    column: pa.ChunkedArray, name: str, kind: Kind, known: Sequence[str], fill: str | None, unknown: str
) -> npt.NDArray[np.int64]:
    """Return the place of each value among the known categories, int64 (n,); -1 for one that is ignored.

    Args:
        column: the column, of text or what can be read as text.
        name: its name.
        kind: what it was in training; numbers and text are then read as booleans where it was boolean.
        known: the categories of training.
        fill: stands in for a missing value; None refuses them.
        unknown: "error" or "ignore".

    Raises:
        ValueError: a missing value without `fill`; a category unseen in training with "error".
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if kind == "boolean" and kind_of(column, name) == "numeric":
        column = column.cast(pa.bool_())
    values = text(column) if kind == "text" else pc.utf8_lower(text(column))
    at = first_missing(values)
    if at is not None and fill is None:
        raise ValueError(missing_line(name, at))
    if at is not None:
        values = values.fill_null(fill)
    found = pc.index_in(values, value_set=pa.array(known, pa.string())).fill_null(-1)
    codes = np.asarray(found.to_numpy(), np.int64)
    unseen = np.flatnonzero(codes < 0)
    if unseen.size and unknown == "error":
        raise ValueError(
            f"column {name!r} holds {values[int(unseen[0])].as_py()!r} in row {unseen[0] + 1}, unseen in "
            "training; "
            f"it knew {listing(known)}: mend the row, or train with unknown='ignore'"
        )
    return codes


def write_one_hot(out: npt.NDArray[np.float32], codes: npt.NDArray[np.int64]) -> None:
    """Write a 1 into the column of each row's code and 0 elsewhere; a code of -1 gives a row of zeros."""
    out[...] = 0
    hot = np.flatnonzero(codes >= 0)
    out[hot, codes[hot]] = 1
