"""gpumlp.callbacks: a contract that all of them keep, and what each does."""

from __future__ import annotations

import csv
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import callbacks as module
from gpumlp.callbacks import Callback, FunctionCallback, as_callbacks

RNG = np.random.default_rng(4)
X = RNG.normal(size=(40, 3))
LABELS = (X[:, 0] + 0.5 * RNG.normal(size=40) > 0).astype(int)


def trainer_of(callbacks: Any = None, lr: float = 0.1) -> gm.Trainer:
    network = gm.mlp((3, 8, 2), dtype="float64", seed=2, device="cpu")
    return gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(lr), callbacks=callbacks)


def fit(trainer: gm.Trainer, **settings: Any) -> gm.History:
    given = {"epochs": 6, "batch_size": 16, "validation_split": 0.25, "progress": False, **settings}
    return trainer.fit(X, LABELS, **given)


# ---- the contract ----

MAKERS = {
    "Callback": lambda folder: gm.Callback(),
    "FunctionCallback": lambda folder: FunctionCallback(lambda trainer, epoch, logs: None),
    "EarlyStopping": lambda folder: gm.EarlyStopping(patience=2),
    "CSVLog": lambda folder: gm.CSVLog(folder / "log.csv"),
    "ModelCheckpoint": lambda folder: gm.ModelCheckpoint(folder / "model.safetensors"),
}
every_callback = pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))


def test_the_contract_is_held_to_every_callback():
    classes = {name for name, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Callback)}
    assert {name for name in classes if not name.startswith("_")} == set(MAKERS)


@every_callback
def test_a_callback_lets_the_training_be_as_it_is(make, tmp_path):
    plain, watched = trainer_of(), trainer_of(make(tmp_path))
    fit(plain, epochs=2)
    fit(watched, epochs=2)
    assert plain.history["val_loss"][1] < plain.history["val_loss"][0]  # the last epoch is the best one
    for name, value in plain.network.state_dict().items():
        np.testing.assert_array_equal(watched.network.state_dict()[name], value)
    assert watched.history["loss"] == plain.history["loss"]


@every_callback
def test_a_callback_can_be_used_for_one_training_after_the_other(make, tmp_path):
    callback = make(tmp_path)
    first = trainer_of(callback, lr=3.0)
    fit(first, epochs=60)
    second, fresh = trainer_of(callback, lr=3.0), trainer_of(make(tmp_path), lr=3.0)
    fit(second, epochs=60)
    fit(fresh, epochs=60)
    for name, value in fresh.network.state_dict().items():
        np.testing.assert_array_equal(second.network.state_dict()[name], value)
    assert second.history["loss"] == fresh.history["loss"]


@every_callback
def test_a_callback_ends_in_order_when_the_training_fails(make, tmp_path):
    def fail(trainer: gm.Trainer, epoch: int, logs: Any) -> None:
        raise RuntimeError("mine")

    callback = make(tmp_path)
    trainer = trainer_of([callback, fail])
    with pytest.raises(RuntimeError, match="mine"):
        fit(trainer)
    assert getattr(callback, "_file", None) is None
    trainer.callbacks = as_callbacks(callback)
    assert len(fit(trainer)) == len(trainer.history) > 0


@every_callback
def test_a_callback_keeps_the_signatures_of_the_base(make, tmp_path):
    callback = make(tmp_path)
    assert isinstance(callback.every_epoch, bool)
    for name in ("on_train_begin", "on_epoch_end", "on_block_end", "on_validation", "on_train_end"):
        own, base = (inspect.signature(getattr(c, name)) for c in (callback, Callback()))
        assert list(own.parameters) == list(base.parameters)


class Diary(gm.Callback):
    def __init__(self, every_epoch: bool) -> None:
        self.every_epoch = every_epoch
        self.calls: list[Any] = []
        self.logs: list[dict[str, float]] = []
        self.steps: list[int] = []

    def on_train_begin(self, trainer):
        self.calls.append("begin")

    def on_epoch_end(self, trainer, epoch, logs):
        self.calls.append(epoch)
        self.logs.append(dict(logs))
        self.steps.append(trainer.history.steps)

    def on_validation(self, trainer, step, scores):
        self.calls.append(("validation", step, sorted(scores)))

    def on_train_end(self, trainer):
        self.calls.append("end")


