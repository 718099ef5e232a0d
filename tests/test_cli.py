"""The command line: what it prints and writes, its exit codes, and that each mistake is one line."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import gpumlp as gm
from gpumlp import cli
from gpumlp.commands.predict import check_output
from gpumlp.config import apply_settings, complete_config, read_config, shipped_config
from gpumlp.experiment import set_up
from gpumlp.run import RunFolder, open_run

QUICK = ["--set", "training.epochs=2", "--set", "network.hidden=[4]"]
ROWS = 60


def table(
    folder: Path, name: str = "people.csv", change: Callable[[list[list[str]]], Any] | None = None
) -> str:
    """Write a CSV file with numbers, a category, a class and a quantity; return its name."""
    rng = np.random.default_rng(0)
    rows = [["age", "city", "group", "spend"]]
    for i in range(ROWS):
        age = int(rng.integers(18, 80))
        rows.append(
            [str(age), ("Aachen", "Bonn")[i % 2], "old" if age > 50 else "young", f"{3 * age + i % 2:.1f}"]
        )
    if change is not None:
        change(rows)
    with (folder / name).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return name


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of classification, `groups`, and one of regression, `spend`."""
    folder = tmp_path_factory.mktemp("cli")
    table(folder)
    for out, target, other in (("groups", "group", "spend"), ("spend", "spend", "group")):
        arguments = [
            "train",
            str(folder / "people.csv"),
            "--target",
            target,
            "--out",
            str(folder / out),
            "--quiet",
        ]
        assert cli.main([*arguments, *QUICK, "--set", f"data.drop=['{other}']"]) == 0
    return folder


# --- what works ---------------------------------------------------------------------------------------------------


def test_train_prints_scores_on_stdout_and_the_rest_on_stderr(here, capsys):
    assert cli.main(["train", "iris", "--device", "cpu", *QUICK]) == 0
    out, err = capsys.readouterr()
    (folder,) = (here / "runs").iterdir()
    assert re.fullmatch(r"iris-\d{8}-\d{6}", folder.name)
    scores = json.loads((folder / "metrics.json").read_text())
    assert f"{scores['test']['accuracy']:.6g}" in out
    assert f"run folder  runs/{folder.name}" in out
    assert "iris: 150 rows (120 training, 30 test), 4 features, 3 classes" in err
    assert "Linear(4, 4)" in err
    assert "device: cpu" in err
    assert "epoch 2/2: loss" in err


def test_quiet_prints_the_folder_only(here, capsys):
    assert cli.main(["train", "iris", "--quiet", "--out", "r", *QUICK]) == 0
    assert capsys.readouterr() == ("r\n", "")


def test_train_takes_a_config_and_changes_to_it(here):
    (here / "c.toml").write_text("[data]\nsource = 'people.csv'\ntarget = 'spend'\n[network]\nhidden = [3]\n")
    (here / "sub").mkdir()
    os.chdir("sub")
    arguments = ["--set", "training.epochs=2", "--set", "optimizer.lr=0.05", "--set", "data.drop=group"]
    assert cli.main(["train", "../c.toml", *arguments, "--quiet", "--out", "r"]) == 0
    config = read_config("r/config.toml")
    assert config["name"] == "c"
    assert Path(config["data"]["source"]).samefile(here / "people.csv")
    assert config["optimizer"]["lr"] == 0.05
    assert config["data"]["standardize_target"]


def test_a_data_file_gets_sound_defaults(runs):
    config = read_config(runs / "groups" / "config.toml")
    assert config["data"]["standardize"]
    assert config["optimizer"]["name"] == "adam"
    assert config["training"]["early_stopping"]["monitor"] == "val_loss"
    model = gm.load_model(runs / "groups" / "model.safetensors")
    assert model.classes == ["old", "young"]
    assert model.network.in_features == 3  # age, and a column for each of the two cities


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet"])
def test_data_files_of_other_kinds_train_and_are_predicted(here, ending, capsys):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = X @ [1.0, 2.0, 3.0]
    target = "y"
    if ending == "npy":
        np.save("d.npy", np.column_stack([X, y]))
        target = "x3"
    elif ending == "npz":
        np.savez("d.npz", X=X, y=y)
    else:
        import pyarrow as pa

        pq.write_table(pa.table({"a": X[:, 0], "b": X[:, 1], "y": y}), "d.parquet")
    assert cli.main(["train", f"d.{ending}", "--target", target, "--out", "r", "--quiet", *QUICK]) == 0
    assert cli.main(["evaluate", "r", f"d.{ending}"]) == 0
    assert "r2" in capsys.readouterr().out
    assert cli.main(["predict", "r", f"d.{ending}", "--out", "p.npy"]) == 0
    assert np.load("p.npy").shape == (60, 1)


