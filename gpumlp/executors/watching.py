"""Which operations of a GPU look at the gradients that they write, so that no pass over all of them has to."""

from __future__ import annotations

from collections.abc import Sequence

from ..kernels.cuda import OPERATIONS
from ..kernels.layout import WATCHED_BIT
from ..program import Call
from .unfolding import Step, meet, written

WATCHING = frozenset(
    [
        *("matmul", "matmul_pair", "small_matmul", "column_sums", "sums_of_shares"),
        *(n for n in OPERATIONS if n.endswith("_grad_bias")),
    ]
)
"""Operations that can flag a gradient that is not finite."""


def watch_gradients(steps: Sequence[Step]) -> list[Step]:
    """Let operations that write gradients flag one that is not finite, where all can; the pass that does so goes."""
    at = next((k for k, step in enumerate(steps) if step.operation == "check_gradients"), None)
    if at is None or any(_writes_gradients(step.call) for step in steps if step.call is not None):
        return list(steps)
    before, (gradients, control), (squared,) = steps[:at], steps[at].places, steps[at].scalars
    if squared:  # what is asked is more than whether they are finite
        return list(steps)
    watched = [[any(meet(w, gradients) for w in of_one) for of_one in written(step)] for step in before]
    writers = {step.operation for step, bits in zip(before, watched, strict=True) if any(bits)}
    if not writers or writers - WATCHING:  # none: gradients come from elsewhere
        return list(steps)
    for step, bits in zip(before, watched, strict=True):
        if any(bits):
            step.control = control
            if step.operation == "matmul_pair":
                step.flags |= sum(bit << WATCHED_BIT + k for k, bit in enumerate(bits))
    return [*before, *steps[at + 1 :]]


def _writes_gradients(call: Call) -> bool:
    return any(o is not None and o.arena == "gradients" for o in call.operands)
