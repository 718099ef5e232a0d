"""The kinds of parts: each makes an outcome from a context."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config_values import at
from ..registry import nearest
from .context import Context, Outcome, Table, Trained
from .figures import draw

if TYPE_CHECKING:
    from ..callbacks import Callback
    from ..experiment import Experiment
    from ..validation import CrossValidation

_FIT_OPTIONS = ("validate_on_test", "record_steps", "side_by_side")


def run_part(context: Context) -> Outcome:
    """Run a part and draw its figures.

    Raises:
        ValueError, TypeError: options or settings that do not fit.
        NonFiniteLossError: a loss was lost.
    """
    with at(f"{context.recipe.name}.{context.part.id}.options"):
        _check_options(context)
    return _KINDS[context.part.kind](context)


def _check_options(context: Context) -> None:
    known = OPTIONS[context.part.kind]
    if known is None:  # those of a Python function are its own
        return
    unknown = next((name for name in context.options if name not in known), None)
    if unknown is not None:
        raise ValueError(f"unknown option {unknown!r}{nearest(unknown, known)}")


def _fit_options(context: Context) -> dict[str, Any]:
    return {name: context.options[name] for name in _FIT_OPTIONS if name in context.options}


def _train(context: Context) -> Outcome:
    trained = context.fit({context.part.id: context.config}, **_fit_options(context))
    run = trained[context.part.id]
    outcome = context.outcome(trained)
    outcome.values |= scores_of(run)
    outcome.arrays |= curves_of(run)
    return _finished(context, trained, outcome)


def _several(context: Context, changes: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """Train once for each label; every score becomes a list over the labels, and "LABEL.score"."""
    configs = {label: context.config_with(change) for label, change in changes.items()}
    trained = context.fit(configs, **_fit_options(context))
    outcome = context.outcome(trained)
    outcome.values |= values_of(trained)
    for label, run in trained.items():
        outcome.arrays |= {f"{label}.{name}": values for name, values in curves_of(run).items()}
    if len(trained) <= 24:
        outcome.tables.append(score_table(trained))
    return _finished(context, trained, outcome)


def _compare(context: Context) -> Outcome:
    return _several(context, _option(context, "variants", dict))


def _seeds(context: Context) -> Outcome:
    given = _option(context, "seeds", int, list)
    seeds = list(range(given)) if isinstance(given, int) else given
    own_data = context.options.get("own_data", False)
    changes = {
        f"seed {seed}": {
            "training": {"seed": seed},
            **({"data": {"settings": {"seed": seed}}} if own_data else {}),
        }
        for seed in seeds
    }
    return _several(context, changes)


def _sweep(context: Context) -> Outcome:
    from ..config import put_setting
    from ..sweep import grid_points, label_of

    changes = {}
    for point in grid_points(_option(context, "grid", dict)):
        change: dict[str, Any] = {}
        for key, value in point.items():
            put_setting(change, key, value)
        changes[label_of(point)] = change
    return _several(context, changes)


def _cross_validate(context: Context) -> Outcome:
    """Fold by fold on the training rows, or with ``rows = "all"`` on all of them; ``repeats`` times, other seeds."""
    from ..experiment import set_up
    from .training import Share

    k, repeats = context.options.get("k", 5), context.options.get("repeats", 1)
    experiment = set_up(context.config)
    training = experiment.config["training"]
    share = Share(context.advance, repeats * k * training["epochs"])
    start = time.perf_counter()
    found = _folds(context, experiment, k, training["seed"], share)
    outcome = context.outcome([Trained(context.part.id, experiment, found.histories[0], {})])
    outcome.values["fit_seconds"] = time.perf_counter() - start
    means = [found.mean]
    for repeat in range(1, repeats):
        means.append(_folds(context, experiment, k, training["seed"] + repeat * k, share).mean)
    outcome.seeds = [training["seed"] + i for i in range(repeats * k)]
    outcome.it_per_second = float(np.mean([history.it_per_second for history in found.histories]))
    outcome.values["it_per_second"] = outcome.it_per_second
    for name in found.scores[0]:
        outcome.values[f"folds.{name}"] = [scores[name] for scores in found.scores]
        outcome.values[f"mean.{name}"] = found.mean[name]
        outcome.values[f"repeats.{name}"] = [mean[name] for mean in means]
    runs = {}
    for fold, history in enumerate(found.histories, start=1):
        outcome.arrays[f"fold {fold}.loss"] = np.array(history["loss"])
        runs[f"fold {fold}"] = Trained(f"fold {fold}", experiment, history, {})
    names = list(found.scores[0])
    rows: list[list[Any]] = [
        [f"fold {i}", *(s[n] for n in names)] for i, s in enumerate(found.scores, start=1)
    ]
    rows.append(["mean", *(found.mean[n] for n in names)])
    rows += [[f"mean, repeat {i}", *(m[n] for n in names)] for i, m in enumerate(means[1:], start=2)]
    outcome.tables.append(Table("Scores of the folds", ["", *(n.replace("_", " ") for n in names)], rows))
    return _finished(context, runs, outcome)


def _folds(context: Context, experiment: Experiment, k: int, seed: int, share: Callback) -> CrossValidation:
    from ..validation import cross_validate

    p, trainer = experiment.prepared, experiment.trainer
    everything = context.options.get("rows", "train") == "all"
    settings = experiment.fit_settings()
    settings.pop("validation_split")
    return cross_validate(
        trainer.network.copy,
        p.X if everything else p.X_train,
        p.y if everything else p.y_train,
        k=k,
        loss=trainer.loss,
        optimizer=trainer.optimizer,
        seed=seed,
        metrics=trainer.metrics,
        callbacks=lambda: [share],
        validate=context.options.get("validate", False),
        progress=False,
        **settings,
    )


def _finished(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> Outcome:
    """Let the recipe's own function add to the outcome, where one is named, and draw the figures."""
    if "after" in context.options:
        context.recipe.function(_option(context, "after", str))(context, trained, outcome)
    outcome.figures += draw(context, trained, outcome)
    return outcome


