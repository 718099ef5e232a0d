"""What a training reads, on its device: the rows where they lie, uploaded once, or streamed where they do not fit."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Backend, address
from .executors import Executor, StepPlan, make_executor
from .intake import Checked
from .program import RING, Memory, activation_bytes
from .rows import Data

if TYPE_CHECKING:
    from .executors.gang import Seat
    from .trainer import Trainer

Array = Any

CHUNK_BYTES = 256 << 20
"""Rows that are streamed at a time, at most: enough to hide what each copy costs."""

RESERVED = 512 << 20
"""Bytes of a GPU that are left to libraries: code, working memory, graphs."""

SMALL_ARRAY = 64 << 10
"""Bytes up to which arrays are compared, so that one copy serves all that are equal."""

_UPLOADING = threading.Lock()
"""Networks that train at the same time begin at the same time, and want the same arrays."""


@dataclass
class Shared:
    """What networks that train at the same time on one device share.

    Attributes:
        uploads: arrays of the host, each with its copy on a GPU; see `key`.
        checked: data as they take them.
        seat: of this network in a gang that trains in common launches.
    """

    uploads: dict[Any, tuple[Array, Array]] = field(default_factory=dict)
    checked: Checked = field(default_factory=Checked)
    seat: Seat | None = None

    def upload(self, backend: Backend, array: Array) -> Array:
        """Return the array on the device, copied there once for all; on a GPU aligned to 16 bytes."""
        if not backend.is_gpu:
            return backend.asarray(array)
        key = self.key(array)
        if key not in self.uploads:
            placed = backend.asarray(array)
            if address(placed) % 16:  # a part of a user's larger array
                with backend.active():
                    placed = placed.copy()
            self.uploads[key] = array, placed
        return self.uploads[key][1]

    @staticmethod
    def key(array: Array) -> Any:
        """What arrays with one copy have in common: small ones their values, as each network has made its own."""
        if isinstance(array, np.ndarray) and array.nbytes <= SMALL_ARRAY:
            return array.shape, array.dtype, array.tobytes()
        return array.shape, array.dtype, array.strides, address(array)


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
        },
    )
    arrays = memory.arrays
    rows = np.arange(len(data.x)) if data.rows is None else np.asarray(data.rows, dtype=np.int64)
    read = {"X": data.x, "y": data.target}
    if data.weight is not None:
        read["weight"] = np.asarray(data.weight, dtype=network.dtype)
    shared = trainer.shared or Shared()
    try:
        arrays["ring"] = _zeros(backend, (RING, 2), "float64") if shared.seat is None else shared.seat.ring
        with _UPLOADING:
            missing = {name: array for name, array in read.items() if shared.key(array) not in shared.uploads}
            in_place = plan.batch.rows == len(rows) == len(data.x)
            # rows that are read where they lie have a copy in half the bytes
            copies = data.x.nbytes // 2 if trainer.precision == "bf16" and in_place else 0
            streams = _must_stream(backend, missing, plan, copies)
            if not streams:
                taken = {**read, "rows": rows}
                arrays |= {name: shared.upload(backend, array) for name, array in taken.items()}
        if streams:
            if shared.seat is not None:  # it trains by itself
                shared.seat.leave()
            return memory, _stream(trainer, memory, read, rows, plan, on_compile)
        arrays["index"] = _zeros(backend, rows.shape, "int64")
        executor = make_executor(
            backend, memory, network.has_python, trainer.threads, plan, trainer.precision, shared.seat
        )
        executor.prepare(*plan.programs, on_compile=on_compile)
    except MemoryError as error:
        raise _explained(error, backend, plan) from None
    return memory, executor


def _zeros(backend: Backend, shape: tuple[int, ...], dtype: str) -> Array:
    """An array of zeros of 8 bytes each, which a GPU clears by itself."""
    nbytes = 8 * math.prod(shape)
    return backend.allocate(nbytes)[:nbytes].view(dtype).reshape(shape)


def _must_stream(backend: Backend, read: dict[str, Array], plan: StepPlan, copies: int = 0) -> bool:
    """Whether rows of the host do not fit the GPU beside a step, and `copies` bytes made of them."""
    if backend.device is None or not (read or copies) or any(map(backend.owns, read.values())):
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
