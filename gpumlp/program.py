"""The program of a training step: a short, fixed list of kernel calls on memory that does not move.

Layers, losses and optimizers write calls through a `Builder`; `plan` gives each intermediate result its place;
`Memory.view` turns operands into arrays; an executor runs them. Whatever changes from step to step is read from the
control block, so that a program can be replayed as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .arena import Arena, Segment, aligned
from .kernels import BAD_STEP, CATALOGUE, CONTROL_SIZE, SEED, kernel_spec

Array = Any

ACTIVATION_ARENA = "activations"

RING = 8192
"""Steps that fit into the table of learning rates and into the ring of losses: the longest block."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor of a call: a segment of an arena, or a part of one.

    Args:
        arena: the role, for example "parameters"; or an array given from outside, for example "X".
        name: the segment's name; empty for an array from outside and for a flat range of an arena.
        shape: of the operand.
        start: elements from the start of the segment.
        stride: elements from row to row, where that is more than a row has.
        dtype: of the elements.
    """

    arena: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int = 0
    stride: int | None = None

    def columns(self, first: int, last: int) -> Operand:
        """The columns [first, last) of a matrix, as a matrix with the same distance between rows."""
        rows, width = self.shape
        return replace(
            self, shape=(rows, last - first), start=self.start + first, stride=self.stride or width
        )

    def __str__(self) -> str:
        part = f"+{self.start}" if self.start else ""
        return f"{self.arena}[{self.name}{part}]{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call; `layer` is the key of the layer that it is of, or empty.

    A call of `PYTHON` has the user's own code among its scalars, as "function".
    """

    kernel: str
    operands: tuple[Operand | None, ...]
    scalars: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""

    @property
    def by_name(self) -> dict[str, Operand | None]:
        """Operands by their names in the catalogue; not of a call of `PYTHON`."""
        return dict(zip(kernel_spec(self.kernel).operands, self.operands, strict=True))

    def __str__(self) -> str:
        operands = ", ".join("-" if o is None else str(o) for o in self.operands)
        scalars = "".join(f", {k}={v}" for k, v in self.scalars.items() if k != "function")
        return f"{self.kernel}({operands}{scalars})"


PYTHON = "python"
"""The kernel name of a call of a user's own layer; the last operand is written, the others are read."""


@dataclass(frozen=True)
class Program:
    """A list of calls, the intermediate tensors that they use, and which of those outlive their last use.

    Attributes:
        calls: in order of execution.
        buffers: the intermediate tensors, by name; `plan` gives them offsets.
        keep: names of buffers whose values are read after the program has run, or set before.
        rows: of the batch.
        dtype: of parameters and activations.
        marks: places in the list of calls, for example where the backward pass begins.
    """

    calls: tuple[Call, ...]
    buffers: Mapping[str, Segment]
    keep: frozenset[str]
    rows: int
    dtype: str = "float32"
    marks: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join(f"{i:4d}  {call}" for i, call in enumerate(self.calls))