def test_evaluate_repeats_the_scores_of_all_rows(runs, capsys):
    assert cli.main(["evaluate", str(runs / "groups"), str(runs / "people.csv")]) == 0
    found = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    model, _ = open_run(runs / "groups")
    with (runs / "people.csv").open() as file:
        truth = [row["group"] for row in csv.DictReader(file)]
    dataset = gm.data.read_features(runs / "people.csv")
    assert float(found["accuracy"]) == pytest.approx(
        np.mean(model.predict_classes(dataset) == truth), abs=1e-6
    )


def test_evaluate_finds_mnist_where_training_found_it(here, capsys, monkeypatch):
    monkeypatch.delenv("GPUMLP_DATA", raising=False)
    rng, folder = np.random.default_rng(0), here / "digits"
    folder.mkdir()
    for part, n in (("train", 40), ("t10k", 20)):
        for kind, shape in (("images-idx3", (n, 4, 4)), ("labels-idx1", (n,))):
            values = rng.integers(0, 10, shape).astype(np.uint8)
            header = struct.pack(f">I{len(shape)}I", 0x0800 + len(shape), *shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + values.tobytes())
    assert cli.main(["train", "mnist", "--data-dir", "digits", "--out", "r", "--quiet", *QUICK]) == 0
    assert cli.main(["evaluate", "r", "MNIST"]) == 0
    out, err = capsys.readouterr()
    assert "accuracy" in out
    assert "the run was trained on rows of mnist too" in err


