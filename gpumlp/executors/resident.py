"""The resident executor: one kernel walks the linked program for a whole block of steps, one thread block a network.

Weights, gradients and activations lie in the shared memory of a multiprocessor meanwhile, as far as they fit. One
network uses one multiprocessor, or half of it; a `Gang` lets hundreds of them share a launch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import aligned
from ..backend import Backend, address
from ..kernels import SLOT
from ..kernels.cuda import (
    COPY_IN,
    COPY_OUT,
    MAX_SCALARS,
    NEIGHBOUR_THREADS,
    RESIDENT_THREADS,
    SCRATCH_BYTES,
)
from ..kernels.cuda.device import Kernels
from ..kernels.layout import OPERAND_WIDTH, OPERANDS, ROW_WIDTH, SCALARS, SCRATCH
from ..program import RING, Memory, Program
from .device import CONTROL, DeviceExecutor, Linked
from .gang import WORDS, Entry, Seat, seats_on
from .lowering import Rewrite, fuse_bias_activation, fuse_gradient_bias, read_full_batch_in_place
from .narrow import fuse_narrow_gradients, fuse_narrow_products
from .patterns import Movable, Span, Walk, overlap
from .products import by_own_kernel, fuse_epilogues
from .tailoring import tailor_for
from .unfolding import advance, encode_steps, scratch_bytes

if TYPE_CHECKING:
    from . import StepPlan

DRIVER_SHARED = 1024
"""Bytes of a multiprocessor's shared memory that the driver takes for each block."""

STATIC_SHARED = SCRATCH_BYTES + DRIVER_SHARED
"""Bytes of shared memory that the operations themselves take, and the driver's part."""

SMALL_ARRAY = 16 * 1024
"""Bytes up to which rows of data are worth a place in shared memory."""

SCALARS_AT, SCRATCH_AT = 1 << 61, 1 << 62
"""Addresses that no memory has, for pieces that are made when rows are put to their place."""

ADDRESSES_OF_ROWS = np.isin(
    np.arange(ROW_WIDTH), [SCALARS, SCRATCH, *range(OPERANDS, ROW_WIDTH, OPERAND_WIDTH)]
)
ADDRESSES_OF_STAGES = np.arange(4) == 0

