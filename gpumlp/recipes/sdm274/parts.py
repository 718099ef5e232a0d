"""What is special to report sdm274: the curve without noise, the network that overflows, times and loads compared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from gpumlp.recipes import Context, Outcome
from gpumlp.recipes.context import Drawn, Table

FOLDS = 5
PUBLISHED_RATES = {"folds": 716.0, "folds-deep": 15.3, "simple": 1700.0}
FIXES: dict[str, tuple[str, dict[str, Any]]] = {
    "clipped": ("gradients clipped to norm 1", {"clip_norm": 1.0}),
    "lower": ("a quarter of the rate", {"lr": 0.0125}),
    "schedule": ("a cycle from a 25th of the rate up to it", {"lr": {"name": "one_cycle", "max_lr": 0.05}}),
}


def show_data(context: Context) -> Outcome:
    """Draw the points and the curve that they scatter around."""
    from gpumlp.data import sine_sqrt_regression
    from gpumlp.report import plot_fits

    data, curve = sine_sqrt_regression(500), sine_sqrt_regression(1000, noise=0.0)
    x, y = data.features[:, 0], data.y
    exact = sine_sqrt_regression(500, noise=0.0).y
    outcome = context.outcome()
    outcome.values["floor"] = float(np.mean((y - exact) ** 2))
    figure = plot_fits(x, y, {"sin x + 0.3 exp(sqrt|x|)": (curve.features[:, 0], curve.y)})
    outcome.figures.append(Drawn(figure, "The 500 points, and the curve without noise"))
    return outcome


def overflow(context: Context) -> Outcome:
    """Train five folds at a rate at which the loss is lost, and then with each of the ways out."""
    from gpumlp.experiment import set_up

    experiment = set_up(context.config)
    outcome = context.outcome()
    outcome.device = experiment.trainer.network.backend.describe()
    outcome.seeds = list(range(FOLDS))
    lost = [_one_fold(experiment, fold) for fold in range(FOLDS)]
    caught = [row for row in lost if row["message"]]
    outcome.values |= {
        "lost": len(caught),
        "steps_after": max((row["steps_after"] for row in caught), default=0),
        "seconds_to_stop": max((row["seconds"] for row in caught), default=0.0),
        "explained": sum(
            all(word in row["message"] for word in ("epoch", "batch", "learning rate", "clip_norm"))
            for row in caught
        ),
    }
    rows = [[f"fold {row['fold'] + 1}", row["message"] or "trained"] for row in lost]
    outcome.tables.append(Table("What gpumlp says", ["", "message"], rows))
    share = 1 / (len(FIXES) + 1)
    summary = []
    for i, (fix, (name, changes)) in enumerate(FIXES.items(), start=1):
        context.advance(i * share)
        outcome.values |= _five_folds(context, fix, changes)
        summary.append([name, outcome.values[f"{fix}.finished"], outcome.values[f"{fix}.loss"]])
    outcome.tables.append(Table("With a way out", ["", "folds that finish", "mean loss"], summary))
    return outcome


def _one_fold(experiment: Any, fold: int) -> dict[str, Any]:
    """Train one fold until it fails or is done."""
    import time

    from gpumlp.failure import NonFiniteLossError
    from gpumlp.splits import fold_rows
    from gpumlp.trainer import Trainer

    p, config = experiment.prepared, experiment.config
    rows, _ = fold_rows(p.n_train, FOLDS, None, config["training"]["seed"])[fold]
    base = experiment.trainer
    trainer = Trainer(
        base.network.copy(), loss=base.loss, optimizer=base.optimizer, seed=config["training"]["seed"] + fold
    )
    found = {"fold": fold, "message": "", "steps_after": 0, "seconds": 0.0}
    start = time.perf_counter()
    try:
        trainer.fit(p.X_train, p.y_train, rows=rows, progress=False, **experiment.fit_settings())
    except NonFiniteLossError as error:
        steps = -(-len(rows) // config["training"]["batch_size"])
        failing = (error.epoch - 1) * steps + error.batch
        found |= {"message": str(error), "steps_after": trainer.history.steps - (failing - 1)}
    return found | {"seconds": time.perf_counter() - start}


def _five_folds(context: Context, fix: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Train five folds with a way out; how many finished, and the mean of their losses on the rows held out."""
    from gpumlp.experiment import set_up
    from gpumlp.failure import NonFiniteLossError
    from gpumlp.many import fit_many, make_trainers
    from gpumlp.splits import fold_rows

    experiment = set_up(context.config_with({"optimizer": dict(changes)}))
    p, base, seed = experiment.prepared, experiment.trainer, experiment.config["training"]["seed"]
    trainers = make_trainers(
        [seed + fold for fold in range(FOLDS)], base.network.copy, loss=base.loss, optimizer=base.optimizer
    )
    folds = fold_rows(p.n_train, FOLDS, None, seed)
    rows = [train for train, _ in folds]
    with suppress(NonFiniteLossError):  # the others are trained to their end
        fit_many(trainers, p.X_train, p.y_train, rows=rows, progress=False, **experiment.fit_settings())
    losses = [
        trainer.evaluate(p.X_train, p.y_train, rows=held)["loss"]
        for trainer, (_, held) in zip(trainers, folds, strict=True)
        if not trainer.history.stopped
    ]
    return {f"{fix}.finished": len(losses), f"{fix}.loss": float(np.mean(losses)) if losses else float("nan")}


