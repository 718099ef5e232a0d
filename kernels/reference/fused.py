"""What one pass of a fused kernel must give: the plain kernels one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import ACTIVATIONS
from . import activations, products

Array = Any


def _bias_then(name: str, saved: str) -> Callable[..., None]:
    apply = getattr(activations, name)

    def fused(xp: Any, bias: Array, x: Array, y: Array, **scalars: Any) -> None:
        if saved == "y":
            apply(xp, x + bias, y, **scalars)
        else:  # the gradient reads x, bias included
            x += bias
            apply(xp, x, y, **scalars)

    return fused


def _gradient_then_sums(name: str) -> Callable[..., None]:
    apply = getattr(activations, f"{name}_grad")

    def fused(xp: Any, saved: Array, dy: Array, dx: Array, db: Array, **scalars: Any) -> None:
        apply(xp, saved, dy, dx, **scalars)
        products.column_sums(xp, dx, db)

    return fused


KERNELS = {f"bias_{name}": _bias_then(name, saved) for name, saved in ACTIVATIONS.items()} | {
    f"{name}_grad_bias": _gradient_then_sums(name) for name in ACTIVATIONS
}
