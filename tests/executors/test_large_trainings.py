"""Trainings whose products are large ones of our own, on the graph executor."""

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import executors
from gpumlp.executors import products
from gpumlp.executors.graph import GraphExecutor
from tests.executors.gpu_trainings import assert_same_training

RNG = np.random.default_rng(6)
X = RNG.normal(size=(280, 132)).astype(np.float32)
LABELS = RNG.integers(0, 3, 280)


@pytest.fixture
def operations(monkeypatch):
    """What trainings are made of on graphs; products of all sizes that tiles suit are large."""
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(products, "LARGE_PRODUCT_FROM", 0)
    seen: list[str] = []
    link = GraphExecutor._link

    def noted(executor, program, shared):
        linked = link(executor, program, shared)
        seen.extend("library" if step.call is not None else step.operation for step in linked.steps)
        return linked

    monkeypatch.setattr(GraphExecutor, "_link", noted)
    return seen


def train(device, precision="float32", dtype="float32"):
    network = gm.mlp((132, 144, 130, 3), activation="tanh", seed=1, device=device, dtype=dtype)
    trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(0.2), seed=5, precision=precision)
    return trainer, trainer.fit(X, LABELS, epochs=2, batch_size=140, progress=False)


def test_a_training_by_large_products_is_that_of_the_cpu(stand_in, operations, assert_close):
    stand_in()
    assert_same_training(train("stand-in"), train("cpu"), assert_close)
    # two forward, the gradients of two weights and of one input
    assert operations.count("large_matmul") >= 5
    assert "library" not in operations


@pytest.mark.parametrize(("precision", "has_tf32"), [("tf32", True), ("float32", False)])
def test_where_the_library_is_as_good_or_tensor_cores_take_no_floats_it_has_them(
    stand_in, operations, monkeypatch, precision, has_tf32
):
    monkeypatch.setattr(stand_in().device, "has_tf32", has_tf32)
    monkeypatch.setattr("gpumlp.executors.graph.OWN_PRODUCT", 0)
    train("stand-in", precision)
    assert "large_matmul" not in operations
    assert "library" in operations
