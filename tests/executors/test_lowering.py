import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors import EagerExecutor
from gpumlp.executors.eager import REWRITES
from gpumlp.executors.lowering import gather_late, lower, read_full_batch_in_place, substitute, sum_early
from gpumlp.kernels import kernel_spec
from gpumlp.program import Builder, Operand, plan

RNG = np.random.default_rng(0)
X, Y, W = RNG.normal(size=(12, 3)), RNG.integers(0, 4, 12), RNG.uniform(0.5, 2, 12)
REGRESSION = RNG.normal(size=(12, 4))


def make(training_step, target=Y, loss="cross_entropy", batch_rows=None, weight=W):
    network = gm.mlp([3, 5, 4], dtype="float64", seed=1, activation="tanh", device="cpu")
    return training_step(network, loss, X, target, weight, batch_rows=batch_rows, executor=EagerExecutor)


def names(program):
    return [call.kernel for call in program.calls]


def test_a_full_batch_is_read_where_it_lies(training_step):
    program = make(training_step).plan.batch
    lowered = lower(program, (read_full_batch_in_place,))
    gathers = {"gather_rows", "gather_labels", "gather_weights"}
    assert gathers <= set(names(program))
    assert not gathers & set(names(lowered))
    assert names(lowered) == [n for n in names(program) if n not in gathers]
    assert not {"x", "target", "weight"} & set(lowered.buffers)
    arenas = {o.arena for call in lowered.calls for o in call.operands if o is not None}
    assert {"X", "y", "weight"} <= arenas
    assert "index" not in arenas


def test_a_minibatch_is_left_as_it_is(training_step):
    program = make(training_step, batch_rows=5).plan.batch
    assert read_full_batch_in_place(program) is program


@pytest.mark.parametrize(("loss", "target"), [("cross_entropy", Y), ("mse", REGRESSION)])
@pytest.mark.parametrize("weight", [None, W])
def test_reading_in_place_gives_the_same_bits(loss, target, weight, training_step):
    results = []
    for rewrites in ((), (read_full_batch_in_place,)):
        step = make(training_step, target, loss, weight=weight)
        program = lower(step.plan.batch, rewrites)
        step.executor.prepare(step.plan.begin, program)
        step.executor.execute(step.plan.begin)
        step.executor.execute(program)
        results.append((step.ring[0].copy(), step.network.gradients.to_host()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert gradient.any()
        np.testing.assert_array_equal(gradient, results[1][1][name])


def test_late_gathers_stand_before_what_reads_them_and_change_no_bit(training_step):
    results = []
    for rewrites in ((), (gather_late,)):
        step = make(training_step, batch_rows=5)
        program = lower(step.plan.batch, rewrites)
        step.executor.prepare(step.plan.begin, program)
        step.executor.execute(step.plan.begin)
        step.executor.execute(program)
        results.append((step.ring[0].copy(), step.network.gradients.to_host()))
    loss = names(program).index("softmax_cross_entropy_labels")
    assert names(program)[0] == "gather_rows"
    assert set(names(program)[loss - 2 : loss]) == {"gather_labels", "gather_weights"}
    before = make(training_step, batch_rows=5).plan.batch
    for name, place in before.marks.items():
        assert program.calls[program.marks[name]].kernel == before.calls[place].kernel
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert gradient.any()
        np.testing.assert_array_equal(gradient, results[1][1][name])


def test_early_sums_stand_behind_what_writes_their_matrix_and_change_no_bit(training_step):
    results = []
    for rewrites in ((), (sum_early,)):
        step = make(training_step, batch_rows=5)
        program = lower(step.plan.batch, rewrites)
        step.executor.prepare(step.plan.begin, program)
        step.executor.execute(step.plan.begin)
        step.executor.execute(program)
        results.append(step.network.gradients.to_host())
    for i, call in enumerate(program.calls):
        if call.kernel == "column_sums":
            before = program.calls[i - 1]
            assert call.operands[0] in before.operands[len(kernel_spec(before.kernel).reads) :]
    assert names(program).count("column_sums") == 2
    for name, gradient in results[0].items():
        assert gradient.any()
        np.testing.assert_array_equal(gradient, results[1][name])


def test_marks_move_with_the_calls_that_are_left_out(training_step):
    program = make(training_step).plan.batch
    lowered = lower(program, REWRITES)
    for mark, place in program.marks.items():
        assert names(lowered)[lowered.marks[mark]] == names(program)[place]
    assert set(lowered.marks) == {"backward", "update"}


def test_a_rewrite_leaves_the_program_that_it_was_given_alone(training_step):
    program = make(training_step).plan.batch
    before = str(program)
    lower(program, REWRITES)
    assert str(program) == before


def test_substitute_forgets_tensors_that_nothing_names_any_more():
    b = Builder(2, "float64", training=True)
    x, y, z = (b.buffer(n, 2, 3) for n in "xyz")
    b.call("copy", Operand("X", "", (2, 3), "float64"), x)
    b.call("relu", x, y)
    b.call("relu", y, z)
    b.keep(z)
    program = substitute(b.finish(), {"x": Operand("X", "", (2, 3), "float64")}, {0})
    assert set(program.buffers) == {"y", "z"}
    assert program.calls[0].operands[0] == Operand("X", "", (2, 3), "float64")


def test_columns_of_a_tensor_become_columns_of_what_takes_its_place():
    whole = Operand("X", "", (2, 5), "float64")
    b = Builder(2, "float64", training=True)
    x, y = b.buffer("x", 2, 5), b.buffer("y", 2, 2, keep=True)
    b.call("copy", whole, x)
    b.call("relu", x.columns(1, 3), y)
    program = substitute(b.finish(), {"x": whole}, {0})
    assert program.calls[0].operands[0] == whole.columns(1, 3)


def test_a_layer_that_reads_columns_can_be_the_first_on_a_full_batch(training_step):
    losses = []
    for rewrites in ((), (read_full_batch_in_place,)):
        layers = gm.PerUnit(["relu", "tanh", "tanh"]), gm.Linear(3, 4)
        network = gm.Sequential(*layers, dtype="float64", device="cpu")
        step = training_step(network, "mse", X, REGRESSION, executor=EagerExecutor)
        program = lower(step.plan.batch, rewrites)
        step.executor.prepare(step.plan.begin, program)
        step.executor.execute(step.plan.begin)
        step.executor.execute(program)
        losses.append(float(step.ring[0, 0]))
    assert losses[0] == losses[1]


def test_lowering_by_nothing_is_planning(training_step):
    program = make(training_step).plan.batch
    assert lower(program, ()) == plan(program)
