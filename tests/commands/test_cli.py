"""The command line: what it prints and writes."""

from __future__ import annotations

import csv
import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import gpumlp as gm
from gpumlp import cli
from gpumlp.config import read_config
from gpumlp.run import open_run
from tests.commands.people import QUICK, table


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
