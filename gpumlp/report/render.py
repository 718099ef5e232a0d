"""The report of a run: one HTML file that carries its style and its figures, and loads nothing."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from gpumlp.report.plots import (
    Columns,
    checked_confusion,
    checked_targets,
    history_quantities,
    history_series,
    plot_confusion_matrix,
    plot_history,
    plot_predicted_against_true,
    plot_residuals,
    quantity_title,
)
from gpumlp.report.style import INK, STYLE

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.figure import Figure

MAX_TARGETS = 6
MAX_POINTS = 2000

_REFERENCE = re.compile(r"""(?:href="|url\()#([^")]+)""")
_URL = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"^font: .*?([\d.]+px).*")
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")


@dataclass
class RunReport:
    """What a report shows; a plain record, so that anything that has these numbers can make one."""

    title: str
    """such as ``"iris: 4-64-32-3"``"""
    summary: Mapping[str, str]
    """label -> value, in order: data set, rows, loss, optimizer, device, seconds, it/s, versions, ..."""
    layers: Sequence[tuple[str, str, int]]
    """name, output shape, number of parameters"""
    history: Columns
    """column -> one number an epoch (NaN where not measured): epoch, loss, val_loss, val_accuracy, lr, ..."""
    scores: Mapping[str, Mapping[str, float]]
    """``{"train": {"accuracy": ...}, "test": {...}}``"""
    settings: str
    """the run's configuration as TOML text"""
    confusion: np.ndarray | None = None
    """(K, K) counts on the test set, rows the true class, columns the predicted one"""
    classes: Sequence[str] | None = None
    """K names"""
    per_class: Columns | None = None
    """precision, recall, f1, support, ...: K numbers each"""
    true: np.ndarray | None = None
    """regression: (n,) or (n, k), in the units of the target"""
    predicted: np.ndarray | None = None
    """as `true`"""
    target_names: Sequence[str] | None = None
    """k names"""


@dataclass
class _Picture:
    svg: str
    caption: str
    wide: bool = False


def render_report(report: RunReport) -> str:
    """Return the report as one HTML page, with its style and figures (SVG) inside; it loads nothing.

    The same report gives the same text.

    Raises:
        ValueError: parts of the report that do not fit each other (shapes, lengths, number of names).
    """
    ids = (f"figure-{i}" for i in range(1, 10_000))
    page = template("report.html.jinja").render(
        report=report,
        parameters=sum(count for _, _, count in report.layers),
        metrics=list(dict.fromkeys(name for scores in report.scores.values() for name in scores)),
        curves=list(_curves(report, ids)),
        confusion=_confusion(report, ids),
        per_class=_per_class(report),
        targets=list(_targets(report, ids)),
        targets_left_out=_targets_left_out(report),
    )
    # a file name from the command line can hold a lone surrogate, which UTF-8 has no bytes for
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def template(name: str) -> Template:
    """Return a template of this package; `number` in it is `format_number`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gpumlp.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    return environment.get_template(name)


def format_number(value: float | None) -> str:
    """Return a number as the tables show it: counts in full, others to about 4 digits, – for NaN."""
    if value is None or math.isnan(value):
        return "–"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace(",", "\u202f")
    size = abs(value)
    if size == 0 or 0.001 <= size < 10:
        return f"{value:.4f}"
    return f"{value:.2f}" if 10 <= size < 10_000 else f"{value:.4g}"


def _curves(report: RunReport, ids: Iterator[str]) -> Iterator[_Picture]:
    for quantity in history_quantities(report.history):
        name = quantity_title(quantity)
        parts = []
        for label, (epochs, values) in history_series(report.history, quantity).items():
            first, last = _digits(values[0]), _digits(values[-1])
            if epochs.size == 1:
                parts.append(f"{label} {last} at epoch {epochs[-1]:g}")
                continue
            part = f"{label} from {first} to {last}"
            if label == "validation" and quantity == "loss":
                best = int(values.argmin())
                part += f" (lowest {_digits(values[best])} at epoch {epochs[best]:g})"
            parts.append(part)
        caption = f"{name}: {'; '.join(parts)}".replace("learning rate: train ", "learning rate: ")
        yield _picture(
            plot_history(report.history, [quantity]), ids, f"Learning curve of the {caption}", caption
        )


def _confusion(report: RunReport, ids: Iterator[str]) -> _Picture | None:
    if report.confusion is None:
        return None
    counts = checked_confusion(report.confusion, report.classes)
    total, right = counts.sum(), np.trace(counts)
    caption = (
        f"{format_number(int(right))} of {format_number(int(total))} right ({right / max(total, 1):.2%})"
    )
    worst = counts - np.diag(np.diag(counts))
    if worst.any():
        i, j = np.unravel_index(worst.argmax(), worst.shape)
        names = report.classes or range(len(counts))
        caption += (
            f"; most often confused: {names[i]} taken for {names[j]} ({format_number(int(worst[i, j]))}×)"
        )
    figure = plot_confusion_matrix(counts, report.classes)
    alternative = f"Confusion matrix of {len(counts)} classes: {caption}"
    return _picture(figure, ids, alternative, caption, wide=figure.get_figwidth() > 5.3)


def _per_class(report: RunReport) -> dict[str, Any] | None:
    if not report.per_class:
        return None
    columns = {
        # support is a count, also where it comes as a float
        name: [int(value) for value in values] if name == "support" else list(values)
        for name, values in report.per_class.items()
    }
    lengths = {len(values) for values in columns.values()}
    if report.classes is not None:
        lengths.add(len(report.classes))
    if len(lengths) > 1:
        raise ValueError(f"per-class scores and class names have different lengths: {sorted(lengths)}")
    names = list(report.classes) if report.classes is not None else list(range(lengths.pop()))
    return {"columns": list(columns), "rows": list(zip(names, *columns.values(), strict=True))}


def _targets(report: RunReport, ids: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the name and the two pictures (none without a finite row) of the first `MAX_TARGETS` targets."""
    if report.true is None or report.predicted is None:
        return
    n = len(report.true)
    for name, true, predicted in checked_targets(report.true, report.predicted, report.target_names)[
        :MAX_TARGETS
    ]:
        if true.size == 0:
            yield {"name": name, "pictures": []}
            continue
        residuals = predicted - true
        low, high = np.percentile(residuals, [5, 95])
        drawn = min(true.size, MAX_POINTS)
        shown = f"{format_number(n)} rows" if drawn == n else f"{drawn} of {format_number(n)} rows"
        against = f"predicted against true, {shown}; on the dashed line they are equal"
        spread = (
            f"residuals, predicted - true: mean {_digits(residuals.mean())}, "
            f"standard deviation {_digits(residuals.std())}, "
            f"90 % between {_digits(low)} and {_digits(high)}"
        )
        figure = plot_predicted_against_true(true, predicted, [name], max_points=MAX_POINTS)
        histogram = plot_residuals(true, predicted, [name])
        yield {
            "name": name,
            "pictures": [
                _picture(figure, ids, f"{name}: {against}", against),
                _picture(histogram, ids, f"{name}: histogram of the {spread}", spread),
            ],
        }


