"""gpumlp.checks, and every refusal of a user's mistake from Python: one line, and nothing changed."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp.checks import as_matrix, as_rows, as_weights, check_count, check_finite, check_lengths

RNG = np.random.default_rng(4)
X = RNG.normal(size=(24, 3)).astype(np.float32)
LABELS = np.arange(24) % 3
NAMES = np.array(["cat", "dog", "eel"])[LABELS]
VALUES = X @ np.array([1.0, 2.0, 3.0], np.float32)


def with_value(array: np.ndarray, place: Any, value: float) -> np.ndarray:
    changed = array.astype(np.float64)
    changed[place] = value
    return changed


# ---- the checks by themselves ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_matrix_of_the_right_type_is_taken_as_it_is(dtype):
    x = np.ones((3, 2), dtype)
    assert as_matrix(x, dtype) is x
    assert as_matrix(x[::2], dtype).flags.c_contiguous
    for other in ([[1, 2], [3, 4]], np.array([[True, False]]), np.ones((2, 2), np.int8), ((1.0, 2.0),)):
        found = as_matrix(other, dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.array(other, dtype))


def test_looking_for_nan_takes_no_mask_of_the_whole_set():
    x = np.ones((50_000, 100), np.float32)  # a mask has 5 MB
    tracemalloc.start()
    try:
        check_finite(x, "X")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5e6


@given(
    row=st.integers(0, 4999),
    column=st.integers(0, 299),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_the_first_bad_value_is_named_wherever_it_stands(row, column, value):
    x = BIG
    x[row, column], kept = value, x[row, column]
    try:
        with pytest.raises(
            ValueError, match=rf"^X has {value} in row {row}, column {column}; remove or impute"
        ):
            check_finite(x, "X")
    finally:
        x[row, column] = kept


BIG = np.zeros((5000, 300))  # more than a block


def test_a_vector_is_checked_without_a_column():
    with pytest.raises(ValueError, match=r"^y has nan in row 2; remove"):
        check_finite(np.array([1.0, 2.0, math.nan]), "y")
    check_finite(np.array([1, 2]), "y")
    check_finite(np.array(["a"]), "y")


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(2)])
def test_counts_are_whole_numbers(value):
    assert check_count("k", value) == int(value)
    assert type(check_count("k", value)) is int


@pytest.mark.parametrize("value", [0, -3, 1.0, 2.5, "3", None, True, math.nan, np.float32(2), [3]])
def test_what_is_no_count_is_named(value):
    with pytest.raises(ValueError) as error:
        check_count("k", value)
    assert str(error.value) == f"k is {value!r}; expected a whole number of at least 1"


def test_lengths_are_compared_and_absent_arrays_are_not():
    check_lengths(3, y=[1, 2, 3], sample_weight=None)
    with pytest.raises(ValueError, match="X has 3 rows and y has 2; they must be equal"):
        check_lengths(3, y=np.ones(2))
    for scalar in (1.5, np.array(2.0)):
        with pytest.raises(
            ValueError, match=r"sample_weight is .*; expected one entry for each of the 3 rows of X"
        ):
            check_lengths(3, sample_weight=scalar)


def test_weights_are_finite_numbers_from_0_not_all_0():
    assert as_weights(None, 3) is None
    np.testing.assert_array_equal(as_weights([0, 1, 2.5], 3), [0, 1, 2.5])
    for bad in ([1, -1, 1], [1, math.nan, 1], [1, math.inf, 1], [0, 0, 0]):
        with pytest.raises(
            ValueError, match="sample_weight has negative or non-finite values, or only zeros"
        ):
            as_weights(bad, 3)
    with pytest.raises(ValueError, match=r"sample_weight has shape \(3, 1\); expected \(3,\)"):
        as_weights(np.ones((3, 1)), 3)


def test_rows_are_indices():
    np.testing.assert_array_equal(as_rows([3, 1, 1], 4), [3, 1, 1])
    assert as_rows(np.array([0], np.uint8), 1).dtype == np.int64
    for bad in ([], [4], [-1], [[0, 1]], [0.0, 1.0], np.array([True, False]), 3, ["a"]):
        with pytest.raises(ValueError, match=r"^rows has shape .* expected indices from 0 to 3") as error:
            as_rows(bad, 4)
        assert "\n" not in str(error.value)


# ---- every mistake in the data of a training ----


def classifier(callbacks: Any = None, **settings: Any) -> gm.Trainer:
    network = gm.mlp((3, 4, 3), seed=1, device="cpu")
    return gm.Trainer(
        network, **{"loss": "cross_entropy", "optimizer": gm.Adam(0.01), "callbacks": callbacks, **settings}
    )


def regressor(**settings: Any) -> gm.Trainer:
    return gm.Trainer(
        gm.mlp((3, 4, 1), seed=1, device="cpu"), **{"loss": "mse", "optimizer": gm.Adam(0.01), **settings}
    )


def binary() -> gm.Trainer:
    return gm.Trainer(gm.mlp((3, 4, 1), seed=1, device="cpu"), loss="binary_cross_entropy")


Mistake = tuple[Callable[[], gm.Trainer], dict[str, Any], str]
MISTAKES: dict[str, Mistake] = {
    "NaN in X": (classifier, {"X": with_value(X, (5, 1), math.nan)}, "X has nan in row 5, column 1; remove or impute"),
    "inf in X": (classifier, {"X": with_value(X, (5, 1), math.inf)}, "X has inf in row 5, column 1; remove or impute"),
    "X beyond float32": (classifier, {"X": with_value(X, (5, 1), 1e300)}, "X has inf in row 5, column 1"),
    "NaN in y": (regressor, {"y": with_value(VALUES, 7, math.nan)}, "y has nan in row 7; remove or impute"),
    "inf in y": (regressor, {"y": with_value(VALUES, 7, -math.inf)}, "y has -inf in row 7; remove or impute"),
    "y beyond float32": (regressor, {"y": with_value(VALUES, 7, 1e300)}, "y has inf in row 7"),
    "NaN in labels": (classifier, {"y": with_value(LABELS, 7, math.nan)}, "y has nan in row 7"),
    "a missing text label": (classifier, {"y": [*NAMES[:-1].tolist(), None]}, "y has None in row 23; expected a"),
    "a NaN among text": (classifier, {"y": [math.nan, *NAMES[1:].tolist()]}, "y has nan"),
    "lengths": (classifier, {"y": LABELS[:-2]}, "X has 24 rows and y has 22; they must be equal"),
    "length of the weights": (classifier, {"sample_weight": np.ones(23)}, "X has 24 rows and sample_weight has 23"),
    "no y": (classifier, {"y": None}, "y"),
    "too many features": (classifier, {"X": np.ones((24, 5))}, "X has 5 features; the network takes 3"),
    "a vector for X": (classifier, {"X": np.ones(24)}, "X has shape (24,); expected (rows, features): use"),
    "a cube for X": (classifier, {"X": np.ones((24, 3, 1))}, "X has shape (24, 3, 1); expected (rows, features)"),
    "no rows": (classifier, {"X": np.ones((0, 3)), "y": []}, "X has shape (0, 3); expected (rows, features), at"),
    "text in X": (classifier, {"X": [["a", 1, 2]] * 24}, "X has values that are not numbers; expected a matrix of"),
    "ragged X": (classifier, {"X": [[1, 2, 3]] * 23 + [[1]]}, "X has values that are not numbers"),
    "text for quantities": (regressor, {"y": NAMES}, "y has type <U3; expected numbers for MSE"),
    "one class of numbers": (classifier, {"y": np.full(24, 2)}, "y has one class only, 2; a classifier needs at"),
    "one class of text": (classifier, {"y": ["dog"] * 24}, "y has 1 classes ('dog'); the network has 3 outputs"),
    "one class of one-hot rows": (classifier, {"y": np.eye(3)[np.full(24, 1)]}, "y has one class only, 1; a"),
    "one class of two": (binary, {"y": np.ones(24)}, "y has one class only, 1; a classifier needs at least two"),
    "one class in the rows": (classifier, {"rows": [0, 3, 6]}, "y has one class only, 0; a classifier needs at"),
    "one named class in the rows": (classifier, {"y": NAMES, "rows": [1, 4]}, "y has one class only, 'dog'; a"),
    "a label too high": (classifier, {"y": LABELS + 1}, "y has the label 3; expected 0 ... 2 for a network with 3"),
    "a label below 0": (classifier, {"y": LABELS - 1}, "y has the label -1; expected 0 ... 2"),
    "labels that are not whole": (classifier, {"y": LABELS + 0.5}, "expected whole labels 0 ... 2, or (rows, 3)"),
    "more classes than outputs": (classifier, {"y": np.array(list("abcd"))[np.arange(24) % 4]}, "y has 4 classes"),
    "shares above 1": (classifier, {"y": np.full((24, 3), 2.0)}, "y has the value 2; expected a row of probabilities"),
    "columns of y": (classifier, {"y": np.eye(4)[LABELS]}, "y has shape (24, 4); expected (rows, 3)"),
    "columns of quantities": (regressor, {"y": np.ones((24, 2))}, "y has shape (24, 2); expected (rows, 1)"),
    "binary labels": (binary, {"y": LABELS}, "y has the value 2; expected labels 0 and 1"),
    "epochs": (classifier, {"epochs": 0}, "epochs is 0; expected a whole number of at least 1"),
    "batch size 0": (classifier, {"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
    "batch size below 0": (classifier, {"batch_size": -4}, "batch_size is -4; expected a whole number of at least 1"),
    "half a batch": (classifier, {"batch_size": 1.5}, "batch_size is 1.5; expected a whole number of at least 1"),
    "a batch of text": (classifier, {"batch_size": "all"}, "batch_size is 'all'; expected a whole number of at"),
    "a split of all": (classifier, {"validation_split": 1.0}, "validation_split is 1.0; expected a share"),
    "a split below 0": (classifier, {"validation_split": -0.1}, "validation_split is -0.1; expected a share"),
    "a split of NaN": (classifier, {"validation_split": math.nan}, "validation_split is nan; expected a share"),
    "a split of text": (classifier, {"validation_split": "20%"}, "validation_split is '20%'; expected a share"),
    "a split of nothing": (classifier, {"validation_split": 0.001}, "validation_split 0.001 of 24 rows leaves one"),
    "two validations": (
        classifier, {"validation_split": 0.2, "validation_data": (X, LABELS)},
        "give one of validation_data, validation_split and held_rows",
    ),
    "validation data": (classifier, {"validation_data": X}, "validation_data must be (X, y) or (X, y, sample_weight)"),
    "features held": (classifier, {"validation_data": (X[:, :2], LABELS)}, "X has 2 features; the network takes 3"),
    "NaN held": (
        classifier, {"validation_data": (with_value(X, (1, 1), math.nan), LABELS)},
        "X of validation_data has nan in row 1, column 1",
    ),
    "lengths held": (classifier, {"validation_data": (X, LABELS[:3])}, "X has 24 rows and y has 3; they must be"),
    "labels held": (
        classifier, {"y": NAMES, "validation_data": (X, np.where(LABELS == 2, "fox", NAMES))},
        "y has the labels 'fox', unseen in training; expected 'cat', 'dog', 'eel'",
    ),
    "validate_every": (classifier, {"validate_every": "3 hours"}, "validate_every is '3 hours'; expected a number"),
    "weights below 0": (classifier, {"sample_weight": -np.ones(24)}, "sample_weight has negative or non-finite"),
    "a weight for all": (classifier, {"sample_weight": 2.0}, "sample_weight is 2.0; expected one entry for each"),
    "a mask for rows": (classifier, {"rows": LABELS > 0}, "expected indices from 0 to 23"),
    "rows outside": (classifier, {"rows": [0, 1, 24]}, "expected indices from 0 to 23"),
    "held rows outside": (classifier, {"held_rows": [-1]}, "expected indices from 0 to 23"),
    "a class without weight": (
        lambda: classifier(loss=gm.CrossEntropy(class_weight={0: 1.0, 1: 2.0})), {},
        "class_weight has the classes ['0', '1']; expected one for each of [0, 1, 2]",
    ),
    "a warm-up longer than the training": (
        lambda: classifier(optimizer=gm.SGD(gm.CosineDecay(0.1, warmup=9))), {}, "the warm-up has",
    ),
    "a plateau of nothing": (
        lambda: classifier(optimizer=gm.SGD(gm.ReduceOnPlateau(0.1))), {},
        "reduce_on_plateau monitors 'val_loss', which is not measured",
    ),
    "a monitor of nothing": (
        lambda: classifier(callbacks=gm.EarlyStopping()), {}, "EarlyStopping monitors 'val_loss', which is not",
    ),
}  # fmt: skip


def everything(trainer: gm.Trainer) -> dict[str, Any]:
    arrays, values = trainer.state_dict()
    return {
        **{name: array.tobytes() for name, array in arrays.items()}, "plateau": values["plateau"],
        "classes": trainer.classes, "network": trainer.network.to_dict(),
    }  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_refused_fit_says_why_in_one_line_and_changes_nothing(mistake):
    make, settings, message = MISTAKES[mistake]
    settings = {"epochs": 2, "batch_size": 8, "progress": False, **settings}
    trainer = make()
    y = VALUES if trainer.loss.kernel == "mse" else LABELS % (2 if trainer.network.out_features == 1 else 3)
    before = everything(trainer)
    with pytest.raises((ValueError, TypeError)) as error:
        trainer.fit(settings.pop("X", X), settings.pop("y", y), **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert everything(trainer) == before


@pytest.mark.parametrize(
    "mistake", ["NaN in y", "NaN in X", "batch size 0", "lengths", "labels held", "rows outside"]
)
def test_a_refused_fit_leaves_an_earlier_training_as_it_was(mistake):
    make, settings, _ = MISTAKES[mistake]
    trainer = make()
    y = VALUES if trainer.loss.kernel == "mse" else LABELS
    history = trainer.fit(X, y, epochs=2, batch_size=8, progress=False)
    before = everything(trainer)
    settings = {"X": X, "y": y, "progress": False, "batch_size": 8, **settings}
    with pytest.raises(ValueError):
        trainer.fit(**settings)
    assert everything(trainer) == before
    assert trainer.history is history
    again = make()  # and it goes on as if nothing had been asked
    again.fit(X, y, epochs=2, batch_size=8, progress=False)
    for t in (trainer, again):
        t.fit(X, y, epochs=1, batch_size=8, progress=False)
    assert everything(trainer) == everything(again)


def test_classes_of_a_refused_fit_are_forgotten():
    trainer = classifier()
    with pytest.raises(ValueError, match="y has 4 classes"):
        trainer.fit(X, np.array(list("abcd"))[np.arange(24) % 4], progress=False)
    trainer.fit(X, NAMES, epochs=1, progress=False, batch_size=8)
    assert trainer.classes == ["cat", "dog", "eel"]


def test_masked_targets_are_refused_and_an_array_of_which_nothing_is_masked_is_taken():
    y = np.ma.masked_equal(LABELS, 1)
    for call in (classifier().fit, classifier().evaluate):
        with pytest.raises(ValueError, match=r"y is a masked array with \d+ masked entries"):
            call(X, y)
    classifier().fit(np.ma.array(X), np.ma.array(LABELS), epochs=1, batch_size=8, progress=False)


@pytest.mark.parametrize("method", ["predict", "predict_classes", "evaluate"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[:, :2], "X has 2 features; the network takes 3"),
        (with_value(X, (3, 0), math.nan), "X has nan in row 3, column 0"),
        (X[0], "X has shape (3,); expected (rows, features)"),
        (X[:0], "X has shape (0, 3); expected (rows, features), at least one of each"),
        ([["a", "b", "c"]] * 24, "X has values that are not numbers"),
        (None, "X is None; expected (rows, features)"),
        (np.ma.masked_greater(X, 1.5), "masked entries; remove such rows or fill them: X.filled(value)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_when_a_model_is_used(method, x, message):
    trainer = classifier()
    with pytest.raises(ValueError) as error:
        getattr(trainer, method)(x, *([LABELS] if method == "evaluate" else []))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (LABELS[:3], "X has 24 rows and y has 3"),
        (LABELS + 1, "y has the label 3; expected 0 ... 2"),
        (
            np.where(LABELS == 2, "fox", NAMES),
            "y has the labels 'fox', unseen in training; expected 'cat', 'dog', 'eel'",
        ),
        (with_value(LABELS, 0, math.nan), "y has nan in row 0"),
        ([None, *NAMES[1:].tolist()], "y has None in row 0; expected a label in every row"),
    ],
)
def test_targets_that_do_not_fit_are_refused_by_evaluate(y, message):
    trainer = classifier()
    trainer.fit(X, NAMES, epochs=1, progress=False, batch_size=8)
    with pytest.raises(ValueError) as error:
        trainer.evaluate(X, y)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ---- mistakes before there is a training ----

ANY: Any = gm  # what mypy would refuse, Python has to


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda n: gm.SGD(lr=-0.1), ValueError, "lr is -0.1; expected a finite number >= 0"),
        (lambda n: gm.Adam(lr=math.nan), ValueError, "lr is nan; expected a finite number >= 0"),
        (lambda n: gm.RMSprop(lr=math.inf), ValueError, "lr is inf; expected a finite number >= 0"),
        (lambda n: gm.Adam(lr="fast"), ValueError, "unknown schedule 'fast'; expected one of"),
        (lambda n: gm.Trainer(n, loss="mse", optimizer={"name": "sgd", "lr": -1}), ValueError, "lr is -1.0; expected"),
        (lambda n: gm.Trainer(n, loss="mes"), ValueError, "unknown loss 'mes'; did you mean 'mse'"),
        (lambda n: gm.Trainer(n, loss=3), TypeError, "loss is a int; expected"),
        (lambda n: gm.Trainer(n, loss="mse", optimizer="adm"), ValueError, "unknown optimizer 'adm'; did you mean"),
        (lambda n: gm.Trainer(n, loss="mse", metrics=["r3"]), ValueError, "unknown metric 'r3'"),
        (lambda n: gm.Trainer(n, loss="mse", dtype="float16", seed=9), ValueError, "dtype 'float16' is not supported"),
        (lambda n: gm.Trainer(n, loss="mse", device="tpu", seed=9), ValueError, "unknown device 'tpu'; expected"),
        (lambda n: gm.Trainer(n, loss="mse", seed=-1), ValueError, "seed is -1; expected a whole number from 0 to"),
        (lambda n: gm.Trainer(n, loss="mse", seed=9, threads=0), ValueError, "threads is 0; expected a whole number"),
        (lambda n: gm.Trainer(n, loss="mse", seed=9, callbacks=[3]), TypeError, "3 is not a callback; expected"),
        (lambda n: gm.Trainer(n, loss="mse", seed=9, metrics=["accuracy"]), ValueError, "metric 'accuracy' does"),
        (lambda n: ANY.Trainer([n], loss="mse"), TypeError, "network is a list; expected a gm.Sequential"),
        (
            lambda n: gm.Sequential(gm.Linear(3, 4), gm.ReLU(), gm.Linear(5, 2)), ValueError,
            "layer 2, Linear(5, 2), takes 5 features, but layer 1, ReLU(), gives 4; make the widths equal",
        ),
        (lambda n: gm.Sequential(gm.Linear(3, 4), in_features=2), ValueError, "takes 3 features, but the input has 2"),
        (lambda n: ANY.Sequential(gm.Linear(3, 4), gm.ReLU), TypeError, "an object, not a class"),
        (lambda n: gm.Sequential(), ValueError, "a network needs at least one layer"),
        (lambda n: gm.Sequential(n[0]), ValueError, "is part of another network already"),
        (lambda n: gm.Linear(0, 3), ValueError, "in_features"),
        (lambda n: ANY.Linear(3, 2.5), ValueError, "out_features"),
        (lambda n: gm.mlp((3,)), ValueError, "sizes is [3]; expected at least the widths of input and output"),
        (lambda n: ANY.mlp(3), ValueError, "sizes is 3; expected at least the widths of input and output"),
        (lambda n: ANY.mlp((3, 2), seed=1.5), ValueError, "seed is 1.5; expected a whole number from 0 to"),
        (lambda n: gm.Trainer(n, loss="mse", seed=2**70), ValueError, f"seed is {2**70}; expected"),
        (lambda n: ANY.Trainer(n, loss="mse", metrics="rmse"), TypeError, "expected a list of them: ['rmse']"),
        (lambda n: ANY.data.prepare(X), TypeError, "dataset is a ndarray; expected a gm.data.Dataset"),
        (lambda n: gm.data.prepare(gm.data.load("iris"), seed=-1), ValueError, "seed is -1; expected"),
        (lambda n: gm.data.prepare(gm.data.load("iris"), test_size=1.0), ValueError, "test_size is 1.0"),
        (lambda n: gm.load_model("nowhere/model.safetensors"), ValueError, "no model file"),
    ],
)  # fmt: skip
def test_a_mistake_before_the_training_is_one_line_and_changes_no_network(make, kind, message):
    network = gm.mlp((3, 4, 3), seed=1, device="cpu")
    before = network.state_dict()
    with pytest.raises(kind) as error:
        make(network)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert (network.dtype, network.backend.name, network.seed) == ("float32", "cpu", 1)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["gpu", "gpu:1"])
def test_a_gpu_that_is_not_there_is_named_with_what_is_missing(device):
    for use in (
        lambda: gm.get_backend(device),
        lambda: gm.mlp((3, 3), device=device),
        lambda: gm.Trainer(gm.mlp((3, 3), device="cpu"), loss="mse", device=device),
    ):
        with pytest.raises(
            ValueError, match=rf"device '{device}' was asked for, but CuPy does not import"
        ) as error:
            use()
        assert "pip install 'gpumlp[cuda12]'" in str(error.value)
        assert 'device="cpu"' in str(error.value)
        assert "\n" not in str(error.value)
    assert gm.get_backend("auto").name == "cpu"
