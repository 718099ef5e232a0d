"""Rewrites that give products what stands around them: biases, activations, their gradients; and bfloat16 operands.

A library for products on a GPU does such an epilogue while the result is still in registers. Which of them it has
depends on its version, the type and the shape: the rewrite asks `supports`, and leaves the others to kernels of their
own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from ..arena import Segment
from ..kernels import kernel_spec, mask_bytes
from ..program import ACTIVATIONS, Call, Operand, Program
from .lowering import Rewrite, substitute

PRODUCTS = frozenset(
    [
        *("matmul", "product_bias", "product_bias_relu", "product_bias_gelu_tanh"),
        *("product_bias_grad", "product_relu_grad", "product_gelu_tanh_grad"),
    ]
)
"""Names of all calls that are a product of matrices."""

DATA_COPY = "X.bf16"
"""The array that holds the data in bfloat16."""

FUSED_ACTIVATIONS = ("relu", "gelu_tanh")


Supports = Callable[[str, Call, bool], bool]
"""Whether a ``matmul`` call may become the product of a name, with its last operand or without."""


def fuse_epilogues(supports: Supports) -> Rewrite:
    """Return a rewrite that makes one call of a product and what is done to its result, or to its operand."""

    def rewrite(program: Program) -> Program:
        return _Fusion(program, supports).run()

    return rewrite


class _Fusion:
    """One pass over the calls of a program; what is folded into a product is dropped."""

    def __init__(self, program: Program, supports: Supports) -> None:
        self.program, self.supports = program, supports
        self.calls = list(program.calls)
        self.buffers = dict(program.buffers)
        self.dropped: set[int] = set()
        self.masks: dict[str, Operand] = {}  # by the name of the activation's result

    def run(self) -> Program:
        for i, call in enumerate(self.calls):
            if call.kernel != "matmul" or i in self.dropped:
                continue
            self._bias(i) or self._gradient(i) or self._bias_gradient(i)
        changed = replace(self.program, calls=tuple(self.calls), buffers=self.buffers)
        return substitute(changed, {}, self.dropped)

    def _next(self, i: int) -> Call | None:
        return self.calls[i + 1] if i + 1 < len(self.calls) else None

    def _make(self, i: int, kernel: str, *operands: Operand | None, folded: int) -> bool:
        """Put a product with an epilogue in the place of call i; what was folded in goes."""
        self.calls[i] = replace(self.calls[i], kernel=kernel, operands=operands)
        self.dropped.update(range(i + 1, i + 1 + folded))
        return True

    def _bias(self, i: int) -> bool:
        a, b, c = self.calls[i].operands
        bias = self._next(i)
        if bias is None or bias.kernel != "add_bias" or bias.operands[1] != c:
            return False
        activation = self._next(i + 1)
        if activation is not None and activation.kernel in FUSED_ACTIVATIONS and activation.operands[0] == c:
            kernel, y = f"product_bias_{activation.kernel}", activation.operands[1]
            saved = self._saved(activation.kernel, c, y, i)
            if self.supports(kernel, self.calls[i], saved is not None):
                if saved is not None and activation.kernel == "relu":
                    self._keep_mask(y, saved)
                return self._make(i, kernel, a, b, bias.operands[0], y, saved, folded=2)
        if self.supports("product_bias", self.calls[i], True):
            return self._make(i, "product_bias", a, b, bias.operands[0], c, folded=1)
        return False

    def _saved(self, kernel: str, x: Operand | None, y: Operand | None, i: int) -> Operand | None:
        """What the gradient of a fused activation will read beside or in place of y; None where nothing does."""
        assert x is not None
        assert y is not None
        later = self.calls[i + 3 :]
        if kernel == "gelu_tanh":
            return x if any(x in c.operands for c in later) else None
        for before, gradient in pairwise(later):
            if (
                before.kernel == "matmul"
                and gradient.kernel == "relu_grad"
                and gradient.operands[:2] == (y, before.operands[2])
                and self.supports("product_relu_grad", before, True)
            ):
                shape = (y.shape[0], mask_bytes(y.shape[1]))
                return Operand(ACTIVATIONS, f"{y.name}.mask", shape, "uint8")
        return None

    def _keep_mask(self, y: Operand | None, mask: Operand) -> None:
        assert y is not None
        self.buffers[mask.name] = Segment(mask.name, mask.shape, mask.dtype)
        self.masks[y.name] = mask

    def _gradient(self, i: int) -> bool:
        """The gradient of an activation right behind, and the sums of its columns, wherever they stand."""
        a, b, c = self.calls[i].operands
        gradient = self._next(i)
        if (
            gradient is None
            or gradient.kernel not in ("relu_grad", "gelu_tanh_grad")
            or gradient.operands[1] != c
        ):
            return False
        saved, _, dx = gradient.operands
        assert saved is not None
        kernel = f"product_{gradient.kernel}"
        mask = self.masks.get(saved.name) if gradient.kernel == "relu_grad" else saved
        sums = [
            k
            for k in range(i + 2, len(self.calls))
            if k not in self.dropped
            and self.calls[k].kernel == "column_sums"
            and self.calls[k].operands[0] == dx
        ]
        if mask is None or not self.supports(kernel, self.calls[i], bool(sums)):
            return False
        db = self.calls[sums[0]].operands[1] if sums else None
        self.dropped.update(sums[:1])
        return self._make(i, kernel, a, b, mask, dx, db, folded=1)

    def _bias_gradient(self, i: int) -> bool:
        """The sums of the columns of the second operand, right behind the product."""
        a, b, c = self.calls[i].operands
        sums = self._next(i)
        if (
            not self.calls[i].scalars["transpose_a"]
            or sums is None
            or i + 1 in self.dropped
            or sums.kernel != "column_sums"
            or sums.operands[0] != b
            or not self.supports("product_bias_grad", self.calls[i], True)
        ):
            return False
        return self._make(i, "product_bias_grad", a, b, c, sums.operands[1], folded=1)


def use_bfloat16(program: Program) -> Program:
    """Let every product read bfloat16 copies of its operands; results stay in float32, and so do the parameters.

    A copy is made before the first product that reads it and serves all others until its original is written again.
    That of the data, where products read them in place, is for the executor to make: see `DATA_COPY`.
    """
    calls: list[Call] = []
    buffers = dict(program.buffers)
    marks = dict(program.marks)
    copies: dict[Operand, Operand] = {}

    def copy(operand: Operand, layer: str) -> Operand:
        if operand.arena == "X":
            return replace(operand, arena=DATA_COPY, dtype="uint16")
        if operand not in copies:
            name = f"bf16.{len(copies)}.{len(calls)}"
            buffers[name] = Segment(name, operand.shape, "uint16")
            copies[operand] = Operand(ACTIVATIONS, name, operand.shape, "uint16")
            calls.append(Call("cast_bf16", (operand, copies[operand]), {}, layer))
        return copies[operand]

    for i, call in enumerate(program.calls):
        for name, place in program.marks.items():
            if place == i:
                marks[name] = len(calls)
        operands = call.operands
        if call.kernel in PRODUCTS:
            a, b, *others = operands
            assert a is not None
            assert b is not None
            operands = (copy(a, call.layer), copy(b, call.layer), *others)
        new = replace(call, operands=operands)
        calls.append(new)
        changed = [o for o in new.operands[len(kernel_spec(new.kernel).reads) :] if o is not None]
        copies = {o: c for o, c in copies.items() if not any(_is_part(o, w) for w in changed)}
    return replace(program, calls=tuple(calls), buffers=buffers, marks=marks)


def _is_part(operand: Operand, of: Operand) -> bool:
    """Whether writing `of` changes `operand`: the same tensor, or the whole arena."""
    return operand.arena == of.arena and of.name in ("", operand.name)
