"""What was measured while a network trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any


class History:
    """Losses, metrics, learning rate and times of a training, by epoch.

    Attributes:
        epochs: columns by name, one entry an epoch: "epoch" (from 1), "loss", "lr" (of its last step), "seconds"
            (of training, from the start, validation left out), and where they were asked for "val_loss",
            "accuracy", "val_accuracy", ...; NaN where an epoch was not validated.
        validations: columns by name, one entry a validation: "step", "epoch" (a fraction within one), "val_loss", ...
        step_losses: the loss of every step, where `fit` was asked to record them.
        train_seconds: spent training; validation, callbacks and progress left out.
        steps, samples: done.
        stopped: why the training ended before its epochs were done, or "".
    """

    def __init__(self) -> None:
        self.epochs: dict[str, list[float]] = {"epoch": [], "loss": [], "lr": [], "seconds": []}
        self.validations: dict[str, list[float]] = {}
        self.step_losses: list[float] = []
        self.train_seconds = 0.0
        self.steps = 0
        self.samples = 0
        self.stopped = ""
        self.partial = [0.0, 0.0]  # loss and weight of the epoch at hand

    def __len__(self) -> int:
        return len(self.epochs["epoch"])

    def __getitem__(self, column: str) -> list[float]:
        return self.epochs[column]

    def __contains__(self, column: object) -> bool:
        return column in self.epochs

    def __iter__(self) -> Iterator[str]:
        return iter(self.epochs)

    def __repr__(self) -> str:
        last = ", ".join(f"{k} {v[-1]:.4g}" for k, v in self.epochs.items() if v)
        return f"<History of {len(self)} epochs: {last}; {self.it_per_second:.1f} it/s>"

    def add_epochs(self, columns: dict[str, list[float]]) -> None:
        """Append epochs in bulk; every entry of `columns` has one value an epoch."""
        before, added = len(self), len(columns["epoch"])
        for name, values in columns.items():
            self.epochs.setdefault(name, [float("nan")] * before).extend(values)
        for name, column in self.epochs.items():
            if name not in columns:
                column.extend([float("nan")] * added)

    def add_validation(self, scores: dict[str, float], step: int, epoch: float) -> None:
        """Append a validation; at the end of an epoch its scores also go to that epoch's row."""
        row = {"step": float(step), "epoch": epoch, **scores}
        before = len(self.validations.get("step", ()))
        for name, value in row.items():
            self.validations.setdefault(name, [float("nan")] * before).append(value)
        if len(self) and self.epochs["epoch"][-1] == epoch:
            for name, value in scores.items():
                column = self.epochs.setdefault(name, [float("nan")] * len(self))
                column[-1] = value

    def last(self) -> dict[str, float]:
        """The row of the last epoch."""
        return {name: column[-1] for name, column in self.epochs.items() if column}

    def _rate(self, count: float) -> float:
        return count / self.train_seconds if self.train_seconds > 0 else 0.0

    @property
    def it_per_second(self) -> float:
        """Epochs a second: an "it" is an epoch, as the progress bar counts."""
        return self._rate(len(self))

    @property
    def steps_per_second(self) -> float:
        """Training steps, batches, a second."""
        return self._rate(self.steps)

    @property
    def samples_per_second(self) -> float:
        """Rows a second."""
        return self._rate(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """Return copies as plain values, from which `from_dict` makes the history again."""
        return copy.deepcopy(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """Return the history that `to_dict` described."""
        history = cls()
        vars(history).update(copy.deepcopy(values))
        return history
