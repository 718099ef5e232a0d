"""A product with a short inner side in one pass with the gradient of an activation: CUDA against the reference."""

import numpy as np
import pytest

from bench.gpu_check.examples import SCALARS
from gpumlp.kernels import ACTIVATIONS, NARROW, kernel_spec
from gpumlp.kernels.reference import kernel, kernel_in_bfloat16
from gpumlp.kernels.reference.products import from_bfloat16, to_bfloat16
from tests.kernels.cases import TOLERANCE, guarded

# rows, columns, inner
SHAPES = [(5, 7, 3), (1, 1, 1), (40, 128, 10), (33, 130, 16), (70, 260, 2), (9, 500, 10)]


def operands(name, shape, dtype):
    rows, columns, inner = shape
    rng = np.random.default_rng(rows)
    saved = rng.normal(size=(rows, columns))
    values = {
        "a": rng.normal(size=(rows, inner)),
        "b": rng.normal(size=(columns, inner)),
        kernel_spec(name).operands[2]: np.maximum(saved, 0) if name == "narrow_relu_grad" else saved,
        "dx": np.zeros((rows, columns)),
    }
    return {k: v.astype(dtype) for k, v in values.items()}


def launch(run_cuda, name, values, dtype, grid=(1, 64), order="ascending", gap=0, shift=0):
    scalars = {s: SCALARS[s] for s in kernel_spec(name).scalars}
    held = {k: guarded(v, gap, shift) for k, v in values.items()}
    views = {k: view for k, (_, view) in held.items()}
    run_cuda(name, views, scalars, dtype, *grid, order)
    found = views["dx"].copy()
    memory = held["dx"][0]
    views["dx"][...] = 0
    untouched = np.isnan(memory) if memory.dtype.kind == "f" else memory == 0x7FC1
    assert untouched.sum() == memory.size - found.size
    return found


def reference(name, values, run=kernel):
    wanted = values["dx"].copy()
    given = [v for k, v in values.items() if k != "dx"]
    with np.errstate(all="ignore"):
        run(name)(np, *given, wanted, **{s: SCALARS[s] for s in kernel_spec(name).scalars})
    return wanted


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_product_and_the_gradient_in_every_order_of_threads(
    run_cuda, activation, shape, dtype, assert_close
):
    name = f"narrow_{activation}_grad"
    values = operands(name, shape, dtype)
    wanted = reference(name, values)
    for grid in ((1, 32), (1, 256), (7, 64)):
        first, *others = (
            launch(run_cuda, name, values, dtype, grid, o) for o in ("ascending", "descending", "random:2")
        )
        assert_close(first, wanted, 2 * TOLERANCE[dtype])
        for other in others:
            np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("halves", [("dx",), ("a", "b"), ("y",), ("a", "b", "y", "dx")], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operands_may_be_bfloat16(run_cuda, shape, halves):
    name = "narrow_tanh_grad"
    values = operands(name, shape, "float32")
    values = {k: to_bfloat16(np, v) if k in halves else v for k, v in values.items()}
    found, wanted = launch(run_cuda, name, values, "bf16"), reference(name, values, kernel_in_bfloat16)
    if "dx" in halves:
        found, wanted = from_bfloat16(np, found), from_bfloat16(np, wanted)
    np.testing.assert_allclose(found, wanted, rtol=2**-7 if "dx" in halves else 1e-4, atol=1e-5)


def test_rows_may_lie_apart_and_start_anywhere(run_cuda, dtype):
    name = "narrow_gelu_grad"
    values = operands(name, (21, 132, 10), dtype)
    wanted = launch(run_cuda, name, values, dtype)
    for gap, shift in ((0, 1), (3, 0), (4, 0), (4, 2)):
        np.testing.assert_array_equal(launch(run_cuda, name, values, dtype, gap=gap, shift=shift), wanted)


def test_nan_goes_through(run_cuda):
    name = "narrow_relu_grad"
    for operand in ("a", "b", "y"):
        values = operands(name, (9, 140, 5), "float64")
        values[operand][3, 2] = np.nan
        np.testing.assert_array_equal(
            np.isnan(launch(run_cuda, name, values, "float64")), np.isnan(reference(name, values))
        )


def test_the_inner_side_fits_the_shared_memory(run_cuda, dtype, assert_close):
    values = operands("narrow_silu_grad", (4, 300, NARROW), dtype)
    found = launch(run_cuda, "narrow_silu_grad", values, dtype, (2, 96))
    assert_close(found, reference("narrow_silu_grad", values), 2 * TOLERANCE[dtype])
