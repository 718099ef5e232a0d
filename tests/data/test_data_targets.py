"""Targets: tasks, classes, codes, and the target scaler."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpumlp.data import TargetScaler, encode_labels
from gpumlp.data.columns import as_column
from gpumlp.data.targets import check_task, detect_task, encode_classes, quantities


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b", "a"], "classification"),
        ([True, False, True], "classification"),
        (pa.array(["u", "v", "u"]).dictionary_encode(), "classification"),
        ([0, 1, 2] * 4, "classification"),
        (list(range(20)) * 2, "classification"),
        (list(range(21)) * 2, "regression"),  # more than 20 values
        ([1, 2, 3, 4, 5], "regression"),  # fewer than two rows for each
        ([0.0, 1.0, 0.0, 1.0], "regression"),
    ],
)
def test_the_task_follows_the_stated_rule(values, task):
    assert detect_task(as_column(values), "y") == task


def test_an_unknown_task_is_one_line_with_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'regresion'; did you mean 'regression'"):
        check_task("regresion")


@pytest.mark.parametrize(
    ("values", "classes", "codes"),
    [
        ([10, 9, 10, 2], ["2", "9", "10"], [2, 1, 2, 0]),  # numbers sort as numbers
        (["10", "9", "2"], ["10", "2", "9"], [0, 2, 1]),  # text by its characters
        ([True, False], ["false", "true"], [1, 0]),
        ([1.0, 0.0, -1.0], ["-1", "0", "1"], [2, 1, 0]),
        ([0.5, 1.5, 0.5], ["0.5", "1.5"], [0, 1, 0]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["a", "b"], [1, 0, 1]),
        (np.array([b"no", b"yes"]), ["no", "yes"], [0, 1]),
    ],
)
def test_classes_are_text_in_sorted_order_with_their_codes(values, classes, codes):
    found_codes, found_classes = encode_classes(as_column(values), "y")
    assert found_classes == classes
    assert found_codes.tolist() == codes
    assert found_codes.dtype == np.int64


@given(st.lists(st.text(max_size=5), min_size=2).filter(lambda v: len(set(v)) > 1), st.integers(1, 4))
def test_codes_lead_back_to_the_labels_for_any_text_in_any_chunks(labels, size):
    chunks = [labels[i : i + size] for i in range(0, len(labels), size)]
    column = pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks])
    codes, classes = encode_classes(column, "y")
    assert [classes[c] for c in codes] == labels
    assert classes == sorted(set(labels))
    np.testing.assert_array_equal(encode_labels(labels, classes), codes)


def test_one_class_only_is_one_line():
    with pytest.raises(ValueError, match="target 'y' holds one class only \\('a'\\)"):
        encode_classes(as_column(["a", "a"]), "y")


@pytest.mark.parametrize("values", [["a", None, "b"], [1.0, float("nan"), 2.0], [1, None, 2]])
def test_a_missing_label_is_one_line_with_its_row(values):
    with pytest.raises(ValueError, match="target 'y' has no value in row 2"):
        encode_classes(as_column(values), "y")
    with pytest.raises(ValueError, match="target 'y' has no value in row 2"):
        encode_labels(values, ["a", "b"])


def test_labels_are_found_by_name_whatever_type_they_come_in():
    classes = ["0", "1", "2"]
    for labels in (["2", "0"], [2, 0], [2.0, 0.0], np.array([2, 0], np.uint8)):
        assert encode_labels(labels, classes).tolist() == [2, 0]


def test_labels_unseen_in_training_are_named():
    with pytest.raises(ValueError, match=r"unseen in training: 'x', 'z'; the model knows a, b"):
        encode_labels(["a", "z", "x", "z"], ["a", "b"])


def test_evaluating_on_one_class_alone_is_allowed():
    assert encode_labels(["b", "b"], ["a", "b"]).tolist() == [1, 1]


def test_no_labels_have_no_codes():
    codes = encode_labels([], ["a", "b"])
    assert codes.shape == (0,)
    assert codes.dtype == np.int64


def test_labels_of_mixed_types_are_a_type_error():
    with pytest.raises(TypeError, match="expected numbers, booleans or strings, all of one type"):
        encode_labels(["a", 1], ["a", "b"])


def test_one_quantity_is_a_vector_and_several_are_a_matrix():
    one = quantities([as_column([1, 2])], ["u"])
    two = quantities([as_column([1, 2]), as_column([0.5, 1.5])], ["u", "v"])
    assert one.tolist() == [1, 2]
    assert two.tolist() == [[1, 0.5], [2, 1.5]]
    assert one.dtype == two.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, float("inf")], "target 'u' holds inf in row 2"),
        ([1e300, 1.0], "target 'u' holds 1e\\+300 in row 1"),
        ([1.0, float("nan")], "target 'u' has no value in row 2"),
        (["a", "b"], "target 'u' holds text; regression needs numbers"),
    ],
)
def test_a_quantity_that_is_no_finite_number_is_one_line(values, words):
    with pytest.raises(ValueError, match=words):
        quantities([as_column(values)], ["u"])


def test_the_target_scaler_gives_what_scikit_learns_standard_scaler_gives():
    from sklearn.preprocessing import StandardScaler

    y = np.random.default_rng(0).normal([3.0, -100.0], [0.1, 40.0], (50, 2))
    np.testing.assert_allclose(
        TargetScaler.fit(y).transform(y), StandardScaler().fit_transform(y), rtol=1e-5, atol=1e-6
    )


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=2, max_side=6),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_the_inverse_of_the_target_scaler_gives_the_target_back(y):
    scaler = TargetScaler.fit(y)
    back = scaler.inverse(scaler.transform(y))
    assert back.shape == y.shape
    np.testing.assert_allclose(back, y, rtol=1e-5, atol=1e-5 * (1 + np.abs(y).max()))


def test_a_target_scaler_that_was_given_nothing_changes_nothing():
    y = [-1.5, 0.0, 4.0]
    assert TargetScaler().transform(y).tolist() == TargetScaler().inverse(y).tolist() == y


def test_a_constant_target_keeps_the_deviation_one():
    scaler = TargetScaler.fit(np.full(7, 0.1))
    assert scaler.std.tolist() == [1.0]
    assert scaler.transform(np.full(7, 0.1)).tolist() == [0.0] * 7


def test_the_target_scaler_goes_through_json_to_the_bit():
    scaler = TargetScaler.fit(np.random.default_rng(1).normal(size=(9, 2)))
    again = TargetScaler.from_dict(json.loads(json.dumps(scaler.to_dict(), allow_nan=False)))
    np.testing.assert_array_equal(again.mean, scaler.mean)
    np.testing.assert_array_equal(again.std, scaler.std)


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        {"format": "something else"},
        {"format": TargetScaler.FORMAT},
        {"format": TargetScaler.FORMAT, "mean": [0.0], "std": [0.0]},
        {"format": TargetScaler.FORMAT, "mean": [0.0, 1.0], "std": [1.0]},
        {"format": TargetScaler.FORMAT, "mean": ["a"], "std": [1.0]},
        {"format": TargetScaler.FORMAT, "mean": [float("nan")], "std": [1.0]},
    ],
)
def test_a_foreign_target_scaler_is_one_line(values):
    with pytest.raises(ValueError, match=r"gpumlp|damaged"):
        TargetScaler.from_dict(values)


def test_the_target_scaler_refuses_another_number_of_columns():
    with pytest.raises(ValueError, match="y has 3 columns; the target scaler was fitted on 2"):
        TargetScaler.fit(np.zeros((4, 2))).inverse(np.zeros((4, 3)))