def test_callbacks_are_called_in_order_with_what_they_need():
    diary = Diary(every_epoch=True)
    trainer = trainer_of(diary)
    history = fit(trainer, epochs=2, validate_every="1 steps")  # 30 rows: 2 steps an epoch
    measured = ["val_accuracy", "val_loss"]
    validations = [("validation", step, measured) for step in (1, 2, 3, 4)]
    assert diary.calls == ["begin", *validations[:2], 1, *validations[2:], 2, "end"]
    assert diary.logs == [{name: history[name][i] for name in history} for i in range(2)]


@pytest.mark.parametrize("every_epoch", [True, False])
def test_every_epoch_is_seen_also_where_a_block_holds_many(every_epoch):
    diary = Diary(every_epoch)
    history = fit(trainer_of(diary), epochs=400, validation_split=0.0)
    assert diary.calls == ["begin", *range(1, 401), "end"]
    assert [row["loss"] for row in diary.logs] == history["loss"]
    at_its_end = [3 * epoch for epoch in range(1, 401)]
    if every_epoch:
        assert diary.steps == at_its_end
    else:  # blocks were longer than an epoch, or the flag would mean nothing
        assert all(found >= end for found, end in zip(diary.steps, at_its_end, strict=True))
        assert diary.steps != at_its_end


class Blocks(gm.Callback):
    """The length of the history at the end of each block."""

    def __init__(self, every_epoch: bool) -> None:
        self.every_epoch = every_epoch
        self.epochs: list[int] = []

    def on_block_end(self, trainer):
        self.epochs.append(len(trainer.history))


@pytest.mark.parametrize("others", [[], [Diary(every_epoch=True)]])
def test_a_block_is_told_once_however_many_epochs_it_holds(others):
    blocks = Blocks(every_epoch=False)
    fit(trainer_of([*others, blocks]), epochs=400, validation_split=0.0)
    assert blocks.epochs == sorted(blocks.epochs)
    assert len(blocks.epochs) < blocks.epochs[-1] == 400


def test_no_rows_are_made_where_nobody_hears_of_epochs(monkeypatch):
    told: list[int] = []
    show = gm.progress.Progress.epochs_ended

    def noted(self, rows, count, it_per_second):
        told.append(len(rows))
        show(self, rows, count, it_per_second)

    monkeypatch.setattr(gm.progress.Progress, "epochs_ended", noted)
    fit(trainer_of(Blocks(every_epoch=False)), epochs=400, validation_split=0.0)
    assert set(told) == {1}  # the newest, for a bar


def test_functions_objects_and_lists_of_both_are_callbacks():
    seen: list[Any] = []

    def user(trainer: gm.Trainer, epoch: int, logs: Any) -> None:
        seen.append((trainer, epoch, logs["loss"]))

    trainer = trainer_of(user)
    history = fit(trainer, epochs=3)
    assert seen == [(trainer, i + 1, history["loss"][i]) for i in range(3)]
    diary = Diary(True)
    assert [type(c) for c in as_callbacks([user, diary])] == [FunctionCallback, Diary]
    assert as_callbacks(None) == []
    assert as_callbacks(diary) == [diary]


@pytest.mark.parametrize("given", [[3], ["log"], [gm.EarlyStopping]])
def test_what_is_no_callback_is_refused_in_one_line(given):
    with pytest.raises(
        TypeError, match=r"is not a callback; expected a Callback object or a function"
    ) as error:
        trainer_of(given)
    assert "\n" not in str(error.value)


# ---- early stopping ----

HALF: Any = 1.5


