"""The programs of training: how an epoch begins, and what one step does."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from .arena import trainable_runs
from .chain import Chain
from .executors import StepPlan
from .layers import Activation, Layer, PerUnit, is_shipped
from .losses import LOSSES, Loss
from .optimizers import OPTIMIZERS, Optimizer
from .program import RING, Builder, Operand, Program
from .settings import alike


@dataclass(frozen=True)
class DataShape:
    """What the programs must know of a data set.

    Attributes:
        rows: of X as it lies in memory.
        used: how many of them are trained on.
        features: columns of X.
        target: (columns,) of a matrix of floats, or () for labels.
        weighted: whether rows have weights.
    """

    rows: int
    used: int
    features: int
    target: tuple[int, ...]
    weighted: bool


MOST_PLANS = 64
"""Plans that are kept for trainings like those before."""

_PLANS: dict[Hashable, StepPlan] = {}
_WRITING = threading.Lock()
"""Held while a plan is looked for and written: hundreds of networks that are alike begin at the same time."""

NOT_WRITTEN = frozenset(
    [
        *("_chain", "_parameter_specs", "_state_specs", "units"),
        *("weight_init", "bias_init", "class_weight", "schedule"),
    ]
)
"""Attributes of layers, losses and optimizers that say nothing of a program, or nothing that others do not say."""


def training_plan(
    network: Chain, loss: Loss, optimizer: Optimizer, data: DataShape, batch_rows: int, shuffle: bool
) -> StepPlan:
    """Return the programs of an epoch over `data` in batches of `batch_rows`.

    They hold no address and no value, so they are written once for all trainings that are alike.
    """
    depend_on = _what_programs_depend_on(network, loss, optimizer)
    if depend_on is None:
        return _write(network, loss, optimizer, data, batch_rows, shuffle)
    key = (depend_on, data, batch_rows, shuffle)
    with _WRITING:
        plan = _PLANS.pop(key, None) or _write(network, loss, optimizer, data, batch_rows, shuffle)
        _PLANS[key] = plan  # the last in order
        if len(_PLANS) > MOST_PLANS:
            del _PLANS[next(iter(_PLANS))]
        return plan


def _what_programs_depend_on(network: Chain, loss: Loss, optimizer: Optimizer) -> Hashable | None:
    """Return what is equal for networks whose programs are, or None where a class of a user's own writes a part."""
    layers = [part for layer in network.layers for part in (layer, *_units(layer))]
    shipped = type(loss) in LOSSES.values() and type(optimizer) in OPTIMIZERS.values()
    if not shipped or not all(map(is_shipped, layers)):
        return None
    settings = alike([*layers, loss, optimizer], NOT_WRITTEN)
    return None if settings is None else (network.dtype, settings)


def _units(layer: Layer) -> list[Activation]:
    return layer.units if isinstance(layer, PerUnit) else []


def _write(
    network: Chain, loss: Loss, optimizer: Optimizer, data: DataShape, batch_rows: int, shuffle: bool
) -> StepPlan:
    short = data.used % batch_rows
    # an epoch that is one full batch has no order; its index then never changes
    begin = _begin(network, data, shuffle and batch_rows < data.used)
    return StepPlan(
        begin=begin,
        batch=training_step(network, loss, optimizer, data, batch_rows),
        last=training_step(network, loss, optimizer, data, short) if short else None,
        steps=-(-data.used // batch_rows),
    )


def _begin(network: Chain, data: DataShape, shuffle: bool) -> Program:
    b = Builder(data.used, network.dtype, training=True)
    rows = Operand("rows", "", (data.used,), "int64")
    index = Operand("index", "", (data.used,), "int64")
    if shuffle:
        b.call("shuffle", b.control, rows, index)
    else:
        b.call("copy_rows", rows, index)
    return b.finish()


def training_step(network: Chain, loss: Loss, optimizer: Optimizer, data: DataShape, rows: int) -> Program:
    """Write one step: gather, forward, loss, backward, update.

    The mark "update" stands before the first call that may change parameters, and so a step that went wrong can
    be replayed up to there.
    """
    b = Builder(rows, network.dtype, training=True)
    index = Operand("index", "", (data.used,), "int64")
    x = b.buffer("x", rows, data.features)
    b.call("gather_rows", b.control, Operand("X", "", (data.rows, data.features), b.dtype), index, x)
    target_dtype = b.dtype if data.target else "int64"
    target = b.buffer("target", rows, *data.target, dtype=target_dtype)
    source = Operand("y", "", (data.rows, *data.target), target_dtype)
    b.call("gather_rows" if data.target else "gather_labels", b.control, source, index, target)
    weight = None
    if data.weighted:
        weight = b.buffer("weight", rows)
        b.call("gather_weights", b.control, Operand("weight", "", (data.rows,), b.dtype), index, weight)
    values = network.emit_forward(b, x)
    ring = Operand("ring", "", (RING, 2), "float64")
    dy = b.buffer("dy", *values[-1].shape)
    loss.emit(b, values[-1], target, weight, ring, dy)
    b.call("check_loss", ring, b.control)
    b.mark("backward")
    network.emit_backward(b, values, dy)
    b.mark("update")
    segments = network.segments()
    size = network.parameters.nbytes // np.dtype(b.dtype).itemsize
    runs = trainable_runs(segments, optimizer.split_by_decay)
    optimizer.emit(b, runs, size, Operand("rates", "", (RING,), "float64"))
    network.emit_update(b)
    return b.finish()
