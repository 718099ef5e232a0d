"""The preprocessor: columns by name to one float32 matrix, with statistics of the training rows only.

scikit-learn's SimpleImputer, OneHotEncoder and StandardScaler are the model for what is computed, and the
tests hold it to them. They are not used here: together they make several float64 copies of the whole set,
need pandas to take columns by name, and are saved by pickle, which gpumlp never reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpumlp.data.categories import category_codes, fit_categories, write_one_hot
from gpumlp.data.columns import (
    Kind,
    Rows,
    column_names,
    kind_of,
    listing,
    numbers,
    refuse_duplicates,
    row_blocks,
)
from gpumlp.data.statistics import MISSING_RULES, Moments, check_finite, fill_values
from gpumlp.data.targets import number_list
from gpumlp.registry import nearest

if TYPE_CHECKING:
    import pyarrow as pa

Matrix = npt.NDArray[np.float32]


class Preprocessor:
    """Turns features into the float32 matrix that a network reads, always in the way of its training rows.

    Numeric columns become float32, standardised or scaled; text, dictionary and boolean columns are one-hot
    encoded with the categories of the training rows. Columns of a table are taken by name. Infinite values
    are refused.

    Args:
        standardize: (x - mean) / std of each numeric column, with the population deviation; a constant column
            keeps the deviation 1.
        missing: "refuse", or what stands in for a missing value of a numeric column: its "mean", "median" or
            "most_frequent" value in the training rows, or a number. Imputed categories are always the most
            frequent.
        unknown: at a category that training did not have, "error", or "ignore" for all zeros.
        scale: without standardisation, numeric columns are multiplied by it (1/255 for pixels).

    Raises:
        ValueError: an unknown setting.
    """

    FORMAT = "gpumlp preprocessor"
    VERSION = 1

    def __init__(
        self,
        *,
        standardize: bool = True,
        missing: str | float = "refuse",
        unknown: str = "error",
        scale: float = 1.0,
    ) -> None:
        if isinstance(missing, str) and missing not in MISSING_RULES:
            raise ValueError(
                f"unknown rule {missing!r} for missing values{nearest(missing, MISSING_RULES)}, or a number"
            )
        if isinstance(missing, bool) or not isinstance(missing, str | float | int | np.number):
            raise TypeError(f"missing is {missing!r}; expected one of {listing(MISSING_RULES)}, or a number")
        if not isinstance(missing, str) and not np.isfinite(missing):
            raise ValueError(f"missing values cannot be filled with {missing}; give a finite number")
        if unknown not in ("error", "ignore"):
            raise ValueError(
                f"unknown rule {unknown!r} for unknown categories{nearest(unknown, ('error', 'ignore'))}"
            )
        if not np.isfinite(scale) or scale <= 0:
            raise ValueError(f"scale is {scale}; expected a finite number above 0")
        if standardize and scale != 1.0:
            raise ValueError(
                f"scale {scale} has no effect on standardised columns; give standardize=False with it"
            )
        self.standardize, self.unknown, self.scale = bool(standardize), unknown, float(scale)
        self.missing: str | float = missing if isinstance(missing, str) else float(missing)
        self.feature_names: list[str] = []
        self.kinds: list[Kind] = []
        self.categories: dict[str, list[str]] = {}
        self.category_fill: dict[str, str] = {}
        # one entry for each column of the input, unused where it is categorical; fill is NaN where missing
        # values are refused
        self.mean = self.std = self.fill = np.empty(0)

    def fit(
        self, features: Any, feature_names: Sequence[str] | None = None, rows: Rows | None = None
    ) -> Preprocessor:
        """Learn kinds, categories, statistics and fill values from the training rows, and return self.

        Args:
            features: a `pyarrow.Table`, or an array of numbers (n, f).
            feature_names: names of the columns of an array; x0, x1, ... where not given.
            rows: indices of the training rows; all rows where not given.

        Raises:
            ValueError: a column of dates, bytes and the like; a missing value that is refused; an infinite
                value; a column without any value; more than 1000 categories in a column.
        """
        names = column_names(features, feature_names)
        refuse_duplicates(names, "the table")
        count = len(features) if rows is None else len(rows)
        if not count or not names:
            raise ValueError(
                f"nothing to learn from: {count} training rows of {len(names)} columns; expected one at least"
            )
        self.feature_names, self.categories, self.category_fill = names, {}, {}
        if isinstance(features, np.ndarray):
            self.kinds = ["numeric"] * len(names)
            self.fill, self.mean, self.std = self._fit_numeric(features, names, rows)
            return self
        self.kinds = [kind_of(features.column(name), name) for name in names]
        self.fill, self.mean, self.std = np.full((3, len(names)), [[np.nan], [0.0], [1.0]])
        for j, (name, kind) in enumerate(zip(names, self.kinds, strict=True)):
            column = features.column(name)
            if kind == "numeric":
                fitted = self._fit_numeric(numbers(column)[:, np.newaxis], [name], rows)
                self.fill[j], self.mean[j], self.std[j] = (part.item() for part in fitted)
                continue
            found, most_frequent = fit_categories(column if rows is None else column.take(rows), name)
            self.categories[name] = found
            if self.missing != "refuse":
                self.category_fill[name] = most_frequent
        return self

    def _fit_numeric(
        self, values: npt.NDArray[Any], names: Sequence[str], rows: Rows | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        moments = Moments(len(names))
        refuse = self.missing == "refuse"
        if self.standardize or not refuse:
            for start, block in row_blocks(values, rows):
                check_finite(block, names, start, rows, allow_missing=not refuse)
                moments.update(np.asarray(block, np.float64))
        fill = fill_values(self.missing, moments, values, rows, names)
        if not self.standardize:
            return fill, np.zeros(len(names)), np.full(len(names), 1.0 / self.scale)
        return fill, *moments.with_filled(fill, len(values) if rows is None else len(rows), names)

    @property
    def feature_names_out(self) -> list[str]:
        """Names of the columns of the matrix: the column's own, and column=category for one-hot columns."""
        return [
            f"{name}={category}" if category is not None else name
            for name in self.feature_names
            for category in self.categories.get(name, [None])
        ]

    @property
    def n_features_out(self) -> int:
        """Number of columns of the matrix: what the network takes in."""
        return sum(len(self.categories.get(name, ("",))) for name in self.feature_names)

    def transform(
        self,
        features: Any,
        feature_names: Sequence[str] | None = None,
        rows: Rows | None = None,
        out: Matrix | None = None,
    ) -> Matrix:
        """Return the features as a C-contiguous float32 matrix (n, n_features_out), ready for the network.

        Args:
            features: a `pyarrow.Table`, whose columns are taken by name in any order, or an array (n, f) in
                the order of training (by name where `feature_names` are those of training in another order).
            feature_names: names of the columns of an array.
            rows: the rows to take, in their order; all rows where not given.
            out: the matrix to write into, which may be the features themselves where all rows are taken.
                Without it, float32 features that need no change are returned as they are, not copied.

        Raises:
            ValueError: missing columns, a wrong number of them, text for numbers, a missing or infinite
                value, an unknown category.
        """
        if not self.feature_names:
            raise ValueError("the preprocessor is not fitted; call fit with the training rows first")
        count = (len(features) if rows is None else len(rows), self.n_features_out)
        if out is not None and (out.shape != count or out.dtype != np.float32):
            raise ValueError(f"out is {out.dtype} {out.shape}; expected float32 {count}")
        if isinstance(features, np.ndarray):
            columns = self._columns_of_array(features, feature_names)
            if out is None and rows is None and columns is None and self.leaves_alone(features):
                self.check(features, feature_names)
                return features
            out = np.empty(count, np.float32) if out is None else out
            every = np.arange(len(self.feature_names))
            for start, block in row_blocks(features, rows):
                block = block if columns is None else block[:, columns]
                self._write(out[start : start + len(block)], block, every, start, rows)
            return out
        out = np.empty(count, np.float32) if out is None else out
        self._transform_table(features, rows, out)
        return out

    def check(self, array: npt.NDArray[Any], feature_names: Sequence[str] | None = None) -> None:
        """Raise the ValueError that `transform` raises for a missing or infinite value of an array (n, f)."""
        columns = self._columns_of_array(array, feature_names)
        for start, block in row_blocks(array):
            block = block if columns is None else block[:, columns]
            check_finite(block, self.feature_names, start, None, allow_missing=self.missing != "refuse")

    def leaves_alone(self, array: npt.NDArray[Any]) -> bool:
        """Return whether `transform` gives back the very same array: float32, and no value to change."""
        return bool(
            array.dtype == np.float32
            and array.dtype.isnative
            and array.flags.c_contiguous
            and self.missing == "refuse"
            and not self.mean.any()
            and np.all(self.std == 1.0)
        )

    def _write(
        self, out: Matrix, block: npt.NDArray[Any], which: npt.NDArray[np.intp], start: int, rows: Rows | None
    ) -> None:
        names = [self.feature_names[j] for j in which]
        check_finite(block, names, start, rows, allow_missing=self.missing != "refuse")
        values = np.array(block, dtype=np.float64)
        if self.missing != "refuse":
            np.copyto(values, self.fill[which], where=np.isnan(values))
        values -= self.mean[which]
        values /= self.std[which]
        with np.errstate(over="ignore"):
            out[...] = values
        check_finite(out, names, start, rows, allow_missing=False)

    def _transform_table(self, table: pa.Table, rows: Rows | None, out: Matrix) -> None:
        present = table.column_names
        lacking = [name for name in self.feature_names if name not in set(present)]
        if lacking:
            raise ValueError(
                f"the table lacks columns that the model was trained on: {listing(lacking, 20)}; "
                f"it has {listing(present, 20)}: add them (their order does not matter)"
            )
        refuse_duplicates([name for name in present if name in set(self.feature_names)], "the table")
        at = 0
        for j, (name, kind) in enumerate(zip(self.feature_names, self.kinds, strict=True)):
            column = table.column(name)
            if kind == "numeric":
                if kind_of(column, name) == "text":
                    raise ValueError(f"column {name!r} holds text; it was numeric in training: give numbers")
                values = numbers(column)[:, np.newaxis]
                for start, block in row_blocks(values, rows):
                    self._write(
                        out[start : start + len(block), at : at + 1], block, np.array([j]), start, rows
                    )
                at += 1
            else:
                known = self.categories[name]
                codes = category_codes(column, name, kind, known, self.category_fill.get(name), self.unknown)
                write_one_hot(out[:, at : at + len(known)], codes if rows is None else codes[rows])
                at += len(known)

    def _columns_of_array(
        self, array: npt.NDArray[Any], names: Sequence[str] | None
    ) -> npt.NDArray[np.intp] | None:
        if self.categories:
            raise ValueError(
                f"the model has categorical columns ({listing(list(self.categories))}); "
                "give a table with named columns (CSV or Parquet), not an array"
            )
        if array.ndim != 2 or array.shape[1] != len(self.feature_names):
            found = f"{array.shape[1]} features" if array.ndim == 2 else f"shape {array.shape}"
            raise ValueError(
                f"the array has {found}; the model was trained on {len(self.feature_names)}: "
                f"give (rows, {len(self.feature_names)})"
            )
        if names is None or list(names) == self.feature_names or set(names) != set(self.feature_names):
            return None
        place = {name: j for j, name in enumerate(names)}
        return np.array([place[name] for name in self.feature_names])

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values for JSON; `from_dict` gives the same preprocessor back, to the bit."""
        return {
            "format": self.FORMAT,
            "version": self.VERSION,
            "standardize": self.standardize,
            "missing": self.missing,
            "unknown": self.unknown,
            "scale": self.scale,
            "feature_names": list(self.feature_names),
            "kinds": list(self.kinds),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            # JSON has no NaN: nothing to fill is written as an empty list
            "fill": [] if self.missing == "refuse" else np.nan_to_num(self.fill).tolist(),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "category_fill": dict(self.category_fill),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessor:
        """Return the preprocessor that `to_dict` wrote.

        Raises:
            ValueError: a mapping that `to_dict` did not write, or a damaged one.
        """
        if not isinstance(values, Mapping) or values.get("format") != cls.FORMAT:
            raise ValueError(f"not a preprocessor of gpumlp: expected a table with format {cls.FORMAT!r}")
        if values.get("version") != cls.VERSION:
            raise ValueError(
                f"preprocessor of version {values.get('version')!r}; this gpumlp reads version "
                f"{cls.VERSION}: update gpumlp"
            )
        try:
            made = cls(**{key: values[key] for key in ("standardize", "missing", "unknown", "scale")})
            made.feature_names, made.kinds = list(values["feature_names"]), list(values["kinds"])
            made.categories = {str(k): list(v) for k, v in values["categories"].items()}
            made.category_fill = dict(values["category_fill"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the preprocessor is damaged or not written by gpumlp: {error!r}") from None
        made.mean, made.std = np.array(number_list(values, "mean")), np.array(number_list(values, "std"))
        made.fill = np.array(number_list(values, "fill"))
        if made.missing == "refuse":
            made.fill = np.full(len(made.feature_names), np.nan)
        made._check_parts()
        return made

    def _check_parts(self) -> None:
        encoded = [
            name for name, kind in zip(self.feature_names, self.kinds, strict=False) if kind != "numeric"
        ]
        texts: Iterable[Any] = (
            *self.feature_names,
            *self.category_fill.values(),
            *chain.from_iterable(self.categories.values()),
        )
        sound = (
            self.feature_names
            and len({len(part) for part in (self.feature_names, self.kinds, self.mean, self.std, self.fill)})
            == 1
            and all(isinstance(value, str) for value in texts)
            and set(self.kinds) <= {"numeric", "text", "boolean"}
            and set(encoded) == set(self.categories)
            and all(self.categories.values())
            and (self.missing == "refuse" or set(self.category_fill) == set(encoded))
            and np.all(self.std > 0)
        )
        if not sound:
            raise ValueError(
                "the preprocessor is damaged or not written by gpumlp: its parts do not go together"
            )

    def __repr__(self) -> str:
        return (
            f"Preprocessor(standardize={self.standardize}, missing={self.missing!r}, "
            f"unknown={self.unknown!r}, "
            f"scale={self.scale:g}: {len(self.feature_names)} columns to {self.n_features_out})"
        )
