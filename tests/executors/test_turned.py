"""The turned copy of the data: which products read it, that a training is the same, when it is made and when not."""

from dataclasses import replace

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import executors
from gpumlp.executors import graph
from gpumlp.executors.graph import GraphExecutor
from gpumlp.executors.lowering import read_full_batch_in_place
from gpumlp.executors.products import fuse_epilogues
from gpumlp.executors.turned import DATA_TURNED, read_turned
from gpumlp.program import Call
from tests.executors.gpu_trainings import assert_same_training
from tests.executors.programs import FEATURES, ROWS, having, memory_of, network, step_program

RNG = np.random.default_rng(4)
X = RNG.normal(size=(72, 5)).astype(np.float32)
LABELS = RNG.integers(0, 3, 72)


# --- the rewrite -----------------------------------------------------------------------------------------------------


def in_place(batch_rows=ROWS, dtype="float32"):
    return read_full_batch_in_place(step_program(network("tanh", dtype=dtype), batch_rows))


def changed(before, pays=lambda call: True):
    """Places of the calls that the rewrite changes, with what they were and what they are."""
    after = read_turned(pays)(before)
    assert replace(after, calls=before.calls) == before
    pairs = enumerate(zip(before.calls, after.calls, strict=True))
    return {i: pair for i, pair in pairs if pair[0] != pair[1]}


def test_the_gradient_of_the_first_weight_reads_the_copy_and_no_other_call_changes():
    (((before, after),)) = changed(in_place()).values()
    assert before.kernel == after.kernel == "matmul"
    assert [before.scalars["transpose_a"], after.scalars["transpose_a"]] == [True, False]
    assert after.scalars["transpose_b"] == before.scalars["transpose_b"]
    assert after.operands[1:] == before.operands[1:]
    assert before.operands[2].name == "0.weight"
    assert (after.operands[0].arena, after.operands[0].shape) == (DATA_TURNED, (FEATURES, ROWS))


def test_with_the_gradient_of_the_bias_it_reads_the_copy_too():
    program = fuse_epilogues(having({"product_bias_grad"}))(in_place())
    (((before, after),)) = changed(program).values()
    assert before.kernel == after.kernel == "product_bias_grad"
    assert (after.operands[0].arena, after.operands[3]) == (DATA_TURNED, before.operands[3])


def test_what_does_not_pay_is_left_as_it_is():
    asked: list[Call] = []

    def never(call):
        asked.append(call)
        return False

    assert not changed(in_place(), never)
    assert [str(call.operands[0]) for call in asked] == [f"X[]{[ROWS, FEATURES]}"]


def test_minibatches_and_float64_are_left_as_they_are():
    assert not changed(in_place(batch_rows=8))
    assert not changed(in_place(dtype="float64"))


def test_data_of_which_columns_would_not_begin_at_16_bytes_or_are_read_in_part_are_left_as_they_are():
    program = in_place()
    ((place, (call, _)),) = changed(program).items()
    a, b, c = call.operands
    for other in (
        replace(a, shape=(ROWS - 1, FEATURES)),
        replace(a, shape=(ROWS - 4, FEATURES), start=FEATURES),
        a.columns(0, 4),
    ):
        calls = list(program.calls)
        calls[place] = replace(call, operands=(other, b, c))
        assert not changed(replace(program, calls=tuple(calls)))


# --- trainings -------------------------------------------------------------------------------------------------------


@pytest.fixture
def from_copy(monkeypatch):
    """Small networks on graphs, whose data are turned once."""
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(graph, "TURNED_FROM", 0)


@pytest.fixture
def made(monkeypatch):
    """How often data were turned, one entry each."""
    copies = []
    turn = GraphExecutor._turn_data

    def noted(executor):
        copies.append(executor.memory.arrays[DATA_TURNED].shape)
        turn(executor)

    monkeypatch.setattr(GraphExecutor, "_turn_data", noted)
    return copies


def train(x=X, sizes=(5, 24, 3), precision="tf32", epochs=3, batch_size=None):
    trainer = gm.Trainer(
        gm.mlp(sizes, activation="tanh", seed=1, device="stand-in"),
        loss="cross_entropy",
        optimizer=gm.SGD(0.5),
        seed=5,
        precision=precision,
    )
    return trainer, trainer.fit(x, LABELS, epochs=epochs, batch_size=batch_size, progress=False)


