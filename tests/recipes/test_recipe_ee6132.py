"""Report ee6132: a quick run on few made-up images goes through, and what its own functions add is right."""

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpumlp.recipes import Outcome, Runner, load_recipe
from gpumlp.recipes.ee6132 import parts
from gpumlp.workloads import _mnist_is_here

pytest.importorskip("skimage", reason="HOG features need scikit-image")
REAL = os.environ.get("GPUMLP_DATA") if _mnist_is_here(None) else None


@pytest.fixture(scope="module")
def results(quick_run):
    return quick_run("ee6132")


def test_a_quick_run_goes_through_and_every_claim_finds_its_figure(results):
    assert results.is_complete
    assert all(verdict.reproduced is not None for found in results.verdicts.values() for verdict in found)


def test_every_figure_of_the_report_is_drawn(results):
    drawn = {part: len(record.pictures) for part, record in results.records.items() if record.pictures}
    assert drawn == {
        "baseline": 2, "learning-rates": 2, "activations": 2, "inactive-neurons": 1, "l2": 1, "noise": 1,
        "hog-networks": 1, "summary": 1,
    }  # fmt: skip


def test_neurons_are_counted_before_training_and_after_each_epoch(results):
    arrays = results.records["activations"].outcome.arrays
    assert arrays["activity.epoch"].tolist() == [0, 1, 2, 3]
    for name in ("sigmoid", "tanh", "relu"):
        share = arrays[f"{name}.h1.inactive"]
        assert share.shape == (4,)
        assert 0.3 < share[0] < 0.7  # weights about 0


def test_networks_and_learners_see_576_features(results):
    notes = results.records["hog-networks"].outcome.notes
    assert notes[0].startswith("The features of 840 images took")
    config = load_recipe("ee6132").config(load_recipe("ee6132").part("hog-networks"))
    assert config["network"]["hidden"] == [300, 150]


def test_the_summary_adds_up_the_parts_on_the_pixels(results):
    seconds = sum(results.records[part].seconds for part in parts.ON_PIXELS)
    assert results.records["summary"].values["table_seconds"] == pytest.approx(seconds)


def test_the_summary_shows_the_published_accuracies_of_the_claims():
    recipe = load_recipe("ee6132")
    for label, (part, value, published) in parts.PUBLISHED.items():
        claims = [claim for claim in recipe.part(part).claims if claim.keys == (value,)]
        assert [claim.published for claim in claims] == [published], label


def test_noise_is_all_that_tells_the_noisy_networks_from_the_baseline():
    recipe = load_recipe("ee6132")
    noisy = recipe.config(recipe.part("noise"))["network"]["layers"]
    baseline = recipe.config(recipe.part("baseline"))["network"]
    assert [layer["out_features"] for layer in noisy[1:-1] if layer["name"] == "linear"] == baseline["hidden"]
    assert all(
        layer[key] == baseline[key]
        for layer in noisy
        if layer["name"] == "linear"
        for key in ("weight_init", "bias_init")
    )
    assert noisy[0]["name"] == "gaussian_noise"


def fake_run(**values):
    return SimpleNamespace(**values)


def test_pairs_of_digits_are_counted_in_both_directions():
    true = np.array([4, 9, 9, 3, 5, 5, 5, 7])
    predicted = np.array([9, 4, 9, 5, 3, 3, 5, 7])
    scored = SimpleNamespace(true=true, predicted=predicted, scores={"accuracy": 3 / 8})
    outcome = Outcome()
    context: Any = None
    parts.misclassified(context, {"one": fake_run(scores={"test": scored})}, outcome)
    assert outcome.values["test.misclassified"] == pytest.approx(62.5)
    assert outcome.values["place_of_4_and_9"] == 2  # behind 3 and 5, which are three
    assert outcome.tables[0].rows[0] == ["3 and 5", 3]


def test_a_curve_of_batches_has_the_mean_of_each_hundred_steps():
    run = fake_run(history=SimpleNamespace(step_losses=[*[1.0] * 100, *[3.0] * 100, 7.0]))
    steps, losses = parts._train_curve(run)
    assert steps.tolist() == [100, 200]
    assert losses.tolist() == [1.0, 3.0]


def test_a_loss_after_steps_is_the_last_one_measured_by_then():
    arrays: dict[str, np.ndarray] = {}
    for name, losses in (("sigmoid", [9.0, 5.0, 1.0]), ("tanh", [8.0, 4.0, 1.0]), ("relu", [7.0, 3.0, 1.0])):
        arrays |= {f"{name}.val.step": np.array([1600, 2000, 2400]), f"{name}.val.val_loss": np.array(losses)}
    context: Any = SimpleNamespace(
        needed={"activations": Outcome(arrays=arrays)}, options={"step": 2000}, outcome=Outcome
    )
    assert parts.after_steps(context).values["losses"] == [5.0, 4.0, 3.0]


@pytest.mark.skipif(REAL is None, reason="the MNIST files are not here; name their folder in GPUMLP_DATA")
def test_a_network_learns_real_digits_from_hog_features(tmp_path, write_mnist):
    from gpumlp.data import load_mnist

    data = load_mnist(REAL)
    rows = np.r_[:3000, 60000:60500]
    folder = write_mnist(tmp_path / "mnist", data.features[rows], data.y[rows], 3000)
    runner = Runner(load_recipe("ee6132"), tmp_path / "out", device="cpu", data_dir=str(folder))
    record = runner.run(runner.recipe.part("hog-networks"))
    assert record.values["300-150.test.accuracy"] > 0.85  # with 60,000 images 0.98
