"""How gpumlp's figures look: colours, settings, and what every plot starts with."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

# the report swaps INK for the colour of its text, so that one figure serves a light and a dark page
INK = "#1f2328"
TRAIN_COLOR = "#2f7dd1"
VALIDATION_COLOR = "#df7518"
CELL_COLOR = (11 / 255, 74 / 255, 148 / 255)
WRONG_COLOR = "#e5352b"
# of middle lightness, to be seen on a white page and on a dark one
PALETTE = (
    TRAIN_COLOR, VALIDATION_COLOR, "#2a9d6f", "#9b5fd0", "#c94f7c", "#8f7f20", "#2f9fb5", "#7d8590",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
SCALE_COLORS = (TRAIN_COLOR, "#8a63c9", "#d1508a", VALIDATION_COLOR)

STYLE: dict[str, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": "medium",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": "#808890",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": "medium",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "gpumlp",
}


def themed(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in gpumlp's style, whatever the user's rcParams are, and put those back."""

    @wraps(plot)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib.style

        with matplotlib.style.context(["default", STYLE]):
            return plot(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches, without pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def described(figure: Figure, alternative: str) -> Figure:
    """Give a figure, as its label, the text that a reader who does not see it is told; return it."""
    figure.set_label(alternative)
    return figure


def plain(name: object, longest: int = 60) -> str:
    """Return `name` on one line, of characters that XML can hold, cut in the middle when it is long."""
    text = "".join(c if c.isprintable() else " " for c in str(name))
    if len(text) <= longest:
        return text
    head = (longest - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"
