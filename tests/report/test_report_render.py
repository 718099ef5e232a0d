"""gpumlp.report.render: one page that loads nothing, escapes what users wrote, and reads well aloud."""

from __future__ import annotations

import dataclasses
import functools
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure

from gpumlp.report import RunReport, figure_svg, render_report
from gpumlp.report.render import format_number
from gpumlp.report.style import INK

VOID = {"meta", "br", "hr", "img", "link", "input"}
NASTY = '<script>alert("1")</script> & "quotes" $x_$ url(http://a.example/x)'


class Page(HTMLParser):
    """The elements of a page: tag, attributes, text inside; it fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[dict[str, Any]] = []
        self.open: list[dict[str, Any]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        path = [element["tag"] for element in self.open]
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in {tag}"
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "path": path}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [element for element in self.elements if element["tag"] == tag]

    def rows(self) -> list[list[str]]:
        """The cells of all table rows, in order."""
        rows: list[list[str]] = []
        for element in self.elements:
            if element["tag"] == "tr":
                rows.append([])
            elif element["tag"] in ("td", "th"):
                rows[-1].append(element["text"])
        return rows


def classification(classes=("a", NASTY, "中文"), epochs=5) -> RunReport:
    k = len(classes)
    ramp = np.linspace(1.0, 0.005, epochs)
    return RunReport(
        title=f"net {NASTY}",
        summary={"data set": NASTY, "it/s": "109.2"},
        layers=[("Linear(4, 64)", "(64,)", 320), (NASTY, "(3,)", 1234567)],
        history={"epoch": np.arange(1, epochs + 1), "loss": ramp, "val_loss": ramp * 1.5, "lr": ramp},
        scores={"train": {"accuracy": 0.99}, "test": {"accuracy": 0.9667, NASTY: float("nan")}},
        settings=f"[data]\nname = '{NASTY}'\n",
        confusion=np.eye(k, dtype=np.int64) * 9 + 1,
        classes=list(classes),
        per_class={"precision": [0.5] * k, "recall": [0.25] * k, "support": [12.0] * k},
    )


def regression(n=3000, k=1) -> RunReport:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(n, k)) if k > 1 else rng.normal(size=n)
    return RunReport(
        title="regression",
        summary={"data set": "synthetic"},
        layers=[("Linear(1, 1)", "(1,)", 2)],
        history={"loss": [1.0, 0.5, float("nan")]},
        scores={"test": {"r2": 0.5}},
        settings="",
        true=true,
        predicted=true + rng.normal(size=true.shape),
        target_names=[f"{NASTY} {i}" for i in range(k)],
    )


REPORTS = {
    "three classes": classification,
    "thirty classes": lambda: classification([f"class {i}" for i in range(30)], epochs=5000),
    "one epoch": lambda: classification(epochs=1),
    "regression": regression,
    "few rows, eight targets": lambda: regression(20, 8),
    "bare": lambda: RunReport("bare", {}, [], {}, {}, ""),
}


@functools.cache
def rendered(name: str) -> str:
    """A page of `REPORTS`, drawn once."""
    return render_report(REPORTS[name]())


@pytest.fixture(params=REPORTS)
def html(request) -> str:
    return rendered(request.param)


def test_nothing_is_loaded_from_anywhere(html):
    page = Page(html)
    loading = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background")
    for element in page.elements:
        assert element["tag"] not in ("script", "link", "iframe", "object", "embed", "base", "image:image")
        for name, value in element["attrs"].items():
            assert not name.startswith("on")
            if name in loading:
                assert value.startswith(("#", "data:image/png;base64,")), (element["tag"], name)
            if name not in ("aria-label",):
                assert re.findall(r"url\((?!#)", value or "") == []
    for style in page.all("style"):
        assert "url(" not in style["text"]
        assert "@import" not in style["text"]
        assert "http" not in style["text"]
    policy = next(m["attrs"] for m in page.all("meta") if "http-equiv" in m["attrs"])
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_every_figure_has_alternative_text(html):
    page = Page(html)
    for svg in page.all("svg"):
        assert svg["attrs"]["role"] == "img"
        assert len(svg["attrs"]["aria-label"]) > 20
    titles = [e["text"] for e in page.all("title") if e["path"][-1:] == ["svg"]]
    assert titles == [svg["attrs"]["aria-label"] for svg in page.all("svg")]
    assert len(page.all("svg")) == len(page.all("figure")) == len(page.all("figcaption"))


def test_ids_are_unique_and_every_reference_finds_its_id(html):
    page = Page(html)
    ids = [element["attrs"]["id"] for element in page.elements if "id" in element["attrs"]]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        for name, value in element["attrs"].items():
            found = re.findall(r"url\(#([^)]+)\)", value or "") if name != "aria-label" else []
            if name == "href" and value.startswith("#"):
                found.append(value[1:])
            if name == "aria-labelledby":
                found.append(value)
            assert set(found) <= set(ids)


def test_the_page_says_language_title_and_viewport(html):
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.all("html")[0]["attrs"]["lang"] == "en"
    assert page.all("title")[0]["text"].endswith("– gpumlp report")
    assert any(meta["attrs"].get("name") == "viewport" for meta in page.all("meta"))
    assert len(page.all("h1")) == 1


def test_tables_scroll_in_a_box_of_their_own(html):
    page = Page(html)
    boxes = [i for i, element in enumerate(page.elements) if element["attrs"].get("class") == "box"]
    for i, element in enumerate(page.elements):
        if element["tag"] in ("table", "svg"):
            assert i - 1 in boxes


@pytest.mark.parametrize("name", REPORTS)
def test_the_same_report_gives_the_same_bytes(name):
    assert render_report(REPORTS[name]()) == rendered(name)


def test_what_users_wrote_is_text_everywhere():
    page = Page(rendered("three classes"))
    assert not page.all("script")
    assert page.all("h1")[0]["text"] == f"net {NASTY}"
    assert page.all("title")[0]["text"] == f"net {NASTY} – gpumlp report"
    assert page.all("dd")[0]["text"] == NASTY
    assert NASTY in page.all("pre")[0]["text"]
    assert [NASTY, "0.5000", "0.2500", "12"] in page.rows()
    labels = [text["text"] for text in page.all("text")]
    assert "中文" in labels
    assert any(label.startswith("<script>") for label in labels)


def test_the_tables_show_scores_layers_and_their_sum():
    rows = Page(rendered("three classes")).rows()
    assert ["metric", "train", "test"] in rows
    assert ["accuracy", "0.9900", "0.9667"] in rows
    assert [NASTY.replace("_", " "), "–", "–"] in rows
    assert ["Linear(4, 64)", "(64,)", "320"] in rows
    assert ["all layers", "1\u202f234\u202f887"] in rows


def test_the_captions_say_what_the_figures_show():
    text = Page(render_report(classification(["x", "y"]))).all("main")[0]["text"]
    assert "Loss: train from 1 to 0.005; validation from 1.5 to 0.0075 (lowest 0.0075 at epoch 5)" in text
    assert "Learning rate: from 1 to 0.005" in text
    assert "20 of 22 right (90.91%); most often confused: x taken for y (1×)" in text


def test_regression_says_how_many_rows_it_draws_and_how_far_they_spread():
    report = regression()
    assert report.true is not None
    assert report.predicted is not None
    report.true, report.predicted = np.arange(3000.0), np.arange(3000.0) + 2
    text = Page(render_report(report)).all("main")[0]["text"]
    assert "2000 of 3\u202f000 rows" in text
    assert "mean 2, standard deviation 0, 90 % between 2 and 2" in text


def test_eight_targets_show_six_and_say_so():
    page = Page(rendered("few rows, eight targets"))
    assert len(page.all("h3")) == 6
    assert "2 more targets are not shown" in page.all("main")[0]["text"]


def test_pages_of_large_runs_stay_small():
    report = classification([f"class {i}" for i in range(30)], epochs=100_000)
    report.history = {"loss": np.random.default_rng(0).random(100_000), "val_loss": np.arange(100_000.0)}
    big = regression(200_000)
    report.true, report.predicted = big.true, big.predicted
    assert len(render_report(report)) < 600_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a"]}, "1 class names for a confusion matrix of 3"),
        ({"confusion": np.zeros((3, 2))}, r"expected \(K, K\)"),
        ({"per_class": {"precision": [1.0]}}, r"different lengths: \[1, 3\]"),
        ({"history": {"epoch": [1], "loss": [1, 2]}}, "'loss' has 2 values, 'epoch' has 1"),
        ({"true": np.zeros(3), "predicted": np.zeros(2)}, "true has shape"),
    ],
)
def test_parts_that_do_not_fit_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message):
        render_report(dataclasses.replace(classification(), **{"history": {}, **changes}))


def test_predictions_without_one_finite_row_are_said_and_not_drawn():
    report = regression(5)
    report.predicted = np.full(5, np.nan)
    page = Page(render_report(report))
    assert len(page.all("svg")) == 1
    assert "No row has finite true and predicted values" in page.all("main")[0]["text"]


def test_text_that_utf8_cannot_hold_is_replaced():
    report = classification()
    report.title = "bad \udcff name"
    assert "bad ? name" in render_report(report)


def test_figures_take_the_pages_ink_and_font_and_have_no_style_of_their_own():
    html = rendered("three classes")
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert svgs
    for svg in svgs:
        assert INK not in svg
        assert "currentColor" in svg
        assert "font-family" not in svg
        assert "<style" not in svg
        assert "<metadata" not in svg


def test_figure_svg_of_a_users_own_figure_under_a_users_own_style():
    def draw() -> str:
        figure = Figure()
        axes = figure.add_subplot()
        axes.plot([1, 2], [1, 2], "o", label="<a> & 'b'")
        axes.legend()
        return figure_svg(figure, "mine", "a < b")

    with matplotlib.style.context({"svg.fonttype": "path", "svg.hashsalt": None}):
        svg = draw()
        assert draw() == svg
    page = Page(svg)
    assert page.elements[0]["attrs"]["aria-label"] == "a < b"
    assert "<a> & 'b'" in [text["text"] for text in page.all("text")]
    ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
    assert ids
    assert all(name == "mine" or name.startswith("mine-") for name in ids)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0.0000"),
        (1, "1"),
        (np.int64(1234567), "1\u202f234\u202f567"),
        (0.96666, "0.9667"),
        (-1.5, "-1.5000"),
        (123.456, "123.46"),
        (0.00012, "0.00012"),
        (1.5e7, "1.5e+07"),
        (float("inf"), "inf"),
        (np.float32(0.25), "0.2500"),
    ],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text
