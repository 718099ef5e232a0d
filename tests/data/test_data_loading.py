"""The one entry for every data set."""

import subprocess
import sys

import numpy as np
import pytest

from gpumlp.data import dataset_names, load, sdm274_classification


@pytest.mark.parametrize("name", [name for name in dataset_names() if name != "mnist"])
def test_every_name_gives_its_data_set(name):
    data = load(name)
    assert data.name == name
    assert data.y is not None


def test_names_are_forgiven_case_and_hyphens():
    assert load("Breast-Cancer").name == "breast_cancer"


def test_a_synthetic_set_takes_its_settings_and_a_seed():
    data = load("polar_clusters", n_classes=5, sigma=0.05, seed=3)
    assert data.classes == list("01234")
    assert not np.array_equal(data.features, load("polar_clusters", n_classes=5, sigma=0.05, seed=4).features)


def test_a_set_without_a_seed_given_keeps_its_own():
    np.testing.assert_array_equal(
        load("sdm274_classification").features, sdm274_classification(seed=17).features
    )


def test_a_path_gives_the_file(tmp_path):
    path = tmp_path / "iris.csv"  # a name of a bundled set with an ending is a file
    path.write_text("a,y\n1,0.5\n2,1.5\n")
    for given in (path, str(path)):
        assert load(given, target="y").y.tolist() == [0.5, 1.5]
    assert load(path, target="a", task="classification", drop=[]).classes == ["1", "2"]


def test_mnist_is_looked_for_in_data_dir(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        load("mnist", data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load("irsi"), "unknown data set 'irsi'; did you mean 'iris'.*or a path that ends in .csv"),
        (lambda: load("polar"), "unknown data set 'polar'"),
        (
            lambda: load("a.txt", target="y"),
            "a.txt ends in '.txt'; .*CSV, Parquet, NPY and NPZ files can be read",
        ),
        (lambda: load("missing.csv", target="y"), "there is no file missing.csv"),
        (lambda: load("folder/missing", target="y"), "has no ending"),
        (lambda: load("iris", target="species"), "target is given as 'species', but .* has its own"),
        (lambda: load("iris", task="regression"), "task is given as 'regression', but .* has its own"),
        (lambda: load("iris", sigma=1), "unknown setting 'sigma' of data set 'iris'; it takes none"),
        (lambda: load("polar_clusters", sgima=1), "unknown setting 'sgima'.*did you mean 'sigma'"),
        (lambda: load("a.csv", delimeter=";"), "unknown setting 'delimeter'.*did you mean 'delimiter'"),
    ],
)
def test_a_mistake_is_one_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_importing_the_data_package_imports_nothing_heavier_than_numpy():
    code = (
        "import sys, gpumlp.data; "
        "print(sorted({'pyarrow', 'sklearn', 'scipy', 'pandas', 'numba', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
