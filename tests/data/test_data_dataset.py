"""Data sets, their split, the one matrix that both parts are views of, and the memory that it takes."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumlp.data import Dataset, features_for_prediction, load_bundled, load_file, prepare, split_rows


def classification(n: int = 60, n_classes: int = 3, n_train: int | None = None) -> Dataset:
    rng = np.random.default_rng(0)
    X = rng.normal(5, 2, (n, 4)).astype(np.float32)
    y = rng.permutation(np.arange(n) % n_classes)
    return Dataset("made", X, y, classes=[f"c{k}" for k in range(n_classes)], n_train=n_train)


def regression(n: int = 30, k: int = 1) -> Dataset:
    rng = np.random.default_rng(1)
    y = rng.normal(100, 7, (n, k))
    return Dataset("made", rng.normal(size=(n, 2)), y[:, 0] if k == 1 else y)


# -- the data set


def test_a_data_set_says_what_it_holds():
    data = classification()
    assert (data.n_samples, data.n_features, data.task) == (60, 4, "classification")
    assert data.feature_names == ["x0", "x1", "x2", "x3"]
    assert data.labels.tolist() == [f"c{k}" for k in data.y]
    assert repr(data) == (
        "Dataset('made': 60 rows; 4 features: x0, x1, x2, x3; classification of y: c0, c1, c2)"
    )
    assert "regression of y" in repr(regression())
    assert "no target" in repr(Dataset("new", np.zeros((2, 1))))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dataset("d", np.zeros((3, 2)), np.zeros(4)), "X has 3 rows and y has 4"),
        (lambda: Dataset("d", np.zeros(3), np.zeros(3)), "expected two dimensions"),
        (lambda: Dataset("d", np.zeros((3, 2)), np.zeros(3), ["a"]), "1 feature names for 2 columns"),
        (lambda: Dataset("d", np.zeros((2, 1)), np.array([0, 2]), classes=["a", "b"]), "one code of 0 to 1"),
        (lambda: Dataset("d", np.zeros((2, 1)), np.array([1.0, np.nan])), "y holds nan in row 2"),
        (
            lambda: Dataset("d", np.zeros((2, 1)), np.array([1.0, 2.0]), n_train=3),
            "n_train is 3; expected 1 to 2",
        ),
        (lambda: Dataset("d", np.zeros((2, 1))).task, "d has no target"),
        (lambda: regression().labels, "has no classes"),
    ],
)
def test_parts_that_do_not_go_together_are_one_line(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# -- the split


@given(st.integers(2, 200), st.floats(0.01, 0.9), st.integers(0, 5), st.booleans())
def test_a_split_takes_every_row_once(n, test_size, seed, stratify):
    data = Dataset("d", np.zeros((n, 1), np.float32), np.arange(n) % 2, classes=["a", "b"])
    n_test = int(np.ceil(n * test_size))
    if n_test == n:
        with pytest.raises(ValueError, match="leaves no rows for training"):
            split_rows(data, test_size, seed, stratify)
        return
    train, test = split_rows(data, test_size, seed, stratify)
    assert sorted([*train, *test]) == list(range(n))
    assert len(test) == n_test
    assert train.dtype == test.dtype == np.int64


def test_a_split_is_the_same_for_the_same_seed_only():
    data = classification()
    np.testing.assert_array_equal(split_rows(data, seed=1)[1], split_rows(data, seed=1)[1])
    assert not np.array_equal(split_rows(data, seed=1)[1], split_rows(data, seed=2)[1])


def test_a_stratified_split_keeps_the_shares_of_the_classes():
    data = Dataset("d", np.zeros((100, 1)), np.repeat([0, 1], [90, 10]), classes=["a", "b"])
    for seed in range(5):
        _, test = split_rows(data, 0.3, seed)
        np.testing.assert_array_equal(np.bincount(data.y[test]), [27, 3])
        prepared = prepare(data, test_size=0.3, seed=seed)
        np.testing.assert_array_equal(np.bincount(prepared.y_test), [27, 3])
    at_random = [np.bincount(data.y[split_rows(data, 0.3, seed, stratify=False)[1]])[1] for seed in range(20)]
    assert len(set(at_random)) > 1


@pytest.mark.parametrize(
    ("y", "test_size"), [([0, 0, 0, 0, 1], 0.4), ([0, 0, 1, 1, 2, 2], 2), ([0, 0, 1, 1, 2, 2], 4)]
)
def test_a_class_too_small_to_stratify_is_split_at_random(y, test_size):
    data = Dataset("d", np.zeros((len(y), 1)), np.array(y), classes=["a", "b", "c"])
    train, test = split_rows(data, test_size)
    assert sorted([*train, *test]) == list(range(len(y)))


def test_a_class_without_rows_does_not_keep_the_others_from_being_stratified():
    data = Dataset("d", np.zeros((4, 1)), np.array([0, 0, 2, 2]), classes=["a", "b", "c"])
    for seed in range(5):
        for rows in split_rows(data, 0.5, seed):
            assert sorted(data.y[rows]) == [0, 2]


def test_the_sets_own_split_is_taken_in_its_order_unless_a_size_is_given():
    data = classification(n_train=45)
    train, test = split_rows(data)
    np.testing.assert_array_equal(train, np.arange(45))
    np.testing.assert_array_equal(test, np.arange(45, 60))
    assert len(split_rows(data, 0.5)[1]) == 30


def test_a_test_size_of_zero_leaves_all_rows_for_training():
    prepared = prepare(classification(), test_size=0)
    assert prepared.X_train.shape == (60, 4)
    assert prepared.X_test.shape == (0, 4)
    assert sorted(prepared.train_rows) == list(range(60))


def test_a_test_size_of_one_is_one_row():
    assert len(split_rows(classification(), 1)[1]) == 1


@pytest.mark.parametrize("test_size", [-0.1, -1, -5, 1.0, 1.5, 60, 100, float("nan"), float("inf"), 2.5])
def test_a_test_size_that_makes_no_sense_is_one_line(test_size):
    with pytest.raises(
        ValueError, match="expected a fraction from 0 to below 1, or a number of rows below 60"
    ):
        split_rows(classification(), test_size)


def test_a_test_size_that_is_no_number_is_a_type_error():
    for test_size in ("0.3", True):
        with pytest.raises(TypeError, match="expected a fraction of the rows, or their number"):
            split_rows(classification(), test_size)  # type: ignore[arg-type]


# -- preparing


@pytest.mark.parametrize("name", ["iris", "breast_cancer", "diabetes"])
@pytest.mark.parametrize("copy", [True, False])
def test_prepared_rows_are_the_rows_of_the_set_standardised_by_the_training_part(name, copy):
    original = load_bundled(name)
    prepared = prepare(load_bundled(name), test_size=0.3, seed=4, copy=copy)
    for X, y, rows in (
        (prepared.X_train, prepared.y_train, prepared.train_rows),
        (prepared.X_test, prepared.y_test, prepared.test_rows),
    ):
        assert np.shares_memory(X, prepared.X)
        np.testing.assert_array_equal(y, original.y[rows])
        raw = original.features[rows].astype(np.float64)
        train = original.features[prepared.train_rows].astype(np.float64)
        expected = (raw - train.mean(axis=0)) / train.std(axis=0)
        np.testing.assert_allclose(X, expected, rtol=1e-5, atol=1e-5)
    assert prepared.X.dtype == np.float32
    assert prepared.X.flags.c_contiguous
    assert prepared.task == original.task


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("n_train", [None, 45])
def test_transforming_in_place_gives_the_same_bits_as_a_copy(n_train, standardize):
    copied, in_place = (
        prepare(classification(n_train=n_train), seed=3, standardize=standardize, copy=copy)
        for copy in (True, False)
    )
    np.testing.assert_array_equal(copied.X, in_place.X)
    np.testing.assert_array_equal(copied.y, in_place.y)


def test_a_data_set_is_left_alone_unless_it_may_be_overwritten():
    data = classification()
    before = data.features.copy()
    prepare(data)
    np.testing.assert_array_equal(data.features, before)


def test_a_data_set_that_was_overwritten_cannot_be_used_again():
    data = classification()
    prepared = prepare(data, copy=False)
    for use in (lambda: prepare(data), lambda: features_for_prediction(prepared.preprocessor, data)):
        with pytest.raises(ValueError, match=r"overwritten by prepare\(copy=False\); load it again"):
            use()


def test_a_set_that_is_refused_is_not_overwritten():
    data = classification(n_train=45)
    data.features[50, 2] = np.inf  # in the test part, which fitting does not see
    before = data.features.copy()
    with pytest.raises(ValueError, match="column 'x2' holds inf in row 51"):
        prepare(data, copy=False)
    np.testing.assert_array_equal(data.features, before)


def test_float32_rows_in_order_that_need_no_change_are_views_of_the_set():
    data = classification(n_train=45)
    prepared = prepare(data, standardize=False)
    assert np.shares_memory(prepared.X_train, data.features)
    assert np.shares_memory(prepared.X_test, data.features)
    assert prepare(data, standardize=False).X is data.features  # the set can be used again


def test_a_missing_value_in_the_test_part_is_refused_with_its_row_in_the_file():
    table = pa.table({"a": [*range(49), None], "c": ["u", "v"] * 25})
    data = Dataset("t", table, np.arange(50) % 2, classes=["n", "p"])
    with pytest.raises(ValueError, match="column 'a' has no value in row 50"):
        prepare(data)
    prepared = prepare(data, missing="median")
    assert prepared.feature_names == ["a", "c=u", "c=v"]


def test_targets_are_standardised_by_the_training_rows_where_asked():
    for k in (1, 3):
        data = regression(200, k)
        prepared = prepare(data, standardize_target=True)
        np.testing.assert_allclose(prepared.y_train.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(prepared.y_train.std(axis=0), 1, atol=1e-5)
        assert prepared.target_scaler is not None
        back = prepared.target_scaler.inverse(prepared.y_test)
        np.testing.assert_allclose(back, data.y[prepared.test_rows], rtol=1e-5)
    assert prepare(data).target_scaler is None


def test_standardising_the_target_of_a_classification_is_one_line():
    with pytest.raises(ValueError, match="standardize_target is for regression"):
        prepare(classification(), standardize_target=True)


def test_preparing_a_set_without_a_target_is_one_line():
    with pytest.raises(ValueError, match="d has no target"):
        prepare(Dataset("d", np.zeros((4, 2))))


# -- new data


def test_new_data_is_read_alike_as_array_list_table_and_data_set():
    data = regression()
    preprocessor = prepare(data).preprocessor
    X = data.features
    expected = preprocessor.transform(X)
    table = pa.table({"x1": X[:, 1], "other": np.zeros(30), "x0": X[:, 0]})
    swapped = Dataset("d", X[:, ::-1].copy(), feature_names=["x1", "x0"])
    for new in (X, X.tolist(), table, Dataset("d", X), Dataset("d", table), swapped):
        np.testing.assert_array_equal(features_for_prediction(preprocessor, new), expected)


def test_new_data_of_another_width_or_kind_is_one_line():
    preprocessor = prepare(regression()).preprocessor
    with pytest.raises(ValueError, match="the array has 3 features; the model was trained on 2"):
        features_for_prediction(preprocessor, np.zeros((4, 3)))
    with pytest.raises(
        TypeError, match=r"expected a Dataset, a pyarrow\.Table or an array of numbers; got str"
    ):
        features_for_prediction(preprocessor, "x")


# -- memory


def peak_bytes(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ROWS, WIDTH = 40_000, 200
MATRIX = ROWS * WIDTH * 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("target", [-1, 7])
@pytest.mark.parametrize("missing", ["refuse", "mean"])
def test_an_npy_file_is_in_memory_once(tmp_path, dtype, target, missing):
    array = np.random.default_rng(0).normal(size=(ROWS, WIDTH + 1)).astype(dtype)
    np.save(tmp_path / "big.npy", array)
    del array
    peak = peak_bytes(
        lambda: prepare(load_file(tmp_path / "big.npy", target=target), missing=missing, copy=False)
    )
    assert MATRIX < peak < 1.3 * MATRIX


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_is_in_memory_once(tmp_path, save):
    rng = np.random.default_rng(0)
    save(
        tmp_path / "big.npz", X=rng.integers(0, 9, (ROWS, WIDTH)).astype(np.float64), y=rng.normal(size=ROWS)
    )
    peak = peak_bytes(lambda: prepare(load_file(tmp_path / "big.npz"), copy=False))
    assert MATRIX < peak < 1.3 * MATRIX


def test_a_table_is_converted_column_by_column():
    rng = np.random.default_rng(0)
    # pyarrow's own memory is not seen here: measured are the matrix and what the conversion takes beside it
    table = pa.table({f"c{j}": rng.normal(size=ROWS) for j in range(WIDTH)})
    data = Dataset("t", table, np.arange(ROWS) % 2, classes=["a", "b"])
    assert MATRIX < peak_bytes(lambda: prepare(data)) < 1.3 * MATRIX