def best_of(
    history: gm.History, monitor: str, patience: int, sign: float, min_delta: float = 0.0
) -> tuple[int, int]:
    """The best epoch and the last one, by the rule of the docstring."""
    best, best_epoch, since = math.inf, 0, 0
    for epoch, value in zip(history["epoch"], history[monitor], strict=True):
        if math.isnan(value):
            continue
        if best - sign * value > min_delta:
            best, best_epoch, since = sign * value, int(epoch), 0
        else:
            since += 1
            if since >= patience:
                return best_epoch, int(epoch)
    return best_epoch, len(history)


@pytest.mark.parametrize(
    ("monitor", "sign", "min_delta", "every"),
    [
        ("val_loss", 1, 0.0, 1),
        ("val_loss", 1, 0.01, 1),
        ("val_accuracy", -1, 0.0, 1),
        ("val_loss", 1, 0.0, 3),
    ],
)
def test_early_stopping_ends_after_its_patience_with_the_best_weights(monitor, sign, min_delta, every):
    weights: dict[int, dict[str, np.ndarray]] = {}

    def keep(trainer: gm.Trainer, epoch: int, logs: Any) -> None:
        weights[epoch] = trainer.network.state_dict()

    settings = {"epochs": 300, "validate_every": every}
    whole = fit(trainer_of(lr=3.0), **settings)
    best, last = best_of(whole, monitor, 4, sign, min_delta)
    assert 0 < best < last < 300  # it does stop, and not at its best
    stopping = gm.EarlyStopping(monitor, patience=4, min_delta=min_delta)
    trainer = trainer_of([stopping, keep], lr=3.0)
    history = fit(trainer, **settings)
    assert (len(history), stopping.best_epoch) == (last, best)
    assert history.stopped == f"no better {monitor} since epoch {best}"
    for name, value in trainer.network.state_dict().items():
        np.testing.assert_array_equal(value, weights[best][name])
    unrestored = trainer_of([gm.EarlyStopping(monitor, 4, min_delta, restore_best=False), keep], lr=3.0)
    fit(unrestored, **settings)
    for name, value in unrestored.network.state_dict().items():
        np.testing.assert_array_equal(value, weights[last][name])


def test_the_best_weights_are_restored_also_when_all_epochs_were_done():
    trainer = trainer_of(gm.EarlyStopping(patience=10_000), lr=3.0)
    history = fit(trainer, epochs=60)
    best = int(np.argmin(history["val_loss"]))
    assert best < 59
    from gpumlp.validation import split_rows

    _, held = split_rows(40, 0.25, LABELS, seed=2)
    assert trainer.evaluate(X[held], LABELS[held])["loss"] == history["val_loss"][best]
    assert history.stopped == ""


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val_loss", "min"),
        ("loss", "min"),
        ("val_accuracy", "max"),
        ("accuracy", "max"),
        ("val_misclassification", "min"),
        ("val_log_loss", "min"),
        ("val_r2", "max"),
    ],
)
def test_the_mode_is_known_from_the_metric(monitor, mode):
    assert gm.EarlyStopping(monitor).mode == mode
    assert gm.EarlyStopping(monitor, mode="max").mode == "max"


