"""Layers that add noise in training and nothing in inference."""

from __future__ import annotations

from ..program import Builder, Operand
from ..settings import check_number, from_zero
from .base import Layer


class Dropout(Layer):
    """Set each value to 0 with probability `rate` in training and scale the others by 1 / (1 - rate).

    Srivastava et al. 2014. The mask is drawn anew at each step from (seed, layer, step, row, column).

    Args:
        rate: in [0, 1).

    Raises:
        ValueError: a rate outside.
    """

    def __init__(self, rate: float = 0.5) -> None:
        expected = "a number of at least 0 and less than 1"
        self.rate = check_number("dropout rate", rate, expected, lambda rate: 0 <= rate < 1)

    def emit_forward(self, b: Builder, x: Operand) -> Operand:
        if not b.training or self.rate == 0:
            return x
        y = b.buffer("y", *x.shape)
        b.call("dropout", b.control, x, y, rate=self.rate, layer=int(self.key))
        return y

    def emit_backward(self, b: Builder, x: Operand, y: Operand, dy: Operand, need_dx: bool) -> Operand | None:
        if self.rate == 0 or not need_dx:
            return dy
        dx = b.buffer("dx", *x.shape)
        b.call("dropout_grad", b.control, dy, dx, rate=self.rate, layer=int(self.key))
        return dx


class GaussianNoise(Layer):
    """Add normal noise of standard deviation `std` in training.

    Args:
        std: at least 0.

    Raises:
        ValueError: negative or not finite.
    """

    def __init__(self, std: float = 0.1) -> None:
        self.std = check_number("std of the noise", std, "a finite number of at least 0", from_zero)

    def emit_forward(self, b: Builder, x: Operand) -> Operand:
        if not b.training or self.std == 0:
            return x
        y = b.buffer("y", *x.shape)
        b.call("gaussian_noise", b.control, x, y, std=self.std, layer=int(self.key))
        return y

    def emit_backward(self, b: Builder, x: Operand, y: Operand, dy: Operand, need_dx: bool) -> Operand | None:
        return dy
