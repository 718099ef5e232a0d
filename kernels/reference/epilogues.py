"""Products with an epilogue, as libraries for GPUs have them, in terms of the plain kernels."""

from __future__ import annotations

from typing import Any

from .. import ACTIVATIONS, mask_bytes
from . import activations, products

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


def product_gelu_tanh_grad(
    xp: Any, a: Array, b: Array, x: Array, c: Array, db: Any, transpose_a: bool, transpose_b: bool
) -> None:
    products.matmul(xp, a, b, c, transpose_a, transpose_b)
    activations.gelu_tanh_grad(xp, x, c, c)
    if db is not None:
        products.column_sums(xp, c, db)


def _narrow(name: str) -> Any:
    gradient = getattr(activations, f"{name}_grad")

    def product_and_gradient(xp: Any, a: Array, b: Array, saved: Array, dx: Array, **scalars: Any) -> None:
        products.matmul(xp, a, b, dx, transpose_b=True)
        gradient(xp, saved, dx, dx, **scalars)

    return product_and_gradient


KERNELS: dict[str, Any] = {
    "cast_bf16": cast_bf16,
    "product_bias": product_bias,
    "product_bias_relu": product_bias_relu,
    "product_bias_gelu_tanh": product_bias_gelu_tanh,
    "product_bias_grad": product_bias_grad,
    "product_relu_grad": product_relu_grad,
    "product_gelu_tanh_grad": product_gelu_tanh_grad,
    **{f"narrow_{name}_grad": _narrow(name) for name in ACTIVATIONS},
}
