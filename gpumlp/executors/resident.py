"""The resident executor: one kernel walks the linked program for a whole block of steps, one thread block a network.

Weights, gradients and activations lie in the shared memory of a multiprocessor meanwhile, as far as they fit. One
network uses one multiprocessor; a `Gang` lets hundreds of them share a launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import aligned
from ..backend import Backend, address
from ..kernels import SLOT
from ..kernels.cuda import COPY_IN, COPY_OUT, RESIDENT_THREADS, SCRATCH_BYTES
from ..kernels.cuda.device import Kernels
from ..program import RING, Memory, Program
from .device import DeviceExecutor, Linked
from .gang import Entry, Gang, Seat
from .lowering import Rewrite, fuse_bias_activation, fuse_gradient_bias, read_full_batch_in_place
from .narrow import fuse_narrow_gradients, fuse_narrow_products
from .products import by_own_kernel, fuse_epilogues

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
        # in float64, which is for checking, narrow products want more registers than the kernel leaves them
        narrow = (partial(fuse_narrow_products, left=()), fuse_narrow_gradients)
        return (
            *(read_full_batch_in_place, *(narrow if program.dtype == "float32" else ())),
            *(fuse_epilogues(by_own_kernel), fuse_bias_activation, fuse_gradient_bias),
        )

    def _lower(self, program: Program) -> Program:
        """Networks of a gang that are alike have equal programs, which are lowered once."""
        for given, lowered in self._seat.gang.lowered:
            if given == program:
                return lowered
        lowered = super()._lower(program)
        self._seat.gang.lowered.append((program, lowered))
        return lowered

    def _most_blocks(self) -> int:
        return 1

    def kernels(self, dtype: str) -> Kernels:
        return self.device.kernels(dtype, frozenset(), self._alone, frozenset(), self._large)

    def execute(self, program: Program) -> None:
        """Run a program as a step is run, by itself; not once a step was bad."""
        entry = self._entry([None, self.linked(program)], 1, COPY_IN | COPY_OUT)
        entry.words[-1] = 1
        self.copy_in()
        with self.backend.active():
            network = self.backend.asarray(entry.words)
            kernels = self.kernels(program.dtype)
            kernels.launch_resident(network, 1, RESIDENT_THREADS, entry.shared_bytes)()
        self.copy_out()

    def run(self, plan: StepPlan, n_steps: int) -> int:
        if id(plan) not in self._entries:
            linked = [self.linked(plan.begin), self.with_advance(plan.batch, plan)]
            linked += [] if plan.last is None else [self.with_advance(plan.last, plan)]
            self._entries[id(plan)] = (plan, self._entry(linked, plan.steps))
        control, rates = self._host["control"], self._host["rates"][:n_steps]
        self.set_places(plan.batch.rows)
        kernels = self.kernels(plan.batch.dtype)
        with self.backend.active():
            self._seat.run(self._entries[id(plan)][1], kernels, n_steps, control, rates)
        return int(control[SLOT])

    def losses(self, count: int) -> np.ndarray:
        return self._seat.losses(count)

    def _entry(self, programs: Sequence[Linked | None], steps: int, activations: int = 0) -> Entry:
        """What begins an epoch, the step, and the short one, as far as they are there.

        Args:
            activations: flags of the intermediate tensors, of which a user sets or reads some.
        """
        linked = [program for program in programs if program is not None]
        tables = [None if program is None else self.backend.asarray(program.rows) for program in programs]
        rows_bytes = sum(program.rows.nbytes for program in linked)
        stages, end = self._stages(self._candidates(linked, activations), aligned(rows_bytes))
        placed = self.backend.asarray(stages)
        places = [(0, 0) if table is None else (address(table), len(table)) for table in tables]
        places += [(0, 0)] * (3 - len(places))
        control = address(self.memory.arrays["control"])
        words = [*(n for place in places for n in place), control, address(placed), len(stages), steps, 0]
        return Entry(np.array(words, dtype=np.int64), end, [tables, placed, linked])

    def _stages(self, candidates: Iterable[tuple[Any, int]], first: int) -> tuple[np.ndarray, int]:
        """What lies in shared memory, (stages, 4) int64, and where that ends; what does not fit stays outside."""
        limit = self.device.shared_bytes - STATIC_SHARED
        if first > limit:
            raise ValueError(
                f"a program of {first} bytes does not fit the {limit} of shared memory; use the graph executor"
            )
        stages, end = [], first
        for array, flags in candidates:
            nbytes = array.nbytes
            if nbytes and address(array) % 16 == 0 and end + aligned(nbytes) <= limit:
                stages.append((address(array), nbytes, end, flags))
                end += aligned(nbytes)
        return np.array(stages, dtype=np.int64).reshape(-1, 4), end

    def _candidates(self, linked: Sequence[Linked], activations: int) -> Iterable[tuple[Any, int]]:
        """Memory in the order in which it gains from being near."""
        arrays, both = self.memory.arrays, COPY_IN | COPY_OUT
        yield arrays["control"], both
        for program in linked:
            yield program.scalars, COPY_IN
            yield program.scratch, 0
        yield max((p.activations.memory for p in linked), key=lambda memory: memory.nbytes), activations
        for role in ("parameters", "gradients", "state"):
            yield self.memory.arenas[role].memory, both
        for role, arena in self.memory.arenas.items():
            if role.startswith("slot."):
                yield arena.memory, both
        for name in ("index", "rows", "X", "y", "weight"):
            if name in arrays and arrays[name].nbytes <= SMALL_ARRAY:
                yield arrays[name], both if name == "index" else COPY_IN
