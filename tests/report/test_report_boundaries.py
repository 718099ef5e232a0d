"""gpumlp.report.boundaries: regions, probabilities and points of two features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from gpumlp.report import figure_svg, plot_decision_regions, plot_points, plot_probability_map

X = np.array([[0.1, 0.5], [0.4, 0.5], [0.6, 0.5], [0.9, 0.5], [0.45, 0.1]])
Y = np.array([0, 0, 1, 1, 1])


def right_half(x):
    return (x[:, 0] > 0.5).astype(int)


def likely(x):
    return 1 / (1 + np.exp(-20 * (x[:, 0] - 0.5)))


def panels(figure: Figure) -> list[Any]:
    return list(figure.axes)


def test_regions_have_the_colours_of_the_classes_that_the_classifier_gives():
    (axes,) = panels(plot_decision_regions(right_half, {"train": (X, Y)}, resolution=40))
    image = np.asarray(axes.images[0].get_array())
    left, right, _, _ = axes.images[0].get_extent()
    centres = left + (np.arange(40) + 0.5) / 40 * (right - left)
    colors = {tuple(pixel) for pixel in image.reshape(-1, 4)}
    assert len(colors) == 2
    for column, x in enumerate(centres):
        expected = image[0, 0] if x <= 0.5 else image[0, -1]
        assert (image[:, column] == expected).all()


def test_exactly_the_misclassified_points_are_circled():
    figure = plot_decision_regions(right_half, {"train": (X, Y), "test": (X[:4], Y[:4])})
    train, test = panels(figure)
    circled = train.get_lines()[-1]
    assert circled.get_markerfacecolor() == "none"
    assert circled.get_xydata().tolist() == [[0.45, 0.1]]
    assert test.get_lines()[-1].get_xydata().size == 0
    assert [axes.get_title() for axes in (train, test)] == ["train: 80.00% right", "test: 100.00% right"]
    assert figure.get_label() == (
        "Decision regions of the classes 0, 1 over x1 and x2. train: 1 of 5 points misclassified (80.00% right); "
        "test: 0 of 4 points misclassified (100.00% right)."
    )


def test_a_classifier_may_answer_with_names():
    names = np.array(["no", "yes"])
    figure = plot_decision_regions(
        lambda x: names[right_half(x)], {"train": (X, names[Y])}, classes=["no", "yes"], resolution=20
    )
    assert panels(figure)[0].get_title() == "train: 80.00% right"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["no", "yes", "misclassified"]


@pytest.mark.parametrize(
    "predict", [likely, lambda x: likely(x)[:, None], lambda x: np.stack([1 - likely(x), likely(x)], 1)]
)
def test_the_map_has_the_probability_of_the_second_class_in_any_form(predict):
    axes, bar = panels(plot_probability_map(predict, {"all": (X, Y)}, resolution=30))
    p = np.asarray(axes.images[0].get_array())
    left, right, _, _ = axes.images[0].get_extent()
    centres = left + (np.arange(30) + 0.5) / 30 * (right - left)
    np.testing.assert_allclose(p, np.tile(likely(centres[:, None]), (30, 1)), atol=1e-5)
    assert axes.get_title() == "all: 80.00% right"
    assert bar.get_ylabel() == "probability of class 1"


def test_the_boundary_is_drawn_where_the_probability_is_one_half():
    axes, _ = panels(plot_probability_map(likely, {"all": (X, Y)}, resolution=100))
    (path,) = axes.collections[0].get_paths()
    np.testing.assert_allclose(path.vertices[:, 0], 0.5, atol=0.01)
    certain = plot_probability_map(lambda x: np.full(len(x), 0.9), {"all": (X, Y)})
    assert not panels(certain)[0].collections


def test_raw_and_normalised_points_have_axes_of_their_own():
    raw = X * [10, 1000]
    figure = plot_points({"raw": (raw, Y), "normalised": (X, Y)}, feature_names=("height", "weight"))
    one, two = panels(figure)
    assert one.get_ylim()[1] > 500 > 1 > two.get_ylim()[1] > 0.5
    assert one.get_xlabel() == "height"
    assert [len(line.get_xdata()) for line in one.get_lines()[:2]] == [2, 3]
    assert "raw: 5 points, height from 1 to 9, weight from 100 to 500" in str(figure.get_label())


def test_many_points_are_one_picture_and_its_file_is_small():
    rng = np.random.default_rng(0)
    many = rng.random((5000, 2))
    figure = plot_decision_regions(right_half, {"train": (many, right_half(many))})
    assert len(figure_svg(figure, "f", "text")) < 300_000
    figure = plot_probability_map(likely, {"train": (X, Y)})
    assert len(figure_svg(figure, "f", "text")) < 100_000


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (lambda: plot_points({}), "no points to plot"),
        (
            lambda: plot_points({"a": (X[:, :1], Y)}),
            r"a: X has shape \(5, 1\) and y \(5,\); expected \(n, 2\)",
        ),
        (lambda: plot_points({"a": (X, Y[:3])}), r"X has shape \(5, 2\) and y \(3,\)"),
        (
            lambda: plot_points({"a": (X, Y + 3)}, classes=["a", "b"]),
            "class codes from 3 to 4; expected 0 to 1",
        ),
        (lambda: plot_points({"a": (X, list("aabbc"))}, classes=["a", "b"]), "unknown class 'c'"),
        (lambda: plot_probability_map(likely, {"a": (X, Y + 1)}), "is for two classes; there are 3"),
    ],
)
def test_what_cannot_be_plotted_is_one_clear_line(plot, message):
    with pytest.raises(ValueError, match=message):
        plot()
