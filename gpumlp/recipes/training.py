"""Trainings of a part: one after the other, or side by side on the CPUs that are there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..callbacks import Callback
from ..config import Config
from ..experiment import Experiment, set_up
from ..many import fit_many
from .context import Trained

if TYPE_CHECKING:
    from ..trainer import Trainer
    from .keeping import Keeper

Advance = Callable[[float], None]
_SAME = ("epochs", "batch_size", "validation_split", "validate_every", "shuffle", "train_metrics")


class Share(Callback):
    """Tells a progress bar what share of the epochs of several trainings is done.

    Args:
        advance: is told the share, 0 to 1.
        epochs: of all of them together.
    """

    every_epoch = False

    def __init__(self, advance: Advance, epochs: int) -> None:
        self.advance, self.epochs, self.done = advance, epochs, 0
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Share:
        return self  # trainings side by side add to one count

    def on_train_begin(self, trainer: Trainer) -> None:
        with self._lock:  # a training that was interrupted goes on
            self.done += len(trainer.history)

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: Mapping[str, float]) -> None:
        with self._lock:
            self.done += 1
            share = self.done / self.epochs
        self.advance(share)


def fit(
    configs: Mapping[str, Config],
    advance: Advance = lambda share: None,
    *,
    validate_on_test: bool = False,
    record_steps: bool = False,
    side_by_side: bool = True,
    callbacks: Callable[[str], list[Callback]] | None = None,
    like: Experiment | None = None,
    keeper: Keeper | None = None,
) -> dict[str, Trained]:
    """Train by each config, from its own seed.

    Args:
        configs: label -> complete config.
        advance: is told the share that is done.
        validate_on_test: measure the test rows while training, as often as ``validate_every`` says; they take no
            part in the training.
        record_steps: keep the loss of every step.
        side_by_side: train several at once, each in one thread, where the configs agree in epochs and batches;
            False for networks that use all CPUs by themselves.
        callbacks: returns new ones for a label.
        like: its data are taken by all, and those of the configs not read.
        keeper: lets trainings without callbacks that go one after the other go on where they were interrupted.

    Returns:
        Label -> training.

    Raises:
        ValueError: a config that does not fit its data.
        NonFiniteLossError: a loss was lost.
    """
    share = Share(advance, sum(config["training"]["epochs"] for config in configs.values()))
    alike = len({repr([config["training"][name] for name in _SAME]) for config in configs.values()}) == 1
    settings = {"record_steps": record_steps}

    first: dict[str, Experiment] = {}  # with each data, which are read once

    def experiment(label: str) -> Experiment:
        data = repr(configs[label]["data"])
        own = [share, *(callbacks(label) if callbacks else [])]
        made = set_up(configs[label], own, like=like or first.get(data))
        first.setdefault(data, made)
        return made

    if len(configs) > 1 and side_by_side and alike:
        experiments = {label: experiment(label) for label in configs}
        _fit_side_by_side(list(experiments.values()), validate_on_test, settings)
        return {label: _trained(label, done) for label, done in experiments.items()}
    trained = {}
    for label in configs:
        one = experiment(label)
        if keeper is not None and callbacks is None:  # those may know what a kept state does not
            keeper.attach(one)
        _fit_one(one, validate_on_test, settings)
        trained[label] = _trained(label, one)
    return trained


def _fit_one(experiment: Experiment, validate_on_test: bool, settings: dict[str, Any]) -> None:
    p = experiment.prepared
    held: dict[str, Any] = {"validation_data": (p.X_test, p.y_test)} if validate_on_test else {}
    experiment.trainer.fit(
        p.X_train, p.y_train, progress=False, **experiment.fit_settings(), **held, **settings
    )


def _fit_side_by_side(
    experiments: list[Experiment], validate_on_test: bool, settings: dict[str, Any]
) -> None:
    """Train on one matrix: networks of the same data read the same rows, others have rows of their own in it."""
    if all(e.prepared is experiments[0].prepared for e in experiments):
        X, y, starts = experiments[0].prepared.X, experiments[0].prepared.y, [0] * len(experiments)
    else:
        X = np.concatenate([e.prepared.X for e in experiments])
        y = np.concatenate([e.prepared.y for e in experiments])
        starts = np.cumsum([0, *(len(e.prepared.X) for e in experiments)]).tolist()[:-1]
    rows = [np.arange(s, s + e.prepared.n_train) for s, e in zip(starts, experiments, strict=True)]
    held = [
        np.arange(s + e.prepared.n_train, s + len(e.prepared.X))
        for s, e in zip(starts, experiments, strict=True)
    ]
    fit_many(
        [e.trainer for e in experiments],
        X,
        y,
        rows=rows,
        held_rows=held if validate_on_test else None,
        progress=False,
        **experiments[0].fit_settings(),
        **settings,
    )


def _trained(label: str, experiment: Experiment) -> Trained:
    return Trained(label, experiment, experiment.trainer.history, experiment.scores())
