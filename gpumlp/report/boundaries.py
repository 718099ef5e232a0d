"""What a classifier of two features makes of the plane, with the points that it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpumlp.report.axes import grid_shape
from gpumlp.report.style import (
    INK,
    MARKERS,
    PALETTE,
    WRONG_COLOR,
    described,
    new_figure,
    plain,
    themed,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Predict: TypeAlias = Callable[[np.ndarray], np.ndarray]
Parts: TypeAlias = Mapping[str, tuple[Any, Any]]
"""Title -> (X (n, 2), y (n,) of class codes or of names)."""
_Points: TypeAlias = tuple[np.ndarray, np.ndarray]

_REGION_ALPHA = 0.28
_STEPS = 20  # of a probability map; flat steps make a picture of a few KB


@themed
def plot_decision_regions(
    predict_classes: Predict,
    parts: Parts,
    *,
    classes: Sequence[object] | None = None,
    feature_names: Sequence[str] = ("x1", "x2"),
    resolution: int = 250,
) -> Figure:
    """Plot the regions of the classes, a panel for each part of the data, misclassified points circled in red.

    Args:
        predict_classes: takes X (m, 2) float32, returns the classes (m,), as codes or as names.
        parts: title -> (X (n, 2), y (n,)), such as ``{"train": ..., "test": ...}``.
        classes: names in the order of their codes.
        feature_names: of the two columns.
        resolution: points of the plane a side, at which the classifier is asked.

    Raises:
        ValueError: data of another shape, or an unknown class.
    """
    points, names = _checked(parts, classes)
    extent = _extent([X for X, _ in points.values()])
    codes = _codes(predict_classes(_plane(extent, resolution)), names).reshape(resolution, resolution)
    image = np.zeros((resolution, resolution, 4))
    for k in range(len(names)):
        image[codes == k] = _rgba(PALETTE[k % len(PALETTE)], _REGION_ALPHA)
    figure, panels = _panels(len(points))
    told = []
    for axes, (title, (X, y)) in zip(panels, points.items(), strict=True):
        axes.imshow(image, origin="lower", extent=extent, aspect="auto", interpolation="nearest")
        _draw_points(axes, X, y, names)
        wrong = _codes(predict_classes(X.astype(np.float32)), names) != y
        _circle(axes, X[wrong], len(X))
        _frame(axes, extent, feature_names)
        right = 1 - wrong.mean()
        axes.set_title(f"{plain(title, 24)}: {right:.2%} right", parse_math=False)
        told.append(f"{title}: {wrong.sum()} of {len(X)} points misclassified ({right:.2%} right)")
    _class_legend(figure, names, wrong=True)
    plane = f"Decision regions of the classes {', '.join(names)} over {' and '.join(feature_names)}. "
    return described(figure, plane + "; ".join(told) + ".")


@themed
def plot_probability_map(
    predict: Predict,
    parts: Parts,
    *,
    classes: Sequence[object] | None = None,
    feature_names: Sequence[str] = ("x1", "x2"),
    resolution: int = 250,
) -> Figure:
    """Plot the probability of the second of two classes as a map, with the boundary where it is one half.

    Args:
        predict: takes X (m, 2) float32, returns the probability of class 1: (m,), (m, 1), or (m, 2) of both.
        parts: as in `plot_decision_regions`.
        classes: two names.
        feature_names: of the two columns.
        resolution: as in `plot_decision_regions`.

    Raises:
        ValueError: data of another shape, or more than two classes.
    """
    from matplotlib.colors import LinearSegmentedColormap

    points, names = _checked(parts, classes)
    if len(names) > 2:
        raise ValueError(
            f"a probability map is for two classes; there are {len(names)}: use plot_decision_regions"
        )
    extent = _extent([X for X, _ in points.values()])
    p = _probability(predict(_plane(extent, resolution))).reshape(resolution, resolution)
    # the page shines through where neither class is likely, so that one map serves a light and a dark page
    ends = [_rgba(PALETTE[k], alpha) for k, alpha in ((0, 0.7), (0, 0.0), (1, 0.0), (1, 0.7))]
    colors = LinearSegmentedColormap.from_list(
        "gpumlp", list(zip((0.0, 0.5, 0.5, 1.0), ends, strict=True)), N=_STEPS
    )
    figure, panels = _panels(len(points))
    told = []
    for axes, (title, (X, y)) in zip(panels, points.items(), strict=True):
        settings: dict[str, Any] = {"origin": "lower", "extent": extent, "cmap": colors, "vmin": 0, "vmax": 1}
        shown = axes.imshow(p, aspect="auto", interpolation="nearest", **settings)
        if p.min() < 0.5 < p.max():
            axes.contour(p, levels=[0.5], extent=extent, colors=INK, linewidths=1.4)
        _draw_points(axes, X, y, names, edge=0.5)
        _frame(axes, extent, feature_names)
        right = float(np.mean((_probability(predict(X.astype(np.float32))) > 0.5) == y))
        axes.set_title(f"{plain(title, 24)}: {right:.2%} right", parse_math=False)
        told.append(f"{title}: {right:.2%} of {len(X)} points right")
    bar = figure.colorbar(shown, ax=panels, pad=0.02, aspect=30)
    bar.set_label(plain(f"probability of {_class_name(names[1])}", 40))
    bar.outline.set_visible(False)
    _class_legend(figure, names, wrong=False)
    plane = f"Probability of {_class_name(names[1])} over {' and '.join(feature_names)}, with the line of one half. "
    return described(figure, f"{plane}{'; '.join(told)}.")


@themed
def plot_points(
    parts: Parts, *, classes: Sequence[object] | None = None, feature_names: Sequence[str] = ("x1", "x2")
) -> Figure:
    """Plot points of two features by class, a panel with axes of its own for each part: raw data and normalised.

    Args:
        parts: title -> (X (n, 2), y (n,)).
        classes: names in the order of their codes.
        feature_names: of the two columns.

    Raises:
        ValueError: data of another shape, or an unknown class.
    """
    points, names = _checked(parts, classes)
    figure, panels = _panels(len(points))
    told = []
    for axes, (title, (X, y)) in zip(panels, points.items(), strict=True):
        _draw_points(axes, X, y, names)
        _frame(axes, _extent([X]), feature_names)
        axes.axhline(0, color=INK, linewidth=0.5, alpha=0.5, zorder=0.5)
        axes.axvline(0, color=INK, linewidth=0.5, alpha=0.5, zorder=0.5)
        axes.set_title(plain(title, 40), parse_math=False)
        spread = (
            f"{name} from {lo:.3g} to {hi:.3g}"
            for name, lo, hi in zip(feature_names, X.min(0), X.max(0), strict=True)
        )
        told.append(f"{title}: {len(X)} points, {', '.join(spread)}")
    _class_legend(figure, names, wrong=False)
    return described(figure, f"Points of the classes {', '.join(names)}. {'; '.join(told)}.")


def _checked(parts: Parts, classes: Sequence[object] | None) -> tuple[dict[str, _Points], list[str]]:
    """Return each part as (X float64, codes), and the names of the classes."""
    if not parts:
        raise ValueError("there are no points to plot; give at least one part, such as {'train': (X, y)}")
    labels = [np.asarray(y).ravel() for _, y in parts.values()]
    if classes is not None:
        names = [str(name) for name in classes]
    elif any(y.dtype.kind in "OUS" for y in labels):
        names = sorted({str(label) for y in labels for label in y})
    else:
        names = [str(k) for k in range(max(2, int(max(y.max(initial=0) for y in labels)) + 1))]
    points = {}
    for (title, (X, _)), y in zip(parts.items(), labels, strict=True):
        x = np.asarray(X, dtype=float)
        if x.ndim != 2 or x.shape[1] != 2 or len(x) != len(y) or not len(x):
            raise ValueError(f"{title}: X has shape {x.shape} and y {y.shape}; expected (n, 2) and (n,)")
        points[str(title)] = x, _codes(y, names)
    return points, names


def _codes(labels: Any, names: Sequence[str]) -> np.ndarray:
    array = np.asarray(labels).ravel()
    if array.dtype.kind in "OUS":
        known = {name: k for k, name in enumerate(names)}
        unknown = sorted({str(label) for label in array} - set(known))
        if unknown:
            raise ValueError(f"unknown class {unknown[0]!r}; expected one of {', '.join(names)}")
        return np.array([known[str(label)] for label in array])
    codes = array.astype(np.int64)
    if codes.size and not 0 <= codes.min() <= codes.max() < len(names):
        raise ValueError(f"class codes from {codes.min()} to {codes.max()}; expected 0 to {len(names) - 1}")
    return codes


def _probability(given: Any) -> np.ndarray:
    p = np.asarray(given, dtype=float)
    return p.ravel() if p.ndim == 1 or p.shape[1] == 1 else p[:, 1]


def _extent(arrays: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    everything = np.concatenate(arrays)
    low, high = everything.min(axis=0), everything.max(axis=0)
    pad = np.where(high > low, 0.06 * (high - low), 0.5)
    low, high = low - pad, high + pad
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _plane(extent: tuple[float, float, float, float], resolution: int) -> np.ndarray:
    """Return the centres of the map's cells, float32 (resolution^2, 2), rows of constant second feature."""
    left, right, bottom, top = extent
    at = (np.arange(resolution) + 0.5) / resolution
    x, y = np.meshgrid(left + at * (right - left), bottom + at * (top - bottom))
    return np.column_stack([x.ravel(), y.ravel()]).astype(np.float32)


