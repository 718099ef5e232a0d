"""Rules of claims: whether a reproduced figure holds what was published, and the rule in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config_values import is_number
from ..registry import nearest

Figure = float | Sequence[float]

AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
    "mean": lambda a: float(np.mean(a)),
    "median": lambda a: float(np.median(a)),
    "min": lambda a: float(np.min(a)),
    "max": lambda a: float(np.max(a)),
    "first": lambda a: float(a[0]),
    "last": lambda a: float(a[-1]),
}


@dataclass(frozen=True)
class Judgement:
    """What a rule says of a figure.

    Attributes:
        holds: whether the claim does.
        rule: in words.
    """

    holds: bool
    rule: str


@dataclass(frozen=True)
class Rule:
    """A rule: exactly one form, as a table of a recipe says it.

    Forms (p is the published figure, v ours):
        ``{interval = [low, high]}``: low <= v <= high.
        ``{at_least = x}``, ``{at_most = x}``.
        ``{within = x, better = "higher" | "lower"}``: v misses p by at most x, in p's unit, or is better; without
        ``better``, on either side.
        ``{factor_at_least = f}``, ``{factor_at_most = f}``: v >= f p, v <= f p.
        ``{order = "increasing" | "decreasing", gap = x}``: each of several figures is above (below) the one before
        by more than x, 0 unless given.

    Raises:
        ValueError: another form, no form or several, or a setting of another kind.
    """

    spec: Mapping[str, Any]

    def __post_init__(self) -> None:
        forms = [key for key in self.spec if key in FORMS]
        extra = [key for key in self.spec if key not in (*FORMS, "better", "gap")]
        if extra:
            raise ValueError(f"unknown rule {extra[0]!r}{nearest(extra[0], [*FORMS, 'better', 'gap'])}")
        if len(forms) != 1:
            raise ValueError(f"a rule has the forms {forms}; expected exactly one of {', '.join(FORMS)}")
        if "better" in self.spec and forms != ["within"]:
            raise ValueError(f"better goes with within; the rule has {forms[0]}")
        if "gap" in self.spec and forms != ["order"]:
            raise ValueError(f"gap goes with order; the rule has {forms[0]}")
        value = self.spec[forms[0]]
        if forms == ["order"]:
            _expect(value in ("increasing", "decreasing"), "order", value, '"increasing" or "decreasing"')
        elif forms == ["interval"]:
            fits = isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
            _expect(fits and value[0] <= value[1], "interval", value, "two numbers, the lower one first")
        else:
            _expect(is_number(value) and math.isfinite(value), forms[0], value, "a finite number")
        better = self.spec.get("better", "higher")
        _expect(better in ("higher", "lower"), "better", better, '"higher" or "lower"')

    @property
    def form(self) -> str:
        """Name of the form."""
        return next(key for key in self.spec if key in FORMS)

    @property
    def needs_published(self) -> bool:
        """Whether the rule compares with the published figure."""
        return self.form in ("within", "factor_at_least", "factor_at_most")

    def judge(self, ours: Figure, published: Any = None) -> Judgement:
        """Return whether our figure holds.

        Args:
            ours: a number; for an order, several.
            published: the published figure, where the rule compares with it.

        Raises:
            ValueError: figures that the rule cannot compare.
        """
        if self.needs_published and not is_number(published):
            raise ValueError(f"rule {self.form} compares with a published number; there is {published!r}")
        values = np.atleast_1d(np.asarray(ours, dtype=float))
        if (len(values) < 2) == (self.form == "order"):
            raise ValueError(
                f"rule {self.form} judges {'several figures' if self.form == 'order' else 'one figure'}; "
                f"got {len(values)}; a list of figures is made one by of = {', '.join(AGGREGATES)}"
            )
        holds, words = FORMS[self.form](values, published, self.spec)
        return Judgement(bool(holds and np.isfinite(values).all()), words)


def _expect(fits: bool, name: str, given: Any, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name} of a rule is {given!r}; expected {expected}")


def _interval(v: np.ndarray, p: Any, spec: Mapping[str, Any]) -> tuple[bool, str]:
    low, high = spec["interval"]
    return low <= v[0] <= high, f"exactly {low:g}" if low == high else f"from {low:g} to {high:g}"


def _at_least(v: np.ndarray, p: Any, spec: Mapping[str, Any]) -> tuple[bool, str]:
    return v[0] >= spec["at_least"], f"at least {spec['at_least']:g}"


def _at_most(v: np.ndarray, p: Any, spec: Mapping[str, Any]) -> tuple[bool, str]:
    return v[0] <= spec["at_most"], f"at most {spec['at_most']:g}"


def _within(v: np.ndarray, p: Any, spec: Mapping[str, Any]) -> tuple[bool, str]:
    margin, better = spec["within"], spec.get("better")
    slack = 1e-9 * margin + 1e-12 * max(1.0, abs(p))  # 0.97 - 0.005 is not exactly 0.965
    gap = float(v[0]) - p
    if better is None:
        words = f"within {margin:g} of the published figure" if margin else "equal to the published figure"
        return abs(gap) <= margin + slack, words
    lost = -gap if better == "higher" else gap
    if margin == 0:
        words = f"at {'least' if better == 'higher' else 'most'} the published figure"
    else:
        words = f"within {margin:g} of the published figure, or {better}"
    return lost <= margin + slack, words


def _factor_at_least(v: np.ndarray, p: Any, spec: Mapping[str, Any]) -> tuple[bool, str]:
    factor = spec["factor_at_least"]
    return v[0] >= factor * p, "at least " + _times(factor)


def _factor_at_most(v: np.ndarray, p: Any, spec: Mapping[str, Any]) -> tuple[bool, str]:
    factor = spec["factor_at_most"]
    return v[0] <= factor * p, "at most " + _times(factor)


def _times(factor: float) -> str:
    return "the published figure" if factor == 1 else f"{factor:g} times the published figure"


def _order(v: np.ndarray, p: Any, spec: Mapping[str, Any]) -> tuple[bool, str]:
    steps = np.diff(v) if spec["order"] == "increasing" else -np.diff(v)
    gap = spec.get("gap", 0.0)
    by = f" by more than {gap:g}" if gap else ""
    return bool(
        (steps > gap).all()
    ), f"each {'above' if spec['order'] == 'increasing' else 'below'} the one before{by}"


FORMS: dict[str, Callable[[np.ndarray, Any, Mapping[str, Any]], tuple[bool, str]]] = {
    "interval": _interval,
    "at_least": _at_least,
    "at_most": _at_most,
    "within": _within,
    "factor_at_least": _factor_at_least,
    "factor_at_most": _factor_at_most,
    "order": _order,
}
