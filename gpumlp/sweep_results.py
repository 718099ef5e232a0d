"""What a sweep found: its members, the best of them, a table, and their curves over one another."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .config import Config
from .history import History
from .metrics import METRICS
from .model import Model
from .network import Sequential
from .registry import nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class SweepMember:
    """One training of a sweep.

    Attributes:
        settings: the swept ones, by key.
        label: them in short, such as "lr=0.1, hidden=64-64".
        history: of the training.
        scores: {"train": {"loss": ..., "accuracy": ...}, "test": {...}}; empty where the training failed.
        model: as trained; after a failure with the last good weights.
        failure: in words why the training ended, where its loss was lost, else "".
        config: complete, where the sweep was over a config.
    """

    settings: dict[str, Any]
    label: str
    history: History
    scores: dict[str, dict[str, float]]
    model: Model
    failure: str = ""
    config: Config | None = None

    @property
    def network(self) -> Sequential:
        """The network, as trained."""
        return self.model.network

    def value(self, by: str) -> float:
        """Return a score ("test.accuracy") or the last number of a history's column ("val_loss"); NaN for none."""
        part, dot, name = by.partition(".")
        if dot:
            return self.scores.get(part, {}).get(name, math.nan)
        column = self.history.epochs.get(by) or [math.nan]
        return column[-1]


@dataclass
class Sweep:
    """What a sweep found.

    Attributes:
        members: one for each point, in the order of the points; the last key changes fastest.
    """

    members: list[SweepMember] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> SweepMember:
        return self.members[index]

    def names(self) -> list[str]:
        """Return by what members can be compared: "train.loss", "test.accuracy", ..., and columns of histories."""
        scores = [f"{part}.{name}" for m in self.members for part, own in m.scores.items() for name in own]
        columns = [column for m in self.members for column in m.history]
        return list(dict.fromkeys([*scores, *columns]))

    def best(self, by: str | None = None) -> SweepMember:
        """Return the member with the best score; of equal ones the first.

        Args:
            by: a score, such as "test.accuracy", or a column of the history, such as "val_loss", of which the last
                number counts. None for the accuracy, or the loss, of the validation where there is one, else of the
                test rows, whose score is then no measure of the member chosen.

        Raises:
            ValueError: an unknown name, or no member that has a finite number.
        """
        by = by or self._default()
        if by not in self.names():
            raise ValueError(f"unknown score {by!r} of a sweep{nearest(by, self.names())}")
        metric = METRICS.get(by.rpartition(".")[2].removeprefix("val_"))
        sign = -1.0 if metric is not None and metric.greater_is_better else 1.0
        finite = [m for m in self.members if math.isfinite(m.value(by)) and not m.failure]
        if not finite:
            raise ValueError(f"no member of the sweep ended with a finite {by}; sweep lower learning rates")
        return min(finite, key=lambda m: sign * m.value(by))

    def _default(self) -> str:
        names = self.names()
        wanted = (
            "val_accuracy",
            "val_loss",
            "test.accuracy",
            "test.loss",
            "train.accuracy",
            "train.loss",
            "loss",
        )
        return next(name for name in wanted if name in names)

    def curves(self, column: str = "loss") -> dict[str, tuple[list[float], list[float]]]:
        """Return label -> (epochs, values) of a history's column, for `gpumlp.report.plot_curves`.

        Args:
            column: of the epochs; or "step_loss", the loss of every step where `fit` recorded them, over steps.

        Raises:
            ValueError: a column that no member has.
        """
        found = {}
        for member in self.members:
            if column == "step_loss":
                values = member.history.step_losses
                x = [float(step) for step in range(1, len(values) + 1)]
            else:
                values, x = member.history.epochs.get(column, []), member.history["epoch"]
            if values:
                found[member.label] = x, list(values)
        if not found:
            known = {name for m in self.members for name in m.history}
            raise ValueError(f"no member of the sweep has the column {column!r}{nearest(column, known)}")
        return found

    def plot(self, column: str = "loss", log: bool | None = None) -> Figure:
        """Plot a history's column of all members over one another.

        Members that differ in one number only, and are more than four, have a colour scale in place of a legend.

        Raises:
            ValueError: as `curves`.
        """
        from .report import plot_curves

        curves = self.curves(column)
        xlabel = "step" if column == "step_loss" else "epoch"
        swept = {key for member in self.members for key in member.settings}
        if len(swept) == 1 and len(curves) > 4:
            key = swept.pop()
            values = [m.settings.get(key) for m in self.members if m.label in curves]
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                scale = [float(value) for value in values if value is not None]
                name = column.replace("_", " ")
                return plot_curves(
                    curves, name, xlabel=xlabel, log=log, scale=scale, scale_label=key.rpartition(".")[2]
                )
        return plot_curves(curves, column.replace("_", " "), xlabel=xlabel, log=log)

    def table(self, columns: Sequence[str] | None = None) -> str:
        """Return a text table, a row a member.

        Args:
            columns: as `SweepMember.value` takes them; None for loss and accuracy (or r2) of both parts.
        """
        if columns is None:
            wanted = [f"{part}.{name}" for part in ("train", "test") for name in ("loss", "accuracy", "r2")]
            columns = [name for name in wanted if name in self.names()] or ["loss"]
        columns = [name for name in columns if name not in ("epochs", "seconds")]  # which stand there always
        head = ["", *columns, "epochs", "seconds"]
        rows = []
        for m in self.members:
            numbers = [f"{m.value(c):.6g}" if math.isfinite(m.value(c)) else "-" for c in columns]
            rows.append([m.label, *numbers, str(len(m.history)), f"{m.history.train_seconds:.3g}"])
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in (head, *rows)
        ]
        for i, member in enumerate(self.members, start=1):
            lines[i] += f"  {member.failure}" if member.failure else ""
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Return all but the networks as plain values, for `gpumlp.files.write_json`."""
        return {
            "members": [
                {
                    "settings": copy.deepcopy(m.settings),
                    "label": m.label,
                    "scores": copy.deepcopy(m.scores),
                    "failure": m.failure,
                    "history": m.history.to_dict(),
                    "it_per_second": m.history.it_per_second,
                    "config": copy.deepcopy(m.config),
                }
                for m in self.members
            ]
        }
