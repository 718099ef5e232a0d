"""The folder of a run: created, filled file by file, finished, gone on with, and read.

``config.toml`` comes first and ``metrics.json`` last: a folder with ``metrics.json`` is finished, one without is being
written, or was interrupted and can be gone on with. Each file appears whole.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .callbacks import Callback
from .checkpoint import load_tensors, save_tensors
from .config import Config, complete_config, config_toml, read_config
from .files import TEMPORARY_SUFFIX, make_folder, remove_empty, write_json, write_whole
from .model import Model, load_model

if TYPE_CHECKING:
    from .history import History
    from .trainer import Trainer

CHECKPOINT_SECONDS = 30.0
"""Between two checkpoints, which are written at the end of an epoch."""

Scores = Mapping[str, Mapping[str, float]]


class RunFolder:
    """A run folder and its files; making the object touches nothing.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.model = self.path / "model.safetensors"
        self.history = self.path / "history.csv"
        self.report = self.path / "report.html"
        self.metrics = self.path / "metrics.json"
        self.sweep = self.path / "sweep.json"
        self._made: list[Path] = []

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether a run ended here: its metrics are there."""
        return self.metrics.is_file()

    @property
    def is_unfinished(self) -> bool:
        """Whether a run began here and did not end."""
        return self.config.is_file() and not self.is_finished and not self.is_sweep

    @property
    def is_sweep(self) -> bool:
        """Whether a sweep wrote the folder: many trainings, of which none can be gone on with."""
        return self.sweep.is_file()

    # --- beginning ------------------------------------------------------------------------------------------------

    def check_new(self) -> None:
        """Raise a ValueError where something stands at the path already."""
        if self.is_unfinished:
            raise ValueError(
                f"output folder {self} holds an unfinished run; go on with: gpumlp train --resume {self}, "
                "or remove the folder, or give another one with --out"
            )
        if self.path.exists() or self.path.is_symlink():
            what = "holds a finished run" if self.is_finished else "exists already"
            raise ValueError(f"output folder {self} {what}; give another one with --out, or remove it")

    def create(self, config: Config) -> None:
        """Make the folder and write its config.

        Raises:
            ValueError: the folder exists.
            OSError: it cannot be made.
        """
        self.check_new()
        try:
            self._made = make_folder(self.path)
        except FileExistsError:  # another process was faster
            self.check_new()
            raise
        write_whole(self.config, config_toml(config))

    def discard(self) -> None:
        """Remove what this object made, as long as it is no more than the config."""
        if not self._made or {p.name for p in self.path.glob("*")} - {self.config.name}:
            return
        self.config.unlink(missing_ok=True)
        remove_empty(self._made)
        self._made = []

    # --- going on -------------------------------------------------------------------------------------------------

    def check_unfinished(self) -> None:
        """Raise a ValueError unless there is a run here to go on with."""
        if not self.path.is_dir():
            raise ValueError(f"there is no run folder {self} to go on with; check the path")
        if self.is_finished or self.is_sweep:
            what = "sweep" if self.is_sweep else "run"
            raise ValueError(f"the {what} in {self} is finished; there is nothing to go on with")
        if not self.config.is_file():
            raise ValueError(
                f"{self} has no config.toml: it is not the folder of a run, or one that was killed as it began; "
                "remove it and train again"
            )

    def read_config(self) -> Config:
        """Return the complete config of the run."""
        return complete_config(read_config(self.config))

    def save_checkpoint(self, trainer: Trainer, config: Config, fingerprint: str) -> None:
        """Write the state of a training, from which it can go on bit for bit.

        Args:
            trainer: of the training.
            config: of the run, complete.
            fingerprint: of its data, see `Experiment.fingerprint`.
        """
        arrays, values = trainer.state_dict()
        marks = {"data": fingerprint, "config": config_toml(config)}
        save_tensors(self.checkpoint, arrays, {"kind": "checkpoint", "state": values, **marks})

    def load_checkpoint(self, trainer: Trainer, config: Config, fingerprint: str) -> bool:
        """Let the next `fit` go on from the checkpoint; return False where there is none.

        Raises:
            ValueError: a damaged checkpoint, or another config or other data than those it was made with.
        """
        if not self.checkpoint.exists():
            return False
        arrays, metadata = load_tensors(self.checkpoint)
        if metadata.get("kind") != "checkpoint":
            raise ValueError(f"{self.checkpoint} is not a checkpoint; remove it to begin the run anew")
        if metadata["data"] != fingerprint:
            raise ValueError(
                f"the data are not those that the run in {self} began with; restore them, "
                f"or train anew with: gpumlp train {self.config}"
            )
        if metadata["config"] != config_toml(config):
            raise ValueError(
                f"{self.config} is not the config that the run began with; put it back, "
                f"or train anew with: gpumlp train {self.config}"
            )
        trainer.load_state_dict(arrays, metadata["state"])
        return True

    # --- ending ---------------------------------------------------------------------------------------------------

    def finish(self, model: Model, history: History, scores: Scores, report: str) -> None:
        """Write the results, the metrics last, and remove what was needed to go on only."""
        model.save(self.model)
        write_whole(self.history, history_csv(history))
        write_whole(self.report, report)
        write_json(self.metrics, scores)
        self.checkpoint.unlink(missing_ok=True)
        for leftover in self.path.glob(f".*{TEMPORARY_SUFFIX}"):  # of a killed process
            leftover.unlink(missing_ok=True)

    # --- reading --------------------------------------------------------------------------------------------------

    def read_metrics(self) -> dict[str, dict[str, float]]:
        """Return ``{"train": {...}, "test": {...}}`` of a finished run."""
        self.check_finished()
        found: dict[str, dict[str, float]] = json.loads(self.metrics.read_text(encoding="utf-8"))
        return found

    def check_finished(self) -> None:
        """Raise a ValueError unless the folder holds a finished run."""
        if not self.path.is_dir():
            raise ValueError(f"there is no run folder {self}; check the path")
        if self.is_sweep:
            raise ValueError(
                f"{self} is the folder of a sweep; give a model, such as its best: {self.path / 'best.safetensors'}"
            )
        if self.is_unfinished:
            raise ValueError(
                f"the run in {self} is unfinished (it has no metrics.json); go on with: gpumlp train --resume {self}, "
                "or remove the folder"
            )
        if not self.is_finished:
            raise ValueError(
                f"{self} is not the folder of a run: it has no config.toml and no metrics.json; give another one"
            )


def open_run(path: str | Path, device: str = "auto") -> tuple[Model, Config | None]:
    """Return the model of a run, and its config where there is one.

    Args:
        path: a run folder, or a model file.
        device: to run it on.

    Raises:
        ValueError: no such run, an unfinished one, a truncated or foreign model file.
    """
    path = Path(path)
    if path.is_dir() or (not path.exists() and path.suffix != ".safetensors"):
        folder = RunFolder(path)
        folder.check_finished()
        return load_model(folder.model, device), folder.read_config()
    folder = RunFolder(path.parent)
    config = folder.read_config() if path.name == folder.model.name and folder.config.is_file() else None
    return load_model(path, device), config


def new_folder(name: str, root: str | Path = "runs") -> Path:
    """Return a path in `root` that is not taken: the name, the date and the time."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    first = Path(root) / f"{name}-{stamp}"
    path, n = first, 1
    while path.exists():
        n += 1
        path = first.with_name(f"{first.name}-{n}")
    return path


