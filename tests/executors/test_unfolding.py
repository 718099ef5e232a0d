"""Steps of a GPU: what they are made of, and which of them go into one launch."""

import numpy as np
import pytest

import gpumlp as gm
from bench.gpu_check.checks import executor
from gpumlp import executors
from gpumlp.executors import device, unfolding
from gpumlp.executors.graph import GraphExecutor
from gpumlp.executors.linking import Place
from gpumlp.executors.unfolding import CHAIN_NUMBERS, PAIRED_BLOCKS, Step, chains
from gpumlp.kernels import kernel_spec
from gpumlp.kernels.cuda import MAX_CHAIN
from gpumlp.program import Call, Memory, Operand, Program, new_control
from tests.executors.programs import memory_of, step_program


def small(name="relu", rows=1, columns=1):
    place = Place(0, rows, columns, columns, 4)
    return Step(name, [place if k == 1 else None for k, _ in enumerate(kernel_spec(name).operands)])


def product():
    return Step("matmul", call=Call("matmul", ()))


@pytest.mark.parametrize("classes", [3, 70])
def test_a_loss_is_checked_where_its_sum_is_made(stand_in, classes):
    """By the loss itself, also where several blocks share it."""
    backend, network = stand_in(), gm.mlp((7, 6, classes), device="stand-in")
    program, executor = step_program(network, batch_rows=20), GraphExecutor(backend, memory_of(network))
    executor.prepare(program)
    operations = [step.operation for step in executor.linked(program).steps]
    assert "check_loss" not in operations


def test_small_neighbours_go_into_one_launch():
    steps = [small(), small(), product(), small(), product(), product(), small(), small()]
    assert chains(steps) == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 8)]
    assert chains([]) == []


def test_what_has_much_work_has_a_launch_of_its_own():
    """Also where few blocks share it: a loss over many classes, the statistics of many rows."""
    steps = [small(columns=CHAIN_NUMBERS), small(columns=CHAIN_NUMBERS + 1), small(), small()]
    assert [step.is_small for step in steps] == [True, False, True, True]
    assert chains(steps) == [(0, 1), (1, 2), (2, 4)]
    large = [small("batch_norm", 4096, 512), small("mse", 128, 784), small("mse", 8, 3)]
    assert chains(large) == [(0, 1), (1, 2), (2, 3)]


def test_a_gather_is_as_large_as_what_it_writes():
    source = Place(0, 60_000, 784, 784, 4)
    few, many = (Place(0, rows, 784, 784, 4) for rows in (16, 64))
    gathers = [Step("gather_rows", [None, source, None, out]) for out in (few, many)]
    assert [step.is_small for step in gathers] == [True, False]


@pytest.mark.parametrize(("hidden", "operation"), [(16, "small_matmul"), (700, "matmul")])
def test_a_product_of_little_work_goes_into_a_chain(hidden, operation, stand_in):
    backend, network = stand_in(), gm.mlp((5, hidden, 20), activation="tanh", device="stand-in")
    program, executor = step_program(network), GraphExecutor(backend, memory_of(network))
    executor.prepare(program)
    linked = executor.linked(program)
    groups = executor.groups(linked.steps, "float32")
    alone = [linked.steps[first].operation for first, last in groups if last - first == 1]
    found = {step.operation for step in linked.steps if "matmul" in step.operation}
    assert found - {"matmul_pair"} == {operation}
    assert ("matmul" in alone) == (operation == "matmul")


def test_the_order_of_an_epoch_is_drawn_by_all_of_the_gpu():
    assert chains([small("shuffle", 1, 280), small()]) == [(0, 1), (1, 2)]


def test_a_chain_has_no_more_operations_than_its_kernel_holds():
    groups = chains([small()] * (2 * MAX_CHAIN + 3))
    assert [last - first for first, last in groups] == [MAX_CHAIN, MAX_CHAIN, 3]


def test_clipping_by_the_norm_counts_blocks_and_is_not_chained():
    steps = [small(), Step("sum_squares"), small("clip_by_norm"), small(), small()]
    assert chains(steps) == [(0, 1), (1, 2), (2, 3), (3, 5)]


@pytest.mark.parametrize("order", ["ascending", "random:5"])
def test_a_training_by_chains_is_the_training_without(order, stand_in, monkeypatch, assert_close):
    """With dropout, both normalisations, weights of rows, clipping, and an optimizer with two slots."""
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    rng = np.random.default_rng(0)
    X, y, weight = rng.normal(size=(50, 5)), rng.integers(0, 3, 50), rng.uniform(0.5, 2, 50)
    found = []
    for blocks in (CHAIN_NUMBERS, 0):
        monkeypatch.setattr(unfolding, "CHAIN_NUMBERS", blocks)
        stand_in(order=order)
        layers = [
            # with a bias its gradient would be what rounding leaves of 0
            *(gm.Linear(5, 12, bias=False), gm.BatchNorm1d(12), gm.Tanh(), gm.Dropout(0.2)),
            *(gm.Linear(12, 9), gm.LayerNorm(9), gm.GELU(), gm.Linear(9, 3)),
        ]
        network = gm.Sequential(*layers, device="stand-in", seed=1)
        trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.Adam(1e-2, clip_norm=1.0), seed=5)
        trainer.fit(X, y, epochs=3, batch_size=16, sample_weight=weight, progress=False)
        found.append(network.state_dict())
    for name, value in found[0].items():
        assert_close(found[1][name], value, 1e-4)


