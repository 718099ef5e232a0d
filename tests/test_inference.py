"""gpumlp.inference: outputs, probabilities and losses, batch by batch, with nothing kept."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp.inference import BATCH, Evaluator
from gpumlp.losses import get_loss

RNG = np.random.default_rng(4)
X = RNG.normal(size=(2500, 4))
LABELS = RNG.integers(0, 3, 2500)


def net(dtype: str = "float64") -> gm.Sequential:
    layers = (
        gm.Linear(4, 8), gm.BatchNorm1d(8), gm.GELU(), gm.Dropout(0.5), gm.GaussianNoise(1.0), gm.LayerNorm(8),
        gm.Linear(8, 3),
    )  # fmt: skip
    network = gm.Sequential(*layers, dtype=dtype, seed=1, device="cpu")
    trainer = gm.Trainer(network, loss="cross_entropy")
    # so that the running statistics are not 0 and 1
    trainer.fit(X[:200], LABELS[:200], epochs=2, progress=False)
    return network


def by_hand(network: gm.Sequential, x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    v = network.state_dict()
    h = x @ v["0.weight"] + v["0.bias"]
    h = (h - v["1.running_mean"]) / np.sqrt(v["1.running_var"] + 1e-5) * v["1.weight"] + v["1.bias"]
    h = h * (1 + erf(h / np.sqrt(2))) / 2
    h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5) * v["5.weight"] + v["5.bias"]
    return h @ v["6.weight"] + v["6.bias"]


def test_inference_uses_running_statistics_and_no_noise():
    network = net()
    np.testing.assert_allclose(Evaluator(network).predict(X), by_hand(network, X), rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(network.predict(X), network.predict(X))


@given(size=st.integers(1, 60), rows=st.integers(1, 50), dtype=st.sampled_from(["float32", "float64"]))
@settings(max_examples=40)
def test_batch_by_batch_and_whole_are_equal_within_rounding(size, rows, dtype):
    network = NETWORKS[dtype]
    whole = network.predict(X[:rows], batch_size=rows)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    assert whole.shape == (rows, 3)
    assert whole.dtype == dtype
    np.testing.assert_allclose(
        network.predict(X[:rows], batch_size=size), whole, rtol=tolerance, atol=tolerance
    )


NETWORKS = {dtype: net(dtype) for dtype in ("float32", "float64")}


def test_more_rows_than_a_batch_are_taken_in_several():
    assert len(X) > 2 * BATCH
    np.testing.assert_allclose(
        NETWORKS["float64"].predict(X), by_hand(NETWORKS["float64"], X), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [None, np.arange(3, 2500, 2)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch_size", [None, 7, 10_000])
def test_the_loss_over_all_batches_is_the_loss_of_the_whole(batch_size, reduction, rows, weighted):
    network = NETWORKS["float64"]
    weight = np.linspace(0, 2, 2500) if weighted else None
    loss = get_loss({"name": "cross_entropy", "reduction": reduction})
    value, p = Evaluator(network, loss).evaluate(X, LABELS, weight, rows, batch_size)
    chosen = np.arange(2500) if rows is None else rows
    e = np.exp(by_hand(network, X[chosen]))
    e /= e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(p, e, rtol=1e-9)
    losses = -np.log(e[np.arange(len(chosen)), LABELS[chosen]])
    w = np.ones(len(chosen)) if weight is None else weight[chosen]
    expected = (w * losses).sum() / (w.sum() if reduction == "mean" else 1)
    assert value == pytest.approx(expected, rel=1e-10)


def test_rows_that_all_weigh_nothing_have_the_loss_0():
    value, _ = Evaluator(NETWORKS["float64"], get_loss("cross_entropy")).evaluate(
        X[:5], LABELS[:5], np.zeros(5)
    )
    assert value == 0


def test_an_evaluator_sees_later_updates_of_the_network():
    network = net()
    evaluator = Evaluator(network)
    before = evaluator.predict(X[:10])
    gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(0.5)).fit(
        X[:99], LABELS[:99], epochs=1, progress=False
    )
    np.testing.assert_allclose(evaluator.predict(X[:10]), by_hand(network, X[:10]), rtol=1e-9)
    assert (evaluator.predict(X[:10]) != before).any()


def test_an_evaluator_follows_its_network_to_another_type():
    network = net("float32")
    evaluator = Evaluator(network)
    single = evaluator.predict(X[:10])
    network.to(dtype="float64")
    double = evaluator.predict(X[:10])
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(double, by_hand(network, X[:10]), rtol=1e-9)
    network.to(dtype="float32")
    network[6].bias = network[6].bias + 1
    np.testing.assert_allclose(evaluator.predict(X[:10]), single + 1, rtol=1e-5, atol=1e-5)


def test_memory_goes_with_the_batch_and_not_with_depth_or_rows():
    def peak(depth: int, rows: int) -> int:
        layers = [layer for _ in range(depth) for layer in (gm.Linear(64, 64), gm.Tanh())]
        network = gm.Sequential(*layers, device="cpu")
        x = np.zeros((rows, 64), np.float32)
        network.predict(x[:1100], batch_size=1024)  # compiled kernels are loaded once
        tracemalloc.start()
        try:
            network.predict(x, batch_size=1024)
            return tracemalloc.get_traced_memory()[1] - x.nbytes  # the outputs, as wide as the inputs
        finally:
            tracemalloc.stop()

    peak(2, 256)  # loading compiled kernels takes memory once
    shallow = peak(2, 2048)
    assert peak(20, 2048) < shallow + 800_000  # for the calls; one tensor of a layer has 262 kB
    assert peak(2, 8 * 2048) < shallow + 800_000


def test_the_passes_of_many_batch_sizes_are_not_all_kept():
    evaluator = Evaluator(NETWORKS["float64"])
    for rows in range(1, 40):
        evaluator.predict(X[:rows])
    assert len(evaluator._passes) <= 4


@pytest.mark.parametrize("size", [0, -1, 1.5, "all", True])
def test_a_batch_size_below_1_is_refused_in_one_line(size):
    with pytest.raises(ValueError, match=r"^batch_size is .*; expected a whole number of at least 1$"):
        NETWORKS["float64"].predict(X, batch_size=size)


def test_single_rows_and_views_are_taken():
    network = NETWORKS["float64"]
    np.testing.assert_allclose(network.predict(X[:1]), by_hand(network, X[:1]), rtol=1e-9)
    np.testing.assert_allclose(network.predict(X[::-3]), by_hand(network, X[::-3]), rtol=1e-9)
    np.testing.assert_allclose(network.predict(np.asfortranarray(X)), by_hand(network, X), rtol=1e-9)
    np.testing.assert_allclose(network.predict(X[:3].tolist()), by_hand(network, X[:3]), rtol=1e-9)