Candidate = tuple[Span, int]
"""Memory that may lie in shared memory, and flags of what is copied of it: see network.cuh."""


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
        self._seat = seat or seats_on(backend, 1, memory.arrays["ring"][None])[0]
        super().__init__(backend, memory, workers, precision, self._seat.arrays)
        if self._seat.crew.members > 1:
            self.first_block = RING  # the gang ends it
        self._entries: dict[int, tuple[StepPlan, Entry]] = {}
        self._lowered: dict[int, tuple[Program, Program]] = {}

    def rewrites(self, program: Program) -> tuple[Rewrite, ...]:
        # in float64, which is for checking, narrow products want more registers than the kernel leaves them
        narrow = (partial(fuse_narrow_products, left=("relu",)), fuse_narrow_gradients)
        return (
            *(read_full_batch_in_place, *(narrow if program.dtype == "float32" else ())),
            *(fuse_epilogues(by_own_kernel), fuse_bias_activation, fuse_gradient_bias),
        )

    def _most_blocks(self) -> int:
        return 1

    def kernels(self, dtype: str) -> Kernels:
        return self.device.kernels(dtype, operations=(), walked=self._alone, large=self._large)

    # --- linking -----------------------------------------------------------------------------------------------

    def prepare(self, *programs: Program, on_compile: Callable[[], None] | None = None) -> None:
        assert not self._lowered, "all programs are prepared at once"
        self._spans = [_span(piece) for piece in self._pieces()]
        self._pattern = self._seat.crew.patterns.find(self._layout(), programs, self._lower)
        pairs = zip(programs, self._pattern.lowered, strict=True)
        self._lowered = {id(source): (source, program) for source, program in pairs}
        self._activations = self.backend.allocate(self._pattern.activation_bytes)
        self._spans.append(_span(self._activations))

    def linked(self, program: Program) -> Linked:
        """A program by itself, at its first use: networks that are like another one need none."""
        if id(program) not in self._linked:
            source, lowered = self._lowered[id(program)]
            self._linked[id(program)] = source, self._link(lowered, self._activations)
        return self._linked[id(program)][1]

    def _layout(self) -> Hashable:
        """What tells whether rows for another network's memory are right for this one's."""
        arenas, arrays, spans = self.memory.arenas, self.memory.arrays, self._spans
        if overlap(list(dict.fromkeys(spans))):  # an address would be within two pieces: like no other
            return object()
        return (
            tuple(map(spans.index, spans)),  # which are one piece: data that are their own targets
            tuple((role, arena.layout) for role, arena in arenas.items()),
            tuple((name, array.shape, array.dtype.str) for name, array in arrays.items()),
            tuple(start % 16 for start, _ in spans),
        )

    def _pieces(self) -> list[Any]:
        """All memory that operands may lie in, but for the intermediate tensors."""
        return [*(arena.memory for arena in self.memory.arenas.values()), *self.memory.arrays.values()]

    def _entry(self, programs: tuple[Program | None, ...], plan: StepPlan | None = None) -> Entry:
        """The network as the kernel takes it: stages, rows and scalars in one piece of memory, and working memory.

        Args:
            programs: what begins an epoch, the step, and the short one, as far as they are there.
            plan: of the training whose programs they are; None for one that is run by itself.
        """
        places = {id(source): k for k, (source, _) in enumerate(self._lowered.values())}
        steps = 1 if plan is None else plan.steps
        key = (*(None if p is None else places[id(p)] for p in programs), steps)
        walk = self._pattern.walk(key, lambda: self._write(programs, plan))
        memory = self.backend.allocate(walk.nbytes)
        start = address(memory)
        pieces = [first for first, _ in self._spans]
        image = walk.image.at(np.array([0, *pieces, start + walk.scalars_at, start + walk.scratch_at]))
        self.device.copy_in(memory[: image.nbytes].view(np.int64), image)
        words, first = np.zeros(WORDS, np.int64), start
        for k, count in enumerate(walk.counts):
            words[2 * k : 2 * k + 2] = first, count
            first += 8 * ROW_WIDTH * count
        control = address(self.memory.arrays["control"])
        words[6:11] = control, start + walk.stages_at, walk.stages, steps, start + walk.pieces_at
        return Entry(words, walk.shared_bytes, walk.threads, walk.kernels, walk.tailor, [memory])

    def _write(self, programs: tuple[Program | None, ...], plan: StepPlan | None) -> Walk:
        """Write what all networks like this one walk."""
        # one module has the operations of all
        everything = [self.linked(source) for source, _ in self._lowered.values()]
        steps = [[] if program is None else list(self.linked(program).steps) for program in programs]
        if plan is not None:
            none = everything[0].activations
            moves_on = advance(CONTROL, self.memory, none, plan.batch.rows, plan.steps)
            steps[1:] = [[*program, moves_on] for program in steps[1:]]
        at_scalars = accumulate((8 * MAX_SCALARS * len(program) for program in steps), initial=SCALARS_AT)
        written = [encode_steps(p, at, SCRATCH_AT) for p, at in zip(steps, at_scalars, strict=False)]
        rows, scalars = (np.concatenate(parts) for parts in zip(*written, strict=True))
        scratch = max(map(scratch_bytes, steps))  # the programs take turns
        spans = [*self._spans, (SCALARS_AT, scalars.nbytes), (SCRATCH_AT, scratch)]
        # a user sets or reads intermediate tensors of a program that runs by itself
        activations = 0 if plan is not None else COPY_IN | COPY_OUT
        needed = self._needed(spans[-2:], activations)
        threads, limit = self._room(aligned(rows.nbytes), needed)
        stages, end = _stages([*needed, *self._wanted()], aligned(rows.nbytes), limit)
        pieces = np.array([0, *(start if nbytes else 0 for start, nbytes in spans)])
        words, are_addresses, places = _one_behind_the_other(
            *((rows, ADDRESSES_OF_ROWS), (stages, ADDRESSES_OF_STAGES)),
            *((scalars.view(np.int64), False), (pieces, True)),
        )
        _, stages_at, scalars_at, pieces_at, scratch_at = places
        dtype = everything[0].program.dtype
        walk = Walk(
            image=Movable.of(words, are_addresses, spans),
            counts=tuple(map(len, steps)),
            stages=len(stages),
            pieces=len(pieces),
            stages_at=stages_at,
            scalars_at=scalars_at,
            pieces_at=pieces_at,
            scratch_at=scratch_at,
            nbytes=scratch_at + scratch,
            shared_bytes=end,
            threads=threads,
            kernels=self.kernels(dtype),
        )
        # float64 is for checking
        tailors = plan is not None and dtype == "float32"
        return replace(walk, tailor=tailor_for(walk, self.device, dtype, self._large)) if tailors else walk

    def _room(self, rows_bytes: int, needed: Sequence[Candidate]) -> tuple[int, int]:
        """Return the threads of the network's block, and the bytes of shared memory that it may take.

        A step waits more than it computes: on an H200 a small network alone did 17,500 steps/s with 128 threads, and
        18,900 with 256. So one whose needed memory fits half of a multiprocessor has half of the threads, and two of
        many run beside each other. Threads decide how sums are cut: they must not depend on who trains beside it.

        Args:
            rows_bytes: of the rows.
            needed: see `_needed`.

        Raises:
            ValueError: the rows do not fit.
        """
        whole = self.device.shared_bytes - STATIC_SHARED
        if rows_bytes > whole:
            raise ValueError(
                f"a program of {rows_bytes} bytes does not fit the {whole} of shared memory; use the graph executor"
            )
        half = (self.device.shared_bytes + DRIVER_SHARED) // 2 - STATIC_SHARED
        if rows_bytes + sum(aligned(nbytes) for (_, nbytes), _ in needed) > half:
            return RESIDENT_THREADS, whole
        crowded = self._seat.crew.members > self.device.multiprocessors
        shares = crowded and NEIGHBOUR_THREADS < RESIDENT_THREADS  # `bench.gpu_check` measures without
        return NEIGHBOUR_THREADS, half if shares else whole

    def _needed(self, made: list[Span], activations: int) -> list[Candidate]:
        """Memory that a network must have near to be quick; the others come behind.

        Args:
            made: the scalars and the working memory.
            activations: flags of the intermediate tensors.
        """
        both = COPY_IN | COPY_OUT
        return [
            (_span(self.memory.arrays["control"]), both),
            *zip(made, (COPY_IN, 0), strict=True),
            (_span(self._activations), activations),
            (_span(self.memory.arenas["parameters"].memory), both),
        ]

    def _wanted(self) -> Iterable[Candidate]:
        """Other memory in the order in which it gains from being near."""
        arrays, both = self.memory.arrays, COPY_IN | COPY_OUT
        for role in ("gradients", "state"):
            yield _span(self.memory.arenas[role].memory), both
        for role, arena in self.memory.arenas.items():
            if role.startswith("slot."):
                yield _span(arena.memory), both
        for name in ("index", "rows", "X", "y", "weight"):
            if name in arrays and arrays[name].nbytes <= SMALL_ARRAY:
                yield _span(arrays[name]), both if name == "index" else COPY_IN

    # --- running -----------------------------------------------------------------------------------------------

    def execute(self, program: Program) -> None:
        """Run a program as a step is run, by itself; not once a step was bad."""
        entry = self._entry((None, program))
        entry.words[-1] = 1
        self.copy_in()
        with self.backend.active():
            network = self.backend.asarray(entry.words)
            entry.kernels.launch_resident(network, 1, entry.threads, entry.shared_bytes)()
        self.copy_out()

    def run(self, plan: StepPlan, n_steps: int) -> int:
        if id(plan) not in self._entries:
            self._entries[id(plan)] = (plan, self._entry(plan.programs, plan))
        control, rates = self._host["control"], self._host["rates"][:n_steps]
        self.set_places(plan.batch.rows)
        with self.backend.active():
            self._seat.run(self._entries[id(plan)][1], n_steps, control, rates)
        return int(control[SLOT])

    def losses(self, count: int) -> np.ndarray:
        return self._seat.losses(count)


