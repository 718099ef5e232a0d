"""``gpumlp sweep``: what it takes, prints and writes."""

import argparse
import json
import tomllib
from pathlib import Path

import pytest

import gpumlp as gm
from gpumlp.commands import sweep
from gpumlp.config import complete_config
from gpumlp.experiment import set_up
from gpumlp.run import RunFolder, open_run

QUICK = ["--set", "training.epochs=2", "--set", "network.hidden=[4]"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    sweep.add_parser(parser.add_subparsers())
    args = parser.parse_args(["sweep", *arguments])
    return int(args.run(args))


def test_it_writes_the_curves_all_results_and_the_best_network(here, capsys):
    assert run("iris", *QUICK, "--set", "optimizer.lr=0.1,1e-6", "--out", "found") == 0
    folder = here / "found"
    assert {p.name for p in folder.iterdir()} == {
        "config.toml", "loss.svg", "val_loss.svg", "sweep.json", "best.toml", "best.safetensors",
    }  # fmt: skip
    results = json.loads((folder / "sweep.json").read_text())
    assert [m["settings"] for m in results["members"]] == [{"optimizer.lr": 0.1}, {"optimizer.lr": 1e-6}]
    assert results["best"] == "lr=0.1"
    printed = capsys.readouterr().out
    assert "best          lr=0.1" in printed
    assert "lr=1e-06" in printed
    assert str(folder.name) in printed
    # the best one is trained again by its config, to the same scores
    best = set_up(complete_config(tomllib.loads((folder / "best.toml").read_text())))
    best.fit(progress=False)
    assert best.trainer.history["loss"] == results["members"][0]["history"]["epochs"]["loss"]
    model = gm.load_model(folder / "best.safetensors")
    assert model.network.in_features == 4


def test_several_settings_span_a_grid_and_lists_and_words_are_values(here, capsys):
    arguments = ["--set", "network.hidden=[4],[3,2]", "--set", "network.activation=relu,tanh"]
    assert run("iris", "--set", "training.epochs=1", *arguments, "--quiet", "--out", "found") == 0
    members = json.loads((here / "found" / "sweep.json").read_text())["members"]
    assert [m["label"] for m in members] == [
        "hidden=4, activation=relu",
        "hidden=4, activation=tanh",
        "hidden=3-2, activation=relu",
        "hidden=3-2, activation=tanh",
    ]
    assert capsys.readouterr().out.strip() == "found"


def test_by_chooses_the_best(here):
    run("iris", *QUICK, "--set", "optimizer.lr=0.1,1e-6", "--by", "train.misclassification", "--out", "found")
    assert json.loads((here / "found" / "sweep.json").read_text())["best"] == "lr=0.1"


def test_a_sweep_of_which_every_loss_is_lost_writes_nothing_and_exits_with_1(here, capsys):
    losing = ["--set", "optimizer.name=sgd", "--set", "optimizer.lr=1e30,1e35"]
    assert run("diabetes", *QUICK, *losing, "--out", "found") == 1
    assert "every training failed: the loss was not finite in epoch 1" in capsys.readouterr().err
    assert not (here / "found").exists()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1,0.01", ["0.1", "0.01"]),
        ("[64],[64, 64]", ["[64]", "[64, 64]"]),
        ('{name = "sgd", lr = 1}, adam', ['{name = "sgd", lr = 1}', "adam"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("relu", ["relu"]),
    ],
)
def test_commas_outside_of_brackets_and_quotes_part_values(text, values):
    assert sweep.split_values(text) == values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["iris"], "sweep needs a setting with several values"),
        (["iris", "--set", "optimizer.lr=0.1"], "sweep needs a setting with several values"),
        (["iris", "--set", "optimizer.lr=0.1,"], "optimizer.lr: '' is not a value"),
        (["iris", "--set", "optimizer.rate=0.1,1"], "unknown key optimizer.rate"),
        (["iris", "--set", "optimizer.lr=0.1,1", "--by", "test.acuracy"], "did you mean 'test.accuracy'"),
        (["iris", "--set", "optimizer.lr=0.1,1", "--by", "x"], "expected one such as test.accuracy"),
        (["iris", "--set", "optimizer.lr=0.1,1", "--workers", "0"], "--workers is 0"),
        (["irsi", "--set", "optimizer.lr=0.1,1"], "unknown config 'irsi'; did you mean 'iris'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_writes_nothing(here, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments)
    assert list(here.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(here):
    (here / "found").mkdir()
    with pytest.raises(ValueError, match="output folder found exists already"):
        run("iris", "--set", "optimizer.lr=0.1,1", "--out", "found")


def test_the_folder_is_made_before_the_trainings_and_goes_where_they_come_to_nothing(
    here, monkeypatch, capsys
):
    def interrupted(*_, **__):
        assert (here / "new" / "found").is_dir()
        raise KeyboardInterrupt

    (here / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run("iris", *QUICK, "--set", "optimizer.lr=0.1,0.01", "--out", "file/found")
    monkeypatch.setattr("gpumlp.sweep.sweep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("iris", *QUICK, "--set", "optimizer.lr=0.1,0.01", "--out", "new/found")
    assert [path.name for path in here.iterdir()] == ["file"]
    assert "nothing of an interrupted sweep is kept" in capsys.readouterr().err


def test_a_sweep_is_no_run_to_predict_with_or_to_go_on_with(here):
    assert run("iris", *QUICK, "--set", "optimizer.lr=0.1,0.01", "--out", "found") == 0
    folder = RunFolder("found")
    with pytest.raises(ValueError, match=r"found is the folder of a sweep; .*found/best\.safetensors"):
        open_run("found")
    with pytest.raises(ValueError, match="the sweep in found is finished"):
        folder.check_unfinished()
    with pytest.raises(ValueError, match="output folder found exists already"):
        folder.check_new()
    assert open_run("found/best.safetensors")[0].network.in_features == 4
