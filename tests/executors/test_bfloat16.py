"""Products in bfloat16 and the tensors between them: what is kept in it, what is copied, that the step stays near."""

from dataclasses import replace

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors.bfloat16 import (
    BFLOAT16,
    PARAMETERS_COPY,
    cast_with_update,
    keep_in_bfloat16,
    use_bfloat16,
)
from gpumlp.executors.graph import GraphExecutor
from gpumlp.executors.lowering import fuse_bias_activation, fuse_gradient_bias, lower
from gpumlp.executors.narrow import fuse_narrow_gradients, fuse_narrow_products
from gpumlp.executors.products import fuse_epilogues
from gpumlp.kernels import PRODUCTS, kernel_spec
from gpumlp.losses import get_loss
from gpumlp.program import ACTIVATION_ARENA, Builder
from gpumlp.step import DataShape, training_plan
from tests.executors.programs import ALL, having, memory_of, network, run, step_program

GELU = gm.GELU(approximate="tanh")
N = 1 << 20  # elements that the arena of parameters might have


def rewrites(library=ALL | {"matmul"}, n_parameters=N):
    supports = having(library)
    fusions = (
        *(fuse_narrow_products, fuse_narrow_gradients, fuse_epilogues(supports)),
        *(fuse_bias_activation, fuse_gradient_bias),
    )
    return keep_in_bfloat16(supports), *fusions, use_bfloat16(n_parameters)


def lowered(net, library=ALL | {"matmul"}):
    return lower(step_program(net), rewrites(library))


def types_of(program):
    return {o.name: o.dtype for c in program.calls for o in c.operands if o and o.arena == ACTIVATION_ARENA}


def normalised(activation=None):
    return gm.Sequential(
        gm.Linear(7, 130), gm.LayerNorm(130), activation or gm.ReLU(), gm.Linear(130, 3), seed=3, device="cpu"
    )


@pytest.mark.parametrize("activation", ["relu", GELU, "tanh", "silu"], ids=str)
def test_all_tensors_between_products_are_kept_in_bfloat16(activation):
    types = types_of(lowered(network(activation, dropout=0.2, dtype="float32")))
    outside = {name for name, dtype in types.items() if dtype == "float32"}
    assert {types[name] for name in types if name not in outside} <= {BFLOAT16, "uint8", "int64"}
    assert len(outside) == 1  # the output, which the loss reads


def test_what_a_loss_reads_or_a_normalisation_touches_stays_in_float32():
    program = lowered(normalised())
    for call in program.calls:
        if call.kernel.startswith(("layer_norm", "softmax")):
            halves = [name for name, o in call.by_name.items() if o is not None and o.dtype == BFLOAT16]
            assert halves == (["grad"] if "softmax" in call.kernel else [])
    assert BFLOAT16 in {
        o.dtype for c in program.calls if c.kernel == "relu" for o in c.operands if o is not None
    }


def test_what_is_read_after_the_program_stays_in_float32():
    program = step_program(network("tanh", dtype="float32"))
    kept = frozenset(program.buffers)
    types = {
        s.dtype for s in lower(replace(program, keep=kept), rewrites()).buffers.values() if s.name in kept
    }
    assert types == {"float32", "int64"}


def test_results_that_the_library_cannot_write_stay_in_float32():
    net = gm.mlp((7, 130, 40, 30), activation="tanh", seed=3, device="cpu")
    program = lowered(net, ALL)
    results = {call.operands[2].dtype for call in program.calls if call.kernel == "matmul"}
    assert results == {"float32"}
    activations = [c.operands for c in program.calls if c.kernel == "tanh"]
    assert {(x.dtype, y.dtype) for x, y in activations} == {("float32", BFLOAT16)}


@pytest.mark.parametrize("activation", ["relu", GELU, "sigmoid"], ids=str)
def test_every_product_reads_bfloat16(activation):
    for library in (ALL | {"matmul"}, ALL, {"matmul"}, ()):
        for call in lowered(network(activation, 0.3, "float32"), library).calls:
            if call.kernel in PRODUCTS:
                assert [o.dtype for o in call.operands[:2]] == [BFLOAT16, BFLOAT16]


def test_parameters_are_rounded_once_a_step_and_others_once_for_all_products_that_read_them():
    program = lowered(network("relu", dtype="float32"))
    copied = [call.operands for call in program.calls if call.kernel == "cast_bf16"]
    assert len({given for given, _ in copied}) == len(copied)
    assert [
        (given.arena, given.name, copy.arena) for given, copy in copied if given.arena != ACTIVATION_ARENA
    ] == [("parameters", "", PARAMETERS_COPY)]


def test_what_changes_within_a_program_is_rounded_again_and_nothing_else():
    program = step_program(network("relu", dtype="float32"))
    once, twice = (
        [
            call.operands[0]
            for call in lower(replace(program, calls=program.calls * times), (use_bfloat16(N),)).calls
            if call.kernel == "cast_bf16"
        ]
        for times in (1, 2)
    )
    assert len(set(once)) == len(once)
    assert {o.arena for o in once if o is not None} == {"parameters", ACTIVATION_ARENA}
    assert twice == once * 2


def test_a_bias_is_rounded_only_where_a_product_adds_it_to_a_result_in_bfloat16():
    found = {}
    for activation, dropout in (("relu", 0.0), ("tanh", 0.0), ("tanh", 0.2)):
        for call in lowered(network(activation, dropout, "float32")).calls:
            for name in ("bias", "added"):
                if bias := call.by_name.get(name):
                    found[call.kernel, name] = bias.dtype
    assert found == {
        ("product_bias_relu", "bias"): BFLOAT16,
        ("product_bias", "bias"): "float32",  # of the last layer, whose result the loss reads
        ("bias_tanh", "bias"): "float32",
        ("bias_tanh_narrow", "bias"): "float32",
        ("bias_tanh_narrow", "added"): "float32",
    }


