"""A data set, its split into training and test rows, and the one float32 matrix that both are views of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gpumlp.data.columns import Rows, column_names, listing, row_blocks
from gpumlp.data.features import Matrix, Preprocessor
from gpumlp.data.targets import TargetScaler, Task

DEFAULT_TEST_SIZE = 0.2


@dataclass(repr=False, eq=False)
class Dataset:
    """Features and targets as they were read, before any split or preprocessing.

    Args:
        name: what reports call it.
        features: a `pyarrow.Table` of n rows, or an array of numbers (n, f), which may be mapped from a file.
        y: int64 codes (n,) for classification; float32 (n,) or (n, k) for regression; None where there is no
            target.
        feature_names: names of the f columns; those of the table, or x0, x1, ... where not given.
        target_names: names of the target columns.
        classes: class names in the order of their codes; None for regression.
        n_train: where the set comes with a split: the first n_train rows are for training, the others for
            testing.

    Raises:
        ValueError: lengths or codes that do not go together, or a regression target that is not finite.
    """

    name: str
    features: Any
    y: Any = None
    feature_names: list[str] = field(default_factory=list)
    target_names: list[str] = field(default_factory=lambda: ["y"])
    classes: list[str] | None = None
    n_train: int | None = None

    def __post_init__(self) -> None:
        self._spent = False
        self.feature_names = column_names(self.features, self.feature_names or None)
        n = self.n_samples
        if self.n_train is not None and not 0 < self.n_train <= n:
            raise ValueError(f"{self.name}: n_train is {self.n_train}; expected 1 to {n}, the number of rows")
        if self.y is None:
            return
        if len(self.y) != n:
            raise ValueError(
                f"{self.name}: X has {n} rows and y has {len(self.y)}; give one target for each row"
            )
        if self.classes is None:
            self.y = np.asarray(self.y, np.float32)
            if not np.isfinite(self.y).all():
                row = int(np.argwhere(~np.isfinite(self.y))[0][0])
                raise ValueError(
                    f"{self.name}: y holds {self.y[row]} in row {row + 1}; expected finite numbers: mend the "
                    "row"
                )
        else:
            self.y = np.asarray(self.y, np.int64)
            if self.y.ndim != 1 or (n and not 0 <= self.y.min() <= self.y.max() < len(self.classes)):
                raise ValueError(
                    f"{self.name}: y has shape {self.y.shape}; expected one code of 0 to "
                    f"{len(self.classes) - 1} a row"
                )

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return len(self.features)

    @property
    def n_features(self) -> int:
        """Number of columns before one-hot encoding."""
        return len(self.feature_names)

    @property
    def task(self) -> Task:
        """Return "classification" where there are classes, else "regression".

        Raises:
            ValueError: a set without a target.
        """
        if self.y is None:
            raise ValueError(f"{self.name} has no target; name a target column to train or to evaluate on it")
        return "regression" if self.classes is None else "classification"

    @property
    def labels(self) -> npt.NDArray[np.str_]:
        """Class names of the rows, text (n,).

        Raises:
            ValueError: a set that is not one of classification.
        """
        if self.y is None or self.classes is None:
            raise ValueError(f"{self.name} has no classes; labels are for classification")
        return np.array(self.classes)[self.y]

    def _use(self) -> Any:
        if self._spent:
            raise ValueError(
                f"{self.name} was overwritten by prepare(copy=False); load it again to use it anew"
            )
        return self.features

    def __repr__(self) -> str:
        split = "" if self.n_train is None else f", the first {self.n_train} for training"
        target = "no target"
        if self.y is not None:
            target = f"regression of {listing(self.target_names)}"
        if self.y is not None and self.classes is not None:
            target = f"classification of {listing(self.target_names)}: {listing(self.classes)}"
        return (
            f"Dataset({self.name!r}: {self.n_samples} rows{split}; "
            f"{self.n_features} features: {listing(self.feature_names, 5)}; {target})"
        )


@dataclass(repr=False, eq=False)
class Prepared:
    """A data set ready for training: float32 features, training rows first, and views of both parts.

    Args:
        name: name of the data set.
        X: float32 (n, n_features), C-contiguous: the training rows, then the test rows.
        y: targets in the same order: int64 codes (n,), or float32 (n,) or (n, k), standardised where asked
            for.
        train_rows: where each training row stood in the data set, int64 (n_train,).
        test_rows: the same for the test rows, int64 (n_test,).
        feature_names: names of the columns of X, one-hot columns as column=category.
        target_names: names of the target columns.
        classes: class names in the order of their codes; None for regression.
        preprocessor: fitted on the training rows; kept with the model.
        target_scaler: fitted on the training rows where targets were standardised, else None.
    """

    name: str
    X: Matrix
    y: npt.NDArray[Any]
    train_rows: Rows
    test_rows: Rows
    feature_names: list[str]
    target_names: list[str]
    classes: list[str] | None
    preprocessor: Preprocessor
    target_scaler: TargetScaler | None = None

    @property
    def n_train(self) -> int:
        """Number of training rows."""
        return len(self.train_rows)

    @property
    def X_train(self) -> Matrix:
        """Features of the training rows, a view (n_train, n_features)."""
        return self.X[: self.n_train]

    @property
    def y_train(self) -> npt.NDArray[Any]:
        """Targets of the training rows, a view."""
        return self.y[: self.n_train]

    @property
    def X_test(self) -> Matrix:
        """Features of the test rows, a view (n_test, n_features)."""
        return self.X[self.n_train :]

    @property
    def y_test(self) -> npt.NDArray[Any]:
        """Targets of the test rows, a view."""
        return self.y[self.n_train :]

    @property
    def task(self) -> Task:
        """Return "classification" or "regression"."""
        return "regression" if self.classes is None else "classification"

    def __repr__(self) -> str:
        return (
            f"Prepared({self.name!r}: {self.n_train} training and {len(self.test_rows)} test rows, "
            f"{self.X.shape[1]} features, {self.task})"
        )


def split_rows(
    dataset: Dataset, test_size: float | int | None = None, seed: int = 0, stratify: bool = True
) -> tuple[Rows, Rows]:
    """Return the indices (train_rows, test_rows), int64, shuffled.

    Args:
        dataset: the data set.
        test_size: fraction of the rows in (0, 1), or their number; 0 for no test rows. None: the set's own
            split, in its order, where it has one, else 0.2.
        seed: of the shuffle.
        stratify: keep the shares of the classes in both parts. Where a class has fewer than 2 rows, or a part
            has fewer rows than there are classes, the split is at random.

    Raises:
        ValueError: a size that leaves no training rows, or is negative; a seed that is none.
    """
    n = dataset.n_samples
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 1 << 32:
        raise ValueError(f"seed is {seed!r}; expected a whole number from 0 to 2**32 - 1")
    if test_size is None and dataset.n_train is not None:
        rows = np.arange(n, dtype=np.int64)
        return rows[: dataset.n_train], rows[dataset.n_train :]
    test_size = DEFAULT_TEST_SIZE if test_size is None else test_size
    if isinstance(test_size, bool) or not isinstance(test_size, int | float | np.number):
        raise TypeError(f"test_size is {test_size!r}; expected a fraction of the rows, or their number")
    whole = not isinstance(test_size, float | np.floating)
    if not (0 <= test_size < 1 or (whole and 0 < test_size < n)):
        raise ValueError(
            f"test_size is {test_size}; expected a fraction from 0 to below 1, or a number of rows below {n}"
        )
    n_test = int(np.ceil(n * test_size)) if test_size < 1 else int(test_size)
    if n_test == n:
        raise ValueError(
            f"test_size {test_size} of {n} rows leaves no rows for training; give more data or a smaller test"
        )
    rows = np.arange(n, dtype=np.int64)
    if n_test == 0:
        return np.random.default_rng(seed).permutation(rows), rows[:0]
    from sklearn.model_selection import train_test_split

    by = dataset.y if stratify and _can_stratify(dataset, n_test) else None
    train_rows, test_rows = train_test_split(rows, test_size=n_test, random_state=seed, stratify=by)
    return train_rows, test_rows


def _can_stratify(dataset: Dataset, n_test: int) -> bool:
    if dataset.y is None or dataset.classes is None:
        return False
    counts = np.bincount(dataset.y)
    counts = counts[counts > 0]
    return bool(counts.min() >= 2 and min(n_test, dataset.n_samples - n_test) >= len(counts))


def prepare(
    dataset: Dataset,
    *,
    test_size: float | int | None = None,
    seed: int = 0,
    stratify: bool = True,
    standardize: bool = True,
    missing: str | float = "refuse",
    unknown: str = "error",
    scale: float = 1.0,
    standardize_target: bool = False,
    copy: bool = True,
) -> Prepared:
    """Split a set, fit the preprocessor on the training rows, and return both parts in one float32 matrix.

    Args:
        dataset: a data set with a target.
        test_size: as in `split_rows`.
        seed: of the split.
        stratify: as in `split_rows`.
        standardize: as in `Preprocessor`.
        missing: as in `Preprocessor`.
        unknown: as in `Preprocessor`.
        scale: as in `Preprocessor`.
        standardize_target: standardise a regression target; `Prepared.target_scaler` turns predictions back.
        copy: with False a float32 array of the data set is reordered and transformed where it lies, so that
            the set is in memory once; the data set cannot be used after that. A table or a file mapped into
            memory is left alone, and float32 rows in order that need no change are never copied.

    Raises:
        ValueError: whatever `split_rows` and `Preprocessor` refuse; a target that is none.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}; expected a gm.data.Dataset, such as gm.data.load('iris') gives "
            "(arrays go to Trainer.fit as they are)"
        )
    task = dataset.task
    if standardize_target and task == "classification":
        raise ValueError(f"{dataset.name} is a set of classification; standardize_target is for regression")
    features, y = dataset._use(), np.asarray(dataset.y)
    train_rows, test_rows = split_rows(dataset, test_size, seed, stratify)
    order = np.concatenate([train_rows, test_rows])
    in_order = bool(np.array_equal(order, np.arange(len(order))))
    preprocessor = Preprocessor(standardize=standardize, missing=missing, unknown=unknown, scale=scale)
    # sorted, so that a file is read from front to back and a mistake is named by the first row that has it
    preprocessor.fit(features, dataset.feature_names, np.sort(train_rows))
    if not copy and _is_own_matrix(features):
        X = _transform_in_place(dataset, preprocessor, None if in_order else order)
    else:
        X = preprocessor.transform(features, rows=None if in_order else order)
    y = y if in_order else y[order]
    scaler = TargetScaler.fit(y[: len(train_rows)]) if standardize_target else None
    return Prepared(
        name=dataset.name,
        X=X,
        y=y if scaler is None else scaler.transform(y),
        train_rows=train_rows,
        test_rows=test_rows,
        feature_names=preprocessor.feature_names_out,
        target_names=dataset.target_names,
        classes=dataset.classes,
        preprocessor=preprocessor,
        target_scaler=scaler,
    )


