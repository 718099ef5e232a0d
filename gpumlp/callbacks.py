"""What may happen while a network trains: stop early, write a log, keep the best weights, call a user's function."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .checks import check_count
from .metrics import METRICS

if TYPE_CHECKING:
    from .trainer import Trainer


class Callback:
    """Base of all callbacks; override what is needed. ``trainer.stop(reason)`` ends the training.

    Attributes:
        every_epoch: whether `on_epoch_end` must be called when the epoch ends, with the weights of that moment;
            a callback without that need lets blocks of many epochs run, and is called for each of them after.
    """

    every_epoch = True

    def on_train_begin(self, trainer: Trainer) -> None:
        """Called once, when `fit` starts."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: Mapping[str, float]) -> None:
        """Called after each epoch.

        Args:
            trainer: that runs.
            epoch: done, from 1.
            logs: the history's row of this epoch: "loss", "lr", "val_loss", ...
        """

    def on_block_end(self, trainer: Trainer) -> None:
        """Called after each block of steps, with the history up to there.

        A block may end within an epoch, or hold many: for what need not see each of them.
        """

    def on_validation(self, trainer: Trainer, step: int, scores: Mapping[str, float]) -> None:
        """Called after each validation, also within an epoch, with "val_loss", ..."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Called once, also when the training was interrupted or failed."""

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a training that goes on must know of the callback: arrays by name, and plain values."""
        return {}, {}

    def load_state_dict(self, arrays: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; the next `on_train_begin` then keeps it."""


class FunctionCallback(Callback):
    """Calls a user's function ``f(trainer, epoch, logs)`` after each epoch."""

    def __init__(self, function: Callable[[Any, int, Mapping[str, float]], None]) -> None:
        self.on_epoch_end = function  # type: ignore[assignment,method-assign]


class _Monitor(Callback):
    """Watches one quantity and knows when it is better than ever."""

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f'mode of {type(self).__name__} is {mode!r}; expected "auto", "min" or "max"')
        if not (min_delta >= 0 and math.isfinite(min_delta)):
            raise ValueError(f"min_delta is {min_delta!r}; expected a finite number of at least 0")
        if mode == "auto":
            metric = METRICS.get(monitor.removeprefix("val_"))
            mode = "max" if metric is not None and metric.greater_is_better else "min"
        self.monitor, self.mode, self.min_delta = monitor, mode, min_delta
        # training pauses at a validation anyway, with the weights that it measured
        self.every_epoch = not monitor.startswith("val_")
        self.best = math.inf if mode == "min" else -math.inf
        self.best_epoch = 0

    def restart(self, trainer: Trainer) -> None:
        """Forget earlier trainings.

        Raises:
            ValueError: the quantity is not measured in this one.
        """
        if not trainer.measures(self.monitor):
            raise ValueError(
                f"{type(self).__name__} monitors {self.monitor!r}, which is not measured; expected one of "
                f"{', '.join(k for k in trainer.columns() if k != 'epoch')}: "
                "give validation data (cross_validate: validate=True), or another monitor"
            )
        self.best = math.inf if self.mode == "min" else -math.inf
        self.best_epoch = 0

    def better(self, logs: Mapping[str, float]) -> bool | None:
        """Whether this epoch is the best so far; None where the quantity was not measured in it."""
        value = logs.get(self.monitor, math.nan)
        if value != value:
            return None
        gain = self.best - value if self.mode == "min" else value - self.best
        if gain > self.min_delta or math.isinf(self.best):
            self.best, self.best_epoch = value, int(logs["epoch"])
            return True
        return False


