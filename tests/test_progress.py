"""gpumlp.progress: a bar on a terminal, lines elsewhere, nothing on request."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import progress

X = np.random.default_rng(0).normal(size=(20, 3))
Y = X @ [1.0, 2.0, 3.0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fit(**settings) -> gm.Trainer:
    callbacks = settings.pop("callbacks", None)
    trainer = gm.Trainer(
        gm.mlp((3, 4, 1), device="cpu"), loss="mse", optimizer=gm.SGD(0.01), callbacks=callbacks
    )
    trainer.fit(X, Y, batch_size=None, **{"epochs": 4, **settings})
    return trainer


def lines_of(err: str) -> list[str]:
    """Those of epochs: the first training on a machine also says that it compiles."""
    return [line for line in err.splitlines() if line.startswith("epoch")]


def test_there_is_one_line_an_epoch_where_the_stream_is_no_terminal(capsys):
    trainer = fit(validation_split=0.2)
    out, err = capsys.readouterr()
    assert out == ""
    lines = lines_of(err)
    assert len(lines) == 4
    for i, line in enumerate(lines):
        found = re.fullmatch(r"epoch (\d)/4: loss (\S+), val_loss (\S+), (\S+) it/s", line)
        assert found, line
        assert int(found[1]) == i + 1
        assert float(found[2]) == pytest.approx(trainer.history["loss"][i], rel=1e-5)
        assert float(found[3]) == pytest.approx(trainer.history["val_loss"][i], rel=1e-3)
        assert float(found[4]) > 0


@pytest.mark.parametrize(("epochs", "step"), [(100, 1), (101, 2), (500, 5), (333, 4)])
def test_a_long_training_has_a_hundred_lines_and_that_of_its_last_epoch(epochs, step, capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 1000.0)
    trainer = fit(epochs=epochs)
    lines = lines_of(capsys.readouterr().err)
    shown = sorted({*range(step, epochs + 1, step), epochs})
    assert [line.split(":")[0] for line in lines] == [f"epoch {n}/{epochs}" for n in shown]
    assert [float(line.split("loss ")[1].split(",")[0]) for line in lines] == pytest.approx(
        [trainer.history["loss"][n - 1] for n in shown], rel=1e-5
    )


def test_a_training_that_stops_early_says_where(capsys):
    trainer = fit(epochs=1000, callbacks=[gm.EarlyStopping(monitor="loss", patience=2, min_delta=1e9)])
    lines = lines_of(capsys.readouterr().err)
    assert len(trainer.history) == 3
    assert lines[-1].startswith("epoch 3/1000: ")


def test_a_slow_training_has_lines_between_those(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    fit(epochs=1000, callbacks=[lambda trainer, epoch, logs: None])  # which lets epochs end one by one
    assert len(lines_of(capsys.readouterr().err)) == 1000


def test_an_epoch_that_was_not_validated_shows_no_nan(capsys):
    fit(epochs=4, validation_split=0.2, validate_every=2)
    lines = lines_of(capsys.readouterr().err)
    assert ["val_loss" in line for line in lines] == [False, True, False, True]
    assert "nan" not in "".join(lines)


def test_the_silence_is_complete_on_request(capfd):
    fit(progress=False, validation_split=0.2)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_with_loss_and_epochs_a_second(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    trainer = fit(epochs=30, validation_split=0.2)
    shown = terminal.getvalue()
    assert "\r" in shown
    assert "epoch 1/" not in shown
    last = shown.split("\r")[-1]
    assert "30/30" in last
    assert "it/s" in last
    loss = re.search(r"loss (\S+), val_loss (\S+?)\]?\s*$", last)
    assert loss, last
    assert float(loss[1]) == pytest.approx(trainer.history["loss"][-1], rel=1e-3)
    assert last.endswith("\n")  # the bar was closed


def test_a_terminal_stays_silent_on_request(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(progress=False)
    assert terminal.getvalue() == ""


def test_the_bar_is_closed_when_the_training_fails(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def fail(trainer, epoch, logs):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(callbacks=fail)
    assert terminal.getvalue().endswith("\n")


def test_a_resumed_training_counts_from_where_it_was(capsys, monkeypatch):
    first = fit(epochs=2, progress=False)
    state = first.state_dict()

    def resumed() -> gm.Trainer:
        trainer = gm.Trainer(gm.mlp((3, 4, 1), device="cpu"), loss="mse", optimizer=gm.SGD(0.01))
        trainer.load_state_dict(*state)
        return trainer

    resumed().fit(X, Y, epochs=4, batch_size=None)
    lines = lines_of(capsys.readouterr().err)
    assert [line.split(":")[0] for line in lines] == ["epoch 3/4", "epoch 4/4"]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    resumed().fit(X, Y, epochs=4, batch_size=None)
    assert "2/4" in terminal.getvalue().split("\r")[1]
    assert "4/4" in terminal.getvalue().split("\r")[-1]
