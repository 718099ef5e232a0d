"""gpumlp.validation: every row is held once, every fold is a training of its own, and nothing is copied."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris

import gpumlp as gm
from gpumlp.validation import fold_rows, split_rows

RNG = np.random.default_rng(4)
X = RNG.normal(size=(47, 3))
LABELS = np.r_[np.zeros(24, int), np.ones(14, int), np.full(9, 2)]
VALUES = X @ RNG.normal(size=3)


def make() -> gm.Sequential:
    return gm.mlp((3, 6, 3), activation="tanh", dtype="float64", device="cpu")


def make_wide() -> gm.Sequential:
    return gm.mlp((250, 4, 1), device="cpu")


def make_regression() -> gm.Sequential:
    return gm.mlp((3, 1), dtype="float64", device="cpu")


def validate(make_network: Any = make, x: Any = X, y: Any = LABELS, **given: Any) -> gm.CrossValidation:
    plain = {
        "loss": "cross_entropy",
        "epochs": 3,
        "batch_size": 8,
        "progress": False,
        "optimizer": gm.SGD(0.1),
    }
    return gm.cross_validate(make_network, x, y, **{**plain, **given})


# ---- splits and folds ----


@given(n=st.integers(2, 200), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**31), labelled=st.booleans())
@settings(max_examples=60)
def test_a_split_gives_every_row_to_one_side(n, share, seed, labelled):
    labels = np.arange(n) % 3 if labelled else None
    if not 0 < round(n * share) < n:
        with pytest.raises(ValueError, match="leaves one side empty") as error:
            split_rows(n, share, labels, seed)
        assert "\n" not in str(error.value)
        return
    train, held = split_rows(n, share, labels, seed)
    assert sorted([*train, *held]) == list(range(n))
    assert len(held) == round(n * share)
    again = split_rows(n, share, labels, seed)
    np.testing.assert_array_equal(again[1], held)
    assert (np.diff(train) > 0).all()


def test_a_split_depends_on_the_seed_and_keeps_the_shares_of_the_classes():
    a, b = (split_rows(47, 0.3, LABELS, seed)[1] for seed in (1, 2))
    assert set(a) != set(b)
    for held in (a, b):
        np.testing.assert_allclose(np.bincount(LABELS[held]), np.bincount(LABELS) * 14 / 47, atol=1)


def test_folds_begin_with_the_weights_that_make_network_gave_them():
    def filled(value: float) -> Any:
        def make() -> gm.Sequential:
            network = gm.Sequential(gm.Linear(3, 3), device="cpu")
            network[0].weight = np.full((3, 3), value)
            network[0].bias = [0, value, 0]
            return network

        return make

    losses = [
        gm.cross_validate(
            filled(value),
            X,
            LABELS,
            k=2,
            loss="cross_entropy",
            optimizer=gm.SGD(0.0),
            epochs=1,
            batch_size=None,
            progress=False,
        ).scores[0]["loss"]
        for value in (0.0, 5.0)
    ]
    assert losses[0] == pytest.approx(np.log(3))
    assert losses[1] > 1.5


@given(n=st.integers(5, 120), k=st.integers(2, 5), seed=st.integers(0, 2**31), stratify=st.booleans())
@settings(max_examples=60)
def test_every_row_is_held_exactly_once(n, k, seed, stratify):
    labels = np.arange(n) % 2 if stratify else None
    if stratify and n // 2 < k:
        return
    folds = fold_rows(n, k, labels, seed)
    assert len(folds) == k
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(n))
    for train, held in folds:
        assert sorted([*train, *held]) == list(range(n))
        assert len(held) in (n // k, -(-n // k)) or stratify


def test_folds_are_shuffled_by_the_seed_and_stratified():
    folds, others = (fold_rows(47, 4, LABELS, seed) for seed in (0, 1))
    assert any(set(a[1]) != set(b[1]) for a, b in zip(folds, others, strict=True))
    assert not all((np.diff(held) == 1).all() for _, held in folds)
    for _, held in folds:
        np.testing.assert_allclose(np.bincount(LABELS[held], minlength=3), np.bincount(LABELS) / 4, atol=1)
    plain = fold_rows(47, 4, None, 0)
    assert not all((np.diff(held) == 1).all() for _, held in plain)


# ---- cross-validation ----


def test_each_fold_is_the_training_that_a_trainer_makes_of_its_rows():
    found = validate(k=4, seed=5, metrics=["accuracy", "f1_macro"])
    assert sorted(np.concatenate([held for _, held in found.folds])) == list(range(47))
    for fold, (train, held) in enumerate(found.folds):
        network = make()
        alone = gm.Trainer(
            network,
            loss="cross_entropy",
            optimizer=gm.SGD(0.1),
            seed=5 + fold,
            metrics=["accuracy", "f1_macro"],
        )
        history = alone.fit(X[train], LABELS[train], epochs=3, batch_size=8, progress=False)
        for name, value in network.state_dict().items():
            np.testing.assert_array_equal(found.networks[fold].state_dict()[name], value)
        assert found.histories[fold]["loss"] == history["loss"]
        expected = {**alone.evaluate(X[held], LABELS[held]), "train_loss": history["loss"][-1]}
        assert found.scores[fold] == expected


def test_weights_are_fresh_in_each_fold():
    seen: dict[int, np.ndarray] = {}  # folds train side by side, and begin in any order

    class Start(gm.Callback):
        def on_train_begin(self, trainer):
            seen[trainer.seed] = trainer.network.state_dict()["0.weight"]

    found = validate(k=3, seed=7, callbacks=Start)
    assert len({id(network) for network in found.networks}) == 3
    assert sorted(seen) == [7, 8, 9]
    for seed, weight in seen.items():
        network = make()
        network.reset(seed)
        np.testing.assert_array_equal(weight, network[0].weight)


def test_mean_and_deviation_are_those_over_the_folds():
    found = validate(k=3)
    for name in ("loss", "accuracy", "train_loss"):
        values = [s[name] for s in found.scores]
        assert len(values) == 3
        assert found.mean[name] == pytest.approx(np.mean(values))
        assert found.std[name] == pytest.approx(np.std(values))
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["fold", "1", "2", "3", "mean"]
    assert float(lines[-1].split()[1]) == pytest.approx(found.mean["loss"], rel=1e-5)


def test_the_same_seed_gives_the_same_folds_and_scores():
    assert validate(k=3, seed=1).scores == validate(k=3, seed=1).scores
    assert validate(k=3, seed=1).scores != validate(k=3, seed=2).scores


def test_labels_are_stratified_unless_it_is_refused_and_quantities_are_not():
    by_class = [np.bincount(LABELS[held], minlength=3) for _, held in validate(k=4).folds]
    np.testing.assert_allclose(by_class, [np.bincount(LABELS) / 4] * 4, atol=1)
    plain = fold_rows(47, 4, None, 0)
    for folds in (
        validate(k=4, stratify=False).folds,
        validate(make_regression, y=VALUES, k=4, loss="mse").folds,
    ):
        for found, expected in zip(folds, plain, strict=True):
            np.testing.assert_array_equal(found[1], expected[1])


def test_text_labels_one_hot_rows_and_quantities_can_be_validated():
    numbers = validate(k=3)
    text = validate(k=3, y=np.array(["a", "b", "c"])[LABELS].tolist())
    assert text.scores == numbers.scores
    one_hot = validate(k=3, y=np.eye(3)[LABELS])
    assert [set(s) for s in one_hot.scores] == [{"loss", "accuracy", "train_loss"}] * 3
    assert validate(make_regression, y=VALUES, k=3, loss="mse", metrics=["r2"], epochs=200).mean["r2"] > 0.99


def test_sample_weights_go_with_their_rows():
    weight = np.where(np.arange(47) % 2, 1.0, 0.0)
    wrong = LABELS.copy()
    wrong[::2] = 0
    # the same folds, and other targets where the weight is 0: the same networks
    plain = validate(k=2, sample_weight=weight, stratify=False)
    changed = validate(k=2, sample_weight=weight, y=wrong, stratify=False)
    for a, b in zip(plain.networks, changed.networks, strict=True):
        for name, value in a.state_dict().items():
            np.testing.assert_array_equal(b.state_dict()[name], value)
    assert [s["loss"] for s in plain.scores] == [s["loss"] for s in changed.scores]


def test_each_fold_has_callbacks_of_its_own_and_can_measure_its_held_rows():
    made: list[gm.EarlyStopping] = []

    def callbacks() -> list[Any]:
        made.append(gm.EarlyStopping(patience=1))
        return [made[-1]]

    found = validate(k=3, callbacks=callbacks, validate=True, epochs=200, optimizer=gm.SGD(2.0))
    assert len({id(c) for c in made}) == 3
    for history, score in zip(found.histories, found.scores, strict=True):
        assert len(history) < 200
        assert score["loss"] == min(history["val_loss"])
    assert "val_loss" not in validate(k=3).histories[0]


def test_the_type_of_the_numbers_is_that_of_every_fold():
    found = validate(lambda: gm.mlp((3, 6, 3), device="cpu"), k=2, dtype="float64")
    assert [network.dtype for network in found.networks] == ["float64"] * 2


def test_there_are_five_folds_unless_another_number_is_given():
    assert len(validate().folds) == 5


def test_a_schedule_with_state_starts_anew_in_each_fold():
    schedule = gm.ReduceOnPlateau(0.1, factor=0.5, patience=0, threshold=0.9, monitor="loss")
    found = validate(k=3, optimizer=gm.SGD(schedule), epochs=6)
    assert [history["lr"][0] for history in found.histories] == [0.1] * 3
    assert found.histories[0]["lr"][-1] < 0.1
    assert schedule.current_lr == 0.1


def test_the_data_are_shared_by_all_folds_and_not_copied():
    big = np.random.default_rng(0).random((20000, 250), dtype=np.float32)  # 20 MB
    y = big[:, 0].copy()
    settings: dict[str, Any] = {
        "loss": "mse", "epochs": 1, "batch_size": 128, "progress": False, "optimizer": gm.SGD(1e-3),
    }  # fmt: skip
    gm.cross_validate(make_wide, big[:900], y[:900], k=3, **settings)  # compiled kernels are loaded once
    tracemalloc.start()
    try:
        gm.cross_validate(make_wide, big, y, k=3, **settings)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6, f"{peak / 1e6:.1f} MB beside a set of {big.nbytes / 1e6:.0f} MB"


def test_iris_is_learnt_in_every_fold():
    x, y = load_iris(return_X_y=True)
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    found = gm.cross_validate(
        lambda: gm.mlp((4, 16, 3), device="cpu"), x, y, k=5, loss="cross_entropy", optimizer=gm.Adam(0.02), epochs=30,
        progress=False,
    )  # fmt: skip
    assert found.mean["accuracy"] > 0.93
    assert min(s["accuracy"] for s in found.scores) > 0.85


SHARED = make()


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"k": 1}, ValueError, "k is 1; expected a whole number of at least 2"),
        ({"k": 2.5}, ValueError, "k is 2.5; expected a whole number of at least 2"),
        ({"k": 48, "stratify": False}, ValueError, "k is 48; expected at most the number of rows, 47"),
        ({"k": 10}, ValueError, "a class has 9 rows, fewer than k = 10; lower k, or give stratify=False"),
        ({"y": LABELS[:-1]}, ValueError, "X has 47 rows and y has 46; they must be equal"),
        ({"sample_weight": np.ones(3)}, ValueError, "X has 47 rows and sample_weight has 3"),
        ({"validation_split": 0.2}, ValueError, "cross_validate takes no validation_split"),
        ({"validation_data": (X, LABELS)}, ValueError, "cross_validate takes no validation_data"),
        ({"rows": [1, 2]}, ValueError, "cross_validate takes no rows"),
        ({"held_rows": [1, 2]}, ValueError, "cross_validate takes no held_rows"),
        ({"make_network": SHARED}, TypeError, "make_network is a Sequential; expected a function"),
        ({"make_network": lambda: SHARED}, ValueError, "make_network returned the same network twice"),
        ({"make_network": lambda: None}, TypeError, "network is a NoneType; expected a gm.Sequential"),
        ({"x": np.where(X > 2, np.nan, X)}, ValueError, "X has nan in row"),
        ({"device": "cuda"}, ValueError, "unknown device 'cuda'"),
        ({"precision": "half"}, ValueError, "precision is 'half'; expected one of"),
        ({"loss": "crossentropy"}, ValueError, "unknown loss 'crossentropy'; did you mean 'cross_entropy'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(given, kind, message):
    with pytest.raises(kind) as error:
        validate(given.pop("make_network", make), **given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
