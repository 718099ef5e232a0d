"""Activations and their gradients: the scalar functions, and the loops that apply them.

A scalar function takes the value, a parameter (slope, alpha, beta) and gives f(x); its gradient takes the saved
value, x or y, and gives f'. Both let NaN through: a comparison alone would lose it.
"""

from __future__ import annotations

from typing import Any

from .. import ACTIVATIONS
from ..reference.activations import GELU_TANH_CUBIC, GELU_TANH_SCALE, SELU_ALPHA, SELU_SCALE
from .intrinsics import (
    address_of_row,
    columns_of,
    part,
    part_of_columns,
    read,
    rows_of,
    scalars,
    share,
    span,
    write,
)
from .mathlib import T, erf, exp, sigmoid, tanh, unit_softplus

f: Any = None  # the scalar function of a kernel; `specialise` binds it

HALF_ROOT = 0.7071067811865476
NORMAL = 0.3989422804014327  # 1 / sqrt(2 pi)


def relu(x, p):
    return T(0) if x < T(0) else x


def relu_grad(y, p):
    return T(1) if y > T(0) else T(0) * y


def leaky_relu(x, p):
    return x if x > T(0) else p * x


def leaky_relu_grad(x, p):
    return T(1) if x > T(0) else (p if x <= T(0) else x)


def elu(x, p):
    # exp(x) - 1 near 0 by the half-angle form: tanh keeps the digits
    t = tanh(T(0.5) * x)
    return x if x > T(0) else p * (T(2) * t / (T(1) - t))


def elu_grad(x, p):
    return T(1) if x > T(0) else p * exp(x)


def selu(x, p):
    t = tanh(T(0.5) * x)
    return T(SELU_SCALE) * (x if x > T(0) else T(SELU_ALPHA) * (T(2) * t / (T(1) - t)))


def selu_grad(x, p):
    return T(SELU_SCALE) * (T(1) if x > T(0) else T(SELU_ALPHA) * exp(x))


def gelu(x, p):
    return T(0.5) * x * (T(1) + erf(x * T(HALF_ROOT)))


def gelu_grad(x, p):
    cdf = T(0.5) * (T(1) + erf(x * T(HALF_ROOT)))
    return cdf + x * exp(T(-0.5) * x * x) * T(NORMAL)


def gelu_tanh(x, p):
    return T(0.5) * x * (T(1) + tanh(T(GELU_TANH_SCALE) * (x + T(GELU_TANH_CUBIC) * x * x * x)))


def gelu_tanh_grad(x, p):
    t = tanh(T(GELU_TANH_SCALE) * (x + T(GELU_TANH_CUBIC) * x * x * x))
    inner = T(GELU_TANH_SCALE) * (T(1) + T(3) * T(GELU_TANH_CUBIC) * x * x)
    return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * inner


def silu(x, p):
    return x * sigmoid(x)


def silu_grad(x, p):
    s = sigmoid(x)
    return s * (T(1) + x * (T(1) - s))


def mish(x, p):
    return x * tanh(unit_softplus(x))


def mish_grad(x, p):
    t = tanh(unit_softplus(x))
    return t + x * (T(1) - t * t) * sigmoid(x)


def softplus(x, p):
    return unit_softplus(p * x) / p


def softplus_grad(x, p):
    return sigmoid(p * x)


def sigmoid_(x, p):
    return sigmoid(x)


def sigmoid_grad(y, p):
    return y * (T(1) - y)


def tanh_(x, p):
    return tanh(x)


def tanh_grad(y, p):
    return T(1) - y * y


# --- loops ----------------------------------------------------------------------------------------------------


def unary(row, ctx, like):
    """y = f(x)."""
    r0, r1, c0, c1 = share(row, 0, ctx)
    p = T(scalars(row)[0])
    for i in range(r0, r1):
        x, y = span(row, 0, i, c0, c1, like), span(row, 1, i, c0, c1, like)
        for j in range(x.size):
            y[j] = f(x[j], p)


# A kernel whose result lies where an operand lay has a form of its own: LLVM does not vectorise a loop over two
# arrays that turn out to be one.


def unary_in_place(row, ctx, like):
    """x = f(x): operands x, x."""
    r0, r1, c0, c1 = share(row, 0, ctx)
    p = T(scalars(row)[0])
    for i in range(r0, r1):
        x = span(row, 0, i, c0, c1, like)
        for j in range(x.size):
            x[j] = f(x[j], p)


def unary_grad_in_place(row, ctx, like):
    """d *= f'(saved): operands saved, d, d."""
    r0, r1, c0, c1 = share(row, 0, ctx)
    p = T(scalars(row)[0])
    for i in range(r0, r1):
        saved, d = span(row, 0, i, c0, c1, like), span(row, 1, i, c0, c1, like)
        for j in range(d.size):
            d[j] = d[j] * f(saved[j], p)


