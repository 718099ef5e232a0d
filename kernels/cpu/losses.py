"""Losses: the value of a batch and its gradient in one pass, by one worker.

Operands control, output, target, weight?, ring, grad?; scalars mean, then the loss's own.
"""

from __future__ import annotations

import math
from typing import Any

from numba import carray, njit

from .. import BAD_STEP, SLOT, STEP
from ..layout import OPERAND_WIDTH, OPERANDS
from .intrinsics import columns_of, doubles, given, integers, pointer, rows_of, scalars, span
from .mathlib import T, exp, sigmoid, unit_softplus

loss: Any = None  # loss and slope of one output; `specialise` binds them
slope: Any = None


@njit
def log_or_zero(t, p):
    """t log p, with 0 log 0 = 0."""
    return 0.0 if t == 0.0 and p == 0.0 else t * math.log(p)


@njit
def total_weight(row, like):
    """The sum of the rows' weights."""
    m = rows_of(row, 1)
    if not given(row, 3):
        return float(m)
    total = 0.0
    weight = span(row, 3, 0, 0, m, like)
    for i in range(m):
        total += weight[i]
    return total


@njit
def divisor(row, total):
    """What the weighted sum is divided by; 1 for the reduction by sum."""
    return max(total, 1e-300) if scalars(row)[0] != 0 else 1.0


@njit
def write(row, value, total):
    """Put value and weight into the ring."""
    ring, slot = doubles(row, 4), integers(row, 0)[SLOT]
    ring[2 * slot], ring[2 * slot + 1] = value / divisor(row, total), total


@njit
def scratch_row(row, n, like):
    """Room for one row, where no gradient is wanted."""
    return carray(pointer(row[3], like), (n,))


@njit
def lies_together(row, k):
    """Whether the rows of operand k, of one column, follow each other."""
    return row[OPERANDS + OPERAND_WIDTH * k + 3] == 1


def per_output(row, ctx, like):
    """Losses that are a mean over the outputs of a function of (output, target)."""
    if ctx[0] != 0:
        return
    m, n = rows_of(row, 1), columns_of(row, 1)
    p, weighted, wanted = T(scalars(row)[1]), given(row, 3), given(row, 5)
    total = total_weight(row, like)
    scale, value = 1.0 / divisor(row, total) / n, 0.0
    if n == 1 and wanted and lies_together(row, 1) and lies_together(row, 2) and lies_together(row, 5):
        # all rows in one loop, which LLVM vectorises; the losses stand where the gradient will, to be added in float64
        outputs, targets = span(row, 1, 0, 0, m, like), span(row, 2, 0, 0, m, like)
        grads, weights = span(row, 5, 0, 0, m, like), span(row, 3 if weighted else 1, 0, 0, m, like)
        for i in range(m):
            grads[i] = loss(outputs[i], targets[i], p)
        for i in range(m):
            value += float(weights[i]) * grads[i] if weighted else float(grads[i])
        for i in range(m):
            grads[i] = slope(outputs[i], targets[i], p) * T(float(weights[i]) * scale if weighted else scale)
        write(row, value, total)
        return
    for i in range(m):
        output, target = span(row, 1, i, 0, n, like), span(row, 2, i, 0, n, like)
        w = float(span(row, 3, 0, i, i + 1, like)[0]) if weighted else 1.0
        here = T(0)
        for j in range(n):
            here += loss(output[j], target[j], p)
        value += w * here
        if wanted:
            grad, factor = span(row, 5, i, 0, n, like), T(w * scale)
            for j in range(n):
                grad[j] = slope(output[j], target[j], p) * factor
    write(row, value / n, total)


def mse_loss(x, t, p):
    return (x - t) * (x - t)


def mse_slope(x, t, p):
    return T(2) * (x - t)


def mae_loss(x, t, p):
    return abs(x - t)


def mae_slope(x, t, p):
    e = x - t
    return T(1) if e > T(0) else (T(-1) if e < T(0) else e)


