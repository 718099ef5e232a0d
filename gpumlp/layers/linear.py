"""The dense layer."""

from __future__ import annotations

from typing import Any

from ..checks import check_count
from ..initializers import get_initializer
from ..program import Builder, Operand
from .base import Layer


class Linear(Layer):
    """y = x weight + bias.

    Args:
        in_features, out_features: widths.
        bias: whether there is one.
        weight_init: an initializer, its name, or a number; Glorot & Bengio's (2010) uniform one by default.
        bias_init: the same for the bias; zero by default.

    Parameters: `weight` (in_features, out_features), which decays; `bias` (out_features,), which does not.
    """

    declares = ("weight", "bias")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        weight_init: Any = "glorot_uniform",
        bias_init: Any = "zeros",
    ) -> None:
        self.in_features = check_count("in_features", in_features)
        self.out_features = check_count("out_features", out_features)
        self.has_bias = bool(bias)
        self.weight_init = get_initializer(weight_init)
        self.bias_init = get_initializer(bias_init)

    @property
    def expected_features(self) -> int | None:
        return self.in_features

    def build(self, in_features: int) -> int:
        assert self.out_features is not None
        fan = (in_features, self.out_features)
        self.add_parameter("weight", fan, self.weight_init, decays=True, fan=fan)
        if self.has_bias:
            self.add_parameter("bias", (self.out_features,), self.bias_init, fan=fan)
        return self.out_features

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": "linear",
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.has_bias,
            "weight_init": self.weight_init.to_dict(),
            "bias_init": self.bias_init.to_dict(),
        }

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features}{'' if self.has_bias else ', bias=False'})"

    def emit_forward(self, b: Builder, x: Operand) -> Operand:
        y = b.buffer("y", b.rows, b.parameter("weight").shape[1])
        b.call("matmul", x, b.parameter("weight"), y, transpose_a=False, transpose_b=False)
        if self.has_bias:
            b.call("add_bias", b.parameter("bias"), y)
        return y

    def emit_backward(self, b: Builder, x: Operand, y: Operand, dy: Operand, need_dx: bool) -> Operand | None:
        if self.trainable:
            b.call("matmul", x, dy, b.gradient("weight"), transpose_a=True, transpose_b=False)
            if self.has_bias:
                b.call("column_sums", dy, b.gradient("bias"))
        if not need_dx:
            return None
        dx = b.buffer("dx", *x.shape)
        b.call("matmul", dy, b.parameter("weight"), dx, transpose_a=False, transpose_b=True)
        return dx
