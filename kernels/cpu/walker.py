"""The walker: workers go through the rows of the linked program together, a barrier where one needs another's work.

What it is to do stands in a job, and what a worker is in its context; `gpumlp.kernels.layout` says where.
"""

from __future__ import annotations

import sys
from typing import Any

from numba import carray, njit, types

from .. import BAD_STEP, EPOCH, POSITION, SLOT, START, STEP, UPDATE
from ..layout import (
    ARRIVED,
    BATCH,
    BATCH_ROWS,
    BEGIN,
    CALLS,
    CLOCK,
    CONTROL,
    DONE,
    EPOCH_STEPS,
    FIRST_SLOT,
    FLAGS,
    FUNCTION,
    LAST,
    LEAVE,
    LIMIT,
    PASSED,
    RING,
    ROW_WIDTH,
    STEPS,
    SUMS,
    WORKER,
    WORKERS,
)
from .intrinsics import address_of, atomic_add, atomic_load, call_row, double_pointer, pause, pointer

_yield = types.ExternalFunction("sched_yield", types.intc())
_clock_gettime = types.ExternalFunction("clock_gettime", types.intc(types.intc, types.int64))

SPINS = 4000
"""Turns of the waiting loop before the thread offers its processor to others."""
LOOKS = 64
"""How often at most worker 0 looks at the clock in a block."""
MONOTONIC = {"linux": 6, "darwin": 6}.get(sys.platform, 1)
"""The number of a clock that never goes back; on Linux the coarse one, which costs 5 ns."""


@njit
def now(job):
    """Nanoseconds by the clock."""
    _clock_gettime(MONOTONIC, address_of(job) + 8 * CLOCK)
    return job[CLOCK] * 1_000_000_000 + job[CLOCK + 1]


@njit
def barrier(job, ctx):
    """Wait until every worker has come here; the context counts this worker's barriers."""
    ctx[PASSED] += ctx[WORKERS]
    place = address_of(job) + 8 * ARRIVED
    atomic_add(place, 1)
    turns = 0
    while atomic_load(place) < ctx[PASSED]:
        pause()
        turns += 1
        if turns > SPINS:
            _yield()


@njit
def walk(first, calls, job, ctx):
    """Call the rows from address `first` on in turn; a flag asks for a barrier before a row."""
    many, here = ctx[WORKERS] > 1, address_of(ctx)
    for i in range(calls):
        address = first + i * (8 * ROW_WIDTH)
        row = pointer(address, job)
        if many and row[FLAGS] != 0:
            barrier(job, ctx)
        call_row(row[FUNCTION], address, here)


@njit
def add_up(job, slot, anew):
    """Add a step's loss and weight to the sums of its epoch, one by one, as bits depend on the order."""
    ring = carray(double_pointer(job[RING]), (2 * slot + 2,))
    sums = carray(double_pointer(address_of(job) + 8 * SUMS), (3,))
    if anew:
        sums[0] = sums[1] = sums[2] = 0.0
    sums[0] += ring[2 * slot] * ring[2 * slot + 1]
    sums[1] += ring[2 * slot + 1]
    sums[2] += ring[2 * slot]


def walk_steps(job, ctx, like):
    """Do training steps, until one is bad or the time is over; the job says how many were good."""
    control = pointer(job[CONTROL], job)
    first, many, slot = ctx[WORKER] == 0, ctx[WORKERS] > 1, job[FIRST_SLOT]
    n_steps, steps = job[STEPS], job[EPOCH_STEPS]
    position = control[POSITION]  # of the first step: worker 0 moves it on behind a barrier of that step
    stride = max(1, n_steps // LOOKS)
    look, end = stride, 0
    if first:
        job[DONE] = 0
        if job[LIMIT] > 0:
            end = now(job) + job[LIMIT]
    for k in range(n_steps):
        here = position
        position = here + 1 if here + 1 < steps else 0
        if first:
            control[SLOT] = slot + k
            control[START] = here * job[BATCH_ROWS]
            if look == 0:
                look = stride
                if end > 0 and now(job) > end:
                    job[LEAVE] = 1
            look -= 1
        if many:
            barrier(job, ctx)
        if job[LEAVE] != 0:
            return
        if here == 0:
            walk(job[BEGIN], job[BEGIN + CALLS], job, ctx)
            if many:
                barrier(job, ctx)
        if here == steps - 1 and job[LAST + CALLS] > 0:
            walk(job[LAST], job[LAST + CALLS], job, ctx)
        else:
            walk(job[BATCH], job[BATCH + CALLS], job, ctx)
        if many:
            barrier(job, ctx)
        bad = control[BAD_STEP] >= 0
        if many:
            barrier(job, ctx)
        if bad:
            return
        if first:
            add_up(job, slot + k, here == 0)
            control[STEP] += 1
            control[UPDATE] += 1
            control[SLOT] = slot + k + 1
            control[POSITION] = position
            if position == 0:
                control[EPOCH] += 1
            job[DONE] = k + 1


def walk_calls(job, ctx, like):
    """Call all rows of one program, that of a batch."""
    if ctx[WORKERS] > 1:
        barrier(job, ctx)
    if job[LEAVE] == 0:
        walk(job[BATCH], job[BATCH + CALLS], job, ctx)


KERNELS: dict[str, tuple[Any, dict[str, str]]] = {
    "walk_steps": (walk_steps, {}),
    "walk_calls": (walk_calls, {}),
}
