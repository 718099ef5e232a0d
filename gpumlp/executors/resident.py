"""The resident executor: one kernel walks the linked program for a whole block of steps, one thread block a network.

Weights, gradients and activations lie in the shared memory of a multiprocessor meanwhile, as far as they fit. One
network uses one multiprocessor; a `Gang` lets hundreds of them share a launch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import Arena, aligned
from ..backend import Backend, address
from ..kernels import POSITION, SLOT, START
from ..kernels.cuda import COPY_IN, COPY_OUT, SCRATCH_BYTES
from ..kernels.layout import OPERAND_WIDTH, OPERANDS, ROW_WIDTH, SCALARS, SCRATCH
from ..program import RING, Memory, Program, activation_bytes
from .device import CONTROL, DeviceExecutor, Linked
from .gang import WORDS, Entry, Gang, Seat
from .lowering import Rewrite, fuse_bias_activation, fuse_gradient_bias, lower, read_full_batch_in_place
from .patterns import Movable, Span, Walk, overlap
from .unfolding import advance, encode_steps, scratch_bytes, unfold

if TYPE_CHECKING:
    from . import StepPlan

STATIC_SHARED = SCRATCH_BYTES + 1024
"""Bytes of shared memory that the operations themselves take, and the driver's part."""

SMALL_ARRAY = 16 * 1024
"""Bytes up to which rows of data are worth a place in shared memory."""

SCALARS_AT, SCRATCH_AT = 1 << 61, 1 << 62
"""Addresses that no memory has, for pieces that are made when rows are put to their place."""

