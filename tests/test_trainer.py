"""gpumlp.trainer: batches, seeds, targets, weights, predictions, and going on from a saved state."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.kernels.philox import permutation
from tests.trainers import (
    LABELS,
    VALUES,
    X,
    assert_equal_within_rounding,
    assert_same,
    classifier,
    fitted,
    weights_of,
)

BINARY = (LABELS == 0).astype(int)


# ---- batches ----


def descend_by_hand(
    rates: np.ndarray, batch: int, epochs: int, seed: int, shuffle: bool
) -> tuple[np.ndarray, float, list[float]]:
    """Gradient descent on ||x w + b - y||^2 / n from w = 0 and b = 0: w, b and the loss of every step."""
    w, b, losses = np.zeros(4), 0.0, []
    for epoch in range(epochs):
        order = permutation(np, 45, seed, epoch) if shuffle else np.arange(45)
        for start in range(0, 45, batch):
            rows = order[start : start + batch]
            error = X[rows] @ w + b - VALUES[rows]
            losses.append(float(np.mean(error**2)))
            lr = rates[len(losses) - 1]
            w, b = w - lr * 2 * X[rows].T @ error / len(rows), b - lr * 2 * error.mean()
    return w, b, losses


def line() -> gm.Sequential:
    return gm.Sequential(gm.Linear(4, 1, weight_init="zeros"), dtype="float64", device="cpu", seed=6)


@pytest.fixture(params=["eager", "chosen"])
def executor(request, monkeypatch):
    """The reference kernels, and what this machine chooses for itself, which may be the same."""
    if request.param == "eager":
        from gpumlp.executors import EagerExecutor

        monkeypatch.setattr("gpumlp.executors.choose_executor", lambda *_: (EagerExecutor, "eager"))


@pytest.mark.usefixtures("executor")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [None, 1, 7, 44, 45])
def test_each_batch_size_is_the_descent_worked_by_hand(batch_size, shuffle):
    trainer = gm.Trainer(line(), loss="mse", optimizer=gm.SGD(0.02))
    history = trainer.fit(
        X, VALUES, epochs=3, batch_size=batch_size, shuffle=shuffle, progress=False, record_steps=True
    )
    batch = batch_size or 45
    steps = -(-45 // batch)
    w, b, losses = descend_by_hand(np.full(3 * steps, 0.02), batch, 3, 6, shuffle)
    np.testing.assert_allclose(trainer.network[0].weight[:, 0], w, rtol=1e-11)
    np.testing.assert_allclose(trainer.network[0].bias[0], b, rtol=1e-11)
    np.testing.assert_allclose(history.step_losses, losses, rtol=1e-11)
    assert (history.steps, history.samples) == (3 * steps, 3 * 45)
    sizes = np.resize([*[batch] * (45 // batch), *([45 % batch] if 45 % batch else [])], steps)
    by_epoch = np.average(np.reshape(losses, (3, steps)), axis=1, weights=sizes)
    np.testing.assert_allclose(history["loss"], by_epoch, rtol=1e-11)


def test_the_loss_of_an_epoch_under_sum_is_the_sum_of_its_batches():
    trainer = gm.Trainer(line(), loss=gm.MSE(reduction="sum"), optimizer=gm.SGD(0.001))
    history = trainer.fit(X, VALUES, epochs=2, batch_size=10, progress=False, record_steps=True)
    np.testing.assert_allclose(history["loss"], np.reshape(history.step_losses, (2, 5)).sum(axis=1))
    first = descend_by_hand(np.zeros(1), 45, 1, 6, True)[2][0] * 45
    assert first / 2 < history["loss"][0] < first


def test_a_batch_larger_than_the_set_is_the_full_batch_with_a_notice():
    with pytest.warns(
        UserWarning, match="batch_size 46 is more than the 45 rows; training on the full batch"
    ):
        larger = fitted(classifier(), X, LABELS, "cross_entropy", batch_size=46)
    assert_same(larger, fitted(classifier(), X, LABELS, "cross_entropy", batch_size=None))


def test_every_epoch_has_its_own_order_and_every_row_once():
    seen: list[np.ndarray] = []

    class Spy(gm.Layer):
        def forward(self, x):
            if self.training:
                seen.append(x[:, 0].copy())
            return x

        def backward(self, dy):
            return dy

    network = gm.Sequential(Spy(), gm.Linear(4, 1), dtype="float64", device="cpu")
    fitted(network, X, VALUES, "mse", epochs=3, batch_size=20)
    epochs = [np.concatenate(seen[3 * i : 3 * i + 3]) for i in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.sort(X[:, 0]))
    assert len({epoch.tobytes() for epoch in [X[:, 0], *epochs]}) == 4


# ---- seeds, fit again, reset ----


def noisy(seed: int) -> gm.Sequential:
    layers = gm.Linear(4, 16), gm.ReLU(), gm.Dropout(0.3), gm.GaussianNoise(0.1), gm.Linear(16, 3)
    return gm.Sequential(*layers, seed=seed, device="cpu")


def test_the_same_seed_gives_the_same_bits_twice_and_another_seed_others():
    runs = [
        fitted(noisy(0), X, LABELS, "cross_entropy", seed=seed, batch_size=8, optimizer="adam")
        for seed in (3, 3, 4)
    ]
    assert_same(runs[0], runs[1])
    assert runs[0].history["loss"] == runs[1].history["loss"]
    assert (weights_of(runs[0]) != weights_of(runs[2])).any()


def test_the_seed_draws_the_initial_weights_unless_it_is_none():
    network = classifier(seed=1)
    before = network.state_dict()
    gm.Trainer(network, loss="cross_entropy")
    np.testing.assert_array_equal(network.state_dict()["0.weight"], before["0.weight"])
    gm.Trainer(network, loss="cross_entropy", seed=5)
    np.testing.assert_array_equal(network.state_dict()["0.weight"], classifier(seed=5)[0].weight)
    assert (network.state_dict()["0.weight"] != before["0.weight"]).any()


def test_the_seed_that_drew_the_weights_does_not_draw_them_again(monkeypatch):
    network, drawn = noisy(5), []
    reset = gm.Sequential.reset

    def noted(self, seed=None):
        drawn.append(seed)
        reset(self, seed)

    monkeypatch.setattr(gm.Sequential, "reset", noted)
    gm.Trainer(network, loss="cross_entropy", seed=5)
    assert drawn == []
    gm.Trainer(network, loss="cross_entropy", seed=6)
    gm.Trainer(network, loss="cross_entropy", seed=6, dtype="float64")  # which the same draw fills otherwise
    assert drawn == [6, 6]


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize(
    "optimizer", [gm.SGD(0.1, momentum=0.9), gm.Adam(0.01), gm.Adagrad(0.1, lr_decay=0.1)]
)
def test_fit_twice_goes_on_from_weights_slots_and_counters(optimizer, batch_size):
    settings = {"batch_size": batch_size, "optimizer": optimizer, "seed": 2}
    parts = fitted(noisy(2), X, LABELS, "cross_entropy", epochs=3, **settings)
    first = parts.history
    second = parts.fit(X, LABELS, epochs=2, batch_size=batch_size, progress=False)
    whole = fitted(noisy(2), X, LABELS, "cross_entropy", epochs=5, **settings)
    assert_same(parts, whole)
    assert first["loss"] + second["loss"] == whole.history["loss"]
    assert second["epoch"] == [1, 2]
    assert parts.history is second


def test_reset_starts_as_if_nothing_had_been_trained():
    schedule = gm.ReduceOnPlateau(0.1, patience=0, threshold=0.9, monitor="loss")
    settings = {"optimizer": gm.SGD(schedule, momentum=0.9), "batch_size": 8}
    trainer = fitted(noisy(2), X, LABELS, "cross_entropy", seed=2, **settings)
    fresh = weights_of(trainer)
    trainer.reset()
    assert (len(trainer.history), trainer.control[:3].tolist()) == (0, [0, 0, 0])
    assert all(not np.any(view) for arena in trainer.slots.values() for _, view in arena.items())
    trainer.fit(X, LABELS, epochs=4, batch_size=8, progress=False)
    np.testing.assert_array_equal(weights_of(trainer), fresh)
    trainer.reset(seed=9)
    np.testing.assert_array_equal(
        weights_of(trainer), weights_of(gm.Trainer(noisy(9), loss="mse", metrics=()))
    )


def test_trainers_that_were_given_the_same_optimizer_share_no_state():
    optimizer = gm.SGD(gm.ReduceOnPlateau(0.1, patience=0, threshold=0.9, monitor="loss"), momentum=0.9)
    a, b = (gm.Trainer(classifier(seed=s), loss="cross_entropy", optimizer=optimizer) for s in (1, 2))
    a.fit(X, LABELS, epochs=5, progress=False)
    rates = [made.schedule.rates([0], 1, 1)[0] for made in (a.optimizer, b.optimizer, optimizer)]
    assert rates[0] < 0.1
    assert rates[1:] == [0.1, 0.1]


# ---- validation ----


def test_validation_split_holds_rows_that_are_not_trained_on_in_each_class_alike():
    weight = np.ones(45)
    trainer = fitted(classifier(), X, LABELS, "cross_entropy", validation_split=0.4, epochs=2)
    assert trainer.history.samples == 2 * 27
    # by the rule of the docstring: drawn by the seed; then training on those rows alone is the same training
    from gpumlp.validation import split_rows

    train, held = split_rows(45, 0.4, LABELS, seed=1)
    assert sorted([*train, *held]) == list(range(45))
    share = np.bincount(LABELS[held]) / np.bincount(LABELS)
    assert np.abs(share - 0.4).max() < 0.1
    alone = fitted(classifier(), X[train], LABELS[train], "cross_entropy", epochs=2)
    assert_equal_within_rounding(trainer, alone)
    assert trainer.history["val_loss"][-1] == trainer.evaluate(X[held], LABELS[held])["loss"]
    weight[held] = 0  # and another way to leave them out
    assert_equal_within_rounding(
        trainer, fitted(classifier(), X, LABELS, "cross_entropy", epochs=2, sample_weight=weight)
    )


def test_validation_data_may_have_weights_and_train_nothing():
    held = slice(30, 45)
    weight = np.linspace(0, 2, 15)
    plain = fitted(classifier(), X[:30], LABELS[:30], "cross_entropy")
    measured = fitted(
        classifier(), X[:30], LABELS[:30], "cross_entropy", validation_data=(X[held], LABELS[held], weight)
    )
    assert_same(plain, measured)
    expected = plain.evaluate(X[held], LABELS[held], sample_weight=weight)
    assert measured.history["val_loss"][-1] == expected["loss"]
    assert expected["loss"] != plain.evaluate(X[held], LABELS[held])["loss"]


def test_rows_and_held_rows_are_indices_into_one_set():
    rows, held = np.array([3, 40, 7, 12, 30, 22, 8, 9, 10, 11]), [1, 2, 4, 5]
    trainer = fitted(classifier(), X, LABELS, "cross_entropy", rows=rows, held_rows=held, batch_size=4)
    alone = fitted(
        classifier(),
        X[rows],
        LABELS[rows],
        "cross_entropy",
        validation_data=(X[held], LABELS[held]),
        batch_size=4,
    )
    assert_same(trainer, alone)
    assert trainer.history["val_loss"] == alone.history["val_loss"]
    assert trainer.evaluate(X, LABELS, rows=held) == alone.evaluate(X[held], LABELS[held])


@pytest.mark.parametrize("batch_size", [None, 20])
def test_rows_may_repeat_though_they_are_as_many_as_there_are(batch_size):
    rows = np.random.default_rng(3).integers(0, len(X), len(X))  # a bootstrap
    weight, held = np.random.default_rng(4).uniform(size=len(X)), [1, 2, 4, 5]
    given = {"batch_size": batch_size, "shuffle": False}
    trainer = fitted(
        classifier(), X, LABELS, "cross_entropy", rows=rows, held_rows=held, sample_weight=weight, **given
    )
    alone = fitted(
        classifier(),
        X[rows],
        LABELS[rows],
        "cross_entropy",
        sample_weight=weight[rows],
        validation_data=(X[held], LABELS[held], weight[held]),
        **given,
    )
    assert_same(trainer, alone)
    assert trainer.history["val_loss"] == alone.history["val_loss"]


@pytest.mark.parametrize("given", ["state_dict", "assigned", "in place", "trained", "before the network"])
def test_a_seed_draws_weights_that_are_as_they_were_drawn_and_keeps_all_others(given):
    first = gm.Linear(4, 8)
    if given == "before the network":
        first.weight = np.full((4, 8), 0.5)
    network = gm.Sequential(first, gm.Tanh(), gm.Linear(8, 3), device="cpu", seed=1)
    if given == "state_dict":
        network.load_state_dict(gm.Sequential(gm.Linear(4, 8), gm.Tanh(), gm.Linear(8, 3)).state_dict())
    elif given == "assigned":
        first.weight = np.full((4, 8), 0.5)
    elif given == "in place":
        first.weight[0, 0] += 1
    elif given == "trained":
        fitted(network, X, LABELS, "cross_entropy", epochs=1)
    before = network.state_dict()
    trainer = gm.Trainer(network, loss="cross_entropy", seed=3, dtype="float64")
    assert (trainer.seed, network.seed) == (3, 3)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    trainer.reset(3)  # says so
    drawn = gm.Sequential(gm.Linear(4, 8), gm.Tanh(), gm.Linear(8, 3), dtype="float64", device="cpu", seed=3)
    fresh = gm.Sequential(gm.Linear(4, 8), gm.Tanh(), gm.Linear(8, 3), device="cpu", seed=1)
    gm.Trainer(fresh.copy(), loss="cross_entropy", seed=3, dtype="float64")
    gm.Trainer(fresh, loss="cross_entropy", seed=3, dtype="float64")
    for name, value in drawn.state_dict().items():
        np.testing.assert_array_equal(network.state_dict()[name], value)
        np.testing.assert_array_equal(fresh.state_dict()[name], value)


def test_a_loss_of_probabilities_wants_a_network_that_gives_them_and_one_of_logits_warns_of_it():
    network = gm.mlp((4, 8, 1), device="cpu")
    with pytest.raises(
        ValueError, match=r"takes probabilities, and the network ends in Linear\(8, 1\); end it in"
    ):
        gm.Trainer(network, loss=gm.BinaryCrossEntropy(from_logits=False))
    for loss, ending, outputs in (("binary_cross_entropy", "sigmoid", 1), ("cross_entropy", "softmax", 3)):
        with pytest.warns(UserWarning, match=f"takes logits, .* ends in {ending.title()}.*: done twice"):
            gm.Trainer(gm.mlp((4, 8, outputs), output_activation=ending, device="cpu"), loss=loss)
    gm.Trainer(gm.mlp((4, 8, 1), output_activation="sigmoid", device="cpu"), loss="mse")


def test_batch_normalisation_is_not_trained_row_by_row():
    layers = gm.Linear(4, 8), gm.BatchNorm1d(8), gm.Linear(8, 3)
    trainer = gm.Trainer(gm.Sequential(*layers, device="cpu"), loss="cross_entropy")
    with pytest.raises(
        ValueError, match=r"batch_size is 1; BatchNorm1d learns from batches of at least 2 rows"
    ):
        trainer.fit(X, LABELS, epochs=1, batch_size=1, progress=False)
    layers[1].freeze()
    trainer.fit(X, LABELS, epochs=1, batch_size=1, progress=False)


# ---- predictions and scores ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predict_batch_by_batch_is_predict_of_the_whole(dtype):
    trainer = fitted(classifier(dtype=dtype), X, LABELS, "cross_entropy")
    whole = trainer.predict(X)
    assert whole.dtype == dtype
    assert whole.shape == (45, 3)
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    for size in (1, 7, 44, 45, 1000):
        np.testing.assert_allclose(trainer.predict(X, batch_size=size), whole, rtol=tolerance, atol=tolerance)
    rows = np.vstack([trainer.predict(row[None]) for row in X])
    np.testing.assert_allclose(rows, whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("loss", ["cross_entropy", "kl_div", "softmax_mse"])
def test_predict_gives_probabilities_where_the_loss_is_one_of_classification(loss):
    trainer = fitted(classifier(), X, LABELS, loss)
    e = np.exp(trainer.network.predict(X))
    np.testing.assert_allclose(trainer.predict(X), e / e.sum(axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_array_equal(trainer.predict_classes(X), e.argmax(axis=1))


def test_predict_gives_the_outputs_for_regression_and_for_losses_on_probabilities():
    trainer = fitted(gm.mlp((4, 5, 1), dtype="float64"), X, VALUES, "mse", optimizer=gm.SGD(0.02))
    np.testing.assert_array_equal(trainer.predict(X), trainer.network.predict(X))
    with pytest.raises(ValueError, match="loss of regression: there are no classes; use predict"):
        trainer.predict_classes(X)
    network = gm.mlp((4, 5, 1), output_activation="sigmoid", dtype="float64")
    trainer = fitted(network, X, BINARY, gm.BinaryCrossEntropy(from_logits=False))
    np.testing.assert_array_equal(trainer.predict(X), network.predict(X))
    np.testing.assert_array_equal(trainer.predict_classes(X), network.predict(X)[:, 0] > 0.5)


def test_a_threshold_is_for_two_classes_and_lies_between_0_and_1():
    two = fitted(classifier(2), X, BINARY, "cross_entropy")
    p = two.predict(X)[:, 1]
    for threshold in (0.1, 0.6, 0.95):
        np.testing.assert_array_equal(two.predict_classes(X, threshold=threshold), p > threshold)
    for bad in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="expected a probability between 0 and 1"):
            two.predict_classes(X, threshold=bad)
    with pytest.raises(ValueError, match="a threshold is for two classes; the network tells 3 apart"):
        fitted(classifier(), X, LABELS, "cross_entropy").predict_classes(X, threshold=0.4)


def test_evaluate_gives_the_loss_and_every_metric_that_was_asked_for():
    names = ["accuracy", "misclassification", "f1_macro", "log_loss", "roc_auc"]
    trainer = fitted(classifier(), X, LABELS, "cross_entropy", metrics=names, epochs=1)
    scores = trainer.evaluate(X, LABELS)
    assert list(scores) == ["loss", *names]
    p = trainer.predict(X)
    right = p.argmax(axis=1) == LABELS
    assert scores["accuracy"] == right.mean() == pytest.approx(1 - scores["misclassification"])
    assert scores["loss"] == pytest.approx(-np.log(p[np.arange(45), LABELS]).mean(), rel=1e-12)
    assert scores["log_loss"] == pytest.approx(scores["loss"])
    for name in ("f1_macro", "roc_auc"):
        needs = p if name == "roc_auc" else p.argmax(axis=1)
        assert scores[name] == gm.metrics.METRICS[name](LABELS, needs)
    regression = fitted(line(), X, VALUES, "mae", metrics=["rmse", "r2"], optimizer=gm.SGD(0.02))
    error = regression.predict(X)[:, 0] - VALUES
    assert regression.evaluate(X, VALUES)["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)))
    assert list(fitted(line(), X, VALUES, "mse", optimizer=gm.SGD(0.02)).evaluate(X, VALUES)) == ["loss"]


# ---- memory ----


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": None},
        {"batch_size": 64},
        {"batch_size": 64, "validation_split": 0.3},
        {"batch_size": 64, "rows": np.arange(0, 20000, 2), "held_rows": np.arange(1, 20000, 2)},
    ],
    ids=["full batch", "minibatches", "split", "rows"],
)
def test_training_reads_the_data_where_they_are(settings):
    big = np.random.default_rng(0).random((20000, 250), dtype=np.float32)  # 20 MB
    y = big[:, 0].copy()
    network = gm.mlp((250, 4, 1), device="cpu")
    trainer = gm.Trainer(network, loss="mse", optimizer=gm.SGD(1e-3))
    # once before: scikit-learn is imported and compiled kernels are loaded, which takes memory
    few, few_y = big[:70], y[:70]
    trainer.fit(few, few_y, epochs=1, progress=False, batch_size=32, validation_split=0.3)
    trainer.fit(few, few_y, epochs=1, progress=False, batch_size=None)
    trainer.evaluate(few, few_y)
    trainer.predict(few)
    trainer.reset()
    tracemalloc.start()
    try:
        trainer.fit(big, y, epochs=1, progress=False, **settings)
        trainer.evaluate(big, y)
        trainer.predict(big)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6, f"{peak / 1e6:.1f} MB beside a set of {big.nbytes / 1e6:.0f} MB"


# ---- settings ----


def test_the_dtype_moves_the_network_with_its_values():
    network = classifier(dtype="float32", seed=3)
    before = network.state_dict()
    trainer = gm.Trainer(network, loss="cross_entropy", dtype="float64", device="cpu")
    assert trainer.network is network
    assert network.dtype == "float64"
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name].astype(np.float64))
    trainer.fit(X, LABELS, epochs=1, progress=False)
    assert trainer.predict(X).dtype == np.float64


def test_metrics_go_with_the_kind_of_the_loss():
    assert [m.name for m in gm.Trainer(classifier(), loss="cross_entropy").metrics] == ["accuracy"]
    assert gm.Trainer(classifier(), loss="mse").metrics == []
    network = classifier()
    before = network.state_dict()
    for loss, metric in (("mse", "accuracy"), ("cross_entropy", "r2")):
        with pytest.raises(ValueError, match=f"metric '{metric}' does not go with"):
            gm.Trainer(network, loss=loss, metrics=[metric], seed=9, dtype="float32")
    assert network.dtype == "float64"
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
