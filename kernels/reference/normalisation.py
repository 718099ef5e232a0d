"""Layer and batch normalisation (Ba et al. 2016; Ioffe & Szegedy 2015), forward and backward."""

from __future__ import annotations

from typing import Any

from .. import BAD_STEP

Array = Any


def _scale_shift(y: Array, gamma: Array | None, beta: Array | None) -> None:
    if gamma is not None:
        y *= gamma
    if beta is not None:
        y += beta


def _normalised_grad(
    xp: Any,
    axis: int,
    normalised: Array,
    rstd: Array,
    gamma: Array | None,
    dy: Array,
    dx: Array | None,
    dgamma: Array | None,
    dbeta: Array | None,
) -> None:
    """Gradients through ``normalised * gamma + beta``, where the mean was taken along `axis`."""
    if dgamma is not None:
        xp.sum(dy * normalised, axis=0, out=dgamma)
    if dbeta is not None:
        xp.sum(dy, axis=0, out=dbeta)
    if dx is not None:
        g = dy if gamma is None else dy * gamma
        mean_g = g.mean(axis=axis, keepdims=True)
        mean_gn = (g * normalised).mean(axis=axis, keepdims=True)
        dx[...] = rstd * (g - mean_g - normalised * mean_gn)


def layer_norm(
    xp: Any, x: Array, gamma: Array | None, beta: Array | None, y: Array, mean: Array, rstd: Array, eps: float
) -> None:
    xp.mean(x, axis=1, out=mean)
    centred = x - mean[:, None]
    rstd[...] = 1 / xp.sqrt((centred * centred).mean(axis=1) + eps)
    y[...] = centred * rstd[:, None]
    _scale_shift(y, gamma, beta)


def layer_norm_grad(
    xp: Any,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dy: Array,
    dx: Array | None,
    dgamma: Array | None,
    dbeta: Array | None,
) -> None:
    normalised = (x - mean[:, None]) * rstd[:, None]
    _normalised_grad(xp, 1, normalised, rstd[:, None], gamma, dy, dx, dgamma, dbeta)


def batch_norm(
    xp: Any,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    y: Array,
    mean: Array,
    var: Array,
    rstd: Array,
    eps: float,
) -> None:
    xp.mean(x, axis=0, out=mean)
    centred = x - mean
    xp.mean(centred * centred, axis=0, out=var)
    rstd[...] = 1 / xp.sqrt(var + eps)
    y[...] = centred * rstd
    _scale_shift(y, gamma, beta)


def batch_norm_grad(
    xp: Any,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    dy: Array,
    dx: Array | None,
    dgamma: Array | None,
    dbeta: Array | None,
) -> None:
    _normalised_grad(xp, 0, (x - mean) * rstd, rstd, gamma, dy, dx, dgamma, dbeta)


def batch_norm_fixed(
    xp: Any, x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, y: Array, eps: float
) -> None:
    y[...] = (x - mean) / xp.sqrt(var + eps)
    _scale_shift(y, gamma, beta)


def batch_norm_fixed_grad(xp: Any, gamma: Array | None, var: Array, dy: Array, dx: Array, eps: float) -> None:
    xp.divide(dy, xp.sqrt(var + eps), out=dx)
    if gamma is not None:
        dx *= gamma


def running_average(
    xp: Any,
    control: Array,
    mean: Array,
    var: Array,
    running_mean: Array,
    running_var: Array,
    momentum: float,
    rows: int,
) -> None:
    if control[BAD_STEP] >= 0:
        return
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * (rows / max(rows - 1, 1)) - running_var)
