"""Products with an epilogue, as libraries for GPUs have them, in terms of the plain kernels."""

from __future__ import annotations

from typing import Any

from .. import ACTIVATIONS, BAD_STEP, UPDATES, mask_bytes
from . import activations, optimizers, products

Array = Any


def cast_bf16(xp: Any, x: Array, y: Array) -> None:
    y[...] = products.to_bfloat16(xp, x)


def pack_mask(xp: Any, positive: Array) -> Array:
    """Return a mask, uint8 (rows, mask_bytes(columns)), whose bit 0 of byte 0 is the first column."""
    rows, columns = positive.shape
    bits = xp.zeros((rows, mask_bytes(columns), 8), dtype=xp.uint8)
    bits.reshape(rows, -1)[:, :columns] = positive
    return (bits << xp.arange(8, dtype=xp.uint8)).sum(axis=2).astype(xp.uint8)


def unpack_mask(xp: Any, mask: Array, columns: int) -> Array:
    """Return what `pack_mask` packed, as booleans (rows, columns)."""
    bits = (mask[:, :, None] >> xp.arange(8, dtype=xp.uint8)) & xp.uint8(1)
    return bits.reshape(len(mask), -1)[:, :columns] != 0


def product_bias(
    xp: Any, a: Array, b: Array, bias: Array, c: Array, transpose_a: bool, transpose_b: bool
) -> None:
    products.matmul(xp, a, b, c, transpose_a, transpose_b)
    products.add_bias(xp, bias, c)


def product_bias_relu(
    xp: Any, a: Array, b: Array, bias: Array, c: Array, mask: Any, transpose_a: bool, transpose_b: bool
) -> None:
    product_bias(xp, a, b, bias, c, transpose_a, transpose_b)
    activations.relu(xp, c, c)
    if mask is not None:
        mask[...] = pack_mask(xp, c > 0)


def product_bias_gelu_tanh(
    xp: Any, a: Array, b: Array, bias: Array, c: Array, x: Any, transpose_a: bool, transpose_b: bool
) -> None:
    product_bias(xp, a, b, bias, c, transpose_a, transpose_b)
    if x is not None:
        x[...] = c
    activations.gelu_tanh(xp, c, c)


def product_bias_grad(
    xp: Any, a: Array, b: Array, c: Array, db: Array, transpose_a: bool, transpose_b: bool
) -> None:
    products.matmul(xp, a, b, c, transpose_a, transpose_b)
    products.column_sums(xp, b, db)


def product_relu_grad(
    xp: Any, a: Array, b: Array, mask: Array, c: Array, db: Any, transpose_a: bool, transpose_b: bool
) -> None:
    products.matmul(xp, a, b, c, transpose_a, transpose_b)
    xp.multiply(c, unpack_mask(xp, mask, c.shape[1]), out=c)
    if db is not None:
        products.column_sums(xp, c, db)


def product_relu_slope(
    xp: Any, a: Array, b: Array, y: Array, c: Array, transpose_a: bool, transpose_b: bool
) -> None:
    products.matmul(xp, a, b, c, transpose_a, transpose_b)
    activations.relu_grad(xp, y, c, c)


def product_gelu_tanh_grad(
    xp: Any, a: Array, b: Array, x: Array, c: Array, db: Any, transpose_a: bool, transpose_b: bool
) -> None:
    products.matmul(xp, a, b, c, transpose_a, transpose_b)
    activations.gelu_tanh_grad(xp, x, c, c)
    if db is not None:
        products.column_sums(xp, c, db)


def _bias_activation_product(name: str) -> Any:
    apply, reads_x = getattr(activations, name), ACTIVATIONS[name] == "x"

    def fused(xp: Any, bias: Any, b: Array, added: Any, x: Array, y: Any, c: Array, **scalars: Any) -> None:
        biased = x if bias is None else x + bias
        if reads_x and y is not None:
            x[...] = biased  # the gradient reads x, bias included
        activated = xp.empty_like(x) if y is None else y
        apply(xp, biased, activated, **scalars)
        products.matmul(xp, activated, b, c)
        if added is not None:
            products.add_bias(xp, added, c)

    return fused


def _product_gradient(name: str) -> Any:
    gradient = getattr(activations, f"{name}_grad")

    def fused(xp: Any, a: Array, b: Array, saved: Array, dx: Array, **scalars: Any) -> None:
        dy = xp.empty_like(dx)  # `dx` may lie where `saved` does
        products.matmul(xp, a, b, dy, transpose_b=True)
        gradient(xp, saved, dy, dx, **scalars)

    return fused


def _product_gradient_sums(name: str) -> Any:
    product_gradient = _product_gradient(name)

    def fused(
        xp: Any, a: Array, b: Array, saved: Array, dx: Array, dw: Array, db: Any, da: Any, **scalars: Any
    ) -> None:
        products.matmul(xp, saved, a, dw, transpose_a=True)
        product_gradient(xp, a, b, saved, dx, **scalars)
        if db is not None:
            products.column_sums(xp, dx, db)
        if da is not None:
            products.column_sums(xp, a, da)

    return fused


def _update_and_cast(name: str) -> Any:
    update = getattr(optimizers, name)

    def fused(xp: Any, control: Array, rates: Array, gradients: Array, *changed: Any, **scalars: Any) -> None:
        *updated, copy = changed
        update(xp, control, rates, gradients, *updated, **scalars)
        if control[BAD_STEP] < 0:
            cast_bf16(xp, updated[0], copy)

    return fused


KERNELS: dict[str, Any] = {
    "cast_bf16": cast_bf16,
    **{f"{name}_cast": _update_and_cast(name) for name in UPDATES},
    "product_bias": product_bias,
    "product_bias_relu": product_bias_relu,
    "product_bias_gelu_tanh": product_bias_gelu_tanh,
    "product_bias_grad": product_bias_grad,
    "product_relu_grad": product_relu_grad,
    "product_relu_slope": product_relu_slope,
    "product_gelu_tanh_grad": product_gelu_tanh_grad,
    **{f"bias_{name}_narrow": _bias_activation_product(name) for name in ACTIVATIONS},
    **{f"narrow_{name}_grad": _product_gradient(name) for name in ACTIVATIONS},
    **{
        f"narrow_{name}_grad_sums": _product_gradient_sums(name)
        for name, saved in ACTIVATIONS.items()
        if saved == "y"
    },
}
