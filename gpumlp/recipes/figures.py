"""Figures that recipes name: each draws what trainings of a part gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..registry import look_up
from .context import Context, Drawn, Outcome, Trained

if TYPE_CHECKING:
    Maker = Callable[[Mapping[str, Trained], Mapping[str, Any]], Iterator[Drawn]]


def draw(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> list[Drawn]:
    """Return the figures that a part names.

    A figure is a name of `FIGURES`, or a table ``{name = ..., caption = ..., **settings}``; with
    ``{python = "f"}`` it is what ``f(context, trained, outcome)`` of the recipe's ``parts.py`` returns: a figure with
    its label as the alternative text, or a `Drawn`.

    Raises:
        ValueError: an unknown figure.
    """
    drawn: list[Drawn] = []
    for spec in context.part.figures:
        settings = {"name": spec} if isinstance(spec, str) else dict(spec)
        caption = settings.pop("caption", "")
        if "python" in settings:
            made = context.recipe.function(settings["python"])(context, trained, outcome)
            drawn.append(made if isinstance(made, Drawn) else Drawn(made, caption or made.get_label()))
            continue
        make = look_up("figure", settings.pop("name", ""), FIGURES)
        for figure in make(trained, settings):
            figure.caption = caption or figure.caption
            drawn.append(figure)
    return drawn


def _history(trained: Mapping[str, Trained], settings: Mapping[str, Any]) -> Iterator[Drawn]:
    """Loss and metrics of each training by epoch, in panels."""
    from ..report import plot_history

    for run in trained.values():
        figure = plot_history(run.history.epochs, settings.get("quantities"))
        what = "Loss and metrics" if len(figure.axes) > 1 else "Loss"
        yield Drawn(
            figure,
            f"{what} by epoch" + (f", {run.label}" if len(trained) > 1 else ""),
            f"Learning curves: the loss falls from {run.history['loss'][0]:.4g} to {run.history['loss'][-1]:.4g} in "
            f"{len(run.history)} epochs",
        )


def _curves(trained: Mapping[str, Trained], settings: Mapping[str, Any]) -> Iterator[Drawn]:
    """One quantity of all trainings over the epochs; with ``smooth = n`` the mean of each n epochs."""
    from ..report import plot_curves

    quantity = settings.get("quantity", "loss")
    curves, longest = {}, 1
    for label, run in trained.items():
        epochs, values = np.array(run.history["epoch"]), np.array(run.history[quantity])
        measured = np.isfinite(values)
        # what is left of short trainings are still curves
        n = max(1, min(settings.get("smooth", 1), int(measured.sum()) // 50))
        curves[label], longest = _means(epochs[measured], values[measured], n), max(longest, n)
    given = {key: settings[key] for key in ("mean", "log") if key in settings}
    caption = f"{quantity.replace('_', ' ')} by epoch".capitalize()
    caption += f", the mean of each {longest} epochs" if longest > 1 else ""
    yield Drawn(plot_curves(curves, quantity, **given), caption)


def _means(x: np.ndarray, y: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of each n neighbours, those at the end that are fewer left out."""
    whole = len(y) // n * n
    return x[:whole].reshape(-1, n).mean(axis=1), y[:whole].reshape(-1, n).mean(axis=1)


def _regions(trained: Mapping[str, Trained], settings: Mapping[str, Any]) -> Iterator[Drawn]:
    """Decision regions of a classifier with two inputs, training and test rows side by side."""
    from ..report import plot_decision_regions

    for run in _chosen(trained, settings):
        p = run.experiment.prepared
        figure = plot_decision_regions(
            run.predict_codes, run.points(), classes=p.classes, feature_names=p.feature_names
        )
        yield Drawn(figure, "Decision regions; misclassified points are circled in red" + _of(run, trained))


def _probability(trained: Mapping[str, Trained], settings: Mapping[str, Any]) -> Iterator[Drawn]:
    """Probability of the second class as a map, with the boundary."""
    from ..report import plot_probability_map

    for run in _chosen(trained, settings):
        p = run.experiment.prepared
        figure = plot_probability_map(
            run.predict, run.points(), classes=p.classes, feature_names=p.feature_names
        )
        yield Drawn(figure, "Probability of the second class, and the boundary" + _of(run, trained))


def _fit(trained: Mapping[str, Trained], settings: Mapping[str, Any]) -> Iterator[Drawn]:
    """Curves of regressions with one input over the points; x in its own units."""
    from ..report import plot_fits

    first = next(iter(trained.values())).experiment
    p = first.prepared
    mean, scale = _units(p)
    x = np.linspace(p.X.min(), p.X.max(), 600, dtype=np.float32)[:, None]
    fits = {
        label if len(trained) > 1 else "network": (x[:, 0] * scale + mean, run.predict(x)[:, 0])
        for label, run in trained.items()
    }
    figure = plot_fits(
        p.X[:, 0] * scale + mean, first.y.ravel(), fits, xlabel=p.feature_names[0], ylabel=p.target_names[0]
    )
    yield Drawn(figure, "The fit over the data")


def _units(prepared: Any) -> tuple[float, float]:
    """Return (mean, deviation) of the first feature, as it was standardised."""
    zero, one = (float(prepared.preprocessor.transform(np.full((1, 1), v, np.float32))[0, 0]) for v in (0, 1))
    return -zero / (one - zero), 1 / (one - zero)


def _confusion(trained: Mapping[str, Trained], settings: Mapping[str, Any]) -> Iterator[Drawn]:
    """Confusion matrix on the test rows."""
    from ..metrics import confusion_matrix
    from ..report import plot_confusion_matrix

    for run in _chosen(trained, settings):
        scored, classes = run.scores["test"], run.experiment.prepared.classes
        assert classes is not None
        counts = np.asarray(confusion_matrix(scored.true, scored.predicted, len(classes)))
        right = int(np.trace(counts))
        caption = f"Confusion matrix on the test rows: {right} of {counts.sum()} right"
        wrong = counts - np.diag(np.diag(counts))
        if wrong.any():
            i, j = np.unravel_index(wrong.argmax(), wrong.shape)
            caption += f"; most often {classes[i]} taken for {classes[j]} ({wrong[i, j]} times)"
        yield Drawn(plot_confusion_matrix(counts, classes), caption + _of(run, trained))


def _chosen(trained: Mapping[str, Trained], settings: Mapping[str, Any]) -> list[Trained]:
    """The trainings whose labels ``only`` names, or all."""
    labels = settings.get("only", list(trained))
    return [trained[label] for label in labels]


def _of(run: Trained, trained: Mapping[str, Trained]) -> str:
    return f"; {run.label}" if len(trained) > 1 else ""


FIGURES: dict[str, Maker] = {
    "history": _history,
    "curves": _curves,
    "regions": _regions,
    "probability": _probability,
    "fit": _fit,
    "confusion": _confusion,
}
