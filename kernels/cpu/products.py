"""Products, biases, copies. A product with a side of 1 is a loop over the long side."""

from __future__ import annotations

from typing import Any

from ..layout import FIRST_TURNED, SECOND_TURNED, WORK
from .intrinsics import (
    address_of_row,
    columns_of,
    itemsize,
    part,
    read,
    rows_of,
    scalars,
    share,
    span,
    vector,
    write,
)
from .mathlib import T
from .tiles import product


def matmul(row, ctx, like):
    """c = a b, either turned: operands a, b, c; scalar form. One function for all: a tile takes long to compile."""
    form, s = int(scalars(row)[0]), itemsize(like)
    a, b, c = row[4], row[8], row[12]
    a_stride, b_stride, c_row = row[7] * s, row[11] * s, row[15] * s
    if form == FIRST_TURNED:  # workers share the rows of c
        r0, r1 = part(rows_of(row, 2), ctx, 16)
        c0, c1, k = 0, columns_of(row, 2), rows_of(row, 0)
        a_row, a_k = s, a_stride
    else:
        r0, r1, c0, c1 = share(row, 2, ctx)
        k, a_row, a_k = columns_of(row, 0), a_stride, s
    if r1 > r0 and c1 > c0:
        b += c0 * (b_stride if form == SECOND_TURNED else s)
        c += r0 * c_row + c0 * s
        turned = form == SECOND_TURNED
        product(
            like, a + r0 * a_row, a_row, a_k, b, b_stride, turned, c, c_row, r1 - r0, c1 - c0, k, ctx[WORK]
        )


def outer(row, ctx, like):
    """c = a b, a one column and b one row: operands a (m, 1), b (1, n), c (m, n)."""
    r0, r1, c0, c1 = share(row, 2, ctx)
    b = span(row, 1, 0, c0, c1, like)
    for i in range(r0, r1):
        x, c = span(row, 0, i, 0, 1, like)[0], span(row, 2, i, c0, c1, like)
        for j in range(c.size):
            c[j] = x * b[j]


def dot_rows(row, ctx, like):
    """c = a b, b one column that lies together: operands a (m, k), b (k), c (m, 1)."""
    first, last = part(rows_of(row, 0), ctx, 16)
    k = columns_of(row, 0)
    b = vector(row, 1, like)
    for i in range(first, last):
        a = span(row, 0, i, 0, k, like)
        total = T(0)
        for j in range(k):
            total += a[j] * b[j]
        span(row, 2, i, 0, 1, like)[0] = total


def sum_rows(row, ctx, like):
    """c = sum over i of w[i] b[i, :]: operands w (k, 1), b (k, n), c (n)."""
    c0, c1 = part(columns_of(row, 1), ctx, 16)
    c, m, n = address_of_row(row, 2, 0, c0, like), rows_of(row, 1), c1 - c0
    for j in range(n):
        write(like, c, j, 1, T(0))
    # rows by fours: the sums are read and written a quarter as often
    for i in range(0, m - 3, 4):
        w0, w1 = span(row, 0, i, 0, 1, like)[0], span(row, 0, i + 1, 0, 1, like)[0]
        w2, w3 = span(row, 0, i + 2, 0, 1, like)[0], span(row, 0, i + 3, 0, 1, like)[0]
        b0, b1 = address_of_row(row, 1, i, c0, like), address_of_row(row, 1, i + 1, c0, like)
        b2, b3 = address_of_row(row, 1, i + 2, c0, like), address_of_row(row, 1, i + 3, c0, like)
        for j in range(n):
            total = read(like, c, j, 1) + w0 * read(like, b0, j, 0) + w1 * read(like, b1, j, 0)
            write(like, c, j, 1, total + w2 * read(like, b2, j, 0) + w3 * read(like, b3, j, 0))
    for i in range(m // 4 * 4, m):
        w, b = span(row, 0, i, 0, 1, like)[0], address_of_row(row, 1, i, c0, like)
        for j in range(n):
            write(like, c, j, 1, read(like, c, j, 1) + w * read(like, b, j, 0))


def add_bias(row, ctx, like):
    r0, r1, c0, c1 = share(row, 1, ctx)
    bias = span(row, 0, 0, c0, c1, like)
    for i in range(r0, r1):
        x = span(row, 1, i, c0, c1, like)
        for j in range(x.size):
            x[j] += bias[j]


def column_sums(row, ctx, like):
    """Operands dy, db."""
    c0, c1 = part(columns_of(row, 0), ctx, 16)
    db, m, n = address_of_row(row, 1, 0, c0, like), rows_of(row, 0), c1 - c0
    for j in range(n):
        write(like, db, j, 1, T(0))
    for i in range(0, m - 3, 4):
        x0, x1 = address_of_row(row, 0, i, c0, like), address_of_row(row, 0, i + 1, c0, like)
        x2, x3 = address_of_row(row, 0, i + 2, c0, like), address_of_row(row, 0, i + 3, c0, like)
        for j in range(n):
            total = read(like, db, j, 1) + read(like, x0, j, 0) + read(like, x1, j, 0)
            write(like, db, j, 1, total + read(like, x2, j, 0) + read(like, x3, j, 0))
    for i in range(m // 4 * 4, m):
        x = address_of_row(row, 0, i, c0, like)
        for j in range(n):
            write(like, db, j, 1, read(like, db, j, 1) + read(like, x, j, 0))


def copy(row, ctx, like):
    r0, r1, c0, c1 = share(row, 0, ctx)
    for i in range(r0, r1):
        x, y = span(row, 0, i, c0, c1, like), span(row, 1, i, c0, c1, like)
        for j in range(x.size):
            y[j] = x[j]


KERNELS: dict[str, tuple[Any, dict[str, str]]] = {
    "matmul": (matmul, {}),
    "outer": (outer, {}),
    "dot_rows": (dot_rows, {}),
    "sum_rows": (sum_rows, {}),
    "add_bias": (add_bias, {}),
    "column_sums": (column_sums, {}),
    "copy": (copy, {}),
}
