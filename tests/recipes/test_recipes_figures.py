"""Figures that recipes name: each draws what trainings gave, with a caption and an alternative text."""

import numpy as np
import pytest

from gpumlp.config import complete_config
from gpumlp.recipes.figures import FIGURES, _means, _units
from gpumlp.recipes.store import pictures_of
from gpumlp.recipes.training import fit


def config(source, settings, seed=0, standardize=True):
    return complete_config(
        {
            "data": {"source": source, "settings": settings, "standardize": standardize},
            "network": {"hidden": [3]},
            "training": {"epochs": 120, "batch_size": "full", "seed": seed, "device": "cpu"},
        }
    )


@pytest.fixture(scope="module")
def classes():
    settings = {"n_train": 30, "n_test": 20}
    return fit({f"seed {i}": config("two_cluster_classification", settings, i) for i in (0, 1)})


@pytest.fixture(scope="module")
def curve():
    return fit({"net": config("sine_sqrt_regression", {"n_samples": 40})})


@pytest.mark.parametrize("name", ["history", "curves", "regions", "probability", "confusion"])
def test_a_figure_of_classes_has_caption_and_alternative_text(name, classes):
    drawn = list(FIGURES[name](classes, {}))
    assert len(drawn) == (1 if name == "curves" else 2)
    for picture in pictures_of(name, drawn):
        assert len(picture.caption) > 5
        assert len(picture.alternative) > 20
        assert picture.svg.startswith("<svg")


def test_every_figure_is_tried():
    assert set(FIGURES) == {"history", "curves", "regions", "probability", "confusion", "fit"}


def test_only_draws_the_trainings_that_it_names(classes):
    assert len(list(FIGURES["regions"](classes, {"only": ["seed 1"]}))) == 1


def test_a_fit_is_drawn_over_the_points_in_the_units_of_the_data(curve):
    (drawn,) = FIGURES["fit"](curve, {})
    (axes,) = drawn.figure.axes
    low, high = axes.get_xlim()
    assert -11.5 < low < -9
    assert 9 < high < 11.5


@pytest.mark.parametrize("standardize", [True, False])
def test_the_units_of_a_feature_undo_its_standardisation(standardize):
    done = fit({"net": config("sine_sqrt_regression", {"n_samples": 40}, standardize=standardize)})
    prepared = done["net"].experiment.prepared
    mean, scale = _units(prepared)
    x = np.sort(prepared.X[:, 0] * scale + mean)
    np.testing.assert_allclose(x, np.linspace(-10, 10, 40), atol=1e-5)


def test_smoothed_curves_are_means_of_neighbours_and_leave_short_ones_alone(curve):
    x, y = _means(np.arange(1.0, 8), np.array([1.0, 3, 5, 7, 9, 11, 13]), 3)
    np.testing.assert_array_equal(x, [2, 5])
    np.testing.assert_array_equal(y, [3, 9])
    (drawn,) = FIGURES["curves"](curve, {"smooth": 40})
    assert "mean of each 2 epochs" in drawn.caption