@pytest.mark.parametrize("make", [gm.EarlyStopping, lambda monitor: gm.ModelCheckpoint("m", monitor)])
@pytest.mark.parametrize("monitor", ["val_loss", "val_f1"])
def test_a_monitor_that_is_not_measured_is_refused_before_anything_is_trained(make, monitor):
    trainer = trainer_of(make(monitor))
    before = trainer.network.state_dict()
    with pytest.raises(
        ValueError, match=f"monitors '{monitor}', which is not measured; expected one of loss"
    ) as error:
        fit(trainer, validation_split=0.0)
    assert "\n" not in str(error.value)
    for name, value in trainer.network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gm.EarlyStopping(patience=0), "patience is 0; expected"),
        (lambda: gm.EarlyStopping(patience=HALF), "patience is 1.5; expected"),
        (lambda: gm.EarlyStopping(min_delta=-1), "min_delta is -1; expected"),
        (lambda: gm.EarlyStopping(min_delta=math.nan), "min_delta is nan; expected"),
        (lambda: gm.EarlyStopping(mode="least"), "mode of EarlyStopping is 'least'; expected"),
        (lambda: gm.ModelCheckpoint("m", every=0), "every is 0; expected"),
        (lambda: gm.ModelCheckpoint("m", mode="best"), "mode of ModelCheckpoint is 'best'; expected"),
    ],
)
def test_settings_outside_their_range_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# ---- the CSV log ----


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("every", [1, 2])
def test_the_csv_log_holds_the_row_of_every_epoch(tmp_path, every):
    path = tmp_path / "log.csv"
    history = fit(trainer_of(gm.CSVLog(path)), epochs=5, validate_every=every)
    rows = rows_of(path)
    assert list(rows[0]) == list(history) == ["epoch", "loss", "lr", "seconds", "val_loss", "val_accuracy"]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5]
    for name in set(history) - {"epoch"}:
        found = [float(row[name]) if row[name] else math.nan for row in rows]
        np.testing.assert_array_equal(found, history[name])


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [1, 2, 3, 4]), (1e9, [1, 1, 1, 1])])
def test_the_csv_log_can_be_read_while_the_training_runs(tmp_path, monkeypatch, seconds, expected):
    """Epochs that follow each other more quickly than it writes are written together, the last ones at the end."""
    monkeypatch.setattr(gm.CSVLog, "FLUSH_SECONDS", seconds)
    seen: list[int] = []
    look = FunctionCallback(lambda trainer, epoch, logs: seen.append(len(rows_of(tmp_path / "log.csv"))))
    fit(trainer_of([gm.CSVLog(tmp_path / "log.csv"), look]), epochs=4)
    assert seen == expected
    assert len(rows_of(tmp_path / "log.csv")) == 4


# ---- checkpoints ----


def test_a_checkpoint_holds_the_best_model_so_far(tmp_path):
    path = tmp_path / "best.safetensors"
    trainer = trainer_of(gm.ModelCheckpoint(path), lr=3.0)
    history = fit(trainer, epochs=60)
    from gpumlp.validation import split_rows

    _, held = split_rows(40, 0.25, LABELS, seed=2)
    best = gm.load_model(path)
    loaded = gm.Trainer(best.network, loss=best.loss).evaluate(X[held], LABELS[held])
    assert loaded["loss"] == min(history["val_loss"])
    assert loaded["loss"] < trainer.evaluate(X[held], LABELS[held])["loss"]


def test_checkpoints_of_every_few_epochs_have_the_number_in_their_names(tmp_path):
    kept: dict[int, np.ndarray] = {}
    keep = FunctionCallback(lambda trainer, epoch, logs: kept.update({epoch: trainer.predict(X)}))
    save = gm.ModelCheckpoint(tmp_path / "model-{epoch}.safetensors", best_only=False, every=3)
    fit(trainer_of([save, keep]), epochs=7, validation_split=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-3.safetensors", "model-6.safetensors"]
    for epoch in (3, 6):
        model = gm.load_model(tmp_path / f"model-{epoch}.safetensors", device="cpu")
        np.testing.assert_array_equal(model.predict(X), kept[epoch])


def test_only_better_epochs_are_written(tmp_path):
    save = gm.ModelCheckpoint(tmp_path / "{epoch}.safetensors", monitor="val_accuracy")
    history = fit(trainer_of(save, lr=3.0), epochs=30)
    best, expected = -math.inf, set()
    for epoch, value in zip(history["epoch"], history["val_accuracy"], strict=True):
        if value > best:
            best = value
            expected.add(f"{int(epoch)}.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert 1 < len(expected) < 30


def test_a_log_in_a_folder_that_is_not_there_is_one_line_before_anything_is_trained(tmp_path):
    log = gm.CSVLog(tmp_path / "missing" / "log.csv")
    trainer = gm.Trainer(gm.mlp((4, 3), device="cpu"), loss="cross_entropy", callbacks=[log])
    with pytest.raises(
        ValueError, match=r"CSVLog cannot write .*log\.csv: there is no folder .*missing; create"
    ):
        trainer.fit(np.eye(4), np.arange(4) % 3, epochs=1, batch_size=4, progress=False)
    assert trainer.history.steps == 0