class EarlyStopping(_Monitor):
    """Stop when a quantity has not become better for some epochs, and restore the best weights.

    Args:
        monitor: "val_loss", "loss", "val_accuracy", ...
        patience: epochs (with a measurement) without a gain before it stops.
        min_delta: what counts as a gain.
        mode: whether less ("min") or more ("max") is better; "auto" knows it from the metric.
        restore_best: whether the network ends with the weights of the best epoch.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience, self.restore_best = check_count("patience", patience), restore_best
        self._since = 0
        self._weights: list[tuple[Any, Any]] = []  # kept, and where they belong

    def on_train_begin(self, trainer: Trainer) -> None:
        self._since, self._weights = 0, []
        self.restart(trainer)

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: Mapping[str, float]) -> None:
        better = self.better(logs)
        if better:
            self._since = 0
            if self.restore_best:
                self._keep_weights(trainer)
        elif better is not None:
            self._since += 1
            if self._since >= self.patience:
                trainer.stop(f"no better {self.monitor} since epoch {self.best_epoch}")

    def _keep_weights(self, trainer: Trainer) -> None:
        """Copy all memory of parameters and statistics at once: at first each epoch may be the best."""
        if not self._weights:
            arenas = trainer.network.parameters, trainer.network.state
            self._weights = [(arena.memory.copy(), arena.memory) for arena in arenas if arena.nbytes]
        for kept, memory in self._weights:
            kept[...] = memory

    def on_train_end(self, trainer: Trainer) -> None:
        for kept, memory in self._weights:
            memory[...] = kept
        self._weights = []


class CSVLog(Callback):
    """Write the row of each epoch to a CSV file.

    Rows of epochs that are shorter than `FLUSH_SECONDS` reach the file some at a time: each by itself would take
    longer to write than a small network takes to train.

    Args:
        path: of the file, which is written anew.
    """

    every_epoch = False
    FLUSH_SECONDS = 0.1

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None
        self._columns: list[str] = []
        self._rows: list[list[Any]] = []
        self._flushed = -math.inf

    def on_train_begin(self, trainer: Trainer) -> None:
        if not self.path.parent.is_dir():
            raise ValueError(
                f"CSVLog cannot write {self.path}: there is no folder {self.path.parent}; create it first"
            )
        self._file = self.path.open("w", newline="")
        self._columns, self._rows, self._flushed = [], [], -math.inf

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: Mapping[str, float]) -> None:
        if not self._columns:
            self._columns = list(trainer.columns())
            self._rows.append(self._columns)
        self._rows.append([logs.get(name, "") for name in self._columns])
        if time.monotonic() - self._flushed >= self.FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        assert self._file is not None
        csv.writer(self._file).writerows(self._rows)
        self._file.flush()
        self._rows.clear()
        self._flushed = time.monotonic()

    def on_train_end(self, trainer: Trainer) -> None:
        if self._file is not None:
            self._flush()
            self._file.close()
            self._file = None


class ModelCheckpoint(_Monitor):
    """Write the model to a file after each epoch, or when it is the best so far.

    Args:
        path: of the file; ``{epoch}`` in it is replaced by the number of the epoch.
        monitor: "val_loss", "loss", ...
        best_only: whether only a better model than before is written.
        every: epochs between two files where `best_only` is False.
        mode, min_delta: as in `EarlyStopping`.
    """

    def __init__(
        self,
        path: str | Path,
        monitor: str = "val_loss",
        best_only: bool = True,
        every: int = 1,
        mode: str = "auto",
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.every_epoch = self.every_epoch or not best_only
        self.path, self.best_only, self.every = str(path), best_only, check_count("every", every)

    def on_train_begin(self, trainer: Trainer) -> None:
        if self.best_only:
            self.restart(trainer)

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: Mapping[str, float]) -> None:
        if self.better(logs) if self.best_only else epoch % self.every == 0:
            trainer.save(self.path.replace("{epoch}", str(epoch)))


def as_callbacks(given: Iterable[Any] | Callback | Callable[..., None] | None) -> list[Callback]:
    """Return callbacks from objects and plain functions.

    Raises:
        TypeError: neither of them.
    """
    if given is None:
        return []
    if isinstance(given, Callback) or callable(given):
        given = [given]
    callbacks = []
    for item in given:
        if isinstance(item, Callback):
            callbacks.append(item)
        elif callable(item) and not isinstance(item, type):
            callbacks.append(FunctionCallback(item))
        else:
            raise TypeError(
                f"{item!r} is not a callback; expected a Callback object or a function(trainer, epoch, logs)"
            )
    return callbacks
