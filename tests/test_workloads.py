"""gpumlp.workloads: six workloads as data."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from gpumlp.data.mnist import IMAGES, LABELS
from gpumlp.step import DataShape, training_plan
from gpumlp.workloads import WORKLOADS

NAMES = list(WORKLOADS)


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch):
    """No folder with MNIST unless a test makes one, and no network."""

    def fetch(*args, **kwargs):
        raise AssertionError("a workload fetched data from the network")

    monkeypatch.delenv("GPUMLP_DATA", raising=False)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)


def write_mnist(folder: Path, n_train: int = 24, n_test: int = 6) -> np.ndarray:
    """Write four IDX files, two of them compressed; return the training pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    parts = []
    for images, labels, n, compressed in zip(IMAGES, LABELS, (n_train, n_test), (True, False), strict=True):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        digits = (np.arange(n) % 10).astype(np.uint8)
        for name, magic, data in ((images, 0x803, pixels), (labels, 0x801, digits)):
            raw = struct.pack(f">I{data.ndim}I", magic, *data.shape) + data.tobytes()
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / name).write_bytes(raw)
        parts.append(pixels.reshape(n, 784))
    return parts[0]


def test_the_workloads_are_those_of_the_design():
    found = {
        w.name: (w.shape, w.rows, w.step_rows, w.steps, w.activation, w.loss, w.it)
        for w in WORKLOADS.values()
    }
    # the table of the design: networks, rows, batches and what an it is
    assert found == {
        "small": ("1-64-128-1", 280, 32, 9, "relu", "mse", "epoch"),
        "deepwide": ("1-128-256-512-1", 280, 32, 9, "relu", "mse", "epoch"),
        "clf": ("2-64-128-1", 800, 32, 25, "relu", "binary_cross_entropy", "epoch"),
        "polar": ("2-10x50-5", 2560, 32, 80, "relu", "softmax_mse", "epoch"),
        "ee6132": ("784-500-250-100-10", 60000, 64, 938, "relu", "cross_entropy", "step"),
        "mlpnn": ("784-1000-10", 60000, 60000, 1, "tanh", "cross_entropy", "epoch"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_ready_to_be_read_in_place_and_the_same_each_time(name):
    workload = WORKLOADS[name].reduced(100)
    data, again = workload.load(), workload.load()
    assert data.X.shape == (100, workload.sizes[0])
    assert data.X.dtype == np.float32
    assert data.X.flags.c_contiguous
    assert len(data.y) == 100
    assert data.y.dtype == (np.float32 if workload.loss == "mse" else np.int64)
    np.testing.assert_array_equal(data.X, again.X)
    np.testing.assert_array_equal(data.y, again.y)


@pytest.mark.parametrize("name", ["small", "deepwide", "clf", "polar"])
def test_the_whole_set_has_the_rows_that_the_workload_says(name):
    data = WORKLOADS[name].load()
    assert len(data.X) == WORKLOADS[name].rows
    assert len(np.unique(data.X, axis=0)) == len(data.X)
    np.testing.assert_array_equal(WORKLOADS[name].reduced(40).load().X, data.X[:40])


def test_more_rows_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"'small' has 280 rows; 281 were asked for"):
        WORKLOADS["small"].reduced(281).load()
    with pytest.raises(ValueError, match="rows is 0"):
        WORKLOADS["small"].reduced(0).load()


@pytest.mark.parametrize("name", NAMES)
def test_a_few_epochs_lower_the_loss(name):
    workload = WORKLOADS[name].reduced(256)
    data, trainer = workload.load(), workload.trainer("cpu")
    before = trainer.evaluate(data.X, data.y)["loss"]
    trainer.fit(data.X, data.y, epochs=5, batch_size=workload.batch_size, progress=False)
    assert trainer.evaluate(data.X, data.y)["loss"] < before


@pytest.mark.parametrize("name", NAMES)
def test_the_operations_of_a_step_are_those_of_the_products_in_its_program(name):
    workload = WORKLOADS[name].reduced(64)
    trainer = workload.trainer("cpu")
    target = (workload.sizes[-1],) if workload.loss != "cross_entropy" else ()
    shape = DataShape(64, 64, workload.sizes[0], target, False)
    plan = training_plan(trainer.network, trainer.loss, trainer.optimizer, shape, workload.step_rows, True)
    flops = 0
    for call in plan.batch.calls:
        if call.kernel == "matmul":
            a, _, c = call.operands
            assert a is not None
            assert c is not None
            inner = a.shape[0 if call.scalars["transpose_a"] else 1]
            flops += 2 * c.shape[0] * c.shape[1] * inner
    assert flops == workload.step_rows * workload.flops_per_sample


def test_a_trainer_is_fresh_and_the_seed_decides_its_weights():
    workload = WORKLOADS["small"]
    first, second, other = (workload.trainer("cpu", seed=seed) for seed in (3, 3, 4))
    weights = [t.network.state_dict()["0.weight"] for t in (first, second, other)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()
    assert first.network is not second.network
    assert workload.trainer("cpu", dtype="float64").network.dtype == "float64"


# --- MNIST or images like it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["data_dir", "GPUMLP_DATA", "subfolder"])
def test_mnist_is_read_where_its_folder_is_found(tmp_path, monkeypatch, way):
    pixels = write_mnist(tmp_path / "mnist" if way == "subfolder" else tmp_path)
    if way != "data_dir":
        monkeypatch.setenv("GPUMLP_DATA", str(tmp_path))
    data = WORKLOADS["ee6132"].reduced(24).load(tmp_path if way == "data_dir" else None)
    assert data.source == "MNIST"
    np.testing.assert_array_equal(data.X, pixels.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.y, np.arange(24) % 10)


def test_rows_for_testing_are_not_trained_on(tmp_path):
    write_mnist(tmp_path, n_train=24, n_test=6)
    with pytest.raises(ValueError, match="has 24 rows; 25 were asked for"):
        WORKLOADS["ee6132"].reduced(25).load(tmp_path)


def test_without_mnist_the_images_are_synthetic_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUMLP_DATA", str(tmp_path))  # a folder, but nothing in it
    data = WORKLOADS["mlpnn"].reduced(200).load()
    assert "synthetic" in data.source
    assert data.X.min() == 0
    assert data.X.max() == 1
    np.testing.assert_array_equal(np.bincount(data.y), np.full(10, 20))


def test_a_named_folder_without_mnist_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"no MNIST files in .*; expected train-images.*name another folder"):
        WORKLOADS["ee6132"].load(tmp_path)


def test_a_folder_with_some_of_the_files_is_an_error_and_not_synthetic(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    (tmp_path / LABELS[1]).unlink()
    monkeypatch.setenv("GPUMLP_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"lacks {LABELS[1]}"):
        WORKLOADS["ee6132"].reduced(24).load()
