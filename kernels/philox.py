"""Philox-4x32-10, the counter-based random generator (Salmon et al. 2011), written with ``xp``.

The same counters and key give the same numbers on every backend and in every order of evaluation, so a mask is
never stored, and neither the split of a batch over threads nor a resumed run changes anything.
"""

from __future__ import annotations

from typing import Any

Array = Any

# What the numbers are for: the highest word of the counter, so that no two uses share a stream.
SHUFFLE, DROPOUT, NOISE = 1, 2, 3

_LOW = 0xFFFFFFFF


def philox(xp: Any, counter: tuple[Any, Any, Any, Any], seed: int) -> tuple[Array, Array, Array, Array]:
    """Return four uint64 arrays of 32 random bits each for counter words that broadcast together."""
    u64 = xp.uint64
    c0, c1, c2, c3 = xp.broadcast_arrays(*(xp.asarray(word, dtype=u64) for word in counter))
    low, shift = u64(_LOW), u64(32)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        p0 = u64(0xD2511F53) * c0
        p1 = u64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ u64(k0), p1 & low, (p0 >> shift) ^ c3 ^ u64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def random_words(xp: Any, rows: int, columns: int, use: int, seed: int, step: int, layer: int) -> Array:
    """Return a (rows, columns) uint64 array of 32 random bits each.

    The four words of a counter lie a quarter of a row apart (column = lane * blocks + block), so that a kernel
    can write each lane as one contiguous run.
    """
    blocks = -(-columns // 4)
    row = xp.arange(rows, dtype=xp.uint64)[:, None]
    block = xp.arange(blocks, dtype=xp.uint64)[None, :]
    words = philox(xp, (row, block, step & _LOW, (use << 16) | layer), seed)
    return xp.concatenate(words, axis=1)[:, :columns]


def random_normals(xp: Any, rows: int, columns: int, use: int, seed: int, step: int, layer: int) -> Array:
    """Return a (rows, columns) float64 array of standard normals, by Box and Muller (1958).

    Lanes 0 and 1 make one pair, lanes 2 and 3 the other.
    """
    blocks = -(-columns // 4)
    words = random_words(xp, rows, 4 * blocks, use, seed, step, layer).astype(xp.float64) * 2.0**-32
    u0, u1, u2, u3 = (words[:, lane * blocks : (lane + 1) * blocks] for lane in range(4))
    r0, r2 = (xp.sqrt(-2.0 * xp.log(u + 2.0**-32)) for u in (u0, u2))
    a1, a3 = 2.0 * xp.pi * u1, 2.0 * xp.pi * u3
    lanes = (r0 * xp.cos(a1), r0 * xp.sin(a1), r2 * xp.cos(a3), r2 * xp.sin(a3))
    return xp.concatenate(lanes, axis=1)[:, :columns]


def permutation(xp: Any, n: int, seed: int, epoch: int) -> Array:
    """Return the order of `n` rows in an epoch, int64: the stable sort of one random 64-bit key a row."""
    row = xp.arange(n, dtype=xp.uint64)
    high, low, _, _ = philox(
        xp, (row & xp.uint64(_LOW), row >> xp.uint64(32), epoch & _LOW, SHUFFLE << 16), seed
    )
    return xp.argsort((high << xp.uint64(32)) | low, kind="stable").astype(xp.int64)
