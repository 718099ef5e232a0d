"""The compiled executor: workers of machine code walk the linked program together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import Arena
from ..backend import Backend
from ..kernels import POSITION
from ..program import Memory, Operand, Program, activation_bytes
from .linking import encode, instruct, work_bytes
from .lowering import fuse_bias_activation, fuse_gradient_bias, lower, read_full_batch_in_place
from .workers import Pace, default_workers

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


class CompiledExecutor:
    """Runs programs of float32 or float64 on the CPU.

    Args:
        backend: the CPU.
        memory: what operands refer to.
        workers: threads that share every instruction; None for a number by size and by the CPUs that are there.
    """

    name = "compiled"

    def __init__(self, backend: Backend, memory: Memory, workers: int | None = None) -> None:
        self.backend = backend
        self.memory = memory
        self.workers = workers or 1
        self._chosen = workers
        self._pace: Pace | None = None
        self._linked: dict[int, tuple[Program, Linked]] = {}
        self._work: list[Any] = []
        self._work_bytes = 0

    def prepare(self, *programs: Program, on_compile: Callable[[], None] | None = None) -> None:
        from ..kernels.cpu.walker import compiled

        compiled()  # here and not in the first block, which is timed
        lowered = [lower(p, REWRITES) for p in programs]
        if self._chosen is None:
            self.workers = max(default_workers(p) for p in lowered)
            self._pace = Pace(self.workers)
        shared = self.backend.allocate(max(map(activation_bytes, lowered), default=0))
        for source, program in zip(programs, lowered, strict=True):
            self._linked[id(source)] = (source, self._link(program, shared, on_compile))
        self._work = [self.backend.allocate(self._work_bytes) for _ in range(self.workers)]

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
        from ..kernels.cpu.walker import compiled

        rows, run_calls = self.linked(program).rows, compiled()[1]
        counter = np.zeros(16, dtype=np.int64)

        def work(worker: int) -> None:
            run_calls(rows, self._context(worker, self.workers), counter.ctypes.data)

        _together(work, self.workers)

    def run(self, plan: StepPlan, n_steps: int) -> int:
        if self._pace is None:  # a number that was asked for
            return self._run(plan, n_steps, 0, self.workers)
        workers, trial = self._pace.trial(n_steps)
        done = self._timed_run(plan, trial, 0, workers) if trial else 0
        if done < trial:
            return done
        return done + self._timed_run(plan, n_steps - done, done, self._pace.current)

    def _timed_run(self, plan: StepPlan, n_steps: int, first_slot: int, workers: int) -> int:
        start = time.perf_counter()
        done = self._run(plan, n_steps, first_slot, workers)
        if done and self._pace is not None:
            self._pace.took(workers, (time.perf_counter() - start) / done)
        return done

    def _run(self, plan: StepPlan, n_steps: int, first_slot: int, workers: int) -> int:
        from ..kernels.cpu.walker import compiled

        run = compiled()[0]
        control = self.memory.arrays["control"]
        begin, batch = self.linked(plan.begin).rows, self.linked(plan.batch).rows
        last = self.linked(plan.last).rows if plan.last is not None else batch[:0]
        position, counter = int(control[POSITION]), np.zeros(16, dtype=np.int64)
        done = [0] * workers

        def work(worker: int) -> None:
            ctx = self._context(worker, workers, plan.batch.rows, first_slot)
            place = counter.ctypes.data
            done[worker] = run(begin, batch, last, control, ctx, place, n_steps, plan.steps, position)

        _together(work, workers)
        return done[0]

    def _context(self, worker: int, workers: int, batch_rows: int = 0, first_slot: int = 0) -> np.ndarray:
        """The worker's own numbers, on a cache line of their own."""
        context = np.zeros(16, dtype=np.int64)
        context[:6] = worker, workers, 0, batch_rows, self._work[worker].ctypes.data, first_slot
        return context

    def view(self, program: Program, operand: Operand) -> Any:
        return self.memory.view(operand, self.linked(program).activations)


def _together(work: Callable[[int], None], workers: int) -> None:
    """Run ``work(0)`` here and the other workers beside it.

    Threads are made for each block: a pool shared by several trainings could leave one waiting at a barrier for a
    worker that never starts.
    """
    others = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(1, workers)]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()
