"""Numbers side by side: bars with their values, published and own figures, histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpumlp.report.axes import LONGEST_LABEL, grid_shape, log_scale, shared_legend, spans_decades
from gpumlp.report.style import (
    PALETTE,
    TRAIN_COLOR,
    VALIDATION_COLOR,
    described,
    new_figure,
    plain,
    themed,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Histogram: TypeAlias = tuple[Any, Any]
"""(edges (b + 1,), counts (b,))."""
HOLLOW: dict[str, Any] = {
    "marker": "o",
    "markerfacecolor": "none",
    "markeredgecolor": VALIDATION_COLOR,
    "markeredgewidth": 1.8,
}
"""How the dot of a published figure looks."""


@themed
def plot_bars(
    values: Mapping[str, float], quantity: str = "", *, unit: str = "", log: bool | None = None
) -> Figure:
    """Plot a bar for each label, from top to bottom in their order, with its value behind it.

    Args:
        values: label -> number of at least 0.
        quantity: what they are.
        unit: of the numbers.
        log: whether the scale is logarithmic; None for where they span more than two decades.

    Raises:
        ValueError: nothing to plot, a number that is negative or not finite, a logarithmic scale with a 0.
    """
    if not values:
        raise ValueError("there is no bar to plot; give at least one label with its number")
    numbers = np.array([float(value) for value in values.values()])
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise ValueError(f"bars of {dict(values)}; expected finite numbers of at least 0")
    if log and (numbers == 0).any():
        raise ValueError("a logarithmic scale has no 0; leave log out")
    log = spans_decades(numbers) if log is None else log
    figure, axes = _rows_figure(list(values))
    # a bar on a logarithmic scale has no zero to begin at: half a decade below the least
    start = 10 ** (np.floor(np.log10(numbers.min()) * 2) / 2 - 0.5) if log else 0.0
    places = np.arange(len(numbers))
    axes.barh(places, numbers - start, left=start, height=0.62, color=TRAIN_COLOR)
    if log:
        log_scale(axes, "x")
    texts = [_with_unit(number, unit) for number in numbers]
    for place, number, text in zip(places, numbers, texts, strict=True):
        axes.annotate(
            text, (number, place), xytext=(4, 0), textcoords="offset points", va="center", parse_math=False
        )
    high = numbers.max() or 1.0
    room = 0.018 * max(map(len, texts)) + 0.03
    axes.set_xlim(start, high * (high / start) ** room if log else high * (1 + room))
    axes.set_xlabel(
        plain(f"{quantity}, {unit}" if unit and quantity else quantity or unit, 60), parse_math=False
    )
    axes.grid(True, axis="x")
    told = ", ".join(f"{label} {text}" for label, text in zip(values, texts, strict=True))
    return described(figure, f"Bars of {quantity or unit or 'values'}: {told}.")


@themed
def plot_published_and_ours(
    rows: Mapping[str, tuple[float | None, float | None]],
    quantity: str = "",
    *,
    unit: str = "",
    log: bool | None = None,
    ratios: bool = True,
) -> Figure:
    """Plot pairs of dots, a hollow one for the published figure and a full one for ours, and their ratio.

    Args:
        rows: label -> (published, ours); None for what is not known.
        quantity: what they are.
        unit: of the numbers.
        log: as in `plot_bars`.
        ratios: whether to write ours / published behind each pair.

    Raises:
        ValueError: nothing to plot, or a logarithmic scale for a number that is not above 0.
    """
    known = {
        label: [None if v is None or not np.isfinite(v) else float(v) for v in pair]
        for label, pair in rows.items()
    }
    numbers = np.array([v for pair in known.values() for v in pair if v is not None])
    if not numbers.size:
        raise ValueError("there is no figure to plot; give label -> (published, ours)")
    if log and numbers.min() <= 0:
        raise ValueError(f"a logarithmic scale needs numbers above 0; the least is {numbers.min():g}")
    log = spans_decades(numbers) if log is None else log
    figure, axes = _rows_figure(list(known))
    told = []
    for place, (label, (published, ours)) in enumerate(known.items()):
        if published is not None and ours is not None:
            axes.plot([published, ours], [place, place], color="#7d8590", linewidth=1.6, zorder=1)
        if published is not None:
            axes.plot([published], [place], linestyle="", ms=7, zorder=2, **HOLLOW)
        if ours is not None:
            axes.plot([ours], [place], linestyle="", marker="o", ms=7, color=TRAIN_COLOR, zorder=3)
        told.append(_pair_told(axes, place, label, published, ours, unit, ratios))
    if log:
        log_scale(axes, "x")
        low, high = numbers.min(), numbers.max()
        axes.set_xlim(low / (high / low) ** 0.06, high * (high / low) ** 0.16)
    else:
        span = np.ptp(numbers) or abs(numbers[0]) or 1.0
        axes.set_xlim(numbers.min() - 0.06 * span, numbers.max() + 0.16 * span)
    axes.set_xlabel(
        plain(f"{quantity}, {unit}" if unit and quantity else quantity or unit, 60), parse_math=False
    )
    axes.grid(True, axis="x")
    _pair_legend(figure)
    return described(figure, f"Published and ours, {quantity or unit or 'values'}: {'; '.join(told)}.")


@themed
def plot_histograms(histograms: Mapping[str, Mapping[str, Histogram]], xlabel: str = "value") -> Figure:
    """Plot histograms as outlines over one another, a panel for each of several things, such as layers.

    Args:
        histograms: title of a panel -> {label: (edges (b + 1,), counts (b,))}; each is drawn as a density, so that
            those of different sizes and bins compare.
        xlabel: what was counted.

    Raises:
        ValueError: nothing to plot, or edges that do not go with the counts.
    """
    if not histograms or not all(histograms.values()):
        raise ValueError("there is no histogram to plot; give title -> {label: (edges, counts)}")
    labels = list(dict.fromkeys(label for panel in histograms.values() for label in panel))
    rows, columns = grid_shape(len(histograms), most=3)
    figure = new_figure(3.3 * columns if columns > 1 else 5.0, 2.7 * rows)
    told = []
    for position, (title, panel) in enumerate(histograms.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        for label, (edges, counts) in panel.items():
            color = PALETTE[labels.index(label) % len(PALETTE)]
            edges, counts = np.asarray(edges, dtype=float), np.asarray(counts, dtype=float)
            if edges.ndim != 1 or counts.shape != (edges.size - 1,):
                raise ValueError(
                    f"{title}, {label}: {edges.size} edges and {counts.size} counts; expected one edge more"
                )
            density = counts / max(counts.sum(), 1) / np.diff(edges)
            axes.stairs(density, edges, color=color, linewidth=1.4, label=plain(label, LONGEST_LABEL))
            axes.stairs(density, edges, color=color, alpha=0.15, fill=True)
            mean = float(((edges[1:] + edges[:-1]) / 2 * counts).sum() / max(counts.sum(), 1))
            told.append(f"{title}, {label}: from {edges[0]:.3g} to {edges[-1]:.3g}, mean {mean:.3g}")
        axes.set_title(plain(title, 30), parse_math=False)
        axes.set_xlabel(plain(xlabel, 30), parse_math=False)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    if len(labels) > 1:
        shared_legend(figure, labels)
    return described(figure, f"Histograms of {xlabel}. {'; '.join(told)}.")


def _rows_figure(labels: list[str]) -> tuple[Figure, Axes]:
    """Return a figure with a row for each label, the first one on top."""
    figure = new_figure(6.4, 0.75 + 0.36 * len(labels))
    axes = figure.add_subplot()
    axes.set_yticks(np.arange(len(labels)), [plain(label, 34) for label in labels], parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure, axes


def _pair_told(
    axes: Axes, place: int, label: str, published: float | None, ours: float | None, unit: str, ratios: bool
) -> str:
    parts = [
        f"{name} {_with_unit(v, unit) if v is not None else 'not known'}"
        for name, v in (("published", published), ("ours", ours))
    ]
    if ratios and published and ours is not None:
        ratio = f"×{ours / published:.3g}"
        parts.append(f"ratio {ours / published:.3g}")
        axes.annotate(
            ratio, (max(published, ours), place), xytext=(8, 0), textcoords="offset points", va="center"
        )
    return f"{label}: {', '.join(parts)}"


def _pair_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", ms=7, **HOLLOW),
        Line2D([], [], linestyle="", marker="o", ms=7, color=TRAIN_COLOR),
    ]
    figure.legend(handles, ["published", "ours"], loc="outside upper center", ncols=2)


def _with_unit(number: float, unit: str) -> str:
    text = f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}".replace(",", "\u202f")
    return f"{text} {unit}".strip()