def _stages(candidates: Iterable[Candidate], first: int, limit: int) -> tuple[np.ndarray, int]:
    """What lies in shared memory, (stages, 4) int64, and where that ends; what does not fit stays outside."""
    stages, end = [], first
    for (start, nbytes), flags in candidates:
        if nbytes and start % 16 == 0 and end + aligned(nbytes) <= limit:
            stages.append((start, nbytes, end, flags))
            end += aligned(nbytes)
    return np.array(stages, dtype=np.int64).reshape(-1, 4), end


def _one_behind_the_other(*parts: tuple[np.ndarray, Any]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return parts as they lie in memory, each at an aligned place.

    Args:
        parts: words, and which of them are addresses, broadcast to their shape.

    Returns:
        all words, (n,); which of them are addresses, (n,); the bytes before each part, and last before what comes
        behind them.
    """
    places = list(accumulate((aligned(words.nbytes) for words, _ in parts), initial=0))
    whole, are_addresses = np.zeros(places[-1] // 8, np.int64), np.zeros(places[-1] // 8, bool)
    for place, (words, which) in zip(places, parts, strict=False):
        span = slice(place // 8, place // 8 + words.size)
        whole[span], are_addresses[span] = words.ravel(), np.broadcast_to(which, words.shape).ravel()
    return whole, are_addresses, places


def _span(array: Any) -> Span:
    return address(array), array.nbytes
