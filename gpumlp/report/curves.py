"""Curves over one another: folds, members of a sweep, activations, fits over data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpumlp.report.axes import (
    LONGEST_LABEL,
    envelope,
    grid_shape,
    log_scale,
    shared_legend,
    spans_decades,
    whole_ticks,
)
from gpumlp.report.style import (
    DASHES,
    INK,
    PALETTE,
    SCALE_COLORS,
    described,
    new_figure,
    plain,
    themed,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values: TypeAlias = Sequence[float] | np.ndarray
Curves: TypeAlias = Mapping[str, Values | tuple[Values, Values]]
"""Label -> values (n,) at x = 1, 2, ..., or the pair (x (n,), values (n,)); what is not finite is left out."""
_Measured: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]

MOST_IN_LEGEND = 12


@themed
def plot_curves(
    curves: Curves,
    quantity: str = "loss",
    *,
    xlabel: str = "epoch",
    scale: Sequence[float] | None = None,
    scale_label: str = "",
    mean: bool = False,
    log: bool | None = None,
    title: str = "",
) -> Figure:
    """Plot curves over one another, with a legend or, where each has a number, a colour scale.

    Args:
        curves: label -> values (n,), or (x (n,), values (n,)).
        quantity: what the values are, with their unit.
        xlabel: what x is.
        scale: a number for each curve, such as its learning rate: colours follow it, on a logarithmic scale where
            the numbers span more than two decades.
        scale_label: what these numbers are.
        mean: also draw the mean of all curves; they must have the same x.
        log: whether the values have a logarithmic scale; None for where they span more than two decades.
        title: above the panel.

    Raises:
        ValueError: no finite value, lengths that differ, a logarithmic scale for values that are not above 0.
    """
    measured = measured_curves(curves)
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    colors = None
    if scale is not None:
        colors = _scale_colors(figure, axes, scale, len(measured), scale_label)
    _draw_curves(axes, measured, colors, log, xlabel)
    if mean:
        x, values = mean_curve(measured)
        axes.plot(*envelope(x, values), color=INK, linewidth=2.2, label="mean")
    axes.set_ylabel(plain(quantity, 40), parse_math=False)
    if title:
        axes.set_title(plain(title), parse_math=False)
    if colors is None or mean:
        _legend(axes, len(measured), colors is not None)
    return described(figure, _told(quantity, xlabel, measured))


@themed
def plot_curve_panels(
    panels: Mapping[str, Curves],
    quantity: str = "",
    *,
    xlabel: str = "epoch",
    percent: bool = False,
    log: bool | None = None,
) -> Figure:
    """Plot a panel for each of several things, such as layers, with the same curves in each.

    Args:
        panels: title -> curves as in `plot_curves`; a label has the same colour in every panel.
        quantity: what the values are.
        xlabel: what x is.
        percent: whether the values are shares from 0 to 1, to be shown in percent; the panels then share their
            y axis.
        log: as in `plot_curves`.

    Raises:
        ValueError: no panel, and as `plot_curves`.
    """
    if not panels:
        raise ValueError("there is no panel to plot; give at least one title with its curves")
    measured = {title: measured_curves(curves) for title, curves in panels.items()}
    if percent:
        measured = {
            title: {label: (x, 100 * y) for label, (x, y) in curves.items()}
            for title, curves in measured.items()
        }
    labels = list(dict.fromkeys(label for curves in measured.values() for label in curves))
    looks = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}
    rows, columns = grid_shape(len(measured), most=3)
    figure = new_figure(3.3 * columns if columns > 1 else 5.0, 2.9 * rows)
    first: Axes | None = None
    for position, (title, curves) in enumerate(measured.items(), start=1):
        axes = figure.add_subplot(rows, columns, position, sharey=first if percent else None)
        first = first or axes
        _draw_curves(axes, curves, [looks[label] for label in curves], log, xlabel, labels)
        axes.set_title(plain(title, 30), parse_math=False)
        if position % columns == 1 or columns == 1:
            axes.set_ylabel(plain(f"{quantity}, %" if percent else quantity, 40), parse_math=False)
    if len(labels) > 1:
        shared_legend(figure, labels)
    unit = ", in percent" if percent else ""
    told = (_told(f"{title}, {quantity}{unit}", xlabel, curves) for title, curves in measured.items())
    return described(figure, " ".join(told))


@themed
def plot_fits(
    x: Values, y: Values, fits: Curves, *, xlabel: str = "x", ylabel: str = "y", max_points: int = 2000
) -> Figure:
    """Plot curves that were fitted, over the points that they were fitted to.

    Args:
        x, y: the points, (n,) or (n, 1) each; of more than `max_points` every k-th is drawn.
        fits: name -> (x, values) of the curve, drawn in the order of its x.
        xlabel, ylabel: what they are, with their units.

    Raises:
        ValueError: lengths that differ, or nothing finite.
    """
    px, py = (np.asarray(a, dtype=float).reshape(len(a), -1) for a in (x, y))
    if px.shape != py.shape or px.shape[1] != 1:
        raise ValueError(f"x has shape {np.shape(x)} and y {np.shape(y)}; expected (n,) points each")
    measured = measured_curves(fits)
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    step = -(-len(px) // max_points)
    axes.plot(
        px[::step, 0],
        py[::step, 0],
        linestyle="",
        marker="o",
        markersize=3,
        markeredgewidth=0,
        color="#7d8590",
        alpha=0.6,
        label="data",
    )
    vivid = PALETTE[:-1]  # without the grey that the points have
    looks = [vivid[i % len(vivid)] for i in range(len(measured))]
    _draw_curves(axes, measured, looks, False, xlabel, integer=False)
    axes.set_ylabel(plain(ylabel, 40), parse_math=False)
    axes.legend(loc="best")
    names = ", ".join(measured)
    told = f"{len(px)} points of {ylabel} over {xlabel} from {px.min():.4g} to {px.max():.4g}, and the curves fitted "
    return described(figure, f"{told}to them: {names}.")


def measured_curves(curves: Curves) -> _Measured:
    """Return label -> (x, values), float64 (n,) each, of finite entries.

    Raises:
        ValueError: no curve, lengths that differ, or no finite value at all.
    """
    measured: _Measured = {}
    for label, given in curves.items():
        if isinstance(given, tuple) and len(given) == 2 and np.ndim(given[0]) > 0:
            x, values = (np.asarray(part, dtype=float).ravel() for part in given)
        else:
            values = np.asarray(given, dtype=float).ravel()
            x = np.arange(1.0, values.size + 1)
        if x.shape != values.shape:
            raise ValueError(f"curve {label!r} has {x.size} x and {values.size} values; expected as many")
        there = np.isfinite(values) & np.isfinite(x)
        x, values = x[there], values[there]
        order = np.argsort(x, kind="stable")
        measured[str(label)] = x[order], values[order]
    if not any(values.size for _, values in measured.values()):
        raise ValueError(f"no finite value to plot in the curves {', '.join(measured) or '(none)'}")
    return measured


def mean_curve(curves: _Measured) -> tuple[np.ndarray, np.ndarray]:
    """Return x and the mean of the curves that have values, at the x that all of them have.

    Raises:
        ValueError: no x that is common to all.
    """
    present = [curve for curve in curves.values() if curve[1].size]
    common = present[0][0]
    for x, _ in present[1:]:
        common = np.intersect1d(common, x)
    if not common.size:
        raise ValueError("the curves have no x in common; leave mean out")
    return common, np.mean([values[np.isin(x, common)] for x, values in present], axis=0)


def _draw_curves(
    axes: Axes,
    curves: _Measured,
    colors: Sequence[Any] | None,
    log: bool | None,
    xlabel: str,
    labels: Sequence[str] | None = None,
    integer: bool = True,
) -> None:
    scaled = colors is not None and labels is None and integer
    order = list(labels or curves)
    for i, (label, (x, values)) in enumerate(curves.items()):
        place = order.index(label)
        axes.plot(
            *envelope(x, values),
            color=colors[i] if colors is not None else PALETTE[place % len(PALETTE)],
            linestyle="-" if scaled else DASHES[(place + place // len(PALETTE)) % len(DASHES)],
            linewidth=1.5 if len(curves) <= 8 else 1.0,
            marker="o" if x.size <= 30 else "",
            ms=3,
            label=plain(label, LONGEST_LABEL),
        )
    everything = np.concatenate([values for _, values in curves.values()])
    if log and everything.size and everything.min() <= 0:
        raise ValueError(f"a logarithmic scale needs values above 0; the least is {everything.min():g}")
    if log or (log is None and spans_decades(everything)):
        log_scale(axes)
    if integer:
        whole_ticks(axes)
    axes.set_xlabel(plain(xlabel, 40), parse_math=False)
    axes.grid(True)


def _scale_colors(figure: Figure, axes: Axes, scale: Sequence[float], n: int, label: str) -> list[Any]:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
    from matplotlib.ticker import FuncFormatter

    numbers = np.asarray(scale, dtype=float)
    if numbers.shape != (n,) or not np.isfinite(numbers).all():
        raise ValueError(f"scale has shape {numbers.shape}; expected a finite number for each of {n} curves")
    kind = LogNorm if spans_decades(numbers) else Normalize
    low, high = float(numbers.min()), float(numbers.max())
    norm = kind(low, high if high > low else low + 1)
    colors = LinearSegmentedColormap.from_list("gpumlp", SCALE_COLORS)
    bar = figure.colorbar(ScalarMappable(norm, colors), ax=axes, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.set_label(plain(label, 40))
    return [colors(norm(number)) for number in numbers]


def _legend(axes: Axes, n: int, mean_only: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if mean_only:
        handles, labels = handles[-1:], labels[-1:]
    elif n > MOST_IN_LEGEND:
        more = f"and {n - MOST_IN_LEGEND} more"
        handles = [*handles[:MOST_IN_LEGEND], handles[MOST_IN_LEGEND]]
        labels = [*labels[:MOST_IN_LEGEND], more]
    if len(labels) > 4:
        axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    else:
        axes.legend(handles, labels, loc="best")


def _told(quantity: str, xlabel: str, curves: _Measured) -> str:
    """What a reader who does not see the curves is told: where each begins and ends."""
    present = {label: curve for label, curve in curves.items() if curve[1].size}
    shown = list(present.items())[:MOST_IN_LEGEND]
    parts = [f"{label} from {values[0]:.4g} to {values[-1]:.4g}" for label, (_, values) in shown]
    if len(present) > len(shown):
        ends = [values[-1] for _, values in present.values()]
        parts.append(
            f"and {len(present) - len(shown)} more; all end between {min(ends):.4g} and {max(ends):.4g}"
        )
    return f"{quantity} over {xlabel}: {'; '.join(parts)}."