@pytest.mark.parametrize("kernel", ["matmul", "product_bias_grad"])
def test_a_training_from_the_copy_is_the_same(kernel, stand_in, from_copy, made, monkeypatch, assert_close):
    if kernel == "product_bias_grad":
        monkeypatch.setattr(graph, "BLOCK_TILE", 0, raising=False)  # a product of any size fills the GPU
        monkeypatch.setattr(graph, "SLOW_EPILOGUES", frozenset())
    device, asked = stand_in().device, []
    product = device.product

    def noted(given):
        asked.append((given.kernel, given.operands[0].shape, given.transpose_a))
        return product(given)

    monkeypatch.setattr(device, "product", noted)
    found = train(sizes=(5, 24, 20))
    assert (kernel, (5, 72), False) in asked
    assert set(made) == {(5, 72)}
    del asked[:], made[:]
    monkeypatch.setattr(graph, "TURNED_FROM", 1 << 62)
    assert_same_training(found, train(sizes=(5, 24, 20)), assert_close)
    assert (kernel, (72, 5), True) in asked
    assert not made


@pytest.mark.parametrize(
    "settings", [{"precision": "float32"}, {"precision": "bf16"}, {"batch_size": 36}], ids=str
)
def test_there_is_no_copy_where_products_are_not_in_tf32_or_rows_are_gathered(
    settings, stand_in, from_copy, made
):
    stand_in()
    train(**settings)
    assert not made


def test_there_is_no_copy_for_little_work(stand_in, made, monkeypatch):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    stand_in()
    for most, copied in ((72 * 5 * 24 + 1, False), (72 * 5 * 24, True)):
        monkeypatch.setattr(graph, "TURNED_FROM", most)
        train(epochs=1)
        assert bool(made) == copied


def test_there_is_no_copy_where_it_would_take_much_of_what_is_free(stand_in, from_copy, monkeypatch):
    backend, net = stand_in(), network("tanh", dtype="float32")
    memory, program = memory_of(net), step_program(net, ROWS)
    step = graph.activation_bytes(program)
    for free, copied in (
        (step + 4 * memory.arrays["X"].nbytes, True),
        (step + memory.arrays["X"].nbytes, False),
    ):
        monkeypatch.setattr(backend.device, "memory", lambda free=free: (free, 1 << 40))
        executor = GraphExecutor(backend, memory, precision="tf32")
        executor.prepare(program)
        assert (DATA_TURNED in executor.memory.arrays) == copied


def test_data_that_change_between_two_blocks_of_steps_are_turned_again(
    stand_in, from_copy, made, monkeypatch, assert_close
):
    stand_in()
    unchanged, run = train(), GraphExecutor.run

    def run_and_enlarge(executor, *arguments):
        done = run(executor, *arguments)
        with executor.backend.active():
            executor.memory.arrays["X"][...] *= 5
        return done

    monkeypatch.setattr(GraphExecutor, "run", run_and_enlarge)
    del made[:]
    found = train()
    assert len(made) > 1
    monkeypatch.setattr(graph, "TURNED_FROM", 1 << 62)
    assert_same_training(found, train(), assert_close)
    assert found[1]["loss"][2] != pytest.approx(unchanged[1]["loss"][2], rel=1e-3)


def test_a_second_fit_reads_its_own_data(stand_in, from_copy, monkeypatch, assert_close):
    stand_in()

    def fit_twice():
        x = X.copy()
        trainer, _ = train(x)
        x *= -2
        return trainer, trainer.fit(x, LABELS, epochs=2, batch_size=None, progress=False)

    found = fit_twice()
    monkeypatch.setattr(graph, "TURNED_FROM", 1 << 62)
    assert_same_training(found, fit_twice(), assert_close)


def test_a_step_by_itself_turns_the_data_first(stand_in, from_copy, made, assert_close):
    backend, gradients = stand_in(), []
    for precision in ("tf32", "float32"):
        net = gm.mlp((FEATURES, 130, 6, 3), activation="tanh", seed=3, device="stand-in")
        program = step_program(net, ROWS)
        executor = GraphExecutor(backend, memory_of(net), precision=precision)
        executor.prepare(program)
        executor.execute(program)
        gradients.append(net.gradients.to_host())
    assert made == [(FEATURES, ROWS)]
    assert gradients[1]["0.weight"].any()
    for name, value in gradients[1].items():
        assert_close(gradients[0][name], value, 1e-2)
