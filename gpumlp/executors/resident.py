"""The resident executor: one kernel walks the linked program for a whole block of steps, one thread block a network.

Weights, gradients and activations lie in the shared memory of a multiprocessor meanwhile, as far as they fit. One
network uses one multiprocessor; `Gang` lets hundreds of them, each trained by a thread of its own, share a launch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import aligned
from ..backend import Backend, address
from ..kernels.cuda import COPY_IN, COPY_OUT, RESIDENT_THREADS, SCRATCH_BYTES
from ..kernels.cuda.device import Device, Kernels
from ..program import Memory, Program
from .device import DeviceExecutor, Linked
from .lowering import Rewrite, fuse_bias_activation, fuse_gradient_bias, read_full_batch_in_place
from .narrow import fuse_narrow_gradients, fuse_narrow_products
from .products import by_own_kernel, fuse_epilogues

if TYPE_CHECKING:
    from . import StepPlan

STATIC_SHARED = SCRATCH_BYTES + 1024
"""Bytes of shared memory that the operations themselves take, and the driver's part."""

LAUNCH_SECONDS = 0.04
"""Aimed length of a launch, so that Ctrl-C is answered between two."""

TOGETHER_SECONDS, LONGEST_BLOCK = 0.5, 2.0
"""Work of the GPU that a block of many networks is to be, since Python's part of a block is long then; and what it may
take with that part."""

SMALL_ARRAY = 16 * 1024
"""Bytes up to which rows of data are worth a place in shared memory."""


@dataclass
class Entry:
    """A network as the kernel takes it (`Network` in walker.cuh), and what it points at."""

    words: np.ndarray
    shared_bytes: int
    keep: list[Any]


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
        super().__init__(backend, memory, workers, precision)
        self._seat = seat or Gang(self.device).seat()
        if self._seat.gang.members > 1:
            self.block_seconds = TOGETHER_SECONDS
        self._entries: dict[int, tuple[StepPlan, Entry]] = {}

    def rewrites(self, program: Program) -> tuple[Rewrite, ...]:
        # in float64, which is for checking, narrow products want more registers than the kernel leaves them
        narrow = (partial(fuse_narrow_products, left=()), fuse_narrow_gradients)
        return (
            *(read_full_batch_in_place, *(narrow if program.dtype == "float32" else ())),
            *(fuse_epilogues(by_own_kernel), fuse_bias_activation, fuse_gradient_bias),
        )

    def _most_blocks(self) -> int:
        return 1

    def kernels(self, dtype: str) -> Kernels:
        return self.device.kernels(dtype, frozenset(), self._alone, frozenset(), self._large)

    def execute(self, program: Program) -> None:
        """Run a program as a step is run, by itself; not once a step was bad."""
        self.copy_in()
        with self.backend.active():
            alone = Gang(self.device).seat()
            alone.gang.run(self._entry([None, self.linked(program)], 1), self.kernels(program.dtype), 1)
        self.copy_out()

    def run(self, plan: StepPlan, n_steps: int) -> int:
        if id(plan) not in self._entries:
            linked = [self.linked(plan.begin), self.with_advance(plan.batch, plan)]
            linked += [] if plan.last is None else [self.with_advance(plan.last, plan)]
            self._entries[id(plan)] = (plan, self._entry(linked, plan.steps))
        start = time.perf_counter()
        self.copy_in(n_steps, plan.batch.rows)
        kernels = self.kernels(plan.batch.dtype)
        with self.backend.active():
            worked = self._seat.gang.run(self._entries[id(plan)][1], kernels, n_steps)
        done = self.copy_out()
        if self._seat.gang.members > 1:
            # most of the time may be the others' Python: blocks by the clock would be short, and so all the more of it
            waited = (time.perf_counter() - start) / max(worked, 1e-9)
            self.block_seconds = min(LONGEST_BLOCK, TOGETHER_SECONDS * waited)
        return done

    def _entry(self, programs: Sequence[Linked | None], steps: int) -> Entry:
        """What begins an epoch, the step, and the short one, as far as they are there."""
        linked = [program for program in programs if program is not None]
        tables = [None if program is None else self.backend.asarray(program.rows) for program in programs]
        rows_bytes = sum(program.rows.nbytes for program in linked)
        stages, end = self._stages(linked, aligned(rows_bytes))
        placed = self.backend.asarray(stages)
        places = [(0, 0) if table is None else (address(table), len(table)) for table in tables]
        places += [(0, 0)] * (3 - len(places))
        control = address(self.memory.arrays["control"])
        words = [*(n for place in places for n in place), control, address(placed), len(stages), steps, 0]
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
        for program in linked:
            yield program.scalars, COPY_IN
            yield program.scratch, 0
        yield max((p.activations.memory for p in linked), key=lambda memory: memory.nbytes), 0
        for role in ("parameters", "gradients", "state"):
            yield self.memory.arenas[role].memory, both
        for role, arena in self.memory.arenas.items():
            if role.startswith("slot."):
                yield arena.memory, both
        for name in ("index", "rows", "X", "y", "weight"):
            if name in arrays and arrays[name].nbytes <= SMALL_ARRAY:
                yield arrays[name], both if name == "index" else COPY_IN