def huber_loss(x, t, p):
    e = abs(x - t)
    return T(0.5) * e * e if e <= p else p * (e - T(0.5) * p)


def huber_slope(x, t, p):
    e = x - t
    return p if e > p else (-p if e < -p else e)


def logits_loss(x, t, p):
    """p is -log(clip), infinite where nothing is clipped."""
    not_p, minus_log_p = unit_softplus(x), unit_softplus(-x)
    not_p = p if not_p > p else not_p
    minus_log_p = p if minus_log_p > p else minus_log_p
    return t * minus_log_p + (T(1) - t) * not_p


def logits_slope(x, t, p):
    return sigmoid(x) - t


def probability_loss(x, t, p):
    q = T(1) - x
    a, b = (p if x < p else x), (p if q < p else q)
    return T(-t * math.log(a) - (T(1) - t) * math.log(b))


def probability_slope(x, t, p):
    q = T(1) - x
    a, b = (p if x < p else x), (p if q < p else q)
    return (T(1) - t) / b - t / a


def softmax_row(x, y, n):
    """Write exp(x - largest) to y; return the largest and the sum."""
    largest = x[0]
    for j in range(n):
        largest = largest if largest >= x[j] or largest != largest else x[j]
    total = T(0)
    for j in range(n):
        e = exp(x[j] - largest)
        y[j] = e
        total += e
    return largest, total


def softmax_labels(row, ctx, like):
    """Cross-entropy with integer labels; scalars mean, smoothing, log(clip); scratch holds a row."""
    if ctx[0] != 0:
        return
    m, n, s = rows_of(row, 1), columns_of(row, 1), scalars(row)
    labels, weighted, wanted = integers(row, 2), given(row, 3), given(row, 5)
    total = total_weight(row, like)
    scale, value, smoothing, floor = 1.0 / divisor(row, total), 0.0, s[1], s[2]
    for i in range(m):
        x = span(row, 1, i, 0, n, like)
        e = span(row, 5, i, 0, n, like) if wanted else scratch_row(row, n, like)
        w = float(span(row, 3, 0, i, i + 1, like)[0]) if weighted else 1.0
        largest, sum_e = softmax_row(x, e, n)
        log_sum = math.log(float(sum_e)) + float(largest)
        label = labels[i]
        here = max(float(x[label]) - log_sum, floor) if x[label] == x[label] else float(x[label])
        if log_sum != log_sum:
            here = log_sum
        here *= 1.0 - smoothing
        if smoothing > 0.0:
            for j in range(n):
                here += smoothing / n * max(float(x[j]) - log_sum, floor)
        value -= w * here
        if wanted:
            factor, inverse, spread = T(w * scale), T(1) / sum_e, T(smoothing / n)
            for j in range(n):
                e[j] = (e[j] * inverse - spread) * factor
            e[label] -= T(1.0 - smoothing) * factor
    write(row, value, total)


def softmax_dense(row, ctx, like):
    """Cross-entropy and KL divergence on logits with soft targets; scalars mean, smoothing, log(clip), entropy."""
    if ctx[0] != 0:
        return
    m, n, s = rows_of(row, 1), columns_of(row, 1), scalars(row)
    weighted, wanted = given(row, 3), given(row, 5)
    total = total_weight(row, like)
    scale, value, smoothing, floor, with_entropy = 1.0 / divisor(row, total), 0.0, s[1], s[2], s[3] != 0
    for i in range(m):
        x, t = span(row, 1, i, 0, n, like), span(row, 2, i, 0, n, like)
        e = span(row, 5, i, 0, n, like) if wanted else scratch_row(row, n, like)
        w = float(span(row, 3, 0, i, i + 1, like)[0]) if weighted else 1.0
        largest, sum_e = softmax_row(x, e, n)
        log_sum = math.log(float(sum_e)) + float(largest)
        here, mass = 0.0, 0.0
        for j in range(n):
            target = (1.0 - smoothing) * float(t[j]) + smoothing / n
            mass += target
            log_p = float(x[j]) - log_sum
            log_p = floor if log_p < floor else log_p
            here -= 0.0 if target == 0.0 and log_p == -math.inf else target * log_p
            if with_entropy and target != 0.0:
                here += target * math.log(target)
        value += w * here
        if wanted:
            factor, ratio = T(w * scale), T(mass) / sum_e
            for j in range(n):
                target = T((1.0 - smoothing) * float(t[j]) + smoothing / n)
                e[j] = (e[j] * ratio - target) * factor
    write(row, value, total)


