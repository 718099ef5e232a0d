"""From the calls of a lowered program to the operations of a GPU: rows, scratch, and who needs how many blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arena import Arena, aligned
from ..backend import Backend, address
from ..kernels import CATALOGUE, FOR_GPUS, PRODUCTS, kernel_spec
from ..kernels.cuda import (
    LARGE_TILE,
    MAX_CHAIN,
    MAX_SCALARS,
    OPERATIONS,
    SCRATCH_BYTES,
    THREADS,
    blocks,
    narrow_shares,
    narrow_tiles,
    shares,
)
from ..kernels.layout import (
    ENDING_BIT,
    FIRST_TURNED,
    FORM_BIT,
    OPERAND_WIDTH,
    OPERANDS,
    PLAIN,
    ROW_WIDTH,
    SECOND_BITS,
    SECOND_TURNED,
    SUM_COLUMNS,
)
from ..program import Call, Memory, Operand, Program
from .linking import Place, kernel_scalars, locate
from .products import ENDINGS, is_large, parts_of_inner
from .workers import multiply_adds_of

BLOCKS_A_MULTIPROCESSOR = 8
"""Of THREADS each: as many as a multiprocessor holds at a time."""

CHAIN_NUMBERS = 1 << 14
"""Numbers that an operation in the one block of a chain may work on, or multiply-adds of a product; `bench.gpu_check`
measures trainings without."""

TABLES = frozenset(["control", "source", "rows", "index", "rates", "ring"])
"""Operands of which an operation reads a part."""

PAIRED_BLOCKS = 1024
"""Blocks of two products up to which they go into one launch; with more, each fills a GPU. `bench.gpu_check` measures
trainings without."""

UPDATES = frozenset(n for n, spec in {**CATALOGUE, **FOR_GPUS}.items() if "parameters" in spec.updates)
"""Operations that change parameters."""

NEVER_CHAINED = frozenset(
    [
        *(
            "matmul",
            "matmul_pair",
            "large_matmul",
            "sums_of_shares",
            "sum_squares",
            "clip_by_norm",
            "shuffle",
        ),
        *(name for name in OPERATIONS if "narrow" in name),
    ]
)
"""Operations whose parts have blocks of their own; one whose work is not that of its numbers; those that want
more registers than a thread of so large a block has."""


@dataclass
class Step:
    """An operation with its operands, or a call that is left to the device's library for products.

    Attributes:
        operation: its name in `kernels.cuda.OPERATIONS`; for a product that in the catalogue.
        places: operands, as `kernels.cuda` wants them.
        scalars: likewise.
        scratch: bytes of working memory of its own; 0 for none.
        scratch_of: the step whose working memory it shares.
        call: the product to be left to the library.
        partial: sums of shares of the rows, to be summed once more; memory of this step.
        blocks: that share it.
        flags: of its row, beside those of operands in bfloat16.
        control: the control block, where it flags a gradient that is not finite.
    """

    operation: str
    places: Sequence[Place | None] = ()
    scalars: Sequence[float] = ()
    scratch: int = 0
    scratch_of: Step | None = None
    call: Call | None = None
    partial: Any = None
    blocks: int = 0
    flags: int = 0
    control: Place | None = None

    @property
    def is_small(self) -> bool:
        """Whether one block is enough: where there is only one in any case, or few numbers are at work."""
        if self.call is not None or self.operation in NEVER_CHAINED:
            return False
        if OPERATIONS[self.operation].grid == "one" or self.operation == "small_matmul":
            return True
        names = kernel_spec(self.operation).operands
        sizes = [p.rows * p.columns for n, p in zip(names, self.places, strict=True) if p and n not in TABLES]
        return max(sizes, default=0) <= CHAIN_NUMBERS


def unfold(
    program: Program,
    memory: Memory,
    activations: Arena,
    most_blocks: int,
    in_library: Callable[[Call], bool],
) -> list[Step]:
    """Return the steps of a lowered program.

    Args:
        program: lowered.
        memory: what its operands refer to.
        activations: of this program.
        most_blocks: that the device holds at a time; 1 for the resident kernel, in which one block does all.
        in_library: whether a product is left to the device's library.

    Raises:
        ValueError: an operand outside its memory.
    """
    steps: list[Step] = []
    has_loss = any("ring" in kernel_spec(call.kernel).updates for call in program.calls)
    for call in program.calls:
        if call.kernel == "check_loss" and has_loss:
            continue  # the loss has done it
        if call.kernel in PRODUCTS and in_library(call):
            steps.append(Step(call.kernel, call=call))
        else:
            places = [locate(memory, o, activations) for o in call.operands]
            steps.extend(_steps(call, places, most_blocks, activations.backend))
    for step in steps:
        if step.call is None and not step.blocks:
            step.blocks = _blocks(step, most_blocks)
    return steps if most_blocks == 1 else pair_products(steps)


def pair_products(steps: Sequence[Step]) -> list[Step]:
    """Make one step of two products side by side: the gradients of a layer's weights and of its input, for one."""
    found: list[Step] = []
    for step in steps:
        before = found[-1] if found else None
        if (
            before is not None
            and before.operation == step.operation == "matmul"
            and before.call is step.call is None
            and before.blocks + step.blocks <= PAIRED_BLOCKS
            and _are_independent(before, step)
        ):
            places, blocks = [*before.places, *step.places], before.blocks + step.blocks
            flags = before.flags | step.flags << SECOND_BITS
            found[-1] = Step("matmul_pair", places, [before.blocks], blocks=blocks, flags=flags)
        else:
            found.append(step)
    return found


