"""What is special to report upf: its pair of files, the accuracy of a squared error, and how costs fall."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumlp.recipes import Context, Outcome, Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA_SEED = 89
"""With it a 2-3-1 network comes to about the accuracies of the report."""


def write_files(folder: Path) -> None:
    """Write the pair of files, ``train.csv`` of 200 rows and ``test.csv`` of 100: x1, x2, class."""
    from gpumlp.data import two_cluster_classification
    from gpumlp.files import write_whole

    data = two_cluster_classification(200, 100, DATA_SEED)
    assert data.n_train is not None
    for name, rows in (("train.csv", slice(0, data.n_train)), ("test.csv", slice(data.n_train, None))):
        lines = ["x1,x2,class"]
        lines += [
            f"{x1:.4f},{x2:.4f},{code}"
            for (x1, x2), code in zip(data.features[rows], data.y[rows], strict=True)
        ]
        write_whole(folder / name, "\n".join(lines) + "\n")


def show_data(context: Context) -> Outcome:
    """Load the files and standardise them with the training set's mean and deviation."""
    from gpumlp.data import load_file, prepare
    from gpumlp.data.pairs import join
    from gpumlp.recipes.context import Drawn
    from gpumlp.report import plot_points

    train, test = (
        load_file(context.recipe.folder / f"{name}.csv", target="class") for name in ("train", "test")
    )
    data = join(train, test)
    raw, prepared = prepare(data, standardize=False), prepare(data)
    X = prepared.X_train.astype(np.float64)
    outcome = context.outcome()
    outcome.values["normalised.mean"] = float(np.abs(X.mean(axis=0)).max())
    outcome.values["normalised.deviation"] = float(X.std(axis=0)[np.abs(X.std(axis=0) - 1).argmax()])
    figure = plot_points(
        {"raw": (raw.X_train, raw.y_train), "normalised": (prepared.X_train, prepared.y_train)},
        classes=data.classes, feature_names=("x1", "x2"),
    )  # fmt: skip
    outcome.figures.append(Drawn(figure, "The training set, raw and normalised"))
    return outcome


def score_classes(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> None:
    """Add the accuracy at the threshold 0.5, and the error as a sum over the training rows."""
    run = trained[context.part.id]
    for part, (X, y) in run.points().items():
        outcome.values[f"{part}.accuracy"] = float(((run.predict(X)[:, 0] > 0.5) == (y.ravel() > 0.5)).mean())
    outcome.values["train.sum"] = run.scores["train"].scores["mse"] * run.experiment.prepared.n_train


def cost_curves(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> Figure:
    """Draw the cost of this part beside that of the part with cross-entropy."""
    from gpumlp.report import plot_curves

    curves = {
        "cross-entropy": context.needed["cross-entropy"].arrays["loss"],
        "squared error": outcome.arrays["loss"],
    }
    return plot_curves(curves, "cost")


def squared_error_map(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> Any:
    """Draw the output as a map, with the boundary."""
    from gpumlp.recipes.context import Drawn
    from gpumlp.report import plot_probability_map

    run = trained[context.part.id]
    parts = {name: (X, y.ravel().astype(int)) for name, (X, y) in run.points().items()}
    figure = plot_probability_map(run.predict, parts, classes=["0", "1"])
    return Drawn(figure, "Output of the network with squared error, and the boundary at 0.5")


def how_it_falls(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> None:
    """Add the cost after 50 epochs, and in how many epochs it rose, by momentum."""
    costs = {
        float(run.experiment.config["optimizer"]["momentum"]): np.array(run.history["loss"])
        for run in trained.values()
    }
    # a rise of less than float32 tells apart in a cost of this size is none
    rises = {beta: int((np.diff(cost) > 1e-5 * cost[0]).sum()) for beta, cost in costs.items()}
    outcome.values["after_50"] = [float(cost[50]) for cost in costs.values()]
    outcome.values["after_50_up_to_0.95"] = [float(cost[50]) for beta, cost in costs.items() if beta <= 0.95]
    outcome.values["rises_up_to_0.9"] = max(rises[beta] for beta in costs if beta <= 0.9)
    outcome.values["rises_above_0.9"] = min(rises[beta] for beta in costs if beta > 0.9)


def compare_nine(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> None:
    """Add how 6 hidden units at rate 0.5 compare with the best, the losses by rate, and how far 0.005 moves."""
    first, last = {}, {}
    for run in trained.values():
        key = (run.experiment.config["network"]["hidden"][0], run.experiment.config["optimizer"]["lr"])
        first[key], last[key] = run.history["loss"][0], run.history["loss"][-1]
    outcome.values["best_ratio"] = last[6, 0.5] / min(last.values())
    outcome.values["by_rate"] = [
        float(np.mean([loss for (_, lr), loss in last.items() if lr == rate])) for rate in (0.005, 0.01, 0.5)
    ]
    outcome.values["left_at_0.005"] = min(last[width, 0.005] / first[width, 0.005] for width in (3, 6, 11))
