"""gpumlp.report.curves: curves over one another, with what tells them apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gpumlp.report import plot_curve_panels, plot_curves, plot_fits
from gpumlp.report.curves import MOST_IN_LEGEND, mean_curve, measured_curves

NAN = float("nan")


def panels(figure: Figure) -> list[Any]:
    return list(figure.axes)


def looks(axes: Any) -> list[tuple[Any, ...]]:
    return [(to_hex(line.get_color()), str(line._unscaled_dash_pattern)) for line in axes.get_lines()]


def test_each_curve_has_its_values_its_label_and_a_look_of_its_own():
    curves = {f"fold {i}": [i, i + 1.0, NAN, i + 2.0] for i in range(1, 21)}
    (axes,) = panels(plot_curves(curves, "validation loss", xlabel="step"))
    first = axes.get_lines()[0]
    assert first.get_xdata().tolist() == [1, 2, 4]
    assert first.get_ydata().tolist() == [1, 2, 3]
    assert first.get_label() == "fold 1"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "validation loss")
    assert len(set(looks(axes))) == 20
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(shown) == MOST_IN_LEGEND + 1
    assert shown[-1] == "and 8 more"


def test_curves_may_have_an_x_of_their_own():
    (axes,) = panels(plot_curves({"a": ([30, 10, 20], [3.0, 1.0, 2.0])}))
    assert axes.get_lines()[0].get_xdata().tolist() == [10, 20, 30]
    assert axes.get_lines()[0].get_ydata().tolist() == [1, 2, 3]


def test_the_mean_is_that_of_the_x_that_all_have():
    curves = {"a": ([1, 2, 3], [1.0, 2.0, 3.0]), "b": ([2, 3], [4.0, 7.0])}
    x, values = mean_curve(measured_curves(curves))
    assert (x.tolist(), values.tolist()) == ([2, 3], [3, 5])
    (axes,) = panels(plot_curves(curves, mean=True))
    mean = axes.get_lines()[-1]
    assert (mean.get_label(), mean.get_ydata().tolist()) == ("mean", [3, 5])
    with pytest.raises(ValueError, match="no x in common"):
        plot_curves({"a": ([1], [1.0]), "b": ([2], [4.0])}, mean=True)


def test_a_scale_gives_colours_in_order_and_a_bar_in_place_of_a_legend():
    rates = [1.0, 0.1, 0.01, 0.001]
    axes, bar = panels(plot_curves({f"lr={r}": [r, r] for r in rates}, scale=rates, scale_label="rate"))
    assert axes.get_legend() is None
    assert (bar.get_ylabel(), bar.get_yscale()) == ("rate", "log")
    colors = [color for color, _ in looks(axes)]
    assert colors[0] == "#df7518"
    assert colors[-1] == "#2f7dd1"
    assert len(set(colors)) == 4
    _, linear = panels(plot_curves({"a": [1, 2], "b": [1, 2]}, scale=[1, 2]))
    assert linear.get_yscale() == "linear"
    panels(plot_curves({"a": [1, 2], "b": [1, 2]}, scale=[5, 5]))


@pytest.mark.parametrize(
    ("values", "log", "scale"),
    [
        ([1.0, 0.009], None, "log"),
        ([1.0, 0.011], None, "linear"),
        ([1.0, 0.009], False, "linear"),
        ([1.0, 0.5], True, "log"),
    ],
)
def test_the_scale_is_logarithmic_over_two_decades_or_as_asked(values, log, scale):
    assert panels(plot_curves({"a": values}, log=log))[0].get_yscale() == scale


def test_a_label_looks_alike_in_every_panel_and_shares_are_percent():
    figure = plot_curve_panels(
        {"h1": {"tanh": [0.5, 0.6]}, "h2": {"sigmoid": [0.1, 0.2], "tanh": ([0, 1], [0.3, 0.4])}},
        "inactive",
        percent=True,
    )
    one, two = panels(figure)
    assert one.get_title() == "h1"
    assert one.get_ylabel() == "inactive, %"
    assert one.get_lines()[0].get_ydata().tolist() == pytest.approx([50, 60])
    assert looks(one)[0] == looks(two)[1]
    assert looks(two)[0] != looks(two)[1]
    assert one.get_ylim() == two.get_ylim()
    assert figure.get_label() == (
        "h1, inactive, in percent over epoch: tanh from 50 to 60. "
        "h2, inactive, in percent over epoch: sigmoid from 10 to 20; tanh from 30 to 40."
    )


def test_every_label_of_any_panel_is_in_the_legend():
    figure = plot_curve_panels({"h1": {"a": [1.0, 2.0]}, "h2": {"b": [1.0, 2.0], "a": [2.0, 3.0]}}, "x")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_fits_are_drawn_over_the_points():
    x = np.linspace(0, 1, 50)
    figure = plot_fits(x[:, None], x**2, {"fit": (x[::-1], x[::-1] ** 2)}, ylabel="y, m")
    (axes,) = panels(figure)
    points, fit = axes.get_lines()
    assert points.get_ydata().tolist() == (x**2).tolist()
    assert fit.get_xdata().tolist() == x.tolist()
    assert axes.get_ylabel() == "y, m"
    assert "50 points of y, m over x from 0 to 1" in str(figure.get_label())
    many = np.arange(5000.0)
    assert len(panels(plot_fits(many, many, {"f": (many, many)}))[0].get_lines()[0].get_xdata()) <= 2000


def test_the_alternative_text_says_where_curves_begin_and_end():
    assert plot_curves({"a": [2.0, 1.0], "b": [3.0, NAN]}, "loss").get_label() == (
        "loss over epoch: a from 2 to 1; b from 3 to 3."
    )
    many = plot_curves({f"seed={i}": [1.0, i + 1.0] for i in range(20)}).get_label()
    assert str(many).endswith("and 8 more; all end between 1 and 20.")


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (lambda: plot_curves({}), r"no finite value to plot in the curves \(none\)"),
        (lambda: plot_curves({"a": [NAN]}), "no finite value to plot in the curves a"),
        (lambda: plot_curves({"a": ([1, 2], [1.0])}), "curve 'a' has 2 x and 1 values"),
        (lambda: plot_curves({"a": [1.0, -1.0]}, log=True), "needs values above 0; the least is -1"),
        (
            lambda: plot_curves({"a": [1.0]}, scale=[1, 2]),
            r"scale has shape \(2,\); expected a finite number",
        ),
        (lambda: plot_curve_panels({}), "no panel to plot"),
        (lambda: plot_fits([1, 2], [1], {"f": ([1], [1])}), r"x has shape \(2,\) and y \(1,\)"),
    ],
)
def test_what_cannot_be_plotted_is_one_clear_line(plot, message):
    with pytest.raises(ValueError, match=message):
        plot()


@pytest.mark.parametrize(("top", "labelled"), [(1.0, {"0.3", "0.5", "1"}), (90.0, {"1", "10"})])
def test_a_logarithmic_scale_has_labels_between_powers_of_ten_where_it_spans_few(top, labelled):
    figure = plot_curves({"a": np.geomspace(0.25, top, 50)}, "loss", log=True)
    figure.canvas.draw()
    (axes,) = panels(figure)
    ticks = [*axes.yaxis.get_ticklabels(), *axes.yaxis.get_ticklabels(minor=True)]
    low, high = axes.get_ylim()
    shown = {text.get_text() for text in ticks if text.get_text() and low <= text.get_position()[1] <= high}
    assert shown >= labelled
    assert ("0.5" in shown) == (top == 1.0)
