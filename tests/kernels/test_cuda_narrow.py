"""Products of layers with few outputs in one pass with an activation or its gradient: CUDA against the reference."""

import numpy as np
import pytest

from bench.gpu_check.narrow import NAMES, operands, scalars
from gpumlp.kernels import IN_BFLOAT16, NARROW, kernel_spec
from gpumlp.kernels.cuda import narrow_shares, narrow_tiles
from gpumlp.kernels.reference import kernel, kernel_in_bfloat16
from gpumlp.kernels.reference.products import as_float, to_bfloat16
from tests.kernels.cases import TOLERANCE, between_guards

# rows, columns, the few
SHAPES = [(5, 7, 3), (1, 1, 1), (40, 128, 10), (33, 130, 16), (70, 260, 2), (9, 500, 10)]
PLAIN = "bias_tanh_narrow", "bias_gelu_narrow", "narrow_gelu_grad", "narrow_tanh_grad_sums"


def changed(name):
    return kernel_spec(name).updates + kernel_spec(name).writes


def launch(run_cuda, name, values, dtype, grid=(1, 64), order="ascending", gap=0, shift=0):
    if "dw" in values:  # the gradient of a weight lies together
        gap = 0
    found = between_guards(
        lambda held: run_cuda(name, held, scalars(name), dtype, *grid, order), name, values, gap, shift
    )
    return {k: v for k, v in found.items() if k in changed(name)}


def reference(name, values, run=kernel):
    given = {k: None if v is None else v.copy() for k, v in values.items()}
    with np.errstate(all="ignore"):
        run(name)(np, *given.values(), **scalars(name))
    return {k: v for k, v in given.items() if k in changed(name) and v is not None}


def assert_all_close(found, wanted, tolerance, assert_close):
    assert found.keys() == wanted.keys()
    for operand, value in found.items():
        assert_close(value, wanted[operand], tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_plain_kernels_one_by_one_in_every_order_of_threads(
    run_cuda, name, shape, dtype, assert_close
):
    values = operands(name, shape, dtype)
    wanted = reference(name, values)
    for grid in ((1, 32), (1, 256), (7, 64), (2, 96)):
        first, *others = (
            launch(run_cuda, name, values, dtype, grid, o) for o in ("ascending", "descending", "random:2")
        )
        assert_all_close(first, wanted, 2 * TOLERANCE[dtype], assert_close)
        for other in others:
            for operand, value in first.items():
                np.testing.assert_array_equal(other[operand], value)


@pytest.mark.parametrize("name", [n for n in NAMES if kernel_spec(n).optional])
def test_biases_and_their_gradients_may_be_absent(run_cuda, name, dtype, assert_close):
    every = operands(name, (40, 130, 5), dtype)
    for absent in (*([k] for k in sorted(kernel_spec(name).optional)), kernel_spec(name).optional):
        values = {**every, **dict.fromkeys(absent)}
        assert_all_close(
            launch(run_cuda, name, values, dtype, (2, 64)),
            reference(name, values),
            2 * TOLERANCE[dtype],
            assert_close,
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_result_may_lie_where_the_operand_lay(run_cuda, name, dtype):
    written, read = kernel_spec(name).in_place
    values = operands(name, (33, 132, 7), dtype)
    wanted = launch(run_cuda, name, values, dtype)
    held = {k: v.copy() for k, v in values.items()}
    held[written] = held[read]
    run_cuda(name, held, scalars(name), dtype, 1, 64, "descending")
    for operand in changed(name):
        if operand != read:  # y lies there now
            np.testing.assert_array_equal(held[operand], wanted[operand], err_msg=operand)


# the last is not for them: their factors are read in pairs
BY_TENSOR_CORES = [(37, 104, 10), (16, 64, 16), (70, 328, 8), (3, 8, 2), (20, 72, 9)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name in NAMES
        if not name.endswith("_grad")
        for shape in BY_TENSOR_CORES[: 5 if name in PLAIN else 1]
    ],
    ids=str,
)
def test_tensor_cores_give_the_plain_kernels_one_by_one_in_every_order_of_threads(run_cuda, name, shape):
    values = operands(name, shape, "float32")
    given = {k: to_bfloat16(np, v) if k in IN_BFLOAT16[name] and k != "c" else v for k, v in values.items()}
    wanted = reference(name, given, kernel_in_bfloat16)
    for grid in ((1, 32), (3, 256), (2, 96)):
        first, *others = (
            launch(run_cuda, name, given, "bf16", grid, o) for o in ("ascending", "descending", "random:2")
        )
        for operand, value in first.items():
            found, true = as_float(np, value), as_float(np, wanted[operand])
            error = float(np.linalg.norm(found - true)) / max(float(np.linalg.norm(true)), 1e-6)
            assert error < (2**-8 if value.dtype == np.uint16 else 1e-5), operand
        for other in others:
            for operand, value in first.items():
                np.testing.assert_array_equal(other[operand], value)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [*SHAPES, *BY_TENSOR_CORES], ids=str)
def test_operands_may_be_bfloat16(run_cuda, shape, name):
    values = operands(name, shape, "float32")
    may = [k for k in values if k in IN_BFLOAT16[name]]
    for halves in ([may[0]], [k for k in may if k in changed(name)], may):
        given = {k: to_bfloat16(np, v) if k in halves else v for k, v in values.items()}
        found, wanted = launch(run_cuda, name, given, "bf16"), reference(name, given, kernel_in_bfloat16)
        for operand, value in found.items():
            np.testing.assert_allclose(
                as_float(np, value),
                as_float(np, wanted[operand]),
                rtol=2**-7 if operand in halves else 1e-4,
                atol=1e-4,
            )


@pytest.mark.parametrize("name", PLAIN)
def test_rows_may_lie_apart_and_start_anywhere(run_cuda, name, dtype):
    values = operands(name, (21, 132, 10), dtype)
    wanted = launch(run_cuda, name, values, dtype)
    for gap, shift in ((0, 1), (3, 0), (4, 0), (4, 2)):
        found = launch(run_cuda, name, values, dtype, gap=gap, shift=shift)
        for operand, value in found.items():
            np.testing.assert_array_equal(value, wanted[operand])


@pytest.mark.parametrize("name", PLAIN)
def test_nan_goes_through(run_cuda, name):
    for operand in kernel_spec(name).reads + kernel_spec(name).updates:
        values = operands(name, (9, 140, 5), "float64")
        values[operand].reshape(-1)[-2] = np.nan
        wanted = reference(name, values)
        for result, value in launch(run_cuda, name, values, "float64").items():
            np.testing.assert_array_equal(np.isnan(value), np.isnan(wanted[result]), err_msg=operand)


@pytest.mark.parametrize("name", PLAIN)
def test_as_many_columns_as_are_narrow_fit_the_shared_memory(run_cuda, name, dtype, assert_close):
    values = operands(name, (4, 300, NARROW), dtype)
    found = launch(run_cuda, name, values, dtype, (2, 96))
    assert_all_close(found, reference(name, values), 2 * TOLERANCE[dtype], assert_close)


def test_rows_are_shared_where_there_are_many_and_blocks_for_them():
    assert narrow_tiles(1000, 4) == 8
    assert narrow_tiles(1000, 8) == 16
    assert narrow_shares(60_000, 8, 256, 8 * 132) == 33
    assert narrow_shares(64, 1, 256, 8 * 132) == 1  # a second pass would cost more
    assert narrow_shares(60_000, 500, 256, 8 * 132) == 1
    assert narrow_shares(60_000, 8, 256, 1) == 1  # the resident kernel
