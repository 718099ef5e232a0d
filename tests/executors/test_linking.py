"""Linking: operands to places, products to forms, and the rows of the table."""

import math
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.arena import Arena
from gpumlp.executors.linking import Instruction, Place, encode, instruct
from gpumlp.kernels import CATALOGUE
from gpumlp.kernels.layout import MAX_OPERANDS, ROW_WIDTH
from gpumlp.program import Call, Memory, Operand, Program

A, B, C = (Place(10_000 * k, 4, 64, 64, 4) for k in (1, 2, 3))


def link(kernel, arrays, scalars, dtype="float64"):
    """The instruction of one call on arrays; some are columns of a wider matrix: (array, first, last)."""
    memory, operands = {}, []
    for name, value in arrays.items():
        whole, *columns = value if isinstance(value, tuple) else (value,)
        memory[name] = whole
        operand = Operand(name, "", whole.shape, str(whole.dtype))
        operands.append(operand.columns(*columns) if columns else operand)
    program = Program((Call(kernel, tuple(operands), scalars),), {}, frozenset(), 1, dtype)
    (made,) = instruct(program, Memory({}, memory), Arena(gm.get_backend("cpu"), ()))
    return made


def test_an_operand_becomes_its_address_and_shape():
    x, y = np.zeros((3, 8)), np.zeros((3, 5))
    made = link("add_bias", {"bias": np.zeros(5), "x": (x, 2, 7)}, {})
    bias, where = made.places
    assert (where.address, where.rows, where.columns, where.stride) == (x.ctypes.data + 16, 3, 5, 8)
    assert (bias.rows, bias.columns, bias.stride) == (1, 5, 5)
    assert where.end == x.ctypes.data + x.nbytes - 8
    assert y.size


def test_element_wise_calls_on_whole_matrices_become_one_long_row():
    x, y = np.zeros((3, 8)), np.zeros((3, 8))
    for kernel in ("relu", "copy"):
        assert [(p.rows, p.columns) for p in link(kernel, {"x": x, "y": y}, {}).places] == [(1, 24)] * 2
    apart = link("relu", {"x": (x, 0, 4), "y": (y, 0, 4)}, {})
    assert [(p.rows, p.columns) for p in apart.places] == [(3, 4)] * 2
    assert [p.rows for p in link("softmax", {"x": x, "y": y}, {}).places] == [3, 3]


def test_a_bias_and_activation_over_its_own_input_is_another_kernel():
    x, y, bias = np.zeros((3, 8)), np.zeros((3, 8)), np.zeros(8)
    assert link("bias_tanh", {"bias": bias, "x": x, "y": y}, {}).kernel == "bias_tanh"
    assert link("bias_tanh", {"bias": bias, "x": x, "y": x}, {}).kernel == "bias_tanh_in_place"


