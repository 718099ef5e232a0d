"""The programs of training: how an epoch begins, and what one step does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arena import trainable_runs
from .chain import Chain
from .executors import StepPlan
from .losses import Loss
from .optimizers import Optimizer
from .program import RING, Builder, Operand, Program


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


def training_plan(
    network: Chain, loss: Loss, optimizer: Optimizer, data: DataShape, batch_rows: int, shuffle: bool
) -> StepPlan:
    """Write the programs of an epoch over `data` in batches of `batch_rows`."""
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