def _is_own_matrix(features: Any) -> bool:
    return (
        isinstance(features, np.ndarray)
        and features.dtype == np.float32
        and features.dtype.isnative
        and features.flags.c_contiguous
        and features.flags.writeable
    )


def _transform_in_place(dataset: Dataset, preprocessor: Preprocessor, order: Rows | None) -> Matrix:
    X: Matrix = dataset.features
    preprocessor.check(X)  # before the first change, so that a refused set is left whole
    if order is None and preprocessor.leaves_alone(X):
        return X
    dataset._spent = True
    if order is not None:
        # a strip of columns at a time: the temporary copy is a sixteenth of the matrix, or one column
        step = max(1, X.shape[1] // 16)
        for j in range(0, X.shape[1], step):
            X[:, j : j + step] = X[order, j : j + step]
    return preprocessor.transform(X, out=X)


def features_for_prediction(preprocessor: Preprocessor, data: Any) -> Matrix:
    """Return the features of new data as the model reads them: float32 (n, n_features), C-contiguous.

    Args:
        preprocessor: kept with the model.
        data: a `Dataset`, a `pyarrow.Table` (columns by name; others are ignored), or an array or nested list
            (n, f) in the order of training.

    Raises:
        ValueError: missing columns, a wrong number of features, and what `Preprocessor.transform` refuses.
        TypeError: data of another type.
    """
    if isinstance(data, Dataset):
        return preprocessor.transform(data._use(), data.feature_names)
    if hasattr(data, "column_names") and hasattr(data, "column"):
        return preprocessor.transform(data)
    array = np.asarray(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"expected a Dataset, a pyarrow.Table or an array of numbers; got {type(data).__name__} of "
            f"{array.dtype}"
        )
    return preprocessor.transform(array)


def float32_matrix(array: npt.NDArray[Any], columns: Sequence[int] | None = None) -> Matrix:
    """Return an array (n, f), or the chosen columns of it, as a new float32 matrix, block by block."""
    out = np.empty((len(array), array.shape[1] if columns is None else len(columns)), np.float32)
    for start, block in row_blocks(array):
        with np.errstate(over="ignore"):
            out[start : start + len(block)] = block if columns is None else block[:, columns]
    return out
