"""Sweeps: a network for each value, or each point of a grid, of any settings; what came out, and their curves."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .callbacks import Callback
from .config import complete_config, put_setting, without_none
from .config_values import at
from .experiment import Experiment, set_up
from .failure import NonFiniteLossError
from .history import History
from .many import fit_many
from .registry import nearest
from .sweep_results import Sweep, SweepMember
from .trainer import Trainer

__all__ = ["Sweep", "SweepMember", "grid_points", "label_of", "sweep", "sweep_trainers"]

Point = Mapping[str, Any]
Points = Mapping[str, Sequence[Any]] | Sequence[Point]
"""Key -> its values, for every point of the grid that they span; or the points themselves."""


# --- over a config ------------------------------------------------------------------------------------------------


def sweep(
    config: Mapping[str, Any],
    points: Points,
    *,
    callbacks: Callable[[], Sequence[Callback]] | None = None,
    record_steps: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Sweep:
    """Train by a config once for each point, and score each network on the training and the test rows.

    Data are read once for all members with the same ``[data]``; members that also agree in epochs and batches train
    side by side (`fit_many`), others one after the other. Each ends with the bits that it has alone in as many threads.

    Args:
        config: as `gpumlp train` takes it, complete or not.
        points: dotted key -> values, for example ``{"optimizer.lr": [1, 0.1], "network.hidden": [[64], [64, 64]]}``;
            or the points, for example ``[{"optimizer.lr": 1, "training.epochs": 5}, ...]``.
        callbacks: returns new ones for a member.
        record_steps: keep the loss of every step.
        workers: networks at a time; None for the CPUs that are there.
        progress: show it.

    Raises:
        ValueError, TypeError: no point, an unknown key or value, settings that do not fit the data. A loss that is
            lost raises nothing: it is that member's `failure`.
    """
    chosen = grid_points(points)
    configs = []
    for point in chosen:
        own = copy.deepcopy(without_none(config))
        with at(f"sweep, {label_of(point)}"):
            for key, value in point.items():
                put_setting(own, key, copy.deepcopy(value))
            configs.append(complete_config(own))
    experiments: list[Experiment] = []
    first: dict[str, Experiment] = {}
    for own in configs:
        data = repr(own["data"])
        experiments.append(set_up(own, callbacks() if callbacks else (), like=first.get(data)))
        first.setdefault(data, experiments[-1])
    groups: dict[str, list[int]] = {}
    for i, (own, experiment) in enumerate(zip(configs, experiments, strict=True)):
        settings = (own["data"], experiment.fit_settings(), experiment.trainer.network.backend.name)
        groups.setdefault(repr(settings), []).append(i)
    for group in groups.values():
        p = experiments[group[0]].prepared
        fit = {**experiments[group[0]].fit_settings(), "record_steps": record_steps}
        _fit([experiments[i].trainer for i in group], p.X_train, p.y_train, fit, workers, progress)
    return Sweep([_member(point, done) for point, done in zip(chosen, experiments, strict=True)])


def _member(point: Point, experiment: Experiment) -> SweepMember:
    history, model = experiment.trainer.history, experiment.model()
    member = SweepMember(
        dict(point), label_of(point), history, {}, model, _failure(history), experiment.config
    )
    if not member.failure:
        member.scores |= {part: scored.scores for part, scored in experiment.scores().items()}
    return member


# --- over a function ----------------------------------------------------------------------------------------------


def sweep_trainers(
    make_trainer: Callable[..., Trainer],
    points: Points,
    X: Any,
    y: Any,
    *,
    test: tuple[Any, Any] | None = None,
    workers: int | None = None,
    progress: bool = True,
    **fit_settings: Any,
) -> Sweep:
    """Train what a function makes, once for each point, on the same data.

    Args:
        make_trainer: ``make_trainer(**settings)`` returns a trainer with a new network.
        points: as in `sweep`; the keys are arguments of `make_trainer`, or, where it has none of that name, of
            `Trainer.fit`: "epochs", "batch_size", ...
        X, y: as in `Trainer.fit`.
        test: (X, y) that take no part in the training, for the scores "test".
        workers, progress: as in `sweep`.
        fit_settings: of `Trainer.fit`, for all.

    Raises:
        ValueError, TypeError: no point, an unknown key, data or settings that do not fit.
    """
    chosen = grid_points(points)
    takes = inspect.signature(make_trainer).parameters
    any_key = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    others = {"self", "X", "y", "progress", "rows", "held_rows"}
    of_fit = set(inspect.signature(Trainer.fit).parameters) - others
    trainers, settings = [], []
    for point in chosen:
        own = {key: value for key, value in point.items() if key in takes or (any_key and key not in of_fit)}
        fit = {key: value for key, value in point.items() if key not in own}
        unknown = next((key for key in fit if key not in of_fit), None)
        if unknown is not None:
            raise ValueError(f"unknown setting {unknown!r} of a sweep{nearest(unknown, {*takes, *of_fit})}")
        trainers.append(make_trainer(**own))
        settings.append({**fit_settings, **fit})
    if len({id(trainer.network) for trainer in trainers}) < len(trainers):
        raise ValueError("make_trainer returned the same network twice; each point needs a new one")
    groups: dict[str, list[int]] = {}
    for i, (fit, trainer) in enumerate(zip(settings, trainers, strict=True)):
        own_fit = {key: fit.get(key) for key in {key for point in chosen for key in point} & of_fit}
        groups.setdefault(repr((sorted(own_fit.items()), trainer.network.backend.name)), []).append(i)
    for group in groups.values():
        _fit([trainers[i] for i in group], X, y, settings[group[0]], workers, progress)
    members = []
    for point, trainer in zip(chosen, trainers, strict=True):
        member = SweepMember(
            dict(point), label_of(point), trainer.history, {}, trainer.model, _failure(trainer.history)
        )
        if not member.failure:
            member.scores["train"] = trainer.evaluate(X, y)
            if test is not None:
                member.scores["test"] = trainer.evaluate(*test)
        members.append(member)
    return Sweep(members)


# --- what both have -----------------------------------------------------------------------------------------------


def grid_points(points: Points) -> list[dict[str, Any]]:
    """Return the points of a sweep, in order; those of a grid with the last key changing fastest.

    Raises:
        ValueError: no point, a key without values, two equal points.
        TypeError: values that are no list.
    """
    if isinstance(points, Mapping):
        for key, values in points.items():
            if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
                raise TypeError(f"sweep over {key!r} got {values!r}; expected a list of values")
        lists = [list(values) for values in points.values()]
        found = (
            [dict(zip(points, point, strict=True)) for point in itertools.product(*lists)] if points else []
        )
    else:
        found = [dict(point) for point in points]
    if not found:
        raise ValueError(
            "a sweep needs at least one value of one setting, for example {'optimizer.lr': [0.1, 0.01]}"
        )
    texts = [repr(point) for point in found]
    twice = next((point for point, text in zip(found, texts, strict=True) if texts.count(text) > 1), None)
    if twice is not None:
        raise ValueError(f"a sweep has the point {twice} twice; leave one of them out")
    return found


def label_of(point: Point) -> str:
    """Return the settings of a point in short: keys by their last part, unless two have the same."""
    last = [key.rpartition(".")[2] for key in point]
    keys = [key if last.count(short) > 1 else short for key, short in zip(point, last, strict=True)]
    return ", ".join(f"{key}={_short(value)}" for key, value in zip(keys, point.values(), strict=True))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k} {_short(v)}" for k, v in value.items() if k != "name")
        return f"{value.get('name', '')}({inner})" if inner else str(value.get("name", "{}"))
    if isinstance(value, list | tuple):
        return "-".join(map(_short, value)) if value else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fit(
    trainers: Sequence[Trainer], X: Any, y: Any, fit: dict[str, Any], workers: int | None, progress: bool
) -> None:
    """Train networks that agree in how; one that is alone may use all CPUs by itself."""
    try:
        if len(trainers) == 1:
            trainers[0].fit(X, y, progress=progress, **fit)
        else:
            fit_many(trainers, X, y, workers=workers, progress=progress, **fit)
    except NonFiniteLossError:
        pass  # it is told of by the history of each network that it befell


def _failure(history: History) -> str:
    if history.stopped != "the loss was not finite":
        return ""
    return f"{history.stopped} in epoch {len(history) + 1}"
