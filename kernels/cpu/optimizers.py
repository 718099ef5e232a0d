"""Clipping and update rules, one pass over a flat range; nothing on a flagged step."""

from __future__ import annotations

import math
from typing import Any

from .. import BAD_STEP, SLOT, STEP, UPDATE
from .intrinsics import columns_of, doubles, given, integers, part, scalars, span
from .mathlib import T


def check_gradients(row, ctx, like):
    """Operands gradients, control; scalar squared. 0 x is 0, or NaN where x is not finite."""
    control = integers(row, 1)
    first, last = part(columns_of(row, 0), ctx, 64)
    g = span(row, 0, 0, first, last, like)
    extreme = T(0)
    if scalars(row)[0] != 0:
        for i in range(g.size):
            extreme += (g[i] * g[i]) * T(0)
    else:
        for i in range(g.size):
            extreme += g[i] * T(0)
    if extreme != extreme and control[BAD_STEP] < 0:
        control[BAD_STEP] = control[STEP]


def clip_by_value(row, ctx, like):
    limit = T(scalars(row)[0])
    first, last = part(columns_of(row, 0), ctx, 64)
    g = span(row, 0, 0, first, last, like)
    for i in range(g.size):
        v = g[i]
        g[i] = limit if v > limit else (-limit if v < -limit else v)


def clip_by_norm(row, ctx, like):
    if ctx[0] != 0:
        return
    g = span(row, 0, 0, 0, columns_of(row, 0), like)
    square = 0.0
    for i in range(g.size):
        square += float(g[i]) * float(g[i])
    scale = scalars(row)[0] / (math.sqrt(square) + 1e-6)
    # a comparison that NaN fails: then all becomes NaN, as in the reference
    if not scale >= 1.0:
        factor = T(scale)
        for i in range(g.size):
            g[i] *= factor


# Update rules: operands control, rates, gradients, parameters, slots; scalars weight_decay, then the rule's own.


def sgd(row, ctx, like):
    control, s = integers(row, 0), scalars(row)
    if control[BAD_STEP] >= 0:
        return
    first, last = part(columns_of(row, 2), ctx, 64)
    g, w = span(row, 2, 0, first, last, like), span(row, 3, 0, first, last, like)
    lr, decay = T(doubles(row, 1)[control[SLOT]]), T(s[0])
    if decay == T(0):
        for i in range(w.size):
            w[i] -= lr * g[i]
    else:
        for i in range(w.size):
            w[i] -= lr * (g[i] + decay * w[i])


def momentum(row, ctx, like):
    """Scalars weight_decay, momentum, dampening, nesterov."""
    control, s = integers(row, 0), scalars(row)
    if control[BAD_STEP] >= 0:
        return
    first, last = part(columns_of(row, 2), ctx, 64)
    g, w, v = (
        span(row, 2, 0, first, last, like),
        span(row, 3, 0, first, last, like),
        span(row, 4, 0, first, last, like),
    )
    lr, decay, mu = T(doubles(row, 1)[control[SLOT]]), T(s[0]), T(s[1])
    taken = T(1) if control[UPDATE] == 0 else T(1.0 - s[2])
    ahead = s[3] != 0
    for i in range(w.size):
        d = g[i] + decay * w[i]
        u = mu * v[i] + taken * d
        v[i] = u
        w[i] -= lr * (d + mu * u if ahead else u)


def momentum_keras(row, ctx, like):
    """Scalars weight_decay, momentum, nesterov."""
    control, s = integers(row, 0), scalars(row)
    if control[BAD_STEP] >= 0:
        return
    first, last = part(columns_of(row, 2), ctx, 64)
    g, w, v = (
        span(row, 2, 0, first, last, like),
        span(row, 3, 0, first, last, like),
        span(row, 4, 0, first, last, like),
    )
    lr, decay, mu = T(doubles(row, 1)[control[SLOT]]), T(s[0]), T(s[1])
    ahead = s[2] != 0
    for i in range(w.size):
        step = lr * (g[i] + decay * w[i])
        u = mu * v[i] - step
        v[i] = u
        w[i] += mu * u - step if ahead else u


