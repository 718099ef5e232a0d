"""Rewrites of a program into an equal one that is cheaper to run.

A rewrite is a function from program to program that knows nothing of devices; an executor applies those that
pay where it runs, one after the other, and plans the memory again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import pairwise

from ..kernels import ACTIVATIONS, kernel_spec
from ..program import Call, Operand, Program, plan

Rewrite = Callable[[Program], Program]

GRADIENTS = frozenset(f"{name}_grad" for name in ACTIVATIONS)
"""Names of the gradients of activations."""


def lower(program: Program, rewrites: Sequence[Rewrite]) -> Program:
    """Apply rewrites in turn and place the intermediate tensors anew."""
    for rewrite in rewrites:
        program = rewrite(program)
    return plan(program)


def substitute(program: Program, by: dict[str, Operand], dropped: set[int]) -> Program:
    """Replace whole intermediate tensors by other operands, leave calls out, and forget unused tensors."""

    def swap(operand: Operand | None) -> Operand | None:
        if operand is None or operand.name not in by:
            return operand
        whole = by[operand.name]  # of which the operand may be some columns
        return replace(
            whole,
            shape=operand.shape,
            start=whole.start + operand.start,
            stride=whole.stride or operand.stride,
        )

    kept = [i for i in range(len(program.calls)) if i not in dropped]
    calls = tuple(program.calls[i] for i in kept)
    if by:
        calls = tuple(replace(call, operands=tuple(map(swap, call.operands))) for call in calls)
    used = {o.name for c in calls for o in c.operands if o is not None} | program.keep
    return replace(
        program,
        calls=calls,
        buffers={name: s for name, s in program.buffers.items() if name in used},
        marks={name: sum(i < place for i in kept) for name, place in program.marks.items()},
    )


def find_column_sums(
    calls: Sequence[Call], start: int, matrix: Operand | None, dropped: Collection[int] = ()
) -> int | None:
    """The place, from `start` on, of the call that sums the columns of a matrix, but for those that are dropped."""
    for k in range(start, len(calls)):
        if k not in dropped and calls[k].kernel == "column_sums" and calls[k].operands[0] == matrix:
            return k
    return None


def read_full_batch_in_place(program: Program) -> Program:
    """Leave out gathers of a batch that is the whole set: its rows are read where they lie.

    The loss and the gradients of a full batch do not depend on the order of its rows.
    """
    by: dict[str, Operand] = {}
    dropped = set()
    for i, call in enumerate(program.calls):
        if call.kernel.startswith("gather_"):
            _, source, _, out = call.operands
            if source is not None and out is not None and source.shape == out.shape:
                by[out.name] = source
                dropped.add(i)
    return substitute(program, by, dropped) if dropped else program


def gather_late(program: Program) -> Program:
    """Move gathers to just before the first call that reads what they gather.

    Labels and weights of rows then stand beside the loss, and a GPU takes both in one launch.
    """
    calls = program.calls
    order = list(range(len(calls)))
    for i, call in reversed(list(enumerate(calls))):
        if call.kernel.startswith("gather_"):
            reader = next((k for k in range(i + 1, len(calls)) if _names(calls[k], call.operands[-1])), None)
            if reader is not None:
                order.remove(i)
                order.insert(order.index(reader), i)
    return _in_order(program, order)


def sum_early(program: Program) -> Program:
    """Move sums of columns to just behind the call that writes the matrix.

    Those of a loss's gradient then stand beside the loss, and no longer between the products that follow.
    """
    calls = program.calls
    order = list(range(len(calls)))
    for i, call in enumerate(calls):
        if call.kernel == "column_sums":
            writer = next((k for k in reversed(range(i)) if call.operands[0] in _written(calls[k])), None)
            if writer is not None:
                order.remove(i)
                order.insert(order.index(writer) + 1, i)
    return _in_order(program, order)


def _names(call: Call, tensor: Operand | None) -> bool:
    """Whether a call has a tensor among its operands, or a part of it."""
    return any(o and tensor and (o.arena, o.name) == (tensor.arena, tensor.name) for o in call.operands)


def _written(call: Call) -> tuple[Operand | None, ...]:
    return call.operands[len(kernel_spec(call.kernel).reads) :]


def _in_order(program: Program, order: Sequence[int]) -> Program:
    """The calls of a program in another order; a mark stays with its call."""
    places = {old: new for new, old in enumerate(order)}
    marks = {name: places.get(place, place) for name, place in program.marks.items()}
    return replace(program, calls=tuple(program.calls[i] for i in order), marks=marks)


def fuse_bias_activation(program: Program) -> Program:
    """Make one pass of ``add_bias`` and the activation right behind it."""
    calls = list(program.calls)
    dropped = set()
    for i, (bias, activation) in enumerate(pairwise(calls)):
        if (
            bias.kernel == "add_bias"
            and activation.kernel in ACTIVATIONS
            and activation.operands[0] == bias.operands[1]
        ):
            operands = (bias.operands[0], *activation.operands)
            calls[i + 1] = replace(activation, kernel=f"bias_{activation.kernel}", operands=operands)
            dropped.add(i)
    return substitute(replace(program, calls=tuple(calls)), {}, dropped)


def fuse_gradient_bias(program: Program, pays: Callable[[Call], bool] = lambda gradient: True) -> Program:
    """Make one pass of the gradient of an activation and the ``column_sums`` of what it gives.

    Args:
        pays: whether that is better for a gradient than two passes.
    """
    calls = list(program.calls)
    dropped = set()
    for i, gradient in enumerate(calls):
        if gradient.kernel not in GRADIENTS or not pays(gradient):
            continue
        sums = find_column_sums(calls, i + 1, gradient.operands[-1])
        if sums is not None:
            operands = (*gradient.operands, calls[sums].operands[1])
            calls[i] = replace(gradient, kernel=f"{gradient.kernel}_bias", operands=operands)
            dropped.add(sums)
    return substitute(replace(program, calls=tuple(calls)), {}, dropped)
