"""Barriers: which instructions of a linked program workers must wait before."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp.executors import linking
from gpumlp.executors.compiled import CompiledExecutor
from gpumlp.executors.linking import BY_COLUMNS, BY_SHARE, Instruction, Place, barriers
from gpumlp.kernels import ACTIVATIONS, CATALOGUE
from gpumlp.kernels.cpu.intrinsics import share
from gpumlp.kernels.layout import ROW_WIDTH

RNG = np.random.default_rng(0)


def place(address, rows=4, columns=64, stride=None, itemsize=4):
    return Place(address, rows, columns, stride or columns, itemsize)


A, B, C, D, E, F = (place(10_000 * k) for k in range(1, 7))
BIAS = place(90_000, 1, 64)


def instruction(kernel, *places, form=0):
    spec = CATALOGUE["matmul" if kernel == "outer" else kernel]
    written = frozenset(range(len(spec.reads), len(places)))
    return Instruction(kernel, list(places), [form] if kernel == "matmul" else [], 0, written)


def flags(*instructions):
    return barriers(instructions)


def test_independent_instructions_need_no_barrier():
    assert (
        flags(instruction("relu", A, B), instruction("relu", C, D), instruction("tanh", E, F)) == [False] * 3
    )


def test_reading_the_same_memory_needs_no_barrier():
    assert flags(instruction("relu", A, B), instruction("tanh", A, C)) == [False, False]


def test_what_another_instruction_wrote_waits():
    assert flags(instruction("relu", A, B), instruction("tanh", B, C)) == [False, True]


def test_writing_what_another_instruction_read_waits():
    assert flags(instruction("relu", A, B), instruction("tanh", C, A)) == [False, True]


def test_writing_what_another_instruction_wrote_waits():
    assert flags(instruction("relu", A, B), instruction("tanh", C, B)) == [False, True]


def test_what_is_updated_counts_as_written():
    assert flags(instruction("clip_by_value", A), instruction("clip_by_value", A)) == [False, True]
    assert flags(instruction("check_loss", A, B), instruction("check_gradients", C, B)) == [False, True]


def test_a_barrier_settles_all_that_came_before_it():
    first, second = instruction("relu", A, B), instruction("relu", C, D)
    assert flags(first, second, instruction("tanh", B, E), instruction("tanh", D, F)) == [
        False,
        False,
        True,
        False,
    ]


def test_a_conflict_with_any_instruction_since_the_last_barrier_counts():
    calls = (
        instruction("relu", A, B),
        instruction("relu", C, D),
        instruction("tanh", E, F),
        instruction("copy", B, C),
    )
    assert flags(*calls) == [False, False, False, True]


@pytest.mark.parametrize("shift", [-64 * 4 * 4 + 4, 64 * 4 * 4 - 4])
def test_memory_that_overlaps_by_one_element_conflicts(shift):
    assert flags(instruction("relu", A, B), instruction("relu", place(B.address + shift), D)) == [False, True]


@pytest.mark.parametrize("shift", [-64 * 4 * 4, 64 * 4 * 4])
def test_neighbours_in_memory_do_not_conflict(shift):
    assert flags(instruction("relu", A, B), instruction("relu", place(B.address + shift), D)) == [
        False,
        False,
    ]


def test_rows_that_lie_apart_reach_to_the_end_of_the_last():
    wide = place(20_000, 4, 8, stride=64)
    assert wide.end == 20_000 + (3 * 64 + 8) * 4
    assert flags(instruction("relu", A, wide), instruction("relu", place(wide.end, 1, 4), D)) == [
        False,
        False,
    ]
    assert flags(instruction("relu", A, wide), instruction("relu", place(wide.end - 4, 1, 4), D)) == [
        False,
        True,
    ]


def test_a_bias_behind_its_product_needs_no_barrier_as_each_worker_has_its_own_columns():
    assert flags(instruction("matmul", A, B, C), instruction("add_bias", BIAS, C)) == [False, False]
    assert flags(instruction("matmul", A, B, C), instruction("bias_relu", BIAS, C, C)) == [False, False]
    assert flags(instruction("outer", A, B, C), instruction("bias_tanh", BIAS, C, D)) == [False, False]


def test_a_product_whose_workers_share_rows_has_no_part_in_common_with_columns():
    assert flags(instruction("matmul", A, B, C, form=1), instruction("add_bias", BIAS, C)) == [False, True]


def test_a_product_reads_all_of_its_operands():
    assert flags(instruction("add_bias", BIAS, C), instruction("matmul", C, A, D)) == [False, True]
    assert flags(instruction("add_bias", BIAS, C), instruction("matmul", A, C, D)) == [False, True]


def test_sums_of_columns_go_with_the_columns_of_a_gradient_but_not_with_rows():
    gradient = instruction("relu_grad_bias", A, B, C, BIAS)
    assert flags(gradient, instruction("column_sums", C, place(95_000, 1, 64))) == [False, False]
    narrow = place(200_000, 2000, 4)
    product = instruction("matmul", A, B, narrow)  # tall: shared by rows
    assert flags(product, instruction("add_bias", place(90_000, 1, 4), narrow)) == [False, False]
    assert flags(product, instruction("column_sums", narrow, place(95_000, 1, 4))) == [False, True]


def test_other_columns_of_the_same_matrix_are_not_the_same_part():
    left, right = place(10_000, 4, 64, 128), place(10_000 + 64 * 4, 4, 64, 128)
    shifted = place(10_000 + 16 * 4, 4, 64, 128)
    assert flags(instruction("add_bias", BIAS, left), instruction("add_bias", BIAS, shifted)) == [False, True]
    # rows of the two interleave: taken for a conflict, which costs a barrier and is safe
    assert flags(instruction("add_bias", BIAS, left), instruction("add_bias", BIAS, right)) == [False, True]


def test_the_kernels_that_share_are_in_the_catalogue_and_take_their_part_of_those_operands():
    names = {*BY_SHARE, *BY_COLUMNS} - {"outer"}
    assert names <= set(CATALOGUE)
    for name in ACTIVATIONS:
        assert CATALOGUE[f"bias_{name}"].operands[1:] == ("x", "y")
        assert CATALOGUE[f"{name}_grad_bias"].operands[:3][1:] == ("dy", "dx")


@settings(max_examples=200)
@given(rows=st.integers(1, 5000), columns=st.integers(1, 600), workers=st.integers(1, 9))
def test_the_parts_of_workers_cover_a_matrix_once_and_are_split_as_barriers_believe(rows, columns, workers):
    p = Place(1, rows, columns, columns, 4)
    row, covered = np.zeros(ROW_WIDTH, np.int64), 0
    row[4:8] = p.address, rows, columns, columns
    by = linking._split(instruction("add_bias", BIAS, p), 1, p)
    end = 0
    for worker in range(workers):
        ctx = np.array([worker, workers])
        r0, r1, c0, c1 = share.py_func(row, 0, ctx)
        covered += (r1 - r0) * (c1 - c0)
        assert (r0, r1) == (0, rows) if by == "columns" else (c0, c1) == (0, columns)
        first, end = (c0, c1) if by == "columns" else (r0, r1)
        assert first % 16 == 0 or first == end
    assert covered == rows * columns
    assert end == (columns if by == "columns" else rows)


def shared_writes(instructions):
    """Pairs (earlier, later) where some worker of the later may touch what another one of the earlier does.

    By brute force over elements and three workers, from what the kernels do, not from what linking believes.
    """
    found = set()
    touched = [_touched(i) for i in instructions]
    for later in range(len(instructions)):
        for earlier in range(later):
            for w in range(3):
                for v in range(3):
                    if w != v and any((a & b) for a, b in _clashes(touched[earlier][w], touched[later][v])):
                        found.add((earlier, later))
    return found


def _clashes(one, other):
    (reads, writes), (reads_too, writes_too) = one, other
    return [(writes, reads_too), (reads, writes_too), (writes, writes_too)]


def _elements(p, r0, r1, c0, c1):
    return {p.address + (i * p.stride + j) * 4 for i in range(r0, r1) for j in range(c0, c1)}


def _touched(i):
    """For each of three workers: the addresses that it reads, and those that it writes."""
    parts = []
    for worker in range(3):
        ctx = np.array([worker, 3])
        reads: set[int] = set()
        writes: set[int] = set()
        for k, p in enumerate(i.places):
            row = np.zeros(ROW_WIDTH, np.int64)
            row[4:8] = p.address, p.rows, p.columns, p.stride
            whole = (0, p.rows, 0, p.columns)
            if i.kernel in ("add_bias", "bias_relu") and k > 0:
                part = share.py_func(row, 0, ctx)
            elif i.kernel == "matmul" and k == 2:
                part = share.py_func(row, 0, ctx) if i.scalars[0] != 1 else _rows(p, worker)
            elif i.kernel in ("column_sums", "relu_grad_bias") and p.rows > 1:
                part = (0, p.rows, *_columns(p, worker))
            else:
                part = whole
            here = _elements(p, *part)
            (writes if k in i.written else reads).update(here)
        parts.append((reads, writes))
    return parts


def _columns(p, worker):
    width = math.ceil(p.columns / 48) * 16
    return min(p.columns, worker * width), min(p.columns, (worker + 1) * width)


def _rows(p, worker):
    width = math.ceil(p.rows / 48) * 16
    return min(p.rows, worker * width), min(p.rows, (worker + 1) * width), 0, p.columns


matrices = st.sampled_from(
    [place(10_000 * k, 3, 40) for k in range(1, 4)]
    + [place(10_000 + 3 * 40 * 4 - 8, 3, 40), place(20_000, 3, 20, 40)]
)


@st.composite
def instructions(draw):
    made = []
    for _ in range(draw(st.integers(2, 6))):
        kernel = draw(st.sampled_from(["add_bias", "bias_relu", "matmul", "column_sums", "relu_grad_bias"]))
        bias = place(draw(st.sampled_from([70_000, 80_000])), 1, 40)
        given_ = {
            "add_bias": lambda bias=bias: (bias, draw(matrices)),
            "bias_relu": lambda bias=bias: (bias, draw(matrices), draw(matrices)),
            "matmul": lambda bias=bias: (draw(matrices), draw(matrices), draw(matrices)),
            "column_sums": lambda bias=bias: (draw(matrices), bias),
            "relu_grad_bias": lambda bias=bias: (draw(matrices), draw(matrices), draw(matrices), bias),
        }[kernel]()
        made.append(instruction(kernel, *given_, form=draw(st.sampled_from([0, 1, 2]))))
    return made


@settings(max_examples=150)
@given(made=instructions())
def test_every_clash_of_two_workers_has_a_barrier_between(made):
    waits = barriers(made)
    for earlier, later in shared_writes(made):
        assert any(waits[earlier + 1 : later + 1]), f"{made[earlier]} and {made[later]} without a barrier"


def test_barriers_of_a_whole_step_stand_where_workers_need_each_other(training_step):
    """Of a step of two layers: the gather, products that read all of it, losses, and updates wait; biases do not."""
    network = gm.mlp([6, 40, 3], seed=0, device="cpu")
    x, y = RNG.normal(size=(20, 6)), RNG.integers(0, 3, 20)
    step = training_step(network, "cross_entropy", x, y, batch_rows=8, executor=CompiledExecutor)
    linked = step.executor.linked(step.plan.batch)
    waits = [bool(flag) for flag in linked.rows[:, 1]]
    names = [call.kernel for call in linked.program.calls]
    by_name = {name: [w for n, w in zip(names, waits, strict=True) if n == name] for name in names}
    assert names[:2] == ["gather_rows", "gather_labels"]
    assert waits[:2] == [False, False]
    assert by_name["bias_relu"] == [False]
    assert by_name["matmul"][0]  # reads what others gathered
    assert by_name["softmax_cross_entropy_labels"] == [True]
    assert by_name["sgd"] == [True] + [False] * (len(by_name["sgd"]) - 1)
    assert 5 <= sum(waits) < len(waits)
