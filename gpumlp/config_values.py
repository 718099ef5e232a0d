"""Checks of single values of a config: each takes (dotted key, value) and returns the value, or says what is wrong."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .registry import call_with, look_up, nearest

REQUIRED = object()

Check = Callable[[str, Any], Any]


@contextmanager
def at(key: str) -> Iterator[None]:
    """Put the dotted key before the message of a ValueError or TypeError raised in the block."""
    try:
        yield
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        message = str(error)
        raise kind(message if message.startswith(key) else f"{key}: {message}") from None


def _wrong(key: str, given: Any, expected: str) -> ValueError:
    return ValueError(f"{key} is {given!r}; expected {expected}")


def is_number(given: Any) -> bool:
    """Return whether it is a number; true and false are none."""
    return isinstance(given, int | float) and not isinstance(given, bool)


def text(key: str, given: Any) -> str:
    """Check text that is not empty."""
    if not isinstance(given, str) or not given:
        raise _wrong(key, given, "text")
    return given


def name(key: str, given: Any) -> str:
    """Check text that can name a folder on any system."""
    if (
        not isinstance(given, str)
        or not given.strip()
        or set(given) & set('/\\:*?"<>|\0')
        or given.startswith(".")
    ):
        raise _wrong(key, given, "text that can name a folder")
    return given


def flag(key: str, given: Any) -> bool:
    """Check true or false."""
    if not isinstance(given, bool):
        raise _wrong(key, given, "true or false")
    return given


def whole(least: int, most: int | None = None) -> Check:
    """Return the check of a whole number from `least` to `most`."""

    def check(key: str, given: Any) -> int:
        fits = isinstance(given, int) and not isinstance(given, bool) and given >= least
        if not fits or (most is not None and given > most):
            upto = f"at least {least}" if most is None else f"{least} to {most}"
            raise _wrong(key, given, f"a whole number of {upto}")
        return int(given)

    return check


def number(least: float, below: float | None = None, above: bool = False) -> Check:
    """Return the check of a finite number of at least (or above) `least` and less than `below`."""

    def check(key: str, given: Any) -> float:
        fits = is_number(given) and math.isfinite(given) and (given > least if above else given >= least)
        if not fits or (below is not None and given >= below):
            end = "" if below is None else f" and below {below:g}"
            raise _wrong(key, given, f"a number {'above' if above else 'of at least'} {least:g}{end}")
        return given

    return check


def choice(*valid: str) -> Check:
    """Return the check of one of a few words."""

    def check(key: str, given: Any) -> str:
        if given not in valid:
            raise ValueError(f"{key} is {given!r}{nearest(given, valid)}")
        return str(given)

    return check


def texts(key: str, given: Any) -> list[str]:
    """Check a list of names; a name alone is a list of one."""
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
        raise _wrong(key, given, "a list of names")
    return list(items)


def target(key: str, given: Any) -> str | int | list[str | int]:
    """Check a column by name or index, or a list of them."""
    items = given if isinstance(given, list) else [given]
    if not items or not all(isinstance(i, str | int) and not isinstance(i, bool) and i != "" for i in items):
        raise _wrong(key, given, "the name of a column, its index, or a list of them")
    return given


def missing(key: str, given: Any) -> str | float:
    """Check a rule for missing values, or the number that they are filled with."""
    from .data.statistics import MISSING_RULES

    if is_number(given) and math.isfinite(given):
        return float(given)
    if given not in MISSING_RULES:
        raise ValueError(f"{key} is {given!r}{nearest(given, MISSING_RULES)} (a number fills with that)")
    return str(given)


def widths(key: str, given: Any) -> list[int]:
    """Check a list of whole numbers of at least 1."""
    if not isinstance(given, list):
        raise _wrong(key, given, "a list of widths, such as [64, 64]")
    check = whole(1)
    return [check(f"{key}.{i}", width) for i, width in enumerate(given)]


def batch_size(key: str, given: Any) -> int | str:
    """Check a number of rows, "full" or "auto"."""
    if given in ("full", "auto") and isinstance(given, str):
        return given
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise _wrong(key, given, 'a whole number of at least 1, "full" for the whole set, or "auto"')
    return given


def table(key: str, given: Any) -> dict[str, Any]:
    """Check a table; return a copy."""
    if not isinstance(given, Mapping):
        raise _wrong(key, given, f"a table, [{key}]")
    return dict(given)


def name_of(spec: Any) -> str:
    """Return the name of a thing given by its name, or as a table with it."""
    return str(spec["name"] if isinstance(spec, Mapping) else spec)


# --- what is asked for by name ------------------------------------------------------------------------------------


def known_factory(
    key: str, settings: Mapping[str, Any], kind: str, known: Mapping[str, Callable[..., Any]]
) -> Any:
    """Return what makes the thing that a table names, its keys checked against what that takes."""
    given = settings.get("name")
    if not isinstance(given, str):
        raise ValueError(f"{key} needs a name; expected one of {', '.join(sorted(known))}")
    with at(f"{key}.name"):
        factory = look_up(kind, given, known)
    others = {k: value for k, value in settings.items() if k != "name"}
    check_settings(key, others, inspect.signature(factory).parameters)
    return factory


_NUMBERS = {"float", "int", "float | None", "int | None"}


def check_settings(key: str, settings: Mapping[str, Any], takes: Mapping[str, inspect.Parameter]) -> None:
    """Refuse settings of another name or type than what takes them has.

    Raises:
        ValueError: an unknown setting, with the nearest valid one, or a value of another type.
    """
    for setting, value in settings.items():
        if setting not in takes:
            raise ValueError(f"unknown key {key}.{setting}{nearest(setting, takes)}")
        annotation = str(takes[setting].annotation)
        if annotation in _NUMBERS and not is_number(value):
            raise _wrong(f"{key}.{setting}", value, "a number")
        if annotation.startswith("int") and not isinstance(value, int):
            raise _wrong(f"{key}.{setting}", value, "a whole number")
        if annotation == "bool":
            flag(f"{key}.{setting}", value)
        if annotation == "str" and not isinstance(value, str):
            raise _wrong(f"{key}.{setting}", value, "text")


def named(
    key: str, given: Any, kind: str, known: Mapping[str, Callable[..., Any]], get: Callable[[Any], Any]
) -> Any:
    """Check a thing that is asked for by name; return it complete: a name alone, a number, or a table of settings.

    Args:
        key: dotted.
        given: a name, a table, or a number where `get` takes one.
        kind: what messages call it.
        known: name -> what makes it.
        get: makes the object from all of these.

    Raises:
        ValueError, TypeError: an unknown name or setting, or a value that the thing refuses.
    """
    if isinstance(given, str):
        given = {"name": given}
    if isinstance(given, Mapping):
        factory = known_factory(key, given, kind, known)
        with at(key):
            # what needs no setting under this name is found by its name alone
            built = (
                get(dict(given)) if len(given) > 1 else call_with(f"{kind} {given['name']!r}", factory, {})
            )
    else:
        with at(key):
            built = get(given)
    full = {k: value for k, value in built.to_dict().items() if value is not None}
    return full["name"] if len(full) == 1 else full
