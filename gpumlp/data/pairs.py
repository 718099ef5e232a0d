"""A training file and a test file as one set with its own split."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpumlp.data.columns import listing
from gpumlp.data.dataset import Dataset


def join(train: Dataset, test: Dataset) -> Dataset:
    """Return the rows of both as one set, those of `train` for training and those of `test` for testing.

    Args:
        train: as `load_file` read it.
        test: of the same columns, in any order, and the same classes.

    Raises:
        ValueError: other columns, targets or classes.
    """
    for what, ours, theirs in (
        ("columns", sorted(train.feature_names), sorted(test.feature_names)),
        ("targets", train.target_names, test.target_names),
        ("classes", train.classes or [], test.classes or []),
    ):
        if ours != theirs:
            raise ValueError(
                f"{test.name} has the {what} {listing(list(theirs)) or '(none)'}; {train.name}, which it tests, has "
                f"{listing(list(ours)) or '(none)'}: give two files of the same {what}"
            )
    return Dataset(
        train.name,
        _stacked(train, test),
        np.concatenate([train.y, test.y]),
        train.feature_names,
        train.target_names,
        train.classes,
        train.n_samples,
    )


def _stacked(train: Dataset, test: Dataset) -> Any:
    if isinstance(train.features, np.ndarray) and isinstance(test.features, np.ndarray):
        order = [test.feature_names.index(name) for name in train.feature_names]
        return np.concatenate([train.features, test.features[:, order]])
    import pyarrow as pa

    if isinstance(train.features, np.ndarray) or isinstance(test.features, np.ndarray):
        raise ValueError(f"{train.name} and {test.name} are a table and an array; give two files of one kind")
    parts = [train.features, test.features.select(train.feature_names)]
    try:
        return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"{train.name} and {test.name} do not go together: {error}; give columns of one type"
        ) from None