def compare_times(context: Context) -> Outcome:
    """Draw the time of each model, and compare that of an epoch."""
    from gpumlp.report import plot_bars

    names = {
        "single neuron, full batch": "single-neuron",
        "1-64-128-1, full batch": "full-batch",
        "1-64-128-256-1, full batch": "full-batch-deep",
        "1-64-128-1, batches of 32": "minibatch",
        "1-64-128-1, one row a step": "one-sample",
    }
    values = {label: context.needed[part].values for label, part in names.items()}
    seconds = {label: float(found["train_seconds"]) for label, found in values.items()}
    epoch = {label: 1000 * seconds[label] / float(values[label]["epochs"]) for label in names}
    outcome = context.outcome()
    ordered = list(names)[:3]
    outcome.values["epoch_ms"] = [epoch[label] for label in ordered]
    outcome.values["ratio"] = epoch[ordered[1]] / epoch[ordered[0]]
    figure = plot_bars(seconds, "training time", unit="s")
    outcome.figures.append(Drawn(figure, "Training time of each model"))
    rows = [[label, values[label]["epochs"], seconds[label], epoch[label]] for label in names]
    outcome.tables.append(Table("Time of each model", ["", "epochs", "seconds", "ms an epoch"], rows))
    return outcome


def compare_load(context: Context) -> Outcome:
    """Compare epochs a second with what was published, and show the CPU load of each part."""
    from gpumlp.cpus import cpu_counts
    from gpumlp.report import plot_published_and_ours

    cpus = int(cpu_counts()["usable"] or 1)
    outcome = context.outcome()
    rows = []
    for part, outcome_of in context.needed.items():
        found = outcome_of.values
        rows.append([part, found["it_per_second"], found["cpu_load"], 100 * float(found["cpu_load"]) / cpus])
    outcome.tables.append(
        Table("Speed and load", ["part", "it/s of one network", "CPUs busy", "% of all CPUs"], rows)
    )
    folds = context.needed["folds"].values
    busy = float(folds["cpu_load"])
    outcome.values["load_percent"] = 100 * busy / cpus
    # as many folds run at once as CPUs are busy
    epochs = sum(len(curve) for curve in context.needed["folds"].arrays.values())
    outcome.values["it_per_cpu_second"] = epochs / (float(folds["fit_seconds"]) * busy)
    pairs = {
        part: (rate, float(context.needed[part].values["it_per_second"]))
        for part, rate in PUBLISHED_RATES.items()
    }
    figure = plot_published_and_ours(pairs, "epochs a second", unit="it/s")
    outcome.figures.append(Drawn(figure, "Epochs a second, published and ours"))
    return outcome
