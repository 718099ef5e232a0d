"""What is special to report mlpnn: units one by one, summed losses, and the faults of its formulas."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumlp.recipes import Context, Outcome, Trained
from gpumlp.recipes.context import Drawn, Table

if TYPE_CHECKING:
    from gpumlp.trainer import Trainer

EVERY = 200
"""Epochs between two published losses."""

PUBLISHED = {
    "cross-entropy": [140016, 98762, 79200, 66536, 57300, 50137, 44357, 39599, 35571, 32052],
    "kl-divergence": [143105, 101352, 81279, 67876, 58113, 50524, 44438, 39468, 35321, 31769],
}

FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "identity": lambda z: z,
}


# --- units of their own -----------------------------------------------------------------------------------------------


def one_by_one(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> None:
    """Compare the outputs of the mixed layer on the test images with those of its units, each taken by itself."""
    run = trained[context.part.id]
    network, X = run.experiment.trainer.network, run.experiment.prepared.X_test
    linear, mixed = network.layers[:2]
    to_host = network.backend.to_host
    layer = to_host(mixed.forward(linear.forward(network.backend.asarray(X))))
    weight, bias = (to_host(array).astype(np.float64) for array in (linear.weight, linear.bias))
    names = [unit.to_dict()["name"] for unit in mixed.units]
    differences: dict[str, float] = {}
    for j, name in enumerate(names):
        unit = FUNCTIONS[name](X @ weight[:, j] + bias[j])
        differences[name] = max(differences.get(name, 0.0), float(np.abs(layer[:, j] - unit).max()))
    outcome.values["largest_difference"] = max(differences.values())
    rows = [[name, names.count(name), difference] for name, difference in differences.items()]
    outcome.tables.append(
        Table("The layer's units, each taken by itself", ["activation", "units", "largest difference"], rows)
    )


# --- the two trainings ------------------------------------------------------------------------------------------------


def summed_losses(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> None:
    """Add the loss as a sum over the images where it was published, and the seconds of an epoch."""
    run = trained[context.part.id]
    p, history = run.experiment.prepared, run.history
    sums = p.n_train * np.array(history["loss"])
    published = PUBLISHED[context.part.id]
    last = min(len(published), len(sums) // EVERY)
    ours = sums[EVERY - 1 :: EVERY][:last] if last else sums[[0, -1]]
    outcome.values["losses"] = ours.tolist()
    gaps = [100 * (float(o) / p - 1) for o, p in zip(ours, published, strict=False)] if last else []
    outcome.values["largest_difference"] = max(map(abs, gaps), default=float("nan"))
    outcome.values["epoch_seconds"] = history.train_seconds / len(history) + _seconds_of_test(run)
    outcome.values["epochs_seconds"] = len(history) * outcome.values["epoch_seconds"]
    rows = [
        [EVERY * i, p, float(o), gap]
        for i, (p, o, gap) in enumerate(zip(published, ours, gaps, strict=False), 1)
    ]
    if rows:
        columns = ["epoch", "published", "ours", "difference, %"]
        outcome.tables.append(Table("Summed training loss", columns, rows))
    else:
        outcome.notes.append(
            f"A short training: the summed losses are those of epochs 1 and {len(sums)}; the published ones begin at "
            f"epoch {EVERY}."
        )


def _seconds_of_test(run: Trained) -> float:
    """The seconds to measure the loss on the test set, which the trainer does not count, the median of three."""
    p, seconds = run.experiment.prepared, []
    for _ in range(3):
        start = time.perf_counter()
        run.experiment.trainer.evaluate(p.X_test, p.y_test)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def summed_curves(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> Drawn:
    """Draw the summed losses by epoch, and the published ones."""
    from gpumlp.report import plot_curves

    run = trained[context.part.id]
    p, history, published = run.experiment.prepared, run.history, PUBLISHED[context.part.id]
    epochs = np.array(history["epoch"])
    curves = {
        "training": (epochs, p.n_train * np.array(history["loss"])),
        "test": (epochs, len(p.test_rows) * np.array(history["val_loss"])),
    }
    if len(epochs) >= EVERY:
        curves["training, published"] = (EVERY * np.arange(1, len(published) + 1), np.array(published, float))
    figure = plot_curves(curves, "summed loss", log=True)
    return Drawn(figure, "Loss by epoch, a sum over the 60,000 training and the 10,000 test images")


# --- faults -----------------------------------------------------------------------------------------------------------


def faults(context: Context) -> Outcome:
    """Compute what goes wrong in the report's formulas, and what gpumlp gives."""
    from gpumlp.experiment import set_up

    experiment = set_up(context.config)
    p, n = experiment.prepared, min(context.options["images"], experiment.prepared.n_train)
    X, y = p.X_train[:n], p.y_train[:n]
    outcome = context.outcome()
    outcome.device = experiment.trainer.network.backend.describe()
    outcome.seeds = [context.config["training"]["seed"]]
    outcome.values |= _divergence(_trainer(context, X, "kl_div", 1e-8), X, y)
    outcome.values |= _softmax()
    context.advance(0.2)
    runs = {
        name: _trained(context, X, y, loss, clip)
        for name, (loss, clip) in {
            "cross-entropy": ("cross_entropy", 1e-8),
            "KL divergence": ("kl_div", 1e-8),
            "cross-entropy, not clipped": ("cross_entropy", 0.0),
        }.items()
    }
    clipped, divergence, free = runs.values()
    losses, same = (np.array(run.history["loss"]) for run in (clipped, divergence))
    outcome.values["same_loss.difference"] = float(np.abs(same / losses - 1).max())
    outcome.values["clip.weights_difference"] = max(
        float(np.abs(a - b).max())
        for a, b in zip(
            clipped.network.state_dict().values(), free.network.state_dict().values(), strict=True
        )
    )
    outcome.values["clip.loss_with"] = n * float(losses[0])
    outcome.values["clip.loss_without"] = n * free.history["loss"][0]
    rows = [[name, n * run.history["loss"][0], n * run.history["loss"][-1]] for name, run in runs.items()]
    columns = ["", "first epoch", f"epoch {len(losses)}"]
    outcome.tables.append(Table(f"Summed loss on {n} images, from one seed", columns, rows))
    return outcome


