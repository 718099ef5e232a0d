"""The walker: workers go through the rows of the linked program together, a barrier where one needs another's work."""

from __future__ import annotations

import functools
from typing import Any

from numba import njit, types

from .. import BAD_STEP, EPOCH, POSITION, SLOT, START, STEP, UPDATE
from ..layout import BATCH_ROWS, FIRST_SLOT, FLAGS, FUNCTION
from . import specialise
from .intrinsics import atomic_add, atomic_load, call_row, pause

_yield = types.ExternalFunction("sched_yield", types.intc())

SPINS = 4000
"""Turns of the waiting loop before the thread offers its processor to others."""


@njit
def barrier(place, ctx):
    """Wait until every worker has come here; ctx[2] counts this worker's barriers."""
    ctx[2] += ctx[1]
    atomic_add(place, 1)
    turns = 0
    while atomic_load(place) < ctx[2]:
        pause()
        turns += 1
        if turns > SPINS:
            _yield()


@njit
def walk(rows, ctx, place):
    """Call the rows in turn; a flag asks for a barrier before a row."""
    base, width, here = rows.ctypes.data, rows.strides[0], ctx.ctypes.data
    for i in range(rows.shape[0]):
        if ctx[1] > 1 and rows[i, FLAGS] != 0:
            barrier(place, ctx)
        call_row(rows[i, FUNCTION], base + i * width, here)


def run(begin, batch, last, control, ctx, place, n_steps, steps, position):
    """Do up to `n_steps` training steps; return how many were good.

    Args:
        begin, batch, last: linked programs, (calls, ROW_WIDTH) int64; `last` is empty where every batch is full.
        control: the control block.
        ctx: the worker's own numbers, int64; see `layout`.
        place: address of the barrier's counter.
        n_steps: of this block.
        steps: in an epoch.
        position: of the first step in its epoch; the control block moves on while others still start.
    """
    many = ctx[1] > 1
    for k in range(n_steps):
        here = (position + k) % steps
        if ctx[0] == 0:
            control[SLOT] = ctx[FIRST_SLOT] + k
            control[START] = here * ctx[BATCH_ROWS]
        if many:
            barrier(place, ctx)
        if here == 0:
            walk(begin, ctx, place)
            if many:
                barrier(place, ctx)
        if here == steps - 1 and last.shape[0] > 0:
            walk(last, ctx, place)
        else:
            walk(batch, ctx, place)
        if many:
            barrier(place, ctx)
        bad = control[BAD_STEP] >= 0
        if many:
            barrier(place, ctx)
        if bad:
            return k
        if ctx[0] == 0:
            control[STEP] += 1
            control[UPDATE] += 1
            control[SLOT] = ctx[FIRST_SLOT] + k + 1
            control[POSITION] = (here + 1) % steps
            if here + 1 == steps:
                control[EPOCH] += 1
    return n_steps


def run_calls(rows, ctx, place):
    """Call all rows of one program."""
    walk(rows, ctx, place)


@functools.cache
def compiled() -> tuple[Any, Any]:
    """Return `run` and `run_calls`, compiled or from the cache; both run without the interpreter's lock."""
    options: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
    i64, rows = types.int64, types.Array(types.int64, 2, "C")
    vector = types.Array(types.int64, 1, "C")
    run_type = i64(rows, rows, rows, vector, vector, i64, i64, i64, i64)
    calls_type = types.void(rows, vector, i64)
    return (
        njit(run_type, **options)(specialise(run, {}, "run")),
        njit(calls_type, **options)(specialise(run_calls, {}, "run_calls")),
    )
