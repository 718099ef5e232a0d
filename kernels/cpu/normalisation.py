"""Layer and batch normalisation."""

from __future__ import annotations

import math
from typing import Any

from numba import carray

from .. import BAD_STEP
from .intrinsics import columns_of, given, integers, itemsize, part, pointer, rows_of, scalars, span
from .mathlib import T


def layer_norm(row, ctx, like):
    """Operands x, gamma?, beta?, y, mean, rstd; scalar eps. Workers share the rows."""
    m, n, eps = rows_of(row, 0), columns_of(row, 0), T(scalars(row)[0])
    first, last = part(m, ctx, 16)
    mean, rstd = span(row, 4, 0, 0, m, like), span(row, 5, 0, 0, m, like)
    for i in range(first, last):
        x, y = span(row, 0, i, 0, n, like), span(row, 3, i, 0, n, like)
        total, square = T(0), T(0)
        for j in range(n):
            total += x[j]
        mu = total / T(n)
        for j in range(n):
            square += (x[j] - mu) * (x[j] - mu)
        r = T(1) / T(math.sqrt(square / T(n) + eps))
        mean[i], rstd[i] = mu, r
        for j in range(n):
            y[j] = (x[j] - mu) * r
        if given(row, 1):
            gamma = span(row, 1, 0, 0, n, like)
            for j in range(n):
                y[j] *= gamma[j]
        if given(row, 2):
            beta = span(row, 2, 0, 0, n, like)
            for j in range(n):
                y[j] += beta[j]


def layer_norm_grad(row, ctx, like):
    """Operands x, gamma?, mean, rstd, dy, dx?, dgamma?, dbeta?: rows of dx, columns of the others."""
    m, n = rows_of(row, 0), columns_of(row, 0)
    mean, rstd = span(row, 2, 0, 0, m, like), span(row, 3, 0, 0, m, like)
    c0, c1 = part(n, ctx, 16)
    if given(row, 6):
        dgamma = span(row, 6, 0, c0, c1, like)
        for j in range(dgamma.size):
            dgamma[j] = T(0)
        for i in range(m):
            x, dy = span(row, 0, i, c0, c1, like), span(row, 4, i, c0, c1, like)
            mu, r = mean[i], rstd[i]
            for j in range(dgamma.size):
                dgamma[j] += dy[j] * ((x[j] - mu) * r)
    if given(row, 7):
        dbeta = span(row, 7, 0, c0, c1, like)
        for j in range(dbeta.size):
            dbeta[j] = T(0)
        for i in range(m):
            dy = span(row, 4, i, c0, c1, like)
            for j in range(dbeta.size):
                dbeta[j] += dy[j]
    if given(row, 5):
        scaled = given(row, 1)
        # without a scale any vector of that length will do: it is not used
        gamma = span(row, 1 if scaled else 0, 0, 0, n, like)
        first, last = part(m, ctx, 16)
        for i in range(first, last):
            x, dy, dx = span(row, 0, i, 0, n, like), span(row, 4, i, 0, n, like), span(row, 5, i, 0, n, like)
            mu, r = mean[i], rstd[i]
            sum_g, sum_gh = T(0), T(0)
            for j in range(n):
                g = dy[j] * gamma[j] if scaled else dy[j]
                sum_g += g
                sum_gh += g * ((x[j] - mu) * r)
            mean_g, mean_gh = sum_g / T(n), sum_gh / T(n)
            for j in range(n):
                g = dy[j] * gamma[j] if scaled else dy[j]
                dx[j] = r * (g - mean_g - (x[j] - mu) * r * mean_gh)


def batch_norm(row, ctx, like):
    """Operands x, gamma?, beta?, y, mean, var, rstd; scalar eps. Workers share the columns."""
    m, eps = rows_of(row, 0), T(scalars(row)[0])
    c0, c1 = part(columns_of(row, 0), ctx, 16)
    mean, var, rstd = (
        span(row, 4, 0, c0, c1, like),
        span(row, 5, 0, c0, c1, like),
        span(row, 6, 0, c0, c1, like),
    )
    n = mean.size
    for j in range(n):
        mean[j], var[j] = T(0), T(0)
    for i in range(m):
        x = span(row, 0, i, c0, c1, like)
        for j in range(n):
            mean[j] += x[j]
    for j in range(n):
        mean[j] /= T(m)
    for i in range(m):
        x = span(row, 0, i, c0, c1, like)
        for j in range(n):
            d = x[j] - mean[j]
            var[j] += d * d
    for j in range(n):
        var[j] /= T(m)
        rstd[j] = T(1) / T(math.sqrt(var[j] + eps))
    for i in range(m):
        x, y = span(row, 0, i, c0, c1, like), span(row, 3, i, c0, c1, like)
        for j in range(n):
            y[j] = (x[j] - mean[j]) * rstd[j]
        if given(row, 1):
            gamma = span(row, 1, 0, c0, c1, like)
            for j in range(n):
                y[j] *= gamma[j]
        if given(row, 2):
            beta = span(row, 2, 0, c0, c1, like)
            for j in range(n):
                y[j] += beta[j]


