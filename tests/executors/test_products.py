"""Products with an epilogue: what the rewrites make of a program, and that it stays the same program."""

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors.lowering import lower
from gpumlp.executors.products import ENDINGS, by_own_kernel, fuse_epilogues
from gpumlp.kernels.reference.epilogues import pack_mask, unpack_mask
from gpumlp.kernels.reference.products import from_bfloat16, to_bfloat16
from gpumlp.program import Builder
from tests.executors.programs import ALL, having, kernels_of, network, run, step_program

LIBRARIES = {
    "all": ALL,
    "no relu_grad": ALL - {"product_relu_grad"},
    "bias alone": {"product_bias"},
    "bias_grad alone": {"product_bias_grad"},
    "our own": set(ENDINGS),
    "none": set(),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh", "sigmoid"])
def test_a_step_with_epilogues_gives_the_same_gradients_and_parameters(
    activation, dropout, library, assert_close
):
    activation = gm.GELU(approximate="tanh") if activation == "gelu_tanh" else activation
    plain = run(network(activation, dropout), ())
    fused = run(network(activation, dropout), (fuse_epilogues(having(LIBRARIES[library])),))
    for before, after in zip(plain, fused, strict=True):
        for name in before:
            assert_close(after[name], before[name], 1e-13)


def test_a_relu_network_keeps_no_bias_activation_or_column_sum_of_its_own():
    found = kernels_of(lower(step_program(network("relu")), (fuse_epilogues(having(ALL)),)))
    assert not {"matmul", "add_bias", "relu", "relu_grad", "column_sums"} & set(found) - {"matmul"}
    assert found.count("product_bias_relu") == 2
    assert found.count("product_bias") == 1
    assert found.count("product_relu_grad") == 2
    # of the last layer; those below come with the gradient of relu
    assert found.count("product_bias_grad") == 1
    assert found.count("matmul") == 2  # the weight gradients below


def test_our_own_products_take_relu_its_gradient_and_the_sums_of_biases_along():
    found = kernels_of(lower(step_program(network("relu")), (fuse_epilogues(by_own_kernel),)))
    assert not {"add_bias", "relu_grad", "column_sums"} & set(found)
    assert found.count("product_bias_relu") == 2
    assert found.count("product_bias") == 1
    assert found.count("product_relu_slope") == 2
    assert found.count("product_bias_grad") == 3


def test_what_is_not_supported_stays_as_it_was():
    program = step_program(network("relu"))
    assert kernels_of(lower(program, (fuse_epilogues(having(())),))) == kernels_of(program)


def test_a_relu_whose_gradient_does_not_follow_a_product_keeps_no_mask():
    program = lower(step_program(network("relu", dropout=0.5)), (fuse_epilogues(having(ALL)),))
    products = [c for c in program.calls if c.kernel == "product_bias_relu"]
    assert [c.operands[-1] for c in products] == [None, None]
    assert "relu_grad" in kernels_of(program)


def test_inference_saves_nothing_for_a_backward_pass():
    net = network("relu")
    b = Builder(4, net.dtype, training=False)
    x = b.buffer("x", 4, 7, keep=True)
    b.keep(net.emit_forward(b, x)[-1])
    program = lower(b.finish(), (fuse_epilogues(having(ALL)),))
    assert not any(".mask" in name for name in program.buffers)


@pytest.mark.parametrize("columns", [1, 7, 8, 127, 128, 129, 300])
def test_a_mask_is_unpacked_as_it_was_packed(columns):
    positive = np.random.default_rng(columns).random((5, columns)) > 0.5
    assert np.array_equal(unpack_mask(np, pack_mask(np, positive), columns), positive)
    assert pack_mask(np, positive).shape[1] % 16 == 0


def test_bfloat16_is_rounded_to_nearest_even():
    # 1 + 2^-8 lies halfway between 1 and 1 + 2^-7: to the even one; 1 + 3 2^-8 halfway to the next even one
    given = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0, np.inf, 3.4e38], np.float32)
    expected = np.array([1, 1 + 2**-6, 1 + 2**-7, -0.0, np.inf, np.inf], np.float32)
    assert np.array_equal(from_bfloat16(np, to_bfloat16(np, given)), expected)


def test_bfloat16_keeps_every_nan():
    nans = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(from_bfloat16(np, to_bfloat16(np, nans))).all()
