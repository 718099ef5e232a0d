"""Losses: the value of a batch and its gradient together.

Each function gives a loss per row and a gradient per entry; `_finish` applies weights and the reduction. With
``mean`` the value is the weighted mean over the rows, sum(w l) / sum(w); without it the weighted sum.
"""

from __future__ import annotations

from typing import Any

from .. import BAD_STEP, SLOT, STEP
from .activations import _sigmoid, _softplus

Array = Any


def _finish(
    xp: Any,
    control: Array,
    ring: Array,
    weight: Array | None,
    mean: bool,
    row_loss: Array,
    row_grad: Array | None,
    grad: Array | None,
) -> None:
    rows = row_loss.shape[0]
    # the sum of a large batch needs more digits than float32 has
    if weight is None:
        total, value = xp.asarray(rows, dtype=xp.float64), xp.sum(row_loss, dtype=xp.float64)
    else:
        total, value = xp.sum(weight, dtype=xp.float64), xp.sum(row_loss * weight, dtype=xp.float64)
    # a batch whose rows all weigh nothing has the value 0 and no gradient, not 0 / 0
    divisor = xp.maximum(total, 1e-300) if mean else xp.ones((), dtype=xp.float64)
    slot = int(control[SLOT])
    ring[slot, 0] = value / divisor
    ring[slot, 1] = total
    if grad is not None:
        scale = 1 / divisor if weight is None else (weight / divisor)[:, None]
        xp.multiply(row_grad, scale.astype(grad.dtype), out=grad)


def check_loss(xp: Any, ring: Array, control: Array) -> None:
    if control[BAD_STEP] < 0 and not bool(xp.isfinite(ring[int(control[SLOT]), 0])):
        control[BAD_STEP] = control[STEP]


def mse(
    xp: Any, control: Array, output: Array, target: Array, weight: Any, ring: Array, grad: Any, mean: bool
) -> None:
    e = output - target
    outputs = output.shape[1]
    _finish(xp, control, ring, weight, mean, (e * e).sum(axis=1) / outputs, e * (2 / outputs), grad)


def mae(
    xp: Any, control: Array, output: Array, target: Array, weight: Any, ring: Array, grad: Any, mean: bool
) -> None:
    e = output - target
    outputs = output.shape[1]
    _finish(xp, control, ring, weight, mean, xp.abs(e).sum(axis=1) / outputs, xp.sign(e) / outputs, grad)


def huber(
    xp: Any,
    control: Array,
    output: Array,
    target: Array,
    weight: Any,
    ring: Array,
    grad: Any,
    mean: bool,
    delta: float,
) -> None:
    e = output - target
    size = xp.abs(e)
    outputs = output.shape[1]
    loss = xp.where(size <= delta, 0.5 * e * e, delta * (size - 0.5 * delta))
    slope = xp.where(size <= delta, e, delta * xp.sign(e))
    _finish(xp, control, ring, weight, mean, loss.sum(axis=1) / outputs, slope / outputs, grad)


def binary_cross_entropy_logits(
    xp: Any,
    control: Array,
    output: Array,
    target: Array,
    weight: Any,
    ring: Array,
    grad: Any,
    mean: bool,
    clip: float,
) -> None:
    outputs = output.shape[1]
    not_p, minus_log_p = _softplus(xp, output), _softplus(xp, -output)
    if clip > 0:
        bound = -xp.log(xp.asarray(clip, dtype=output.dtype))
        not_p, minus_log_p = xp.minimum(not_p, bound), xp.minimum(minus_log_p, bound)
    loss = target * minus_log_p + (1 - target) * not_p
    slope = _sigmoid(xp, output) - target
    _finish(xp, control, ring, weight, mean, loss.sum(axis=1) / outputs, slope / outputs, grad)


