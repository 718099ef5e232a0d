"""The command line: each mistake ends in one line and an exit code, and is an error from Python too."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import cli
from gpumlp.commands.predict import check_output
from gpumlp.config import apply_settings, complete_config, read_config, shipped_config
from gpumlp.experiment import set_up
from gpumlp.run import RunFolder, open_run
from tests.commands.people import QUICK, names, table


def config_of(*settings: str, source: str = "iris", **data: Any) -> dict[str, Any]:
    config: dict[str, Any] = {**shipped_config("table"), "data": {"source": source, **data}}
    apply_settings(config, ["training.epochs=1", *settings])
    return complete_config(config)


def changed(row: int, column: int, value: str) -> Callable[[list[list[str]]], Any]:
    def change(rows: list[list[str]]) -> None:
        rows[row][column] = value

    return change


def one_class(rows: list[list[str]]) -> None:
    for row in rows[1:]:
        row[2] = "old"


def ragged(rows: list[list[str]]) -> None:
    rows[3].append("more")


def without_city(rows: list[list[str]]) -> None:
    for row in rows:
        del row[1]


X = np.zeros((6, 2))
Y = np.array([0, 1] * 3)


def fit(X: Any = X, y: Any = Y, lr: float = 0.1, **settings: Any) -> None:
    network = gm.Sequential(gm.Linear(2, 2))
    trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(lr=lr))
    trainer.fit(X, y, **{"epochs": 1, "progress": False, **settings})


# name -> (arguments, what the line says, the same from Python). {runs} is the folder of the runs.
MISTAKES: dict[str, tuple[list[str], str, Callable[[Path], Any]]] = {
    "unknown key": (
        ["train", "iris", "--set", "training.epoch=3"],
        r"unknown key training\.epoch; did you mean 'epochs'\?",
        lambda runs: config_of("training.epoch=3"),
    ),
    "unknown value": (
        ["train", "iris", "--set", "optimizer.name=adamm"],
        r"optimizer\.name: unknown optimizer 'adamm'; did you mean 'adam'\?",
        lambda runs: config_of("optimizer.name=adamm"),
    ),
    "unknown config": (["train", "dmo"], "did you mean 'demo'", lambda runs: set_up(config_of(source="dmo"))),
    "missing config": (["train", "no.toml"], "no config file no.toml", lambda runs: read_config("no.toml")),
    "missing file": (
        ["train", "poeple.csv", "--target", "group"],
        r"there is no file .*; did you mean 'people\.csv'\?",
        lambda runs: gm.data.load("poeple.csv", target="group"),
    ),
    "empty file": (
        ["train", "empty.csv", "--target", "group"],
        "empty.csv is empty; expected",
        lambda runs: gm.data.load("empty.csv", target="group"),
    ),
    "ragged file": (
        ["train", "ragged.csv", "--target", "group"],
        r"ragged: row 4 .* has 5 fields where the header has 4; mend",
        lambda runs: gm.data.load("ragged.csv", target="group"),
    ),
    "no target": (
        ["train", "people.csv"],
        "needs a target column; name one of age, city, group, spend",
        lambda runs: gm.data.load("people.csv"),
    ),
    "target not found": (
        ["train", "people.csv", "--target", "groop"],
        r"no target column 'groop'; did you mean 'group'\?",
        lambda runs: gm.data.load("people.csv", target="groop"),
    ),
    "one class": (
        ["train", "one.csv", "--target", "group"],
        r"one class only \('old'\); classification needs two or more",
        lambda runs: fit(y=np.zeros(6, dtype=int)),
    ),
    "missing value": (
        ["train", "missing.csv", "--target", "group"],
        r"column 'age' has no value in row 4 .*--set data\.missing=mean",
        lambda runs: fit(X=np.full((6, 2), np.nan)),
    ),
    "infinite value": (
        ["train", "infinite.csv", "--target", "group"],
        "column 'age' holds inf in row 4",
        lambda runs: fit(X=np.full((6, 2), np.inf)),
    ),
    "missing target": (
        ["train", "unlabelled.csv", "--target", "spend"],
        "target 'spend' has no value in row 4",
        lambda runs: fit(y=np.array([0, 1, np.nan, 1, 0, 1])),
    ),
    "infinite target": (
        ["train", "endless.csv", "--target", "spend"],
        "target 'spend' holds inf in row 4",
        lambda runs: fit(y=np.array([0, 1, np.inf, 1, 0, 1])),
    ),
    "different lengths": (
        ["train", "long.npz"],
        "X has 6 rows and y has 5; give one target for each row",
        lambda runs: fit(y=Y[:5]),
    ),
    "wrong feature count": (
        ["predict", "{runs}/arrays", "wide.npy", "--out", "p.csv"],
        "the array has 7 features; the model was trained on 3",
        lambda runs: open_run(runs / "arrays")[0].predict(np.zeros((3, 7))),
    ),
    "named columns missing": (
        ["predict", "{runs}/groups", "nocity.csv", "--out", "p.csv"],
        "lacks columns that the model was trained on: city",
        lambda runs: open_run(runs / "groups")[0].predict(gm.data.read_features("nocity.csv")),
    ),
    "unseen labels": (
        ["evaluate", "{runs}/groups", "unseen.csv"],
        "labels unseen in training: 'ancient'; the model knows old, young",
        lambda runs: gm.data.load("unseen.csv", target="group", classes=["old", "young"]),
    ),
    "batch size 0": (
        ["train", "iris", "--set", "training.batch_size=0"],
        "training.batch_size is 0; expected a whole number of at least 1",
        lambda runs: fit(batch_size=0),
    ),
    "negative rate": (
        ["train", "iris", "--set", "optimizer.lr=-0.1"],
        "optimizer.lr: lr is -0.1; expected a finite number",
        lambda runs: fit(lr=-0.1),
    ),
    "rate not finite": (
        ["train", "iris", "--set", "optimizer.lr=nan"],
        "optimizer.lr: lr is nan; expected a finite number",
        lambda runs: fit(lr=float("nan")),
    ),
    "widths that do not chain": (
        ["train", "iris", "--set", "network.layers=[{name='linear',out_features=5},{name='linear',in_features=6}]"],
        "network.layers: layer 1, .* takes 6 features, but layer 0, .* gives 5; make the widths equal",
        lambda runs: gm.Sequential(gm.Linear(4, 5), gm.Linear(6, 3)),
    ),
    "no such GPU": (
        ["train", "iris", "--device", "gpu:9"],
        "training.device: device 'gpu:9' was asked for, but ",
        lambda runs: gm.get_backend("gpu:9"),
    ),
    "no such GPU to predict on": (
        ["evaluate", "{runs}/groups", "people.csv", "--device", "gpu:9"],
        "device 'gpu:9' was asked for, but ",
        lambda runs: open_run(runs / "groups", "gpu:9"),
    ),
    "output folder exists": (
        ["train", "iris", "--out", "{runs}/groups"],
        "output folder .* holds a finished run; give another one with --out",
        lambda runs: RunFolder(runs / "groups").create({}),
    ),
    "truncated model": (
        ["evaluate", "cut.safetensors", "people.csv"],
        "'cut.safetensors' is truncated",
        lambda runs: gm.load_model("cut.safetensors"),
    ),
    "foreign model": (
        ["evaluate", "foreign.safetensors", "people.csv"],
        "not one that gpumlp saved",
        lambda runs: gm.load_model("foreign.safetensors"),
    ),
    "no model at all": (
        ["evaluate", "people.csv", "people.csv"],
        "not a safetensors file",
        lambda runs: gm.load_model("people.csv"),
    ),
    "no run": (["evaluate", "none", "people.csv"], "there is no run folder none", lambda runs: open_run("none")),
    "no data set": (
        ["train", "iris", "--set", "data.source=irisis"],
        "unknown data set 'irisis'; did you mean 'iris'",
        lambda runs: gm.data.load("irisis"),
    ),
    "MNIST not there": (
        ["train", "mnist", "--data-dir", "nowhere"],
        "there is no folder .*nowhere",
        lambda runs: gm.data.load("mnist", data_dir="nowhere"),
    ),
    "early stopping on what is not measured": (
        ["train", "iris", "--set", "training.early_stopping.monitor=val_acuracy"],
        r"training\.early_stopping\.monitor is 'val_acuracy', .*did you mean 'val_accuracy'\?",
        lambda runs: config_of("training.early_stopping.monitor=val_loss", "training.validation_split=0"),
    ),
    "plateau of what is not measured": (
        ["train", "iris", "--set", "optimizer.lr={name='reduce_on_plateau', lr=0.1, monitor='val_x'}"],
        "monitors 'val_x', which is not measured",
        lambda runs: set_up(config_of("optimizer.lr={name='reduce_on_plateau',lr=0.1,monitor='v'}")).fit(False),
    ),
    "warm-up longer than the training": (
        ["train", "iris", "--set", "optimizer.lr={name='cosine', lr=0.1, warmup=500}"],
        "optimizer.lr: the warm-up has",
        lambda runs: set_up(config_of("optimizer.lr={name='cosine',lr=0.1,warmup=500}")),
    ),
    "foreign ending of predictions": (
        ["predict", "{runs}/groups", "people.csv", "--out", "p.txt"],
        "ends in .csv, .parquet, .npy",
        lambda runs: check_output(Path("p"), Path("d")),
    ),
    "predictions over the data": (
        ["predict", "{runs}/groups", "people.csv", "--out", "people.csv"],
        "the data themselves; give another file",
        lambda runs: check_output(Path("people.csv"), Path("people.csv")),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(runs) -> Path:
    """The folder of `runs`, with a run on an array of 3 features too, `arrays`."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 4))
    np.save(runs / "values.npy", values)
    arguments = [
        "train",
        str(runs / "values.npy"),
        "--target",
        "x3",
        "--out",
        str(runs / "arrays"),
        "--quiet",
    ]
    assert cli.main([*arguments, *QUICK]) == 0
    return runs


