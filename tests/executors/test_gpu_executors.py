"""The executors of a GPU on its stand-in: whole trainings give those of eager, and the rules of a GPU are kept."""

import gc
import threading
import warnings
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import executors, feed
from gpumlp.executors import EagerExecutor, choose_executor, graph, unfolding
from gpumlp.executors.graph import Chunk, GraphExecutor, chunks
from gpumlp.executors.resident import ResidentExecutor
from gpumlp.executors.streaming import StreamingExecutor
from gpumlp.failure import NonFiniteLossError
from gpumlp.program import Builder
from tests.executors.programs import memory_of, step_program

RNG = np.random.default_rng(2)
X = RNG.normal(size=(70, 5)).astype(np.float32)
LABELS = RNG.integers(0, 3, 70)
VALUES = np.stack([X[:, 0] * X[:, 1], np.sin(X[:, 2])], axis=1)
WEIGHT = RNG.uniform(0.1, 2, 70)

KINDS = {"graph": GraphExecutor, "resident": ResidentExecutor, "streaming": StreamingExecutor}


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """Every executor of a GPU, whatever the size of the network."""
    name = request.param
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 1 << 40 if name == "resident" else 0)
    if name == "streaming":
        monkeypatch.setattr(feed, "_must_stream", lambda backend, *_: backend.is_gpu)
        monkeypatch.setattr(feed, "CHUNK_BYTES", 2000)  # some batches
    return name


@pytest.fixture
def used(monkeypatch):
    """The executors that trainings took, in order."""
    made = []
    connect = feed.connect

    def noted(*arguments, **settings):
        memory, executor = connect(*arguments, **settings)
        made.append(type(executor))
        return memory, executor

    monkeypatch.setattr("gpumlp.loop.connect", noted)
    return made


def train(device, layers=None, loss="cross_entropy", y=LABELS, optimizer=None, epochs=3, **settings):
    outputs = 2 if loss == "mse" else 3
    made = layers() if layers else [gm.Linear(5, 16), gm.ReLU(), gm.Dropout(0.2), gm.Linear(16, outputs)]
    trainer = gm.Trainer(
        gm.Sequential(*made, device=device, seed=1),
        loss=loss,
        optimizer=optimizer or gm.Adam(1e-2),
        seed=5,
        precision=settings.pop("precision", "float32"),
    )
    fit = {"batch_size": 16, "progress": False, **settings}
    history = trainer.fit(X, y, epochs=epochs, **fit)
    return trainer, history


def assert_same_training(one, other, assert_close, tolerance=1e-5):
    (trainer, history), (true, expected) = one, other
    for name, value in true.network.state_dict().items():
        assert_close(trainer.network.state_dict()[name], value, tolerance)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=tolerance)


TRAININGS: dict[str, dict[str, Any]] = {
    "dropout": {},
    "weights": {"sample_weight": WEIGHT},
    "order of the data": {"shuffle": False},
    "one row": {"batch_size": 1, "epochs": 1},
    "full batch": {"batch_size": None},
    "values": {"loss": "mse", "y": VALUES},
    "schedule": {"optimizer": gm.SGD(gm.CosineDecay(0.1), momentum=0.9, clip_norm=1.0)},
    "some rows": {"rows": np.arange(3, 60, 2)},
    "normalised": {
        "layers": lambda: [
            gm.Linear(5, 12, bias=False),
            gm.BatchNorm1d(12),
            gm.GELU(approximate="tanh"),
            gm.Linear(12, 3),
        ]
    },
    "whole packs": {
        "layers": lambda: [
            *(gm.Linear(5, 16), gm.ReLU(), gm.Linear(16, 24), gm.Tanh()),
            *(gm.Linear(24, 32), gm.ReLU(), gm.Linear(32, 3)),
        ]
    },
    "deep": {
        "layers": lambda: [
            *(layer for _ in range(4) for layer in (gm.Linear(5, 5), gm.Tanh())),
            gm.Linear(5, 3),
        ]
    },
}


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_gives_what_eager_gives(case, kind, stand_in, used, assert_close):
    stand_in()
    settings = TRAININGS[case]
    found, expected = train("stand-in", **settings), train("cpu", **settings)
    assert used[0] is KINDS[kind]
    assert_same_training(found, expected, assert_close)


@pytest.mark.parametrize(
    ("precision", "most", "to_library"), [("float32", None, 0), ("float32", 0, 6), ("tf32", None, 6)]
)
def test_a_graph_leaves_products_to_the_library_unless_they_are_small_and_in_float32(
    precision, most, to_library, stand_in, monkeypatch
):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
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