ADDRESSES_OF_ROWS = np.isin(
    np.arange(ROW_WIDTH), [SCALARS, SCRATCH, *range(OPERANDS, ROW_WIDTH, OPERAND_WIDTH)]
)
ADDRESSES_OF_STAGES = np.arange(4) == 0


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
        self._lowered: dict[int, tuple[Program, Program]] = {}

    def rewrites(self, program: Program) -> tuple[Rewrite, ...]:
        return (read_full_batch_in_place, fuse_bias_activation, fuse_gradient_bias)

    def _most_blocks(self) -> int:
        return 1

    # --- linking -----------------------------------------------------------------------------------------------

    def prepare(self, *programs: Program, on_compile: Callable[[], None] | None = None) -> None:
        def lowered(program: Program) -> Program:
            return lower(program, self.rewrites(program))

        self._pattern = self._seat.gang.patterns.find(self._layout(), programs, lowered)
        pairs = zip(programs, self._pattern.lowered, strict=True)
        self._lowered = {id(source): (source, program) for source, program in pairs}
        self._activations = self.backend.allocate(
            max(map(activation_bytes, self._pattern.lowered), default=0)
        )

    def _layout(self) -> Hashable:
        """What tells whether rows for another network's memory are right for this one's."""
        arrays = self.memory.arrays
        if overlap(_spans(self._pieces())):  # an address would be within two pieces: like no other
            return object()
        return (
            tuple((role, *arena.segments.values()) for role, arena in self.memory.arenas.items()),
            tuple((name, a.shape, a.dtype, address(a) % 16) for name, a in arrays.items()),
        )

    def _pieces(self) -> dict[str, Any]:
        """All memory that operands may lie in, but for the intermediate tensors."""
        return {**{role: arena.memory for role, arena in self.memory.arenas.items()}, **self.memory.arrays}

    def linked(self, program: Program) -> Linked:
        """A program by itself, at its first use: a training has none."""
        if id(program) not in self._linked:
            source, lowered = self._lowered[id(program)]
            activations = Arena(self.backend, lowered.buffers.values(), self._activations)
            steps = unfold(lowered, self.memory, activations, self._most_blocks(), self.uses_library)
            self._operations |= {step.operation for step in steps}
            self._linked[id(program)] = source, self._link(lowered, steps, activations)
        return self._linked[id(program)][1]

    def _entry(self, plan: StepPlan) -> Entry:
        """The network as the kernel takes it: its rows, stages and scalars in one piece of memory."""
        walk = self._pattern.walk(plan.steps, lambda: self._write(plan))
        rows, stages = walk.rows.words, walk.stages.words
        nbytes = [rows.nbytes, stages.nbytes, walk.scalars.nbytes]
        memory = self.backend.allocate(aligned(sum(nbytes)) + walk.scratch_bytes)
        at = address(memory)
        places = [at, at + nbytes[0], at + nbytes[0] + nbytes[1], at + aligned(sum(nbytes))]
        pieces = [*self._pieces().values(), self._activations]
        starts = np.array([0, *map(address, pieces), *places[2:]])
        parts = [walk.rows.at(starts), walk.stages.at(starts), walk.scalars.view(np.int64)]
        self.device.copy_in(
            memory[: sum(nbytes)].view(np.int64), np.concatenate([part.ravel() for part in parts])
        )
        words = np.zeros(WORDS, np.int64)
        first = 0
        for k, count in enumerate(walk.counts):
            words[2 * k : 2 * k + 2] = places[0] + first * rows[0].nbytes, count
            first += count
        words[6:] = address(self.memory.arrays["control"]), places[1], len(stages), plan.steps, 0
        return Entry(words, walk.shared_bytes, walk.kernels, [memory])

    def _write(self, plan: StepPlan) -> Walk:
        """Write what all networks like this one walk."""
        linked = [self.linked(program) for program in plan.programs]
        activations = linked[0].activations
        moves_on = advance(CONTROL, self.memory, activations, plan.batch.rows, plan.steps)
        programs = [linked[0].steps, *([*program.steps, moves_on] for program in linked[1:])]
        steps = [step for program in programs for step in program]
        rows, scalars = encode_steps(steps, SCALARS_AT, SCRATCH_AT)
        spans = _spans({**self._pieces(), "activations": self._activations})
        spans += [(SCALARS_AT, scalars.nbytes), (SCRATCH_AT, scratch_bytes(steps))]
        stages, end = self._stages(aligned(rows.nbytes))
        return Walk(
            Movable.of(rows, ADDRESSES_OF_ROWS, spans),
            tuple(map(len, programs)),
            Movable.of(stages, ADDRESSES_OF_STAGES, spans),
            scalars,
            scratch_bytes(steps),
            end,
            self.kernels(plan.batch.dtype),
        )

    def _stages(self, first: int) -> tuple[np.ndarray, int]:
        """What lies in shared memory, (stages, 4) int64, and where that ends; what does not fit stays outside."""
        limit = self.device.shared_bytes - STATIC_SHARED
        if first > limit:
            raise ValueError(
                f"a program of {first} bytes does not fit the {limit} of shared memory; use the graph executor"
            )
        stages, end = [], first
        for array, flags in self._candidates():
            nbytes = array.nbytes
            if nbytes and address(array) % 16 == 0 and end + aligned(nbytes) <= limit:
                stages.append((address(array), nbytes, end, flags))
                end += aligned(nbytes)
        return np.array(stages, dtype=np.int64).reshape(-1, 4), end

    def _candidates(self) -> Iterable[tuple[Any, int]]:
        """Memory in the order in which it gains from being near."""
        arrays, both = self.memory.arrays, COPY_IN | COPY_OUT
        yield arrays["control"], both
        yield self._activations, 0
        for role in ("parameters", "gradients", "state"):
            yield self.memory.arenas[role].memory, both
        for role, arena in self.memory.arenas.items():
            if role.startswith("slot."):
                yield arena.memory, both
        for name in ("index", "rows", "X", "y", "weight"):
            if name in arrays and arrays[name].nbytes <= SMALL_ARRAY:
                yield arrays[name], both if name == "index" else COPY_IN

    # --- running -----------------------------------------------------------------------------------------------

    def execute(self, program: Program) -> None:
        for source, _ in self._lowered.values():  # one module has the operations of all
            self.linked(source)
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
        with self.backend.active():
            self._seat.run(self._entries[id(plan)][1], n_steps, control, rates)
        return int(control[SLOT])

    def losses(self, count: int) -> np.ndarray:
        return self._seat.losses(count)


def _spans(pieces: Mapping[str, Any]) -> list[Span]:
    return [(address(array), array.nbytes) for array in pieces.values()]
