"""Products of matrices by register tiles, against NumPy in float64.

They are run through the compiled kernel `matmul`, which gives each worker its part of the result. A side of 1 is
another kernel's business (tests of linking); here it comes about where a worker's part is one row or column.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpumlp.kernels.cpu import sizes

FORMS = {"a b": (False, False), "a^T b": (True, False), "a b^T": (False, True)}
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}


class Guarded:
    """A matrix as some columns of a wider one, NaN all around it, at an address of any alignment."""

    def __init__(self, rows, columns, dtype, values=None, gap=0, shift=0, stride=None):
        stride = columns + gap if stride is None else stride
        self.memory = np.full(64 + shift + rows * stride + 64, np.nan, dtype)
        whole = self.memory[64 + shift : 64 + shift + rows * stride].reshape(rows, stride)
        self.view = whole[:, :columns]
        if values is not None:
            self.view[...] = values

    def check_guards(self):
        kept = self.view.copy()
        self.view[...] = 0
        assert np.isnan(self.memory).sum() == self.memory.size - kept.size
        self.view[...] = kept


def operands(m, n, k, form, dtype, seed=0, gap=0, shift=0, strides=(None, None, None)):
    rng, (ta, tb) = np.random.default_rng(seed), FORMS[form]
    a, b = ((k, m) if ta else (m, k)), ((n, k) if tb else (k, n))
    return (
        Guarded(*a, dtype, rng.normal(size=a), gap, shift, strides[0]),
        Guarded(*b, dtype, rng.normal(size=b), gap, shift, strides[1]),
        Guarded(m, n, dtype, None, gap, shift, strides[2]),
    )


def multiply(run_compiled, a, b, c, form, workers=1):
    ta, tb = FORMS[form]
    values = {"a": a.view, "b": b.view, "c": c.view}
    run_compiled("matmul", values, {"transpose_a": ta, "transpose_b": tb}, c.view.dtype.name, workers)


def truth(a, b, form):
    ta, tb = FORMS[form]
    a, b = a.view.astype(np.float64), b.view.astype(np.float64)
    return (a.T if ta else a) @ (b.T if tb else b)


def check(run_compiled, m, n, k, form, dtype, workers=1, **how):
    a, b, c = operands(m, n, k, form, dtype, **how)
    multiply(run_compiled, a, b, c, form, workers)
    wanted = truth(a, b, form)
    # an entry may be small by cancellation: the size of what is summed is |a| |b|
    scale = np.linalg.norm(a.view) * np.linalg.norm(b.view) / np.sqrt(k)
    assert np.linalg.norm(c.view - wanted) <= TOLERANCE[dtype] * max(np.linalg.norm(wanted), scale)
    for operand in (a, b, c):
        operand.check_guards()
    return c.view


side = st.integers(2, 70)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40)
@given(
    m=side,
    n=st.integers(2, 40) | side,
    k=side,
    gap=st.integers(0, 5),
    shift=st.integers(0, 3),
    workers=st.sampled_from([1, 2, 3]),
)
@example(m=8, n=32, k=2, gap=0, shift=0, workers=1)
@example(m=7, n=31, k=3, gap=1, shift=1, workers=1)
@example(m=2, n=17, k=70, gap=0, shift=0, workers=2)
def test_a_product_is_right_and_nothing_around_it_is_touched(
    run_compiled, form, dtype, m, n, k, gap, shift, workers
):
    check(run_compiled, m, n, k, form, dtype, workers, gap=gap, shift=shift, seed=m * n + k)


LARGE = [
    (3, 5, 1025),  # just beyond one pass over the inner side
    (9, 33, 1537),
    (17, 2, 2049),
    (40, 40, 1100),
    (130, 37, 1030),  # b is packed, in blocks
    (300, 70, 1200),  # more rows than a block of packed ones
    (1030, 3, 20),  # more rows than a block; shared by rows
    (1100, 40, 9),
    (2100, 17, 6),
    (5, 300, 7),
    (256, 128, 64),
    (301, 530, 701),  # b is packed for several blocks of rows, in two of columns
    (1027, 41, 1030),
]


@pytest.mark.parametrize("sizes", LARGE, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_large_products(run_compiled, form, sizes, dtype):
    m, n, k = sizes
    results = [check(run_compiled, m, n, k, form, dtype, workers, gap=3) for workers in (1, 2, 3)]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("sizes", [(16, 24, 40), (130, 70, 33), (64, 128, 1028), (300, 64, 64)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_powers_of_two_apart(run_compiled, form, sizes, dtype):
    """Steps of 4096 bytes would put all rows into one place of a cache: operands are packed then."""
    m, n, k = sizes
    page = 4096 // np.dtype(dtype).itemsize
    strides = [-(-width // page) * page for width in (max(m, k), max(n, k), n)]
    check(run_compiled, m, n, k, form, dtype, strides=strides)
    check(run_compiled, m, n, k, form, dtype, workers=2, strides=strides)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40)
@given(
    m=st.integers(2, 90),
    n=st.integers(2, 90),
    k=st.sampled_from([2, 3, 17, 64, 1026, 1040]),
    workers=st.integers(2, 7),
)
@example(m=40, n=17, k=64, workers=2)
@example(m=17, n=40, k=1040, workers=2)
@example(m=1200, n=20, k=64, workers=3)
def test_bits_do_not_depend_on_how_workers_share(run_compiled, form, dtype, m, n, k, workers):
    a, b, alone = operands(m, n, k, form, dtype)
    together = Guarded(m, n, dtype)
    multiply(run_compiled, a, b, alone, form)
    multiply(run_compiled, a, b, together, form, workers)
    np.testing.assert_array_equal(together.view, alone.view)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25)
@given(
    m=st.integers(2, 40),
    n=st.integers(2, 40),
    k=st.sampled_from([2, 5, 33, 1030]),
    where=st.sampled_from("ab"),
    data=st.data(),
)
def test_what_is_not_finite_reaches_exactly_the_entries_that_it_belongs_to(
    run_compiled, form, bad, dtype, m, n, k, where, data
):
    a, b, c = operands(m, n, k, form, dtype, gap=1)
    ta, tb = FORMS[form]
    outer = data.draw(st.integers(0, (m if where == "a" else n) - 1))
    inner = data.draw(st.integers(0, k - 1))
    view, turned = (a.view, ta) if where == "a" else (b.view, not tb)
    view[(inner, outer) if turned else (outer, inner)] = bad
    multiply(run_compiled, a, b, c, form)
    expected = np.zeros((m, n), bool)
    expected[(outer, slice(None)) if where == "a" else (slice(None), outer)] = True
    np.testing.assert_array_equal(~np.isfinite(c.view), expected)
    if np.isnan(bad):
        assert np.isnan(c.view[expected]).all()


def test_what_lay_in_the_result_before_is_not_read(run_compiled, dtype):
    for k in (9, 1030):
        for form in FORMS:
            a, b, c = operands(20, 35, k, form, dtype)
            multiply(run_compiled, a, b, c, form)
            zeroed = Guarded(20, 35, dtype, np.zeros((20, 35)))
            multiply(run_compiled, a, b, zeroed, form)
            np.testing.assert_array_equal(c.view, zeroed.view)


def test_working_memory_is_a_panel_of_b_unless_there_are_many_rows_or_a_is_packed():
    size, page, m, n, k = 4, 4096, 90, 100, 100
    panel = 2 * sizes.WIDEST * k
    assert sizes.work_bytes(400, size, m, n, k, size) == panel  # a as it is
    assert sizes.work_bytes(size, 400, m, n, k, size) == panel  # a turned, its rows near
    # every block of rows reads all of b
    assert sizes.work_bytes(400, size, 2000, n, k, size) == panel + n * k * size
    assert sizes.work_bytes(400, size, 2000, 9000, k, size) == panel + sizes.N_BLOCK * k * size
    packed = sizes.work_bytes(size, page, m, n, k, size)
    assert packed == panel + sizes.M_BLOCK_PACKED * k * size
    # more than a part of the inner side is never at work
    long = sizes.work_bytes(size, 400, m, n, 5000, size)
    assert long == sizes.inner_block(5000) * (2 * sizes.WIDEST + sizes.M_BLOCK_PACKED * size)


@pytest.mark.parametrize("k", [1, 100, 784, 1024, 1025, 5000, 60_000])
def test_parts_of_the_inner_side_are_of_about_the_same_size_and_cover_it(k):
    part = sizes.inner_block(k)
    parts = -(-k // part)
    assert part <= (sizes.K_BLOCK if parts > 1 else sizes.K_WHOLE)
    assert k - (parts - 1) * part > part - parts


def test_blocks_of_rows_are_whole_tiles():
    assert sizes.M_BLOCK % sizes.ROWS == sizes.M_BLOCK_PACKED % sizes.ROWS == 0


def test_working_memory_is_not_written_beyond_its_end(dtype):
    """`product` by itself, with guards behind the memory that `work_bytes` asks for."""
    import ctypes

    from gpumlp.kernels.cpu import address
    from gpumlp.kernels.layout import ROW_WIDTH, WORK, WORKERS

    size = np.dtype(dtype).itemsize
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(address("matmul", dtype))
    for form, (m, n, k) in enumerate([(300, 70, 1200), (300, 70, 1200), (300, 70, 1200)]):
        name = list(FORMS)[form]
        a, b, c = operands(m, n, k, name, dtype)
        steps = (size, a.view.strides[0]) if form == 1 else (a.view.strides[0], size)
        wanted = sizes.work_bytes(*steps, m, n, k, size)
        work = np.zeros(wanted + 4096, np.uint8)
        work[wanted:] = 77
        scalars, row, ctx = np.zeros(8), np.zeros(ROW_WIDTH, np.int64), np.zeros(16, np.int64)
        scalars[0], row[2], ctx[WORKERS], ctx[WORK] = form, scalars.ctypes.data, 1, work.ctypes.data
        for i, operand in enumerate((a.view, b.view, c.view)):
            row[4 + 4 * i : 8 + 4 * i] = operand.ctypes.data, *operand.shape, operand.strides[0] // size
        call(row.ctypes.data, ctx.ctypes.data, 0)
        assert (work[wanted:] == 77).all()
        assert work[:wanted].any()
        np.testing.assert_allclose(c.view, truth(a, b, name), atol=2e-3 if size == 4 else 1e-10)


def test_vectors_of_16_bytes_as_on_arm_hold_less_than_a_quarter_of_float64(tmp_path):
    """In a process that takes this processor for such a one; what it compiles is kept apart."""
    program = """
import numpy as np
from gpumlp.kernels.cpu import processor
processor.vector_bytes = lambda: 16
from tests.kernels.conftest import _run_compiled
a, whole, result = np.random.default_rng(0).normal(size=(3, 71, 71))
for columns in range(1, 9):
    b, c = whole[:, :columns], result[:, :columns]
    _run_compiled("matmul", {"a": a, "b": b, "c": c}, dict(transpose_a=0, transpose_b=0), "float64")
    np.testing.assert_allclose(c, a @ b, atol=1e-12)
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stderr
