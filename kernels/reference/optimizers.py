"""Clipping and update rules over flat ranges of the arenas.

Constants are those of torch.optim unless the name says otherwise; every rule leaves all as it is once a step was
flagged as not finite, so that the weights of the last good step stay.
"""

from __future__ import annotations

from typing import Any

from .. import BAD_STEP, SLOT, STEP, UPDATE

Array = Any


def check_gradients(xp: Any, gradients: Array, control: Array, squared: bool = False) -> None:
    # the extremes carry a NaN or an infinity; a sum of squares could overflow by itself
    if control[BAD_STEP] < 0 and gradients.size:
        extremes = xp.stack([gradients.min(), gradients.max()])
        if squared:
            extremes = extremes * extremes
        if not bool(xp.isfinite(extremes).all()):
            control[BAD_STEP] = control[STEP]


def clip_by_value(xp: Any, gradients: Array, limit: float) -> None:
    xp.clip(gradients, -limit, limit, out=gradients)


def clip_by_norm(xp: Any, gradients: Array, limit: float) -> None:
    norm = xp.sqrt(xp.sum(xp.square(gradients, dtype=xp.float64)))
    # 1e-6 is that of torch.nn.utils.clip_grad_norm_
    gradients *= xp.minimum(limit / (norm + 1e-6), 1.0).astype(gradients.dtype)


def _flagged(control: Array) -> bool:
    return bool(control[BAD_STEP] >= 0)


def _decayed(gradients: Array, parameters: Array, weight_decay: float) -> Array:
    return gradients + weight_decay * parameters if weight_decay else gradients


def _rate(control: Array, rates: Array) -> float:
    return float(rates[int(control[SLOT])])


def sgd(
    xp: Any, control: Array, rates: Array, gradients: Array, parameters: Array, weight_decay: float
) -> None:
    if not _flagged(control):
        parameters -= _rate(control, rates) * _decayed(gradients, parameters, weight_decay)


def momentum(
    xp: Any,
    control: Array,
    rates: Array,
    gradients: Array,
    parameters: Array,
    velocity: Array,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    """PyTorch's form: v = momentum v + (1 - dampening) g, parameters -= lr v; the first v is g itself."""
    if _flagged(control):
        return
    g = _decayed(gradients, parameters, weight_decay)
    share = 1.0 if control[UPDATE] == 0 else 1 - dampening
    velocity *= momentum
    velocity += share * g
    parameters -= _rate(control, rates) * (g + momentum * velocity if nesterov else velocity)


def momentum_keras(
    xp: Any,
    control: Array,
    rates: Array,
    gradients: Array,
    parameters: Array,
    velocity: Array,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
) -> None:
    """Keras's form: v = momentum v - lr g, parameters += v; it differs from PyTorch's when lr changes."""
    if _flagged(control):
        return
    step = _rate(control, rates) * _decayed(gradients, parameters, weight_decay)
    velocity *= momentum
    velocity -= step
    parameters += momentum * velocity - step if nesterov else velocity


def momentum_average(
    xp: Any,
    control: Array,
    rates: Array,
    gradients: Array,
    parameters: Array,
    velocity: Array,
    weight_decay: float,
    momentum: float,
) -> None:
    """A moving average: v = momentum v + (1 - momentum) g from v = 0, parameters -= lr v."""
    if _flagged(control):
        return
    velocity *= momentum
    velocity += (1 - momentum) * _decayed(gradients, parameters, weight_decay)
    parameters -= _rate(control, rates) * velocity


def adagrad(
    xp: Any,
    control: Array,
    rates: Array,
    gradients: Array,
    parameters: Array,
    accumulator: Array,
    weight_decay: float,
    lr_decay: float,
    eps: float,
) -> None:
    """Duchi et al. 2011."""
    if _flagged(control):
        return
    g = _decayed(gradients, parameters, weight_decay)
    accumulator += g * g
    rate = _rate(control, rates) / (1 + int(control[UPDATE]) * lr_decay)
    parameters -= rate * (g / (xp.sqrt(accumulator) + eps))


def rmsprop(
    xp: Any,
    control: Array,
    rates: Array,
    gradients: Array,
    parameters: Array,
    square: Array,
    average: Array | None,
    velocity: Array | None,
    weight_decay: float,
    alpha: float,
    eps: float,
    momentum: float,
) -> None:
    """Hinton's lecture 6e; with `average` the centred form of Graves 2013."""
    if _flagged(control):
        return
    g = _decayed(gradients, parameters, weight_decay)
    square *= alpha
    square += (1 - alpha) * g * g
    spread = square
    if average is not None:
        average += (1 - alpha) * (g - average)
        # rounding can take the difference below 0
        spread = xp.maximum(square - average * average, 0)
    step = g / (xp.sqrt(spread) + eps)
    if velocity is not None:
        velocity *= momentum
        velocity += step
        step = velocity
    parameters -= _rate(control, rates) * step


def adam(
    xp: Any,
    control: Array,
    rates: Array,
    gradients: Array,
    parameters: Array,
    first: Array,
    second: Array,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    decoupled: bool,
) -> None:
    """Kingma & Ba 2015; `decoupled` weight decay is AdamW, Loshchilov & Hutter 2019."""
    if _flagged(control):
        return
    rate, update = _rate(control, rates), int(control[UPDATE]) + 1
    g = gradients
    if decoupled:
        parameters *= 1 - rate * weight_decay
    else:
        g = _decayed(g, parameters, weight_decay)
    first += (1 - beta1) * (g - first)
    second *= beta2
    second += (1 - beta2) * g * g
    scale = rate / (1 - beta1**update)
    parameters -= scale * (first / (xp.sqrt(second) / (1 - beta2**update) ** 0.5 + eps))
