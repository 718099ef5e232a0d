"""What several plots do with their axes: thinned curves, logarithmic scales, whole ticks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumlp.report.style import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_SPAN = 100.0
"""A quantity that spans more than this factor has a logarithmic scale."""
LONGEST_LABEL = 40
"""Characters of a label in a legend."""
WHOLE_TICKS: dict[str, Any] = {"nbins": 7, "steps": [1, 2, 5, 10], "integer": True, "min_n_ticks": 1}


def envelope(x: np.ndarray, y: np.ndarray, buckets: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return at most 4 points a bucket (first, lowest, highest, last): the same picture, in a small file."""
    if x.size <= 4 * buckets:
        return x, y
    edges = np.linspace(0, x.size, buckets + 1).astype(int)
    kept: set[int] = set()
    for start, end in pairwise(edges.tolist()):
        part = y[start:end]
        kept.update((start, start + int(part.argmin()), start + int(part.argmax()), end - 1))
    index = np.array(sorted(kept))
    return x[index], y[index]


def spans_decades(values: np.ndarray) -> bool:
    """Return whether all values are above 0 and the greatest is more than `LOG_SPAN` times the least."""
    return bool(values.size and values.min() > 0 and values.max() > LOG_SPAN * values.min())


def log_scale(axes: Axes, side: str = "y") -> None:
    """Give one side, "x" or "y", a logarithmic scale with plain numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter

    getattr(axes, f"set_{side}scale")("log")
    axis = getattr(axes, f"{side}axis")

    def between(value: float, _: int) -> str:
        """The label of a tick between powers of ten, where there are too few of those to read the axis by."""
        low, high = sorted(axis.get_view_interval())
        digit = round(value / 10 ** np.floor(np.log10(value)))
        return f"{value:g}" if high < 30 * low and digit in (2, 3, 5) else ""

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(between))


def whole_ticks(axes: Axes) -> None:
    """Let the ticks of the x axis stand at whole numbers: epochs, steps, counts."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(**WHOLE_TICKS))


def grid_shape(panels: int, most: int = 2) -> tuple[int, int]:
    """Return the rows and columns that a number of panels stand in, as evenly as `most` columns allow."""
    rows = -(-panels // most)
    return rows, -(-panels // rows)


def shared_legend(figure: Figure, labels: Sequence[str]) -> None:
    """Put one legend above all panels, with the first curve of each label, in their order."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    shown = [plain(label, LONGEST_LABEL) for label in labels]
    handles = [found[label] for label in shown]
    figure.legend(handles, shown, loc="outside upper center", ncols=min(len(shown), 5))
