"""Layers with few outputs: what the rewrites make of a program, and that it stays the same program."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors import EagerExecutor
from gpumlp.executors.lowering import fuse_bias_activation, fuse_gradient_bias, lower
from gpumlp.executors.narrow import fuse_narrow_gradients, fuse_narrow_products
from gpumlp.executors.products import fuse_epilogues
from gpumlp.program import Builder
from tests.executors.programs import ALL, having, kernels_of, memory_of, network, run, step_program

NARROW = fuse_narrow_products, fuse_narrow_gradients
LIBRARIES = {"all": ALL, "no relu_grad": ALL - {"product_relu_grad"}, "none": frozenset()}


def frozen_top(activation):
    net = network(activation)
    net.layers[-1].freeze()
    return net


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("activation", ["relu", "gelu_tanh", "elu", "tanh"])
def test_a_step_with_narrow_products_is_the_same_step(activation, dropout, library, assert_close):
    activation = gm.GELU(approximate="tanh") if activation == "gelu_tanh" else activation
    plain = run(network(activation, dropout), ())
    rewrites = *NARROW, fuse_epilogues(having(LIBRARIES[library])), fuse_bias_activation, fuse_gradient_bias
    fused = run(network(activation, dropout), rewrites)
    for before, after in zip(plain, fused, strict=True):
        for name in before:
            assert_close(after[name], before[name], 1e-13)


def test_what_stands_around_a_narrow_product_is_taken_along():
    program = step_program(network("tanh"))  # of 7, 130, 6 and 3 units
    found = kernels_of(lower(program, NARROW))
    assert found.count("bias_tanh_narrow") == found.count("narrow_tanh_grad_sums") == 2
    assert not {"tanh", "tanh_grad", "add_bias"} & set(found)
    assert found.count("matmul") == 2  # of the first layer: its output, and the gradient of its weight
    assert "column_sums" not in found  # those of the biases go along
    assert {"bias_elu_narrow", "narrow_elu_grad"} <= set(
        kernels_of(lower(step_program(network("elu")), NARROW))
    )


def test_an_activation_that_goes_into_an_epilogue_is_left_to_it():
    found = kernels_of(lower(step_program(network("relu")), NARROW))
    assert found.count("relu") == 2
    assert found.count("narrow_relu_grad_sums") == 2


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_without_a_library_every_activation_is_taken_along(activation, assert_close):
    layer = gm.GELU(approximate="tanh") if activation == "gelu_tanh" else activation
    rewrites = partial(fuse_narrow_products, left=()), fuse_narrow_gradients
    found = kernels_of(lower(step_program(network(layer)), rewrites))
    assert found.count(f"bias_{activation}_narrow") == 2
    assert not {activation, "add_bias"} & set(found)
    for before, after in zip(run(network(layer), ()), run(network(layer), rewrites), strict=True):
        for name in before:
            assert_close(after[name], before[name], 1e-13)


def test_a_network_without_biases_has_none_to_take_along(assert_close):
    def bare():
        layers = gm.Linear(7, 40, bias=False), gm.Sigmoid(), gm.Linear(40, 3, bias=False)
        return gm.Sequential(layers, seed=3, device="cpu", dtype="float64")

    calls = lower(step_program(bare()), NARROW).calls
    forward = next(c for c in calls if c.kernel == "bias_sigmoid_narrow").by_name
    assert forward["bias"] is forward["added"] is None
    backward = next(c for c in calls if c.kernel == "narrow_sigmoid_grad_sums").by_name
    assert backward["db"] is None
    for before, after in zip(run(bare(), ()), run(bare(), NARROW), strict=True):
        for name in before:
            assert_close(after[name], before[name], 1e-13)


@pytest.mark.parametrize("activation", ["tanh", "elu"])
def test_a_prediction_writes_nothing_but_the_outputs(activation, assert_close):
    net = network(activation)
    b = Builder(4, net.dtype, training=False)
    x = b.buffer("x", 4, 7, keep=True)
    output = net.emit_forward(b, x)[-1]
    b.keep(output)
    plain, lowered = b.finish(), lower(b.finish(), NARROW)
    first, second = [c.by_name for c in lowered.calls if c.kernel == f"bias_{activation}_narrow"]
    assert first["y"] is second["y"] is None
    results = []
    for program in (plain, lowered):
        executor = EagerExecutor(net.backend, memory_of(net))
        executor.prepare(program)
        executor.view(program, x)[...] = np.linspace(-1, 1, 28).reshape(4, 7)
        executor.execute(program)
        results.append(executor.view(program, output).copy())
    assert_close(results[1], results[0], 1e-13)


@pytest.mark.parametrize("activation", ["tanh", "elu"])
def test_a_frozen_layer_leaves_the_gradient_of_its_input_alone(activation, assert_close):
    found = kernels_of(lower(step_program(frozen_top(activation)), NARROW))
    assert any(name == f"narrow_{activation}_grad" for name in found)
    for before, after in zip(
        run(frozen_top(activation), ()), run(frozen_top(activation), NARROW), strict=True
    ):
        for name in before:
            assert_close(after[name], before[name], 1e-13)


def test_a_long_product_or_one_whose_result_is_read_elsewhere_is_left():
    wide = step_program(gm.mlp((7, 20, 17, 18), activation="tanh", seed=3, device="cpu"))
    assert not any("narrow" in name for name in kernels_of(lower(wide, NARROW)))
    program = step_program(network("tanh"))
    results = [c.operands[1] for c in program.calls if c.kernel == "tanh_grad"]
    kept = replace(program, keep=program.keep | {o.name for o in results if o is not None})
    assert not any(name.startswith("narrow") for name in kernels_of(lower(kept, NARROW)))
    dropped = step_program(network("tanh", dropout=0.3))  # stands between
    assert not any("narrow" in name for name in kernels_of(lower(dropped, NARROW)))
