"""CSV, Parquet, NPY and NPZ files, and the one line that each mistake ends in."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpumlp.data import Preprocessor, features_for_prediction, load_file, prepare, read_features

CSV = "age,town,income,member,class\n20,Rome,1.5,true,yes\n30,Oslo,2.5,false,no\n40,Rome,0.5,true,yes\n"


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def as_parquet(csv_path):
    from pyarrow import csv

    path = csv_path.with_suffix(".parquet")
    pq.write_table(csv.read_csv(csv_path), path)
    return path


@pytest.fixture(params=["csv", "parquet"])
def people(request, write):
    path = write(CSV, "people.csv")
    return path if request.param == "csv" else as_parquet(path)


# -- tables


def test_a_table_with_a_text_target_is_a_classification(people):
    data = load_file(people, target="class")
    assert data.name == "people"
    assert data.task == "classification"
    assert data.classes == ["no", "yes"]
    assert data.y.tolist() == [1, 0, 1]
    assert data.feature_names == ["age", "town", "income", "member"]
    assert data.target_names == ["class"]


def test_a_table_with_a_floating_target_is_a_regression(people):
    data = load_file(people, target="income")
    assert data.task == "regression"
    assert data.y.tolist() == [1.5, 2.5, 0.5]
    assert data.y.dtype == np.float32


def test_several_targets_are_a_regression_with_one_column_each(people):
    data = load_file(people, target=["income", "age"])
    assert data.y.tolist() == [[1.5, 20], [2.5, 30], [0.5, 40]]
    assert data.target_names == ["income", "age"]
    with pytest.raises(ValueError, match="classification takes one target column; got income, age"):
        load_file(people, target=["income", "age"], task="classification")


def test_the_task_that_is_asked_for_comes_before_the_rule(people):
    assert load_file(people, target="age").task == "regression"
    assert load_file(people, target="age", task="classification").classes == ["20", "30", "40"]
    assert load_file(people, target="member", task="regression").y.tolist() == [1, 0, 1]


def test_a_target_can_be_given_as_an_index(people):
    assert load_file(people, target=-1).target_names == ["class"]
    assert load_file(people, target="2").target_names == ["income"]


def test_a_column_whose_name_is_a_number_is_taken_by_name(write):
    data = load_file(write("5,1,0\n0.5,1.5,2.5\n0.6,1.6,2.6\n"), target=1)
    assert data.target_names == ["1"]
    np.testing.assert_allclose(data.y, [1.5, 1.6])


def test_columns_can_be_left_out(people):
    assert load_file(people, target="class", drop=["town", "age"]).feature_names == ["income", "member"]
    with pytest.raises(ValueError, match="has no column 'twon' to leave out; did you mean 'town'"):
        load_file(people, target="class", drop=["twon"])


def test_a_file_goes_all_the_way_to_a_float32_matrix(people):
    prepared = prepare(load_file(people, target="class"), test_size=0, unknown="ignore")
    assert prepared.X.shape == (3, 6)
    assert prepared.X.dtype == np.float32


def test_empty_fields_and_na_are_missing_values(write):
    path = write("a,b,y\n1,u,0.5\n,NA,1.5\nnan,,2.5\n")
    data = load_file(path, target="y")
    assert data.features.column("a").null_count == data.features.column("b").null_count == 2
    with pytest.raises(ValueError, match="column 'a' has no value in row 2"):
        prepare(data, test_size=0)  # the first row of the file, whatever the shuffle
    assert prepare(data, test_size=0, missing="mean").X.shape == (3, 2)


def test_quoted_fields_may_hold_commas_and_line_ends(write):
    data = load_file(write('a,y\n"x, 1",0.5\n"two\nlines",1.5\n'), target="y")
    assert data.features.column("a").to_pylist() == ["x, 1", "two\nlines"]


def test_another_delimiter_can_be_given(write):
    path = write("a;y\n1,5;u\n2;v\n")
    assert load_file(path, target="y", delimiter=";").classes == ["u", "v"]
    with pytest.raises(ValueError, match="has one column only, 'a;y'; give delimiter=';'"):
        load_file(write("a;y\n1;u\n2;v\n"), target="y")
    with pytest.raises(ValueError, match="expected one character"):
        load_file(path, target="y", delimiter=";;")


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(write):
    data = load_file(write(b"\xef\xbb\xbfa,y\r\n1,u\r\n2,v\r\n"), target="y")
    assert data.feature_names == ["a"]
    assert data.classes == ["u", "v"]


def test_the_row_index_of_pandas_is_no_feature(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"a": [1.0, 2.0], "y": [0.5, 1.5], "__index_level_0__": [7, 8]}), path)
    assert load_file(path, target="y").feature_names == ["a"]


# -- arrays


@pytest.mark.parametrize(("target", "column"), [(-1, 3), (0, 0), ("x1", 1), ("2", 2)])
def test_an_npy_file_has_columns_x0_to_xn_and_a_target_by_index_or_name(tmp_path, target, column):
    array = np.random.default_rng(0).normal(size=(7, 4))
    np.save(tmp_path / "a.npy", array)
    data = load_file(tmp_path / "a.npy", target=target)
    assert data.target_names == [f"x{column}"]
    np.testing.assert_allclose(data.y, array[:, column], rtol=1e-6)
    np.testing.assert_allclose(data.features, np.delete(array, column, axis=1), rtol=1e-6)
    assert f"x{column}" not in data.feature_names


def test_an_npy_file_stays_on_the_disk_until_it_is_prepared(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(30.0).reshape(10, 3))
    data = load_file(tmp_path / "a.npy", target=-1)
    assert isinstance(data.features, np.memmap)
    assert type(prepare(data).X) is np.ndarray


def test_whole_numbers_of_an_array_are_classes_as_in_a_table(tmp_path):
    array = np.random.default_rng(0).integers(0, 3, (50, 4))
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", array)
    for name in ("a.npy", "a.npz"):
        data = load_file(tmp_path / name, target=-1)
        assert data.classes == ["0", "1", "2"]
        np.testing.assert_array_equal(data.y, array[:, -1])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, ">f8", np.int16, bool])
def test_an_npz_file_holds_X_and_y(tmp_path, save, order, dtype):
    X = np.asarray(np.random.default_rng(0).normal(size=(6, 3)) * 50, dtype=dtype, order=order)
    save(tmp_path / "d.npz", X=X, y=np.array(["u", "v", "u", "w", "v", "w"]))
    data = load_file(tmp_path / "d.npz")
    np.testing.assert_array_equal(data.features, X.astype(np.float32))
    assert data.features.dtype == np.float32
    assert data.classes == ["u", "v", "w"]
    assert data.target_names == ["y"]


def test_an_npz_file_may_hold_images_and_several_targets(tmp_path):
    X, y = np.random.default_rng(0).normal(size=(5, 4, 3)), np.arange(10.0).reshape(5, 2)
    np.savez(tmp_path / "d.npz", X=X, y=y, other=y[:, :1])
    data = load_file(tmp_path / "d.npz")
    np.testing.assert_allclose(data.features, X.reshape(5, 12), rtol=1e-6)
    np.testing.assert_array_equal(data.y, y)
    assert data.target_names == ["y0", "y1"]
    assert load_file(tmp_path / "d.npz", target="other").y.tolist() == y[:, 0].tolist()


# -- to predict and to evaluate


def test_features_are_read_with_or_without_the_target_in_the_file(people, write):
    for target in (None, "class"):
        data = read_features(people, target=target)
        assert data.y is None
        assert ("class" in data.feature_names) == (target is None)
    without = write("town,income,age,member\nOslo,9,50,false\n", "new.csv")
    assert read_features(without, target="class").feature_names == ["town", "income", "age", "member"]


def test_a_model_predicts_from_a_file_with_columns_in_another_order(people, write):
    preprocessor = prepare(load_file(people, target="class"), test_size=0).preprocessor
    new = write("class,town,income,age,member\nyes,Oslo,2.5,30,False\n", "new.csv")
    old = preprocessor.transform(load_file(people, target="class").features)[1]
    X = features_for_prediction(preprocessor, read_features(new, preprocessor=preprocessor))
    np.testing.assert_array_equal(X[0], old)


def test_a_text_column_of_training_is_read_as_text_from_a_new_file(write):
    training = load_file(write("code,y\n007,0.5\n7,1.5\nx,2.5\n"), target="y")
    preprocessor = prepare(training, test_size=0).preprocessor
    new = write("code\n007\n7\n", "new.csv")
    X = features_for_prediction(preprocessor, read_features(new, preprocessor=preprocessor))
    np.testing.assert_array_equal(X, [[1, 0, 0], [0, 1, 0]])


def test_the_target_column_of_an_npy_file_is_left_out_where_it_is_there(tmp_path):
    array = np.random.default_rng(0).normal(size=(20, 4))
    np.save(tmp_path / "train.npy", array)
    for target in (1, -1, "x0"):
        data = load_file(tmp_path / "train.npy", target=target)
        preprocessor = prepare(data).preprocessor
        np.save(tmp_path / "new.npy", np.array(data.features))
        for name in ("train.npy", "new.npy"):
            new = read_features(tmp_path / name, target=target, preprocessor=preprocessor)
            np.testing.assert_array_equal(
                features_for_prediction(preprocessor, new), preprocessor.transform(np.array(data.features))
            )


def test_an_array_of_another_width_is_refused_at_predict(tmp_path):
    np.save(tmp_path / "new.npy", np.zeros((2, 6)))
    preprocessor = Preprocessor().fit(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="the array has 6 features; the model was trained on 4"):
        features_for_prediction(preprocessor, read_features(tmp_path / "new.npy", target=-1))


def test_the_features_of_an_npz_file_are_read_without_its_target(tmp_path):
    X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    np.savez(tmp_path / "both.npz", X=X, y=np.zeros(4))
    np.savez(tmp_path / "only.npz", X)
    for name in ("both.npz", "only.npz"):
        np.testing.assert_array_equal(read_features(tmp_path / name).features, X)


def test_labels_are_coded_by_the_classes_of_the_model(write):
    path = write("a,y\n1,no\n2,no\n")
    data = load_file(path, target="y", classes=["maybe", "no", "yes"])
    assert data.y.tolist() == [1, 1]  # one class alone is enough to evaluate on
    assert data.classes == ["maybe", "no", "yes"]
    with pytest.raises(ValueError, match="labels unseen in training: 'no'; the model knows a, b"):
        load_file(path, target="y", classes=["a", "b"])


# -- bad input


@pytest.mark.parametrize("read", [load_file, read_features])
@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.npy", "data.npz"])
def test_a_missing_an_empty_and_a_folder_for_a_file_are_one_line(read, name, tmp_path):
    path = tmp_path / name
    with pytest.raises(ValueError, match="there is no file"):
        read(path, target="y")
    path.touch()
    with pytest.raises(ValueError, match="is empty; expected"):
        read(path, target="y")
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        read(path, target="y")


def test_a_missing_file_is_told_with_the_nearest_name_beside_it(people):
    name = people.name.replace("people", "peopel")
    with pytest.raises(ValueError, match=f"there is no file .*{name}; did you mean 'people"):
        load_file(people.parent / name, target="class")


@pytest.mark.parametrize("name", ["data.xls", "data", "data.cvs"])
def test_an_unknown_ending_is_one_line(write, name):
    with pytest.raises(ValueError, match="CSV, Parquet, NPY and NPZ files can be read"):
        load_file(write("a,b\n1,2\n", name), target="b")


@pytest.mark.parametrize("name", ["data.parquet", "data.npy", "data.npz"])
@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\x80\x04K\x01.", b"\x00" * 100])
def test_a_foreign_file_is_one_line(write, name, content):
    with pytest.raises(ValueError, match="cannot be read as") as caught:
        load_file(write(content, name), target=-1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["data.parquet", "data.npy", "data.npz", "packed.npz"])
@pytest.mark.parametrize("keep", [0.3, 0.8, 0.99])
def test_a_file_that_is_cut_short_is_one_line(tmp_path, name, keep):
    path, X = tmp_path / name, np.random.default_rng(0).normal(size=(100, 3))
    if name.endswith("parquet"):
        pq.write_table(pa.table({f"x{j}": X[:, j] for j in range(3)}), path)
    elif name == "data.npy":
        np.save(path, X)
    else:
        (np.savez if name == "data.npz" else np.savez_compressed)(path, X=X, y=X[:, 0])
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load_file(path, target="y" if name.endswith("npz") else -1)
    assert "\n" not in str(caught.value)


def test_a_changed_byte_in_an_npz_file_is_seen(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, X=np.ones((100, 3)), y=np.arange(100.0))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="the array 'X' cannot be read: Bad CRC-32"):
        load_file(path)


@pytest.mark.parametrize("content", ["\n", "\n\n"])
def test_a_csv_file_of_blank_lines_is_empty(write, content):
    with pytest.raises(ValueError, match="is empty; expected a header row"):
        load_file(write(content), target="y")


def test_a_header_alone_is_one_line(write):
    with pytest.raises(ValueError, match="has a header and no rows below it"):
        load_file(write("a,y\n"), target="y")


@pytest.mark.parametrize(
    ("row", "got"), [("3\n", 1), ("3,4,5\n", 3), ("3,4,\n", 3)], ids=["short", "long", "comma at the end"]
)
@pytest.mark.parametrize("above", [1, 200_000], ids=["small", "many blocks"])
def test_a_ragged_csv_file_is_one_line_with_the_row(write, row, got, above):
    path = write("a,y\n" + "1,2\n" * above + row + "1,2\n")
    words = f"is ragged: row {above + 2} .the header is row 1. has {got} fields where the header has 2"
    with pytest.raises(ValueError, match=words) as caught:
        load_file(path, target="y")
    assert "\n" not in str(caught.value)


def test_a_target_column_that_is_not_there_is_told_with_the_nearest(people):
    with pytest.raises(ValueError, match="has no target column 'clas'; did you mean 'class'"):
        load_file(people, target="clas")
    with pytest.raises(ValueError, match="has no target column 'CLASS'; did you mean 'class'"):
        load_file(people, target="CLASS")
    with pytest.raises(ValueError, match="has no target column 'zzz'; expected one of age, town, income"):
        load_file(people, target="zzz")
    with pytest.raises(ValueError, match="has no target column 5; expected a name, or an index of -5 to 4"):
        load_file(people, target=5)
    with pytest.raises(ValueError, match="name a column twice"):
        load_file(people, target=["age", "age"])


@pytest.mark.parametrize("target", [None, "", []])
def test_no_target_at_all_is_one_line_with_the_columns(people, target):
    with pytest.raises(ValueError, match="needs a target column; name one of age, town"):
        load_file(people, target=target)


def test_two_columns_of_one_name_are_one_line(write, tmp_path):
    with pytest.raises(ValueError, match="has more than one column called 'a'"):
        load_file(write("a,a,y\n1,2,3\n"), target="y")
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 3, ["a", "a", "y"]), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="has more than one column called 'a'"):
        load_file(tmp_path / "d.parquet", target="y")


@pytest.mark.parametrize(
    "content",
    ["a,é\n1,2\n".encode("latin-1"), "a,y\né,2\n".encode("latin-1"), "a,y\n1,2\n".encode("utf-16")],
    ids=["header", "field", "utf-16"],
)
def test_a_csv_file_in_another_encoding_is_one_line(write, content):
    with pytest.raises(ValueError, match=r"(is not UTF-8|is in UTF-16).*save it as UTF-8"):
        load_file(write(content), target="y")


def test_another_encoding_is_seen_in_a_column_read_as_text_too(write):
    preprocessor = Preprocessor().fit(pa.table({"a": ["u", "v"]}))
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_features(write("a\né\n".encode("latin-1")), preprocessor=preprocessor)


def test_one_class_only_is_one_line(write):
    with pytest.raises(ValueError, match="target 'y' holds one class only"):
        load_file(write("a,y\n1,u\n2,u\n"), target="y")


def test_a_missing_target_value_is_one_line_with_its_row(write):
    with pytest.raises(ValueError, match="target 'y' has no value in row 2"):
        load_file(write("a,y\n1,u\n2,\n3,v\n"), target="y")


def test_a_file_with_nothing_beside_the_target_is_one_line(write):
    with pytest.raises(ValueError, match="has no column left for features beside y"):
        load_file(write("y\n1\n2\n"), target="y")


def test_an_unknown_task_is_one_line(people):
    with pytest.raises(ValueError, match="unknown task 'classify'; did you mean 'classification'"):
        load_file(people, target="class", task="classify")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_python_objects_are_never_unpickled(tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was read",))

    objects = np.array([[Trap()]], dtype=object)
    if name == "a.npy":
        np.save(tmp_path / name, objects, allow_pickle=True)
    else:
        np.savez(tmp_path / name, X=objects, y=objects)
    with pytest.raises(ValueError, match="never reads pickle"):
        load_file(tmp_path / name, target=-1 if name == "a.npy" else "y")


@pytest.mark.parametrize("array", [np.array([["a"]]), np.zeros((2, 2), complex), np.zeros(3, "i4,f8")])
def test_an_array_of_anything_but_real_numbers_is_one_line(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", X=array, y=np.zeros(len(array)))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match="expected real numbers"):
            read_features(tmp_path / name)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0)])
def test_an_array_without_rows_or_columns_is_one_line(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(ValueError, match=r"has shape .*; expected \(rows, features\)|cut short"):
        read_features(tmp_path / "a.npy")


def test_arrays_of_an_npz_file_that_do_not_go_together_are_one_line(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, X=np.zeros((3, 2)), y=np.zeros(4))
    with pytest.raises(ValueError, match="X has 3 rows and y has 4; give one target for each row"):
        load_file(path)
    with pytest.raises(ValueError, match="has no target array yy; did you mean 'y'"):
        load_file(path, target="yy")
    with pytest.raises(ValueError, match="drop is for columns of a table"):
        load_file(path, drop=["x0"])
    np.savez(path, a=np.zeros((3, 2)), b=np.zeros(3))
    with pytest.raises(ValueError, match="holds the arrays a, b; expected X and y, or one array"):
        load_file(path)
    np.savez(path, X=np.zeros((3, 2)), y=np.zeros((3, 1, 2)))
    with pytest.raises(ValueError, match=r"has shape \(3, 1, 2\); expected \(rows,\) or \(rows, k\)"):
        load_file(path)
    np.savez(path)
    with pytest.raises(ValueError, match="holds no arrays; expected X and y"):
        load_file(path)
