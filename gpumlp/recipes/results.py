"""What a recipe's parts came to: ``results.json``, with each claim's figures, rule and verdict."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config_values import is_number
from .recipe import Claim, Part, Recipe
from .rules import AGGREGATES
from .store import Record

HOLDS, FAILS, FAULT = "holds", "fails", "fault in the report"
SHOWN, QUICK, MISSING, ERROR = "shown", "not judged (quick)", "not run", "could not run"
VERDICTS = (HOLDS, FAILS, FAULT, QUICK, SHOWN, MISSING, ERROR)


@dataclass(frozen=True)
class Verdict:
    """A claim, and what came of it.

    Attributes:
        claim: of the recipe.
        reproduced: our figure, or several; None where the part was not run.
        verdict: one of `VERDICTS`.
        holds: what the rule says; None where nothing was judged.
        rule: in words, or "".
    """

    claim: Claim
    reproduced: Any
    verdict: str
    holds: bool | None
    rule: str


def judge(claim: Claim, part: Part, records: Mapping[str, Record], quick: bool) -> Verdict:
    """Return what comes of a claim.

    Args:
        claim: of the part.
        part: at hand.
        records: id -> record, of the parts that were run.
        quick: whether they were run quickly.

    Raises:
        ValueError: a claim that names a value which its part does not give.
    """
    sources = [key.rpartition(":")[0] or part.id for key in claim.keys]
    found = [records.get(source) for source in sources]
    if any(record is None or record.error for record in found):
        failed = any(record is not None and record.error for record in found)
        return Verdict(claim, None, ERROR if failed else MISSING, None, _words(claim))
    values = [
        _value(claim, key, record)
        for key, record in zip(claim.keys, found, strict=True)
        if record is not None
    ]
    ours: Any = values[0] if len(values) == 1 else values
    if claim.rule is None:
        return Verdict(claim, ours, FAULT if claim.fault else SHOWN, None, "")
    if quick and not claim.judged_quick:
        return Verdict(claim, ours, QUICK, None, _words(claim))
    judged = claim.rule.judge(ours, claim.published)
    verdict = FAULT if claim.fault and not judged.holds else HOLDS if judged.holds else FAILS
    return Verdict(claim, ours, verdict, judged.holds, judged.rule)


def _words(claim: Claim) -> str:
    if claim.rule is None:
        return ""
    probe: Any = [0.0, 1.0] if claim.rule.form == "order" else 0.0
    return claim.rule.judge(probe, claim.published).rule


def _value(claim: Claim, key: str, record: Record) -> Any:
    name = key.rpartition(":")[2]
    if name not in record.values:
        raise ValueError(
            f"the claim {claim.what!r} looks for {name!r}, which part {record.id} does not give; it gives "
            f"{', '.join(sorted(record.values))}"
        )
    value = record.values[name]
    return AGGREGATES[claim.of](np.asarray(value, dtype=float)) if claim.of is not None else value


@dataclass
class Results:
    """All of a recipe's results.

    Attributes:
        recipe: at hand.
        quick: whether training was shortened.
        records: id -> record, of the parts that were run.
        verdicts: id -> verdicts of its claims, of every part.
    """

    recipe: Recipe
    quick: bool
    records: dict[str, Record]
    verdicts: dict[str, list[Verdict]]

    @classmethod
    def of(cls, recipe: Recipe, quick: bool, records: dict[str, Record]) -> Results:
        """Judge every claim."""
        verdicts = {part.id: [judge(c, part, records, quick) for c in part.claims] for part in recipe.parts}
        return cls(recipe, quick, records, verdicts)

    @property
    def counts(self) -> dict[str, int]:
        """How many claims have each verdict, without those that none has."""
        found = Counter(v.verdict for verdicts in self.verdicts.values() for v in verdicts)
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    @property
    def is_complete(self) -> bool:
        """Whether every part was run."""
        return all(part.id in self.records and not self.records[part.id].error for part in self.recipe.parts)

    @property
    def holds(self) -> bool:
        """Whether no claim fails and no part could not run."""
        return FAILS not in self.counts and not any(record.error for record in self.records.values())

    @property
    def seconds(self) -> float:
        """Spent on all parts."""
        return sum(record.seconds for record in self.records.values())

    def to_dict(self) -> dict[str, Any]:
        """Return what ``results.json`` holds."""
        from .._version import __version__
        from ..machine import machine, versions

        return {
            "report": self.recipe.name,
            "title": self.recipe.title,
            "quick": self.quick,
            "recipe_version": self.recipe.version,
            "gpumlp": __version__,
            "machine": machine(),
            "versions": versions(),
            "complete": self.is_complete,
            "holds": self.holds,
            "claims": self.counts,
            "seconds": self.seconds,
            "parts": [self._part(part) for part in self.recipe.parts],
        }

    def _part(self, part: Part) -> dict[str, Any]:
        record = self.records.get(part.id)
        said: dict[str, Any] = {
            "id": part.id,
            "title": part.title,
            "kind": part.kind,
            "settings": part.raw_config(self.quick),
            "options": part.options_for(self.quick),
            "status": MISSING if record is None else "error" if record.error else "done",
            "claims": [_claim(verdict) for verdict in self.verdicts[part.id]],
        }
        if record is None:
            return said
        if record.error:
            return said | {"error": record.error}
        outcome = record.outcome
        return said | {
            "seconds": record.seconds,
            "cpu_seconds": record.cpu_seconds,
            "cpu_load": record.cpu_load,
            "it_per_second": outcome.it_per_second,
            "device": outcome.device,
            "executor": outcome.executor,
            "seeds": outcome.seeds,
            "values": outcome.values,
            "notes": outcome.notes,
        }


def _claim(verdict: Verdict) -> dict[str, Any]:
    claim = verdict.claim
    said = {
        "what": claim.what,
        "published": claim.published,
        "reproduced": verdict.reproduced,
        "unit": claim.unit,
        "rule": verdict.rule,
        "holds": verdict.holds,
        "verdict": verdict.verdict,
    }
    return said | {key: getattr(claim, key) for key in ("fault", "note") if getattr(claim, key)}


def read_results(path: str | Path) -> dict[str, Any]:
    """Return a ``results.json``.

    Args:
        path: of the file, or of its folder.

    Raises:
        ValueError: there is none, or it is no JSON.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path} holds no results: {error}; run gpumlp reproduce first") from None
    return found


def figure_text(value: Any, unit: str = "") -> str:
    """Return a figure as tables show it: numbers to 4 digits, several of them in a row, text as it is."""
    if value is None:
        return "–"
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(figure_text(item) for item in value) + _unit(unit)
    if not is_number(value):
        return str(value)
    if not math.isfinite(value):
        return "–"
    whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e6)
    digits = "d" if whole else ".0f" if 1000 <= abs(value) < 1e6 else ".4g"
    return format(int(value) if whole else value, digits) + _unit(unit)


def _unit(unit: str) -> str:
    return f"\N{NO-BREAK SPACE}{unit}" if unit else ""
