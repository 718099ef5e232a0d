"""Which rows make up a batch; random numbers from counters, as `gpumlp.kernels.philox` has them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit

from .. import EPOCH, SEED, START, STEP
from ..philox import DROPOUT, NOISE, SHUFFLE
from .intrinsics import columns_of, integers, part, pointer, rows_of, scalars, span, vector
from .mathlib import T

U = np.uint64
LOW = U(0xFFFFFFFF)
ROUND_0, ROUND_1, KEY_0, KEY_1, WORD = U(0xD2511F53), U(0xCD9E8D57), U(0x9E3779B9), U(0xBB67AE85), U(32)


@njit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox-4x32-10; words of 32 bits in uint64."""
    for _ in range(10):
        p0, p1 = ROUND_0 * c0, ROUND_1 * c2
        c0, c1, c2, c3 = (p1 >> WORD) ^ c1 ^ k0, p1 & LOW, (p0 >> WORD) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + KEY_0) & LOW, (k1 + KEY_1) & LOW
    return c0, c1, c2, c3


def shuffle(row, ctx, like):
    """index = rows in the order of their keys: operands control, rows, index.

    The stable sort goes by the leading bytes of the keys, as many as tell most of them apart, over scratch for
    counts, and for keys and places, both twice; insertion then orders the few that those bytes leave equal.
    """
    if ctx[0] != 0:
        return
    control, rows, index = integers(row, 0), integers(row, 1), integers(row, 2)
    n = rows.size
    scratch = carray(pointer(row[3], row), (4 * n + 256,))
    keys, places, other_keys, other_places = (
        scratch[:n],
        scratch[n : 2 * n],
        scratch[2 * n : 3 * n],
        scratch[3 * n : 4 * n],
    )
    k0, k1 = U(control[SEED]) & LOW, (U(control[SEED]) >> WORD) & LOW
    epoch = U(control[EPOCH]) & LOW
    for i in range(n):
        high, low, _, _ = philox(U(i) & LOW, U(i) >> WORD, epoch, U(SHUFFLE) << U(16), k0, k1)
        keys[i] = np.int64((high << WORD) | low)
        places[i] = i
    counts = scratch[4 * n :]
    leading = 2 if n <= 1 << 16 else (3 if n <= 1 << 24 else 4)
    for digit in range(8 - leading, 8):
        shift = U(8 * digit)
        counts[:] = 0
        for i in range(n):
            counts[np.int64((U(keys[i]) >> shift) & U(255))] += 1
        total = 0
        for c in range(256):
            here = counts[c]
            counts[c] = total
            total += here
        for i in range(n):
            c = np.int64((U(keys[i]) >> shift) & U(255))
            other_keys[counts[c]] = keys[i]
            other_places[counts[c]] = places[i]
            counts[c] += 1
        keys, other_keys = other_keys, keys
        places, other_places = other_places, places
    for i in range(1, n):
        key, place, j = keys[i], places[i], i
        while j > 0 and U(keys[j - 1]) > U(key):
            keys[j], places[j] = keys[j - 1], places[j - 1]
            j -= 1
        keys[j], places[j] = key, place
    for i in range(n):
        index[i] = rows[places[i]]


def copy_rows(row, ctx, like):
    if ctx[0] == 0:
        rows, index = integers(row, 0), integers(row, 1)
        for i in range(rows.size):
            index[i] = rows[i]


def gather_rows(row, ctx, like):
    """Operands control, source, index, out."""
    first, last = part(rows_of(row, 3), ctx, 4)
    start, index, n = integers(row, 0)[START], integers(row, 2), columns_of(row, 3)
    for i in range(first, last):
        source, out = span(row, 1, index[start + i], 0, n, like), span(row, 3, i, 0, n, like)
        for j in range(n):
            out[j] = source[j]


def gather_labels(row, ctx, like):
    if ctx[0] == 0:
        start, index = integers(row, 0)[START], integers(row, 2)
        source, out = integers(row, 1), integers(row, 3)
        for i in range(out.size):
            out[i] = source[index[start + i]]


