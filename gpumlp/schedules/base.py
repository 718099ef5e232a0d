"""The base of all schedules, and the checks of what they have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..settings import Named, above_zero, check_choice, from_zero, set_count, set_number

Floats: TypeAlias = NDArray[np.floating]
Steps: TypeAlias = NDArray[np.int64]
Unit: TypeAlias = Literal["epochs", "steps"]


class Schedule(Named):
    """The base of all schedules; a new one is a frozen dataclass that sets `name` and overrides `rates_at`.

    Two schedules are equal when their class and settings are.
    """

    def rates(self, steps: ArrayLike, steps_per_epoch: int, total_steps: int) -> NDArray[np.float64]:
        """Return the learning rate of each step, float64, in the shape of `steps`.

        Args:
            steps: integers, counted from 0 over the life of the trainer.
            steps_per_epoch: the batches of one epoch, at least 1.
            total_steps: the steps that the training is planned to have, at least 1.

        Raises:
            ValueError: a negative step, a count below 1, a warm-up longer than the training, or a rate that
                comes out negative or not finite.
        """
        steps = np.asarray(steps)
        if steps.dtype.kind not in "iu" or (steps.size and steps.min() < 0):
            raise ValueError("steps must be whole numbers from 0 on; they count the steps already taken")
        if steps_per_epoch < 1 or total_steps < 1:
            raise ValueError(
                f"steps_per_epoch is {steps_per_epoch} and total_steps {total_steps}; expected at least 1"
            )
        # always an array of one dimension: NumPy's scalars round powers otherwise than its arrays do
        flat = steps.astype(np.int64).ravel()
        with np.errstate(over="ignore"):
            rates = np.asarray(self.rates_at(flat, steps_per_epoch, total_steps), np.float64)
        rates = rates.reshape(steps.shape)
        wrong = ~(np.isfinite(rates) & (rates >= 0))
        if wrong.any():
            raise ValueError(
                f"{self!r} gives a learning rate of {rates[wrong].flat[0]} at step {steps[wrong].flat[0]}; "
                "expected a finite number >= 0; change its settings"
            )
        return rates

    @abstractmethod
    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        """Return the rates of steps (n,); the arguments are checked, and so will the rates be."""


def set_rate(owner: Any, setting: str = "lr") -> None:
    """Check a learning rate among the settings of a frozen object; errors as `gpumlp.settings.set_number`."""
    set_number(owner, setting, "a finite number >= 0, such as 0.01", from_zero)


def set_span(owner: Any, setting: str, *, may_be_zero: bool = False) -> None:
    """Check a length in `owner.unit`: whole steps, or epochs that need not be whole."""
    check_choice(owner, "unit", ("epochs", "steps"))
    if owner.unit == "steps":
        set_count(owner, setting, 0 if may_be_zero else 1)
    elif may_be_zero:
        set_number(owner, setting, "a number of epochs >= 0", from_zero)
    else:
        set_number(owner, setting, "a number of epochs > 0", above_zero)


def in_steps(span: float, unit: Unit, steps_per_epoch: int) -> int:
    """Return `span` as steps; a part of an epoch is rounded to the nearest step, but never to none."""
    if span == 0 or unit == "steps":
        return int(span)
    return max(1, round(span * steps_per_epoch))
