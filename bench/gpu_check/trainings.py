"""Whole trainings: to the score that the CPU comes to, and twice to the same bits."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np

import gpumlp as gm
from gpumlp.executors import EagerExecutor
from gpumlp.workloads import WORKLOADS, Workload

from .checks import PRECISIONS, Check, Context, Failed, Skipped, Values, executor
from .networks import CASES, Case
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
    for name, case in CASES.items():
        for kind in ("graph", "resident"):
            if kind == "resident" and not case.is_small:
                continue
            for precision in PRECISIONS if kind == "graph" else PRECISIONS[:1]:
                repeat = functools.partial(check_repeats, context, case, kind, precision)
                found.append(Check(f"twice the same bits; {name}; {kind}, {precision}", repeat))
    found.append(Check("twice the same bits; wide and large batch", functools.partial(check_wide, context)))
    for kind in ("graph", "resident"):
        run = functools.partial(check_lost_loss, context, kind)
        found.append(Check(f"a lost loss keeps the last good weights; {kind}", run))
    found.append(Check("many networks at once", functools.partial(check_many, context), limit=120))
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


# --- the same bits ---------------------------------------------------------------------------------------------------


def _fit(case: Case, device: Any, precision: str, epochs: int) -> gm.Trainer:
    trainer = gm.Trainer(
        case.network(device, "float32"),
        loss=case.loss,
        optimizer=case.optimizer(),
        precision=precision,
        metrics=(),
    )
    X, y = case.data()
    trainer.fit(X, y, epochs=epochs, batch_size=case.batch_rows, progress=False, record_steps=True)
    return trainer


def bits(trainer: gm.Trainer) -> dict[str, bytes]:
    """All weights, slots and losses of a training, as bytes."""
    arrays, _ = trainer.state_dict()
    found = {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}
    return found | {"losses": np.array(trainer.history.step_losses).tobytes()}


def _same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    if different := [name for name in one if one[name] != other.get(name)]:
        raise Failed(f"the bits of {different[0]} differ", {"different": different})


def check_repeats(context: Context, case: Case, kind: str, precision: str) -> Values:
    """Train twice from the same seed, in blocks that time decides: weights, slots and all losses are equal."""
    need(context, kind)
    epochs = context.either(60, 2)
    with executor(EXECUTORS[kind]):
        one, other = (_fit(case, context.backend, precision, epochs) for _ in range(2))
    _same(bits(one), bits(other))
    return {"epochs": epochs, "steps": one.history.steps, "loss": one.history["loss"][-1]}


def check_wide(context: Context) -> Values:
    """The same with products that a library may split over their inner side."""
    need(context, "graph")
    width, rows = context.either((2048, 16_384), (64, 256))
    found = []
    for _ in range(2):
        workload = _wide(width, rows)
        data, trainer = workload.load(), workload.trainer(context.backend, precision="bf16")
        trainer.fit(
            data.X,
            data.y,
            epochs=context.either(20, 2),
            batch_size=rows // 2,
            progress=False,
            record_steps=True,
        )
        found.append(trainer)
    _same(*map(bits, found))
    return {"width": width, "batch": rows // 2, "steps": found[0].history.steps}


def _wide(width: int, rows: int) -> Workload:
    from gpumlp.commands.bench_sizes import grid_workload

    return grid_workload(width, rows).reduced(rows)


def check_lost_loss(context: Context, kind: str) -> Values:
    """A rate that overflows ends the training in its step, with finite weights and a message that says where."""
    need(context, kind)
    case = CASES["relu, mse"]
    trainer = gm.Trainer(
        case.network(context.backend, "float32"), loss=case.loss, optimizer=gm.SGD(1e12), metrics=()
    )
    X, y = case.data()
    try:
        with executor(EXECUTORS[kind]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(X, y, epochs=50, batch_size=case.batch_rows, progress=False)
    except gm.NonFiniteLossError as error:
        weights = np.concatenate([w.ravel() for w in trainer.network.state_dict().values()])
        if not np.isfinite(weights).all():
            raise Failed("the weights are not finite", {"message": str(error)}) from None
        return {"message": str(error), "good steps": trainer.history.steps}
    raise Failed("a loss that overflows was not noticed", {"loss": trainer.history["loss"][-1]})


def check_many(context: Context) -> Values:
    """Networks that train side by side end with the bits that each has alone."""
    workload = WORKLOADS["small"].reduced(context.either(280, 64))
    data, count, epochs = workload.load(), context.either(200, 3), context.either(20, 2)
    rates = np.geomspace(workload.lr / 30, workload.lr, count)

    def make(lr: float) -> gm.Trainer:
        network = gm.mlp(workload.sizes, device=context.backend, seed=3)
        return gm.Trainer(network, loss="mse", optimizer=gm.SGD(lr=float(lr)), seed=3)

    together = [make(lr) for lr in rates]
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": 32, "progress": False}
    gm.fit_many(together, data.X, data.y, **settings)
    for i in (0, count // 2, count - 1):
        alone = make(rates[i])
        with executor(EXECUTORS["resident"]):
            alone.fit(data.X, data.y, **settings)
        _same(bits(alone), bits(together[i]))
    return {"networks": count, "epochs": epochs}
