"""Figures of a training run: each function returns a `matplotlib.figure.Figure` to save, show or draw on.

They need no pyplot and no display, and leave matplotlib's settings (rcParams) as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gpumlp.report.axes import WHOLE_TICKS, envelope, grid_shape, log_scale, spans_decades, whole_ticks
from gpumlp.report.style import CELL_COLOR, INK, TRAIN_COLOR, VALIDATION_COLOR, new_figure, plain, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns: TypeAlias = Mapping[str, Sequence[float] | np.ndarray]

_COUNTERS = ("epoch", "epochs", "step", "steps", "seconds", "time")
_RATES = ("lr", "learning_rate")
_FROM_ZERO_UP = ("loss", "lr", "learning_rate", "mse", "rmse", "mae", "log_loss", "error")


def plot_history(history: Columns, quantities: Sequence[str] | None = None) -> Figure:
    """Plot learning curves: each quantity over the epochs, training and validation in one panel.

    A quantity of positive values (loss, mse, learning rate) that spans more than two decades has a log scale.
    NaN means "not measured": the curve joins the measured points.

    Args:
        history: column -> one number an epoch: ``loss``, ``val_loss``, ``accuracy``, ``lr``, ...; ``epoch``
            is optional (1, 2, ...).
        quantities: what to plot, one panel each; default: all of `history_quantities`.

    Raises:
        ValueError: columns of different lengths, an unknown quantity, or nothing to plot.
    """
    chosen = history_quantities(history) if quantities is None else list(quantities)
    if not chosen:
        raise ValueError(f"history has nothing to plot; it has the columns {', '.join(history) or '(none)'}")
    series = {quantity: history_series(history, quantity) for quantity in chosen}
    for quantity, curves in series.items():
        if not curves:
            raise ValueError(
                f"history has no values of {quantity!r}; expected of {', '.join(history_quantities(history))}"
            )
    return _draw_history(series)


def history_quantities(history: Columns) -> list[str]:
    """Return what `plot_history` plots: the loss, then the metrics, then the learning rate when it changes.

    Columns without one finite value and counters (epoch, seconds, it/s) are left out; ``val_loss`` and
    ``loss`` are one quantity, ``loss``.
    """
    names: list[str] = []
    for column, values in history.items():
        quantity = column.removeprefix("val_").removeprefix("train_")
        if quantity in _COUNTERS or quantity.endswith(("_per_s", "/s", "_seconds")) or quantity in names:
            continue
        finite = np.asarray(values, dtype=float)
        finite = finite[np.isfinite(finite)]
        if finite.size and not (quantity in _RATES and np.ptp(finite) == 0):
            names.append(quantity)
    return sorted(names, key=lambda name: 0 if name == "loss" else 2 if name in _RATES else 1)


def history_series(history: Columns, quantity: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the measured curves of a quantity: "train" and "validation" -> (epochs, values), each (n,).

    Raises:
        ValueError: columns of different lengths.
    """
    curves = {}
    for label, names in {
        "train": (quantity, f"train_{quantity}"),
        "validation": (f"val_{quantity}",),
    }.items():
        column = next((name for name in names if name in history), None)
        if column is None:
            continue
        values = np.asarray(history[column], dtype=float)
        epochs = np.asarray(history.get("epoch", np.arange(1, values.size + 1)), dtype=float)
        if epochs.shape != values.shape:
            raise ValueError(f"history column {column!r} has {values.size} values, 'epoch' has {epochs.size}")
        measured = np.isfinite(values)
        if measured.any():
            curves[label] = epochs[measured], values[measured]
    return curves


