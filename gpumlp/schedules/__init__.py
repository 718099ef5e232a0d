"""Learning-rate schedules: the rate as a function of the step, for many steps at once.

Steps count from 0 over the whole life of a trainer; an epoch is ``steps_per_epoch`` of them. Only
`ReduceOnPlateau` has state. Where PyTorch or scikit-learn has the same schedule the numbers are theirs.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

from ..registry import build
from .base import Schedule
from .of_steps import ConstantRate, CosineDecay, ExponentialDecay, InverseScaling, OneCycle, StepDecay
from .plateau import ReduceOnPlateau

__all__ = [
    "SCHEDULES",
    "ConstantRate",
    "CosineDecay",
    "ExponentialDecay",
    "InverseScaling",
    "OneCycle",
    "ReduceOnPlateau",
    "Schedule",
    "StepDecay",
    "get_schedule",
]

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": ConstantRate,
    "step": StepDecay,
    "exponential": ExponentialDecay,
    "cosine": CosineDecay,
    "one_cycle": OneCycle,
    "inverse_scaling": InverseScaling,
    "invscaling": InverseScaling,
    "reduce_on_plateau": ReduceOnPlateau,
}


def get_schedule(spec: float | str | Mapping[str, Any] | Schedule) -> Schedule:
    """Return the schedule for a number (a constant rate), an object, a name or ``{"name": ..., **settings}``.

    Raises:
        ValueError: unknown name or setting, or a bad value of one, such as a negative rate.
        TypeError: none of the four.
    """
    if isinstance(spec, numbers.Real) and not isinstance(spec, bool):
        return ConstantRate(float(spec))
    return build("schedule", spec, Schedule, SCHEDULES)  # type: ignore[type-abstract]