@pytest.mark.parametrize("most", [1 << 30, 100])
def test_operands_that_32_bits_cannot_count_are_named_when_kernels_are_compiled(
    most, kind, stand_in, monkeypatch
):
    asked = set()
    monkeypatch.setattr("gpumlp.executors.device.MOST_ELEMENTS", most)
    device_of = stand_in().device
    kernels = device_of.kernels

    def noted(*arguments):
        asked.add(arguments[-1])
        return kernels(*arguments[:-1])

    monkeypatch.setattr(device_of, "kernels", noted)
    train("stand-in", epochs=1)
    assert asked == {most == 100}


@pytest.mark.parametrize("order", ["descending", "random:7"])
def test_the_order_of_threads_does_not_change_a_bit(order, kind, stand_in):
    weights = []
    for chosen in ("ascending", order):
        stand_in(order=chosen)
        weights.append(train("stand-in")[0].network.parameters.to_host())
    for name, value in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], value)


def test_the_same_seed_gives_the_same_bits_twice(kind, stand_in):
    stand_in()
    first, second = (train("stand-in")[0].network.state_dict() for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


def test_a_stopped_and_resumed_training_ends_with_the_same_bits(kind, stand_in):
    stand_in()
    whole, _ = train("stand-in", epochs=4)
    half, _ = train("stand-in", epochs=2)
    resumed = gm.Trainer(half.network.copy(), loss="cross_entropy", optimizer=gm.Adam(1e-2))
    resumed.load_state_dict(*half.state_dict())
    resumed.fit(X, LABELS, epochs=4, batch_size=16, progress=False)
    for name, value in whole.network.state_dict().items():
        np.testing.assert_array_equal(resumed.network.state_dict()[name], value)


def test_a_lost_loss_ends_the_run_at_the_step_that_eager_names(kind, stand_in):
    stand_in()
    failures, weights = [], []
    for device in ("stand-in", "cpu"):
        network = gm.Sequential(gm.Linear(5, 16), gm.ReLU(), gm.Linear(16, 2), device=device, seed=1)
        trainer = gm.Trainer(network, loss="mse", optimizer=gm.SGD(3.0), seed=5)
        with pytest.raises(NonFiniteLossError) as error:
            trainer.fit(X, 50 * VALUES, epochs=20, batch_size=16, progress=False)
        failures.append((error.value.epoch, error.value.batch, error.value.layer, error.value.lr))
        weights.append(network.state_dict())
    assert failures[0] == failures[1]
    assert all(np.isfinite(value).all() for value in weights[0].values())


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_lower_precision_stays_near_and_is_not_the_same(precision, stand_in, monkeypatch, assert_close):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    stand_in()
    found, expected = train("stand-in", epochs=1, precision=precision), train("stand-in", epochs=1)
    np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=1e-2)
    assert found[1]["loss"] != expected[1]["loss"]


def test_a_full_batch_in_bfloat16_reads_one_copy_of_the_data(stand_in, monkeypatch):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
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
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
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


def test_a_precision_that_a_device_has_not_is_refused():
    with pytest.raises(ValueError, match=r"precision 'tf32' needs a GPU, and the device is cpu"):
        gm.Trainer(gm.mlp((2, 2), device="cpu"), loss="mse", precision="tf32")
    with pytest.raises(ValueError, match=r"precision is 'half'; expected one of 'float32', 'tf32', 'bf16'"):
        gm.Trainer(gm.mlp((2, 2), device="cpu"), loss="mse", precision="half")


def test_a_precision_goes_with_float32_alone(stand_in):
    stand_in()
    with pytest.raises(ValueError, match=r"precision 'bf16' is for float32, and the dtype is float64"):
        gm.Trainer(gm.mlp((2, 2), device="stand-in"), loss="mse", dtype="float64", precision="bf16")


