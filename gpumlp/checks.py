"""Checks of what a user gives; each mistake is one line: what was given, what was expected, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import PRECISIONS
from .interchange import is_on_gpu, to_host

if TYPE_CHECKING:
    from .backend import Backend


def as_matrix(x: Any, dtype: str, name: str = "X", backend: Backend | None = None) -> Any:
    """Return `x` as a C-contiguous matrix of `dtype`; no copy where it is one.

    Args:
        x: of any library; on the host, or on a GPU.
        dtype: wanted.
        name: in messages.
        backend: the network's; an array that lies on its GPU stays there. All others come to the host.

    Raises:
        ValueError: not a matrix of numbers, or NaN or infinity in it.
    """
    if x is None:
        raise ValueError(f"{name} is None; expected (rows, features)")
    refuse_masked(x, name)
    try:
        if backend is not None and backend.device is not None and is_on_gpu(x):
            array = backend.asarray(x, dtype=dtype)
        else:
            array = np.asarray(to_host(x))
            with np.errstate(over="ignore"):  # an infinity is refused below
                array = np.ascontiguousarray(array, dtype=dtype)
    except (TypeError, ValueError) as error:
        if "cannot be read" in str(error):
            raise
        raise ValueError(
            f"{name} has values that are not numbers; expected a matrix of numbers (one-hot encode categories first, "
            "and make a sparse matrix dense: X.toarray())"
        ) from None
    if array.ndim == 1:
        raise ValueError(
            f"{name} has shape {array.shape}; expected (rows, features): use {name}.reshape(-1, 1) or (1, -1)"
        )
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}; expected (rows, features), at least one of each")
    if isinstance(array, np.ndarray):
        check_finite(array, name)
    elif backend is not None:
        with backend.active():
            finite = bool((array - array == 0).all())
        if not finite:  # the first such row is looked for on the host
            check_finite(to_host(array), name)
    return array


def refuse_masked(values: Any, name: str) -> None:
    """Raise a ValueError for a NumPy array of which some entries are masked."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        count = int(np.ma.getmaskarray(values).sum())
        raise ValueError(
            f"{name} is a masked array with {count} masked entries; remove such rows or fill them: {name}.filled(value)"
        )


def on_host(values: Any, name: str) -> Any:
    """Return values on the host, see `to_host`; a ValueError where some are masked, which NumPy would read."""
    refuse_masked(values, name)
    return to_host(values)


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise a ValueError that names the first row with a NaN or an infinity.

    The check goes block by block: a mask of the whole set would cost a quarter of its memory.
    """
    if array.dtype.kind != "f":
        return
    rows = max(1, 1_000_000 // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        if not np.isfinite(block).all():
            place = np.argwhere(~np.isfinite(block))[0]
            row = start + int(place[0])
            column = f", column {int(place[1])}" if len(place) > 1 else ""
            value = block[tuple(place)]
            raise ValueError(
                f"{name} has {value} in row {row}{column}; remove or impute such rows before training"
            )


def check_labels(y: Any) -> None:
    """Raise a ValueError that names the first row without a text label: None or NaN, in a list or among objects."""
    # as objects: NumPy would make the text "nan" of NaN
    labels = y if isinstance(y, np.ndarray) else np.asarray(y, dtype=object)
    if labels.dtype.kind == "O":
        missing = [i for i, label in enumerate(labels.ravel()) if label is None or label != label]
        if missing:
            raise ValueError(
                f"y has {labels.ravel()[missing[0]]} in row {missing[0]}; expected a label in every row"
            )


def check_width(x: np.ndarray, in_features: int) -> None:
    """Raise a ValueError unless `x` has as many features as the network takes."""
    if x.shape[1] != in_features:
        raise ValueError(f"X has {x.shape[1]} features; the network takes {in_features}")


def check_lengths(n: int, **others: Any) -> None:
    """Raise a ValueError unless all have `n` rows."""
    for name, other in others.items():
        if other is None:
            continue
        if not hasattr(other, "__len__") or getattr(other, "ndim", 1) == 0:
            raise ValueError(f"{name} is {other!r}; expected one entry for each of the {n} rows of X")
        if len(other) != n:
            raise ValueError(f"X has {n} rows and {name} has {len(other)}; they must be equal")


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least `least` as an int, else raise a ValueError."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return int(value)


def check_seed(seed: Any) -> int:
    """Return a seed as an int of 63 bits, else raise a ValueError."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= int(seed) < 1 << 63:
        raise ValueError(f"seed is {seed!r}; expected a whole number from 0 to 2**63 - 1")
    return int(seed)


def as_weights(sample_weight: Any, n: int) -> np.ndarray | None:
    """Return sample weights as float64 (n,), or None.

    Raises:
        ValueError: another shape, negative or non-finite weights, or none above 0.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(on_host(sample_weight, "sample_weight"), dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(f"sample_weight has shape {weights.shape}; expected ({n},), one for each row of X")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(
            "sample_weight has negative or non-finite values, or only zeros; expected weights of at least 0"
        )
    return weights


def as_rows(rows: Any, n: int) -> np.ndarray:
    """Return indices of rows as int64.

    Raises:
        ValueError: none, some outside 0 ... n - 1, or no whole numbers (a mask, for example).
    """
    array = np.asarray(rows)
    whole = array.dtype.kind in "iu" and array.ndim == 1 and array.size > 0
    if not whole or array.min() < 0 or array.max() >= n:
        raise ValueError(
            f"rows has shape {array.shape} and type {array.dtype}; expected indices from 0 to {n - 1}, at least "
            "one of them (of a mask: np.flatnonzero(mask))"
        )
    return array.astype(np.int64)


def check_precision(precision: Any, backend: Backend, dtype: Any) -> None:
    """Raise a ValueError for a precision that there is not, or that needs a GPU or float32."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(map(repr, PRECISIONS))}")
    if precision != "float32" and not backend.is_gpu:
        raise ValueError(
            f'precision {precision!r} needs a GPU, and the device is {backend.name}; use "float32"'
        )
    if precision != "float32" and np.dtype(dtype) != np.float32:
        raise ValueError(
            f"precision {precision!r} is for float32, and the dtype is {dtype}; leave one of them out"
        )
