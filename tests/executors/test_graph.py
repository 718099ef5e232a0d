"""The graph executor on a GPU's stand-in: what is captured, what a library's products take along, lower precisions."""

from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import executors
from gpumlp.executors import graph, unfolding
from gpumlp.executors.graph import Chunk, GraphExecutor, chunks
from gpumlp.failure import NonFiniteLossError
from gpumlp.program import Builder
from tests.executors.gpu_trainings import LABELS, VALUES, X, assert_same_training, train
from tests.executors.programs import memory_of, step_program


@pytest.fixture(autouse=True)
def graphs_only(monkeypatch):
    """Small networks too."""
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)


# --- what is captured ------------------------------------------------------------------------------------------------


def plan_of(steps, short):
    program = Builder(4, "float32", training=True).finish()
    return executors.StepPlan(program, program, program if short else None, steps)


@pytest.mark.parametrize("begin_in_graph", [True, False])
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize(
    ("steps", "position", "n"),
    [(1, 0, 100), (9, 0, 40), (9, 4, 23), (938, 0, 2000), (938, 937, 3), (5, 4, 1)],
)
def test_chunks_are_the_steps_in_their_order_and_of_few_kinds(steps, short, position, n, begin_in_graph):
    plan = plan_of(steps, short and steps > 1)
    found = list(chunks(plan, position, n, begin_in_graph))
    done, place = 0, position
    begun = 0
    for chunk in found:
        if chunk.begin or chunk.epochs:
            assert place == 0
            begun += chunk.epochs or 1
        if chunk.last:
            assert place == steps - 1
        done += chunk.steps(plan)
        place = (position + done) % steps
    assert done == n
    assert begun == sum((position + i) % steps == 0 for i in range(n))
    assert len(set(found)) <= 12


@pytest.mark.parametrize(
    ("sizes", "activation", "kind", "columns"),
    [
        ((5, 7, 3), "elu", "column_sums", {7, 3}),
        ((5, 40, 20), "sigmoid", "column_sums", {40, 20}),
        ((5, 40, 20), "relu", "column_sums", {40, 20}),
        ((5, 7, 3), "relu", "narrow_sums", {7}),  # which takes the layer above along
        ((5, 140, 3), "tanh", "narrow_sums", {140}),
    ],
)
def test_the_sums_of_a_tall_matrix_are_shared_by_blocks(
    sizes, activation, kind, columns, stand_in, monkeypatch, assert_close
):
    stand_in(products={"matmul"})  # no epilogue sums columns
    shared: list[Any] = []
    sum_up = getattr(unfolding, f"_{kind}")

    def noted(*given):
        shared.append(list(sum_up(*given)))
        return shared[-1]

    monkeypatch.setattr(unfolding, f"_{kind}", noted)
    x = np.tile(X, (60, 1))
    y = np.arange(len(x)) % sizes[-1]

    def fit(device):
        network = gm.mlp(sizes, activation=activation, device=device, seed=1)
        trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(0.5), seed=5)
        return trainer, trainer.fit(x, y, epochs=2, batch_size=None, progress=False)

    assert_same_training(fit("stand-in"), fit("cpu"), assert_close)
    # behind the weight's those of the bias below, and of the layer's own
    place = -1 if kind == "column_sums" else -2
    split = [(steps[0].blocks, steps[0].places[place]) for steps in shared if len(steps) > 1]
    assert {sums.columns for _, sums in split} == columns
    for blocks, sums in split:
        # each takes some columns of one share
        assert blocks == sums.rows * -(-sums.columns // (32 if kind == "column_sums" else 128))


def test_a_whole_epoch_of_few_steps_is_one_graph():
    assert list(chunks(plan_of(9, True), 0, 9, True)) == [Chunk(epochs=1)]
    assert list(chunks(plan_of(9, True), 0, 27, True)) == [Chunk(epochs=2), Chunk(epochs=1)]


def test_many_rows_are_ordered_by_the_array_library_and_a_failing_step_finds_its_rows(
    stand_in, monkeypatch, assert_close
):
    monkeypatch.setattr(graph, "SORTED_BY_LIBRARY_FROM", 10)
    stand_in()
    assert_same_training(train("stand-in"), train("cpu"), assert_close)
    bad = X.copy()
    bad[33] = 1e30
    messages = []
    for device in ("stand-in", "cpu"):
        network = gm.Sequential(gm.Linear(5, 16), gm.ReLU(), gm.Linear(16, 2), device=device, seed=1)
        with pytest.raises(NonFiniteLossError) as error:
            gm.Trainer(network, loss="mse", optimizer=gm.SGD(0.01), seed=5).fit(
                bad, VALUES, epochs=9, batch_size=16, progress=False
            )
        messages.append(str(error.value))
    assert messages[0] == messages[1]


# --- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "most", "to_library"), [("float32", None, 0), ("float32", 0, 6), ("tf32", None, 6)]
)
def test_a_graph_leaves_products_to_the_library_unless_they_are_small_and_in_float32(
    precision, most, to_library, stand_in, monkeypatch
):
    if most is not None:
        monkeypatch.setattr(graph, "OWN_PRODUCT", most)
    left = set()
    device_of = stand_in().device
    product = device_of.product

    def noted(asked):
        left.add(tuple(getattr(o, "shape", None) for o in asked.operands))
        return product(asked)

    monkeypatch.setattr(device_of, "product", noted)
    layers = (gm.Linear(5, 20), gm.ReLU(), gm.Linear(20, 24), gm.ReLU(), gm.Linear(24, 2))
    train("stand-in", lambda: layers, "mse", VALUES, epochs=1, batch_size=35, precision=precision)
    # three forward, the gradients of two weights and of one input; those of the last layer are narrow
    assert len(left) == to_library, left


