"""Products by many blocks: each form, in sizes that tiles divide or not, against NumPy in float64."""

import numpy as np
import pytest

FORMS = {"plain": (False, False), "first turned": (True, False), "second turned": (False, True)}
SIZES = [
    (32, 128, 64),  # rows, columns, inner side: whole tiles of 8 x 16, all warps at work
    (64, 52, 260),  # several fours a thread, and not as many for each
    (20, 36, 10),  # tiles beyond the last row and column, an inner side that four do not divide
    (12, 16, 3),  # an inner side below four
    (8, 20, 1),
    (33, 35, 37),  # nothing that 16 bytes divide
    (3, 5, 150),  # less than a tile
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_by_many_blocks_is_right_and_the_same_whatever_their_number(run_cuda, size, form, dtype):
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
        run_cuda("matmul", {**given, "c": c}, scalars, dtype, blocks, 256, order)
        found.append(c)
    error = np.abs(found[0] - a @ b).max() / np.linalg.norm(a) * np.sqrt(rows)
    assert error < {"float32": 1e-6, "float64": 1e-14}[dtype]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