def written(step: Step) -> list[list[Place | None]]:
    """What an operation writes; of two products what each does."""
    if step.call is not None:
        return []
    if step.operation == "sums_of_shares":
        return [list(step.places[1::2])]
    if "matmul" in step.operation:
        flags = step.flags, step.flags >> SECOND_BITS
        halves = zip(flags, (step.places[:4], step.places[4:]), strict=True)
        return [
            [half[2], half[3] if flag >> ENDING_BIT & 3 == SUM_COLUMNS else None]
            for flag, half in halves
            if half
        ]
    spec = CATALOGUE.get(step.operation) or FOR_GPUS.get(step.operation)
    return [list(step.places[len(spec.reads) :])] if spec else []


def meet(one: Place | None, other: Place | None) -> bool:
    """Whether two places have memory in common."""
    return one is not None and other is not None and one.address < other.end and other.address < one.end


def _are_independent(first: Step, second: Step) -> bool:
    """Whether neither of two products writes what the other reads or writes."""

    def meets(writes: Step, other: Step) -> bool:
        (places,) = written(writes)
        return any(meet(p, w) for p in other.places for w in places)

    return not meets(first, second) and not meets(second, first)


def _steps(call: Call, places: list[Place | None], most_blocks: int, backend: Backend) -> Iterator[Step]:
    name = call.kernel
    spec = kernel_spec(name)
    scalars = kernel_scalars(name, [float(call.scalars[s]) for s in spec.scalars])
    if most_blocks > 1 and is_large(call):
        yield from _large_product(call, places, most_blocks, backend)
    elif name in ENDINGS:
        operands = dict(zip(spec.operands, places, strict=True))
        other = next((operands[role] for role in ("bias", "y", "db") if role in operands), None)
        of_kernel = [operands["a"], operands["b"], operands["c"], other]
        small = most_blocks > 1 and multiply_adds_of(call) <= CHAIN_NUMBERS
        kernel = "small_matmul" if small else "matmul"
        yield Step(kernel, of_kernel, flags=_form(call) << FORM_BIT | ENDINGS[name] << ENDING_BIT)
    elif "ring" in spec.updates:
        yield from _loss(name, places, scalars, most_blocks)
    elif name == "clip_by_norm":
        partials = Step("sum_squares", places)
        partials.scratch = 8 * _blocks(partials, most_blocks)
        yield partials
        yield Step(name, places, [*scalars, partials.scratch // 8], 0, partials)
    elif name == "shuffle" and most_blocks == 1:
        yield Step(name, places, scalars, _sort_bytes(places))
    elif name == "column_sums" or name.endswith("_grad_bias"):
        yield from _column_sums(Step(name, places, scalars), most_blocks, backend)
    elif name.endswith("_grad_sums"):
        yield from _narrow_sums(Step(name, places, scalars), most_blocks, backend)
    else:
        yield Step(name, places, scalars)


def _large_product(
    call: Call, places: Sequence[Place | None], most_blocks: int, backend: Backend
) -> Iterator[Step]:
    """A large product; where its tiles are few, in parts of the inner side, which are then summed."""
    a, b, c = places
    assert a is not None
    assert c is not None
    rows, columns = c.rows, c.columns
    inner = a.rows if call.scalars["transpose_a"] else a.columns
    parts = 1
    if c.stride == columns:
        parts = parts_of_inner(rows, columns, inner, max(1, most_blocks // BLOCKS_A_MULTIPROCESSOR))
    tiles = -(-rows // LARGE_TILE) * -(-columns // LARGE_TILE)
    step = Step("large_matmul", [a, b, c], flags=_form(call) << FORM_BIT, blocks=tiles * parts)
    if parts == 1:
        yield step
        return
    whole = replace(c, rows=1, columns=rows * columns, stride=rows * columns)
    (sums,) = _shares_of([whole], parts, step, backend)
    step.places = [a, b, replace(sums, rows=parts * rows, columns=columns, stride=columns)]
    yield step
    yield Step("column_sums", [sums, whole])


def _sort_bytes(places: Sequence[Place | None]) -> int:
    """Working memory of one block that sorts rows by their keys, where those do not find room in its own."""
    index = places[-1]
    assert index is not None
    return 8 * index.columns if 8 * index.columns > SCRATCH_BYTES else 0


def _column_sums(step: Step, most_blocks: int, backend: Backend) -> Iterator[Step]:
    """Sums of columns; those of a tall matrix in shares of its rows, which are then summed."""
    matrix, db = step.places[-2], step.places[-1]
    assert matrix is not None
    assert db is not None
    halves = matrix.columns % 8 == 0 and all(p is not None and p.itemsize == 2 for p in step.places[:-1])
    count, tiles = shares(matrix.rows, matrix.columns, THREADS, most_blocks, halves)
    if count == 1:
        yield step
        return
    (sums,) = _shares_of([db], count, step, backend)
    step.places = [*step.places[:-1], sums]
    step.blocks = tiles * count
    yield step
    yield Step("column_sums", [sums, db])


def _shares_of(wholes: Sequence[Place], count: int, step: Step, backend: Backend) -> list[Place]:
    """Give a step memory for sums that are made in shares: a matrix for each vector, a row of it for each share."""
    sizes = [aligned(count * whole.columns * whole.itemsize) for whole in wholes]
    step.partial = backend.allocate(sum(sizes))
    start = address(step.partial)
    return [
        Place(start + sum(sizes[:k]), count, whole.columns, whole.columns, whole.itemsize)
        for k, whole in enumerate(wholes)
    ]


def _narrow_sums(step: Step, most_blocks: int, backend: Backend) -> Iterator[Step]:
    """Gradients of an activation, a weight and biases; where there are many rows, the sums in shares of them."""
    *others, dx, dw, db, da = step.places
    assert dx is not None
    assert dw is not None
    tiles = narrow_tiles(dx.columns, dw.itemsize)  # dx may be in bfloat16
    count = narrow_shares(dx.rows, tiles, THREADS, most_blocks)
    wholes = [replace(dw, rows=1, columns=dw.rows * dw.columns, stride=dw.rows * dw.columns)]
    wholes += [bias for bias in (db, da) if bias is not None]
    parts = wholes if count == 1 else _shares_of(wholes, count, step, backend)
    of_weight, *of_biases = parts
    in_order = iter(of_biases)
    step.places = [*others, dx, of_weight, *(None if bias is None else next(in_order) for bias in (db, da))]
    step.blocks = min(tiles * count, most_blocks)
    yield step
    if count > 1:
        pairs = list(zip(parts, wholes, strict=True))
        each = [_blocks(Step("column_sums", pair), most_blocks) for pair in pairs]
        yield Step("sums_of_shares", [place for pair in pairs for place in pair], each, blocks=sum(each))


def _form(call: Call) -> int:
    ta, tb = call.scalars["transpose_a"], call.scalars["transpose_b"]
    if ta and tb:
        raise ValueError("a product of two transposed matrices has no kernel; no layer writes one")
    return FIRST_TURNED if ta else SECOND_TURNED if tb else PLAIN


def _loss(name: str, places: list[Place | None], scalars: list[float], most_blocks: int) -> Iterator[Step]:
    """The sum of the weights, where there are any, and the losses of the rows: blocks cannot wait for each other."""
    weight = places[3]
    loss = Step(name, places, scalars, 8 * (2 + most_blocks))
    if weight is not None:
        yield Step("sum_weights", [weight], (), 0, loss)
    yield loss


def _blocks(step: Step, most: int) -> int:
    operation = OPERATIONS[step.operation]
    place = step.places[operation.operand] if step.places else None
    rows, columns = (place.rows, place.columns) if place is not None else (1, 1)
    return blocks(operation, rows, columns, THREADS, most)


def advance(control: Operand, memory: Memory, activations: Arena, batch_rows: int, steps: int) -> Step:
    """Return the step that moves the counters on after a good training step.

    Args:
        control: the control block, in `memory`.
        memory: what operands refer to.
        activations: of any program.
        batch_rows: of a full batch.
        steps: of an epoch.
    """
    return Step("advance", [locate(memory, control, activations)], [batch_rows, steps], blocks=1)


def advanced(steps: Sequence[Step], advance: Step) -> list[Step]:
    """Return steps with the one that moves the counters on: a launch of its own, or a part of the last update's.

    An update by many blocks does it when the last of them comes; one of few numbers is in a chain with it.
    """
    if not steps or not _is_update(last := steps[-1]) or last.is_small:
        return [*steps, advance]
    scalars = [*last.scalars, *[0.0] * (MAX_SCALARS - 2 - len(last.scalars)), *advance.scalars]
    return [*steps[:-1], replace(last, scalars=scalars, scratch=4)]


def _is_update(step: Step) -> bool:
    """Whether it changes parameters, after which a step is done."""
    return step.call is None and step.operation in UPDATES


def chains(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Return the places of steps that go into one launch each, (first, last + 1): small neighbours together."""
    groups: list[tuple[int, int]] = []
    before = False
    for i, step in enumerate(steps):
        small = step.is_small
        if small and before and i - groups[-1][0] < MAX_CHAIN:
            groups[-1] = groups[-1][0], i + 1
        else:
            groups.append((i, i + 1))
        before = small
    return groups


def scratch_bytes(steps: Sequence[Step]) -> int:
    """Bytes of working memory that the steps of a program want, each its own."""
    return sum(aligned(step.scratch) for step in steps)


def encode_steps(steps: Sequence[Step], scalars: int, scratch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the steps, (steps, ROW_WIDTH) int64, and the scalars that they point at, (steps,
    MAX_SCALARS).

    Args:
        steps: of a program; a product that a library does has an empty row.
        scalars: address of the scalars, once they are copied there.
        scratch: address of `scratch_bytes` bytes.
    """
    # lists, since to fill an array place by place costs more
    rows = [[0] * ROW_WIDTH for _ in steps]
    values = np.zeros((len(steps), MAX_SCALARS))
    own: dict[int, int] = {}
    for step in steps:
        if step.scratch:
            own[id(step)] = scratch
            scratch += aligned(step.scratch)
    for i, (row, step) in enumerate(zip(rows, steps, strict=True)):
        if step.call is not None:
            continue
        values[i, : len(step.scalars)] = step.scalars
        place = step.control.address if step.control else own.get(id(step.scratch_of or step), 0)
        halves = sum(1 << k for k, o in enumerate(step.places) if o is not None and o.itemsize == 2)
        flags = halves | step.flags
        row[:OPERANDS] = OPERATIONS[step.operation].code, flags, scalars + values.strides[0] * i, place
        for k, operand in enumerate(step.places):
            if operand is not None:
                first = OPERANDS + OPERAND_WIDTH * k
                row[first : first + OPERAND_WIDTH] = (
                    operand.address,
                    operand.rows,
                    operand.columns,
                    operand.stride,
                )
    return np.array(rows, dtype=np.int64).reshape(len(steps), ROW_WIDTH), values
