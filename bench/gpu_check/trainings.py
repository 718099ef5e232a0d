"""Whole trainings: to the score that the CPU comes to."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gpumlp.executors import EagerExecutor
from gpumlp.workloads import WORKLOADS, Workload

from .checks import PRECISIONS, Check, Context, Failed, Skipped, Values, executor
from .steps import EXECUTORS

SCORE_TOLERANCE = {"float32": 1e-5, "tf32": 1e-3, "bf16": 1e-2}
"""Between the scores of two trainings (accuracy, or 1 - error / variance); beside it one row of the test set, and one
more in a thousand, may change sides: two orders of summation part over hundreds of steps."""

LOSS_TOLERANCE = {"float32": 1e-3, "tf32": 3e-2, "bf16": 1e-1}
"""Between their losses on the test set, relative, or to a hundredth of the loss before training: rounding grows."""

ROWS = {"small": 280, "clf": 800, "polar": 2560, "ee6132": 12_800}
EPOCHS = {"small": 30, "clf": 15, "polar": 4, "ee6132": 1}
ON_HOST = {"small": 2, "clf": 1}


def checks(context: Context) -> list[Check]:
    """Each training by each executor and precision; and what `Trainer.fit` chooses by itself."""
    found = []
    for name in context.either(EPOCHS, ON_HOST):
        for kind in ("chosen", "graph", "resident"):
            if kind == "resident" and name == "ee6132":
                continue
            for precision in PRECISIONS if kind == "graph" else PRECISIONS[:1]:
                run = functools.partial(check_score, context, name, kind, precision)
                found.append(Check(f"{name} to the same score; {kind}, {precision}", run, limit=120))
    return found


def need(context: Context, kind: str) -> None:
    """Skip what needs a library that is not there."""
    if kind == "graph" and not context.gpu.has_products:
        raise Skipped("nvmath-python is not installed: there is no graph executor")


@functools.cache
def _on_cpu(name: str, epochs: int) -> dict[str, float]:
    with executor(EagerExecutor):
        return _trained(WORKLOADS[name].reduced(ROWS[name]), "cpu", epochs, "float32")


def _trained(workload: Workload, device: Any, epochs: int, precision: str) -> dict[str, float]:
    """Train on four fifths of a workload's rows; return loss and score on the others."""
    data = workload.load()
    held = np.arange(len(data.X)) % 5 == 4
    trainer = workload.trainer(device, precision=precision)
    X, y = data.X[held], data.y[held]
    start = trainer.evaluate(X, y)["loss"]
    trainer.fit(data.X[~held], data.y[~held], epochs=epochs, batch_size=workload.batch_size, progress=False)
    found = {"start": start, "loss": trainer.evaluate(X, y)["loss"], "rows": float(held.sum())}
    if trainer.loss.is_classification:
        return found | {"score": float((trainer.predict_classes(X).ravel() == y).mean())}
    error = (trainer.predict(X)[:, 0].astype(np.float64) - y) ** 2
    return found | {"score": float(1 - error.mean() / np.var(y.astype(np.float64)))}


def check_score(context: Context, name: str, kind: str, precision: str) -> Values:
    """Train on the CPU, eagerly, and on the device; compare loss and score on rows that neither saw."""
    need(context, kind)
    epochs = context.either(EPOCHS, ON_HOST)[name]
    wanted = _on_cpu(name, epochs)
    workload = WORKLOADS[name].reduced(ROWS[name])
    if kind == "chosen":
        found = _trained(workload, context.backend, epochs, precision)
    else:
        with executor(EXECUTORS[kind]):
            found = _trained(workload, context.backend, epochs, precision)
    score = abs(found["score"] - wanted["score"])
    loss = abs(found["loss"] - wanted["loss"]) / max(abs(wanted["loss"]), 0.01 * abs(wanted["start"]))
    values = {
        "score": found["score"],
        "score on the CPU": wanted["score"],
        "loss": found["loss"],
        "loss on the CPU": wanted["loss"],
        "relative difference of losses": loss,
    }
    if not wanted["loss"] < wanted["start"]:
        raise Failed("nothing was learnt on the CPU: the comparison says nothing", values)
    counted = workload.loss != "mse"
    if not score <= SCORE_TOLERANCE[precision] + (0.001 + 1.001 / wanted["rows"] if counted else 0.0):
        raise Failed(f"the scores differ by {score:.3g}", values)
    if not loss <= LOSS_TOLERANCE[precision]:
        raise Failed(f"the losses differ by {loss:.3g}, relative", values)
    return values
