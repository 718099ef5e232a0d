"""The program: calls checked against the catalogue, operands, and the plan of the memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp.arena import ALIGNMENT, Arena, Segment, aligned
from gpumlp.executors import EagerExecutor
from gpumlp.kernels import BAD_STEP, CATALOGUE, CONTROL_SIZE, SEED
from gpumlp.kernels.reference import kernel
from gpumlp.program import (
    ACTIVATION_ARENA,
    PYTHON,
    Builder,
    Memory,
    Operand,
    Program,
    activation_bytes,
    call_operands,
    new_control,
    plan,
)

CPU = gm.get_backend("cpu")


# --- operands and views -----------------------------------------------------------------------------------------


def test_columns_of_an_operand_are_a_view_of_those_columns(backend):
    b = Builder(3, "float64", training=True)
    x = b.buffer("x", 3, 6, keep=True)
    program = b.finish()
    executor = EagerExecutor(backend, Memory({}))
    executor.prepare(program)
    whole = executor.view(program, x)
    whole[...] = backend.asarray(np.arange(18.0).reshape(3, 6))
    part = executor.view(program, x.columns(2, 5))
    np.testing.assert_array_equal(backend.to_host(part), np.arange(18.0).reshape(3, 6)[:, 2:5])
    part[...] = 0
    assert float(whole.sum()) == np.arange(18.0).reshape(3, 6)[:, [0, 1, 5]].sum()
    np.testing.assert_array_equal(
        backend.to_host(executor.view(program, x.columns(0, 6))), backend.to_host(whole)
    )
    inner = executor.view(program, x.columns(1, 5).columns(1, 3))  # columns of columns
    assert inner.shape == (3, 2)
    whole[...] = backend.asarray(np.arange(18.0).reshape(3, 6))
    np.testing.assert_array_equal(backend.to_host(inner), np.arange(18.0).reshape(3, 6)[:, 2:4])


def test_a_flat_range_of_an_arena_is_a_view():
    arena = Arena(CPU, [Segment("a", (4,), "float64"), Segment("b", (2,), "float64", 256)])
    memory = Memory({"parameters": arena})
    memory.view(Operand("parameters", "", (2,), "float64", 32))[...] = [7, 8]
    np.testing.assert_array_equal(arena["b"], [7, 8])


def test_arrays_from_outside_are_read_in_place():
    x = np.ones((3, 2))
    assert Memory({}, {"X": x}).view(Operand("X", "", (3, 2), "float64")) is x


@pytest.mark.parametrize(
    "operand",
    [
        Operand("X", "", (4, 2), "float64"),
        Operand("X", "", (3, 3), "float64"),
        Operand("X", "", (7,), "float64"),
        Operand("X", "", (3, 2), "float32"),
        Operand("X", "", (3, 1), "float64", 2, 2),
        Operand("X", "", (2,), "float64", 5),
    ],
)
def test_an_operand_that_does_not_fit_is_refused_when_linked(operand):
    with pytest.raises(ValueError, match=r"operand X\[.*does not fit \(3, 2\) of float64"):
        Memory({}, {"X": np.ones((3, 2))}).view(operand)


def test_an_operand_says_what_it_is():
    assert str(Operand("parameters", "0.weight", (3, 2), "float32")) == "parameters[0.weight][3, 2]"
    assert str(Operand(ACTIVATION_ARENA, "x", (3, 4), "float32").columns(1, 3)) == "activations[x+1][3, 2]"


# --- the builder --------------------------------------------------------------------------------------------------


def test_a_call_is_checked_against_the_catalogue():
    b = Builder(2, "float64", training=True)
    x, y = b.buffer("x", 2, 3), b.buffer("y", 2, 3)
    with pytest.raises(KeyError):
        b.call("no_such_kernel", x, y)
    with pytest.raises(ValueError, match="argument"):  # an operand too few
        b.call("relu", x)
    with pytest.raises(ValueError, match=r"call of relu with operands \['y'\] absent"):
        b.call("relu", x, None)
    with pytest.raises(ValueError, match=r"scalars \['slope'\]; expected .*\['negative_slope'\]"):
        b.call("leaky_relu", x, y, slope=0.1)
    with pytest.raises(ValueError, match="scalars"):
        b.call("relu", x, y, alpha=1)
    b.call("layer_norm", x, None, None, y, b.buffer("mean", 2), b.buffer("rstd", 2), eps=0.1)
    assert len(b.finish().calls) == 1


def test_a_buffer_is_declared_once():
    b = Builder(2, "float64", training=True)
    b.buffer("x", 2, 3)
    with pytest.raises(ValueError, match="buffer 'x' is declared twice"):
        b.buffer("x", 2, 3)


def test_a_program_prints_its_calls():
    b = Builder(2, "float64", training=True)
    b.call("leaky_relu", b.buffer("x", 2, 3), b.buffer("y", 2, 3), negative_slope=0.1)
    b.mark("end")
    program = b.finish()
    assert str(program) == "   0  leaky_relu(activations[x][2, 3], activations[y][2, 3], negative_slope=0.1)"
    assert program.marks == {"end": 1}


def test_what_a_call_reads_and_writes_is_that_of_the_catalogue():
    b = Builder(2, "float64", training=True)
    x, bias, y = b.buffer("x", 2, 3), b.buffer("bias", 3), b.buffer("y", 2, 3)
    b.call("add_bias", bias, x)
    b.call("relu", x, y)
    b.call(PYTHON, x, y, function=print)
    add, relu, python = b.finish().calls
    assert call_operands(add) == ([bias, x], [])  # an update reads what it changes
    assert call_operands(relu) == ([x], [y])
    assert call_operands(python) == ([x], [y])


def test_a_control_block_begins_with_its_seed_and_no_bad_step():
    control = new_control(42)
    assert control.dtype == np.int64
    assert control.size == CONTROL_SIZE
    assert (control[SEED], control[BAD_STEP], control.sum()) == (42, -1, 41)


# --- the plan -----------------------------------------------------------------------------------------------------

ROWS = 3
KINDS = ("relu", "softplus", "copy", "tanh_grad", "product", "shift", "halves")


@st.composite
def programs(draw):
    """A program of element-wise calls, products, updates and calls on columns, with random widths and lifetimes."""
    b = Builder(ROWS, "float64", training=True)
    width = st.integers(1, 60)  # 32 numbers fill a unit of memory: tensors of one, two and more of them
    tensors = [b.buffer(f"in{i}", ROWS, draw(width), keep=True) for i in range(2)]
    for i in range(draw(st.integers(1, 14))):
        kind, x = draw(st.sampled_from(KINDS)), draw(st.sampled_from(tensors))
        if kind == "product":  # (x x') other
            other = draw(st.sampled_from(tensors))
            inner = b.buffer(f"inner{i}", ROWS, ROWS)
            y = b.buffer(f"t{i}", ROWS, other.shape[1], keep=draw(st.booleans()))
            b.call("matmul", x, x, inner, transpose_a=False, transpose_b=True)
            b.call("matmul", inner, other, y, transpose_a=False, transpose_b=False)
            tensors.append(y)
            continue
        y = b.buffer(f"t{i}", *x.shape, keep=draw(st.booleans()))
        tensors.append(y)
        if kind == "softplus":
            b.call(kind, x, y, beta=0.5)
        elif kind == "tanh_grad":
            b.call(kind, x, draw(st.sampled_from([t for t in tensors[:-1] if t.shape == x.shape])), y)
        elif kind == "shift":
            sums = b.buffer(f"sums{i}", x.shape[1])
            b.call("column_sums", x, sums)
            b.call("tanh", x, y)
            b.call("add_bias", sums, y)
        elif kind == "halves" and x.shape[1] > 1:
            for span in ((0, x.shape[1] // 2), (x.shape[1] // 2, x.shape[1])):
                b.call("tanh", x.columns(*span), y.columns(*span))
        else:
            b.call("relu" if kind == "halves" else kind, x, y)
    return b.finish()


def run_planned(program):
    executor = EagerExecutor(CPU, Memory({}))
    executor.prepare(program)
    for i, name in enumerate(("in0", "in1")):
        view = executor.linked(program).activations[name]
        view[...] = np.random.default_rng(i).normal(size=view.shape)
    executor.execute(program)
    return {name: executor.linked(program).activations[name].copy() for name in program.keep}


def run_apart(program):
    """The same with an array of its own for every tensor."""
    arrays = {name: np.full(s.shape, np.nan) for name, s in program.buffers.items()}
    for i, name in enumerate(("in0", "in1")):
        arrays[name][...] = np.random.default_rng(i).normal(size=arrays[name].shape)

    def view(o):
        if o.stride is None:
            return arrays[o.name]
        return arrays[o.name][:, o.start : o.start + o.shape[1]]

    with np.errstate(all="ignore"):
        for call in program.calls:
            kernel(call.kernel)(np, *(view(o) for o in call.operands), **call.scalars)
    return {name: arrays[name] for name in program.keep}


@settings(max_examples=150)
@given(program=programs())
def test_sharing_memory_changes_no_bit_of_what_is_kept(program):
    shared, apart = run_planned(program), run_apart(program)
    assert set(shared) == set(apart)
    for name, expected in apart.items():
        np.testing.assert_array_equal(shared[name], expected, err_msg=name)


def lifetimes(program):
    """First and last call that names each tensor; kept ones live throughout."""
    spans: dict[str, tuple[int, int]] = {}
    for i, call in enumerate(program.calls):
        for o in call.operands:
            if o is not None and o.arena == ACTIVATION_ARENA:
                spans[o.name] = (spans.get(o.name, (i, i))[0], i)
    spans.update({name: (-1, len(program.calls)) for name in program.keep})
    return spans


@settings(max_examples=150)
@given(program=programs())
def test_tensors_that_live_at_the_same_time_do_not_overlap(program):
    spans, buffers = lifetimes(program), program.buffers
    names = sorted(spans)
    for k, one in enumerate(names):
        assert buffers[one].offset % ALIGNMENT == 0
        for other in names[k + 1 :]:
            (a0, a1), (b0, b1) = spans[one], spans[other]
            a, b = buffers[one], buffers[other]
            apart = a.offset + aligned(a.nbytes) <= b.offset or b.offset + aligned(b.nbytes) <= a.offset
            if apart or a1 < b0 or b1 < a0:
                continue
            # the only overlap allowed: an element-wise call writes over what dies there
            meeting = max(a0, b0)
            assert meeting == min(a1, b1)
            call = program.calls[meeting]
            written, read = CATALOGUE[call.kernel].in_place or ("", "")
            by_name = dict(zip(CATALOGUE[call.kernel].operands, call.operands, strict=True))
            assert {by_name[written].name, by_name[read].name} == {one, other}
            assert a.offset == b.offset


def chain_of(kernels, keep_last=True):
    """x -> t0 -> t1 -> ... of 3 x 32, 3 units of memory each."""
    b = Builder(ROWS, "float64", training=False)
    x = b.buffer("x", ROWS, 32)
    for i, name in enumerate(kernels):
        y = b.buffer(f"t{i}", ROWS, 32)
        b.call(name, x, y)
        x = y
    if keep_last:
        b.keep(x)
    return b.finish()


TENSOR = ROWS * ALIGNMENT


def test_an_element_wise_call_writes_over_an_operand_that_dies_there():
    program = chain_of(["relu", "tanh", "sigmoid"], keep_last=False)
    assert len({s.offset for s in program.buffers.values()}) == 1
    assert activation_bytes(program) == TENSOR


def test_a_call_that_is_not_element_wise_gets_memory_of_its_own():
    program = chain_of(["copy", "copy", "copy"], keep_last=False)
    assert activation_bytes(program) == 2 * TENSOR


def test_an_operand_that_is_needed_later_is_not_written_over():
    b = Builder(ROWS, "float64", training=True)
    x, y, z = (b.buffer(n, ROWS, 32) for n in "xyz")
    b.call("relu", x, y)
    b.call("tanh_grad", x, y, z)
    offsets = {n: s.offset for n, s in b.finish().buffers.items()}
    assert offsets["x"] != offsets["y"]  # x is read once more
    assert offsets["z"] == offsets["y"]  # the gradient goes over dy, which dies there
    assert offsets["z"] != offsets["x"]


def test_an_operand_of_which_some_columns_are_read_is_not_written_over():
    """The rows of the result lie at another distance: writing one would spoil the next."""
    b = Builder(ROWS, "float64", training=True)
    x, y = b.buffer("x", ROWS, 32), b.buffer("y", ROWS, 16)
    b.call("relu", x.columns(0, 16), y)
    offsets = {n: s.offset for n, s in b.finish().buffers.items()}
    assert offsets["x"] != offsets["y"]


def test_an_operand_that_is_named_twice_is_not_written_over():
    b = Builder(ROWS, "float64", training=True)
    x, z = b.buffer("x", ROWS, 32), b.buffer("z", ROWS, 32)
    b.call("tanh_grad", x, x, z)
    offsets = {n: s.offset for n, s in b.finish().buffers.items()}
    assert offsets["x"] != offsets["z"]


def test_what_is_kept_lives_throughout():
    b = Builder(ROWS, "float64", training=True)
    x, y = b.buffer("x", ROWS, 32, keep=True), b.buffer("y", ROWS, 32)
    unused = b.buffer("unused", ROWS, 32, keep=True)
    b.call("relu", x, y)
    program = b.finish()
    assert len({program.buffers[o.name].offset for o in (x, y, unused)}) == 3


def test_planning_a_plan_again_changes_nothing():
    program = chain_of(["relu", "copy", "tanh", "copy"])
    assert plan(program).buffers == program.buffers


def inference_bytes(widths, rows=8):
    network = gm.mlp(widths, dtype="float64", activation="relu")
    b = Builder(rows, "float64", training=False)
    network.emit_forward(b, b.buffer("x", rows, widths[0]))
    return activation_bytes(b.finish())


def test_inference_takes_the_same_memory_whatever_the_depth():
    """Two tensors of the widest layers, where the input is as wide."""
    assert [inference_bytes([64] * depth) for depth in (3, 6, 41)] == [2 * 8 * 64 * 8] * 3


@settings(max_examples=30)
@given(widths=st.lists(st.integers(1, 100), min_size=2, max_size=12))
def test_inference_never_takes_more_than_three_tensors_of_the_widest_layer(widths):
    """Two live at a time, and a gap between them can be too small for the next."""
    assert inference_bytes(widths) <= 3 * aligned(8 * max(widths) * 8)


def test_training_keeps_what_the_backward_pass_reads():
    sizes = {}
    for depth in (2, 10):
        network = gm.mlp([32, *[64] * depth, 32], dtype="float64")
        b = Builder(32, "float64", training=True)
        values = network.emit_forward(b, b.buffer("x", 32, 32))
        network.emit_backward(b, values, b.buffer("dy", 32, 32))
        sizes[depth] = activation_bytes(b.finish())
    layer = 32 * 64 * 8
    # one tensor a hidden layer: relu works in place, and its gradient over dy
    assert sizes[10] - sizes[2] == 8 * layer


def test_a_program_without_calls_takes_no_memory():
    program = Program((), {}, frozenset(), rows=1)
    assert activation_bytes(plan(program)) == 0
