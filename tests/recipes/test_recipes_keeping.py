"""Parts that were interrupted: they go on where they were, and end with the bits of one that was not."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpumlp.callbacks import Callback
from gpumlp.checkpoint import load_tensors
from gpumlp.experiment import set_up
from gpumlp.recipes import Runner
from gpumlp.recipes.keeping import Keeper
from gpumlp.recipes.training import Share


class Interrupting(Callback):
    """Presses Ctrl-C after an epoch, once."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.begun_with: list[int] = []

    def on_train_begin(self, trainer):
        self.begun_with.append(len(trainer.history))

    def on_epoch_end(self, trainer, epoch, logs):
        if epoch == self.epoch and len(self.begun_with) == 1:
            raise KeyboardInterrupt

    def __deepcopy__(self, memo):
        return self


@pytest.fixture
def interrupted(write_recipe, tmp_path, monkeypatch):
    """A runner whose first part was interrupted after its fourth epoch of six, and what saw its trainings."""
    runner = Runner(write_recipe(), tmp_path / "out")
    seen = Interrupting(4)
    attach = Keeper.attach

    def watched(keeper, experiment):
        experiment.trainer.callbacks.append(seen)
        attach(keeper, experiment)

    monkeypatch.setattr(Keeper, "attach", watched)
    with pytest.raises(KeyboardInterrupt):
        runner.run(runner.recipe.part("one"))
    return runner, seen


def test_an_interrupted_part_goes_on_and_ends_with_the_same_bits(interrupted, tmp_path):
    runner, seen = interrupted
    again = Runner(runner.recipe, tmp_path / "out")
    resumed = again.run(again.recipe.part("one"))
    assert seen.begun_with == [0, 4]
    other = Runner(runner.recipe, tmp_path / "other")
    fresh = other.run(other.recipe.part("one"))
    assert resumed.values["epochs"] == 6
    np.testing.assert_array_equal(resumed.outcome.arrays["loss"], fresh.outcome.arrays["loss"])
    assert resumed.values["test.loss"] == fresh.values["test.loss"]


def test_the_time_of_an_interrupted_run_counts(interrupted, monkeypatch):
    runner, _ = interrupted
    (state,) = (runner.folder / "unfinished" / "one").glob("*.safetensors")
    _, metadata = load_tensors(state)
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    keeper = Keeper(state.parent)
    assert keeper.spent()[0] == 0
    keeper.attach(set_up(runner.recipe.config(runner.recipe.part("one"))))
    assert keeper.spent()[0] == metadata["spent"][0] > 0


def test_nothing_is_left_of_a_part_that_is_done(interrupted, tmp_path):
    runner, _ = interrupted
    assert list((runner.folder / "unfinished" / "one").glob("*.safetensors"))
    runner.run(runner.recipe.part("one"))
    assert not (runner.folder / "unfinished").exists()


def test_other_settings_begin_anew(interrupted, write_recipe, tmp_path):
    _, seen = interrupted
    runner = Runner(write_recipe(lr=0.2), tmp_path / "out")
    runner.run(runner.recipe.part("one"))
    assert seen.begun_with == [0, 0]


def test_a_damaged_state_begins_anew(interrupted):
    runner, seen = interrupted
    (state,) = (runner.folder / "unfinished" / "one").glob("*.safetensors")
    state.write_bytes(state.read_bytes()[:-40])
    assert not runner.run(runner.recipe.part("one")).error
    assert seen.begun_with == [0, 0]


def test_fresh_forgets_what_was_kept(interrupted):
    runner, seen = interrupted
    runner.forget()
    runner.run(runner.recipe.part("one"))
    assert seen.begun_with == [0, 0]


def test_the_bar_of_a_part_that_goes_on_begins_where_it_was():
    told: list[float] = []
    share = Share(told.append, 10)
    resumed: Any = SimpleNamespace(history=range(6))
    share.on_train_begin(resumed)
    share.on_epoch_end(resumed, 7, {})
    assert told == [0.7]