# --- the counters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [gm.SGD, gm.Adam])
@pytest.mark.parametrize("order", ["ascending", "descending", "random:5"])
def test_a_large_update_moves_the_counters_on_as_a_launch_behind_it_does(
    order, optimizer, stand_in, monkeypatch
):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 5)), rng.integers(0, 20, 50)
    found = []
    for apart in (False, True):
        if apart:
            monkeypatch.setattr(device, "advanced", lambda steps, advance: [*steps, advance])
        stand_in(order=order)
        network = gm.mlp((5, 700, 20), device="stand-in", seed=1)
        trainer = gm.Trainer(network, loss="cross_entropy", optimizer=optimizer(1e-2), seed=5)
        with executor(GraphExecutor):
            trainer.fit(X, y, epochs=3, batch_size=16, progress=False)
        found.append((network.state_dict(), trainer.history["loss"]))
    assert found[0][1] == found[1][1]
    for name, value in found[0][0].items():
        np.testing.assert_array_equal(found[1][0][name], value)


def test_an_update_of_few_numbers_and_one_that_is_not_the_last_leave_it_to_a_launch(stand_in):
    advance = Step("advance", scalars=[64, 4])
    large = [Place(0, 1, 20_000, 20_000, 4)] * 4
    assert unfolding.advanced([small("sgd")], advance)[-1] is advance
    assert unfolding.advanced([Step("sgd", large), small()], advance)[-1] is advance
    assert unfolding.advanced([], advance) == [advance]
    (update,) = unfolding.advanced([Step("sgd", large, [0.5])], advance)
    assert update.operation == "sgd"
    assert update.scalars == [0.5, 0, 0, 0, 0, 0, 64, 4]


# --- two products in one launch --------------------------------------------------------------------------------------


def two_products(first, second):
    """Products of a program, and its arrays: W and dY of a layer, its input X, and the gradients dW and dX."""
    rng = np.random.default_rng(4)
    sides = {"X": (70, 90), "W": (90, 40), "dY": (70, 40), "dW": (90, 40), "dX": (70, 90)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sides.items()}
    named = {name: Operand(name, "", shape, "float32") for name, shape in sides.items()}
    calls = [
        Call("matmul", tuple(named[n] for n in names), {"transpose_a": ta, "transpose_b": tb})
        for names, ta, tb in (first, second)
    ]
    memory = Memory({}, {**arrays, "control": new_control(0), "rates": np.zeros(1)})
    return Program(tuple(calls), {}, frozenset(), 70), memory


OF_WEIGHT, OF_INPUT = (("X", "dY", "dW"), True, False), (("dY", "W", "dX"), False, True)


@pytest.mark.parametrize("order", ["ascending", "descending", "random:5"])
def test_two_products_in_one_launch_are_the_two_one_by_one(order, stand_in, monkeypatch):
    backend = stand_in(order=order)
    found = []
    for most, operations in ((PAIRED_BLOCKS, ["matmul_pair"]), (0, ["matmul", "matmul"])):
        monkeypatch.setattr(unfolding, "PAIRED_BLOCKS", most)
        program, memory = two_products(OF_WEIGHT, OF_INPUT)
        executor = GraphExecutor(backend, memory)
        executor.prepare(program)
        assert [step.operation for step in executor.linked(program).steps] == operations
        executor.execute(program)
        arrays = executor.memory.arrays
        np.testing.assert_allclose(arrays["dW"], arrays["X"].T @ arrays["dY"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(arrays["dX"], arrays["dY"] @ arrays["W"].T, rtol=1e-4, atol=1e-4)
        found.append(arrays)
    for name in ("dW", "dX"):
        np.testing.assert_array_equal(found[0][name], found[1][name])


@pytest.mark.parametrize(
    "second",
    [
        (("X", "dW", "dY"), False, False),  # reads what the first writes
        (("X", "W", "dY"), False, False),  # writes what the first reads
        (("X", "dY", "dW"), True, False),  # writes what the first writes
    ],
)
def test_a_product_that_needs_another_waits_for_it(second, stand_in):
    backend = stand_in()
    program, memory = two_products(OF_WEIGHT, second)
    executor = GraphExecutor(backend, memory)
    executor.prepare(program)
    assert [step.operation for step in executor.linked(program).steps] == ["matmul", "matmul"]


def test_the_gradients_of_a_middle_layer_are_one_launch_and_those_of_a_small_last_one_go_into_its_chain(
    stand_in,
):
    backend, network = stand_in(), gm.mlp((7, 70, 60, 3), device="stand-in")
    program = step_program(network)
    executor = GraphExecutor(backend, memory_of(network))
    executor.prepare(program)
    steps = executor.linked(program).steps
    operations = [[s.operation for s in steps[a:b]] for a, b in executor.groups(steps, "float32")]
    assert ["matmul_pair"] in operations
    (loss,) = [chain for chain in operations if "softmax_cross_entropy_labels" in chain]
    assert loss.count("small_matmul") == 3  # forward, and the gradients of the weight and of the input
    assert "gather_labels" in loss
    assert not [name for chain in operations for name in chain if "narrow" in name]