def test_fits_from_several_threads_do_not_meet(kind, stand_in):
    stand_in()
    found: list[dict] = []
    threads = [
        threading.Thread(target=lambda: found.append(train("stand-in")[0].network.state_dict()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for weights in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_array_equal(weights[name], value)


@pytest.mark.parametrize(("multiprocessors", "in_epilogue"), [(1, True), (132, False)])
def test_biases_have_their_gradients_in_an_epilogue_only_beside_a_product_that_fills_the_gpu(
    multiprocessors, in_epilogue, stand_in, monkeypatch
):
    monkeypatch.setattr(graph, "OWN_PRODUCT", 0)  # all products by the library
    backend = stand_in()
    backend.device.multiprocessors = multiprocessors
    net = gm.mlp((130, 140, 150, 130), activation="relu", seed=3, device="stand-in")
    program = step_program(net)
    executor = GraphExecutor(backend, memory_of(net))
    executor.prepare(program)
    kernels = {call.kernel for call in executor.linked(program).program.calls}
    assert ("product_bias_grad" in kernels) == in_epilogue
    assert ("relu_grad_bias" in kernels) == (not in_epilogue)
    assert "product_relu_grad" not in kernels  # slower than what stands in its place


# --- which executor ----------------------------------------------------------------------------------------------


def test_a_small_network_is_resident_and_a_large_one_a_graph(stand_in, used):
    stand_in()
    train("stand-in", epochs=1)
    wide = [gm.Linear(5, 700), gm.ReLU(), gm.Linear(700, 700), gm.ReLU(), gm.Linear(700, 3)]
    train("stand-in", layers=lambda: wide, epochs=1)
    assert used == [ResidentExecutor, GraphExecutor]


def test_without_a_library_for_products_a_large_network_is_eager_and_a_small_one_resident(
    stand_in, used, monkeypatch
):
    stand_in(products=())
    train("stand-in", epochs=1)
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    train("stand-in", epochs=1)
    assert used == [ResidentExecutor, EagerExecutor]


def test_the_summary_says_which_executor_trains(stand_in):
    stand_in()
    network = gm.mlp((5, 16, 3), device="stand-in")
    assert "executor: resident for batches of up to 5,208 rows, graph above" in network.summary()
    assert "device: stand-in (stand-in for a GPU)" in network.summary()


def test_a_layer_in_python_runs_on_eager_on_a_gpu_too(stand_in, used):
    class Twice(gm.Layer):
        def forward(self, x):
            return 2 * x

        def backward(self, dy):
            return 2 * dy

    stand_in()
    train("stand-in", layers=lambda: [gm.Linear(5, 3), Twice()], epochs=1)
    assert used == [EagerExecutor]


def test_the_library_takes_epilogues_only_where_it_has_them(stand_in, used, monkeypatch, assert_close):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    stand_in(products={"matmul", "product_bias"})
    assert_same_training(train("stand-in"), train("cpu"), assert_close)
    assert used[0] is GraphExecutor


def test_predictions_of_a_gpu_are_those_of_the_cpu(stand_in):
    stand_in()
    network = gm.mlp((5, 16, 3), seed=3, device="cpu")
    expected = network.predict(X)
    np.testing.assert_allclose(network.to("stand-in").predict(X), expected, rtol=1e-5, atol=1e-6)


def test_choose_executor_without_a_plan_names_the_graph(stand_in):
    assert choose_executor(stand_in(), has_python=False) == (GraphExecutor, "graph")


# --- graphs ------------------------------------------------------------------------------------------------------


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
        ((5, 7, 3), "sigmoid", "column_sums", {3}),
        ((5, 40, 20), "sigmoid", "column_sums", {40, 20}),
        ((5, 40, 20), "relu", "column_sums", {40, 20}),
        ((5, 7, 3), "relu", "narrow_sums", {7}),  # which takes the layer above along
        ((5, 140, 3), "tanh", "narrow_sums", {140}),
    ],
)
def test_the_sums_of_a_tall_matrix_are_shared_by_blocks(
    sizes, activation, kind, columns, stand_in, monkeypatch, assert_close
):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
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
    split = [(steps[0].blocks, steps[0].places[-1]) for steps in shared if len(steps) > 1]
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
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
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


# --- memory ------------------------------------------------------------------------------------------------------


def test_data_that_do_not_fit_are_streamed(stand_in, used, assert_close):
    stand_in(memory_bytes=400_000)
    x = np.tile(X, (300, 1))
    y = np.tile(LABELS, 300)

    def fit(device):
        trainer = gm.Trainer(
            gm.mlp((5, 16, 3), device=device), loss="cross_entropy", optimizer=gm.SGD(0.1), seed=2
        )
        return trainer, trainer.fit(x, y, epochs=2, batch_size=64, progress=False)

    found = fit("stand-in")
    assert used == [StreamingExecutor]
    assert_same_training(found, fit("cpu"), assert_close)


def test_too_little_memory_says_what_was_asked_for_what_is_free_and_what_would_fit(stand_in):
    stand_in(memory_bytes=300_000)
    trainer = gm.Trainer(gm.mlp((5, 64, 3), device="stand-in"), loss="cross_entropy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            MemoryError, match=r"the GPU has [\d,]+ bytes free; [\d,]+ were asked for.*rows would fit"
        ):
            trainer.fit(np.tile(X, (20, 1)), np.tile(LABELS, 20), batch_size=None, epochs=1, progress=False)


def test_memory_is_given_back_after_a_training(kind, stand_in):
    backend = stand_in()
    train("stand-in", epochs=1)
    gc.collect()  # layers and their network refer to each other
    assert backend.device.memory()[0] == backend.device.memory_bytes