@themed
def _draw_history(series: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    rows, columns = grid_shape(len(series))
    figure = new_figure(4.0 * columns, 2.75 * rows)
    for position, (quantity, curves) in enumerate(series.items(), start=1):
        _draw_quantity(figure.add_subplot(rows, columns, position), quantity, curves)
    return figure


def _draw_quantity(axes: Axes, quantity: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    looks = {"train": (TRAIN_COLOR, "-"), "validation": (VALIDATION_COLOR, (0, (5, 1.5)))}
    for label, (epochs, values) in curves.items():
        color, dashes = looks[label]
        marker = "o" if epochs.size <= 30 else ""
        axes.plot(
            *envelope(epochs, values), color=color, linestyle=dashes, marker=marker, ms=3.5, label=label
        )
    everything = np.concatenate([values for _, values in curves.values()])
    if quantity in _FROM_ZERO_UP and spans_decades(everything):
        log_scale(axes)
    whole_ticks(axes)
    all_epochs = np.concatenate([epochs for epochs, _ in curves.values()])
    if all_epochs.min() == all_epochs.max():
        axes.set_xlim(all_epochs[0] - 1, all_epochs[0] + 1)
        axes.set_xticks([all_epochs[0]])
    axes.set_xlabel("epoch")
    axes.set_title(quantity_title(quantity), parse_math=False)
    axes.grid(True)
    if quantity not in _RATES:
        axes.legend(loc="best")


def quantity_title(quantity: str) -> str:
    """Return the name of a history quantity in words: ``"learning rate"`` for ``"lr"``."""
    return "learning rate" if quantity in _RATES else plain(quantity.replace("_", " "))


@themed
def plot_confusion_matrix(counts: np.ndarray, classes: Sequence[object] | None = None) -> Figure:
    """Plot a confusion matrix as a heat map with its counts; a cell's colour is its share of the true class.

    Zeros are left blank when there are more than 10 classes, and all counts when there are more than 40.

    Args:
        counts: (K, K) counts, rows the true class, columns the predicted one.
        classes: K names, in the order of the rows; default 0, 1, ...

    Raises:
        ValueError: `counts` is not square, negative or not finite, or there are not K names.
    """
    counts = checked_confusion(counts, classes)
    k = len(counts)
    names = _short_names(range(k) if classes is None else classes)
    cell = float(np.clip(4.4 / k, 0.27, 0.9))
    longest = max(map(len, names))
    margin = 0.6 + 0.085 * longest
    figure = new_figure(max(cell * k + margin, 3.2), max(cell * k + margin, 3.2) if k > 2 else 3.0)
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colors = np.empty((k, k, 4))
    colors[..., :3] = CELL_COLOR
    colors[..., 3] = share
    axes.pcolormesh(colors, edgecolors="face", linewidth=0)
    lines = np.arange(k + 1)
    axes.hlines(lines, 0, k, colors="#808890", linewidth=0.4, alpha=0.5)
    axes.vlines(lines, 0, k, colors="#808890", linewidth=0.4, alpha=0.5)
    axes.set(xlim=(0, k), ylim=(k, 0), xlabel="predicted class", ylabel="true class", aspect="equal")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    step = -(-k // 40)
    ticks = np.arange(0, k, step)
    size = float(np.clip(cell * 26, 6, 10))
    # upright names do not fit when they are wider than a cell
    turned = longest * size * 0.6 > cell * 72
    axes.set_xticks(
        ticks + 0.5,
        names[::step],
        rotation=90 if turned else 0,
        fontsize=size,
        parse_math=False,
    )
    axes.set_yticks(ticks + 0.5, names[::step], fontsize=size, parse_math=False)
    if k <= 40:
        _write_counts(axes, counts, share, cell)
    return figure


def _short_names(names: Sequence[object]) -> list[str]:
    short = [plain(name, 18) for name in names]
    if len(set(short)) < len(set(map(str, names))):
        # long names with the same beginning and end
        return [f"{i}: {plain(name, 15)}" for i, name in enumerate(names)]
    return short


def _write_counts(axes: Axes, counts: np.ndarray, share: np.ndarray, cell: float) -> None:
    k = len(counts)
    texts = [[_short_count(value) for value in row] for row in counts]
    longest = max(len(text) for row in texts for text in row)
    size = min(11.0, cell * 72 * 0.45, cell * 72 * 0.92 / (0.6 * longest))
    for i, j in np.ndindex(k, k):
        if counts[i, j] == 0 and k > 10:
            continue
        # white on the strong cells; INK, which follows the page, where the page shines through
        color = "white" if share[i, j] > 0.65 else INK
        text = axes.text(j + 0.5, i + 0.5, texts[i][j], ha="center", va="center", fontsize=size, color=color)
        text.set_in_layout(False)


def _short_count(value: float) -> str:
    if value < 10_000:
        return f"{value:.4g}"
    thousands = min(int(np.log10(float(f"{value:.3g}")) / 3), 4)
    return f"{value / 1000**thousands:.3g}{' kMGT'[thousands]}"


def checked_confusion(counts: np.ndarray, classes: Sequence[object] | None) -> np.ndarray:
    """Return `counts` as an array (K, K) of float64, or raise the ValueError of `plot_confusion_matrix`."""
    counts = np.asarray(counts, dtype=float)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0:
        raise ValueError(f"confusion matrix has shape {counts.shape}; expected (K, K) for K classes")
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("confusion matrix has negative or non-finite entries; expected counts")
    if classes is not None and len(classes) != len(counts):
        raise ValueError(f"{len(classes)} class names for a confusion matrix of {len(counts)} classes")
    return counts


@themed
def plot_predicted_against_true(
    true: np.ndarray,
    predicted: np.ndarray,
    target_names: Sequence[str] | None = None,
    max_points: int = 2000,
) -> Figure:
    """Plot predicted against true values, one panel a target, with the diagonal where both are equal.

    Of more than `max_points` rows, that many are drawn, evenly spaced in the order of the true value. Rows
    with a non-finite value are left out.

    Args:
        true, predicted: (n,) or (n, k), in the units of the target.
        target_names: k names.

    Raises:
        ValueError: shapes that differ, no finite row, or not k names.
    """
    targets = _plottable_targets(true, predicted, target_names)
    rows, columns = grid_shape(len(targets), most=3)
    figure = new_figure(4.0 * columns, 4.0 * rows)
    for position, (name, t, p) in enumerate(targets, start=1):
        axes = figure.add_subplot(rows, columns, position)
        if t.size > max_points:
            order = np.argsort(t, kind="stable")[np.linspace(0, t.size - 1, max_points).astype(int)]
            t, p = t[order], p[order]
        axes.plot(
            t,
            p,
            linestyle="",
            marker="o",
            markersize=3 if t.size > 300 else 4,
            markeredgewidth=0,
            color=TRAIN_COLOR,
            alpha=0.4 if t.size > 300 else 0.65,
            rasterized=t.size > 500,
        )
        low, high = min(t.min(), p.min()), max(t.max(), p.max())
        pad = 0.04 * (high - low) or 0.5
        limits = (low - pad, high + pad)
        axes.plot(limits, limits, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set(xlabel="true", ylabel="predicted", aspect="equal", xlim=limits)
        # the same ticks on both sides; setting them may widen the limits
        axes.set_yticks(axes.get_xticks())
        axes.set(xlim=limits, ylim=limits)
        axes.set_title(plain(name, 40), parse_math=False)
        axes.grid(True)
    return figure


@themed
def plot_residuals(
    true: np.ndarray, predicted: np.ndarray, target_names: Sequence[str] | None = None
) -> Figure:
    """Plot the histogram of the residuals, predicted - true, one panel a target; arguments as the plot above.

    Raises:
        ValueError: as `plot_predicted_against_true`.
    """
    from matplotlib.ticker import MaxNLocator

    targets = _plottable_targets(true, predicted, target_names)
    rows, columns = grid_shape(len(targets), most=3)
    figure = new_figure(4.0 * columns, 4.0 * rows)
    for position, (name, t, p) in enumerate(targets, start=1):
        axes = figure.add_subplot(rows, columns, position)
        residuals = p - t
        # a fixed number of bins: rules by the interquartile range make millions of them for one outlier
        axes.hist(residuals, bins=int(np.clip(np.sqrt(t.size), 5, 50)), color=TRAIN_COLOR)
        axes.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set(xlabel="predicted - true", ylabel="rows")
        axes.set_title(plain(name, 40), parse_math=False)
        axes.grid(True, axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(**WHOLE_TICKS))
    return figure


def _plottable_targets(
    true: np.ndarray, predicted: np.ndarray, target_names: Sequence[str] | None
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    targets = checked_targets(true, predicted, target_names)
    if not targets or not targets[0][1].size:
        raise ValueError("no row has finite true and predicted values; there is nothing to plot")
    return targets


def checked_targets(
    true: np.ndarray, predicted: np.ndarray, target_names: Sequence[str] | None
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return (name, true, predicted) of each target, finite rows only, each array (n,) of float64.

    Raises:
        ValueError: shapes that differ, or not k names.
    """
    true, predicted = (np.asarray(a, dtype=float) for a in (true, predicted))
    true, predicted = (a[:, None] if a.ndim == 1 else a for a in (true, predicted))
    if true.ndim != 2 or true.shape != predicted.shape:
        raise ValueError(
            f"true has shape {true.shape}, predicted {predicted.shape}; expected the same, (n,) or (n, k)"
        )
    k = true.shape[1]
    if target_names is not None and len(target_names) != k:
        raise ValueError(f"{len(target_names)} target names for {k} targets")
    names = target_names or (["target"] if k == 1 else [f"target {i + 1}" for i in range(k)])
    finite = np.isfinite(true).all(axis=1) & np.isfinite(predicted).all(axis=1)
    return [(str(names[i]), true[finite, i], predicted[finite, i]) for i in range(k)]