def test_evaluate_takes_the_model_file_and_another_name_of_the_target(runs, here, capsys):
    def rename(rows: list[list[str]]) -> None:
        rows[0][3] = "money"

    table(here, "renamed.csv", rename)
    model = str(runs / "spend" / "model.safetensors")
    assert cli.main(["evaluate", model, "renamed.csv", "--target", "money"]) == 0
    renamed = capsys.readouterr().out.splitlines()[1:]
    assert cli.main(["evaluate", model, "people.csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == renamed


def test_predict_takes_columns_by_name_in_any_order_without_the_target(runs, here):
    def turn(rows: list[list[str]]) -> None:
        rows[:] = [[row[1], row[0]] for row in rows]

    table(here, "turned.csv", turn)
    for data in ("people", "turned"):
        assert cli.main(["predict", str(runs / "groups"), f"{data}.csv", "--out", f"{data}.out.csv"]) == 0
    assert (here / "people.out.csv").read_bytes() == (here / "turned.out.csv").read_bytes()


def test_predict_writes_classes_and_a_probability_for_each(runs, here, capsys):
    for ending in ("csv", "parquet", "npy"):
        assert cli.main(["predict", str(runs / "groups"), "people.csv", "--out", f"p.{ending}"]) == 0
    assert "60 predictions in p.csv: group, probability_old, probability_young" in capsys.readouterr().out
    parquet = pq.read_table("p.parquet").to_pydict()
    assert list(parquet) == ["group", "probability_old", "probability_young"]
    for group, old, young in zip(*parquet.values(), strict=True):
        assert old + young == pytest.approx(1, abs=1e-5)
        assert group == ("old" if old > young else "young")
    with open("p.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == parquet["group"]
    np.testing.assert_allclose(
        [float(row["probability_old"]) for row in rows], parquet["probability_old"], rtol=1e-5
    )
    records = np.load("p.npy", allow_pickle=False)
    assert records["group"].tolist() == parquet["group"]
    np.testing.assert_array_equal(records["probability_young"], np.float32(parquet["probability_young"]))


def test_predict_writes_values_in_the_units_of_the_target(runs, here):
    assert cli.main(["predict", str(runs / "spend"), "people.csv", "--out", "p.npy"]) == 0
    model = gm.load_model(runs / "spend" / "model.safetensors")
    np.testing.assert_array_equal(np.load("p.npy"), model.predict(gm.data.read_features("people.csv")))
    assert 50 < np.load("p.npy").mean() < 240


def test_a_batch_larger_than_the_set_is_the_full_batch_with_a_notice(here, capsys):
    assert cli.main(["train", "iris", "--set", "training.batch_size=999", "--out", "r", *QUICK]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gpumlp:")]
    assert notes == ["gpumlp: note: batch_size 999 is more than the 102 rows; training on the full batch"]


def test_missing_values_are_imputed_as_asked(here):
    def blank(rows: list[list[str]]) -> None:
        rows[4][0] = ""

    table(here, "missing.csv", blank)
    arguments = ["train", "missing.csv", "--target", "spend", "--out", "r", "--quiet", *QUICK]
    assert cli.main(arguments) == 2
    assert cli.main([*arguments, "--set", "data.missing=mean"]) == 0


def test_help_and_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gpumlp {gm.__version__}\n"
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("train", "evaluate", "predict", "bench", "info"):
        assert f"\n    {command} " in out
        assert cli.main([command, "--help"]) == 0


# --- mistakes -----------------------------------------------------------------------------------------------------


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


# --- in a process of its own --------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-c", "import sys; from gpumlp.cli import main; sys.exit(main())"]
LONG = ["iris", "--set", "training.epochs=400", "--set", "training.early_stopping=false", "--out"]


def start(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    # a shell that runs tests in the background leaves SIGINT ignored to its children
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [*COMMAND[:2], restore + COMMAND[2], *arguments]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def stopped(process: subprocess.Popen[str], signum: int) -> tuple[int, str]:
    """Send a signal after some epochs; return the exit code and what came after on stderr."""
    assert process.stderr is not None
    assert process.stdout is not None
    for line in process.stderr:
        if line.startswith("epoch 20/"):
            process.send_signal(signum)
            break
    rest = process.stderr.read()
    code = process.wait(timeout=60)
    process.stdout.close()
    process.stderr.close()
    return code, rest


def test_ctrl_c_says_how_to_go_on_and_the_resumed_run_has_the_same_bits(here, capsys):
    code, rest = stopped(start("train", *LONG, "part"), signal.SIGINT)
    assert code == 130
    last = rest.splitlines()[-1]
    found = re.fullmatch(
        r"gpumlp: interrupted after epoch (\d+) of 400; go on with: gpumlp train --resume part, or remove that folder",
        last,
    )
    assert found, rest
    assert "Traceback" not in rest
    assert names(here / "part") == {"config.toml", "checkpoint.safetensors"}
    assert cli.main(["predict", "part", "people.csv", "--out", "p.csv"]) == 2
    assert "go on with: gpumlp train --resume part" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "part"]) == 0
    assert f"going on after epoch {found[1]}" in capsys.readouterr().err
    assert cli.main(["train", *LONG, "whole", "--quiet"]) == 0
    assert Path("part/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_a_killed_run_is_named_by_the_next_command_and_can_be_gone_on_with(here, capsys):
    code, _ = stopped(start("train", *LONG, "part"), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "metrics.json" not in names(here / "part")
    assert cli.main(["train", *LONG, "part"]) == 2
    assert "holds an unfinished run; go on with: gpumlp train --resume part" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "part", "--quiet"]) == 0
    assert RunFolder("part").is_finished


def test_a_mistake_of_a_process_is_one_line_and_comes_at_once(here):
    began = time.monotonic()
    done = subprocess.run([*COMMAND, "train", "iris", "--foo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"gpumlp: error: .*--foo.*\n", done.stderr)
    assert time.monotonic() - began < 10


def test_the_command_line_imports_nothing_heavy():
    heavy = "('sklearn', 'scipy', 'pyarrow', 'matplotlib', 'jinja2', 'safetensors', 'cupy', 'tqdm', 'numba')"
    code = (
        f"import gpumlp.cli, sys; gpumlp.cli.make_parser(); print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
