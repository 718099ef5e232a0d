"""The pages: ``report.html`` of a recipe, and ``index.html`` over all; each carries its style and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config import config_toml
from ..config_values import is_number
from .context import Table
from .recipe import Part
from .results import ERROR, FAILS, FAULT, HOLDS, Results, Verdict, figure_text

LOOKS = {HOLDS: "holds", FAILS: "fails", FAULT: "fault", ERROR: "error"}
MARKS = {HOLDS: "✓", FAILS: "✗", FAULT: "!", ERROR: "✗"}


def recipe_page(results: Results) -> str:
    """Return the page of one recipe."""
    from ..report.render import template

    return template("reproduce.html.jinja").render(page=_page(results))


def index_page(all_results: Sequence[Results], quick: bool) -> str:
    """Return the page over several recipes, which links to theirs."""
    from ..report.render import template

    return template("reproduce_index.html.jinja").render(pages=[_page(r) for r in all_results], quick=quick)


def _page(results: Results) -> dict[str, Any]:
    recipe = results.recipe
    parts = [_part(results, part) for part in recipe.parts]
    return {
        "name": recipe.name,
        "title": recipe.title,
        "source": _paragraphs(recipe.source),
        "quick": results.quick,
        "complete": results.is_complete,
        "counts": results.counts,
        "looks": {verdict: LOOKS.get(verdict, "quiet") for verdict in results.counts},
        "summary": _summary(results),
        "seconds": f"{results.seconds:.0f}",
        "done": sum(not record.error for record in results.records.values()),
        "parts": parts,
    }


def _summary(results: Results) -> dict[str, str]:
    from .._version import __version__
    from ..machine import cpu_model

    done = [record for record in results.records.values() if not record.error]
    cpu = sum(record.cpu_seconds for record in done)
    summary = {
        "parts": f"{len(done)} of {len(results.recipe.parts)}",
        "time": f"{results.seconds:.1f} s",
        "CPU load": f"{cpu / results.seconds:.2f} CPUs" if results.seconds else "–",
        "processor": cpu_model(),
    }
    devices = dict.fromkeys(record.outcome.device for record in done if record.outcome.device)
    if devices:
        summary["device"] = ", ".join(devices)
    return summary | {"gpumlp": __version__}


def _part(results: Results, part: Part) -> dict[str, Any]:
    record = results.records.get(part.id)
    config = part.raw_config(results.quick)
    page: dict[str, Any] = {
        "id": part.id,
        "title": part.title,
        "text": _paragraphs(part.text),
        "claims": [_claim(verdict) for verdict in results.verdicts[part.id]],
        "settings": config_toml(config) if config else "",
        "error": record.error if record is not None else "",
        "notes": [], "tables": [], "pictures": [], "facts": "",
    }  # fmt: skip
    if record is None or record.error:
        return page
    from markupsafe import Markup

    outcome = record.outcome
    page["notes"] = outcome.notes
    page["tables"] = [_table(table) for table in outcome.tables]
    page["pictures"] = [{"svg": Markup(p.svg), "caption": p.caption, "wide": p.wide} for p in record.pictures]
    facts = [f"{record.seconds:.3g} s", f"{record.cpu_load:.2f} CPUs busy"]
    if outcome.it_per_second is not None:
        facts.append(f"{figure_text(outcome.it_per_second)} epochs/s")
    facts += [text for text in (outcome.device, outcome.executor) if text]
    if outcome.seeds:
        facts.append(_seeds(outcome.seeds))
    page["facts"] = ", ".join(facts)
    return page


def _table(table: Table) -> dict[str, Any]:
    numeric = [all(is_number(row[i]) for row in table.rows) for i in range(len(table.columns))]
    rows = [[figure_text(cell) for cell in row] for row in table.rows]
    return {"title": table.title, "columns": table.columns, "numeric": numeric, "rows": rows}


def _seeds(seeds: Sequence[int]) -> str:
    distinct = list(dict.fromkeys(seeds))
    if len(distinct) == 1:
        return f"seed {distinct[0]}"
    if len(distinct) > 4 and distinct == list(range(distinct[0], distinct[-1] + 1)):
        return f"seeds {distinct[0]} to {distinct[-1]}"
    return f"seeds {', '.join(map(str, distinct))}"


def _claim(verdict: Verdict) -> dict[str, str]:
    claim = verdict.claim
    return {
        "what": claim.what,
        "published": figure_text(claim.published, claim.unit),
        "ours": figure_text(verdict.reproduced, claim.unit if verdict.reproduced is not None else ""),
        "rule": verdict.rule,
        "verdict": verdict.verdict,
        "look": LOOKS.get(verdict.verdict, "quiet"),
        "mark": MARKS.get(verdict.verdict, "–"),
        "fault": claim.fault,
        "note": claim.note,
    }


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]