class Builder:
    """What layers, losses and optimizers write a program with.

    Args:
        rows: of the batch.
        dtype: of activations and parameters, "float32" or "float64".
        training: whether the program is one of training: dropout drops, batch statistics are taken.
    """

    def __init__(self, rows: int, dtype: str, training: bool) -> None:
        self.rows = rows
        self.dtype = dtype
        self.training = training
        self._layer: Any = None
        self._calls: list[Call] = []
        self._buffers: dict[str, Segment] = {}
        self._keep: set[str] = set()
        self._marks: dict[str, int] = {}

    def enter(self, layer: Any) -> None:
        """Let what follows belong to a layer (None: to none): names of tensors, parameters, messages."""
        self._layer = layer

    @property
    def layer(self) -> str:
        """The key of the layer at hand, or nothing."""
        return self._layer.key if self._layer is not None else ""

    @property
    def control(self) -> Operand:
        """The control block."""
        return Operand("control", "", (CONTROL_SIZE,), "int64")

    def parameter(self, name: str) -> Operand:
        """A parameter of the layer at hand."""
        return Operand(
            "parameters", f"{self.layer}.{name}", self._layer.parameter_specs[name].shape, self.dtype
        )

    def gradient(self, name: str) -> Operand:
        """The gradient of a parameter of the layer at hand."""
        return replace(self.parameter(name), arena="gradients")

    def state(self, name: str) -> Operand:
        """A running statistic of the layer at hand."""
        return Operand("state", f"{self.layer}.{name}", self._layer.state_specs[name][0], self.dtype)

    def buffer(self, name: str, *shape: int, dtype: str | None = None, keep: bool = False) -> Operand:
        """A new intermediate tensor; its name is made unique by the layer at hand."""
        full = f"{self.layer}.{name}" if self.layer else name
        if full in self._buffers:
            raise ValueError(f"buffer {full!r} is declared twice; give each intermediate its own name")
        dtype = dtype or self.dtype
        self._buffers[full] = Segment(full, shape, dtype)
        if keep:
            self._keep.add(full)
        return Operand(ACTIVATION_ARENA, full, shape, dtype)

    def saved(self, name: str) -> Operand:
        """A tensor that the same layer declared in its forward pass."""
        segment = self._buffers[f"{self.layer}.{name}"]
        return Operand(ACTIVATION_ARENA, segment.name, segment.shape, segment.dtype)

    def keep(self, operand: Operand) -> None:
        """Let a tensor live beyond its last use."""
        self._keep.add(operand.name)

    def call(self, kernel: str, *operands: Operand | None, **scalars: Any) -> None:
        """Append a call, checked against the catalogue."""
        if kernel != PYTHON:
            spec = CATALOGUE[kernel]
            given = [
                n
                for n, o in zip(spec.operands, operands, strict=True)
                if o is None and n not in spec.optional
            ]
            if given or set(scalars) != set(spec.scalars):
                raise ValueError(
                    f"call of {kernel} with operands {given} absent and scalars {sorted(scalars)}; "
                    f"expected {spec.operands} and {sorted(spec.scalars)}"
                )
        self._calls.append(Call(kernel, operands, scalars, self.layer))

    def mark(self, name: str) -> None:
        """Give the place of the next call a name, for `Program.marks`."""
        self._marks[name] = len(self._calls)

    def finish(self) -> Program:
        """Return the program, its intermediate tensors placed."""
        return plan(
            Program(
                tuple(self._calls),
                self._buffers,
                frozenset(self._keep),
                self.rows,
                self.dtype,
                dict(self._marks),
            )
        )


def call_operands(call: Call) -> tuple[list[Operand], list[Operand]]:
    """Return what a call reads (or updates), and what it overwrites."""
    if call.kernel == PYTHON:
        *given, written = call.operands
        return [o for o in given if o is not None], [written] if written is not None else []
    spec = kernel_spec(call.kernel)
    n_read = len(spec.reads) + len(spec.updates)
    reads = [o for o in call.operands[:n_read] if o is not None]
    return reads, [o for o in call.operands[n_read:] if o is not None]


