"""Rewrites for layers with few outputs, such as the last one of a classifier.

Their products cost less than writing the wide matrix beside them down and reading it once more. So they go into one
kernel with the activation of the layer below, or with its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from ..kernels import ACTIVATIONS, IN_EPILOGUES, NARROW
from ..program import Call, Operand, Program
from .lowering import GRADIENTS, find_column_sums, substitute


def fuse_narrow_products(program: Program, left: Collection[str] = IN_EPILOGUES) -> Program:
    """Make one call of an activation, the bias before it, a product with few columns, and the bias behind that.

    Args:
        left: activations that stay as they are, for a library to do in an epilogue.
    """
    calls = list(program.calls)
    dropped: set[int] = set()
    for i, call in enumerate(calls):
        if call.kernel not in ACTIVATIONS or call.kernel in left or i + 1 == len(calls):
            continue
        x, y = call.operands
        product = calls[i + 1]
        if product.kernel != "matmul" or not _is_plain(product) or product.operands[0] != y:
            continue
        _, b, c = product.operands
        assert c is not None
        if c.shape[1] > NARROW:
            continue
        bias = _bias_of(calls, i - 1, x, dropped)
        added = _bias_of(calls, i + 2, c, dropped)
        kept = y if _is_read_again(program, (x, y), i + 2) else None
        operands = (bias, b, added, x, kept, c)
        kernel = f"bias_{call.kernel}_narrow"
        calls[i + 1] = replace(product, kernel=kernel, operands=operands, scalars=call.scalars)
        dropped.add(i)
    return substitute(replace(program, calls=tuple(calls)), {}, dropped)


def _is_read_again(program: Program, tensors: Sequence[Operand | None], start: int) -> bool:
    """Whether a call from `start` on, or what follows the program, reads one of some tensors."""
    read = {o.name for call in program.calls[start:] for o in call.operands if o is not None}
    return any(o is not None and o.name in read | program.keep for o in tensors)


def _is_plain(product: Call) -> bool:
    return not product.scalars["transpose_a"] and not product.scalars["transpose_b"]


def _bias_of(calls: Sequence[Call], i: int, x: Operand | None, dropped: set[int]) -> Operand | None:
    """The bias that call i adds to `x`, if it does; the call goes."""
    if not 0 <= i < len(calls) or i in dropped or calls[i].kernel != "add_bias" or calls[i].operands[1] != x:
        return None
    dropped.add(i)
    return calls[i].operands[0]


def fuse_narrow_gradients(program: Program, pays: Callable[[Call], bool] = lambda product: True) -> Program:
    """Make one call of a product with a short inner side and the gradient of the activation behind it.

    Where they read the same matrices, the gradient of the weight goes along, and with it those of the bias below and of
    the layer's own.

    Args:
        pays: whether that is better for a product than to leave it as it is.
    """
    calls = list(program.calls)
    dropped: set[int] = set()
    for i, gradient in enumerate(calls[1:], start=1):
        product = calls[i - 1]
        if gradient.kernel not in GRADIENTS or product.kernel != "matmul" or i - 1 in dropped:
            continue
        a, b, c = product.operands
        saved, dy, dx = gradient.operands
        if dy != c or not _is_short(product) or not _is_read_once(program, c) or not pays(product):
            continue
        kernel, operands = f"narrow_{gradient.kernel}", [a, b, saved, dx]
        weight = _weight_gradient(calls[: i - 1], saved, a)
        if weight is not None:  # the activation's gradient reads y
            kernel += "_sums"
            operands.append(calls[weight].operands[2])
            dropped.add(weight)
            for sums in find_column_sums(calls, i + 1, dx, dropped), find_column_sums(calls, 0, a, dropped):
                operands.append(None if sums is None else calls[sums].operands[1])
                if sums is not None:
                    dropped.add(sums)
        calls[i] = replace(gradient, kernel=kernel, operands=tuple(operands))
        dropped.add(i - 1)
    return substitute(replace(program, calls=tuple(calls)), {}, dropped)


def _is_short(product: Call) -> bool:
    """Whether it is the gradient of an input, with a short inner side."""
    a = product.operands[0]
    assert a is not None
    return not product.scalars["transpose_a"] and product.scalars["transpose_b"] and a.shape[1] <= NARROW


def _is_read_once(program: Program, tensor: Operand | None) -> bool:
    """Whether nothing but a call that writes it and one that reads it names a tensor."""
    named = sum(o is not None and o == tensor for call in program.calls for o in call.operands)
    return tensor is not None and named == 2 and tensor.name not in program.keep


def _weight_gradient(calls: Sequence[Call], y: Operand | None, dy: Operand | None) -> int | None:
    """The place of the product of `y`, turned, and `dy`, whose result lies together."""
    for k, call in enumerate(calls):
        if call.kernel == "matmul" and call.operands[:2] == (y, dy):
            turned = call.scalars["transpose_a"] and not call.scalars["transpose_b"]
            dw = call.operands[2]
            if turned and dw is not None and dw.stride is None:
                return k
    return None