def gather_weights(row, ctx, like):
    if ctx[0] == 0:
        start, index = integers(row, 0)[START], integers(row, 2)
        source, out = vector(row, 1, like), vector(row, 3, like)
        for i in range(out.size):
            out[i] = source[index[start + i]]


def dropout(row, ctx, like):
    """Operands control, x, y; scalars rate, layer. Workers share the rows."""
    control, p = integers(row, 0), scalars(row)
    threshold, kept = U(np.int64(p[0] * 4294967296.0)), T(1.0 / (1.0 - p[0]))
    k0, k1 = U(control[SEED]) & LOW, (U(control[SEED]) >> WORD) & LOW
    step, use = U(control[STEP]) & LOW, (U(DROPOUT) << U(16)) | U(np.int64(p[1]))
    n = columns_of(row, 1)
    blocks = (n + 3) // 4
    whole = n - 3 * blocks  # blocks whose fourth lane is inside
    first, last = part(rows_of(row, 1), ctx, 1)
    for i in range(first, last):
        x, y = span(row, 1, i, 0, n, like), span(row, 2, i, 0, n, like)
        for b in range(max(whole, 0)):
            r0, r1, r2, r3 = philox(U(i), U(b), step, use, k0, k1)
            y[b] = x[b] * (kept if r0 >= threshold else T(0))
            y[b + blocks] = x[b + blocks] * (kept if r1 >= threshold else T(0))
            y[b + 2 * blocks] = x[b + 2 * blocks] * (kept if r2 >= threshold else T(0))
            y[b + 3 * blocks] = x[b + 3 * blocks] * (kept if r3 >= threshold else T(0))
        for b in range(max(whole, 0), blocks):
            r0, r1, r2, _ = philox(U(i), U(b), step, use, k0, k1)
            y[b] = x[b] * (kept if r0 >= threshold else T(0))
            if b + blocks < n:
                y[b + blocks] = x[b + blocks] * (kept if r1 >= threshold else T(0))
            if b + 2 * blocks < n:
                y[b + 2 * blocks] = x[b + 2 * blocks] * (kept if r2 >= threshold else T(0))


def gaussian_noise(row, ctx, like):
    """Operands control, x, y; scalars std, layer. Workers share the rows."""
    control, p = integers(row, 0), scalars(row)
    k0, k1 = U(control[SEED]) & LOW, (U(control[SEED]) >> WORD) & LOW
    step, use = U(control[STEP]) & LOW, (U(NOISE) << U(16)) | U(np.int64(p[1]))
    n, unit, turn = columns_of(row, 1), 2.0**-32, 2.0 * math.pi
    blocks = (n + 3) // 4
    first, last = part(rows_of(row, 1), ctx, 1)
    for i in range(first, last):
        x, y = span(row, 1, i, 0, n, like), span(row, 2, i, 0, n, like)
        for b in range(blocks):
            r0, r1, r2, r3 = philox(U(i), U(b), step, use, k0, k1)
            size, angle = (
                math.sqrt(-2.0 * math.log(np.float64(r0) * unit + unit)),
                turn * (np.float64(r1) * unit),
            )
            y[b] = x[b] + T(p[0] * (size * math.cos(angle)))
            if b + blocks < n:
                y[b + blocks] = x[b + blocks] + T(p[0] * (size * math.sin(angle)))
            size, angle = (
                math.sqrt(-2.0 * math.log(np.float64(r2) * unit + unit)),
                turn * (np.float64(r3) * unit),
            )
            if b + 2 * blocks < n:
                y[b + 2 * blocks] = x[b + 2 * blocks] + T(p[0] * (size * math.cos(angle)))
            if b + 3 * blocks < n:
                y[b + 3 * blocks] = x[b + 3 * blocks] + T(p[0] * (size * math.sin(angle)))


KERNELS: dict[str, tuple[Any, dict[str, str]]] = {
    "shuffle": (shuffle, {}),
    "copy_rows": (copy_rows, {}),
    "gather_rows": (gather_rows, {}),
    "gather_labels": (gather_labels, {}),
    "gather_weights": (gather_weights, {}),
    "dropout": (dropout, {}),
    "dropout_grad": (dropout, {}),
    "gaussian_noise": (gaussian_noise, {}),
}
