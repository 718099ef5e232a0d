"""Products by many blocks, and by one: each form, in sizes that tiles divide or not, and what is done on the way."""

from typing import Any

import numpy as np
import pytest

from gpumlp.kernels import kernel_spec
from gpumlp.kernels.reference import kernel

FORMS = {"plain": (False, False), "first turned": (True, False), "second turned": (False, True)}
SIZES = [
    (32, 128, 64),  # rows, columns, inner side: whole tiles of 16 x 16, whose warps share the inner side
    (64, 52, 260),  # tiles and steps of the inner side that are not whole
    (784, 500, 36),  # more tiles than warps: each has its own
    (20, 36, 10),  # tiles beyond the last row and column, an inner side that four do not divide
    (12, 16, 3),  # an inner side below four
    (8, 20, 1),
    (64, 50, 250),  # rows in pairs: places by twos, and an inner side whose last step is not whole
    (34, 18, 14),  # tiles beyond the last pairs
    (33, 35, 37),  # nothing that 16 bytes divide
    (3, 5, 150),  # less than a tile
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_by_many_blocks_is_right_and_the_same_whatever_their_number(run_cuda, size, form, dtype):
    assert_right(run_cuda, size, form, dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_so_is_one_on_a_gpu_that_has_no_tensor_cores_for_floats(run_cuda_plainly, size, form):
    assert_right(run_cuda_plainly, size, form, "float32")


def assert_right(run, size, form, dtype):
    rows, columns, inner = size
    turned_a, turned_b = FORMS[form]
    rng = np.random.default_rng(rows)
    a, b = rng.normal(size=(rows, inner)), rng.normal(size=(inner, columns))
    given = {
        "a": np.ascontiguousarray(a.T if turned_a else a, dtype),
        "b": np.ascontiguousarray(b.T if turned_b else b, dtype),
    }
    found = []
    for blocks, order in ((1, "ascending"), (3, "descending"), (40, "random:3")):
        c = np.full((rows, columns), np.nan, dtype)
        scalars = {"transpose_a": turned_a, "transpose_b": turned_b}
        run("matmul", {**given, "c": c}, scalars, dtype, blocks, 256, order)
        found.append(c)
    error = np.abs(found[0] - a @ b).max() / np.linalg.norm(a) * np.sqrt(rows)
    assert error < {"float32": 1e-6, "float64": 1e-14}[dtype]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


SMALL_SIZES = [(32, 64, 128), (64, 128, 32), (1, 64, 32), (3, 20, 12), (128, 1, 32), (7, 9, 33), (66, 50, 34)]
ENDINGS = [
    (ending, form)
    for ending in ("product_bias", "product_bias_relu", "product_relu_slope", "product_bias_grad")
    for form in FORMS
    if ending != "product_bias_grad" or FORMS[form][0]  # the gradient of a weight turns its first factor
]


@pytest.mark.parametrize("blocks", [1, 5])
@pytest.mark.parametrize("size", SMALL_SIZES, ids=str)
@pytest.mark.parametrize(("ending", "form"), ENDINGS)
def test_what_is_done_on_the_way_is_what_the_reference_does_behind_it(
    run_cuda, ending, size, form, blocks, dtype
):
    rows, columns, inner = size
    turned_a, turned_b = FORMS[form]
    rng = np.random.default_rng(columns)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    values: dict[str, Any] = {
        "a": normal(*((inner, rows) if turned_a else (rows, inner))),
        "b": normal(*((columns, inner) if turned_b else (inner, columns))),
        "bias": normal(columns),
        "y": np.maximum(normal(rows, columns), 0),
        "c": np.full((rows, columns), np.nan, dtype),
        "db": np.full(columns, np.nan, dtype),
        "mask": None,
    }
    values["y"][0, 0] = np.nan
    given: dict[str, Any] = {name: values[name] for name in kernel_spec(ending).operands}
    wanted: dict[str, Any] = {name: None if v is None else v.copy() for name, v in given.items()}
    scalars = {"transpose_a": turned_a, "transpose_b": turned_b}
    kernel(ending)(np, *wanted.values(), **scalars)
    run_cuda(ending, given, scalars, dtype, blocks, 256, "random:2")
    for name in ("c", "db") if "db" in given else ("c",):
        scale = np.nanmax(np.abs(wanted[name]))
        np.testing.assert_allclose(
            given[name], wanted[name], atol=scale * {"float32": 3e-6, "float64": 1e-14}[dtype]
        )


def test_numbers_that_tensor_cores_would_round_keep_what_a_float_has(run_cuda):
    """Small differences of large numbers: of one part alone the products would be a thousandth off."""
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.integers(-3, 4, size=(2, 64, 64))
    a, b = (rng.normal(size=sizes.shape) * sizes).astype(np.float32)
    c = np.zeros((64, 64), np.float32)
    run_cuda(
        "matmul", {"a": a, "b": b, "c": c}, {"transpose_a": False, "transpose_b": False}, "float32", 4, 256
    )
    exact = a.astype(np.float64) @ b.astype(np.float64)
    size = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    # floats are within 2^-24 of their products, and of their sums
    assert np.abs(c - exact).max() <= 2**-21 * size.max()
    assert (np.abs(c - exact) / size).max() <= 2**-20
