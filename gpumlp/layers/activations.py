"""Activations: element-wise ones, softmax over a row, and layers whose units differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from ..program import Builder, Operand
from ..registry import build
from ..settings import above_zero, check_number
from .base import Layer


class Activation(Layer):
    """An element-wise function, as a pair of kernels.

    A subclass names its kernel, the tensor that the gradient reads (`saves`: "x" or "y"), and its settings.
    """

    kernel: str
    saves: str = "x"
    settings: tuple[str, ...] = ()

    def _scalars(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.settings}

    def apply(self, b: Builder, x: Operand, y: Operand) -> None:
        """Write y = f(x)."""
        b.call(self.kernel, x, y, **self._scalars())

    def apply_gradient(self, b: Builder, x: Operand, y: Operand, dy: Operand, dx: Operand) -> None:
        """Write dx = dy f'(x)."""
        saved = x if self.saves == "x" else y
        b.call(f"{self.kernel}_grad", saved, dy, dx, **self._scalars())

    def emit_forward(self, b: Builder, x: Operand) -> Operand:
        y = b.buffer("y", *x.shape)
        self.apply(b, x, y)
        return y

    def emit_backward(self, b: Builder, x: Operand, y: Operand, dy: Operand, need_dx: bool) -> Operand | None:
        if not need_dx:
            return None
        dx = b.buffer("dx", *x.shape)
        self.apply_gradient(b, x, y, dy, dx)
        return dx


class Identity(Activation):
    """y = x."""

    kernel = "copy"

    def apply_gradient(self, b: Builder, x: Operand, y: Operand, dy: Operand, dx: Operand) -> None:
        b.call("copy", dy, dx)

    def emit_forward(self, b: Builder, x: Operand) -> Operand:
        return x

    def emit_backward(self, b: Builder, x: Operand, y: Operand, dy: Operand, need_dx: bool) -> Operand | None:
        return dy


class ReLU(Activation):
    """y = max(x, 0)."""

    kernel, saves = "relu", "y"


class LeakyReLU(Activation):
    """y = x where x > 0, else negative_slope x; Maas et al. 2013."""

    kernel, settings = "leaky_relu", ("negative_slope",)

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = check_number("negative_slope of LeakyReLU", negative_slope, "a finite number")


class ELU(Activation):
    """y = x where x > 0, else alpha (exp(x) - 1); Clevert et al. 2016."""

    kernel, settings = "elu", ("alpha",)

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = check_number("alpha of ELU", alpha, "a finite number")


class SELU(Activation):
    """Scaled ELU with fixed constants, which keeps mean 0 and variance 1; Klambauer et al. 2017."""

    kernel = "selu"


class GELU(Activation):
    """y = x Phi(x), Phi the normal distribution function; Hendrycks & Gimpel 2016.

    Args:
        approximate: "none" for the error function, "tanh" for the approximation of the paper.
    """

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(f'approximate of GELU is {approximate!r}; expected "none" or "tanh"')
        self.approximate = approximate

    @property
    def kernel(self) -> str:  # type: ignore[override]
        return "gelu" if self.approximate == "none" else "gelu_tanh"


class SiLU(Activation):
    """y = x sigmoid(x), also called swish; Elfwing et al. 2018."""

    kernel = "silu"


class Mish(Activation):
    """y = x tanh(softplus(x)); Misra 2019."""

    kernel = "mish"


class Softplus(Activation):
    """y = log(1 + exp(beta x)) / beta, beta > 0."""

    kernel, settings = "softplus", ("beta",)

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = check_number("beta of Softplus", beta, "a number greater than 0", above_zero)


class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x))."""

    kernel, saves = "sigmoid", "y"


class Tanh(Activation):
    """y = tanh(x)."""

    kernel, saves = "tanh", "y"


class Softmax(Activation):
    """y = exp(x) / sum(exp(x)) over the features of each row."""

    kernel, saves = "softmax", "y"


ACTIVATIONS: dict[str, type[Activation]] = {
    "identity": Identity,
    "linear": Identity,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "selu": SELU,
    "gelu": GELU,
    "silu": SiLU,
    "swish": SiLU,
    "mish": Mish,
    "softplus": Softplus,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "softmax": Softmax,
}


def get_activation(spec: str | Mapping[str, Any] | Activation) -> Activation:
    """Return an activation from an object, a name, or ``{"name": ..., **settings}``.

    Raises:
        ValueError: unknown name or setting, or a bad value of one.
        TypeError: none of the three.
    """
    return build("activation", spec, Activation, ACTIVATIONS)


class PerUnit(Layer):
    """A layer whose units have activations of their own.

    Each run of equal neighbours is one call on a block of columns, so sort the units where the order is free.

    Args:
        units: an activation for each feature: objects or names.

    Raises:
        ValueError: no unit, or softmax, which is not a function of one unit.
    """

    def __init__(self, units: Sequence[str | Mapping[str, Any] | Activation]) -> None:
        self.units = [get_activation(u) for u in units]
        if not self.units:
            raise ValueError("PerUnit got no units; give one activation for each feature")
        if any(isinstance(u, Softmax) for u in self.units):
            raise ValueError("PerUnit got softmax, which needs a whole row; put a Softmax layer behind it")

    @property
    def expected_features(self) -> int:
        return len(self.units)

    def to_dict(self) -> dict[str, Any]:
        return {"name": "per_unit", "units": [u.to_dict() for u in self.units]}

    def __repr__(self) -> str:
        return f"PerUnit({', '.join(f'{last - first} {unit!r}' for unit, first, last in self._blocks())})"

    def _blocks(self) -> list[tuple[Activation, int, int]]:
        """Each run of equal neighbours: its activation, first column, and the column behind the last."""
        blocks, first = [], 0
        for _, group in groupby(self.units, key=Activation.to_dict):
            run = list(group)
            blocks.append((run[0], first, first + len(run)))
            first += len(run)
        return blocks

    def emit_forward(self, b: Builder, x: Operand) -> Operand:
        y = b.buffer("y", *x.shape)
        for unit, *span in self._blocks():
            unit.apply(b, x.columns(*span), y.columns(*span))
        return y

    def emit_backward(self, b: Builder, x: Operand, y: Operand, dy: Operand, need_dx: bool) -> Operand | None:
        if not need_dx:
            return None
        dx = b.buffer("dx", *x.shape)
        for unit, *span in self._blocks():
            unit.apply_gradient(b, *(o.columns(*span) for o in (x, y, dy, dx)))
        return dx