def batch_norm_grad(row, ctx, like):
    """Operands x, gamma?, mean, rstd, dy, dx?, dgamma?, dbeta?; scratch holds two vectors of sums."""
    m = rows_of(row, 0)
    c0, c1 = part(columns_of(row, 0), ctx, 16)
    mean, rstd = span(row, 2, 0, c0, c1, like), span(row, 3, 0, c0, c1, like)
    n, place = mean.size, row[3] + 2 * c0 * itemsize(like)
    sum_g = carray(pointer(place, like), (n,))
    sum_gh = carray(pointer(place + n * itemsize(like), like), (n,))
    for j in range(n):
        sum_g[j], sum_gh[j] = T(0), T(0)
    for i in range(m):
        x, dy = span(row, 0, i, c0, c1, like), span(row, 4, i, c0, c1, like)
        for j in range(n):
            sum_g[j] += dy[j]
            sum_gh[j] += dy[j] * ((x[j] - mean[j]) * rstd[j])
    if given(row, 6):
        dgamma = span(row, 6, 0, c0, c1, like)
        for j in range(n):
            dgamma[j] = sum_gh[j]
    if given(row, 7):
        dbeta = span(row, 7, 0, c0, c1, like)
        for j in range(n):
            dbeta[j] = sum_g[j]
    if given(row, 5):
        scaled, share_of_row = given(row, 1), T(1) / T(m)
        gamma = span(row, 1 if scaled else 2, 0, c0, c1, like)
        for i in range(m):
            x, dy, dx = (
                span(row, 0, i, c0, c1, like),
                span(row, 4, i, c0, c1, like),
                span(row, 5, i, c0, c1, like),
            )
            for j in range(n):
                h = (x[j] - mean[j]) * rstd[j]
                g = rstd[j] * (dy[j] - share_of_row * (sum_g[j] + h * sum_gh[j]))
                dx[j] = g * gamma[j] if scaled else g


def batch_norm_fixed(row, ctx, like):
    """Operands x, gamma?, beta?, mean, var, y; scalar eps."""
    eps = T(scalars(row)[0])
    c0, c1 = part(columns_of(row, 0), ctx, 16)
    mean, var = span(row, 3, 0, c0, c1, like), span(row, 4, 0, c0, c1, like)
    for i in range(rows_of(row, 0)):
        x, y = span(row, 0, i, c0, c1, like), span(row, 5, i, c0, c1, like)
        for j in range(x.size):
            y[j] = (x[j] - mean[j]) / T(math.sqrt(var[j] + eps))
        if given(row, 1):
            gamma = span(row, 1, 0, c0, c1, like)
            for j in range(x.size):
                y[j] *= gamma[j]
        if given(row, 2):
            beta = span(row, 2, 0, c0, c1, like)
            for j in range(x.size):
                y[j] += beta[j]


def batch_norm_fixed_grad(row, ctx, like):
    """Operands gamma?, var, dy, dx; scalar eps."""
    eps = T(scalars(row)[0])
    c0, c1 = part(columns_of(row, 2), ctx, 16)
    var = span(row, 1, 0, c0, c1, like)
    for i in range(rows_of(row, 2)):
        dy, dx = span(row, 2, i, c0, c1, like), span(row, 3, i, c0, c1, like)
        for j in range(dy.size):
            dx[j] = dy[j] / T(math.sqrt(var[j] + eps))
        if given(row, 0):
            gamma = span(row, 0, 0, c0, c1, like)
            for j in range(dy.size):
                dx[j] *= gamma[j]


def running_average(row, ctx, like):
    """Operands control, mean, var, running_mean, running_var; scalars momentum, rows."""
    if ctx[0] != 0 or integers(row, 0)[BAD_STEP] >= 0:
        return
    n, p = columns_of(row, 1), scalars(row)
    mean, var = span(row, 1, 0, 0, n, like), span(row, 2, 0, 0, n, like)
    running_mean, running_var = span(row, 3, 0, 0, n, like), span(row, 4, 0, 0, n, like)
    momentum, unbiased = T(p[0]), T(p[1] / max(p[1] - 1.0, 1.0))
    for j in range(n):
        running_mean[j] += momentum * (mean[j] - running_mean[j])
        running_var[j] += momentum * (var[j] * unbiased - running_var[j])


KERNELS: dict[str, tuple[Any, dict[str, str]]] = {
    "layer_norm": (layer_norm, {}),
    "layer_norm_grad": (layer_norm_grad, {}),
    "batch_norm": (batch_norm, {}),
    "batch_norm_grad": (batch_norm_grad, {}),
    "batch_norm_fixed": (batch_norm_fixed, {}),
    "batch_norm_fixed_grad": (batch_norm_fixed_grad, {}),
    "running_average": (running_average, {}),
}
