"""Optimizers: update rules over the flat arena of parameters.

Each writes one call for each range of parameters that share their flags, so an update is one pass over memory.
Constants are those of torch.optim unless the name says otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from .arena import Run
from .program import Builder, Operand
from .registry import build
from .schedules import Schedule, get_schedule
from .settings import above_zero, check_number, from_zero


def _at_least_zero(name: str, value: float) -> float:
    return check_number(name, value, "a finite number of at least 0", from_zero)


def _share(name: str, value: float) -> float:
    return check_number(name, value, "a number of at least 0 and less than 1", lambda share: 0 <= share < 1)


def _limit(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    return check_number(name, value, "a finite number greater than 0, or None", above_zero)


class Optimizer:
    """Base of all optimizers.

    Args:
        lr: the learning rate: a number, or a schedule.
        weight_decay: added to the gradient as weight_decay * parameter (L2), on weights only.
        decay_bias: let it apply to biases and scales too.
        clip_norm: bound on the norm of the whole gradient, applied first; None for none.
        clip_value: bound on each entry of the gradient; None for none.

    Raises:
        ValueError: a setting outside its range.
    """

    kernel: str
    squares = False
    """Whether the rule squares gradients: their squares must be finite too."""
    slots: tuple[str, ...] = ()
    """Arrays of the size of the parameters that the rule keeps from step to step."""

    def __init__(
        self,
        lr: float | str | Mapping[str, Any] | Schedule,
        weight_decay: float = 0.0,
        decay_bias: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.schedule = get_schedule(lr)
        self.weight_decay = _at_least_zero("weight_decay", weight_decay)
        self.decay_bias = bool(decay_bias)
        self.clip_norm, self.clip_value = _limit("clip_norm", clip_norm), _limit("clip_value", clip_value)

    def _scalars(self) -> dict[str, Any]:
        return {}

    def _slot_operands(self, ranges: Mapping[str, Operand]) -> list[Operand | None]:
        return [ranges[name] for name in self.slots]

    @property
    def split_by_decay(self) -> bool:
        """Whether ranges with and without decay are updated apart."""
        return self.weight_decay > 0 and not self.decay_bias

    def emit(self, b: Builder, runs: Sequence[Run], size: int, rates: Operand) -> None:
        """Write an update.

        Args:
            b: the program.
            runs: ranges of the arena that learn.
            size: elements of the whole arena.
            rates: the table of learning rates.
        """

        def flat(arena: str, start: int, stop: int) -> Operand:
            return Operand(arena, "", (stop - start,), b.dtype, start)

        gradients = flat("gradients", 0, size)
        # a limit on what is squared keeps it finite
        limited = self.clip_norm is not None or self.clip_value is not None
        b.call("check_gradients", gradients, b.control, squared=self.squares and not limited)
        if self.clip_value is not None:
            b.call("clip_by_value", gradients, limit=self.clip_value)
        if self.clip_norm is not None:
            b.call("clip_by_norm", gradients, limit=self.clip_norm)
        for run in runs:
            span = run.start, run.stop
            decay = self.weight_decay if run.decays or not self.split_by_decay else 0.0
            slots = {name: flat(f"slot.{name}", *span) for name in self.slots}
            operands = (b.control, rates, flat("gradients", *span), flat("parameters", *span))
            b.call(self.kernel, *operands, *self._slot_operands(slots), weight_decay=decay, **self._scalars())

    def initial_slots(self) -> dict[str, float]:
        """The value that each slot starts from."""
        return dict.fromkeys(self.slots, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"name": ..., **settings}``, from which `get_optimizer` makes the optimizer again."""
        name = next(n for n, cls in OPTIMIZERS.items() if cls is type(self))
        settings = {
            key: getattr(self, key) for key in inspect.signature(type(self)).parameters if key != "lr"
        }
        given = {key: value for key, value in settings.items() if value is not None}
        return {"name": name, "lr": self.schedule.to_dict(), **given}

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters
        shown = [f"lr={self.schedule!r}"]
        shown += [
            f"{key}={getattr(self, key)!r}"
            for key, p in parameters.items()
            if key != "lr" and getattr(self, key) != p.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


class SGD(Optimizer):
    """Gradient descent, with momentum in one of three forms.

    Args:
        lr: the learning rate: a number, or a schedule.
        momentum: in [0, 1).
        dampening: of the gradient's share in the velocity (PyTorch's form only).
        nesterov: Nesterov's look-ahead; Sutskever et al. 2013.
        form: "pytorch", v = momentum v + (1 - dampening) g, p -= lr v; "keras", v = momentum v - lr g, p += v,
            which differs when the rate changes; "average", v = momentum v + (1 - momentum) g, p -= lr v.
        weight_decay, decay_bias, clip_norm, clip_value: see `Optimizer`.
    """

    def __init__(
        self,
        lr: Any = 0.01,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        form: str = "pytorch",
        weight_decay: float = 0.0,
        decay_bias: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, decay_bias, clip_norm, clip_value)
        self.momentum, self.dampening = _share("momentum", momentum), _at_least_zero("dampening", dampening)
        self.nesterov, self.form = bool(nesterov), form
        kernels = {"pytorch": "momentum", "keras": "momentum_keras", "average": "momentum_average"}
        if form not in kernels:
            raise ValueError(f'form of SGD is {form!r}; expected "pytorch", "keras" or "average"')
        if nesterov and (momentum == 0 or dampening or form == "average"):
            raise ValueError(
                'nesterov needs a momentum greater than 0, no dampening, and form "pytorch" or "keras"'
            )
        if dampening and form != "pytorch":
            raise ValueError(f'dampening belongs to form "pytorch"; got form {form!r}')
        self.kernel = kernels[form] if momentum else "sgd"
        self.slots = ("velocity",) if momentum else ()

    def _scalars(self) -> dict[str, Any]:
        return {
            "sgd": {},
            "momentum": {"momentum": self.momentum, "dampening": self.dampening, "nesterov": self.nesterov},
            "momentum_keras": {"momentum": self.momentum, "nesterov": self.nesterov},
            "momentum_average": {"momentum": self.momentum},
        }[self.kernel]


class Adagrad(Optimizer):
    """Duchi et al. 2011: the rate of each parameter falls with the sum of its squared gradients.

    Args:
        lr: the learning rate: a number, or a schedule.
        lr_decay: the rate is divided by 1 + steps * lr_decay.
        initial_accumulator: where the sum starts.
        eps: added to its root.
        weight_decay, decay_bias, clip_norm, clip_value: see `Optimizer`.
    """

    kernel, slots, squares = "adagrad", ("accumulator",), True

    def __init__(
        self,
        lr: Any = 0.01,
        lr_decay: float = 0.0,
        initial_accumulator: float = 0.0,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        decay_bias: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, decay_bias, clip_norm, clip_value)
        self.lr_decay = _at_least_zero("lr_decay", lr_decay)
        self.initial_accumulator = _at_least_zero("initial_accumulator", initial_accumulator)
        self.eps = _at_least_zero("eps", eps)

    def initial_slots(self) -> dict[str, float]:
        return {"accumulator": self.initial_accumulator}

    def _scalars(self) -> dict[str, Any]:
        return {"lr_decay": self.lr_decay, "eps": self.eps}


class RMSprop(Optimizer):
    """Hinton's lecture 6e: gradients divided by the root of a moving average of their squares.

    Args:
        lr: the learning rate: a number, or a schedule.
        alpha: of the moving average, in [0, 1).
        eps: added to its root.
        momentum: on the divided gradients.
        centered: subtract the square of the average gradient; Graves 2013.
        weight_decay, decay_bias, clip_norm, clip_value: see `Optimizer`.
    """

    kernel, squares = "rmsprop", True

    def __init__(
        self,
        lr: Any = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
        decay_bias: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, decay_bias, clip_norm, clip_value)
        self.alpha, self.momentum = _share("alpha", alpha), _share("momentum", momentum)
        self.eps, self.centered = _at_least_zero("eps", eps), bool(centered)
        self.slots = ("square", *(("average",) if centered else ()), *(("velocity",) if momentum else ()))

    def _slot_operands(self, ranges: Mapping[str, Operand]) -> list[Operand | None]:
        return [ranges.get(name) for name in ("square", "average", "velocity")]

    def _scalars(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "eps": self.eps, "momentum": self.momentum}


class Adam(Optimizer):
    """Kingma & Ba 2015, with the bias corrections.

    Args:
        lr: the learning rate: a number, or a schedule.
        beta1, beta2: of the moving averages of the gradient and of its square, in [0, 1).
        eps: added to the root (Keras's own default is 1e-7).
        weight_decay, decay_bias, clip_norm, clip_value: see `Optimizer`.
    """

    kernel, slots, squares = "adam", ("first", "second"), True
    decoupled = False

    def __init__(
        self,
        lr: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay_bias: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, decay_bias, clip_norm, clip_value)
        self.beta1, self.beta2 = _share("beta1", beta1), _share("beta2", beta2)
        self.eps = _at_least_zero("eps", eps)

    def _scalars(self) -> dict[str, Any]:
        return {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps, "decoupled": self.decoupled}


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: parameters *= 1 - lr weight_decay.

    Loshchilov & Hutter 2019. Arguments as for `Adam`; weight_decay is 0.01 unless given.
    """

    decoupled = True

    def __init__(
        self,
        lr: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        decay_bias: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(lr, beta1, beta2, eps, weight_decay, decay_bias, clip_norm, clip_value)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}


def get_optimizer(spec: str | Mapping[str, Any] | Optimizer) -> Optimizer:
    """Return an optimizer from an object, a name, or ``{"name": ..., **settings}``.

    Raises:
        ValueError: unknown name or setting, or a bad value of one.
        TypeError: none of the three.
    """
    return build("optimizer", spec, Optimizer, OPTIMIZERS)
