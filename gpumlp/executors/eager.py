"""The eager executor: a Python loop over the calls, each a reference kernel in ``xp`` code.

It is the one to read and to debug with, it runs users' own layers, and every other executor is tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import Arena
from ..backend import Backend
from ..kernels import BAD_STEP, BFLOAT16, EPOCH, IN_BFLOAT16, POSITION, SLOT, START, STEP, UPDATE
from ..kernels.reference import kernel, kernel_in_bfloat16
from ..program import PYTHON, Memory, Operand, Program, activation_bytes
from .lowering import lower, read_full_batch_in_place

if TYPE_CHECKING:
    from . import StepPlan

REWRITES = (read_full_batch_in_place,)


@dataclass(frozen=True)
class Linked:
    """A lowered program with its calls bound to arrays."""

    program: Program
    calls: Sequence[Callable[[], None]]
    activations: Arena


class EagerExecutor:
    """Runs programs call by call, on NumPy or CuPy."""

    name = "eager"
    block_seconds = 0.05
    longest_run = math.inf
    first_block = 1
    epoch_sums: Any = None

    def __init__(self, backend: Backend, memory: Memory, workers: int | None = None) -> None:
        self.backend = backend
        self.memory = memory
        self._linked: dict[int, tuple[Program, Linked]] = {}

    def prepare(self, *programs: Program, on_compile: Callable[[], None] | None = None) -> None:
        lowered = [lower(p, REWRITES) for p in programs]
        shared = self.backend.allocate(max(map(activation_bytes, lowered), default=0))
        for source, program in zip(programs, lowered, strict=True):
            activations = Arena(self.backend, program.buffers.values(), shared)
            calls = [self._bind(program, i, activations) for i in range(len(program.calls))]
            self._linked[id(source)] = (source, Linked(program, calls, activations))

    def linked(self, program: Program) -> Linked:
        return self._linked[id(program)][1]

    def _bind(self, program: Program, i: int, activations: Arena) -> Callable[[], None]:
        call = program.calls[i]
        arrays = tuple(None if o is None else self.memory.view(o, activations) for o in call.operands)
        scalars = dict(call.scalars)
        if call.kernel == PYTHON:
            function = scalars.pop("function")
            return lambda: function(*arrays, **scalars)
        halves = call.kernel in IN_BFLOAT16 and any(a is not None and a.dtype == BFLOAT16 for a in arrays)
        function = kernel_in_bfloat16(call.kernel) if halves else kernel(call.kernel)
        xp = self.backend.xp
        return lambda: function(xp, *arrays, **scalars)

    def execute(self, program: Program, start: int = 0, stop: int | None = None) -> None:
        """Run the calls [start, stop) of a prepared program; NumPy's warnings are silent, as the loss tells."""
        with self.backend.active(), np.errstate(all="ignore"):
            for call in self.linked(program).calls[start:stop]:
                call()

    def run(self, plan: StepPlan, n_steps: int) -> int:
        control = self.memory.arrays["control"]
        batch_rows = plan.batch.rows
        control[SLOT] = 0
        for done in range(n_steps):
            position = int(control[POSITION])
            if position == 0:
                self.execute(plan.begin)
            control[START] = position * batch_rows
            short = plan.last is not None and position == plan.steps - 1
            self.execute(plan.last if short and plan.last else plan.batch)
            if control[BAD_STEP] >= 0:
                return done
            control[[STEP, UPDATE, SLOT]] += 1
            control[POSITION] = (position + 1) % plan.steps
            control[EPOCH] += control[POSITION] == 0
        self.backend.synchronize()
        return n_steps

    def losses(self, count: int) -> np.ndarray:
        return self.backend.to_host(self.memory.arrays["ring"][:count])

    def replayable(self, plan: StepPlan) -> tuple[Memory, StepPlan]:
        return self.memory, plan

    def view(self, program: Program, operand: Operand) -> Any:
        return self.memory.view(operand, self.linked(program).activations)
