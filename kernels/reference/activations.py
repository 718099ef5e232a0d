"""Activations, each beside its gradient, and the two layers of noise.

A gradient multiplies by a factor that is NaN where the saved value is: a comparison alone would lose it.
"""

from __future__ import annotations

import math
from typing import Any

from .. import SEED, STEP
from ..philox import DROPOUT, NOISE, random_normals, random_words

Array = Any

SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805
GELU_TANH_SCALE = math.sqrt(2 / math.pi)
GELU_TANH_CUBIC = 0.044715


def _special(xp: Any) -> Any:
    """scipy.special, or CuPy's twin of it."""
    if xp.__name__ == "numpy":
        import scipy.special

        return scipy.special
    import importlib

    return importlib.import_module("cupyx.scipy.special")


def _sigmoid(xp: Any, x: Array) -> Array:
    # exp of a non-positive number only: no overflow on either side
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _softplus(xp: Any, x: Array) -> Array:
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def relu(xp: Any, x: Array, y: Array) -> None:
    xp.maximum(x, 0, out=y)


def relu_grad(xp: Any, y: Array, dy: Array, dx: Array) -> None:
    # y is 0, positive or NaN, and so its sign is the derivative
    xp.multiply(dy, xp.sign(y), out=dx)


def leaky_relu(xp: Any, x: Array, y: Array, negative_slope: float) -> None:
    y[...] = xp.where(x > 0, x, negative_slope * x)


def leaky_relu_grad(xp: Any, x: Array, dy: Array, dx: Array, negative_slope: float) -> None:
    sign = xp.sign(x)
    xp.multiply(dy, xp.where(sign > 0, sign, negative_slope + 0 * sign), out=dx)


def elu(xp: Any, x: Array, y: Array, alpha: float) -> None:
    y[...] = xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))


def elu_grad(xp: Any, x: Array, dy: Array, dx: Array, alpha: float) -> None:
    sign = xp.sign(x)
    xp.multiply(dy, xp.where(sign > 0, sign, alpha * xp.exp(xp.minimum(x, 0))), out=dx)


def selu(xp: Any, x: Array, y: Array) -> None:
    elu(xp, x, y, SELU_ALPHA)
    y *= SELU_SCALE


def selu_grad(xp: Any, x: Array, dy: Array, dx: Array) -> None:
    elu_grad(xp, x, dy, dx, SELU_ALPHA)
    dx *= SELU_SCALE


def gelu(xp: Any, x: Array, y: Array) -> None:
    y[...] = 0.5 * x * (1 + _special(xp).erf(x * math.sqrt(0.5)))


def gelu_grad(xp: Any, x: Array, dy: Array, dx: Array) -> None:
    cdf = 0.5 * (1 + _special(xp).erf(x * math.sqrt(0.5)))
    pdf = xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    xp.multiply(dy, cdf + x * pdf, out=dx)


def gelu_tanh(xp: Any, x: Array, y: Array) -> None:
    t = xp.tanh(GELU_TANH_SCALE * (x + GELU_TANH_CUBIC * x * x * x))
    y[...] = 0.5 * x * (1 + t)


def gelu_tanh_grad(xp: Any, x: Array, dy: Array, dx: Array) -> None:
    t = xp.tanh(GELU_TANH_SCALE * (x + GELU_TANH_CUBIC * x * x * x))
    inner = GELU_TANH_SCALE * (1 + 3 * GELU_TANH_CUBIC * x * x)
    xp.multiply(dy, 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner, out=dx)


def silu(xp: Any, x: Array, y: Array) -> None:
    y[...] = x * _sigmoid(xp, x)


def silu_grad(xp: Any, x: Array, dy: Array, dx: Array) -> None:
    s = _sigmoid(xp, x)
    xp.multiply(dy, s * (1 + x * (1 - s)), out=dx)


def mish(xp: Any, x: Array, y: Array) -> None:
    y[...] = x * xp.tanh(_softplus(xp, x))


def mish_grad(xp: Any, x: Array, dy: Array, dx: Array) -> None:
    t = xp.tanh(_softplus(xp, x))
    xp.multiply(dy, t + x * (1 - t * t) * _sigmoid(xp, x), out=dx)


def softplus(xp: Any, x: Array, y: Array, beta: float) -> None:
    y[...] = _softplus(xp, beta * x) / beta


def softplus_grad(xp: Any, x: Array, dy: Array, dx: Array, beta: float) -> None:
    xp.multiply(dy, _sigmoid(xp, beta * x), out=dx)


def sigmoid(xp: Any, x: Array, y: Array) -> None:
    y[...] = _sigmoid(xp, x)


def sigmoid_grad(xp: Any, y: Array, dy: Array, dx: Array) -> None:
    xp.multiply(dy, y * (1 - y), out=dx)


def tanh(xp: Any, x: Array, y: Array) -> None:
    xp.tanh(x, out=y)


def tanh_grad(xp: Any, y: Array, dy: Array, dx: Array) -> None:
    xp.multiply(dy, 1 - y * y, out=dx)


def softmax(xp: Any, x: Array, y: Array) -> None:
    # the largest value of a row is subtracted: softmax does not change, and exp cannot overflow
    e = xp.exp(x - x.max(axis=1, keepdims=True))
    xp.divide(e, e.sum(axis=1, keepdims=True), out=y)


def softmax_grad(xp: Any, y: Array, dy: Array, dx: Array) -> None:
    inner = (y * dy).sum(axis=1, keepdims=True)
    xp.multiply(y, dy - inner, out=dx)


def _dropout(xp: Any, control: Array, x: Array, y: Array, rate: float, layer: int) -> None:
    rows, columns = x.shape
    words = random_words(xp, rows, columns, DROPOUT, int(control[SEED]), int(control[STEP]), layer)
    kept = words >= xp.uint64(int(rate * 2**32))
    # a product and not a selection: NaN stays NaN in a dropped place too
    y[...] = x * xp.where(kept, x.dtype.type(1 / (1 - rate)), x.dtype.type(0))


dropout = dropout_grad = _dropout


def gaussian_noise(xp: Any, control: Array, x: Array, y: Array, std: float, layer: int) -> None:
    rows, columns = x.shape
    normals = random_normals(xp, rows, columns, NOISE, int(control[SEED]), int(control[STEP]), layer)
    y[...] = x + (std * normals).astype(x.dtype)
