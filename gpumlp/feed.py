"""What a training reads, on its device: the rows where they lie, uploaded once, or streamed where they do not fit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Backend, address
from .executors import Executor, StepPlan, make_executor
from .program import Memory, activation_bytes
from .rows import Data
from .step import RING

if TYPE_CHECKING:
    from .executors.resident import Seat
    from .trainer import Trainer

Array = Any

CHUNK_BYTES = 256 << 20
"""Rows that are streamed at a time, at most: enough to hide what each copy costs."""

RESERVED = 512 << 20
"""Bytes of a GPU that are left to libraries: code, working memory, graphs."""


_UPLOADING = threading.Lock()
"""Networks that train at the same time begin at the same time, and want the same arrays."""


@dataclass
class Shared:
    """What networks that train at the same time on one GPU share.

    Attributes:
        uploads: arrays of the host by identity, each with its copy on the device.
        seat: of this network in a gang that trains in common launches.
    """

    uploads: dict[int, tuple[Array, Array]] = field(default_factory=dict)
    seat: Seat | None = None

    def upload(self, backend: Backend, array: Array) -> Array:
        """Return the array on the device, copied there once for all; on a GPU aligned to 16 bytes."""
        if id(array) not in self.uploads:
            placed = backend.asarray(array)
            if backend.is_gpu and address(placed) % 16:  # a part of a user's larger array
                with backend.active():
                    placed = placed.copy()
            self.uploads[id(array)] = array, placed
        return self.uploads[id(array)][1]


def connect(
    trainer: Trainer,
    data: Data,
    plan: StepPlan,
    on_compile: Callable[[], None] | None = None,
) -> tuple[Memory, Executor]:
    """Return the memory of a training, its data in place, and the executor that runs `plan` over it.

    Args:
        trainer: whose network, counters and slots take part.
        data: to train on; read where it lies on the CPU, copied to a GPU, or streamed there.
        plan: the programs of an epoch.
        on_compile: see `Executor.prepare`.

    Raises:
        MemoryError: a GPU has too little memory; the message says what would fit.
        ValueError: data that do not fit a GPU, and a training that cannot stream them.
    """
    network, backend = trainer.network, trainer.network.backend
    memory = Memory(
        {**network.arenas(), **trainer.slots},
        {
            "control": trainer.control,
            "rates": np.zeros(RING),
            "ring": backend.asarray(np.zeros((RING, 2))),
        },
    )
    arrays = memory.arrays
    rows = np.arange(len(data.x)) if data.rows is None else np.asarray(data.rows, dtype=np.int64)
    read = {"X": data.x, "y": data.target}
    if data.weight is not None:
        read["weight"] = np.asarray(data.weight, dtype=network.dtype)
    shared = trainer.shared or Shared()
    try:
        with _UPLOADING:
            missing = {name: array for name, array in read.items() if id(array) not in shared.uploads}
            in_place = plan.batch.rows == len(rows) == len(data.x)
            # rows that are read where they lie have a copy in half the bytes
            copies = data.x.nbytes // 2 if trainer.precision == "bf16" and in_place else 0
            streams = _must_stream(backend, missing, plan, copies)
            if not streams:
                arrays |= {name: shared.upload(backend, array) for name, array in read.items()}
        if streams:
            if shared.seat is not None:  # it trains by itself
                shared.seat.leave()
            return memory, _stream(trainer, memory, read, rows, plan, on_compile)
        arrays["rows"] = backend.asarray(rows)
        arrays["index"] = backend.asarray(np.zeros(len(rows), dtype=np.int64))
        executor = make_executor(
            backend, memory, network.has_python, trainer.threads, plan, trainer.precision, shared.seat
        )
        executor.prepare(*plan.programs, on_compile=on_compile)
    except MemoryError as error:
        raise _explained(error, backend, plan) from None
    return memory, executor


def _must_stream(backend: Backend, read: dict[str, Array], plan: StepPlan, copies: int = 0) -> bool:
    """Whether rows of the host do not fit the GPU beside a step, and `copies` bytes made of them."""
    if backend.device is None or any(map(backend.owns, read.values())):
        return False
    room = _room(backend, plan)
    return 0 < room < copies + sum(array.nbytes for array in read.values())


def _room(backend: Backend, plan: StepPlan) -> int:
    """Bytes of the GPU that are free for data."""
    assert backend.device is not None
    free, total = backend.device.memory()
    return free - activation_bytes(plan.batch) - min(RESERVED, total // 16)


def _stream(
    trainer: Trainer,
    memory: Memory,
    read: dict[str, np.ndarray],
    rows: np.ndarray,
    plan: StepPlan,
    on_compile: Callable[[], None] | None,
) -> Executor:
    from .executors.streaming import BUFFERS, StreamingExecutor

    network = trainer.network
    assert network.backend.device is not None
    if network.has_python or not network.backend.device.has_products:
        lacks = "has layers of your own" if network.has_python else "has no nvmath-python to multiply with"
        raise ValueError(
            f"the data do not fit the GPU, and a training that {lacks} cannot stream them; take fewer rows, or "
            'train on device="cpu"'
        )
    batch_bytes = sum(array[:1].nbytes for array in read.values()) * plan.batch.rows
    room = _room(network.backend, plan)
    chunk_steps = max(1, min(room // 2, CHUNK_BYTES) // (BUFFERS * batch_bytes))
    if BUFFERS * batch_bytes > room:
        raise MemoryError(
            f"two batches of {batch_bytes:,} bytes do not fit the {max(room, 0):,} that are left for data"
        )
    executor = StreamingExecutor(
        network.backend, memory, read, rows, min(chunk_steps, plan.steps), trainer.precision
    )
    executor.prepare_plan(plan, on_compile)
    return executor


def _explained(error: MemoryError, backend: Backend, plan: StepPlan) -> MemoryError:
    """Say what would fit."""
    if backend.device is None:
        return error
    a_row = activation_bytes(plan.batch) / plan.batch.rows
    free = backend.device.memory()[0]
    fits = max(0, int(0.8 * free / max(a_row, 1)))
    return MemoryError(
        f"{error}. A batch of {plan.batch.rows:,} rows needs {activation_bytes(plan.batch):,} bytes of activations; "
        f"about {fits:,} rows would fit what is free: take a smaller batch_size, or a smaller network"
    )
