"""Training on a set that does not fit a GPU: a few steps' rows at a time, copied while the steps before them run.

Two buffers of the device take turns. While the steps of one run, a thread gathers the next rows in the order of the
epoch into page-locked memory and copies them into the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import Backend
from ..kernels import EPOCH, POSITION, SEED
from ..kernels.philox import permutation
from ..program import Memory, Operand, Program
from .graph import GraphExecutor

if TYPE_CHECKING:
    from . import StepPlan

BUFFERS = 2


class StreamingExecutor:
    """A graph executor whose data come in chunks of a few steps.

    Args:
        backend: the GPU.
        memory: of a training, without the rows.
        data: what to stream, on the host, by the names of the operands: "X", "y" and perhaps "weight".
        rows: of the set to train on, int64.
        chunk_steps: full batches that a buffer holds.
        precision: of products.
    """

    name = "graph"
    block_seconds = 0.05
    longest_run = math.inf
    first_block = 1
    epoch_sums: Any = None

    def __init__(
        self,
        backend: Backend,
        memory: Memory,
        data: Mapping[str, np.ndarray],
        rows: np.ndarray,
        chunk_steps: int,
        precision: str = "float32",
    ) -> None:
        assert backend.device is not None
        self._device, self._data, self._rows = backend.device, data, rows
        self._shuffle, self._chunk_steps = False, chunk_steps
        self._control = memory.arrays["control"]
        self._inner = GraphExecutor(backend, memory, precision=precision)
        self._backend = backend
        self._plans: list[StepPlan] = []
        self._pinned: list[dict[str, np.ndarray]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpumlp-stream")
        self._loading: dict[tuple[int, int], Future[None]] = {}
        self._order: tuple[int, np.ndarray] | None = None

    def prepare_plan(self, plan: StepPlan, on_compile: Callable[[], None] | None = None) -> None:
        """Link the programs of a training once for each buffer."""
        self._shuffle = any(call.kernel == "shuffle" for call in plan.begin.calls)
        arrays = self._inner.memory.arrays
        chunk_rows = self._chunk_steps * plan.batch.rows
        arrays["index"] = self._backend.asarray(np.arange(chunk_rows))
        for k in range(BUFFERS):
            names = {name: f"{name}.{k}" for name in self._data}
            self._pinned.append({})
            for name, array in self._data.items():
                shape = chunk_rows, *array.shape[1:]
                nbytes = int(np.prod(shape)) * array.itemsize
                arrays[names[name]] = self._backend.allocate(nbytes)[:nbytes].view(array.dtype).reshape(shape)
                self._pinned[k][name] = self._device.pinned(shape, array.dtype.name)
            batch = _renamed(plan.batch, names, chunk_rows)
            last = None if plan.last is None else _renamed(plan.last, names, chunk_rows)
            nothing = replace(plan.begin, calls=())
            self._plans.append(replace(plan, begin=nothing, batch=batch, last=last))
        self._inner.prepare(*(program for p in self._plans for program in p.programs), on_compile=on_compile)
        self._device.synchronize()  # copies go beside the stream in which the buffers were just zeroed

    def prepare(self, *programs: Program, on_compile: Callable[[], None] | None = None) -> None:
        """Link programs that read no streamed rows."""
        self._inner.prepare(*programs, on_compile=on_compile)

    def execute(self, program: Program) -> None:
        """Run a program that reads no streamed rows; the beginning of an epoch is none: its order is the host's."""
        if all(call.kernel not in ("shuffle", "copy_rows") for call in program.calls):
            self._inner.execute(program)

    def view(self, program: Program, operand: Operand) -> Any:
        return self._inner.view(program, operand)

    def run(self, plan: StepPlan, n_steps: int) -> int:
        done = 0
        while done < n_steps:
            position, epoch = int(self._control[POSITION]), int(self._control[EPOCH])
            chunk = position // self._chunk_steps
            first, last = self._chunk_steps * chunk, min(self._chunk_steps * (chunk + 1), plan.steps)
            buffer = self._ready(plan, epoch, chunk)
            follower = (epoch, chunk + 1) if last < plan.steps else (epoch + 1, 0)
            self._load(plan, *follower)
            n = min(n_steps - done, last - position)
            good = self._inner.run(self._plans[buffer], n, first_slot=done, first_position=first)
            done += good
            if good < n:
                break
        return done

    def losses(self, count: int) -> np.ndarray:
        return self._inner.losses(count)

    def replayable(self, plan: StepPlan) -> tuple[Memory, StepPlan]:
        """Return the memory and the programs with which the present step can be repeated."""
        chunk = int(self._control[POSITION]) // self._chunk_steps
        buffer = self._buffer(plan, int(self._control[EPOCH]), chunk)
        memory = self._inner.memory
        return Memory(memory.arenas, {**memory.arrays, "control": self._control}), self._plans[buffer]

    # --- loading -------------------------------------------------------------------------------------------------

    def _buffer(self, plan: StepPlan, epoch: int, chunk: int) -> int:
        """Chunks take turns, over the ends of epochs too."""
        chunks = -(-plan.steps // self._chunk_steps)
        return (epoch * chunks + chunk) % BUFFERS

    def _ready(self, plan: StepPlan, epoch: int, chunk: int) -> int:
        self._load(plan, epoch, chunk)
        self._loading[epoch, chunk].result()
        return self._buffer(plan, epoch, chunk)

    def _load(self, plan: StepPlan, epoch: int, chunk: int) -> None:
        """Have a chunk loaded, unless it is there or on its way."""
        key = epoch, chunk
        if key in self._loading:
            return
        buffer = self._buffer(plan, epoch, chunk)
        # what lay in that buffer goes
        self._loading = {k: f for k, f in self._loading.items() if self._buffer(plan, *k) != buffer}
        self._loading[key] = self._thread.submit(self._copy, plan, epoch, chunk, buffer)

    def _copy(self, plan: StepPlan, epoch: int, chunk: int, buffer: int) -> None:
        size = self._chunk_steps * plan.batch.rows
        rows = self._order_of(epoch)[chunk * size : (chunk + 1) * size]
        waits = []
        for name, array in self._data.items():
            pinned = self._pinned[buffer][name][: len(rows)]
            np.take(array, rows, axis=0, out=pinned, mode="clip")  # "raise" would copy twice
            target = self._inner.memory.arrays[f"{name}.{buffer}"][: len(rows)]
            waits.append(self._device.stage(target, pinned))
        for wait in waits:  # in this thread: neither end of a copy may be freed or reused under it
            wait()

    def _order_of(self, epoch: int) -> np.ndarray:
        """The rows in the order of an epoch."""
        if not self._shuffle:
            return self._rows
        if self._order is None or self._order[0] != epoch:
            order = permutation(np, len(self._rows), int(self._control[SEED]), epoch)
            self._order = epoch, self._rows[order]
        return self._order[1]


def _renamed(program: Program, names: Mapping[str, str], rows: int) -> Program:
    """The program over a buffer in place of the whole set."""

    def swap(operand: Operand | None) -> Operand | None:
        if operand is not None and operand.arena in names:
            return replace(operand, arena=names[operand.arena], shape=(rows, *operand.shape[1:]))
        if operand is not None and operand.arena == "index":
            return replace(operand, shape=(rows,))
        return operand

    calls = tuple(replace(call, operands=tuple(map(swap, call.operands))) for call in program.calls)
    return replace(program, calls=calls)
