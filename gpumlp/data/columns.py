"""What the columns of a table hold: kinds, numbers, text, and the places of missing values.

A column is a `pyarrow.ChunkedArray`. Everything that reads a table (features, targets, files) goes through
here, so that "numeric", "text" and "missing" mean the same everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["numeric", "text", "boolean"]
Rows = npt.NDArray[np.int64]

# Rows are worked on in blocks of about this many numbers: 1 MiB in float64, so that a block stays in the
# cache and the temporary arrays stay small beside any set that is worth a second look.
BLOCK_ELEMENTS = 2**17


def listing(names: Sequence[str], most: int = 10) -> str:
    """Return the names with commas between, cut after `most` of them."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def name_hint(name: object, names: Sequence[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of the names, or the first of the names there are."""
    same = [other for other in names if other.casefold() == str(name).casefold()]
    close = same or difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {listing(names)}"


def refuse_duplicates(names: Sequence[str], where: str) -> None:
    """Raise a ValueError that names the columns that come more than once."""
    if len(set(names)) < len(names):
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        raise ValueError(
            f"{where} has more than one column called {listing([repr(n) for n in twice])}; give each its own "
            "name"
        )


def kind_of(column: pa.ChunkedArray, name: str) -> Kind:
    """Return how a column is used: as numbers, as text (dictionaries too) or as a boolean.

    Raises:
        ValueError: a column of dates, lists, bytes or another kind that has no plain reading.
    """
    import pyarrow.types as t

    kind = column.type
    if t.is_boolean(kind):
        return "boolean"
    if t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_null(kind):
        return "numeric"
    if t.is_dictionary(kind) or _is_text(kind):
        return "text"
    raise ValueError(
        f"column {name!r} is of type {kind}; expected numbers, text or booleans: convert it, or leave it out "
        "(drop)"
    )


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as t

    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind))


def numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Return a numeric or boolean column as float64 of shape (n,), NaN where a value is missing."""
    import pyarrow as pa

    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    return np.asarray(column.to_numpy(), dtype=np.float64)


def text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as strings: whole numbers without a point, booleans as true and false."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
        present = column.drop_null()
        if (
            len(present)
            and pc.all(pc.equal(pc.trunc(present), present)).as_py()
            and not _beyond_int64(present)
        ):
            column = column.cast(pa.int64())
    return column.cast(pa.string())


def _beyond_int64(column: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc

    return bool(pc.greater_equal(pc.max(pc.abs(column)), 2.0**63).as_py())


def first_missing(column: pa.ChunkedArray) -> int | None:
    """Return the index of the first null or NaN of a column, None where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
    at = pc.index(missing, True).as_py()
    return None if at < 0 else int(at)


def as_column(values: Any) -> pa.ChunkedArray:
    """Return a list or a 1-D NumPy array of numbers, booleans or strings as a column.

    Raises:
        TypeError: values of mixed or other types.
    """
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    try:
        return pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values)])
    except (pa.ArrowException, TypeError) as error:
        raise TypeError(f"expected numbers, booleans or strings, all of one type; {error}") from None


def row_blocks(array: npt.NDArray[Any], rows: Rows | None = None) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield (start, block) over the rows of an array of shape (n, f), or over the chosen rows in their order.

    A block is a view where all rows are taken and a copy of a few rows where they are chosen.
    """
    total = len(array) if rows is None else len(rows)
    step = max(1, BLOCK_ELEMENTS // max(1, array.shape[1]))
    for start in range(0, total, step):
        yield start, array[start : start + step] if rows is None else array[rows[start : start + step]]


def column_names(features: Any, feature_names: Sequence[str] | None = None) -> list[str]:
    """Return the names of a table's columns, those given for an array, or x0, x1, ..."""
    if not isinstance(features, np.ndarray):
        return list(features.column_names)
    if features.ndim != 2:
        raise ValueError(
            f"the features have shape {features.shape}; expected two dimensions: (rows, features)"
        )
    if feature_names is None:
        return [f"x{j}" for j in range(features.shape[1])]
    if len(feature_names) != features.shape[1]:
        raise ValueError(
            f"{len(feature_names)} feature names for {features.shape[1]} columns; give one for each"
        )
    return list(feature_names)