def binary_cross_entropy(
    xp: Any,
    control: Array,
    output: Array,
    target: Array,
    weight: Any,
    ring: Array,
    grad: Any,
    mean: bool,
    clip: float,
) -> None:
    outputs = output.shape[1]
    # both sides are clipped apart: in float32 1 - clip would round to 1
    p, q = xp.maximum(output, clip), xp.maximum(1 - output, clip)
    loss = -target * xp.log(p) - (1 - target) * xp.log(q)
    slope = (1 - target) / q - target / p
    _finish(xp, control, ring, weight, mean, loss.sum(axis=1) / outputs, slope / outputs, grad)


def _log_softmax(xp: Any, x: Array) -> Array:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))


def _clipped(xp: Any, log_p: Array, clip: float) -> Array:
    return xp.maximum(log_p, xp.log(xp.asarray(clip, dtype=log_p.dtype))) if clip > 0 else log_p


def softmax_cross_entropy_labels(
    xp: Any,
    control: Array,
    output: Array,
    target: Array,
    weight: Any,
    ring: Array,
    grad: Any,
    mean: bool,
    smoothing: float,
    clip: float,
) -> None:
    one_hot = (target[:, None] == xp.arange(output.shape[1])).astype(output.dtype)
    softmax_cross_entropy(xp, control, output, one_hot, weight, ring, grad, mean, smoothing, clip)


def softmax_cross_entropy(
    xp: Any,
    control: Array,
    output: Array,
    target: Array,
    weight: Any,
    ring: Array,
    grad: Any,
    mean: bool,
    smoothing: float,
    clip: float,
) -> None:
    if smoothing > 0:
        target = (1 - smoothing) * target + smoothing / output.shape[1]
    log_p = _log_softmax(xp, output)
    loss = -_product_of_positive(xp, target, _clipped(xp, log_p, clip)).sum(axis=1)
    # targets may sum to something other than 1: the derivative then scales softmax by that sum
    slope = xp.exp(log_p) * target.sum(axis=1, keepdims=True) - target
    _finish(xp, control, ring, weight, mean, loss, slope, grad)


def _product_of_positive(xp: Any, t: Array, log_p: Array) -> Array:
    """t log p, with 0 log 0 = 0; NaN on either side stays NaN."""
    return xp.where((t == 0) & xp.isneginf(log_p), xp.zeros_like(log_p), t * log_p)


def _entropy_term(xp: Any, t: Array) -> Array:
    """t log t, with 0 log 0 = 0."""
    return t * xp.log(xp.where(t == 0, xp.ones_like(t), t))


def kl_divergence_logits(
    xp: Any,
    control: Array,
    output: Array,
    target: Array,
    weight: Any,
    ring: Array,
    grad: Any,
    mean: bool,
    clip: float,
) -> None:
    log_p = _log_softmax(xp, output)
    cross = _product_of_positive(xp, target, _clipped(xp, log_p, clip))
    loss = (_entropy_term(xp, target) - cross).sum(axis=1)
    slope = xp.exp(log_p) * target.sum(axis=1, keepdims=True) - target
    _finish(xp, control, ring, weight, mean, loss, slope, grad)


def kl_divergence(
    xp: Any,
    control: Array,
    output: Array,
    target: Array,
    weight: Any,
    ring: Array,
    grad: Any,
    mean: bool,
    clip: float,
) -> None:
    p = xp.maximum(output, clip)
    loss = (_entropy_term(xp, target) - _product_of_positive(xp, target, xp.log(p))).sum(axis=1)
    # where target and p are both 0 the term is 0 whatever p is, and so is its slope
    slope = xp.where((target == 0) & (p == 0), xp.zeros_like(p), -target / p)
    _finish(xp, control, ring, weight, mean, loss, slope, grad)


def softmax_mse(
    xp: Any, control: Array, output: Array, target: Array, weight: Any, ring: Array, grad: Any, mean: bool
) -> None:
    p = xp.exp(_log_softmax(xp, output))
    e = p - target
    outputs = output.shape[1]
    slope = p * (e - (e * p).sum(axis=1, keepdims=True)) * (2 / outputs)
    _finish(xp, control, ring, weight, mean, (e * e).sum(axis=1) / outputs, slope, grad)
