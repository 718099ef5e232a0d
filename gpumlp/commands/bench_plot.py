"""The plot of steps a second over width and batch, as PNG or as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import aside, write_whole
from .bench_text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".png")


def check_plot(path: Path) -> None:
    """Refuse a file that is neither HTML nor PNG.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"cannot plot to {str(path)!r}: expected a name that ends with {' or '.join(SUFFIXES)}"
        )


def plot_sizes(sizes: Mapping[str, Any]) -> Figure:
    """Plot steps a second over the width: a colour for each batch, a dash for each device.

    Args:
        sizes: what `measure_sizes` returned.
    """
    from ..report.style import themed

    return themed(_draw)(sizes)


def _draw(sizes: Mapping[str, Any]) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullLocator

    from ..report.axes import log_scale
    from ..report.style import DASHES, INK, MARKERS, PALETTE, described, new_figure

    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    places = list(dict.fromkeys(p["place"] for p in sizes["points"]))
    batches = sizes["batches"]
    for i, batch in enumerate(batches):
        for j, place in enumerate(places):
            points = sorted(
                (p["width"], p["steps_per_second"]["median"])
                for p in sizes["points"]
                if (p["batch"], p["place"]) == (batch, place)
            )
            if points:
                look = {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[j % len(DASHES)]}
                axes.plot(*zip(*points, strict=True), marker=MARKERS[j % len(MARKERS)], ms=4, **look)
    for side in "xy":
        log_scale(axes, side)
    axes.set_xticks(sizes["widths"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("width of the layers")
    axes.set_ylabel("steps a second")
    axes.grid(visible=True)
    entries = [Line2D([], [], color=PALETTE[i % len(PALETTE)]) for i in range(len(batches))]
    labels = [f"batch {batch}" for batch in batches]
    for j, place in enumerate(places):
        marker = MARKERS[j % len(MARKERS)]
        entries.append(Line2D([], [], color=INK, linestyle=DASHES[j % len(DASHES)], marker=marker, ms=4))
        labels.append(place)
    figure.legend(entries, labels, loc="outside right upper")
    return described(figure, _told(sizes, places))


def _told(sizes: Mapping[str, Any], places: list[str]) -> str:
    """The figure in words."""
    lines = [f"Steps a second over the width of the layers, for {len(sizes['batches'])} batch sizes."]
    for place in places:
        rates = [p["steps_per_second"]["median"] for p in sizes["points"] if p["place"] == place]
        lines.append(f"{place}: from {number(min(rates))} to {number(max(rates))}.")
    return " ".join(lines)


def write_plot(path: str | Path, result: Mapping[str, Any], text: str) -> None:
    """Write the plot as PNG, or with its numbers as a page that loads nothing.

    Args:
        path: of a file that ends with .png or .html.
        result: of `gpumlp bench`, with its "sizes".
        text: the table of the workloads.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    check_plot(path)
    figure = plot_sizes(result["sizes"])
    if path.suffix.lower() == ".png":
        with aside(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
        return
    from markupsafe import Markup

    from ..report.render import figure_svg, template

    picture = {
        "svg": Markup(figure_svg(figure, "sizes", str(figure.get_label()))),
        "caption": f"Steps a second of {result['sizes']['network']} networks over their width W",
        "wide": False,
    }
    page = template("bench.html.jinja").render(result=result, picture=picture, text=text, shown=number)
    write_whole(path, page)
