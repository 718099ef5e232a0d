"""Things that are asked for by name: layers, losses, optimizers, schedules, initializers, metrics.

Each module keeps one table, ``name -> class``, and turns what a user gives (an object, a name, or a mapping
with a ``name`` and the arguments) into an object with `build`. Every mistake ends in one line that gives the
nearest valid name.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def nearest(name: object, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest valid name, or the list of the valid ones."""
    valid = sorted(valid)
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(valid)}"


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return ``table[name]``, forgiving case and hyphens.

    Raises:
        ValueError: unknown name; the message has the nearest valid one.
    """
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    if key not in table:
        raise ValueError(f"unknown {kind} {name!r}{nearest(key, table)}")
    return table[key]


@functools.lru_cache(maxsize=256)
def settings_of(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a class or a function, by name; found out once, as that takes longer than a call."""
    return inspect.signature(factory).parameters


def call_with(kind: str, factory: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    """Call ``factory(**arguments)``; an argument it does not take is a ValueError with the nearest valid one."""
    parameters = settings_of(factory)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise ValueError(f"unknown setting {key!r} of {kind}{nearest(key, parameters)}")
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in arguments
    ]
    if missing:
        raise ValueError(f"{kind} needs the setting {missing[0]!r}; give it a value")
    return factory(**arguments)


def build(kind: str, spec: Any, base: type[T], table: Mapping[str, Callable[..., T]]) -> T:
    """Return `spec` itself when it is a `base`, else what the table makes of a name or of ``{"name": ..., ...}``.

    Raises:
        ValueError: unknown name or setting.
        TypeError: `spec` is none of the three.
    """
    if isinstance(spec, base):
        return spec
    if isinstance(spec, type) and issubclass(spec, base):
        return call_with(f"{kind} {spec.__name__}", spec, {})
    if isinstance(spec, str):
        return call_with(f"{kind} {spec!r}", look_up(kind, spec, table), {})
    if isinstance(spec, Mapping):
        arguments = dict(spec)
        name = arguments.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(
                f"a {kind} given as a table needs a name; expected one of {', '.join(sorted(table))}"
            )
        return call_with(f"{kind} {name!r}", look_up(kind, name, table), arguments)
    raise TypeError(
        f"{kind} is a {type(spec).__name__}; expected a {base.__name__}, or one of the names {', '.join(sorted(table))}"
    )
