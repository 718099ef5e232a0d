import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumlp.kernels import EPOCH, START
from gpumlp.kernels.philox import permutation
from gpumlp.kernels.reference import kernel
from gpumlp.program import new_control

sides = st.integers(1, 6)


@given(m=sides, k=sides, n=sides, ta=st.booleans(), tb=st.booleans())
def test_matmul_is_the_sum_over_the_inner_side(m, k, n, ta, tb, backend):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(m, k)), rng.normal(size=(k, n))
    c = backend.xp.full((m, n), np.nan)
    given_a, given_b = (a.T.copy() if ta else a), (b.T.copy() if tb else b)
    kernel("matmul")(
        backend.xp, backend.asarray(given_a), backend.asarray(given_b), c, transpose_a=ta, transpose_b=tb
    )
    expected = [[sum(a[i, p] * b[p, j] for p in range(k)) for j in range(n)] for i in range(m)]
    np.testing.assert_allclose(backend.to_host(c), expected, rtol=1e-12, atol=1e-14)


def test_add_bias_adds_it_to_every_row(backend):
    x = backend.asarray(np.array([[1.0, 2, 3], [4, 5, 6]]))
    kernel("add_bias")(backend.xp, backend.asarray(np.array([10.0, 20, 30])), x)
    np.testing.assert_array_equal(backend.to_host(x), [[11, 22, 33], [14, 25, 36]])


def test_column_sums_adds_the_rows(backend):
    db = backend.xp.empty(3)
    kernel("column_sums")(backend.xp, backend.asarray(np.array([[1.0, 2, 3], [4, 5, 6]])), db)
    np.testing.assert_array_equal(backend.to_host(db), [5, 7, 9])


def test_copy_copies(backend):
    x = backend.asarray(np.array([[1.0, -2.0]]))
    y = backend.xp.empty_like(x)
    kernel("copy")(backend.xp, x, y)
    np.testing.assert_array_equal(backend.to_host(y), [[1, -2]])
    assert y is not x


@pytest.mark.parametrize("name", ["gather_rows", "gather_labels", "gather_weights"])
def test_a_gather_takes_the_batch_from_the_order_at_start(name, backend):
    source = np.arange(12.0).reshape(6, 2)
    source = (
        source if name == "gather_rows" else source[:, 0].astype("int64" if "labels" in name else "float64")
    )
    index, control = np.array([4, 0, 5, 2, 1]), new_control(0)
    control[START] = 2
    out = backend.asarray(np.zeros_like(source[:3]))
    kernel(name)(backend.xp, control, backend.asarray(source), backend.asarray(index), out)
    np.testing.assert_array_equal(backend.to_host(out), source[[5, 2, 1]])


def test_shuffle_gives_the_permutation_of_the_epoch_over_the_rows_that_take_part(backend):
    rows, control = np.array([3, 14, 15, 92, 65]), new_control(6)
    control[EPOCH] = 2
    index = backend.asarray(np.zeros(5, np.int64))
    kernel("shuffle")(backend.xp, control, backend.asarray(rows), index)
    np.testing.assert_array_equal(backend.to_host(index), rows[permutation(np, 5, 6, 2)])


def test_copy_rows_keeps_the_order_of_the_data(backend):
    rows, index = np.array([3, 14, 15]), backend.asarray(np.zeros(3, np.int64))
    kernel("copy_rows")(backend.xp, backend.asarray(rows), index)
    np.testing.assert_array_equal(backend.to_host(index), rows)