def _targets_left_out(report: RunReport) -> int:
    return max(0, int(np.prod(np.shape(report.true)[1:])) - MAX_TARGETS) if report.true is not None else 0


def _digits(value: float) -> str:
    return f"{value:.4g}"


def _picture(
    figure: Figure, ids: Iterator[str], alternative: str, caption: str, wide: bool = False
) -> _Picture:
    from markupsafe import Markup

    svg = Markup(figure_svg(figure, next(ids), alternative))
    return _Picture(svg, caption[:1].upper() + caption[1:], wide)


def figure_svg(figure: Figure, prefix: str, alternative: str) -> str:
    """Return a figure as an ``<svg>`` element to put into an HTML page.

    Its background is transparent, its ink (`style.INK`) is the page's text colour, its text the page's font;
    it has no fixed size, metadata or date, and nothing in it names another address.

    Args:
        figure: what to draw.
        prefix: goes before each id, so that the figures of one page do not share any.
        alternative: what a reader who does not see the figure is told.
    """
    source = _savefig_svg(figure)
    # matplotlib gives the same ids in every figure; only those that something points at are kept
    names = {
        name: f"{prefix}-{i}" for i, name in enumerate(dict.fromkeys(_REFERENCE.findall(source)), start=1)
    }
    root = ElementTree.fromstring(source)
    for parent in list(root.iter()):
        for child in list(parent):
            # a <style> in the page would hold for all of it
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        if element.tag != "text":
            element.text = None
        element.tail = None
        attributes = {_local(name): value for name, value in element.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                if value in names:
                    element.set(name, names[value])
            else:
                element.set(name, _rewritten(name, value, names))
    _, _, width, height = (float(number) for number in root.get("viewBox", "").split())
    root.attrib.clear()
    root.attrib.update(
        {
            "viewBox": f"0 0 {width:g} {height:g}",
            "id": prefix,
            "role": "img",
            "aria-label": alternative,
            # the style sheet makes limits of its width out of it, so that text is neither tiny nor huge
            "style": f"--width: {width:.0f}",
        }
    )
    title = ElementTree.Element("title")
    title.text = alternative
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def _savefig_svg(figure: Figure) -> str:
    import matplotlib.style

    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.style.context(["default", STYLE]):
        # the browser draws the text, with fonts that have what DejaVu Sans has not
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None})
    return buffer.getvalue()


def _rewritten(name: str, value: str, ids: Mapping[str, str]) -> str:
    """Return an attribute's value with the page's ink and font, the new ids, coordinates to 2 decimals."""
    if name == "href" and value.startswith("#"):
        return f"#{ids[value[1:]]}"
    if name == "style":
        parts = [part.strip() for part in value.split(";")]
        value = "; ".join(
            _FONT.sub(r"font-size: \1", part).replace(INK, "currentColor")
            for part in parts
            if not part.startswith("font-family")
        )
    if name in ("d", "x", "y"):
        value = _DECIMALS.sub(lambda match: f"{float(match[0]):.2f}", " ".join(value.split()))
    return _URL.sub(lambda match: f"url(#{ids[match[1]]})", value)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
