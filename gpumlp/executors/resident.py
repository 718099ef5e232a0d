"""The resident executor: one kernel walks the linked program for a whole block of steps, one thread block a network.

Weights, gradients and activations lie in the shared memory of a multiprocessor meanwhile, as far as they fit. One
network uses one multiprocessor; a `Gang` lets hundreds of them share a launch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import aligned
from ..backend import Backend, address
from ..kernels import POSITION, SLOT, START
from ..kernels.cuda import COPY_IN, COPY_OUT, SCRATCH_BYTES
from ..program import RING, Memory, Program
from .device import DeviceExecutor, Linked
from .gang import Entry, Gang, Seat
from .lowering import Rewrite, fuse_bias_activation, fuse_gradient_bias, read_full_batch_in_place

if TYPE_CHECKING:
    from . import StepPlan

STATIC_SHARED = SCRATCH_BYTES + 1024
"""Bytes of shared memory that the operations themselves take, and the driver's part."""

SMALL_ARRAY = 16 * 1024
"""Bytes up to which rows of data are worth a place in shared memory."""


class ResidentExecutor(DeviceExecutor):
    """Runs the programs of one network on one multiprocessor of a GPU; see `DeviceExecutor`."""

    name = "resident"
    uses_library = False

    def __init__(
        self,
        backend: Backend,
        memory: Memory,
        workers: int | None = None,
        precision: str = "float32",
        seat: Seat | None = None,
    ) -> None:
        self._seat = seat or Gang(backend, memory.arrays["ring"][None]).seat()
        super().__init__(backend, memory, workers, precision, self._seat.arrays)
        if self._seat.gang.members > 1:
            self.first_block = RING  # the gang ends it
        self._entries: dict[int, tuple[StepPlan, Entry]] = {}

    def rewrites(self, program: Program) -> tuple[Rewrite, ...]:
        return (read_full_batch_in_place, fuse_bias_activation, fuse_gradient_bias)

    def _most_blocks(self) -> int:
        return 1

    def execute(self, program: Program) -> None:
        self.copy_in()
        with self.backend.active():
            for launch in self.launches(self.linked(program)):
                launch()
        self.copy_out()

    def run(self, plan: StepPlan, n_steps: int) -> int:
        if id(plan) not in self._entries:
            self._entries[id(plan)] = (plan, self._entry(plan))
        control, rates = self._host["control"], self._host["rates"][:n_steps]
        control[SLOT], control[START] = 0, control[POSITION] * plan.batch.rows
        kernels = self.kernels(plan.batch.dtype)
        with self.backend.active():
            self._seat.run(self._entries[id(plan)][1], kernels, n_steps, control, rates)
        return int(control[SLOT])

    def losses(self, count: int) -> np.ndarray:
        return self._seat.losses(count)

    def _entry(self, plan: StepPlan) -> Entry:
        linked = [self.linked(plan.begin), self.with_advance(plan.batch, plan)]
        if plan.last is not None:
            linked.append(self.with_advance(plan.last, plan))
        tables = [self.backend.asarray(program.rows) for program in linked]
        rows_bytes = sum(program.rows.nbytes for program in linked)
        stages, end = self._stages(linked, aligned(rows_bytes))
        placed = self.backend.asarray(stages)
        programs = [(address(t), len(p.rows)) for t, p in zip(tables, linked, strict=True)]
        programs += [(0, 0)] * (3 - len(programs))
        control = address(self.memory.arrays["control"])
        words = [*(n for p in programs for n in p), control, address(placed), len(stages), plan.steps, 0]
        return Entry(np.array(words, dtype=np.int64), end, [tables, placed, linked])

    def _stages(self, linked: Iterable[Linked], first: int) -> tuple[np.ndarray, int]:
        """What lies in shared memory, (stages, 4) int64, and where that ends; what does not fit stays outside."""
        limit = self.device.shared_bytes - STATIC_SHARED
        if first > limit:
            raise ValueError(
                f"a program of {first} bytes does not fit the {limit} of shared memory; use the graph executor"
            )
        stages, end = [], first
        for array, flags in self._candidates(linked):
            nbytes = array.nbytes
            if nbytes and address(array) % 16 == 0 and end + aligned(nbytes) <= limit:
                stages.append((address(array), nbytes, end, flags))
                end += aligned(nbytes)
        return np.array(stages, dtype=np.int64).reshape(-1, 4), end

    def _candidates(self, linked: Iterable[Linked]) -> Iterable[tuple[Any, int]]:
        """Memory in the order in which it gains from being near."""
        arrays, both = self.memory.arrays, COPY_IN | COPY_OUT
        yield arrays["control"], both
        yield max((p.activations.memory for p in linked), key=lambda memory: memory.nbytes), 0
        for role in ("parameters", "gradients", "state"):
            yield self.memory.arenas[role].memory, both
        for role, arena in self.memory.arenas.items():
            if role.startswith("slot."):
                yield arena.memory, both
        for name in ("index", "rows", "X", "y", "weight"):
            if name in arrays and arrays[name].nbytes <= SMALL_ARRAY:
                yield arrays[name], both if name == "index" else COPY_IN
