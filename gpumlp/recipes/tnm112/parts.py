"""What is special to report tnm112: trainings over many seeds, weights moved from Keras, weights set by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumlp.recipes import Context, Outcome, Trained
from gpumlp.recipes.context import Drawn, Table

from .boundary import BREAKS, boundary_distance, parts_the_plane, random_weights
from .keras_side import MEASURED, WEIGHTS, load_keras
from .keras_side import train as train_in_keras

if TYPE_CHECKING:
    from gpumlp.experiment import Experiment
    from gpumlp.network import Sequential

Runs = Mapping[str, Trained]

GOOD_MOMENTUM = 95.0
"""Test accuracy, in %, that a training with momentum is to come to."""
GOOD_ADAM = 94.0
"""The same with Adam, of the best of its last epochs."""
LAST_EPOCHS = 5
EARLY = 90.0
"""Test accuracy, in %, from which on a network counts as good."""


# --- many seeds ---------------------------------------------------------------------------------------------------


def compare_over_seeds(context: Context) -> Outcome:
    """Train each variant from many seeds, which also draw the data; show the spread, and the median seed."""
    from gpumlp.recipes.training import fit

    variants, seeds = context.options["variants"], range(context.options["seeds"])
    everything: dict[str, Trained] = {}
    medians: dict[str, Trained] = {}
    values: dict[str, Any] = {"medians": []}
    ordered: dict[str, np.ndarray] = {}
    rows = []
    for i, (label, changes) in enumerate(variants.items()):
        configs = {f"{label}, seed {seed}": _seeded(context, changes, seed) for seed in seeds}
        trained = fit(configs, _share_of(context, i, len(variants)), validate_on_test=True)
        everything |= trained
        accuracy = _percent(trained)
        medians[label] = _median_run(trained)
        ordered[label] = np.sort(accuracy)
        values |= {f"{label}.accuracy": accuracy, f"{label}.loss": _scores(trained, "test", "loss")}
        values[f"{label}.updates"] = medians[label].history.steps
        values["medians"].append(float(np.median(accuracy)))
        train = 100 * np.median(_scores(trained, "train", "accuracy"))
        loss = np.median(values[f"{label}.loss"])
        rows.append([label, values[f"{label}.updates"], *_spread(accuracy), float(train), float(loss)])
    outcome = context.outcome(everything)
    outcome.values |= values
    columns = [
        "", "updates", "lowest test %", "median test %", "highest test %", "median train %", "median test loss",
    ]  # fmt: skip
    outcome.tables.append(Table(f"Over {len(seeds)} seeds", columns, rows))
    for label, run in medians.items():
        outcome.figures.append(_regions(run, f"the median seed, {label}"))
    outcome.figures += [_over_epochs(medians, column) for column in ("loss", "val_loss", "val_accuracy")]
    outcome.figures.append(_spread_of(ordered))
    return outcome


def best_of_seeds(context: Context, trained: Runs, outcome: Outcome) -> None:
    """Add the accuracies in %, how many seeds are good, and the best one; draw it and the spread."""
    accuracy = _percent(trained)
    best = list(trained.values())[int(np.argmax(accuracy))]
    outcome.values |= {
        "accuracy": accuracy,
        "good_seeds": int(np.sum(np.array(accuracy) >= GOOD_MOMENTUM)),
        "best.seed": best.label,
        "best.loss": best.scores["test"].scores["loss"],
    }
    outcome.figures += [_regions(best, f"the best seed ({best.label})"), _learning(best, "the best seed")]
    outcome.figures += [_all_curves(trained), _spread_of({"ten layers with momentum": np.sort(accuracy)})]


def best_of_last_epochs(context: Context, trained: Runs, outcome: Outcome) -> None:
    """Add the best of each training's last epochs, in %, its loss, and the first good epoch; draw the median seed."""
    best, losses, first = [], [], []
    for run in trained.values():
        accuracy = 100 * np.array(run.history["val_accuracy"])
        at = len(accuracy) - LAST_EPOCHS + int(np.argmax(accuracy[-LAST_EPOCHS:]))
        best.append(float(accuracy[at]))
        losses.append(float(run.history["val_loss"][at]))
        good = np.flatnonzero(accuracy >= EARLY)
        first.append(int(good[0]) + 1 if good.size else len(accuracy) + 1)
    outcome.values |= {
        "accuracy": _percent(trained),
        "best_of_last": best,
        "good_seeds": int(np.sum(np.array(best) >= GOOD_ADAM)),
        "loss_of_best": losses,
        "first_good_epoch": first,
    }
    columns = [
        "",
        f"best of the last {LAST_EPOCHS} epochs, test %",
        "its test loss",
        f"first epoch at {EARLY:g} %",
    ]
    rows = [list(row) for row in zip(trained, best, losses, first, strict=True)]
    outcome.tables.append(Table("Over the epochs", columns, rows))
    median = _median_run(trained)
    outcome.figures += [_regions(median, f"the median seed ({median.label})")]
    outcome.figures += [_learning(median, "the median seed"), _all_curves(trained)]


