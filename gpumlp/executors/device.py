"""What the two executors of a GPU have in common: linked programs, and a control block that lives beside the arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arena import Arena
from ..backend import Backend, address
from ..kernels import CONTROL_SIZE, POSITION, SLOT, START
from ..kernels.cuda import MAX_SCALARS, MOST_ELEMENTS, THREADS
from ..kernels.cuda.device import Kernels, Launch, Product, ProductKind
from ..program import Call, Memory, Operand, Program, activation_bytes
from .lowering import Rewrite, lower
from .unfolding import (
    BLOCKS_A_MULTIPROCESSOR,
    Step,
    advance,
    advanced,
    chains,
    encode_steps,
    scratch_bytes,
    unfold,
)
from .watching import watch_gradients

if TYPE_CHECKING:
    from . import StepPlan

CONTROL = Operand("control", "", (CONTROL_SIZE,), "int64")


@dataclass
class Linked:
    """A lowered program on a device.

    Attributes:
        program: lowered.
        steps: its operations, the counters' advance among them where it is a training step.
        activations: its intermediate tensors.
    """

    program: Program
    steps: list[Step]
    activations: Arena


class DeviceExecutor:
    """Base of the executors of a GPU.

    Args:
        backend: the GPU.
        memory: what operands refer to; its control block and its table of rates are on the host, where the training
            loop writes them, and are copied beside the arrays for each run.
        workers: without meaning on a GPU.
        precision: of products of float32 matrices: "float32", "tf32" or "bf16".
        beside: arrays on the GPU for control block, rates and ring, where they are a part of others'; else they are
            made.
    """

    name = ""
    block_seconds = 0.05
    longest_run = math.inf
    first_block = 1
    epoch_sums: Any = None

    def __init__(
        self,
        backend: Backend,
        memory: Memory,
        workers: int | None = None,
        precision: str = "float32",
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        assert backend.device is not None
        self.backend, self.device, self.precision = backend, backend.device, precision
        self._host = memory.arrays
        if beside is None:
            beside = {
                name: backend.asarray(memory.arrays[name])
                for name in ("control", "rates")
                if name in memory.arrays
            }
        self.memory = Memory(memory.arenas, {**memory.arrays, **beside})
        self._linked: dict[int, tuple[Program, Linked]] = {}
        self._alone: set[str] = set()
        self._chained: set[str] = set()
        self._large = False
        self._pointed_at: list[Any] = []  # by rows, which do not keep it

    # --- what differs ------------------------------------------------------------------------------------------

    def rewrites(self, program: Program) -> tuple[Rewrite, ...]:
        """The rewrites of a program that pay here."""
        raise NotImplementedError

    @property
    def uses_library(self) -> bool:
        """Whether products are left to the device's library, at least some of them."""
        raise NotImplementedError

    def in_library(self, product: Call) -> bool:
        """Whether it is left to that library."""
        return self.uses_library

    def before_linking(self, programs: Sequence[Program]) -> None:
        """Add to the memory what lowered programs refer to and no one gave."""

    # --- linking -----------------------------------------------------------------------------------------------

    def prepare(self, *programs: Program, on_compile: Callable[[], None] | None = None) -> None:
        lowered = [self._lower(program) for program in programs]
        self.before_linking(lowered)
        shared = self.backend.allocate(max(map(activation_bytes, lowered), default=0))
        for source, program in zip(programs, lowered, strict=True):
            self._linked[id(source)] = (source, self._link(program, shared))

    def _lower(self, program: Program) -> Program:
        return lower(program, self.rewrites(program))

    def _most_blocks(self) -> int:
        return self.device.multiprocessors * BLOCKS_A_MULTIPROCESSOR

    def _link(self, program: Program, shared: Any) -> Linked:
        """Link a lowered program whose intermediate tensors lie in `shared`; note what its kernels are."""
        activations = Arena(self.backend, program.buffers.values(), shared)
        steps = unfold(program, self.memory, activations, self._most_blocks(), self.in_library)
        if self._most_blocks() > 1:
            steps = watch_gradients(steps)
        self._large |= any(
            p and p.rows * max(p.columns, p.stride) > MOST_ELEMENTS for step in steps for p in step.places
        )
        # by itself, and as `with_advance` may make it, since one module is for all
        for whole in (steps, advanced(steps, Step("advance", blocks=1))):
            for first, last in self.groups(whole, program.dtype):
                ways = self._chained if last - first > 1 else self._alone
                ways |= {step.operation for step in whole[first:last] if step.call is None}
        return Linked(program, steps, activations)

    def groups(self, steps: Sequence[Step], dtype: str) -> list[tuple[int, int]]:
        """Return the places of steps that go into one launch each, (first, last + 1).

        Float64, which is for checking, has no chains: on older GPUs they would have too few registers.
        """
        if self.uses_library and dtype == "float32":
            return chains(steps)
        return [(i, i + 1) for i in range(len(steps))]

    def with_advance(self, program: Program, plan: StepPlan) -> Linked:
        """Return a linked training step that also moves the counters on."""
        linked = self.linked(program)
        step = advance(CONTROL, self.memory, linked.activations, plan.batch.rows, plan.steps)
        return replace(linked, steps=advanced(linked.steps, step))

    def linked(self, program: Program) -> Linked:
        return self._linked[id(program)][1]

    def view(self, program: Program, operand: Operand) -> Any:
        return self.memory.view(operand, self.linked(program).activations)

    # --- running -----------------------------------------------------------------------------------------------

    def compiled_for(self, dtype: str) -> str:
        """Return what kernels of programs of a type are compiled for, of `kernels.cuda.TYPES`."""
        return "bf16" if self.precision == "bf16" and dtype == "float32" and self.uses_library else dtype

    def kernels(self, dtype: str) -> Kernels:
        """Return the compiled kernels of all programs that were prepared, as one module."""
        return self.device.kernels(
            self.compiled_for(dtype), self._alone, chained=self._chained, large=self._large
        )

    def encode(self, linked: Linked) -> np.ndarray:
        """Return the rows of a linked program, (steps, ROW_WIDTH) int64, on the host; what they point at is made."""
        steps = linked.steps
        scratch = self.backend.allocate(scratch_bytes(steps))
        scalars = self.backend.asarray(np.zeros((max(1, len(steps)), MAX_SCALARS)))
        rows, values = encode_steps(steps, address(scalars), address(scratch))
        if steps:
            self.device.copy_in(scalars, values)
        self._pointed_at += [scratch, scalars]
        return rows

    def launches(self, linked: Linked) -> list[Launch]:
        """Return what launches the groups of a linked program, one by one."""
        kernels, rows = self.kernels(linked.program.dtype), self.encode(linked)
        groups, launches = self.groups(linked.steps, linked.program.dtype), []
        table: Any = self.backend.asarray(rows) if len(groups) < len(rows) else None
        for first, last in groups:
            step = linked.steps[first]
            if last - first > 1:
                launch = kernels.launch_chain(table[first:last], last - first)
            elif step.call is not None:
                launch = self.device.product(self._product(step, linked.activations))
            else:
                launch = kernels.launch(step.operation, rows[first], step.blocks, THREADS)
            launches.append(launch)
        return launches

    def _product(self, step: Step, activations: Arena) -> Product:
        call = step.call
        assert call is not None
        operands = tuple(None if o is None else self.memory.view(o, activations) for o in call.operands)
        turned = bool(call.scalars["transpose_a"]), bool(call.scalars["transpose_b"])
        return Product(call.kernel, operands, *turned, self.precision)

    def copy_in(
        self, n_steps: int = 0, batch_rows: int = 0, first_slot: int = 0, first_position: int = 0
    ) -> None:
        """Bring counters and rates to the device.

        Args:
            n_steps: how many rates the next steps need.
            batch_rows: of a full batch, from which the place of the next one follows.
            first_slot: of the first step, in the table of rates and in the ring of losses.
            first_position: of the step whose batch lies first in the data.
        """
        if n_steps:
            self.set_places(batch_rows, first_slot, first_position)
            rates = slice(first_slot, first_slot + n_steps)
            self.device.copy_in(self.memory.arrays["rates"][rates], self._host["rates"][rates])
        self.device.copy_in(self.memory.arrays["control"], self._host["control"])

    def set_places(self, batch_rows: int, first_slot: int = 0, first_position: int = 0) -> None:
        """Say on the host where the next step's rate, loss and batch lie; see `copy_in`."""
        control = self._host["control"]
        control[SLOT], control[START] = first_slot, (control[POSITION] - first_position) * batch_rows

    def copy_out(self, first_slot: int = 0) -> int:
        """Bring the counters back; return how many steps were good."""
        self._host["control"][:] = self.device.copy_out(self.memory.arrays["control"])
        return int(self._host["control"][SLOT]) - first_slot

    def losses(self, count: int) -> np.ndarray:
        return self.device.copy_out(self.memory.arrays["ring"][:count])

    def replayable(self, plan: StepPlan) -> tuple[Memory, StepPlan]:
        return Memory(self.memory.arenas, self._host), plan


def product_kind(kernel: str, call: Call, precision: str, last: bool = True) -> ProductKind:
    """Return what decides whether a library has the product that a ``matmul`` call would become."""
    a, _, c = call.operands
    assert a is not None
    assert c is not None
    turned = bool(call.scalars["transpose_a"]), bool(call.scalars["transpose_b"])
    inner = a.shape[0] if turned[0] else a.shape[1]
    return ProductKind(
        kernel, *c.shape, inner, *turned, c.dtype, "float32" if c.dtype == "float64" else precision, last
    )