def _trainer(context: Context, X: np.ndarray, loss: str, clip: float) -> Trainer:
    from gpumlp.network import mlp
    from gpumlp.trainer import Trainer

    spec, training = context.config["network"], context.config["training"]
    network = mlp(
        [X.shape[1], *spec["hidden"], 10], spec["activation"], weight_init=spec["weight_init"],
        bias_init=spec["bias_init"], device=training["device"], seed=training["seed"],
    )  # fmt: skip
    return Trainer(
        network,
        loss={"name": loss, "clip": clip},
        optimizer=context.config["optimizer"],
        seed=training["seed"],
    )


def _trained(context: Context, X: np.ndarray, y: np.ndarray, loss: str, clip: float) -> Trainer:
    trainer = _trainer(context, X, loss, clip)
    trainer.fit(X, y, epochs=context.config["training"]["epochs"], batch_size=None, progress=False)
    return trainer


def _divergence(trainer: Trainer, X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The KL divergence of an untrained network, by gpumlp and as the report writes it."""
    ours = len(X) * trainer.evaluate(X, y)["loss"]
    predicted = np.maximum(trainer.predict(X).astype(np.float64), 1e-8)
    target = np.zeros_like(predicted)
    target[np.arange(len(y)), y] = 1
    with np.errstate(divide="ignore", invalid="ignore"):  # what is counted here are its undefined terms
        terms = target * np.log(target / predicted)
    return {
        "kl.sum": ours,
        "kl.undefined": int(not np.isfinite(ours)),
        "kl.undefined_as_written": int(np.isnan(terms).sum()),
    }


def _softmax() -> dict[str, int]:
    """Rows that softmax loses, with and without subtracting the maximum."""
    from gpumlp.layers import Softmax

    logits = np.outer(np.linspace(0, 1000, 100), np.linspace(0, 1, 10)).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        powers = np.exp(logits)
        as_written = powers / powers.sum(axis=1, keepdims=True)
    ours = np.asarray(Softmax().forward(logits))
    return {
        "softmax.lost_as_written": int((~np.isfinite(as_written)).any(axis=1).sum()),
        "softmax.lost": int((~np.isfinite(ours)).any(axis=1).sum()),
    }
