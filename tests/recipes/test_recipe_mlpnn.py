"""Report mlpnn: a quick run on few made-up images goes through, and its parts show what they say."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpumlp.recipes import Outcome, load_recipe
from gpumlp.recipes.mlpnn import parts
from gpumlp.recipes.results import FAULT, HOLDS


@pytest.fixture(scope="module")
def results(quick_run):
    return quick_run("mlpnn")


def verdicts(results, part):
    return {verdict.claim.keys[0]: verdict for verdict in results.verdicts[part]}


def test_a_quick_run_goes_through_and_every_claim_finds_its_figure(results):
    assert results.is_complete
    assert all(verdict.reproduced is not None for found in results.verdicts.values() for verdict in found)


def test_every_figure_of_the_report_is_drawn(results):
    drawn = {part: len(record.pictures) for part, record in results.records.items()}
    assert drawn == {"mixed-activations": 1, "cross-entropy": 2, "kl-divergence": 2, "faults": 0}


def test_a_mixed_layer_is_its_perceptrons_one_by_one(results):
    assert verdicts(results, "mixed-activations")["largest_difference"].verdict == HOLDS
    rows = results.records["mixed-activations"].outcome.tables[0].rows
    assert [row[:2] for row in rows] == [["sigmoid", 8], ["tanh", 8], ["relu", 8], ["identity", 8]]


def test_losses_are_sums_over_the_training_images(results):
    record = results.records["cross-entropy"]
    np.testing.assert_allclose(record.values["losses"], 640 * record.outcome.arrays["loss"][[0, -1]])
    assert record.values["losses"][0] > 640  # weights N(0, 1): far from log 10 an image


def test_the_faults_are_shown_and_are_not_ours(results):
    found = verdicts(results, "faults")
    assert found["kl.sum"].verdict == FAULT
    assert found["kl.sum"].reproduced > 0
    assert found["kl.undefined"].verdict == FAULT
    # every term of a class that is not the image's
    assert found["kl.undefined_as_written"].reproduced == 9 * 640
    assert found["softmax.lost_as_written"].verdict == HOLDS
    assert found["softmax.lost"].reproduced == 0


def test_both_losses_train_alike_and_the_clip_changes_the_printed_loss_alone(results):
    found = verdicts(results, "faults")
    assert found["same_loss.difference"].verdict == HOLDS
    assert found["clip.weights_difference"].reproduced == 0
    clipped, free = found["clip.loss_with"].reproduced
    assert clipped < free


def test_losses_are_compared_where_they_were_published(monkeypatch):
    losses = np.linspace(3, 1, 450)
    history = {"loss": losses.tolist(), "epoch": list(range(1, 451))}
    run: Any = SimpleNamespace(
        experiment=SimpleNamespace(prepared=SimpleNamespace(n_train=60000)),
        history=FakeHistory(history, 90.0),
    )
    monkeypatch.setattr(parts, "_seconds_of_test", lambda run: 0.5)
    context: Any = SimpleNamespace(part=SimpleNamespace(id="cross-entropy"))
    outcome = Outcome()
    parts.summed_losses(context, {"cross-entropy": run}, outcome)
    ours = 60000 * losses[[199, 399]]
    np.testing.assert_allclose(outcome.values["losses"], ours)
    assert outcome.values["largest_difference"] == pytest.approx(
        100 * max(abs(ours[0] / 140016 - 1), abs(ours[1] / 98762 - 1))
    )
    assert outcome.values["epoch_seconds"] == pytest.approx(90 / 450 + 0.5)


class FakeHistory(dict):
    """Columns, and the seconds of training."""

    def __init__(self, columns, train_seconds):
        super().__init__(columns)
        self.train_seconds = train_seconds

    def __len__(self):
        return len(self["epoch"])


def test_the_published_losses_of_the_figures_are_those_of_the_claims():
    recipe = load_recipe("mlpnn")
    for part, published in parts.PUBLISHED.items():
        assert recipe.part(part).claims[0].published == published
