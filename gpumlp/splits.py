"""Splits of the rows of a data set: a part kept apart, and folds."""

from __future__ import annotations

import numpy as np


def split_rows(n: int, share: float, labels: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (training, held) indices of `n` rows, a share of them held, in each class alike where labels allow.

    Raises:
        ValueError: a share that leaves one side empty.
    """
    held = round(n * share)
    if not 0 < held < n:
        raise ValueError(f"validation_split {share} of {n} rows leaves one side empty; give another share")
    from sklearn.model_selection import train_test_split

    stratify = _stratifiable(labels, held, n - held)
    train, test = train_test_split(np.arange(n), test_size=held, random_state=seed, stratify=stratify)
    return np.sort(train), np.sort(test)


def _stratifiable(labels: np.ndarray | None, *sizes: int) -> np.ndarray | None:
    """The labels where every class has two rows and every side has room for all classes, else None."""
    if labels is None:
        return None
    _, counts = np.unique(labels, return_counts=True)
    return labels if counts.min() >= 2 and min(sizes) >= len(counts) else None


def fold_rows(n: int, k: int, labels: np.ndarray | None, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (training, held) rows of `k` shuffled folds, in each class alike where labels are given.

    Raises:
        ValueError: fewer rows, or fewer of a class, than folds.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    if k > n:
        raise ValueError(f"k is {k}; expected at most the number of rows, {n}")
    if labels is None:
        return list(KFold(k, shuffle=True, random_state=seed).split(np.empty(n)))
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < k:
        raise ValueError(f"a class has {fewest} rows, fewer than k = {k}; lower k, or give stratify=False")
    return list(StratifiedKFold(k, shuffle=True, random_state=seed).split(np.empty(n), labels))
