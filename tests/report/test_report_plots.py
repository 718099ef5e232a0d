"""gpumlp.report.plots: what the figures show, and that they leave matplotlib as it was."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure

from gpumlp.report import (
    plot_confusion_matrix,
    plot_history,
    plot_predicted_against_true,
    plot_residuals,
)
from gpumlp.report.plots import history_quantities, history_series

NAN = float("nan")
HISTORY: dict[str, list[float]] = {
    "epoch": [1, 2, 3],
    "loss": [1.0, 0.5, 0.25],
    "val_accuracy": [NAN, 0.8, 0.9],
    "val_loss": [NAN, 0.6, NAN],
    "lr": [0.1, 0.1, 0.1],
    "seconds": [0.1, 0.2, 0.3],
    "it_per_s": [10, 10, 10],
    "mae": [NAN, NAN, NAN],
}


def panels(figure: Figure) -> list[Any]:
    """The axes of a figure; Any, for matplotlib types its getters wider than what it returns."""
    return list(figure.axes)


def test_the_plots_are_the_loss_then_the_metrics_and_not_counters_or_a_constant_rate():
    assert history_quantities(HISTORY) == ["loss", "accuracy"]
    assert history_quantities({"lr": [1.0, 0.5], "accuracy": [0, 1], "loss": [1, 1]}) == [
        "loss",
        "accuracy",
        "lr",
    ]


def test_each_quantity_is_one_panel_with_its_train_and_validation_curves():
    loss, accuracy = panels(plot_history(HISTORY))
    train, validation = loss.get_lines()
    assert train.get_ydata().tolist() == [1.0, 0.5, 0.25]
    assert (validation.get_xdata().tolist(), validation.get_ydata().tolist()) == ([2.0], [0.6])
    assert [line.get_label() for line in accuracy.get_lines()] == ["validation"]


def test_nan_and_infinity_are_left_out_of_a_curve():
    epochs, values = history_series({"loss": [1.0, NAN, np.inf, 0.5]}, "loss")["train"]
    assert epochs.tolist() == [1, 4]
    assert values.tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("name", "values", "scale"),
    [
        ("loss", [1.0, 0.009], "log"),
        ("loss", [1.0, 0.011], "linear"),
        ("loss", [1.0, 0.0], "linear"),
        ("loss", [1.0, -5.0], "linear"),
        ("lr", [1.0, 0.001], "log"),
        ("accuracy", [0.001, 1.0], "linear"),
    ],
)
def test_a_positive_loss_over_more_than_two_decades_has_a_log_scale(name, values, scale):
    (axes,) = panels(plot_history({name: values}))
    assert axes.get_yscale() == scale


def test_one_epoch_is_a_visible_point_at_a_whole_tick():
    (axes,) = panels(plot_history({"loss": [0.5]}))
    assert axes.get_lines()[0].get_marker() == "o"
    assert axes.get_xticks().tolist() == [1]


def test_a_long_curve_is_thinned_and_keeps_its_extremes_and_ends():
    values = np.sin(np.arange(50_000) / 7.0) + 2
    values[31_234], values[31_235] = 9.0, 0.1
    (axes,) = panels(plot_history({"loss": values}))
    x, y = axes.get_lines()[0].get_data()
    assert len(x) <= 1600
    assert (y.max(), y.min()) == (9.0, 0.1)
    assert (x[0], x[-1]) == (1, 50_000)
    assert np.all(np.diff(x) > 0)
    assert np.array_equal(values[x.astype(int) - 1], y)


@pytest.mark.parametrize(
    ("history", "quantities", "message"),
    [
        ({"epoch": [1]}, None, "nothing to plot; it has the columns epoch"),
        ({}, None, r"nothing to plot; it has the columns \(none\)"),
        ({"loss": [1.0]}, ["los"], "no values of 'los'; expected of loss"),
        ({"epoch": [1, 2], "loss": [1.0]}, None, "column 'loss' has 1 values, 'epoch' has 2"),
    ],
)
def test_a_history_that_cannot_be_plotted_is_one_clear_line(history, quantities, message):
    with pytest.raises(ValueError, match=message):
        plot_history(history, quantities)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in panels(figure)[0].texts]


def test_a_confusion_matrix_shows_its_counts_true_classes_in_rows():
    figure = plot_confusion_matrix(np.array([[5, 1], [0, 12_345]]), ["no", "yes"])
    (axes,) = panels(figure)
    assert texts(figure) == ["5", "1", "0", "12.3k"]
    # row 0 is the upper one: the y axis runs downwards
    assert axes.get_ylim() == (2, 0)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no", "yes"]
    assert axes.get_ylabel() == "true class"


def test_the_colour_of_a_cell_is_its_share_of_the_true_class():
    figure = plot_confusion_matrix(np.array([[3, 1], [0, 0]]))
    colors = panels(figure)[0].collections[0].get_array()
    alpha = np.asarray(colors).reshape(4, 4)[:, 3]
    assert alpha.tolist() == [0.75, 0.25, 0, 0]


def test_thirty_classes_show_their_counts_and_leave_zeros_blank():
    assert texts(plot_confusion_matrix(np.eye(30) * 7)) == ["7"] * 30
    assert texts(plot_confusion_matrix(np.eye(100))) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (9999, "9999"),
        (10_000, "10k"),
        (99_950, "100k"),
        (999_999, "1M"),
        (1_500_000, "1.5M"),
        (3e15, "3e+03T"),
    ],
)
def test_large_counts_are_shortened(count, text):
    assert texts(plot_confusion_matrix(np.array([[count]]))) == [text]


def test_long_names_with_the_same_ends_stay_apart():
    names = [f"the same long beginning {i} and the same end" for i in range(3)]
    figure = plot_confusion_matrix(np.eye(3), names)
    shown = [label.get_text() for label in panels(figure)[0].get_yticklabels()]
    assert len(set(shown)) == 3
    assert max(map(len, shown)) <= 18


@pytest.mark.parametrize(
    ("counts", "classes", "message"),
    [
        (np.zeros((2, 3)), None, r"shape \(2, 3\); expected \(K, K\)"),
        (np.zeros((0, 0)), None, "expected"),
        (np.array([[1, NAN], [0, 1]]), None, "negative or non-finite"),
        (np.array([[1, -1], [0, 1]]), None, "negative or non-finite"),
        (np.eye(2), ["a"], "1 class names for a confusion matrix of 2 classes"),
    ],
)
def test_a_confusion_matrix_that_is_none_is_one_clear_line(counts, classes, message):
    with pytest.raises(ValueError, match=message):
        plot_confusion_matrix(counts, classes)


def test_many_points_are_drawn_evenly_over_the_true_values_and_rasterised():
    true = np.random.default_rng(0).permutation(10_001).astype(float)
    (axes,) = panels(plot_predicted_against_true(true, true + 1, max_points=101))
    points = axes.get_lines()[0]
    assert points.get_xdata().tolist() == list(range(0, 10_001, 100))
    assert np.array_equal(points.get_ydata(), points.get_xdata() + 1)
    assert not points.get_rasterized()
    assert panels(plot_predicted_against_true(true, true))[0].get_lines()[0].get_rasterized()


def test_each_target_has_a_panel_and_non_finite_rows_are_left_out():
    true = np.array([[1.0, 2.0], [NAN, 3.0], [4.0, 5.0]])
    figure = plot_predicted_against_true(true, np.nan_to_num(true), ["a", "b"])
    assert [axes.get_title() for axes in panels(figure)] == ["a", "b"]
    assert panels(figure)[1].get_lines()[0].get_xdata().tolist() == [2.0, 5.0]


def test_both_axes_of_predicted_against_true_have_the_same_limits():
    (axes,) = panels(plot_predicted_against_true(np.array([0.0, 1.0]), np.array([-5.0, 7.0])))
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < -5
    assert axes.get_xlim()[1] > 7


def test_the_residuals_are_predicted_minus_true_also_with_a_wild_outlier():
    true = np.zeros(1000)
    predicted = np.linspace(-1e-6, 1e-6, 1000)
    predicted[0] = 1e9
    (axes,) = panels(plot_residuals(true, predicted))
    assert sum(bar.get_height() for bar in axes.patches) == 1000
    assert len(axes.patches) <= 50
    assert axes.patches[-1].get_height() == 1


@pytest.mark.parametrize("plot", [plot_predicted_against_true, plot_residuals])
@pytest.mark.parametrize(
    ("true", "predicted", "names", "message"),
    [
        (np.zeros(3), np.zeros(2), None, r"true has shape \(3, 1\), predicted \(2, 1\)"),
        (np.zeros((3, 2)), np.zeros((3, 2)), ["a"], "1 target names for 2 targets"),
        (np.full(3, NAN), np.zeros(3), None, "no row has finite"),
    ],
)
def test_predictions_that_do_not_fit_are_one_clear_line(plot, true, predicted, names, message):
    with pytest.raises(ValueError, match=message):
        plot(true, predicted, names)


ALL_PLOTS = {
    "history": lambda: plot_history(HISTORY),
    "confusion": lambda: plot_confusion_matrix(np.eye(3)),
    "predicted": lambda: plot_predicted_against_true(np.arange(9.0), np.arange(9.0)),
    "residuals": lambda: plot_residuals(np.zeros(9), np.arange(9.0)),
}


@pytest.mark.parametrize("name", ALL_PLOTS)
def test_the_users_settings_neither_change_nor_matter(name):
    def image() -> bytes:
        buffer = io.BytesIO()
        with matplotlib.style.context("default"):
            ALL_PLOTS[name]().savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    plain = image()
    with matplotlib.style.context(
        ["dark_background", {"font.size": 30, "axes.grid": True, "lines.linewidth": 9}]
    ):
        before = dict(matplotlib.rcParams)
        figure = ALL_PLOTS[name]()
        assert dict(matplotlib.rcParams) == before
    buffer = io.BytesIO()
    with matplotlib.style.context("default"):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    assert buffer.getvalue() == plain


def test_the_plots_and_the_report_never_import_pyplot_and_importing_them_is_light():
    script = (
        "import sys\n"
        "import numpy as np\n"
        "from gpumlp.report import RunReport, plot_history, render_report\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules), 'heavy import'\n"
        "render_report(RunReport('t', {}, [], {'loss': [1, 2]}, {}, '', confusion=np.eye(2)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
