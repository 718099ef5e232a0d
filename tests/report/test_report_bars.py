"""gpumlp.report.bars: bars, pairs of published and own figures, histograms; and what all new figures have."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure

from gpumlp.report import (
    figure_svg,
    plot_bars,
    plot_curve_panels,
    plot_curves,
    plot_decision_regions,
    plot_fits,
    plot_histograms,
    plot_points,
    plot_probability_map,
    plot_published_and_ours,
)
from gpumlp.report.style import INK

POINTS = {"train": (np.random.default_rng(0).random((20, 2)), np.arange(20) % 2)}


def panels(figure: Figure) -> list[Any]:
    return list(figure.axes)


def test_bars_stand_from_top_to_bottom_with_their_values():
    figure = plot_bars({"single neuron": 0.8, "1-64-128-1": 9.7, "none": 0.0}, "time", unit="s")
    (axes,) = panels(figure)
    assert [bar.get_width() for bar in axes.patches] == [0.8, 9.7, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["single neuron", "1-64-128-1", "none"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [text.get_text() for text in axes.texts] == ["0.8 s", "9.7 s", "0 s"]
    assert axes.get_xlabel() == "time, s"
    assert figure.get_label() == "Bars of time: single neuron 0.8 s, 1-64-128-1 9.7 s, none 0 s."


def test_bars_over_two_decades_have_a_log_scale_and_end_at_their_values():
    (axes,) = panels(plot_bars({"a": 0.8, "b": 1419.7}))
    assert axes.get_xscale() == "log"
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert ends == pytest.approx([0.8, 1419.7])
    assert axes.get_xlim()[0] < 0.8
    assert panels(plot_bars({"a": 0.8, "b": 1419.7}, log=False))[0].get_xscale() == "linear"


def test_published_is_hollow_ours_is_full_and_the_ratio_is_written():
    figure = plot_published_and_ours(
        {"small": (700.0, 4900.0), "simple": (1700.0, None)}, "speed", unit="it/s"
    )
    (axes,) = panels(figure)
    line, published, ours, alone = axes.get_lines()
    assert line.get_xdata().tolist() == [700, 4900]
    assert (published.get_xdata().tolist(), published.get_markerfacecolor()) == ([700], "none")
    assert ours.get_xdata().tolist() == [4900]
    assert ours.get_markerfacecolor() != "none"
    assert alone.get_xdata().tolist() == [1700]
    assert [text.get_text() for text in axes.texts] == ["×7"]
    assert str(figure.get_label()) == (
        "Published and ours, speed: small: published 700 it/s, ours 4\u202f900 it/s, ratio 7; "
        "simple: published 1\u202f700 it/s, ours not known."
    )
    without = plot_published_and_ours({"a": (0.93, 0.94)}, "accuracy", ratios=False)
    assert not panels(without)[0].texts


def test_histograms_are_densities_with_one_panel_a_layer():
    rng = np.random.default_rng(0)
    few, many = np.histogram(rng.normal(size=100), 10)[::-1], np.histogram(rng.normal(size=5000), 30)[::-1]
    figure = plot_histograms({"h1": {"start": few, "end": many}, "h2": {"end": many}}, "activation")
    one, two = panels(figure)
    for step, (edges, _) in zip(one.patches[::2], (few, many), strict=True):
        values, shown, _ = step.get_data()
        assert np.sum(values * np.diff(shown)) == pytest.approx(1)
        assert shown.tolist() == edges.tolist()
    assert two.patches[0].get_edgecolor() == one.patches[2].get_edgecolor()
    assert one.get_xlabel() == "activation"


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (lambda: plot_bars({}), "no bar to plot"),
        (lambda: plot_bars({"a": -1.0}), "expected finite numbers of at least 0"),
        (lambda: plot_bars({"a": float("nan")}), "expected finite numbers of at least 0"),
        (lambda: plot_bars({"a": 0.0}, log=True), "a logarithmic scale has no 0"),
        (lambda: plot_published_and_ours({"a": (None, None)}), "no figure to plot"),
        (
            lambda: plot_published_and_ours({"a": (0.0, 1.0)}, log=True),
            "needs numbers above 0; the least is 0",
        ),
        (lambda: plot_histograms({"h1": {}}), "no histogram to plot"),
        (
            lambda: plot_histograms({"h1": {"a": ([0, 1], [1, 2])}}),
            "2 edges and 2 counts; expected one edge more",
        ),
    ],
)
def test_what_cannot_be_plotted_is_one_clear_line(plot, message):
    with pytest.raises(ValueError, match=message):
        plot()


ALL_PLOTS = {
    "bars": lambda: plot_bars({"a": 1.0, "b": 200.0}, "time", unit="s"),
    "curves": lambda: plot_curves({"a": [1.0, 2.0], "b": [2.0, 3.0]}, mean=True),
    "fits": lambda: plot_fits([1, 2], [1, 2], {"f": ([1, 2], [1, 2])}),
    "histograms": lambda: plot_histograms({"h1": {"a": ([0, 1, 2], [1, 2])}}),
    "map": lambda: plot_probability_map(lambda x: x[:, 0], POINTS),
    "pairs": lambda: plot_published_and_ours({"a": (1.0, 2.0)}),
    "panels": lambda: plot_curve_panels({"h1": {"a": [0.1, 0.2]}}, "inactive", percent=True),
    "points": lambda: plot_points(POINTS),
    "regions": lambda: plot_decision_regions(lambda x: (x[:, 0] > 0.5).astype(int), POINTS),
    "scale": lambda: plot_curves({"a": [1.0, 2.0], "b": [2.0, 3.0]}, scale=[1, 2]),
}


@pytest.mark.parametrize("name", ALL_PLOTS)
def test_a_figure_carries_its_alternative_text_and_serves_light_and_dark_pages(name):
    figure = ALL_PLOTS[name]()
    alternative = str(figure.get_label())
    assert len(alternative) > 20
    svg = figure_svg(figure, "figure-1", alternative)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == alternative
    # all text follows the page's colour: none has the ink, or a fill of its own
    assert INK not in svg
    assert "currentColor" in svg
    assert not [t for t in root.iter("text") if "fill: #" in t.get("style", "")]


@pytest.mark.parametrize("name", ALL_PLOTS)
def test_the_users_settings_are_left_as_they_were(name):
    with matplotlib.style.context(["dark_background", {"font.size": 30}]):
        before = dict(matplotlib.rcParams)
        figure = ALL_PLOTS[name]()
        assert dict(matplotlib.rcParams) == before
    assert panels(figure)[0].xaxis.label.get_fontsize() == 10
