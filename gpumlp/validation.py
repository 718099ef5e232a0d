"""Cross-validation: fresh networks on shuffled folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import check_count, check_lengths, check_seed, on_host
from .history import History
from .interchange import is_on_gpu
from .many import fit_many, make_trainers
from .network import Sequential
from .splits import fold_rows, split_rows

__all__ = ["CrossValidation", "cross_validate", "fold_rows", "split_rows"]


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
    precision: str = "float32",
    sample_weight: Any = None,
    validate: bool = False,
    workers: int | None = None,
    progress: bool = True,
    **fit_settings: Any,
) -> CrossValidation:
    """Train a fresh network on each of `k` shuffled folds and score it on the rows that it did not see.

    Args:
        make_network: returns a new network; its weights are drawn anew by ``seed + fold``, unless they were loaded
            or set.
        X: (rows, features), shared by all folds and not copied.
        y: as in `Trainer.fit`.
        k: folds, at least 2.
        stratify: give each fold the classes in equal shares; None does so where `y` holds labels.
        loss, optimizer, metrics, device, dtype, precision: as in `Trainer`.
        seed: of folds, weights, batches.
        callbacks: returns new callbacks for a fold.
        validate: also measure the held rows while training, for curves per fold.
        workers: folds at a time; None for the CPUs that are there.
        progress: one bar for all folds.
        fit_settings: of `Trainer.fit`: epochs, batch_size, ...

    Raises:
        ValueError: data or settings that do not fit.
    """
    k = check_count("k", k, least=2)
    if not callable(make_network):
        raise TypeError(
            f"make_network is a {type(make_network).__name__}; expected a function that returns a new network, "
            "for example lambda: gm.mlp((4, 16, 3))"
        )
    if callbacks is not None and not callable(callbacks):
        raise TypeError(
            f"callbacks is a {type(callbacks).__name__}; expected a function that returns new ones for each fold: "
            "callbacks=lambda: [gm.EarlyStopping()]"
        )
    seed = check_seed(seed)
    for name in ("validation_data", "validation_split", "rows", "held_rows"):
        if name in fit_settings:
            raise ValueError(f"cross_validate takes no {name}: the folds are the validation data")
    X = X if is_on_gpu(X) else np.asarray(on_host(X, "X"))
    y = np.asarray(on_host(y, "y"))
    check_lengths(len(X), y=y, sample_weight=sample_weight)
    settings = [
        {"seed": seed + fold, **({"callbacks": callbacks()} if callbacks else {})} for fold in range(k)
    ]
    common = {"loss": loss, "optimizer": optimizer, "metrics": metrics}
    common |= {"device": device, "dtype": dtype, "precision": precision}
    trainers = make_trainers(settings, make_network, **common)
    classification = trainers[0].loss.is_classification and y.ndim == 1
    labels = y if (classification if stratify is None else stratify) else None
    folds = fold_rows(len(X), k, labels, seed)
    weights = None if sample_weight is None else np.asarray(on_host(sample_weight, "sample_weight"))
    histories = fit_many(
        trainers,
        X,
        y,
        rows=[train for train, _ in folds],
        held_rows=[held for _, held in folds] if validate else None,
        sample_weight=weights,
        workers=workers,
        progress=progress,
        **fit_settings,
    )
    scores = [
        {**trainer.evaluate(X, y, weights, rows=held), "train_loss": history["loss"][-1]}
        for trainer, history, (_, held) in zip(trainers, histories, folds, strict=True)
    ]
    return CrossValidation(scores, histories, [t.network for t in trainers], folds)