def _python(context: Context) -> Outcome:
    outcome = context.recipe.function(_option(context, "function", str))(context)
    if not isinstance(outcome, Outcome):
        raise TypeError(
            f"function {context.options['function']} gave a {type(outcome).__name__}; expected an Outcome"
        )
    return outcome


def _option(context: Context, name: str, *kinds: type) -> Any:
    value = context.options.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"{context.recipe.name}.{context.part.id}.options.{name} is {value!r}; a part of kind "
            f"{context.part.kind} needs it, a {expected}"
        )
    return value


_KINDS: dict[str, Callable[[Context], Outcome]] = {
    "train": _train,
    "compare": _compare,
    "seeds": _seeds,
    "sweep": _sweep,
    "cross_validate": _cross_validate,
    "python": _python,
}
OPTIONS: dict[str, tuple[str, ...] | None] = {
    "train": ("after", *_FIT_OPTIONS),
    "compare": ("variants", "after", *_FIT_OPTIONS),
    "seeds": ("seeds", "own_data", "after", *_FIT_OPTIONS),
    "sweep": ("grid", "after", *_FIT_OPTIONS),
    "cross_validate": ("k", "rows", "repeats", "validate", "after"),
    "python": None,
}


# --- values of trainings ------------------------------------------------------------------------------------------


def scores_of(run: Trained) -> dict[str, Any]:
    """Return "train.accuracy", "test.loss", ..., "it_per_second", "train_seconds", "epochs", "steps" of a training."""
    history = run.history
    values: dict[str, Any] = {
        f"{part}.{name}": value
        for part, scored in run.scores.items()
        for name, value in scored.scores.items()
    }
    return values | {
        "it_per_second": history.it_per_second,
        "steps_per_second": history.steps_per_second,
        "train_seconds": history.train_seconds,
        "epochs": len(history),
        "steps": history.steps,
    }


def values_of(trained: Mapping[str, Trained]) -> dict[str, Any]:
    """Return each score as a list over the trainings, and as "LABEL.score"."""
    values: dict[str, Any] = {}
    for label, run in trained.items():
        for name, value in scores_of(run).items():
            values[f"{label}.{name}"] = value
            values.setdefault(name, []).append(value)
    return values


def curves_of(run: Trained) -> dict[str, np.ndarray]:
    """Return the columns of a history as arrays, "step_losses" and the validations ("val.step", ...) among them."""
    history = run.history
    curves = {name: np.array(values, dtype=float) for name, values in history.epochs.items()}
    curves |= {f"val.{name}": np.array(values) for name, values in history.validations.items()}
    if history.step_losses:
        curves["step_losses"] = np.array(history.step_losses)
    return curves


def score_table(trained: Mapping[str, Trained], title: str = "Scores") -> Table:
    """Return a table of the loss and the first metric of each training, on its training and test rows."""
    shown = (
        ("loss", "accuracy")
        if next(iter(trained.values())).experiment.trainer.loss.is_classification
        else ("loss",)
    )
    columns = [(part, name) for part in ("train", "test") for name in shown]
    rows = [
        [
            label,
            *(run.scores[part].scores[name] for part, name in columns if part in run.scores),
            run.history.it_per_second,
        ]
        for label, run in trained.items()
    ]
    present = [f"{part} {name}" for part, name in columns if part in next(iter(trained.values())).scores]
    return Table(title, ["", *present, "it/s"], rows)