@pytest.fixture
def mistaken(here, trained) -> Path:
    """A working folder with files that hold mistakes; return that of the runs."""
    from safetensors.numpy import save_file

    (here / "empty.csv").write_text("")
    table(here, "ragged.csv", ragged)
    table(here, "one.csv", one_class)
    table(here, "missing.csv", changed(4, 0, ""))
    table(here, "infinite.csv", changed(4, 0, "inf"))
    table(here, "unlabelled.csv", changed(4, 3, ""))
    table(here, "endless.csv", changed(4, 3, "inf"))
    table(here, "nocity.csv", without_city)
    table(here, "unseen.csv", changed(4, 2, "ancient"))
    np.savez(here / "long.npz", X=X, y=Y[:5])
    np.save(here / "wide.npy", np.zeros((3, 7)))
    model = (trained / "groups" / "model.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(model[:200])
    save_file({"weight": np.zeros(3)}, here / "foreign.safetensors")
    return trained


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_nothing(mistaken, mistake, capsys):
    arguments, said, _ = MISTAKES[mistake]
    arguments = [argument.replace("{runs}", str(mistaken)) for argument in arguments]
    before = names(Path()), names(mistaken), (Path("people.csv").read_bytes())
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpumlp: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert re.search(said, err), err
    assert (names(Path()), names(mistaken), (Path("people.csv").read_bytes())) == before


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_value_or_type_error_from_python(mistaken, mistake):
    with pytest.raises((ValueError, TypeError)) as raised:
        MISTAKES[mistake][2](mistaken)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train"],
        ["train", "iris", "--epochs", "3"],
        ["train", "iris", "--set"],
        ["train", "iris", "--set", "x"],
        ["train", "iris", "more"],
        ["evaluate"],
        ["predict", "run", "data.csv"],
        ["train", "iris", "--resume", "run"],
        ["train", "--resume", "nowhere"],
        ["train", "folder/thing.xlsx"],
    ],
)
def test_arguments_that_do_not_parse_are_one_line(here, arguments, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"gpumlp: error: .+\n", err)
    assert names(here) == {"people.csv"}