def history_csv(history: History) -> str:
    """Return the epochs of a history as CSV; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(list(history))
    for row in zip(*history.epochs.values(), strict=True):
        writer.writerow([_cell(value) for value in row])
    return text.getvalue()


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


# --- what happens to the folder while a network trains ---------------------------------------------------------------


class Opening(Callback):
    """Begins the folder once all was checked, and keeps the state of a training that was interrupted or failed.

    It stands first among the callbacks: those behind it may change the weights when the training ends.

    Args:
        begin: called when the training begins.
        save: writes a checkpoint.
    """

    every_epoch = False

    def __init__(self, begin: Callable[[], None], save: Callable[[], None]) -> None:
        self.begin, self.save = begin, save

    def on_train_begin(self, trainer: Trainer) -> None:
        self.begin()

    def on_train_end(self, trainer: Trainer) -> None:
        if trainer.history.stopped in ("interrupted", "the loss was not finite"):
            self.save()


class Checkpoints(Callback):
    """Writes a checkpoint every half minute, at the end of an epoch.

    It stands last among the callbacks, so that all of them have seen the epoch.

    Args:
        save: writes a checkpoint.
    """

    every_epoch = False

    def __init__(self, save: Callable[[], None]) -> None:
        self.save = save
        self._last = math.inf

    def on_train_begin(self, trainer: Trainer) -> None:
        self._last = time.monotonic()

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: Mapping[str, float]) -> None:
        # a training that was told to stop must not be gone on with from here
        if time.monotonic() - self._last >= CHECKPOINT_SECONDS and not trainer.history.stopped:
            self.save()
            self._last = time.monotonic()
