"""The preprocessor: statistics of the training rows, columns by name, one-hot, missing values, JSON."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from gpumlp.data import Preprocessor
from gpumlp.data import columns as columns_module


@pytest.fixture
def table() -> pa.Table:
    return pa.table(
        {
            "age": [20, 30, 40, 60],
            "town": ["Rome", "Oslo", "Rome", "Bern"],
            "height": [1.5, 1.6, 1.7, 2.0],
            "member": [True, False, True, True],
        }
    )


def through_json(preprocessor: Preprocessor) -> Preprocessor:
    return Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict(), allow_nan=False)))


def test_a_table_worked_by_hand(table):
    preprocessor = Preprocessor(unknown="ignore").fit(table, rows=np.array([0, 1, 2]))
    assert preprocessor.feature_names_out == (
        ["age", "town=Oslo", "town=Rome", "height", "member=false", "member=true"]
    )
    assert preprocessor.n_features_out == 6
    a, h = np.sqrt(200 / 3), np.sqrt(0.02 / 3)  # population deviations of 20 30 40 and of 1.5 1.6 1.7
    expected: list[list[float]] = [
        [-10 / a, 0, 1, -0.1 / h, 0, 1],
        [0, 1, 0, 0, 1, 0],
        [10 / a, 0, 1, 0.1 / h, 0, 1],
        [30 / a, 0, 0, 0.4 / h, 0, 1],  # Bern is unknown: all zeros
    ]
    X = preprocessor.transform(table)
    assert X.dtype == np.float32
    assert X.flags.c_contiguous
    np.testing.assert_allclose(X, expected, rtol=1e-6, atol=1e-6)


def test_columns_are_taken_by_name_in_any_order_and_others_are_ignored(table):
    preprocessor = Preprocessor().fit(table)
    mixed = table.select(["member", "height", "town", "age"]).append_column("extra", [["x"] * 4])
    np.testing.assert_array_equal(preprocessor.transform(mixed), preprocessor.transform(table))


def test_missing_columns_are_one_line_that_lists_them(table):
    preprocessor = Preprocessor().fit(table)
    with pytest.raises(ValueError, match=r"lacks columns .*: age, member; it has town, height"):
        preprocessor.transform(table.select(["town", "height"]))


@pytest.mark.parametrize("rows", [None, np.array([5, 0, 3, 8])])
def test_statistics_are_those_of_scikit_learns_standard_scaler(rows):
    X = np.random.default_rng(0).normal([1e6, 0.0, -3.0], [1.0, 1e-3, 50.0], (1000, 3))
    train = X if rows is None else X[rows]
    oracle = StandardScaler().fit(train)
    for features in (X, pa.table({f"x{j}": X[:, j] for j in range(3)})):
        preprocessor = Preprocessor().fit(features, rows=rows)
        np.testing.assert_allclose(preprocessor.mean, oracle.mean_, rtol=1e-12)
        np.testing.assert_allclose(preprocessor.std, oracle.scale_, rtol=1e-9)
        np.testing.assert_allclose(
            preprocessor.transform(features), oracle.transform(X), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("rule", ["mean", "median", "most_frequent", -7.5])
def test_imputing_and_standardising_is_that_of_a_scikit_learn_pipeline(rule):
    rng = np.random.default_rng(1)
    X = rng.integers(0, 5, (400, 3)).astype(np.float64)
    X[rng.random(X.shape) < 0.2] = np.nan
    X[0] = [np.nan, 1, 2]
    train = np.arange(50, 400)
    settings = {"strategy": "constant", "fill_value": rule} if isinstance(rule, float) else {"strategy": rule}
    imputer = SimpleImputer(**settings).fit(X[train])
    scaler = StandardScaler().fit(imputer.transform(X[train]))
    expected = scaler.transform(imputer.transform(X))
    for features in (
        X,
        X.astype(np.float32),
        pa.table({f"x{j}": pa.array(X[:, j], from_pandas=True) for j in range(3)}),
    ):
        preprocessor = through_json(Preprocessor(missing=rule).fit(features, rows=train))
        np.testing.assert_allclose(preprocessor.transform(features), expected, rtol=1e-5, atol=1e-6)


def test_one_hot_columns_are_those_of_scikit_learns_encoder():
    words = np.random.default_rng(2).choice(["c", "a", "bb", "é", ""], 200)
    expected = OneHotEncoder(sparse_output=False).fit_transform(words[:, np.newaxis])
    for column in (
        pa.array(words),
        pa.array(words).dictionary_encode(),
        pa.array(words.tolist(), pa.large_string()),
    ):
        X = Preprocessor().fit(pa.table({"w": column})).transform(pa.table({"w": column}))
        np.testing.assert_array_equal(X, expected)


def test_statistics_do_not_depend_on_how_rows_fall_into_blocks(monkeypatch):
    X = np.random.default_rng(3).normal(1e4, 1.0, (501, 4))
    whole = Preprocessor().fit(X)
    monkeypatch.setattr(columns_module, "BLOCK_ELEMENTS", 28)
    pieces = Preprocessor().fit(X)
    np.testing.assert_allclose(pieces.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(pieces.std, whole.std, rtol=1e-10)
    np.testing.assert_allclose(pieces.transform(X), whole.transform(X), rtol=1e-5, atol=1e-6)


def test_a_constant_column_keeps_the_deviation_one():
    X = np.full((1000, 2), 0.1)
    X[:, 1] = 1e9 + 0.3
    preprocessor = Preprocessor().fit(X)
    assert preprocessor.std.tolist() == [1.0, 1.0]
    assert not preprocessor.transform(X).any()


def test_scale_multiplies_the_numbers_and_leaves_one_hot_columns():
    table = pa.table({"p": [0, 51, 255], "c": ["u", "v", "u"]})
    X = Preprocessor(standardize=False, scale=1 / 255).fit(table).transform(table)
    np.testing.assert_allclose(X, [[0.0, 1.0, 0.0], [0.2, 0.0, 1.0], [1.0, 1.0, 0.0]], rtol=1e-7)


def test_float32_features_that_need_no_change_are_not_copied():
    X = np.random.default_rng(4).random((10, 3), np.float32)
    assert Preprocessor(standardize=False).fit(X).transform(X) is X


def test_features_can_be_transformed_where_they_lie():
    X = np.random.default_rng(5).normal(3, 2, (100, 3)).astype(np.float32)
    preprocessor = Preprocessor().fit(X)
    expected = preprocessor.transform(X)
    assert preprocessor.transform(X, out=X) is X
    np.testing.assert_array_equal(X, expected)


def test_chosen_rows_come_in_their_order(table):
    preprocessor = Preprocessor().fit(table)
    rows = np.array([3, 0, 2])
    np.testing.assert_array_equal(
        preprocessor.transform(table, rows=rows), preprocessor.transform(table)[rows]
    )


def test_every_kind_of_number_is_a_number():
    from decimal import Decimal

    table = pa.table(
        {
            "u8": pa.array([1, 2], pa.uint8()),
            "i64": pa.array([1, 2], pa.int64()),
            "f32": pa.array([1, 2], pa.float32()),
            "decimal": pa.array([Decimal("1.0"), Decimal("2.0")]),
        }
    )
    X = Preprocessor(standardize=False).fit(table).transform(table)
    np.testing.assert_array_equal(X, [[1] * 4, [2] * 4])


@pytest.mark.parametrize(
    ("given", "hot"),
    [(["True", "FALSE"], [[0, 1], [1, 0]]), ([1, 0], [[0, 1], [1, 0]]), ([True, True], [[0, 1]] * 2)],
)
def test_a_boolean_column_is_known_again_as_text_or_number(given, hot):
    preprocessor = Preprocessor().fit(pa.table({"b": [True, False]}))
    np.testing.assert_array_equal(preprocessor.transform(pa.table({"b": given})), hot)


def test_digits_are_known_again_as_the_texts_of_training():
    preprocessor = Preprocessor().fit(pa.table({"code": ["1", "x", "2"]}))
    np.testing.assert_array_equal(preprocessor.transform(pa.table({"code": [2, 1]})), [[0, 1, 0], [1, 0, 0]])


# -- what is refused


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_a_missing_or_infinite_number_is_one_line_with_column_and_row(value, standardize):
    table = pa.table({"a": [1.0, 2.0, 3.0], "b": pa.array([1.0, 2.0, value])})
    what = "has no value in" if value is None or np.isnan(value) else f"holds {value} in"
    with pytest.raises(ValueError, match=f"column 'b' {what} row 3"):
        Preprocessor(standardize=standardize).fit(table).transform(table)
    for dtype in (np.float64, np.float32):
        array = np.array([[1.0, 2.0], [1.0, np.nan if value is None else value]], dtype)
        with pytest.raises(ValueError, match=f"column 'x1' {what} row 2"):
            Preprocessor(standardize=standardize).fit(array).transform(array)


@pytest.mark.parametrize(("shape", "rows"), [((0, 2), None), ((3, 0), None), ((3, 2), np.array([], int))])
def test_fitting_without_rows_or_columns_is_one_line(shape, rows):
    with pytest.raises(ValueError, match=r"nothing to learn from: . training rows of . columns"):
        Preprocessor().fit(np.zeros(shape), rows=rows)


def test_the_row_of_the_file_is_named_where_rows_are_chosen():
    X = np.zeros((10, 2))
    X[7, 1] = np.nan
    with pytest.raises(ValueError, match="column 'x1' has no value in row 8"):
        Preprocessor().fit(X, rows=np.array([3, 7, 1]))


def test_an_infinite_number_is_refused_when_imputing_too():
    X = np.array([[1.0], [np.nan], [np.inf]])
    with pytest.raises(ValueError, match="column 'x0' holds inf in row 3"):
        Preprocessor(missing="mean").fit(X)


def test_a_number_too_large_for_float32_is_refused():
    X = np.array([[1.0], [1e300]])
    with pytest.raises(ValueError, match=r"column 'x0' holds inf in row 2 .*float32"):
        Preprocessor(standardize=False).fit(X).transform(X)
    with pytest.raises(ValueError, match=r"column 'x0' reaches from 1 to 1e\+300, too far to standardise"):
        Preprocessor().fit(X)


@pytest.mark.parametrize("rule", ["mean", "median", "most_frequent"])
def test_a_column_without_any_value_cannot_be_imputed_by_a_statistic(rule):
    table = pa.table({"a": [1, 2], "b": pa.nulls(2)})
    with pytest.raises(ValueError, match="column 'b' holds no value in the training rows"):
        Preprocessor(missing=rule).fit(table)
    assert Preprocessor(missing=0).fit(table).transform(table)[:, 1].tolist() == [0, 0]


def test_a_missing_text_is_refused_or_filled_with_the_most_frequent():
    table = pa.table({"c": ["b", "a", "b", None]})
    with pytest.raises(ValueError, match="column 'c' has no value in row 4"):
        Preprocessor().fit(table).transform(table)
    X = through_json(Preprocessor(missing="mean").fit(table)).transform(table)
    np.testing.assert_array_equal(X, [[0, 1], [1, 0], [0, 1], [0, 1]])


def test_an_unseen_category_is_one_line_or_zeros_as_asked():
    training, new = pa.table({"c": ["a", "b"]}), pa.table({"c": ["a", "z"]})
    with pytest.raises(ValueError, match="column 'c' holds 'z' in row 2, unseen in training; it knew a, b"):
        Preprocessor().fit(training).transform(new)
    X = Preprocessor(unknown="ignore").fit(training).transform(new)
    np.testing.assert_array_equal(X, [[1, 0], [0, 0]])


def test_more_than_a_thousand_categories_are_refused():
    table = pa.table({"id": [f"n{i}" for i in range(1001)]})
    with pytest.raises(ValueError, match="column 'id' holds 1001 different texts"):
        Preprocessor().fit(table)


def test_a_column_of_dates_is_refused_with_what_to_do():
    import datetime

    with pytest.raises(ValueError, match=r"column 'd' is of type date32.*leave it out"):
        Preprocessor().fit(pa.table({"d": [datetime.date(2020, 1, 1)]}))


def test_text_where_training_had_numbers_is_refused():
    preprocessor = Preprocessor().fit(pa.table({"a": [1, 2]}))
    with pytest.raises(ValueError, match="column 'a' holds text; it was numeric in training"):
        preprocessor.transform(pa.table({"a": ["x", "y"]}))


@pytest.mark.parametrize("shape", [(5, 2), (5, 4), (5,), (5, 3, 1)])
def test_an_array_of_another_width_is_one_line(shape):
    preprocessor = Preprocessor().fit(np.arange(15.0).reshape(5, 3))
    with pytest.raises(ValueError, match="the model was trained on 3"):
        preprocessor.transform(np.zeros(shape))


def test_an_array_for_a_model_with_categorical_columns_is_one_line(table):
    preprocessor = Preprocessor().fit(table)
    with pytest.raises(ValueError, match=r"categorical columns \(town, member\); give a table"):
        preprocessor.transform(np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"missing": "meen"}, "unknown rule 'meen'.*did you mean 'mean'"),
        ({"missing": float("nan")}, "cannot be filled with nan"),
        ({"unknown": "ignor"}, "unknown rule 'ignor'.*did you mean 'ignore'"),
        ({"scale": 0.0, "standardize": False}, "scale is 0.0"),
        ({"scale": 0.5}, "scale 0.5 has no effect on standardised columns"),
    ],
)
def test_an_unknown_setting_is_one_line(settings, words):
    with pytest.raises(ValueError, match=words):
        Preprocessor(**settings)


@pytest.mark.parametrize("missing", [None, True, ["mean"]])
def test_a_rule_that_is_neither_text_nor_number_is_a_type_error(missing):
    with pytest.raises(TypeError, match="expected one of refuse, mean, median, most_frequent, or a number"):
        Preprocessor(missing=missing)


def test_transforming_before_fitting_is_one_line():
    with pytest.raises(ValueError, match="not fitted"):
        Preprocessor().transform(np.zeros((1, 1)))


# -- keeping


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 4)), elements=st.floats(-1e15, 1e15)),
    st.sampled_from(["refuse", "mean", "median", "most_frequent", 0.1]),
    st.booleans(),
)
def test_the_preprocessor_goes_through_json_to_the_bit(X, missing, standardize):
    preprocessor = Preprocessor(missing=missing, standardize=standardize).fit(X)
    again = through_json(preprocessor)
    assert again.to_dict() == preprocessor.to_dict()
    np.testing.assert_array_equal(again.transform(X), preprocessor.transform(X))
    assert np.isfinite(again.transform(X)).all()


def test_a_preprocessor_of_tables_goes_through_json(table):
    preprocessor = Preprocessor(missing="median").fit(table)
    again = through_json(preprocessor)
    assert again.to_dict() == preprocessor.to_dict()
    assert again.feature_names_out == preprocessor.feature_names_out
    np.testing.assert_array_equal(again.transform(table), preprocessor.transform(table))


@pytest.mark.parametrize("values", [{}, [], None, {"format": "pipeline"}])
def test_a_foreign_preprocessor_is_one_line(values):
    with pytest.raises(ValueError, match="not a preprocessor of gpumlp"):
        Preprocessor.from_dict(values)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"feature_names": ["age"]},
        {"feature_names": 5},
        {"kinds": ["numeric"] * 4},
        {"mean": [0.0]},
        {"mean": "zero"},
        {"std": [0.0] * 4},
        {"std": [float("inf")] * 4},
        {"categories": {}},
        {"categories": {"town": [], "member": []}},
        {"categories": {"town": [1], "member": [2]}},
        {"categories": []},
        {"category_fill": {}},
        {"missing": "never"},
        {"missing": None},
        {"standardize": None, "scale": "x"},
    ],
)
def test_a_damaged_preprocessor_is_one_line(table, change):
    values = Preprocessor(missing="mean").fit(table).to_dict()
    with pytest.raises(ValueError) as caught:
        Preprocessor.from_dict(values | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", Preprocessor().fit(np.zeros((1, 1))).to_dict())
def test_a_preprocessor_with_a_part_missing_is_one_line(table, key):
    values = Preprocessor().fit(table).to_dict()
    del values[key]
    with pytest.raises(ValueError, match="gpumlp"):
        Preprocessor.from_dict(values)


def test_a_stray_text_among_numbers_is_told_since_it_makes_the_column_categorical():
    numbers = [str(i) for i in range(20)]
    with pytest.warns(
        UserWarning, match=r"column 'age' holds '\?' among 20 different numbers, and so all of it"
    ):
        Preprocessor().fit(pa.table({"age": [*numbers, "?"] * 3}))
    for meant in (["1", "2", "none"] * 21, ["a", "b", "c"] * 21, numbers * 3):
        Preprocessor().fit(pa.table({"age": meant}))