def _rgba(color: str, alpha: float) -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    return to_rgba(color, alpha)


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    rows, columns = grid_shape(n)
    figure = new_figure(4.0 * columns if columns > 1 else 4.8, 3.7 * rows + 0.3)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(n)]


def _draw_points(axes: Axes, X: np.ndarray, y: np.ndarray, names: Sequence[str], edge: float = 0.0) -> None:
    size = 4.0 if len(X) <= 300 else 3.0 if len(X) <= 1500 else 2.2
    for k in range(len(names)):
        axes.plot(
            *X[y == k].T,
            linestyle="",
            marker=MARKERS[k % len(MARKERS)],
            markersize=size,
            markeredgewidth=edge,
            markeredgecolor="white",
            color=PALETTE[k % len(PALETTE)],
            alpha=0.9 if len(X) <= 1500 else 0.7,
            rasterized=len(X) > 500,
        )


def _circle(axes: Axes, X: np.ndarray, n: int) -> None:
    axes.plot(
        *X.T,
        linestyle="",
        marker="o",
        markersize=8 if n <= 300 else 6.5 if n <= 1500 else 5,
        markerfacecolor="none",
        markeredgecolor=WRONG_COLOR,
        markeredgewidth=1.2 if n <= 1500 else 0.9,
        rasterized=len(X) > 500,
    )


def _frame(axes: Axes, extent: tuple[float, float, float, float], feature_names: Sequence[str]) -> None:
    axes.set(xlim=extent[:2], ylim=extent[2:])
    axes.set_xlabel(plain(feature_names[0], 30), parse_math=False)
    axes.set_ylabel(plain(feature_names[1], 30), parse_math=False)


def _class_name(name: str) -> str:
    return f"class {name}" if name.isdecimal() else name


def _class_legend(figure: Figure, names: Sequence[str], wrong: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=MARKERS[k % len(MARKERS)], color=PALETTE[k % len(PALETTE)], ms=6)
        for k in range(len(names))
    ]
    labels = [plain(_class_name(name), 24) for name in names]
    if wrong:
        handles.append(Line2D([], [], linestyle="", marker="o", ms=8, mfc="none", mec=WRONG_COLOR))
        labels.append("misclassified")
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