def test_a_folder_that_cannot_be_made_is_one_line(here, capsys):
    Path("file").write_text("")
    assert cli.main(["train", "iris", "--out", "file/run", *QUICK]) == 2
    assert re.fullmatch(r"gpumlp: error: file.*: .+\n", capsys.readouterr().err)


@pytest.mark.parametrize("bug", [lambda: np.zeros(2) + np.zeros(3), lambda: len(3), lambda: int("x")])  # type: ignore[arg-type]
def test_a_bug_of_ours_shows_its_traceback(here, monkeypatch, bug):
    monkeypatch.setattr("gpumlp.run.new_folder", lambda name: bug())
    with pytest.raises((ValueError, TypeError)):
        cli.main(["train", "iris"])


def test_a_loss_that_is_not_finite_ends_with_1_and_keeps_the_last_good_state(here, capsys):
    assert cli.main(["train", "iris", "--out", "r", *QUICK, "--set", "optimizer={name='sgd',lr=1e38}"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("gpumlp: error: training stopped at epoch 1, batch 2 of 4: ")
    assert "r keeps the config and the last good state" in line
    assert names(here / "r") == {"config.toml", "checkpoint.safetensors"}
    assert cli.main(["evaluate", "r", "iris"]) == 2
    assert "the run in r is unfinished" in capsys.readouterr().err