@pytest.mark.parametrize(
    ("apart_from", "passes"), [(1 << 62, {"relu_grad_bias"}), (0, {"relu_grad", "column_sums"})]
)
def test_gradients_stand_beside_products_and_not_in_their_epilogues(
    apart_from, passes, stand_in, monkeypatch
):
    monkeypatch.setattr(graph, "SUMS_APART_FROM", apart_from)
    monkeypatch.setattr(graph, "OWN_PRODUCT", 0)  # all products by the library
    backend = stand_in()
    net = gm.mlp((130, 140, 150, 130), activation="relu", seed=3, device="stand-in")
    program = step_program(net)
    executor = GraphExecutor(backend, memory_of(net))
    executor.prepare(program)
    kernels = {call.kernel for call in executor.linked(program).program.calls}
    assert {*passes, "product_bias_relu"} <= kernels
    assert ("relu_grad_bias" in kernels) == ("relu_grad_bias" in passes)
    assert not kernels & graph.SLOW_EPILOGUES  # slower than what stands in their place


def test_the_library_takes_epilogues_only_where_it_has_them(stand_in, used, monkeypatch, assert_close):
    stand_in(products={"matmul", "product_bias"})
    assert_same_training(train("stand-in"), train("cpu"), assert_close)
    assert used[0] is GraphExecutor


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_lower_precision_stays_near_and_is_not_the_same(precision, stand_in, monkeypatch, assert_close):
    stand_in()
    found, expected = train("stand-in", epochs=1, precision=precision), train("stand-in", epochs=1)
    np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=1e-2)
    assert found[1]["loss"] != expected[1]["loss"]


def test_a_full_batch_in_bfloat16_reads_one_copy_of_the_data(stand_in, monkeypatch):
    stand_in()
    casts: list[Any] = []
    unfold = unfolding.unfold

    def noted(program, *arguments):
        casts.extend(call for call in program.calls if call.kernel == "cast_bf16")
        return unfold(program, *arguments)

    monkeypatch.setattr("gpumlp.executors.device.unfold", noted)
    found, expected = (
        train("stand-in", epochs=3, batch_size=None, precision=precision) for precision in ("bf16", "float32")
    )
    np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=1e-2)
    assert sum(call.operands[0].arena == "X" for call in casts) == 1


def test_weights_that_are_set_between_epochs_reach_the_products_in_bfloat16(stand_in, monkeypatch):
    """The copy that products read follows updates; what a callback sets it must follow too."""
    stand_in()
    network = gm.mlp((5, 40, 3), device="stand-in", seed=1)

    def clear(trainer, epoch, logs):
        if epoch == 1:
            trainer.network.load_state_dict({k: 0 * v for k, v in trainer.network.state_dict().items()})

    trainer = gm.Trainer(
        network, loss="cross_entropy", optimizer=gm.SGD(1e-9), precision="bf16", callbacks=[clear]
    )
    history = trainer.fit(X, LABELS, epochs=2, batch_size=16, progress=False)
    assert history["loss"][1] == pytest.approx(np.log(3), rel=1e-4)
    assert history["loss"][0] != pytest.approx(np.log(3), rel=1e-2)
