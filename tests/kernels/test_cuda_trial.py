"""A product of a library is tried before it is trusted: what is right passes."""

from dataclasses import replace

import numpy as np
import pytest

from gpumlp.kernels import PRODUCTS, mask_bytes
from gpumlp.kernels.cuda.device import ProductKind
from gpumlp.kernels.cuda.trial import computes_right, operand_types, small
from gpumlp.kernels.reference import kernel, kernel_in_bfloat16
from gpumlp.kernels.reference.epilogues import unpack_mask

NAMES = sorted(PRODUCTS - {"matmul"})
KIND = ProductKind("product_relu_grad", 9, 20, 5, False, True, "float32", "float32")


def of(name, **changed):
    """A kind of that name; that of a bias is the gradient of weights."""
    turned = {"transpose_a": True, "transpose_b": False} if name == "product_bias_grad" else {}
    return replace(KIND, kernel=name, **turned, **changed)


def by_reference(kind, operands):
    run = kernel_in_bfloat16(kind.kernel) if kind.precision == "bf16" else kernel(kind.kernel)
    run(np, *operands, kind.transpose_a, kind.transpose_b)
    return [operands[k] for k in kind.written]


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("float32", "float32"), ("float64", "float32"), ("float32", "bf16"), ("uint16", "bf16")],
)
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_right(name, dtype, precision):
    kind = of(name, dtype=dtype, precision=precision)
    assert computes_right(kind, by_reference)
    if kind.kernel.startswith("product_relu"):
        assert computes_right(replace(kind, last=False), by_reference)


@pytest.mark.parametrize("name", NAMES)
def test_an_error_in_any_result_is_seen(name):
    kind = of(name)
    for k, place in enumerate(kind.written):
        if list(operand_types(kind))[place] == "mask":  # whose bits behind the last column are nobody's
            continue

        def wrong(kind, operands, k=k):
            found = by_reference(kind, operands)
            found[k].flat[-1] += 1
            return found

        assert not computes_right(kind, wrong)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("off", [1.5e-12, 1e-11, 1e-10])
def test_in_float64_a_result_that_is_only_nearly_right_is_refused(name, off):
    def nearly(kind, operands):
        return [
            None if o is None else o if o.dtype == np.uint8 else o * (1 + off)
            for o in by_reference(kind, operands)
        ]

    assert computes_right(of(name, dtype="float32"), nearly)
    assert not computes_right(of(name, dtype="float64"), nearly)


@pytest.mark.parametrize("shape", [(32, 128, 64), (33, 7, 129), (1, 64, 17), (280, 1, 128)])
@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (1e-11, False)])
def test_a_tanh_in_float64_that_is_nearly_right_is_refused_beside_large_sums(shape, off, passes):
    """As that of GELU is in cuBLASLt 13.1; most of what it is tried on is so large that tanh is 1 there, exactly."""

    def gelu(kind, operands):
        c, x = by_reference(kind, operands)
        t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
        return [np.where(np.abs(t) < 1, x / 2 * (1 + t * (1 + off)), c), x]

    m, n, k = shape
    kind = replace(of("product_bias_gelu_tanh", dtype="float64"), transpose_b=False)
    assert computes_right(small(replace(kind, rows=m, columns=n, inner=k)), gelu) == passes


def test_a_nan_may_be_masked_but_not_lost_elsewhere():
    def selecting(kind, operands):
        c, db = by_reference(kind, operands)
        c[...] = np.where(unpack_mask(np, operands[2], kind.columns), c, 0)
        db[...] = c.sum(axis=0)
        return [c, db]

    def losing(kind, operands):
        return [np.nan_to_num(found) for found in by_reference(kind, operands)]

    assert computes_right(KIND, selecting)
    assert not computes_right(KIND, losing)


def test_shapes_and_types_are_those_of_the_catalogue():
    kind = ProductKind("product_relu_grad", 9, 20, 5, False, True, "uint16", "bf16")
    assert operand_types(kind) == {
        "a": ((9, 5), "uint16"),
        "b": ((20, 5), "uint16"),
        "mask": ((9, mask_bytes(20)), "uint8"),
        "c": ((9, 20), "uint16"),
        "db": ((20,), "uint16"),
    }
    large = replace(kind, rows=10_000, inner=784)
    assert (small(large).rows, small(large).columns, small(large).inner) == (32, 20, 64)
