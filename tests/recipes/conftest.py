"""A tiny recipe: three parts that train for a moment."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpumlp.recipes import Recipe, Runner, load_recipe
from gpumlp.recipes.results import Results

RECIPE = """
title = "A tiny report"
source = "Two clusters, a network of three units."
version = {version}

[quick]
training.epochs = 2

[settings.base]
data = {{ source = "two_cluster_classification", settings = {{ n_train = 40, n_test = 20 }} }}
network = {{ hidden = [3], activation = "sigmoid" }}
training = {{ loss = "cross_entropy", epochs = 6, batch_size = 10, device = "cpu" }}
optimizer = {{ name = "sgd", lr = {lr} }}

[[parts]]
id = "one"
title = "One training"
base = "base"
figures = ["history"]
claims = [
  {{ what = "accuracy", value = "test.accuracy", published = 0.5, rule = {{ at_least = 0.1 }} }},
  {{ what = "loss", value = "train.loss", published = 9, rule = {{ at_least = 8.0 }}, fault = "It counts wrongly." }},
  {{ what = "epochs", value = "epochs", published = 5, unit = "epochs", rule = {{ at_most = 6 }}, quick = true }},
  {{ what = "f1", value = "test.f1", published = 0.9 }},
]

[[parts]]
id = "rates"
title = "Two rates"
kind = "sweep"
base = "base"
options = {{ grid = {{ "optimizer.lr" = [0.5, {other}] }} }}
figures = ["curves"]
claims = [
  {{ what = "loss by rate", value = "train.loss", published = "falls", rule = {{ order = "increasing" }} }},
]

[[parts]]
id = "sum"
title = "What both say"
kind = "python"
options = {{ function = "both" }}
needs = ["one", "rates"]
claims = [
  {{ what = "steps", values = ["steps", "one:steps"], published = [24, 24] }},
]
"""
PARTS = """
from pathlib import Path

def both(context):
    outcome = context.outcome()
    with Path(__file__).with_name("log.txt").open("a") as log:
        log.write("both\\n")
    outcome.values["steps"] = context.needed["one"].values["steps"]
    outcome.arrays["loss"] = context.needed["one"].arrays["loss"]
    outcome.notes.append("Read from both.")
    return outcome
"""


@pytest.fixture
def recipe_text() -> str:
    """The recipe, with {version}, {lr} and {other} to fill in."""
    return RECIPE


def _write(
    folder: Path, version: int = 1, lr: float = 0.3, other: float = 0.01, text: str = RECIPE
) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(text.format(version=version, lr=lr, other=other), encoding="utf-8")
    (folder / "parts.py").write_text(PARTS, encoding="utf-8")
    return load_recipe(folder)


@pytest.fixture
def write_recipe(tmp_path) -> Callable[..., Recipe]:
    """Write the recipe with settings changed, and load it: ``write_recipe(version=1, lr=..., other=..., text=...)``."""
    return lambda **settings: _write(tmp_path / "tiny", **settings)


@pytest.fixture(scope="package")
def finished(tmp_path_factory) -> Path:
    """A folder that holds the recipe, ``tiny``, and its results, ``out``."""
    folder = tmp_path_factory.mktemp("finished")
    runner = Runner(_write(folder / "tiny"), folder / "out")
    for part in runner.pending():
        assert not runner.run(part).error
    runner.write()
    return folder


@pytest.fixture
def done(finished, tmp_path, write_recipe) -> Runner:
    """The recipe, all parts of it run, in a folder of its own."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return Runner(write_recipe(), tmp_path / "out")


def _write_mnist(folder: Path, X: np.ndarray, y: np.ndarray, n_train: int) -> Path:
    """Write images (n, 784) of pixels from 0 to 1 as the four files of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", slice(0, n_train)), ("t10k", slice(n_train, None))):
        pixels, labels = np.rint(255 * X[rows]).astype(np.uint8), y[rows].astype(np.uint8)
        images = struct.pack(">IIII", 0x803, len(pixels), 28, 28) + pixels.tobytes()
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
        names = struct.pack(">II", 0x801, len(labels)) + labels.tobytes()
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(names, 1))
    return folder


@pytest.fixture(scope="session")
def write_mnist() -> Callable[..., Path]:
    """Write images as the files of MNIST: ``write_mnist(folder, X, y, n_train)``."""
    return _write_mnist


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory) -> Path:
    """A folder with made-up images in the form of MNIST: 640 to train on and 200 to test."""
    from gpumlp.workloads import _synthetic_digits

    data = _synthetic_digits(840)
    return _write_mnist(tmp_path_factory.mktemp("mnist"), data.X, data.y, 640)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory, small_mnist) -> Callable[[str], Results]:
    """Run a report quickly, MNIST being few made-up images: ``quick_run("mlpnn")`` returns its results."""

    def run(name: str) -> Results:
        folder = tmp_path_factory.mktemp("out")
        runner = Runner(load_recipe(name), folder, quick=True, device="cpu", data_dir=str(small_mnist))
        for part in runner.pending():
            record = runner.run(part)
            assert not record.error, record.error
        return runner.write()

    return run