def momentum_average(row, ctx, like):
    """Scalars weight_decay, momentum."""
    control, s = integers(row, 0), scalars(row)
    if control[BAD_STEP] >= 0:
        return
    first, last = part(columns_of(row, 2), ctx, 64)
    g, w, v = (
        span(row, 2, 0, first, last, like),
        span(row, 3, 0, first, last, like),
        span(row, 4, 0, first, last, like),
    )
    lr, decay, mu, rest = T(doubles(row, 1)[control[SLOT]]), T(s[0]), T(s[1]), T(1.0 - s[1])
    for i in range(w.size):
        u = mu * v[i] + rest * (g[i] + decay * w[i])
        v[i] = u
        w[i] -= lr * u


def adagrad(row, ctx, like):
    """Scalars weight_decay, lr_decay, eps."""
    control, s = integers(row, 0), scalars(row)
    if control[BAD_STEP] >= 0:
        return
    first, last = part(columns_of(row, 2), ctx, 64)
    g, w, a = (
        span(row, 2, 0, first, last, like),
        span(row, 3, 0, first, last, like),
        span(row, 4, 0, first, last, like),
    )
    lr = T(doubles(row, 1)[control[SLOT]] / (1.0 + control[UPDATE] * s[1]))
    decay, eps = T(s[0]), T(s[2])
    for i in range(w.size):
        d = g[i] + decay * w[i]
        u = a[i] + d * d
        a[i] = u
        w[i] -= lr * (d / (T(math.sqrt(u)) + eps))


def rmsprop(row, ctx, like):
    """Scalars weight_decay, alpha, eps, momentum; slots square, average?, velocity?."""
    control, s = integers(row, 0), scalars(row)
    if control[BAD_STEP] >= 0:
        return
    first, last = part(columns_of(row, 2), ctx, 64)
    g, w, q = (
        span(row, 2, 0, first, last, like),
        span(row, 3, 0, first, last, like),
        span(row, 4, 0, first, last, like),
    )
    lr, decay, alpha, rest = T(doubles(row, 1)[control[SLOT]]), T(s[0]), T(s[1]), T(1.0 - s[1])
    eps, mu, centred, moving = T(s[2]), T(s[3]), given(row, 5), given(row, 6)
    # where a slot is absent any range of that length will do: it is not used
    average, velocity = (
        span(row, 5 if centred else 4, 0, first, last, like),
        span(row, 6 if moving else 4, 0, first, last, like),
    )
    for i in range(w.size):
        d = g[i] + decay * w[i]
        u = alpha * q[i] + rest * d * d
        q[i] = u
        if centred:
            a = average[i] + rest * (d - average[i])
            average[i] = a
            u = u - a * a
            u = T(0) if u < T(0) else u
        step = d / (T(math.sqrt(u)) + eps)
        if moving:
            step = mu * velocity[i] + step
            velocity[i] = step
        w[i] -= lr * step


def adam(row, ctx, like):
    """Scalars weight_decay, beta1, beta2, eps, decoupled; slots first, second."""
    control, s = integers(row, 0), scalars(row)
    if control[BAD_STEP] >= 0:
        return
    first, last = part(columns_of(row, 2), ctx, 64)
    g, w = span(row, 2, 0, first, last, like), span(row, 3, 0, first, last, like)
    m, v = span(row, 4, 0, first, last, like), span(row, 5, 0, first, last, like)
    rate, update = doubles(row, 1)[control[SLOT]], float(control[UPDATE] + 1)
    shrunk = T(1.0 - rate * s[0]) if s[4] != 0 else T(1)
    decay = T(0) if s[4] != 0 else T(s[0])
    beta2, rest1, rest2, eps = T(s[2]), T(1.0 - s[1]), T(1.0 - s[2]), T(s[3])
    scale, root = T(rate / (1.0 - s[1] ** update)), T(1.0 / math.sqrt(1.0 - s[2] ** update))
    for i in range(w.size):
        d = g[i] + decay * w[i]
        a = m[i] + rest1 * (d - m[i])
        b = beta2 * v[i] + rest2 * d * d
        m[i], v[i] = a, b
        w[i] = shrunk * w[i] - scale * (a / (T(math.sqrt(b)) * root + eps))


KERNELS: dict[str, tuple[Any, dict[str, str]]] = {
    function.__name__: (function, {})
    for function in (
        check_gradients,
        clip_by_value,
        clip_by_norm,
        sgd,
        momentum,
        momentum_keras,
        momentum_average,
        adagrad,
        rmsprop,
        adam,
    )
}
