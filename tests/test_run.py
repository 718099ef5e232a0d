"""gpumlp.run and gpumlp.experiment: the folder of a run, reruns and resumed runs to the bit, scores."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import run as run_module
from gpumlp.commands.train import train
from gpumlp.config import apply_settings, complete_config, config_toml, read_config
from gpumlp.experiment import automatic_batch_size, score, set_up
from gpumlp.metrics import classification_scores, regression_scores
from gpumlp.run import Checkpoints, Opening, RunFolder, history_csv, new_folder, open_run

FILES = ["config.toml", "history.csv", "metrics.json", "model.safetensors", "report.html"]


def config_of(*settings: str, source: str = "iris", **sections: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"data": {"source": source}, "network": {"hidden": [8]}, **sections}
    apply_settings(config, ["training.epochs=4", *settings])
    return complete_config(config)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def finished(path: Path, config: dict[str, Any]) -> RunFolder:
    assert train(config, RunFolder(path), quiet=True) == 0
    return RunFolder(path)


@pytest.fixture
def no_report(monkeypatch) -> None:
    """Leave out the figures, which take longer than these trainings."""
    monkeypatch.setattr("gpumlp.report.render_report", lambda report: "")


@pytest.fixture(scope="module")
def iris_run(tmp_path_factory) -> RunFolder:
    return finished(tmp_path_factory.mktemp("runs") / "iris", config_of("training.validation_split=0.2"))


@pytest.fixture(scope="module")
def diabetes_run(tmp_path_factory) -> RunFolder:
    return finished(tmp_path_factory.mktemp("runs") / "diabetes", config_of(source="diabetes"))


def test_a_finished_run_holds_its_files_and_nothing_else(iris_run):
    assert names(iris_run.path) == FILES
    assert iris_run.is_finished


def test_metrics_json_holds_the_scores_of_both_parts(iris_run):
    metrics = json.loads(iris_run.metrics.read_text())
    assert set(metrics) == {"train", "test"}
    model, config = open_run(iris_run.path)
    assert config is not None
    experiment = set_up(config)
    p = experiment.prepared
    probabilities = gm.Model(model.network, model.loss).predict(p.X_test)
    expected = classification_scores(p.y_test, probabilities, 3)
    assert {k: v for k, v in metrics["test"].items() if k != "loss"} == expected
    # the loss of class labels is the log loss
    assert metrics["test"]["loss"] == pytest.approx(expected["log_loss"], rel=1e-6)


def test_scores_of_a_regression_are_in_the_units_of_the_target(diabetes_run):
    model, config = open_run(diabetes_run.path)
    assert config is not None
    assert config["data"]["standardize_target"]
    dataset = gm.data.load("diabetes")
    prepared = set_up(config).prepared
    predicted = model.predict(dataset.features[prepared.test_rows])
    expected = regression_scores(dataset.y[prepared.test_rows], predicted)
    found = diabetes_run.read_metrics()["test"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4)
    assert found["rmse"] > 20  # the target reaches from 25 to 346
    assert found["loss"] < 5  # in standard deviations


def test_history_csv_has_a_row_for_each_epoch(iris_run):
    rows = list(csv.DictReader(iris_run.history.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert set(rows[0]) == {"epoch", "loss", "lr", "seconds", "val_loss", "val_accuracy"}
    assert all(float(row["val_loss"]) > 0 for row in rows)


def test_history_csv_leaves_empty_what_was_not_measured():
    history = gm.History()
    history.add_epochs({"epoch": [1], "loss": [0.1], "lr": [0.5], "seconds": [2.0]})
    history.add_epochs({"epoch": [2], "loss": [0.2], "lr": [0.5], "seconds": [3.0], "val_loss": [0.25]})
    assert history_csv(history) == "epoch,loss,lr,seconds,val_loss\n1,0.1,0.5,2,\n2,0.2,0.5,3,0.25\n"


def test_the_model_file_holds_classes_preprocessing_and_target_units(iris_run, diabetes_run):
    model = gm.load_model(iris_run.model)
    assert model.classes == ["setosa", "versicolor", "virginica"]
    assert model.target_names == ["species"]
    assert model.preprocessor is not None
    assert model.preprocessor.standardize
    assert gm.load_model(diabetes_run.model).target_scaler is not None


def test_the_report_stands_by_itself(iris_run):
    page = iris_run.report.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "setosa" in page
    assert "<h1>run: 4-8-3</h1>" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_config_of_a_run_reruns_it_to_the_bit(iris_run, tmp_path):
    config = complete_config(read_config(iris_run.config))
    assert config_toml(config) == iris_run.config.read_text()
    again = finished(tmp_path / "again", config)
    assert again.model.read_bytes() == iris_run.model.read_bytes()
    assert again.config.read_bytes() == iris_run.config.read_bytes()
    assert again.read_metrics() == iris_run.read_metrics()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("no_report")
def test_a_rerun_gives_the_same_bits_with_noise_schedules_and_early_stopping(tmp_path, dtype):
    sections: Any = {
        "network": {"hidden": [8], "dropout": 0.3, "weight_init": {"name": "normal", "std": 0.3}},
        "optimizer": {"name": "sgd", "lr": {"name": "reduce_on_plateau", "lr": 0.1, "patience": 1}, "momentum": 0.9},
        "training": {"early_stopping": {"patience": 2}, "validation_split": 0.25, "dtype": dtype},
    }  # fmt: skip
    first = finished(tmp_path / "first", config_of("training.epochs=20", **sections))
    second = finished(tmp_path / "second", first.read_config())
    assert first.model.read_bytes() == second.model.read_bytes()
    assert epochs(first) == epochs(second)


def epochs(run: RunFolder) -> list[dict[str, str]]:
    rows = list(csv.DictReader(run.history.read_text().splitlines()))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


class Interruption(gm.Callback):
    """Does after an epoch, or within one at a validation, what Ctrl-C does behind a block of steps."""

    def __init__(self, epoch: int | None, step: int | None) -> None:
        self.epoch, self.step = epoch, step

    def _press(self, trainer: gm.Trainer) -> None:
        trainer.history.stopped = "interrupted"
        raise KeyboardInterrupt

    def on_epoch_end(self, trainer: gm.Trainer, epoch: int, logs: Any) -> None:
        if epoch == self.epoch:
            self._press(trainer)

    def on_validation(self, trainer: gm.Trainer, step: int, scores: Any) -> None:
        if step == self.step:
            self._press(trainer)


def interrupted(
    path: Path, config: dict[str, Any], epoch: int | None = None, step: int | None = None
) -> RunFolder:
    """Train into a folder until an epoch or a step, and be interrupted there."""
    folder = RunFolder(path)

    def begin() -> None:
        folder.create(experiment.config)

    def save() -> None:
        folder.save_checkpoint(experiment.trainer, experiment.config, experiment.fingerprint())

    experiment = set_up(config, [Opening(begin, save)])
    experiment.trainer.callbacks.append(Interruption(epoch, step))
    with pytest.raises(KeyboardInterrupt):
        experiment.fit(progress=False)
    return folder


RESUMED: dict[str, dict[str, Any]] = {
    "adam with dropout": {"network": {"hidden": [8], "dropout": 0.4}, "optimizer": {"name": "adam"}},
    "batch norm": {
        "network": {
            "layers": [
                {"name": "linear", "out_features": 6},
                {"name": "batch_norm"},
                {"name": "tanh"},
                {"name": "gaussian_noise"},
                {"name": "linear"},
            ]
        },
    },
    "early stopping": {
        "training": {"early_stopping": {"patience": 3, "min_delta": 0.02}, "validation_split": 0.2, "epochs": 60},
        "optimizer": {"name": "rmsprop", "lr": 0.02},
    },
    "plateau": {
        "optimizer": {"name": "sgd", "lr": {"name": "reduce_on_plateau", "lr": 0.5, "patience": 1}, "momentum": 0.9},
        "training": {"validation_split": 0.2},
    },
    "warm-up": {"optimizer": {"name": "adamw", "lr": {"name": "one_cycle", "max_lr": 0.05}}},
}  # fmt: skip


@pytest.mark.parametrize("after", [1, 5])
@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.usefixtures("no_report")
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, case, after):
    sections: Any = {name: dict(table) for name, table in RESUMED[case].items()}
    epochs_asked = sections.get("training", {}).get("epochs", 9)
    config = config_of(f"training.epochs={epochs_asked}", **sections)
    whole = finished(tmp_path / "whole", config)
    part = interrupted(tmp_path / "part", config, after)
    assert names(part.path) == ["checkpoint.safetensors", "config.toml"]
    assert part.is_unfinished
    assert train(part.read_config(), part, resume=True, quiet=True) == 0
    assert names(part.path) == FILES
    assert part.model.read_bytes() == whole.model.read_bytes()
    assert epochs(part) == epochs(whole)
    assert part.read_metrics() == whole.read_metrics()


@pytest.mark.parametrize("step", [4, 8, 16])
@pytest.mark.usefixtures("no_report")
def test_a_run_that_was_interrupted_within_an_epoch_is_resumed_to_the_bit(tmp_path, step):
    training = {"validate_every": "4 steps", "batch_size": 16, "validation_split": 0.2}  # 6 steps an epoch
    config = config_of("training.epochs=5", training=training, network={"hidden": [8], "dropout": 0.2})
    whole = finished(tmp_path / "whole", config)
    part = interrupted(tmp_path / "part", config, step=step)
    assert train(part.read_config(), part, resume=True, quiet=True) == 0
    assert part.model.read_bytes() == whole.model.read_bytes()
    assert epochs(part) == epochs(whole)


@pytest.mark.usefixtures("no_report")
def test_a_run_without_a_checkpoint_is_resumed_from_its_beginning(tmp_path):
    config = config_of()
    whole = finished(tmp_path / "whole", config)
    part = RunFolder(tmp_path / "part")
    part.create(set_up(config).config)
    assert train(part.read_config(), part, resume=True, quiet=True) == 0
    assert part.model.read_bytes() == whole.model.read_bytes()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("old", "new"), [("lr = 0.", "lr = 1."), ("epochs = ", "epochs = 1")])
def test_a_run_is_not_resumed_with_another_config(tmp_path, old, new):
    part = interrupted(tmp_path / "part", config_of(), epoch=2)
    text = part.config.read_text()
    assert text.count(old) == 1
    part.config.write_text(text.replace(old, new))
    with pytest.raises(
        ValueError, match=r"config\.toml is not the config that the run began with; put it back"
    ):
        train(part.read_config(), part, resume=True, quiet=True)
    part.config.write_text(text)
    assert train(part.read_config(), part, resume=True, quiet=True) == 0


@pytest.mark.usefixtures("no_report")
def test_a_run_is_not_resumed_with_other_data(tmp_path):
    path = tmp_path / "a.csv"
    rows = ["x,y", *(f"{i},{i % 2}" for i in range(40))]
    path.write_text("\n".join(rows))
    config = config_of(source=str(path), data={"source": str(path), "target": "y"})
    part = interrupted(tmp_path / "part", config, epoch=2)
    path.write_text("\n".join([*rows[:-1], "99,1"]))
    with pytest.raises(ValueError, match=r"the data are not those that the run in .* began with"):
        train(part.read_config(), part, resume=True, quiet=True)
    assert part.is_unfinished


def test_checkpoints_are_written_by_time_and_removed_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "CHECKPOINT_SECONDS", 0.0)
    saved: list[int] = []
    experiment = set_up(config_of())
    experiment.trainer.callbacks.append(Checkpoints(lambda: saved.append(len(experiment.trainer.history))))
    experiment.fit(progress=False)
    assert saved[-1] == 4
    assert names(finished(tmp_path / "run", config_of()).path) == FILES


def test_a_training_that_was_told_to_stop_leaves_no_checkpoint_to_go_on_from(monkeypatch):
    monkeypatch.setattr(run_module, "CHECKPOINT_SECONDS", 0.0)
    saved: list[int] = []
    experiment = set_up(config_of())
    experiment.trainer.callbacks += [
        gm.callbacks.FunctionCallback(lambda trainer, epoch, logs: trainer.stop() if epoch == 2 else None),
        Checkpoints(lambda: saved.append(len(experiment.trainer.history))),
    ]
    experiment.fit(progress=False)
    assert saved == [1]


def test_the_metrics_come_last_and_a_failure_before_them_leaves_an_unfinished_run(tmp_path, monkeypatch):
    written: list[str] = []
    for name in ("write_whole", "write_json"):
        real = getattr(run_module, name)

        def spy(path: Path, data: Any, real: Any = real) -> None:
            written.append(Path(path).name)
            real(path, data)

        monkeypatch.setattr(run_module, name, spy)
    finished(tmp_path / "run", config_of())
    assert written[0] == "config.toml"
    assert written[-1] == "metrics.json"

    def full(path: Path, data: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(run_module, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        train(config_of(), RunFolder(tmp_path / "full"), quiet=True)
    assert RunFolder(tmp_path / "full").is_unfinished


def test_a_folder_that_exists_is_refused(tmp_path, iris_run):
    with pytest.raises(ValueError, match="exists already"):
        RunFolder(tmp_path).check_new()
    with pytest.raises(ValueError, match="holds a finished run"):
        iris_run.create(config_of())
    part = RunFolder(tmp_path / "part")
    part.create(config_of())
    with pytest.raises(
        ValueError, match=r"unfinished run; go on with: gpumlp train --resume .*part, or remove"
    ):
        RunFolder(tmp_path / "part").check_new()
    with pytest.raises(ValueError, match="is unfinished"):
        open_run(part.path)


def test_discard_removes_what_was_made_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "deep" / "one")
    folder.create(config_of())
    folder.discard()
    assert names(tmp_path) == []
    folder.create(config_of())
    folder.checkpoint.write_text("kept")
    folder.discard()
    assert folder.checkpoint.read_text() == "kept"
    (tmp_path / "old").mkdir()
    RunFolder(tmp_path / "old").discard()
    assert (tmp_path / "old").is_dir()


def test_only_unfinished_runs_can_be_gone_on_with(tmp_path, iris_run):
    with pytest.raises(ValueError, match="finished; there is nothing"):
        iris_run.check_unfinished()
    with pytest.raises(ValueError, match="there is no run folder"):
        RunFolder(tmp_path / "none").check_unfinished()
    with pytest.raises(ValueError, match=r"has no config\.toml"):
        RunFolder(tmp_path).check_unfinished()


def test_a_run_is_opened_by_its_folder_or_its_model_file(iris_run, tmp_path):
    by_folder, config = open_run(iris_run.path)
    by_file, same = open_run(str(iris_run.model))
    assert config == same
    assert by_folder.network.state_dict().keys() == by_file.network.state_dict().keys()
    alone = tmp_path / "other.safetensors"
    alone.write_bytes(iris_run.model.read_bytes())
    assert open_run(alone)[1] is None


def test_new_folders_are_not_taken(tmp_path):
    first = new_folder("a", tmp_path)
    assert first.name.startswith("a-20")
    first.mkdir()
    assert not new_folder("a", tmp_path).exists()


@pytest.mark.usefixtures("no_report")
def test_the_test_rows_take_no_part_in_training(tmp_path):
    config = config_of("training.validation_split=0.2")
    experiment = set_up(config)
    untouched = finished(tmp_path / "a", config)
    n = experiment.prepared.n_train
    experiment.prepared.X[n:] = 1e6
    experiment.prepared.y[n:] = 0
    experiment.fit(progress=False)
    expected = gm.load_model(untouched.model).network.state_dict()
    for name, value in experiment.trainer.network.state_dict().items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_run_without_test_rows_has_an_empty_test_part(tmp_path):
    folder = finished(tmp_path / "run", config_of("data.test_size=0"))
    assert folder.read_metrics()["test"] == {}


@pytest.mark.parametrize("name", ["sine_sqrt_regression", "polar_clusters", "linnerud", "breast_cancer"])
def test_other_kinds_of_data_train_too(tmp_path, name):
    folder = finished(tmp_path / name, config_of("training.batch_size=full", source=name))
    assert folder.read_metrics()["train"]["loss"] > 0


def test_two_classes_take_binary_cross_entropy_on_one_output(tmp_path):
    folder = finished(
        tmp_path / "b",
        config_of("training.loss=binary_cross_entropy", "training.epochs=20", source="breast_cancer"),
    )
    assert gm.load_model(folder.model).network.out_features == 1
    assert folder.read_metrics()["test"]["accuracy"] > 0.9


def test_class_weights_are_taken_by_the_names_of_the_classes():
    weights = {"virginica": 3.0, "setosa": 1.0, "versicolor": 2.0}
    config = config_of(training={"loss": {"name": "cross_entropy", "class_weight": weights}})
    assert set_up(config).trainer.loss.class_weight == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="class_weight has the classes"):
        set_up(config_of(training={"loss": {"name": "cross_entropy", "class_weight": {"a": 1.0}}}))


def test_score_counts_what_predict_says():
    experiment = set_up(config_of())
    experiment.fit(progress=False)
    p = experiment.prepared
    scored = score(experiment.model(), p.X_test, p.y_test)
    np.testing.assert_array_equal(scored.predicted, experiment.trainer.predict_classes(p.X_test))
    assert scored.scores["accuracy"] == np.mean(scored.predicted == p.y_test)


@pytest.mark.parametrize(("rows", "size"), [(10, 32), (3200, 32), (10_000, 128), (1_000_000, 512)])
def test_the_automatic_batch_size_grows_with_the_rows(rows, size):
    assert automatic_batch_size(rows) == size


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.loss=mse"], "training.loss 'mse' does not go with iris, a set of classification"),
        (["training.loss=binary_cross_entropy"], "for two classes; iris has 3"),
        (["training.loss={name='kl_div', from_logits=false}"], "set network.output_activation"),
        (["network.layers=[{name='linear', out_features=2}]"], "has 2 outputs; iris needs 3"),
        (["network.layers=[{name='linear'}, {name='linear'}]"], "layer 0 needs out_features"),
        (
            ["network.layers=[{name='linear', in_features=7}]"],
            "network.layers: .* takes 7 features, but .* 4",
        ),
        (["optimizer.lr={name='cosine', lr=0.1, warmup=50}"], "optimizer.lr: the warm-up"),
        (["data.target=species"], "has its own"),
        (["data.drop=['x']"], "data.drop is for files"),
        (["data.settings={n_samples=3}"], "unknown setting 'n_samples'"),
        (["training.device=tpu"], "training.device: unknown device"),
        (["training.metrics=['rmse']"], "metric 'rmse' does not go with"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        set_up(config_of(*settings))
