"""Settings of what is asked for by name: checked, and those of frozen dataclasses written as a table."""

from __future__ import annotations

import dataclasses
import math
import numbers
from abc import ABC
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any, ClassVar


class Named(ABC):
    """A frozen dataclass that is asked for by its name, and equal to another of its class and settings."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"name": ..., **settings}``, from which `gpumlp.registry.build` makes the object again."""
        settings = dataclasses.fields(self)  # type: ignore[arg-type]
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in settings if f.init}}


def alike(things: Iterable[Any], apart: Collection[str] = ()) -> Hashable | None:
    """Return what is equal for things of equal types and attributes, or None where some cannot be compared.

    Args:
        things: layers, losses, optimizers.
        apart: names of attributes that do not count.
    """
    found = tuple(
        (type(thing), *((name, value) for name, value in vars(thing).items() if name not in apart))
        for thing in things
    )
    try:
        hash(found)
    except TypeError:
        return None
    return found


def from_zero(value: float) -> bool:
    """Return whether a number is at least 0."""
    return value >= 0


def above_zero(value: float) -> bool:
    """Return whether a number is above 0."""
    return value > 0


def check_number(
    name: str, value: Any, expected: str, valid: Callable[[float], bool] = math.isfinite
) -> float:
    """Return a setting as a float, so that any kind of number compares, prints and saves alike.

    Args:
        name: of the setting.
        value: given for it.
        expected: what the message about a mistake says was expected.
        valid: tells whether a finite number will do.

    Raises:
        TypeError: not a number.
        ValueError: a number that is not finite, or not valid.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    if not (math.isfinite(value) and valid(float(value))):
        raise ValueError(f"{name} is {value}; expected {expected}")
    return float(value)


def set_number(
    owner: Any, setting: str, expected: str, valid: Callable[[float], bool] = math.isfinite
) -> None:
    """Check a number among the settings of a frozen object, and make it a float; as `check_number`."""
    value = check_number(setting, getattr(owner, setting), expected, valid)
    object.__setattr__(owner, setting, value)


def set_count(owner: Any, setting: str, least: int) -> None:
    """Check a setting that counts, and make it an int; errors as `set_number`."""
    expected = f"a whole number >= {least}"
    set_number(owner, setting, expected, lambda count: count >= least and count == math.floor(count))
    object.__setattr__(owner, setting, int(getattr(owner, setting)))


def check_choice(owner: Any, setting: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless a setting is one of a few words."""
    value = getattr(owner, setting)
    if value not in choices:
        raise ValueError(f"{setting} is {value!r}; expected {' or '.join(map(repr, choices))}")
