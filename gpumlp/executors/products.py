"""Rewrites that give products what stands around them: biases, activations, their gradients.

A library for products on a GPU does such an epilogue while the result is still in registers. Which of them it has
depends on its version, the type and the shape: the rewrite asks `supports`, and leaves the others to kernels of their
own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ..arena import Segment
from ..kernels import ACTIVATIONS, IN_EPILOGUES, mask_bytes
from ..kernels.cuda import LARGE_TILE
from ..kernels.layout import ADD_AND_RELU, ADD_BIAS, RELU_GRADIENT, SUM_COLUMNS
from ..program import ACTIVATION_ARENA, Call, Operand, Program
from .lowering import Rewrite, find_column_sums, substitute
from .workers import multiply_adds_of

Supports = Callable[[str, Call, bool], bool]
"""Whether a ``matmul`` call, whose result tells the type, may become the product of a name, with its last operand or
without."""


ENDINGS = {
    "matmul": ADD_BIAS,
    "product_bias": ADD_BIAS,
    "product_bias_relu": ADD_AND_RELU,
    "product_relu_slope": RELU_GRADIENT,
    "product_bias_grad": SUM_COLUMNS,
}
"""Products that a kernel of our own does, without a mask, and what it does on the way."""


LARGE_PRODUCT_FROM = 1 << 26
"""Multiply-adds from which a product in float32 is three products of parts by tensor cores, in a kernel of our own, and
not the library's, which is made of multiply-adds of floats. `bench.gpu_check` measures trainings without."""

STEP_CLOCKS, BYTES_A_CLOCK = 1300, 2400
"""What a multiprocessor takes for 16 places of the inner side of a tile: a scheduler has 192 instructions for products,
begins one in six clocks, and has others. And what an H200's memory moves, 4.3 TB/s, in one clock of 1.8 GHz."""


def is_large(call: Call) -> bool:
    """Whether a ``matmul`` call is a product that `large_matmul` is made for."""
    if call.kernel != "matmul" or any(o is None or o.dtype != "float32" for o in call.operands):
        return False
    c = call.operands[2]
    assert c is not None
    return min(c.shape) >= LARGE_TILE and multiply_adds_of(call) >= LARGE_PRODUCT_FROM


def parts_of_inner(rows: int, columns: int, inner: int, multiprocessors: int) -> int:
    """Return into how many parts the inner side of a large product is best cut, each a tile's for a block.

    A result of few tiles leaves multiprocessors without one; what each part gives is written, and read once more.
    """
    tiles = math.prod(-(-side // LARGE_TILE) for side in (rows, columns))

    def clocks(parts: int) -> float:
        waves, steps = -(-tiles * parts // multiprocessors), -(-inner // (16 * parts))
        return waves * steps * STEP_CLOCKS + (parts > 1) * 8 * parts * rows * columns / BYTES_A_CLOCK

    return min(range(1, max(1, min(16, inner // 256)) + 1), key=clocks)


def by_own_kernel(kernel: str, call: Call, last: bool) -> bool:
    """Whether our kernel for small products has one: see `Supports`."""
    return kernel in ENDINGS and not (kernel == "product_bias_relu" and last)


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

    def _has(self, kernel: str, call: Call, result: Operand, last: bool = True) -> bool:
        """Whether the library has the product with `result` in the place of c."""
        return self.supports(kernel, replace(call, operands=(*call.operands[:2], result)), last)

    def _bias(self, i: int) -> bool:
        a, b, c = self.calls[i].operands
        bias = self._next(i)
        if bias is None or bias.kernel != "add_bias" or bias.operands[1] != c:
            return False
        added = bias.operands[0]
        assert added is not None
        assert c is not None
        activation = self._next(i + 1)
        if activation is not None and (activation.kernel not in ACTIVATIONS or activation.operands[0] != c):
            activation = None
        if activation is not None and activation.kernel in IN_EPILOGUES:
            kernel, y = f"product_bias_{activation.kernel}", activation.operands[1]
            assert y is not None
            saved = self._saved(activation.kernel, c, y, i)
            is_mask = activation.kernel == "relu"
            # what else is saved is of the type of the result
            if (saved != c or c.dtype == y.dtype) and self._has(kernel, self.calls[i], y, saved is not None):
                if saved is not None and is_mask:
                    self._keep_mask(y, saved)
                return self._make(i, kernel, a, b, added, y, saved, folded=2)
        # in bfloat16 the library would read a rounded bias, and the kernel of an activation reads it as it is
        left = activation is not None and c.dtype != added.dtype
        if not left and self._has("product_bias", self.calls[i], c):
            return self._make(i, "product_bias", a, b, added, c, folded=1)
        return False

    def _saved(self, kernel: str, x: Operand, y: Operand, i: int) -> Operand | None:
        """What the gradient of a fused activation will read beside or in place of y; None where nothing does."""
        if kernel == "gelu_tanh":
            return x if any(x in c.operands for c in self.calls[i + 3 :]) else None
        for k in range(i + 3, len(self.calls) - 1):
            before, gradient = self.calls[k : k + 2]
            if (
                before.kernel == "matmul"
                and gradient.kernel == "relu_grad"
                and gradient.operands[:2] == (y, before.operands[2])
            ):
                dx = gradient.operands[2]
                assert dx is not None
                if self._has("product_relu_grad", before, dx, self._sums(dx, k + 2) is not None):
                    shape = (y.shape[0], mask_bytes(y.shape[1]))
                    return Operand(ACTIVATION_ARENA, f"{y.name}.mask", shape, "uint8")
        return None

    def _keep_mask(self, y: Operand, mask: Operand) -> None:
        self.buffers[mask.name] = Segment(mask.name, mask.shape, mask.dtype)
        self.masks[y.name] = mask

    def _gradient(self, i: int) -> bool:
        """The gradient of an activation right behind, and the sums of its columns, wherever they stand."""
        a, b, c = self.calls[i].operands
        gradient = self._next(i)
        if (
            gradient is None
            or gradient.kernel not in [f"{name}_grad" for name in IN_EPILOGUES]
            or gradient.operands[1] != c
        ):
            return False
        saved, _, dx = gradient.operands
        assert saved is not None
        assert dx is not None
        if gradient.kernel == "relu_grad" and self._has("product_relu_slope", self.calls[i], dx):
            return self._make(i, "product_relu_slope", a, b, saved, dx, folded=1)
        kernel = f"product_{gradient.kernel}"
        mask = self.masks.get(saved.name) if gradient.kernel == "relu_grad" else saved
        if mask is None or (mask == saved and saved.dtype != dx.dtype):
            return False
        sums = self._sums(dx, i + 2)
        if not self._has(kernel, self.calls[i], dx, sums is not None):
            return False
        db = None
        if sums is not None:
            db = self.calls[sums].operands[1]
            self.dropped.add(sums)
        return self._make(i, kernel, a, b, mask, dx, db, folded=1)

    def _sums(self, dx: Operand, start: int) -> int | None:
        """Where the columns of `dx` are summed into a vector of its type, as the library does it."""
        sums = find_column_sums(self.calls, start, dx, self.dropped)
        db = None if sums is None else self.calls[sums].operands[1]
        return sums if db is not None and db.dtype == dx.dtype else None

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
