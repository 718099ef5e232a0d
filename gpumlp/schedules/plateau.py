"""The schedule that has state: its rate falls where what it observes does not improve."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ..settings import check_choice, from_zero, set_count, set_number
from .base import Floats, Schedule, Steps, set_rate


@dataclass
class _Plateau:
    """What `ReduceOnPlateau` remembers; `best` is None until something was observed."""

    lr: float
    best: float | None = None
    bad: int = 0
    cooldown: int = 0


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Multiply the rate by `factor` when the observed value has not improved for `patience` observations.

    The rules of PyTorch's ReduceLROnPlateau. A value improves when it is below best (1 - threshold) ("rel")
    or best - threshold ("abs"); with ``mode="max"``, above best (1 + threshold) or best + threshold; NaN
    never does. The object has state: one trainer, one object (`reset` starts again).

    Args:
        lr: the first rate.
        factor: 0 < factor < 1.
        patience: how many observations in a row may pass without improvement before the rate falls.
        min_lr: the rate does not fall below.
        threshold: how much counts as an improvement.
        threshold_mode: "rel" or "abs".
        cooldown: observations after a reduction that do not count as bad.
        mode: "min" where less is better, "max" where more is.
        monitor: the name of the value that a trainer observes.
        eps: a reduction smaller than this is left out.
    """

    name: ClassVar[str] = "reduce_on_plateau"
    lr: float
    factor: float = 0.1
    patience: int = 10
    min_lr: float = 0.0
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    mode: Literal["min", "max"] = "min"
    monitor: str = "val_loss"
    eps: float = 1e-8
    _state: _Plateau = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        set_rate(self)
        set_number(self, "factor", "a number above 0 and below 1, such as 0.1", lambda factor: 0 < factor < 1)
        set_count(self, "patience", 0)
        set_rate(self, "min_lr")
        check_choice(self, "threshold_mode", ("rel", "abs"))
        if self.threshold_mode == "rel":
            set_number(
                self, "threshold", "a part of the best value, >= 0 and < 1", lambda part: 0 <= part < 1
            )
        else:
            set_number(self, "threshold", "a finite number >= 0", from_zero)
        set_count(self, "cooldown", 0)
        check_choice(self, "mode", ("min", "max"))
        if not isinstance(self.monitor, str):
            raise TypeError(f"monitor is {self.monitor!r}; expected the name of a value, such as 'val_loss'")
        set_number(self, "eps", "a finite number >= 0", from_zero)
        self.reset()

    @property
    def current_lr(self) -> float:
        """The rate now."""
        return self._state.lr

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        return np.full(steps.shape, self._state.lr)

    def observe(self, value: float) -> bool:
        """Take in the next value of `monitor`, and return whether the rate fell."""
        state, value = self._state, float(value)
        if self._improves(value):
            state.best, state.bad = value, 0
        else:
            state.bad += 1
        if state.cooldown > 0:
            state.cooldown, state.bad = state.cooldown - 1, 0
        if state.bad <= self.patience:
            return False
        state.cooldown, state.bad = self.cooldown, 0
        lower = max(state.lr * self.factor, self.min_lr)
        if state.lr - lower <= self.eps:
            return False
        state.lr = lower
        return True

    def _improves(self, value: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        best = sign * math.inf if self._state.best is None else self._state.best
        if self.threshold_mode == "rel":
            return sign * value < sign * best * (1.0 - sign * self.threshold)
        return sign * value < sign * best - self.threshold

    def reset(self) -> None:
        """Forget every observation and go back to the first rate."""
        object.__setattr__(self, "_state", _Plateau(lr=self.lr))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers: lr, best (None before the first improvement), bad, cooldown."""
        return dataclasses.asdict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: missing or unknown keys, or a rate that is not a finite number >= 0.
        """
        keys = [f.name for f in dataclasses.fields(_Plateau)]
        if sorted(state) != sorted(keys):
            raise ValueError(
                f"the state has the keys {sorted(state)}; expected {sorted(keys)}, from state_dict()"
            )
        loaded = _Plateau(**state)
        set_rate(loaded)
        set_count(loaded, "bad", 0)
        set_count(loaded, "cooldown", 0)
        if loaded.best is not None:
            loaded.best = float(loaded.best)
        object.__setattr__(self, "_state", loaded)
