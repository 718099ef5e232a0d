"""Learning-rate schedules: the rate as a function of the step, for many steps at once.

Steps count from 0 over the whole life of a trainer; an epoch is ``steps_per_epoch`` of them. Only
`ReduceOnPlateau` has state. Where PyTorch or scikit-learn has the same schedule the numbers are theirs.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpumlp.registry import build
from gpumlp.settings import Named, above_zero, check_choice, from_zero, set_count, set_number

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


def _set_rate(owner: Any, setting: str = "lr") -> None:
    set_number(owner, setting, "a finite number >= 0, such as 0.01", from_zero)


def _set_span(owner: Any, setting: str, *, may_be_zero: bool = False) -> None:
    """Check a length in `owner.unit`: whole steps, or epochs that need not be whole."""
    check_choice(owner, "unit", ("epochs", "steps"))
    if owner.unit == "steps":
        set_count(owner, setting, 0 if may_be_zero else 1)
    elif may_be_zero:
        set_number(owner, setting, "a number of epochs >= 0", from_zero)
    else:
        set_number(owner, setting, "a number of epochs > 0", above_zero)


def _in_steps(span: float, unit: Unit, steps_per_epoch: int) -> int:
    """Return `span` as steps; a part of an epoch is rounded to the nearest step, but never to none."""
    if span == 0 or unit == "steps":
        return int(span)
    return max(1, round(span * steps_per_epoch))


@dataclass(frozen=True)
class ConstantRate(Schedule):
    """The same rate at every step."""

    name: ClassVar[str] = "constant"
    lr: float

    def __post_init__(self) -> None:
        _set_rate(self)

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
        _set_rate(self)
        set_number(self, "factor", "a finite number > 0, such as 0.1", above_zero)
        _set_span(self, "every")

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        periods = steps // _in_steps(self.every, self.unit, steps_per_epoch)
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
        _set_rate(self)
        set_number(self, "factor", "a finite number > 0, such as 0.9", above_zero)
        _set_span(self, "every")
        if not isinstance(self.staircase, bool):
            raise TypeError(f"staircase is {self.staircase!r}; expected True or False")

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        every = _in_steps(self.every, self.unit, steps_per_epoch)
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
        _set_rate(self)
        _set_rate(self, "final")
        _set_span(self, "warmup", may_be_zero=True)
        if self.final > self.lr:
            raise ValueError(f"final is {self.final}, above lr, {self.lr}; expected final <= lr")
        if self.total is not None:
            _set_span(self, "total")

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        warmup = _in_steps(self.warmup, self.unit, steps_per_epoch)
        end = total_steps if self.total is None else _in_steps(self.total, self.unit, steps_per_epoch)
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
        _set_rate(self, "max_lr")
        set_number(self, "pct_start", "a number from 0 to 1", lambda part: 0 <= part <= 1)
        set_number(self, "div_factor", "a finite number >= 1", lambda factor: factor >= 1)
        set_number(self, "final_div_factor", "a finite number >= 1", lambda factor: factor >= 1)
        check_choice(self, "anneal", ("cos", "linear"))
        check_choice(self, "unit", ("epochs", "steps"))
        if self.total is not None:
            _set_span(self, "total")

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        end = total_steps if self.total is None else _in_steps(self.total, self.unit, steps_per_epoch)
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
        _set_rate(self)
        set_number(self, "power", "a finite number >= 0, such as 0.5", from_zero)
        check_choice(self, "unit", ("epochs", "steps"))
        set_number(self, "scale", "a finite number > 0", above_zero)

    def rates_at(self, steps: Steps, steps_per_epoch: int, total_steps: int) -> Floats:
        completed = steps // steps_per_epoch if self.unit == "epochs" else steps
        return self.lr / (self.scale * completed + 1) ** self.power


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
        _set_rate(self)
        set_number(self, "factor", "a number above 0 and below 1, such as 0.1", lambda factor: 0 < factor < 1)
        set_count(self, "patience", 0)
        _set_rate(self, "min_lr")
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
        _set_rate(loaded)
        set_count(loaded, "bad", 0)
        set_count(loaded, "cooldown", 0)
        if loaded.best is not None:
            loaded.best = float(loaded.best)
        object.__setattr__(self, "_state", loaded)


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
