"""The executors of a GPU on its stand-in: whole trainings give those of eager, and the rules of a GPU are kept."""

import gc
import threading
import warnings
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import executors, feed
from gpumlp.executors import EagerExecutor, choose_executor
from gpumlp.executors.graph import GraphExecutor
from gpumlp.executors.resident import ResidentExecutor
from gpumlp.executors.streaming import StreamingExecutor
from gpumlp.failure import NonFiniteLossError
from tests.executors.gpu_trainings import LABELS, VALUES, WEIGHT, X, assert_same_training, train

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


@pytest.mark.parametrize("most", [1 << 30, 100])
def test_operands_that_32_bits_cannot_count_are_named_when_kernels_are_compiled(
    most, kind, stand_in, monkeypatch
):
    asked = set()
    monkeypatch.setattr("gpumlp.executors.device.MOST_ELEMENTS", most)
    device_of = stand_in().device
    kernels = device_of.kernels

    def noted(*arguments, large, **others):
        asked.add(large)
        return kernels(*arguments, **others)

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


def test_predictions_of_a_gpu_are_those_of_the_cpu(stand_in):
    stand_in()
    network = gm.mlp((5, 16, 3), seed=3, device="cpu")
    expected = network.predict(X)
    np.testing.assert_allclose(network.to("stand-in").predict(X), expected, rtol=1e-5, atol=1e-6)


def test_choose_executor_without_a_plan_names_the_graph(stand_in):
    assert choose_executor(stand_in(), has_python=False) == (GraphExecutor, "graph")


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