def plan(program: Program) -> Program:
    """Give each intermediate tensor its place, sharing memory between those that do not live at the same time.

    A tensor lives from the first call that names it to the last. An element-wise call may write over an operand
    that dies there. In a program without a backward pass two tensors of the widest layer are enough (three, where
    widths grow and a gap is too small), whatever its depth.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, call in enumerate(program.calls):
        for operand in call.operands:
            if operand is not None and operand.arena == ACTIVATION_ARENA:
                first.setdefault(operand.name, i)
                last[operand.name] = i
    for name in program.keep:
        first[name], last[name] = 0, len(program.calls)
    free = _Places()
    placed: dict[str, Segment] = {}
    for i, call in enumerate(program.calls):
        born = [n for n in first if first[n] == i and n not in placed]
        inherited = _in_place(call, i, first, last, program)
        for name in born:
            segment = program.buffers[name]
            heir = inherited if inherited and inherited[0] == name else None
            offset = placed[heir[1]].offset if heir else free.take(aligned(segment.nbytes))
            placed[name] = replace(segment, offset=offset)
        for name in [n for n in last if last[n] == i]:
            if not (inherited and inherited[1] == name):
                free.give(placed[name].offset, aligned(placed[name].nbytes))
    for name in set(program.buffers) - set(placed):  # kept, and used by no call
        placed[name] = replace(program.buffers[name], offset=free.take(aligned(program.buffers[name].nbytes)))
    return replace(program, buffers=placed)


def _in_place(
    call: Call, i: int, first: Mapping[str, int], last: Mapping[str, int], program: Program
) -> tuple[str, str] | None:
    """The pair (written, read) of a call that may share memory here, or None."""
    spec = None if call.kernel == PYTHON else kernel_spec(call.kernel)
    if spec is None or spec.in_place is None:
        return None
    by_name = call.by_name
    written, read = by_name[spec.in_place[0]], by_name[spec.in_place[1]]
    if written is None or read is None or written.arena != ACTIVATION_ARENA or read.arena != ACTIVATION_ARENA:
        return None
    whole = all(program.buffers[o.name].shape == o.shape for o in (written, read))
    alike = written.dtype == read.dtype
    once = sum(o is not None and o.name == read.name for o in call.operands) == 1
    if (
        whole
        and alike
        and once
        and written.name != read.name
        and first[written.name] == i
        and last[read.name] == i
    ):
        return written.name, read.name
    return None


class _Places:
    """First fit over the free ranges of one growing piece of memory, in bytes."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = []
        self._end = 0

    def take(self, nbytes: int) -> int:
        for k, (offset, size) in enumerate(self._free):
            if size >= nbytes:
                rest = (offset + nbytes, size - nbytes)
                self._free[k : k + 1] = [rest] if rest[1] else []
                return offset
        gap_at_end = self._free and sum(self._free[-1]) == self._end
        offset = self._free.pop()[0] if gap_at_end else self._end
        self._end = offset + nbytes
        return offset

    def give(self, offset: int, nbytes: int) -> None:
        merged: list[tuple[int, int]] = []
        for start, size in sorted([*self._free, (offset, nbytes)]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            elif size:
                merged.append((start, size))
        self._free = merged


def activation_bytes(program: Program) -> int:
    """Bytes that the intermediate tensors of a planned program take together."""
    return max((s.offset + aligned(s.nbytes) for s in program.buffers.values()), default=0)


def new_control(seed: int) -> np.ndarray:
    """Return a control block at its beginning."""
    control = np.zeros(CONTROL_SIZE, dtype=np.int64)
    control[SEED], control[BAD_STEP] = seed, -1
    return control


class Memory:
    """What the operands of a program refer to: arenas by role, and arrays given from outside by name."""

    def __init__(self, arenas: Mapping[str, Arena], arrays: Mapping[str, Array] | None = None) -> None:
        self.arenas = dict(arenas)
        self.arrays = dict(arrays or {})

    def view(self, operand: Operand, activations: Arena | None = None) -> Array:
        """Return the operand as an array, its bounds and type checked once, here.

        Raises:
            ValueError: the operand lies outside its segment, or has another type.
        """
        base = self._base(operand, activations)
        extent = 0
        if all(operand.shape):
            rows = operand.shape[0] if len(operand.shape) == 2 else 1
            stride = operand.stride or operand.shape[-1]
            extent = operand.start + (rows - 1) * stride + operand.shape[-1] if operand.shape else 1
        if extent > base.size or base.dtype != operand.dtype:
            raise ValueError(
                f"operand {operand} of type {operand.dtype} does not fit {base.shape} of {base.dtype}"
            )
        if operand.stride is not None and operand.stride != operand.shape[1]:
            first = operand.start % operand.stride
            return base.reshape(-1, operand.stride)[: operand.shape[0], first : first + operand.shape[1]]
        if base.shape == operand.shape and not operand.start:
            return base
        size = 1
        for n in operand.shape:
            size *= n
        return base.reshape(-1)[operand.start : operand.start + size].reshape(operand.shape)

    def _base(self, operand: Operand, activations: Arena | None) -> Array:
        if operand.arena in self.arrays:
            return self.arrays[operand.arena]
        arena = (
            activations if operand.arena == ACTIVATION_ARENA and activations else self.arenas[operand.arena]
        )
        return arena[operand.name] if operand.name else arena.flat(operand.dtype)
