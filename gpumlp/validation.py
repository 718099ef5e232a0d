"""Splits of the rows, and cross-validation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import check_count, check_lengths
from .history import History
from .network import Sequential
from .trainer import Trainer


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


@dataclass
class CrossValidation:
    """What `cross_validate` found.

    Attributes:
        scores: for each fold {"loss": ..., "accuracy": ..., "train_loss": ...}, measured at the end.
        histories: of the folds.
        networks: trained, one a fold.
        folds: (training rows, held rows) of each.
    """

    scores: list[dict[str, float]]
    histories: list[History]
    networks: list[Sequential]
    folds: list[tuple[np.ndarray, np.ndarray]]

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each score over the folds."""
        return {name: float(np.mean([s[name] for s in self.scores])) for name in self.scores[0]}

    @property
    def std(self) -> dict[str, float]:
        """The standard deviation of each score over the folds."""
        return {name: float(np.std([s[name] for s in self.scores])) for name in self.scores[0]}

    def __str__(self) -> str:
        names = list(self.scores[0])
        width = max(12, *map(len, names))
        lines = ["fold  " + "  ".join(name.rjust(width) for name in names)]
        for label, row in [*((str(i + 1), s) for i, s in enumerate(self.scores)), ("mean", self.mean)]:
            lines.append(label.ljust(6) + "  ".join(f"{row[name]:.6g}".rjust(width) for name in names))
        return "\n".join(lines)


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


def cross_validate(
    make_network: Callable[[], Sequential],
    X: Any,
    y: Any,
    *,
    k: int = 5,
    stratify: bool | None = None,
    loss: Any,
    optimizer: Any = "adam",
    seed: int = 0,
    metrics: Sequence[Any] | None = None,
    callbacks: Callable[[], Any] | None = None,
    device: Any = None,
    dtype: Any = None,
    sample_weight: Any = None,
    validate: bool = False,
    progress: bool = True,
    **fit_settings: Any,
) -> CrossValidation:
    """Train a fresh network on each of `k` shuffled folds and score it on the rows that it did not see.

    Args:
        make_network: returns a new network; its weights are drawn anew by ``seed + fold``.
        X: (rows, features), shared by all folds and not copied.
        y: as in `Trainer.fit`.
        k: folds, at least 2.
        stratify: give each fold the classes in equal shares; None does so where `y` holds labels.
        loss, optimizer, metrics, device, dtype: as in `Trainer`.
        seed: of folds, weights, batches.
        callbacks: returns new callbacks for a fold.
        validate: also measure the held rows while training, for curves per fold.
        progress: show the progress of each fold.
        fit_settings: of `Trainer.fit`: epochs, batch_size, ...

    Raises:
        ValueError: data or settings that do not fit.
    """
    k = check_count("k", k, least=2)
    for name in ("validation_data", "validation_split", "rows"):
        if name in fit_settings:
            raise ValueError(f"cross_validate takes no {name}: the folds are the validation data")
    X = X if isinstance(X, np.ndarray) else np.asarray(X)
    check_lengths(len(X), y=y, sample_weight=sample_weight)
    y = np.asarray(y)
    trainers = []
    for fold in range(k):
        network = make_network()
        settings = copy.deepcopy((loss, optimizer, metrics))
        trainers.append(
            Trainer(
                network,
                loss=settings[0],
                optimizer=settings[1],
                metrics=settings[2],
                seed=seed + fold,
                device=device,
                dtype=dtype,
                callbacks=callbacks() if callbacks else None,
            )
        )
    classification = trainers[0].loss.is_classification and y.ndim == 1
    labels = y if (classification if stratify is None else stratify) else None
    folds = fold_rows(len(X), k, labels, seed)
    scores, histories = [], []
    for trainer, (train, held) in zip(trainers, folds, strict=True):
        weights = None if sample_weight is None else np.asarray(sample_weight)
        history = trainer.fit(
            X,
            y,
            rows=train,
            held_rows=held if validate else None,
            sample_weight=weights,
            progress=progress,
            **fit_settings,
        )
        histories.append(history)
        scores.append({**trainer.evaluate(X, y, weights, rows=held), "train_loss": history["loss"][-1]})
    return CrossValidation(scores, histories, [t.network for t in trainers], folds)