FORMS = {
    "a b": ((5, 7), (7, 3), False, False, "matmul"),
    "a^T b": ((7, 5), (7, 3), True, False, "matmul"),
    "a b^T": ((5, 7), (3, 7), False, True, "matmul"),
    "inner side of 1": ((5, 1), (1, 3), False, False, "outer"),
    "inner side of 1, a^T b": ((1, 5), (1, 3), True, False, "outer"),
    "inner side of 1, a b^T": ((5, 1), (3, 1), False, True, "outer"),
    "one column": ((5, 7), (7, 1), False, False, "dot_rows"),
    "one column, a b^T": ((5, 7), (1, 7), False, True, "dot_rows"),
    "one column, a^T b": ((7, 5), (7, 1), True, False, "sum_rows"),
    "one row": ((1, 7), (7, 3), False, False, "sum_rows"),
    "one row, a^T b": ((7, 1), (7, 3), True, False, "sum_rows"),
    "one row, a b^T": ((1, 7), (3, 7), False, True, "dot_rows"),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_product_with_a_side_of_1_is_a_loop(case):
    a, b, ta, tb, kernel = FORMS[case]
    c = (a[1] if ta else a[0], b[0] if tb else b[1])
    arrays = {"a": np.zeros(a), "b": np.zeros(b), "c": np.zeros(c)}
    made = link("matmul", arrays, {"transpose_a": ta, "transpose_b": tb})
    assert made.kernel == kernel
    assert made.written == {2}
    assert made.places[2].address == arrays["c"].ctypes.data
    if kernel == "matmul":
        assert made.scalars == [1 if ta else 2 if tb else 0]


@pytest.mark.parametrize("case", [c for c in FORMS if FORMS[c][4] != "matmul"])
def test_a_column_that_does_not_lie_together_is_not_taken_for_a_row(case):
    """Each operand in turn as one column of a wider matrix: the loop that is chosen must do without its rows."""
    a, b, ta, tb, _ = FORMS[case]
    c = (a[1] if ta else a[0], b[0] if tb else b[1])
    for name, shape in (("a", a), ("b", b), ("c", c)):
        if shape[1] != 1 or shape[0] == 1:
            continue
        wider = np.zeros((shape[0], 4))
        arrays: dict[str, Any] = {n: np.zeros(s) for n, s in (("a", a), ("b", b), ("c", c))}
        arrays[name] = (wider, 1, 2)
        made = link("matmul", arrays, {"transpose_a": ta, "transpose_b": tb})
        for p in made.places:
            assert p.rows > 1 or p.address != wider.ctypes.data + 8


def test_a_product_of_two_transposed_matrices_is_refused():
    arrays = {"a": np.zeros((7, 5)), "b": np.zeros((3, 7)), "c": np.zeros((5, 3))}
    with pytest.raises(ValueError, match="two transposed"):
        link("matmul", arrays, {"transpose_a": True, "transpose_b": True})


def test_clips_of_logits_become_bounds_of_a_logarithm():
    x, t, ring = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((4, 2))
    arrays = {
        "control": np.zeros(8, np.int64),
        "output": x,
        "target": t,
        "weight": np.zeros(2),
        "ring": ring,
        "grad": x,
    }
    made = link("binary_cross_entropy_logits", arrays, {"mean": True, "clip": 0.25})
    assert made.scalars == [1.0, -math.log(0.25)]
    assert link("binary_cross_entropy_logits", arrays, {"mean": True, "clip": 0.0}).scalars == [1.0, math.inf]
    made = link("softmax_cross_entropy", arrays, {"mean": False, "smoothing": 0.1, "clip": 0.25})
    assert made.scalars == [0.0, 0.1, math.log(0.25), 0.0]
    made = link("kl_divergence_logits", arrays, {"mean": True, "clip": 0.0})
    assert made.scalars == [1.0, 0.0, -math.inf, 1.0]


def test_rows_of_the_table_hold_addresses_scalars_scratch_and_operands():
    first = Instruction("relu", [A, B], [0.5], 0, frozenset([1]))
    second = Instruction("shuffle", [None, B, C], [], 64, frozenset([2]))
    keep: list[np.ndarray] = []
    rows = encode([first, second], [111, 222], keep)
    assert rows.shape == (2, ROW_WIDTH)
    assert rows.flags.c_contiguous
    assert tuple(rows[:, 0]) == (111, 222)
    assert tuple(rows[:, 1]) == (0, 1)
    assert tuple(rows[0, 4:8]) == (A.address, A.rows, A.columns, A.stride)
    assert not rows[1, 4:8].any()  # absent
    assert tuple(rows[1, 8:12]) == (B.address, B.rows, B.columns, B.stride)
    scalars, _, _, scratch = keep
    assert rows[0, 2] == scalars.ctypes.data
    assert scalars[0] == 0.5
    assert (rows[1, 3], scratch.nbytes) == (scratch.ctypes.data, 64)


def test_a_row_has_room_for_every_kernel():
    assert max(len(spec.operands) for spec in CATALOGUE.values()) <= MAX_OPERANDS
    assert max(len(spec.scalars) for spec in CATALOGUE.values()) <= 8
