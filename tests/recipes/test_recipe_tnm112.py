"""Report tnm112: a quick run holds, Keras's weights give what Keras measured, hand-set boundaries are told apart."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumlp.experiment import set_up
from gpumlp.recipes import Context, load_recipe
from gpumlp.recipes.tnm112 import boundary, keras_side, parts


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("tnm112")


@pytest.fixture(scope="module")
def results(quick_run):
    return quick_run("tnm112")


def test_a_quick_run_goes_through_and_holds(results):
    assert results.is_complete
    assert results.holds
    assert results.counts["holds"] >= 18
    assert results.counts["fault in the report"] == 3


def test_every_figure_of_the_report_is_drawn(results):
    drawn = {part: len(record.pictures) for part, record in results.records.items()}
    assert drawn == {
        "batch-size": 6, "activations": 7, "deep-momentum": 4, "deep-adam": 3, "keras-weights": 2, "hand-weights": 2,
    }  # fmt: skip


def test_parts_whose_weights_are_moved_or_set_name_an_executor_too(results):
    executors = {part: record.outcome.executor for part, record in results.records.items()}
    assert len(set(executors.values())) == 1
    assert executors["hand-weights"].startswith(("compiled", "eager"))


def test_updates_are_those_of_1024_points_in_four_epochs(results):
    values = results.records["batch-size"].values
    assert (values["batch 16.updates"], values["batch 512.updates"]) == (4 * 1024 // 16, 4 * 1024 // 512)


def test_a_network_of_linear_units_does_no_better_than_a_straight_line(results):
    # no line parts a ring from what it surrounds
    values = results.records["activations"].values
    assert max(values["linear.accuracy"]) < min(values["ReLU.accuracy"]) - 20


def test_the_conventions_are_those_of_keras(recipe):
    momentum, adam = (recipe.config(recipe.part(id)) for id in ("deep-momentum", "deep-adam"))
    assert momentum["optimizer"]["form"] == "keras"
    assert momentum["optimizer"]["lr"] == {
        "name": "exponential", "lr": 0.05, "factor": 0.85, "every": 400, "unit": "steps", "staircase": True,
    }  # fmt: skip
    assert adam["optimizer"]["eps"] == 1e-7
    assert adam["network"]["weight_init"]["name"] == "glorot_truncated_normal"


# --- Keras ----------------------------------------------------------------------------------------------------------


def test_the_recorded_model_gives_what_keras_measured(recipe, results):
    recorded = json.loads((recipe.folder / keras_side.MEASURED).read_text())
    values = results.records["keras-weights"].values
    for part in ("train", "test"):
        assert values[f"{part}.loss"] == pytest.approx(recorded[part]["loss"], abs=5e-7)
        assert values[f"{part}.accuracy"] == pytest.approx(100 * recorded[part]["accuracy"], abs=1e-4)


def test_other_weights_do_not_give_what_keras_measured(recipe):
    from gpumlp.interop import load_keras_weights

    recorded = json.loads((recipe.folder / keras_side.MEASURED).read_text())
    experiment = set_up(recipe.config(recipe.part("keras-weights"), device="cpu"))
    load_keras_weights(experiment.trainer.network, recipe.folder / keras_side.WEIGHTS)
    state = experiment.trainer.network.state_dict()
    state["1.weight"] = state["1.weight"].T.copy()  # square: the mistake that shapes do not show
    experiment.trainer.network.load_state_dict(state)
    _, gaps = parts._compare("Keras", recorded, parts._measured("transposed", experiment))
    assert min(loss for loss, _ in gaps) > 0.01


def test_without_keras_a_sentence_says_so(recipe, monkeypatch):
    monkeypatch.setattr(parts, "load_keras", lambda: None)
    outcome = parts.move_from_keras(Context(recipe, recipe.part("keras-weights"), quick=True, device="cpu"))
    assert any("not installed" in note for note in outcome.notes)
    names = [row[0] for row in outcome.tables[0].rows]
    assert not any("live" in name for name in names)
    assert sum("recorded" in name for name in names) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Keras, about the library below it
def test_a_live_model_of_keras_gives_the_same_figures(recipe):
    keras = keras_side.load_keras()
    if keras is None:
        pytest.skip("Keras or its backend is not installed")
    context = Context(recipe, recipe.part("keras-weights"), quick=True, device="cpu")
    run, measured = parts._live(context, keras, set_up(context.config))
    _, gaps = parts._compare("live", measured, run)
    assert max(max(pair) for pair in gaps) < 5e-5


def test_the_shipped_files_are_small(recipe):
    assert (
        sum((recipe.folder / name).stat().st_size for name in (keras_side.WEIGHTS, keras_side.MEASURED))
        < 30_000
    )


# --- weights set by hand ----------------------------------------------------------------------------------------------


def conditions(weight, bias) -> dict[str, bool]:
    """The three parts of the condition in the report's words; W is (out, in)."""
    return {
        "slope": bool(np.isclose(weight[0, 0] - weight[0, 1], weight[1, 0] - weight[1, 1])),
        "place": bool(np.isclose(weight[0, 1] + bias[0], weight[1, 1] + bias[1])),
        "side": bool(bias[0] > bias[1]),
    }


def classes_of(weight, bias):
    return lambda X: (X @ weight.T + bias).argmax(axis=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["meeting", "slope", "place", "side"]))
def test_random_weights_break_what_they_are_said_to_break_and_then_have_another_boundary(seed, broken):
    weight, bias = boundary.random_weights(np.random.default_rng(seed), broken)
    assert [name for name, met in conditions(weight, bias).items() if not met] == (
        [] if broken == "meeting" else [broken]
    )
    assert boundary.parts_the_plane(classes_of(weight, bias)) is (broken == "meeting")


def test_the_matrices_of_the_report_meet_its_condition(recipe):
    for matrix in recipe.part("hand-weights").options["matrices"]:
        assert all(conditions(np.array(matrix["weight"]), np.array(matrix["bias"])).values())


@pytest.mark.parametrize("shift", [0.0, 0.03, -0.4])
def test_the_distance_of_a_shifted_boundary_is_its_shift(shift):
    found = boundary.boundary_distance(lambda X: (X.sum(axis=1) > 1 + shift * np.sqrt(2)).astype(int))
    assert found == pytest.approx(abs(shift), abs=1e-8)


def test_a_boundary_that_is_nowhere_near_or_turned_round_is_infinitely_far():
    assert boundary.boundary_distance(lambda X: np.zeros(len(X), int)) == np.inf
    assert boundary.boundary_distance(lambda X: (X.sum(axis=1) < 1).astype(int)) == np.inf
