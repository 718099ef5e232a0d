"""A training file and a test file become one set with its own split."""

import numpy as np
import pytest

from gpumlp.config import complete_config, read_config
from gpumlp.data import load_file
from gpumlp.data.pairs import join
from gpumlp.experiment import set_up

TRAIN = "a,b,class\n1,2,x\n3,4,y\n5,6,x\n"
TEST = "b,class,a\n20,y,10\n40,x,30.5\n"


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def pair(write, train=TRAIN, test=TEST):
    first = load_file(write("train.csv", train), target="class")
    return first, load_file(write("test.csv", test), target="class", task=first.task, classes=first.classes)


def test_the_rows_of_the_first_are_for_training_and_columns_go_by_name(write):
    data = join(*pair(write))
    assert data.n_train == 3
    assert data.feature_names == ["a", "b"]
    assert data.classes == ["x", "y"]
    np.testing.assert_array_equal(data.y, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(data.features.column("a").to_numpy(), [1, 3, 5, 10, 30.5])
    np.testing.assert_array_equal(data.features.column("b").to_numpy(), [2, 4, 6, 20, 40])


def test_arrays_go_together_too(tmp_path):
    for name, rows in (("train", 4), ("test", 3)):
        np.savez(
            tmp_path / f"{name}.npz", X=np.arange(2.0 * rows).reshape(rows, 2), y=np.linspace(0, 1, rows)
        )
    data = join(*(load_file(tmp_path / f"{name}.npz") for name in ("train", "test")))
    assert data.features.shape == (7, 2)
    assert data.n_train == 4
    assert data.task == "regression"


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("a,c,class\n1,2,x\n1,2,y\n", "has the columns a, c; train, which it tests, has a, b"),
        ("a,b,class\nlow,2,x\nhigh,2,y\n", "do not go together"),
    ],
)
def test_files_that_do_not_go_together_are_refused(write, test, message):
    with pytest.raises(ValueError, match=message):
        join(*pair(write, test=test))


def test_a_table_and_an_array_do_not_go_together(write, tmp_path):
    table = load_file(write("train.csv", "x0,x1,y\n1,2,0.5\n3,4,0.25\n"), target="y")
    np.savez(tmp_path / "test.npz", X=np.ones((2, 2)), y=np.ones(2) / 3)
    with pytest.raises(ValueError, match="a table and an array"):
        join(table, load_file(tmp_path / "test.npz"))


def config_of(write, data):
    return complete_config(read_config(write("config.toml", f"[data]\n{data}\n[network]\nhidden = [2]\n")))


def test_a_config_trains_on_one_file_and_tests_on_the_other(write):
    pair(write)
    config = config_of(write, 'source = "train.csv"\ntest_source = "test.csv"\ntarget = "class"')
    experiment = set_up(config)
    assert experiment.prepared.n_train == 3
    assert len(experiment.prepared.test_rows) == 2
    np.testing.assert_array_equal(experiment.y, [0, 1, 0, 1, 0])
    np.testing.assert_allclose(experiment.prepared.X_train.mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('source = "iris"\ntest_source = "test.csv"', "'iris' is a data set: leave it out"),
        (
            'source = "train.csv"\ntest_source = "test.csv"\ntarget = "class"\ntest_size = 0.2',
            "leave one of them out",
        ),
        (
            'source = "train.csv"\ntest_source = "tset.csv"\ntarget = "class"',
            r"data\.test_source: .*tset\.csv",
        ),
    ],
)
def test_a_test_file_that_does_not_fit_is_refused(write, data, message):
    pair(write)
    with pytest.raises(ValueError, match=message):
        set_up(config_of(write, data))
