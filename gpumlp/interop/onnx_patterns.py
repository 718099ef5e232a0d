"""Activations that an ONNX graph writes in several nodes, known by their formulas.

PyTorch writes SiLU as Mul(x, Sigmoid(x)), GELU before operator set 20 as Div, Erf, Add, Mul, Mul, and so on, each
exporter in an order of its own. A formula is therefore brought to a normal form: a product is a coefficient and its
sorted factors, a sum a constant and its sorted terms; then it is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..layers import (
    ELU,
    GELU,
    SELU,
    Layer,
    LeakyReLU,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)

Formula = Any
"""X, a number, or (operator, ...): ("*", coefficient, factors), ("+", constant, terms), (name, operand, ...)."""

X: Formula = ("x",)
ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Where", "Greater"),
    *("Relu", "LeakyRelu", "Elu", "Selu", "Gelu", "Mish", "Softplus", "Sigmoid", "Tanh", "Erf", "Swish"),
)


def product(*parts: Formula) -> Formula:
    """The normal form of a product."""
    coefficient, factors = 1.0, []
    for part in parts:
        if isinstance(part, float):
            coefficient *= part
        elif part[0] == "*":
            coefficient *= part[1]
            factors += part[2]
        else:
            factors.append(part)
    if not factors or coefficient == 0:
        return coefficient if not factors else 0.0
    if coefficient == 1 and len(factors) == 1:
        return factors[0]
    return ("*", coefficient, tuple(sorted(factors, key=repr)))


def total(*parts: Formula) -> Formula:
    """The normal form of a sum."""
    constant, terms = 0.0, []
    for part in parts:
        if isinstance(part, float):
            constant += part
        elif part[0] == "+":
            constant += part[1]
            terms += part[2]
        else:
            terms.append(part)
    if not terms:
        return constant
    if constant == 0 and len(terms) == 1:
        return terms[0]
    return ("+", constant, tuple(sorted(terms, key=repr)))


def _power(base: Formula, exponent: Formula) -> Formula | None:
    whole = isinstance(exponent, float) and exponent in (1.0, 2.0, 3.0)
    return product(*[base] * int(exponent)) if whole else None


def _without_threshold(condition: Formula, large: Formula, small: Formula) -> Formula | None:
    """PyTorch's softplus is x itself above a threshold of 20, where the two differ by 2e-9."""
    if condition[0] == "Greater" and large == X and condition[2] == 20.0 and "Softplus" in repr(small):
        return small
    return None


def apply(op: str, operands: Sequence[Formula], attributes: dict[str, Any]) -> Formula | None:
    """The normal form of an operator on formulas; None where it has none."""
    if op == "Mul":
        return product(*operands)
    if op == "Add":
        return total(*operands)
    if op == "Sub":
        return total(operands[0], product(-1.0, operands[1]))
    if op == "Neg":
        return product(-1.0, operands[0])
    if op == "Div":
        divisor = operands[1]
        return product(operands[0], 1 / divisor) if isinstance(divisor, float) and divisor else None
    if op == "Pow":
        return _power(*operands)
    if op == "Where":
        return _without_threshold(*operands)
    settings = tuple(sorted((key, value) for key, value in attributes.items()))
    return (op, *operands, *([settings] if settings else []))


def _alike(a: Formula, b: Formula) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5)  # constants are written in float32, or with a few digits
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return bool(a == b)


def _gelu(inner: Formula) -> Formula:
    return product(0.5, X, total(1.0, inner))


_CUBIC = total(X, product(0.044715, X, X, X))
_FIXED: list[tuple[Formula, Callable[[], Layer]]] = [
    (("Relu", X), ReLU),
    (("Sigmoid", X), Sigmoid),
    (("Tanh", X), Tanh),
    (("Mish", X), Mish),
    (product(X, ("Tanh", ("Softplus", X))), Mish),
    (("Swish", X), SiLU),
    (product(X, ("Sigmoid", X)), SiLU),
    (_gelu(("Erf", product(1 / math.sqrt(2), X))), GELU),
    (_gelu(("Tanh", product(math.sqrt(2 / math.pi), _CUBIC))), lambda: GELU("tanh")),
]
_SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}


def activation_of(formula: Formula) -> Layer | None:
    """Return the activation that a formula of X is, None where gpumlp has no such one."""
    for known, make in _FIXED:
        if _alike(formula, known):
            return make()
    if formula[0] == "*" and len(formula[2]) == 1:  # softplus(beta x) / beta
        inner = formula[2][0]
        if inner[0] == "Softplus" and _alike(inner[1], product(1 / formula[1], X)):
            return Softplus(round(1 / formula[1], 12))
    if len(formula) not in (2, 3) or formula[1] != X:
        return None
    attributes = dict(formula[2]) if len(formula) == 3 else {}
    return _with_settings(formula[0], attributes)


def _with_settings(op: str, attributes: dict[str, Any]) -> Layer | None:
    """A single node: its attributes, or the standard's defaults."""
    if op == "LeakyRelu":
        return LeakyReLU(attributes.get("alpha", 0.01))
    if op == "Elu":
        return ELU(attributes.get("alpha", 1.0))
    if op == "Gelu":
        return GELU(attributes.get("approximate", "none"))
    if op == "Softplus":
        return Softplus()
    if op == "Selu" and all(
        math.isclose(attributes.get(key, value), value, rel_tol=1e-6) for key, value in _SELU.items()
    ):
        return SELU()
    if op == "Swish" and attributes.get("alpha", 1.0) == 1.0:
        return SiLU()
    return None