@dataclass
class _Request:
    entry: Entry
    kernels: Kernels
    n_steps: int
    seconds: float = 0.0
    error: BaseException | None = None
    done: bool = field(default=False)


class Gang:
    """Networks whose blocks of steps go into one launch: it happens once all that still train have asked for theirs.

    Args:
        device: that all of them are on.

    Attributes:
        members: how many networks there are, those too that have left: what depends on their number, such as the
            executor of each, must not depend on how far the others are.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.members = 0
        self._changed = threading.Condition()
        self._seats: set[Seat] = set()
        self._waiting: list[_Request] = []
        self._steps_a_launch = 64

    def seat(self) -> Seat:
        """Return a place for one more network, whose steps all others wait for until it leaves."""
        seat = Seat(self)
        with self._changed:
            self._seats.add(seat)
            self.members += 1
        return seat

    def leave(self, seat: Seat) -> None:
        """Go on without a network; once is enough."""
        with self._changed:
            self._seats.discard(seat)
            self._launch_if_complete()

    def run(self, entry: Entry, kernels: Kernels, n_steps: int) -> float:
        """Do `n_steps` steps of a network, beside those of the others; return how long the GPU worked on them all."""
        request = _Request(entry, kernels, n_steps)
        with self._changed:
            self._waiting.append(request)
            self._launch_if_complete()
            while not request.done:
                self._changed.wait()
        if request.error is not None:
            raise request.error
        return request.seconds

    def _launch_if_complete(self) -> None:
        """Launch once nobody is missing; the last to come does it for all."""
        if not self._waiting or len(self._waiting) < len(self._seats):
            return
        requests, self._waiting = self._waiting, []
        error: BaseException | None = None
        seconds = 0.0
        try:
            for kernels in {id(r.kernels): r.kernels for r in requests}.values():
                seconds += self._launch([r for r in requests if r.kernels is kernels], kernels)
        except BaseException as raised:  # each of them must hear of it
            error = raised
        for request in requests:
            request.seconds, request.error, request.done = seconds, error, True
        self._changed.notify_all()

    def _launch(self, requests: list[_Request], kernels: Kernels) -> float:
        """Do the steps of all requests; return the seconds that the launches took."""
        words = np.stack([request.entry.words for request in requests])
        left = np.array([request.n_steps for request in requests])
        shared_bytes = max(request.entry.shared_bytes for request in requests)
        networks = self._device.allocate(words.nbytes)[: words.nbytes].view(np.int64).reshape(words.shape)
        launch = kernels.launch_resident(networks, len(requests), RESIDENT_THREADS, shared_bytes)
        total = 0.0
        while left.any():
            words[:, -1] = np.minimum(left, self._steps_a_launch)
            self._device.copy_in(networks, words)
            start = time.perf_counter()
            with self._device.active():  # a seat may be left, and so a launch begin, outside of `run`
                launch()
            self._device.synchronize()
            seconds, steps = time.perf_counter() - start, int(words[:, -1].max())
            left -= words[:, -1]
            total += seconds
            self._steps_a_launch = max(1, min(2 * steps, int(steps * LAUNCH_SECONDS / max(seconds, 1e-9))))
        return total


class Seat:
    """A network's place in a gang."""

    def __init__(self, gang: Gang) -> None:
        self.gang = gang

    def leave(self) -> None:
        """Let the others go on without this network."""
        self.gang.leave(self)