def unary_grad_bias_in_place(row, ctx, like):
    """d *= f'(saved), db = sums of the columns of d, as `unary_grad_bias`: operands saved, d, d, db."""
    c0, c1 = part_of_columns(row, ctx)
    p, m, n = T(scalars(row)[0]), rows_of(row, 0), c1 - c0
    db = address_of_row(row, 3, 0, c0, like)
    for j in range(n):
        write(like, db, j, 5, T(0))
    for i in range(0, m - 3, 4):
        s0, s1 = address_of_row(row, 0, i, c0, like), address_of_row(row, 0, i + 1, c0, like)
        s2, s3 = address_of_row(row, 0, i + 2, c0, like), address_of_row(row, 0, i + 3, c0, like)
        d0, d1 = address_of_row(row, 1, i, c0, like), address_of_row(row, 1, i + 1, c0, like)
        d2, d3 = address_of_row(row, 1, i + 2, c0, like), address_of_row(row, 1, i + 3, c0, like)
        for j in range(n):
            v0 = read(like, d0, j, 1) * f(read(like, s0, j, 0), p)
            v1 = read(like, d1, j, 2) * f(read(like, s1, j, 0), p)
            v2 = read(like, d2, j, 3) * f(read(like, s2, j, 0), p)
            v3 = read(like, d3, j, 4) * f(read(like, s3, j, 0), p)
            write(like, d0, j, 1, v0)
            write(like, d1, j, 2, v1)
            write(like, d2, j, 3, v2)
            write(like, d3, j, 4, v3)
            write(like, db, j, 5, (((read(like, db, j, 5) + v0) + v1) + v2) + v3)
    for i in range(m // 4 * 4, m):
        s, d = address_of_row(row, 0, i, c0, like), address_of_row(row, 1, i, c0, like)
        for j in range(n):
            v = read(like, d, j, 1) * f(read(like, s, j, 0), p)
            write(like, d, j, 1, v)
            write(like, db, j, 5, read(like, db, j, 5) + v)


def unary_grad(row, ctx, like):
    """dx = dy f'(saved)."""
    r0, r1, c0, c1 = share(row, 0, ctx)
    p = T(scalars(row)[0])
    for i in range(r0, r1):
        saved, dy, dx = (
            span(row, 0, i, c0, c1, like),
            span(row, 1, i, c0, c1, like),
            span(row, 2, i, c0, c1, like),
        )
        for j in range(dy.size):
            dx[j] = dy[j] * f(saved[j], p)


def bias_unary(row, ctx, like):
    """x += bias, y = f(x): operands bias, x, y."""
    r0, r1, c0, c1 = share(row, 1, ctx)
    p = T(scalars(row)[0])
    bias = span(row, 0, 0, c0, c1, like)
    for i in range(r0, r1):
        x, y = span(row, 1, i, c0, c1, like), span(row, 2, i, c0, c1, like)
        for j in range(x.size):
            v = x[j] + bias[j]
            x[j] = v
            y[j] = f(v, p)


def bias_unary_x_kept(row, ctx, like):
    """y = f(x + bias), where the gradient reads y and x stays: operands bias, x, y."""
    r0, r1, c0, c1 = share(row, 1, ctx)
    p = T(scalars(row)[0])
    bias = span(row, 0, 0, c0, c1, like)
    for i in range(r0, r1):
        x, y = span(row, 1, i, c0, c1, like), span(row, 2, i, c0, c1, like)
        for j in range(x.size):
            y[j] = f(x[j] + bias[j], p)


def bias_unary_in_place(row, ctx, like):
    """x = f(x + bias): operands bias, x, x."""
    r0, r1, c0, c1 = share(row, 1, ctx)
    p = T(scalars(row)[0])
    bias = span(row, 0, 0, c0, c1, like)
    for i in range(r0, r1):
        x = span(row, 1, i, c0, c1, like)
        for j in range(x.size):
            x[j] = f(x[j] + bias[j], p)


def unary_grad_bias(row, ctx, like):
    """dx = dy f'(saved), db = sums of the columns of dx: operands saved, dy, dx, db.

    Workers share the columns, whatever the shape: each sum is one worker's. Rows are taken by fours, so that the
    sums are read and written a quarter as often.
    """
    c0, c1 = part_of_columns(row, ctx)
    p, m, n = T(scalars(row)[0]), rows_of(row, 0), c1 - c0
    db = address_of_row(row, 3, 0, c0, like)
    for j in range(n):
        write(like, db, j, 5, T(0))
    for i in range(0, m - 3, 4):
        s0, s1 = address_of_row(row, 0, i, c0, like), address_of_row(row, 0, i + 1, c0, like)
        s2, s3 = address_of_row(row, 0, i + 2, c0, like), address_of_row(row, 0, i + 3, c0, like)
        y0, y1 = address_of_row(row, 1, i, c0, like), address_of_row(row, 1, i + 1, c0, like)
        y2, y3 = address_of_row(row, 1, i + 2, c0, like), address_of_row(row, 1, i + 3, c0, like)
        x0, x1 = address_of_row(row, 2, i, c0, like), address_of_row(row, 2, i + 1, c0, like)
        x2, x3 = address_of_row(row, 2, i + 2, c0, like), address_of_row(row, 2, i + 3, c0, like)
        for j in range(n):
            v0 = read(like, y0, j, 0) * f(read(like, s0, j, 0), p)
            v1 = read(like, y1, j, 0) * f(read(like, s1, j, 0), p)
            v2 = read(like, y2, j, 0) * f(read(like, s2, j, 0), p)
            v3 = read(like, y3, j, 0) * f(read(like, s3, j, 0), p)
            write(like, x0, j, 1, v0)
            write(like, x1, j, 2, v1)
            write(like, x2, j, 3, v2)
            write(like, x3, j, 4, v3)
            write(like, db, j, 5, (((read(like, db, j, 5) + v0) + v1) + v2) + v3)
    for i in range(m // 4 * 4, m):
        s, y, x = (
            address_of_row(row, 0, i, c0, like),
            address_of_row(row, 1, i, c0, like),
            address_of_row(row, 2, i, c0, like),
        )
        for j in range(n):
            v = read(like, y, j, 0) * f(read(like, s, j, 0), p)
            write(like, x, j, 1, v)
            write(like, db, j, 5, read(like, db, j, 5) + v)


def softmax(row, ctx, like):
    first, last = part(rows_of(row, 0), ctx, 16)
    n = columns_of(row, 0)
    for i in range(first, last):
        x, y = span(row, 0, i, 0, n, like), span(row, 1, i, 0, n, like)
        largest, total = x[0], T(0)
        for j in range(n):
            # NaN must win, and a comparison with it is false
            largest = largest if largest >= x[j] or largest != largest else x[j]
        for j in range(n):
            e = exp(x[j] - largest)
            y[j] = e
            total += e
        for j in range(n):
            y[j] = y[j] / total


def softmax_in_place(row, ctx, like):
    first, last = part(rows_of(row, 0), ctx, 16)
    n = columns_of(row, 0)
    for i in range(first, last):
        x = span(row, 0, i, 0, n, like)
        largest, total = x[0], T(0)
        for j in range(n):
            largest = largest if largest >= x[j] or largest != largest else x[j]
        for j in range(n):
            e = exp(x[j] - largest)
            x[j] = e
            total += e
        for j in range(n):
            x[j] = x[j] / total


def softmax_grad_in_place(row, ctx, like):
    """Operands y, d, d."""
    first, last = part(rows_of(row, 0), ctx, 16)
    n = columns_of(row, 0)
    for i in range(first, last):
        y, d = span(row, 0, i, 0, n, like), span(row, 1, i, 0, n, like)
        inner = T(0)
        for j in range(n):
            inner += y[j] * d[j]
        for j in range(n):
            d[j] = y[j] * (d[j] - inner)


def softmax_grad(row, ctx, like):
    first, last = part(rows_of(row, 0), ctx, 16)
    n = columns_of(row, 0)
    for i in range(first, last):
        y, dy, dx = span(row, 0, i, 0, n, like), span(row, 1, i, 0, n, like), span(row, 2, i, 0, n, like)
        inner = T(0)
        for j in range(n):
            inner += y[j] * dy[j]
        for j in range(n):
            dx[j] = y[j] * (dy[j] - inner)


ELEMENTWISE = {
    "relu": "relu",
    "leaky_relu": "leaky_relu",
    "elu": "elu",
    "selu": "selu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "silu": "silu",
    "mish": "mish",
    "softplus": "softplus",
    "sigmoid": "sigmoid_",
    "tanh": "tanh_",
}
"""Kernel -> its scalar function; the gradient is the same name with _grad."""

KERNELS: dict[str, tuple[Any, dict[str, str]]] = {
    "softmax": (softmax, {}),
    "softmax_in_place": (softmax_in_place, {}),
    "softmax_grad": (softmax_grad, {}),
    "softmax_grad_in_place": (softmax_grad_in_place, {}),
}
for _kernel, _scalar in ELEMENTWISE.items():
    _gradient = {"f": f"{_kernel}_grad"}
    KERNELS[_kernel] = (unary, {"f": _scalar})
    KERNELS[f"{_kernel}_in_place"] = (unary_in_place, {"f": _scalar})
    _biased = bias_unary if ACTIVATIONS[_kernel] == "x" else bias_unary_x_kept
    KERNELS[f"bias_{_kernel}"] = (_biased, {"f": _scalar})
    KERNELS[f"bias_{_kernel}_in_place"] = (bias_unary_in_place, {"f": _scalar})
    KERNELS[f"{_kernel}_grad"] = (unary_grad, _gradient)
    KERNELS[f"{_kernel}_grad_in_place"] = (unary_grad_in_place, _gradient)
    KERNELS[f"{_kernel}_grad_bias"] = (unary_grad_bias, _gradient)
    KERNELS[f"{_kernel}_grad_bias_in_place"] = (unary_grad_bias_in_place, _gradient)
