"""What to say when a training fails: where the first value that is not finite came from."""

from __future__ import annotations

from typing import Any

from .backend import Backend
from .chain import Chain
from .executors import EagerExecutor, StepPlan
from .kernels import BAD_STEP, POSITION
from .program import Memory, Program, call_operands


class NonFiniteLossError(ArithmeticError):
    """A loss or a gradient became NaN or infinite; the weights of the last good step are kept.

    Attributes:
        epoch, batch: counted from 1.
        layer: index of the layer where it began, or None where the loss itself did.
        lr: the learning rate of that step.
    """

    def __init__(self, message: str, epoch: int, batch: int, layer: int | None, lr: float) -> None:
        super().__init__(message)
        self.epoch, self.batch, self.layer, self.lr = epoch, batch, layer, lr

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.epoch, self.batch, self.layer, self.lr)


def explain(
    network: Chain, backend: Backend, memory: Memory, plan: StepPlan, epoch: int, lr: float
) -> NonFiniteLossError:
    """Replay the failing step call by call, up to its update, and name where it went wrong.

    Args:
        network: in the state of the last good step.
        memory: of the training; its control block still points at the failing batch.
        plan: of the training.
        epoch: of the failing step, from 1.
        lr: of the failing step.
    """
    control = memory.arrays["control"]
    position = int(control[POSITION])
    short = plan.last is not None and position == plan.steps - 1
    program = plan.last if short and plan.last is not None else plan.batch
    flag = control[BAD_STEP]
    control[BAD_STEP] = -1
    place, where, layer = None, "the loss", None
    try:
        place = _first_bad(backend, memory, program)
    except MemoryError:  # a GPU that the training fills has no room to look closer
        where = "the loss or a gradient"
    finally:
        control[BAD_STEP] = flag
    if place is not None:
        call, backward = place
        if call.layer:
            layer = int(call.layer)
            what = "the gradient of" if backward else "the output of"
            where = f"{what} layer {layer}, {network.layers[layer]!r}"
        elif backward:
            where = "the gradient of the loss"
    batch = position + 1
    return NonFiniteLossError(
        f"training stopped at epoch {epoch}, batch {batch} of {plan.steps}: {where} is not finite; learning rate "
        f"{lr:g}. The weights of the step before are kept. Lower the learning rate, clip the gradients (clip_norm=1), "
        "or start it lower with a schedule",
        epoch,
        batch,
        layer,
        lr,
    )


def _first_bad(backend: Backend, memory: Memory, program: Program) -> tuple[Any, bool] | None:
    """The first call of the step that wrote something not finite, and whether it was in the backward pass."""
    executor = EagerExecutor(backend, memory)
    executor.prepare(program)
    lowered = executor.linked(program).program
    for i in range(lowered.marks["update"]):
        if i == lowered.marks["backward"] and memory.arrays["control"][BAD_STEP] >= 0:
            return None  # every output was finite, and the loss of them was not
        executor.execute(program, i, i + 1)
        call = lowered.calls[i]
        for operand in call_operands(call)[1]:
            values = executor.view(program, operand)
            if values.dtype.kind == "f" and not bool(backend.xp.isfinite(values).all()):
                return call, i >= lowered.marks["backward"]
    return None
