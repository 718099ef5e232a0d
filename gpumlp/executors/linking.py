"""Linking a lowered program for compiled workers: rows of addresses and shapes, and where barriers must stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arena import Arena
from ..backend import address
from ..kernels import ACTIVATIONS, CATALOGUE
from ..kernels.layout import (
    FIRST_TURNED,
    OPERAND_WIDTH,
    OPERANDS,
    PLAIN,
    ROW_WIDTH,
    SECOND_TURNED,
    TALL_RATIO,
    TALL_ROWS,
)
from ..program import Call, Memory, Operand, Program

FLAT = frozenset([*ACTIVATIONS, *(f"{name}_grad" for name in ACTIVATIONS), "copy"])
"""Element-wise kernels: contiguous matrices are taken as one long row."""

HAVE_IN_PLACE = FLAT - {"copy"} | {
    *("softmax", "softmax_grad"),
    *(f"bias_{name}" for name in ACTIVATIONS),
    *(f"{name}_grad_bias" for name in ACTIVATIONS),
}
"""Kernels with a compiled form for a result that lies where an operand lay."""

BY_SHARE: dict[str, tuple[int, ...]] = {
    "matmul": (2,),
    "outer": (2,),
    "add_bias": (1,),
    **{f"bias_{name}": (1, 2) for name in ACTIVATIONS},
}
"""Operands that workers share by columns, or by rows where a matrix is tall; see `intrinsics.share`."""

BY_COLUMNS: dict[str, tuple[int, ...]] = {
    "column_sums": (0,),
    **{f"{name}_grad_bias": (0, 1, 2) for name in ACTIVATIONS},
}
"""Operands that workers share by columns, whatever the shape."""


@dataclass(frozen=True, slots=True)
class Place:
    """An operand in memory: address, shape, elements from row to row, bytes an element."""

    address: int
    rows: int
    columns: int
    stride: int
    itemsize: int

    @property
    def end(self) -> int:
        return self.address + ((self.rows - 1) * self.stride + self.columns) * self.itemsize

    def as_column(self) -> Place:
        """A single row, taken as a column."""
        return replace(self, rows=self.columns, columns=1, stride=1)

    def as_row(self) -> Place:
        """A single column whose values lie together, taken as a row."""
        return replace(self, rows=1, columns=self.rows, stride=self.rows)


@dataclass
class Instruction:
    """A compiled kernel by name, its operands, scalars, scratch bytes, and which operands it writes."""

    kernel: str
    places: list[Place | None]
    scalars: list[float]
    scratch: int
    written: frozenset[int]


def locate(memory: Memory, operand: Operand | None, activations: Arena) -> Place | None:
    """Find an operand in memory, its bounds checked."""
    if operand is None:
        return None
    view = memory.view(operand, activations)
    rows, columns = operand.shape if len(operand.shape) == 2 else (1, math.prod(operand.shape))
    return Place(address(view), rows, columns, operand.stride or columns, view.itemsize)


def instruct(program: Program, memory: Memory, activations: Arena) -> list[Instruction]:
    """Turn the calls of a lowered program into instructions."""
    return [
        _instruction(call, [locate(memory, o, activations) for o in call.operands]) for call in program.calls
    ]


def _instruction(call: Call, places: list[Place | None]) -> Instruction:
    spec = CATALOGUE[call.kernel]
    first_written = len(spec.reads)
    written = frozenset(range(first_written, len(places)))
    scalars = [float(call.scalars[name]) for name in spec.scalars]
    if call.kernel == "matmul":
        return _product(call, places)
    if call.kernel in FLAT and all(p is not None and (p.rows == 1 or p.stride == p.columns) for p in places):
        places = [
            replace(p, rows=1, columns=p.rows * p.columns, stride=p.rows * p.columns) for p in places if p
        ]
    kernel = call.kernel
    if kernel in HAVE_IN_PLACE and _is_in_place(kernel, places):
        kernel += "_in_place"
    return Instruction(kernel, places, kernel_scalars(kernel, scalars), _scratch(kernel, places), written)


def _is_in_place(kernel: str, places: Sequence[Place | None]) -> bool:
    spec = CATALOGUE[kernel]
    assert spec.in_place is not None
    written, read = (places[spec.operands.index(name)] for name in spec.in_place)
    return written is not None and written == read


def kernel_scalars(kernel: str, scalars: list[float]) -> list[float]:
    """Return scalars as compiled kernels and those of a GPU take them: clips as bounds of a logarithm."""
    if kernel == "binary_cross_entropy_logits":
        mean, clip = scalars
        return [mean, -math.log(clip) if clip > 0 else math.inf]
    if kernel.startswith("softmax_cross_entropy"):
        mean, smoothing, clip = scalars
        return [mean, smoothing, math.log(clip) if clip > 0 else -math.inf, 0.0]
    if kernel == "kl_divergence_logits":
        mean, clip = scalars
        return [mean, 0.0, math.log(clip) if clip > 0 else -math.inf, 1.0]
    return scalars


def _scratch(kernel: str, places: Sequence[Place | None]) -> int:
    """Bytes of working memory that a kernel wants."""
    if kernel == "shuffle":
        rows = places[1]
        assert rows is not None
        return 8 * (4 * rows.columns + 256)
    if kernel == "batch_norm_grad" or (kernel in CATALOGUE and "ring" in CATALOGUE[kernel].updates):
        matrix = places[0] if kernel == "batch_norm_grad" else places[1]
        assert matrix is not None
        return 2 * matrix.columns * matrix.itemsize
    return 0


def _product(call: Call, places: list[Place | None]) -> Instruction:
    """Choose the form of a product; a side of 1 makes it a loop over what is long."""
    a, b, c = places
    assert a is not None
    assert b is not None
    assert c is not None
    ta, tb = bool(call.scalars["transpose_a"]), bool(call.scalars["transpose_b"])
    if ta and tb:
        raise ValueError("a product of two transposed matrices is not compiled; no layer writes one")
    inner = a.rows if ta else a.columns
    form = FIRST_TURNED if ta else SECOND_TURNED if tb else PLAIN
    kernel, operands = "matmul", [a, b, c]
    if inner == 1 and (not tb or b.stride == 1):
        kernel, operands = "outer", [a.as_column() if ta else a, b.as_row() if tb else b, c]
    elif ta and c.columns == 1 and b.stride == c.stride == 1:
        kernel, operands = "sum_rows", [b, a, c.as_row()]
    elif ta and c.rows == 1:
        kernel, operands = "sum_rows", [a, b, c]
    elif c.columns == 1 and not ta and (tb or b.stride == 1):
        kernel, operands = "dot_rows", [a, b if tb else b.as_row(), c]
    elif c.rows == 1 and tb:
        kernel, operands = "dot_rows", [b, a, c.as_column()]
    elif c.rows == 1 and not ta:
        kernel, operands = "sum_rows", [a.as_column(), b, c]
    return Instruction(kernel, list(operands), [form] if kernel == "matmul" else [], 0, frozenset([2]))


def work_bytes(instructions: Sequence[Instruction]) -> int:
    """Bytes of working memory that each worker needs for a program."""
    from ..kernels.cpu import sizes

    most = 0
    for instruction in instructions:
        if instruction.kernel == "matmul":
            a, _, c = instruction.places
            assert a is not None
            assert c is not None
            turned, size = instruction.scalars[0] == FIRST_TURNED, a.itemsize
            steps = (size, a.stride * size) if turned else (a.stride * size, size)
            inner = a.rows if turned else a.columns
            most = max(most, sizes.work_bytes(*steps, c.rows, c.columns, inner, size))
    return most


def barriers(instructions: Sequence[Instruction]) -> list[bool]:
    """Whether workers must wait for each other before an instruction.

    They must where it touches memory that an instruction since the last barrier wrote, or writes what one read,
    unless both share that operand in the same way: then each worker touches its own part only.
    """
    flags: list[bool] = []
    since: list[tuple[Place, bool, str]] = []
    for instruction in instructions:
        touched = [
            (place, k in instruction.written, _split(instruction, k, place))
            for k, place in enumerate(instruction.places)
            if place is not None
        ]
        wait = any(_conflict(new, old) for new in touched for old in since)
        flags.append(wait)
        since = touched if wait else since + touched
    return flags


def _split(instruction: Instruction, k: int, place: Place) -> str:
    kernel = instruction.kernel.removesuffix("_in_place")
    if kernel == "matmul" and instruction.scalars[0] == FIRST_TURNED:  # by rows, as no other kernel
        return ""
    if k in BY_COLUMNS.get(kernel, ()):
        return "columns"
    if k in BY_SHARE.get(kernel, ()):
        return "rows" if place.rows > TALL_ROWS and place.rows > TALL_RATIO * place.columns else "columns"
    return ""


def _conflict(new: tuple[Place, bool, str], old: tuple[Place, bool, str]) -> bool:
    (p, p_writes, p_split), (q, q_writes, q_split) = new, old
    if not (p_writes or q_writes) or p.end <= q.address or q.end <= p.address:
        return False
    return not (p_split and p_split == q_split and p == q)


def encode(instructions: Sequence[Instruction], addresses: Sequence[int], keep: list[Any]) -> np.ndarray:
    """Write instructions as the rows that workers walk, (calls, ROW_WIDTH) int64.

    Args:
        instructions: of a program.
        addresses: of their compiled functions.
        keep: receives the arrays that the rows point at; it must live as long as they are walked.
    """
    rows = np.zeros((len(instructions), ROW_WIDTH), dtype=np.int64)
    for row, instruction, function, wait in zip(
        rows, instructions, addresses, barriers(instructions), strict=True
    ):
        scalars = np.zeros(8)
        scalars[: len(instruction.scalars)] = instruction.scalars
        scratch = np.zeros(instruction.scratch, dtype=np.uint8)
        keep.extend((scalars, scratch))
        row[:OPERANDS] = function, wait, scalars.ctypes.data, scratch.ctypes.data
        for k, place in enumerate(instruction.places):
            if place is not None:
                first = OPERANDS + OPERAND_WIDTH * k
                row[first : first + OPERAND_WIDTH] = place.address, place.rows, place.columns, place.stride
    return rows