@pytest.mark.parametrize("optimizer", [gm.SGD(0.1), gm.SGD(0.1, momentum=0.9), gm.AdamW(weight_decay=0.1)])
def test_an_update_writes_the_copy_of_the_parameters_that_it_changes(optimizer):
    net = network("relu", dtype="float32")
    net.layers[0].freeze()
    shape = DataShape(20, 20, 7, (), False)
    program = training_plan(net, get_loss("cross_entropy"), optimizer, shape, 8, False).batch
    before = lower(program, rewrites())
    after = lower(program, (*rewrites(), cast_with_update))
    updates = [c for c in before.calls if c.kernel == optimizer.kernel]
    fused = [c.by_name for c in after.calls if c.kernel == f"{optimizer.kernel}_cast"]
    assert len(fused) == len(updates) > 0
    for operands in fused:
        parameters, copy = operands["parameters"], operands["copy"]
        assert parameters is not None
        assert copy is not None
        assert (copy.start, copy.shape) == (parameters.start, parameters.shape)
        assert (copy.arena, copy.dtype) == (PARAMETERS_COPY, BFLOAT16)
    assert len(after.calls) == len(before.calls) - 1  # the copy at the beginning
    assert not any(
        o and o.arena == PARAMETERS_COPY for c in after.calls if "cast_bf16" in c.kernel for o in c.operands
    )


def test_a_prediction_makes_its_own_copy_of_the_parameters():
    net = network("relu", dtype="float32")
    b = Builder(4, net.dtype, training=False)
    b.keep(net.emit_forward(b, b.buffer("x", 4, 7, keep=True))[-1])
    program = lower(b.finish(), (*rewrites(), cast_with_update))
    assert program.calls[0].kernel == "cast_bf16"


def test_sums_of_columns_are_in_float32_whatever_the_matrix_is_in():
    for activation in ("relu", GELU, "tanh"):
        for call in lowered(network(activation, dtype="float32")).calls:
            names = kernel_spec(call.kernel).operands
            db = call.operands[names.index("db")] if "db" in names else None
            assert db is None or db.dtype == "float32"


def test_tensors_of_different_types_do_not_share_memory_in_place():
    """A kernel that reads four bytes and writes two would overwrite what another thread has not read."""
    program = lowered(network("tanh", dtype="float32"), ALL)
    call = next(c.by_name for c in program.calls if c.kernel == "bias_tanh_narrow")
    x, y = call["x"], call["y"]
    assert x.dtype != y.dtype
    assert program.buffers[x.name].offset != program.buffers[y.name].offset


def test_the_marks_of_a_program_still_stand_before_the_same_calls():
    before = step_program(network("relu", dtype="float32"))
    after = lowered(network("relu", dtype="float32"))
    assert after.calls[after.marks["update"]].kernel == before.calls[before.marks["update"]].kernel
    assert after.calls[after.marks["backward"] - 1].kernel == "check_loss"


@pytest.mark.parametrize(
    "library", [ALL | {"matmul"}, ALL, ALL - {"product_relu_grad"}, {"matmul"}, ()], ids=len
)
@pytest.mark.parametrize("activation", ["relu", GELU, "tanh"], ids=str)
def test_a_step_is_near_the_exact_one(activation, library, assert_close):
    plain = run(network(activation, 0.2, "float32"), ())[0]
    net = network(activation, 0.2, "float32")
    rounded = run(net, rewrites(library, len(net.arenas()["parameters"].flat("float32"))))[0]
    for name in plain:
        assert_close(rounded[name], plain[name], 3e-2)
    assert any((rounded[name] != plain[name]).any() for name in plain)


NETWORKS = {
    "relu": lambda device: gm.mlp((7, 130, 6, 3), seed=3, device=device),
    "gelu": lambda device: gm.mlp((7, 130, 6, 3), activation=GELU, seed=3, device=device),
    "dropout, tanh": lambda device: gm.mlp(
        (7, 130, 6, 3), activation="tanh", dropout=0.3, seed=3, device=device
    ),
    "noise, silu": lambda device: gm.Sequential(
        *(gm.Linear(7, 33), gm.GaussianNoise(0.1), gm.SiLU(), gm.Linear(33, 3)), seed=3, device=device
    ),
    "layer norm": lambda device: gm.Sequential(
        *(gm.Linear(7, 130), gm.LayerNorm(130), gm.ReLU(), gm.Linear(130, 3)), seed=3, device=device
    ),
}


@pytest.mark.parametrize("products", [ALL | {"matmul"}, {"matmul"}], ids=["epilogues", "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernels_of_a_gpu_do_what_the_reference_does(name, products, stand_in, assert_agree):
    """One step on the stand-in and by the reference, of the same rewritten program: alike but for the last bits."""
    backend = stand_in(products=products)
    net, expected = NETWORKS[name]("stand-in"), NETWORKS[name]("cpu")
    program = step_program(net)
    executor = GraphExecutor(backend, memory_of(net), precision="bf16")
    executor.prepare(program)
    assert BFLOAT16 in types_of(executor.linked(program).program).values()
    executor.execute(program)
    n = len(expected.arenas()["parameters"].flat("float32"))
    gradients, parameters = run(expected, rewrites(products, n))
    assert_agree(net.gradients.to_host(), gradients, 3e-3)
    assert_agree(net.state_dict(), parameters, 3e-3)
    assert np.isfinite(gradients["0.weight"]).all()
