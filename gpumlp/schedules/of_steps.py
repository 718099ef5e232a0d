"""Schedules whose rate is a function of the step alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from ..settings import above_zero, check_choice, from_zero, set_number
from .base import Floats, Schedule, Steps, Unit, in_steps, set_rate, set_span


@dataclass(frozen=True)
class ConstantRate(Schedule):
    """The same rate at every step."""

    name: ClassVar[str] = "constant"
    lr: float

    def __post_init__(self) -> None:
        set_rate(self)

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        return np.full(steps.shape, self.lr)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """lr factor^floor(t / every), t in epochs or steps: PyTorch's StepLR(step_size=every, gamma=factor)."""

    name: ClassVar[str] = "step"
    lr: float
    factor: float = 0.1
    every: float = field(kw_only=True)
    unit: Unit = "epochs"

    def __post_init__(self) -> None:
        set_rate(self)
        set_number(self, "factor", "a finite number > 0, such as 0.1", above_zero)
        set_span(self, "every")

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        periods = steps // in_steps(self.every, self.unit, steps_per_epoch)
        return self.lr * self.factor ** periods.astype(float)


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """lr factor^(t / every), the exponent rounded down with `staircase`: Keras's ExponentialDecay.

    PyTorch's ExponentialLR, stepped once an epoch, is ``every=1, staircase=True``.
    """

    name: ClassVar[str] = "exponential"
    lr: float
    factor: float
    every: float
    unit: Unit = "epochs"
    staircase: bool = False

    def __post_init__(self) -> None:
        set_rate(self)
        set_number(self, "factor", "a finite number > 0, such as 0.9", above_zero)
        set_span(self, "every")
        if not isinstance(self.staircase, bool):
            raise TypeError(f"staircase is {self.staircase!r}; expected True or False")

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        every = in_steps(self.every, self.unit, steps_per_epoch)
        periods = steps // every if self.staircase else steps / every
        return self.lr * self.factor ** periods.astype(float)


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Half a cosine from `lr` at the end of the warm-up down to `final` at `total`, then `final`.

    With W warm-up steps of T in all, step t has lr (t + 1) / (W + 1) for t < W, then
    final + (lr - final) (1 + cos(pi (t - W) / (T - W))) / 2 (Loshchilov and Hutter 2017, equation 5).
    In PyTorch LinearLR(start_factor=1 / (W + 1), total_iters=W), then CosineAnnealingLR(T - W, final).

    Args:
        lr: the rate after the warm-up.
        final: the rate at the end, not above `lr`.
        warmup: length of the linear rise, in `unit`; 0 for none.
        unit: "epochs" or "steps", of `warmup` and `total`.
        total: where the decay ends, from step 0; None for the planned end of the training.
    """

    name: ClassVar[str] = "cosine"
    lr: float
    final: float = 0.0
    warmup: float = 0
    unit: Unit = "epochs"
    total: float | None = None

    def __post_init__(self) -> None:
        set_rate(self)
        set_rate(self, "final")
        set_span(self, "warmup", may_be_zero=True)
        if self.final > self.lr:
            raise ValueError(f"final is {self.final}, above lr, {self.lr}; expected final <= lr")
        if self.total is not None:
            set_span(self, "total")

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        warmup = in_steps(self.warmup, self.unit, steps_per_epoch)
        end = total_steps if self.total is None else in_steps(self.total, self.unit, steps_per_epoch)
        if warmup >= end:
            raise ValueError(
                f"the warm-up has {warmup} steps ({self.warmup} {self.unit}) and the whole schedule {end}; "
                "expected a shorter warm-up; lower warmup or train for longer"
            )
        fraction = np.clip((steps - warmup) / (end - warmup), 0.0, 1.0)
        decay = self.final + (self.lr - self.final) * (1 + np.cos(np.pi * fraction)) / 2
        return np.where(steps < warmup, self.lr * (steps + 1) / (warmup + 1), decay)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up from max_lr / div_factor to `max_lr`, then down to max_lr / (div_factor final_div_factor).

    The rates of PyTorch's OneCycleLR in two phases (Smith and Topin 2019); the momentum stays as it is, and
    the last rate holds after `total`.

    Args:
        max_lr: the highest rate.
        pct_start: the part of `total` that rises, 0 to 1.
        div_factor: `max_lr` over the first rate, at least 1.
        final_div_factor: the first rate over the last, at least 1.
        anneal: "cos" or "linear".
        unit: "epochs" or "steps", of `total`.
        total: length of the cycle; None for the planned length of the training.
    """

    name: ClassVar[str] = "one_cycle"
    max_lr: float
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: Literal["cos", "linear"] = "cos"
    unit: Unit = "epochs"
    total: float | None = None

    def __post_init__(self) -> None:
        set_rate(self, "max_lr")
        set_number(self, "pct_start", "a number from 0 to 1", lambda part: 0 <= part <= 1)
        set_number(self, "div_factor", "a finite number >= 1", lambda factor: factor >= 1)
        set_number(self, "final_div_factor", "a finite number >= 1", lambda factor: factor >= 1)
        check_choice(self, "anneal", ("cos", "linear"))
        check_choice(self, "unit", ("epochs", "steps"))
        if self.total is not None:
            set_span(self, "total")

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        end = total_steps if self.total is None else in_steps(self.total, self.unit, steps_per_epoch)
        first = self.max_lr / self.div_factor
        # PyTorch's bounds: the peak is at step pct_start * total - 1, which may be a fraction or below 0
        peak, last = self.pct_start * end - 1, end - 1
        steps = np.minimum(steps, last)
        rise = self._between(first, self.max_lr, steps / peak if peak > 0 else np.ones(steps.shape))
        fraction = (steps - peak) / (last - peak) if last > peak else np.ones(steps.shape)
        fall = self._between(self.max_lr, first / self.final_div_factor, fraction)
        return np.where(steps <= peak, rise, fall)

    def _between(self, start: float, end: float, fraction: Floats) -> Floats:
        if self.anneal == "linear":
            return start + (end - start) * fraction
        return end + (start - end) / 2.0 * (np.cos(np.pi * fraction) + 1)


@dataclass(frozen=True)
class InverseScaling(Schedule):
    """lr / (scale t + 1)^power, t the epochs or steps completed: scikit-learn's "invscaling".

    scikit-learn's MLP counts t in training samples and changes the rate after each epoch: that is
    ``unit="epochs", scale=number of training samples``. ``power=1`` is Keras's InverseTimeDecay.
    """

    name: ClassVar[str] = "inverse_scaling"
    lr: float
    power: float = 0.5
    unit: Unit = "epochs"
    scale: float = 1.0

    def __post_init__(self) -> None:
        set_rate(self)
        set_number(self, "power", "a finite number >= 0, such as 0.5", from_zero)
        check_choice(self, "unit", ("epochs", "steps"))
        set_number(self, "scale", "a finite number > 0", above_zero)

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        completed = steps // steps_per_epoch if self.unit == "epochs" else steps
        return self.lr / (self.scale * completed + 1) ** self.power