def _share_of(context: Context, i: int, n: int) -> Callable[[float], None]:
    """Tells the progress bar how much of the i-th of n equal pieces is done."""
    return lambda share: context.advance((i + share) / n)


def _seeded(context: Context, changes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The part's config with a variant's changes and a seed for the data and the training."""
    from gpumlp.recipes.recipe import merged

    return context.config_with(
        merged(changes, {"training": {"seed": seed}, "data": {"settings": {"seed": seed}}})
    )


def _scores(trained: Runs, part: str, name: str) -> list[float]:
    return [run.scores[part].scores[name] for run in trained.values()]


def _percent(trained: Runs) -> list[float]:
    """Test accuracies in %."""
    return [100 * accuracy for accuracy in _scores(trained, "test", "accuracy")]


def _median_run(trained: Runs) -> Trained:
    """The training whose test accuracy has as many below as above, or one more above."""
    order = np.argsort(_percent(trained), kind="stable")
    return list(trained.values())[int(order[(len(order) - 1) // 2])]


def _spread(values: list[float]) -> list[float]:
    return [float(of(values)) for of in (np.min, np.median, np.max)]


# --- figures ------------------------------------------------------------------------------------------------------


def _regions(run: Trained, what: str) -> Drawn:
    from gpumlp.report import plot_decision_regions

    p = run.experiment.prepared
    figure = plot_decision_regions(
        run.predict_codes, run.points(), classes=p.classes, feature_names=p.feature_names
    )
    return Drawn(figure, f"Decision regions of {what}; misclassified points are circled in red")


def _over_epochs(trained: Runs, column: str) -> Drawn:
    """One column of the histories by epoch, a curve for each label."""
    from gpumlp.report import plot_curves

    quantity, where, unit, factor = _COLUMNS[column]
    curves = {label: factor * np.array(run.history[column]) for label, run in trained.items()}
    figure = plot_curves(curves, f"{quantity} on the {where} points{unit}")
    return Drawn(figure, f"{quantity.capitalize()} on the {where} points by epoch, the median seed")


_COLUMNS = {
    "loss": ("loss", "training", "", 1),
    "val_loss": ("loss", "test", "", 1),
    "val_accuracy": ("accuracy", "test", ", %", 100),
}


def _learning(run: Trained, what: str) -> Drawn:
    """Loss and accuracy of a training by epoch, on training and test points."""
    from gpumlp.report import plot_history

    figure = plot_history(run.history.epochs, ["loss", "accuracy"])
    text = f"Loss and accuracy by epoch of {what}"
    loss, accuracy = (run.history[name][-1] for name in ("val_loss", "val_accuracy"))
    return Drawn(
        figure,
        f"{text}; validation is on the test points",
        f"{text}: at the end {loss:.4f} and {accuracy:.2%} on the test points",
    )


def _all_curves(trained: Runs) -> Drawn:
    from gpumlp.report import plot_curves

    curves = {label: 100 * np.array(run.history["val_accuracy"]) for label, run in trained.items()}
    scale = [curve[-1] for curve in curves.values()]
    figure = plot_curves(curves, "test accuracy, %", scale=scale, scale_label="at the end, %", mean=True)
    return Drawn(figure, f"Test accuracy by epoch of all {len(trained)} seeds, and their mean")


def _spread_of(ordered: Mapping[str, np.ndarray]) -> Drawn:
    from gpumlp.report import plot_curves

    figure = plot_curves(dict(ordered), "test accuracy, %", xlabel="seeds in order of accuracy")
    return Drawn(figure, "Test accuracy of every seed, in order: the spread")


# --- weights moved from Keras -------------------------------------------------------------------------------------


def move_from_keras(context: Context) -> Outcome:
    """Measure networks with weights from Keras, recorded and (where it is installed) live, beside what it measured."""
    from gpumlp.experiment import set_up
    from gpumlp.interop import load_keras_weights
    from gpumlp.report import plot_history

    experiment = set_up(context.config)
    recorded = json.loads((context.recipe.folder / MEASURED).read_text(encoding="utf-8"))
    load_keras_weights(experiment.trainer.network, context.recipe.folder / WEIGHTS)
    run = _measured("recorded", experiment)
    outcome = _untrained(context, run)
    name = f"Keras {recorded['keras']}, recorded"
    rows, gaps = _compare(name, recorded, run)
    context.advance(0.5)
    keras = load_keras()
    if keras is None:
        outcome.notes.append(
            "Keras or a backend of it is not installed here, so that there is no live model."
        )
    else:
        live, measured = _live(context, keras, experiment)
        more, more_gaps = _compare(f"Keras {measured['keras']}, live", measured, live)
        rows, gaps = rows + more, [*gaps, *more_gaps]
    printed = _as_printed(context, experiment)
    rows.append(["feed-forward as printed", "test", None, None, *_pair(printed, "test")])
    outcome.values |= {f"{part}.loss": run.scores[part].scores["loss"] for part in run.scores}
    outcome.values |= {f"{part}.accuracy": 100 * run.scores[part].scores["accuracy"] for part in run.scores}
    outcome.values |= {
        "loss_difference": max(gap[0] for gap in gaps),
        "accuracy_difference": max(gap[1] for gap in gaps),
        "printed.accuracy": _pair(printed, "test")[1],
    }
    columns = ["", "points", "loss in Keras", "accuracy in Keras, %", "loss here", "accuracy here, %"]
    outcome.tables.append(Table("The same weights in Keras and here", columns, rows))
    outcome.figures.append(_regions(run, "the moved network"))
    text = (
        f"Loss and accuracy by epoch while Keras trained the model; validation is on the test points ({name})"
    )
    outcome.figures.append(Drawn(plot_history(recorded["history"], ["loss", "accuracy"]), text))
    return outcome


def _live(context: Context, keras: Any, experiment: Experiment) -> tuple[Trained, dict[str, Any]]:
    """Train a model in Keras, move it while it is alive, and return it measured here and there."""
    from gpumlp.experiment import set_up
    from gpumlp.interop import from_keras

    p = experiment.prepared
    data = {"train": (p.X_train, p.y_train), "test": (p.X_test, p.y[p.n_train :])}
    model, measured = train_in_keras(keras, context.options["widths"], data, context.options["live_epochs"])
    mine = set_up(context.config, like=experiment)
    # its softmax holds no values: here it is part of the loss
    moved = from_keras(model, device=mine.trainer.network.backend)
    mine.trainer.network.load_state_dict(moved.state_dict())
    return _measured("live", mine), measured


def _measured(label: str, experiment: Experiment) -> Trained:
    """A network that was not trained here, with its scores."""
    return Trained(label, experiment, experiment.trainer.history, experiment.scores())


def _untrained(context: Context, run: Trained) -> Outcome:
    """An outcome with device and executor of a network that was not trained here."""
    outcome = context.outcome([run])
    outcome.it_per_second, outcome.seeds = None, []
    return outcome


def _pair(run: Trained, part: str) -> list[float]:
    scores = run.scores[part].scores
    return [scores["loss"], 100 * scores["accuracy"]]


def _compare(
    name: str, measured: Mapping[str, Any], run: Trained
) -> tuple[list[list[Any]], list[tuple[float, float]]]:
    """Rows of the table, and how far loss and accuracy (a share) are apart, for training and test points."""
    rows, gaps = [], []
    for part in ("train", "test"):
        theirs, ours = measured[part], run.scores[part].scores
        rows.append([name, part, theirs["loss"], 100 * theirs["accuracy"], *_pair(run, part)])
        gaps.append((abs(theirs["loss"] - ours["loss"]), abs(theirs["accuracy"] - ours["accuracy"])))
    return rows, gaps


def _as_printed(context: Context, experiment: Experiment) -> Trained:
    """The recorded weights with a softmax after every layer, as the report's feed-forward is printed."""
    from gpumlp.experiment import set_up
    from gpumlp.interop import load_keras_weights

    layers: list[Any] = []
    for spec in context.config["network"]["layers"]:
        if layers and isinstance(spec, Mapping) and spec["name"] == "linear":
            layers.append("softmax")
        layers.append(spec)
    printed = set_up(context.config_with({"network": {"layers": layers}}), like=experiment)
    load_keras_weights(printed.trainer.network, context.recipe.folder / WEIGHTS)
    return _measured("as printed", printed)


# --- weights set by hand ------------------------------------------------------------------------------------------


def hand_weights(context: Context) -> Outcome:
    """Put the report's matrices into a network, and draw many that meet its condition or break one part of it."""
    from gpumlp.experiment import set_up

    first = set_up(context.config)
    probe = Trained("probe", first, first.trainer.history, {})
    outcome = _untrained(context, probe)
    runs = {}
    for name, matrix in zip(("first", "second"), context.options["matrices"], strict=True):
        experiment = set_up(context.config, like=first)
        _put(experiment.trainer.network, np.array(matrix["weight"]), np.array(matrix["bias"]))
        run = runs[name] = _measured(name, experiment)
        outcome.values[f"{name}.distance"] = boundary_distance(run.predict_codes)
        what = f"the {name} matrix, W = {matrix['weight']}, b = {matrix['bias']}"
        outcome.figures.append(_regions(run, what))
    codes = [run.scores["test"].predicted for run in runs.values()]
    outcome.values["disagree"] = int(np.sum(codes[0] != codes[1]))
    outcome.values["accuracy"] = 100 * min(_scores(runs, "test", "accuracy"))
    rng, draws = np.random.default_rng(0), context.options["draws"]
    rows = []
    for i, (broken, words) in enumerate({"meeting": "meet all of it", **BREAKS}.items()):
        shares = []
        for j in range(draws):
            _put(first.trainer.network, *random_weights(rng, broken))
            shares.append(parts_the_plane(probe.predict_codes))
            context.advance((i + j / draws) / (1 + len(BREAKS)))
        outcome.values[broken] = 100 * float(np.mean(shares))
        rows.append([words, draws, outcome.values[broken]])
    outcome.values["breaking"] = max(outcome.values[broken] for broken in BREAKS)
    outcome.tables.append(Table("Random weights", ["", "drawn", "with that boundary and side, %"], rows))
    return outcome


def _put(network: Sequential, weight: np.ndarray, bias: np.ndarray) -> None:
    """Set the weights of a network of one layer; W is (out, in), as the report writes it."""
    network.load_state_dict({"0.weight": weight.T, "0.bias": bias})
