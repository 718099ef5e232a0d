"""Formulas of activations in several nodes, in any order of writing."""

import math

import pytest

import gpumlp as gm
from gpumlp.interop.onnx_patterns import X, activation_of, apply, product, total


def node(op, *operands, **attributes):
    return apply(op, operands, attributes)


@pytest.mark.parametrize(
    "formula",
    [
        # x / sqrt 2, erf, + 1, times x, halved
        node("Mul", node("Mul", X, node("Add", node("Erf", node("Div", X, math.sqrt(2))), 1.0)), 0.5),
        # x halved first, and 1 in front
        node("Mul", node("Mul", 0.5, X), node("Add", 1.0, node("Erf", node("Mul", X, 0.70710677)))),
        node("Mul", X, node("Mul", node("Add", node("Erf", node("Mul", 0.70710677, X)), 1.0), 0.5)),
    ],
)
def test_gelu_is_known_in_each_order(formula):
    layer = activation_of(formula)
    assert isinstance(layer, gm.GELU)
    assert layer.approximate == "none"


@pytest.mark.parametrize("cube", [node("Pow", X, 3.0), node("Mul", X, node("Mul", X, X))])
def test_approximate_gelu_is_known_with_a_power_or_products(cube):
    inner = node("Mul", math.sqrt(2 / math.pi), node("Add", X, node("Mul", 0.044715, cube)))
    layer = activation_of(node("Mul", node("Mul", 0.5, X), node("Add", 1.0, node("Tanh", inner))))
    assert isinstance(layer, gm.GELU)
    assert layer.approximate == "tanh"


def test_silu_mish_and_softplus_with_a_beta_are_known():
    assert isinstance(activation_of(node("Mul", node("Sigmoid", X), X)), gm.SiLU)
    assert isinstance(activation_of(node("Mul", X, node("Tanh", node("Softplus", X)))), gm.Mish)
    soft = node("Div", node("Softplus", node("Mul", X, 2.5)), 2.5)
    assert repr(activation_of(soft)) == "Softplus(beta=2.5)"
    above = node("Greater", node("Mul", X, 2.5), 20.0)
    assert repr(activation_of(node("Where", above, X, soft))) == "Softplus(beta=2.5)"


@pytest.mark.parametrize(
    "formula",
    [
        node("Mul", X, node("Sigmoid", node("Mul", X, 1.702))),  # another approximation of gelu
        node("Mul", node("Mul", X, node("Add", node("Erf", node("Div", X, 2.0)), 1.0)), 0.5),
        node("Mul", X, node("Add", node("Erf", node("Div", X, math.sqrt(2))), 1.0)),  # not halved
        node("Div", node("Softplus", node("Mul", X, 2.0)), 3.0),
        node("Add", X, 1.0),
        node("Mul", X, 2.0),
        node("Selu", X, alpha=1.0, gamma=1.0),
        node("Relu", node("Relu", X)),
    ],
)
def test_a_formula_that_is_a_little_different_is_not(formula):
    assert activation_of(formula) is None


def test_products_and_sums_have_one_form():
    a, b = ("Relu", X), ("Tanh", X)
    assert product(a, product(2.0, b)) == product(product(b, 4.0), a, 0.5)
    assert total(a, total(2.0, b)) == total(total(b, 1.0), a, 1.0)
    assert product(2.0, 3.0) == 6.0
    assert product(1.0, a) == a
    assert total(0.0, a) == a
    assert node("Sub", 3.0, 1.0) == 2.0
    assert node("Neg", node("Neg", X)) == X


def test_what_has_no_normal_form_is_told_by_none():
    assert node("Div", 1.0, X) is None
    assert node("Pow", X, 0.5) is None
    assert node("Where", ("Greater", X, 1.0), X, ("Softplus", X)) is None
