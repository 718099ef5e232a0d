"""The compiled executor: workers of machine code walk the linked program together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import Arena
from ..backend import Backend
from ..kernels.layout import (
    ARRIVED,
    BATCH,
    BATCH_ROWS,
    BEGIN,
    CALLS,
    CONTEXT_WIDTH,
    CONTROL,
    DONE,
    EPOCH_STEPS,
    FIRST_SLOT,
    JOB_WIDTH,
    LAST,
    LEAVE,
    LIMIT,
    PASSED,
    RING,
    STEPS,
    SUMS,
    WORK,
    WORKER,
    WORKERS,
)
from ..program import Memory, Operand, Program, activation_bytes
from .linking import encode, instruct, work_bytes
from .lowering import fuse_bias_activation, fuse_gradient_bias, lower, read_full_batch_in_place
from .workers import Pace, default_workers, together

if TYPE_CHECKING:
    from . import StepPlan

REWRITES = (read_full_batch_in_place, fuse_bias_activation, fuse_gradient_bias)


@dataclass
class Linked:
    """A lowered program as rows of addresses, and what those point at."""

    program: Program
    rows: np.ndarray
    activations: Arena
    keep: list[Any]


class Job:
    """What workers do together, in the words that the walker reads; see `gpumlp.kernels.layout`.

    Everything that stays from run to run is written once, so that a run of few steps costs little more than they.

    Args:
        walker: "walk_steps", or "walk_calls" for one program.
        work: each worker's working memory.
    """

    def __init__(self, walker: str, work: Sequence[np.ndarray]) -> None:
        from ..kernels.cpu import address
        from ..kernels.cpu.loading import function_at

        self._walk = function_at(address(walker, "float32"))  # of no type: neither takes numbers
        # lines of the cache that one worker writes must not be read by another
        self._memory = np.zeros(8 + JOB_WIDTH + CONTEXT_WIDTH * len(work), dtype=np.int64)
        start = -self._memory.ctypes.data % 64 // 8
        words = self._memory[start : start + JOB_WIDTH]
        self._contexts = self._memory[start + JOB_WIDTH :][: CONTEXT_WIDTH * len(work)].reshape(len(work), -1)
        for i, memory in enumerate(work):
            self._contexts[i, [WORKER, WORKERS, WORK]] = i, 1, memory.ctypes.data
        self._places = [words.ctypes.data, *(context.ctypes.data for context in self._contexts)]
        self._alone = self._places[0], self._places[1], 0
        self.sums: Any = words[SUMS : SUMS + 3].view(np.float64).data
        self.words: Any = words.data  # a memoryview's items cost a third of an array's
        self._crew = 1
        self._keep: list[Any] = []

    def set_program(self, at: int, linked: Linked) -> None:
        """Let `BEGIN`, `BATCH` or `LAST` be a program."""
        self.words[at], self.words[at + CALLS] = linked.rows.ctypes.data, len(linked.rows)
        self._keep.append(linked)

    def set_array(self, at: int, array: np.ndarray) -> None:
        """Let `CONTROL` or `RING` be an array."""
        self.words[at] = array.ctypes.data
        self._keep.append(array)

    def run(self, n_steps: int, first_slot: int, workers: int) -> int:
        """Do so many steps by so many workers, or as many threads as the system gives; return how many were good."""
        words = self.words
        words[STEPS], words[FIRST_SLOT] = n_steps, first_slot
        if workers == self._crew == 1:
            self._walk(*self._alone)
        else:
            together(self._work, workers, self._begin, self._give_up)
        done: int = words[DONE]
        if done < n_steps:
            words[LEAVE] = 0
        return done

    def _work(self, worker: int) -> None:
        self._walk(self._places[0], self._places[1 + worker], 0)

    def _begin(self, workers: int) -> None:
        self._crew = workers
        self.words[ARRIVED] = self.words[LEAVE] = 0
        self._contexts[:, WORKERS], self._contexts[:, PASSED] = workers, 0

    def _give_up(self) -> None:
        self.words[LEAVE] = 1
        self.words[ARRIVED] = 2**62  # every barrier is open


class CompiledExecutor:
    """Runs programs of float32 or float64 on the CPU.

    Args:
        backend: the CPU.
        memory: what operands refer to.
        workers: threads that share every instruction; None for a number by size and by the CPUs that are there.
    """

    name = "compiled"
    block_seconds = 0.05
    longest_run = math.inf
    first_block = 1

    def __init__(self, backend: Backend, memory: Memory, workers: int | None = None) -> None:
        self.backend = backend
        self.memory = memory
        self.workers = workers or 1
        self.epoch_sums: Any = None
        self._chosen = workers
        self._pace: Pace | None = None
        self._linked: dict[int, tuple[Program, Linked]] = {}
        self._work: list[Any] = []
        self._work_bytes = 0
        self._calls: dict[int, Job] = {}
        self._plan: StepPlan | None = None
        self._job: Job | None = None

    def prepare(self, *programs: Program, on_compile: Callable[[], None] | None = None) -> None:
        from ..kernels.cpu import address

        for walker in ("walk_steps", "walk_calls"):  # here and not in the first block, which is timed
            address(walker, "float32", on_compile)
        lowered = [lower(p, REWRITES) for p in programs]
        if self._chosen is None:
            self.workers = max(default_workers(p) for p in lowered)
            self._pace = Pace(self.workers) if self.workers > 1 else None
        shared = self.backend.allocate(max(map(activation_bytes, lowered), default=0))
        for source, program in zip(programs, lowered, strict=True):
            self._linked[id(source)] = (source, self._link(program, shared, on_compile))
        self._work = [self.backend.allocate(self._work_bytes) for _ in range(self.workers)]
        self._calls, self._plan = {}, None

    def _link(self, program: Program, shared: Any, on_compile: Callable[[], None] | None) -> Linked:
        from ..kernels.cpu import address

        activations = Arena(self.backend, program.buffers.values(), shared)
        instructions = instruct(program, self.memory, activations)
        self._work_bytes = max(self._work_bytes, work_bytes(instructions))
        keep: list[Any] = []
        addresses = [address(i.kernel, program.dtype, on_compile) for i in instructions]
        rows = encode(instructions, addresses, keep)
        return Linked(program, rows, activations, keep)

    def linked(self, program: Program) -> Linked:
        return self._linked[id(program)][1]

    def execute(self, program: Program) -> None:
        if (job := self._calls.get(id(program))) is None:
            job = self._calls[id(program)] = Job("walk_calls", self._work)
            job.set_program(BATCH, self.linked(program))
        job.run(0, 0, self.workers)

    def run(self, plan: StepPlan, n_steps: int) -> int:
        job = self._job if plan is self._plan and self._job is not None else self._new_job(plan)
        if self._pace is None:
            return job.run(n_steps, 0, self.workers)
        done, (workers, steps) = 0, self._pace.trial(n_steps)
        while steps:
            good = self._timed_run(job, steps, done, workers)
            done += good
            if good < steps:
                return done
            workers, steps = self._pace.longer_trial(n_steps - done)
        return done + self._timed_run(job, n_steps - done, done, self._pace.current)

    def _timed_run(self, job: Job, n_steps: int, first_slot: int, workers: int) -> int:
        start = time.perf_counter()
        done = job.run(n_steps, first_slot, workers)
        if done and self._pace is not None:
            self._pace.took(workers, (time.perf_counter() - start) / done)
        return done

    def _new_job(self, plan: StepPlan) -> Job:
        job = Job("walk_steps", self._work)
        job.set_program(BEGIN, self.linked(plan.begin))
        job.set_program(BATCH, self.linked(plan.batch))
        if plan.last is not None:
            job.set_program(LAST, self.linked(plan.last))
        job.set_array(CONTROL, self.memory.arrays["control"])
        job.set_array(RING, self.memory.arrays["ring"])
        job.words[EPOCH_STEPS], job.words[BATCH_ROWS] = plan.steps, plan.batch.rows
        job.words[LIMIT] = int(1e9 * self.longest_run) if self.longest_run < math.inf else 0
        self._plan, self._job, self.epoch_sums = plan, job, job.sums
        return job

    def losses(self, count: int) -> np.ndarray:
        found: np.ndarray = self.memory.arrays["ring"][:count]
        return found

    def replayable(self, plan: StepPlan) -> tuple[Memory, StepPlan]:
        return self.memory, plan

    def view(self, program: Program, operand: Operand) -> Any:
        return self.memory.view(operand, self.linked(program).activations)