def kl_divergence(row, ctx, like):
    """On probabilities; scalars mean, clip."""
    if ctx[0] != 0:
        return
    m, n, clip = rows_of(row, 1), columns_of(row, 1), T(scalars(row)[1])
    weighted, wanted = given(row, 3), given(row, 5)
    total = total_weight(row, like)
    scale, value = 1.0 / divisor(row, total), 0.0
    for i in range(m):
        x, t = span(row, 1, i, 0, n, like), span(row, 2, i, 0, n, like)
        w = float(span(row, 3, 0, i, i + 1, like)[0]) if weighted else 1.0
        here = 0.0
        for j in range(n):
            p = clip if x[j] < clip else x[j]
            here += (0.0 if t[j] == 0 else t[j] * math.log(t[j])) - log_or_zero(float(t[j]), float(p))
            if wanted:
                empty = t[j] == 0 and p == 0
                span(row, 5, i, 0, n, like)[j] = T(0) if empty else -t[j] / p * T(w * scale)
        value += w * here
    write(row, value, total)


def softmax_mse(row, ctx, like):
    """Squared error between softmax and target."""
    if ctx[0] != 0:
        return
    m, n = rows_of(row, 1), columns_of(row, 1)
    weighted, wanted = given(row, 3), given(row, 5)
    total = total_weight(row, like)
    scale, value = 2.0 / divisor(row, total) / n, 0.0
    for i in range(m):
        x, t = span(row, 1, i, 0, n, like), span(row, 2, i, 0, n, like)
        p = span(row, 5, i, 0, n, like) if wanted else scratch_row(row, n, like)
        w = float(span(row, 3, 0, i, i + 1, like)[0]) if weighted else 1.0
        _, sum_e = softmax_row(x, p, n)
        here, inner, inverse = T(0), T(0), T(1) / sum_e
        for j in range(n):
            p[j] *= inverse
            d = p[j] - t[j]
            here += d * d
            inner += d * p[j]
        value += w * here
        if wanted:
            factor = T(w * scale)
            for j in range(n):
                p[j] *= (p[j] - t[j] - inner) * factor
    write(row, value / n, total)


def check_loss(row, ctx, like):
    """Operands ring, control."""
    control = integers(row, 1)
    if ctx[0] == 0 and control[BAD_STEP] < 0 and not math.isfinite(doubles(row, 0)[2 * control[SLOT]]):
        control[BAD_STEP] = control[STEP]


_PER_OUTPUT = {
    "mse": "mse",
    "mae": "mae",
    "huber": "huber",
    "binary_cross_entropy_logits": "logits",
    "binary_cross_entropy": "probability",
}
KERNELS: dict[str, tuple[Any, dict[str, str]]] = {
    "softmax_cross_entropy_labels": (softmax_labels, {"softmax_row": "softmax_row"}),
    "softmax_cross_entropy": (softmax_dense, {"softmax_row": "softmax_row"}),
    "kl_divergence_logits": (softmax_dense, {"softmax_row": "softmax_row"}),
    "kl_divergence": (kl_divergence, {}),
    "softmax_mse": (softmax_mse, {"softmax_row": "softmax_row"}),
    "check_loss": (check_loss, {}),
}
for _name, _prefix in _PER_OUTPUT.items():
    KERNELS[_name] = (per_output, {"loss": f"{_prefix}_loss", "slope": f"{_prefix}_slope"})
