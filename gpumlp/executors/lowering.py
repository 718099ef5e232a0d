"""Rewrites of a program into an equal one that is cheaper to run.

A rewrite is a function from program to program that knows nothing of devices; an executor applies those that
pay where it runs, one after the other, and plans the memory again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..program import Operand, Program, plan

Rewrite = Callable[[Program], Program]


def lower(program: Program, rewrites: Sequence[Rewrite]) -> Program:
    """Apply rewrites in turn and place the intermediate tensors anew."""
    for rewrite in rewrites:
        program = rewrite(program)
    return plan(program)


def substitute(program: Program, by: dict[str, Operand], dropped: set[int]) -> Program:
    """Replace whole intermediate tensors by other operands, leave calls out, and forget unused tensors."""

    def swap(operand: Operand | None) -> Operand | None:
        return by.get(operand.name, operand) if operand is not None else None

    kept = [i for i in range(len(program.calls)) if i not in dropped]
    calls = tuple(
        replace(program.calls[i], operands=tuple(swap(o) for o in program.calls[i].operands)) for i in kept
    )
    used = {o.name for c in calls for o in c.operands if o is not None} | program.keep
    return replace(
        program,
        calls=calls,
        buffers={name: s for name, s in program.buffers.items() if name in used},
        marks={name: sum(i < place for i in kept) for name, place in program.marks.items()},
    )


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
