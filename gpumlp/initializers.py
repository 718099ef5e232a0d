"""Initial values of weights and biases, drawn on the host in float64.

Weights are ``(in_features, out_features)``: fan-in is ``shape[0]``, fan-out ``shape[1]``. A ``*_normal`` is
the whole normal distribution, as in PyTorch; the truncated one, which Keras means by ``glorot_normal``,
``he_normal`` and ``lecun_normal``, is ``*_truncated_normal``.
"""

from __future__ import annotations

import functools
import math
import numbers
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpumlp.registry import build
from gpumlp.settings import Named, above_zero, check_choice, from_zero, set_number

Floats: TypeAlias = NDArray[np.float64]

# Deviation of a unit normal cut at two deviations, sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)), in Keras's digits.
_STD_OF_TRUNCATED = 0.87962566103423978


class Initializer(Named):
    """The base of all initializers: call it with a generator and a shape.

    A new one is a frozen dataclass that sets `name` and overrides `draw`; put it into `INITIALIZERS` to ask
    for it by name. Two initializers are equal when their class and settings are.
    """

    def __call__(
        self, rng: np.random.Generator, shape: tuple[int, ...], fan: tuple[int, int] | None = None
    ) -> Floats:
        """Return an array of `shape`, float64.

        Args:
            rng: where the random numbers come from.
            shape: ``(in_features, out_features)`` for weights, ``(n,)`` for a bias.
            fan: ``(fan_in, fan_out)``; a layer gives its own with its bias. By default it is read from
                `shape` by Keras's rule: ``(n, n)`` for ``(n,)``; leading dimensions multiply the last two.

        Raises:
            TypeError: `rng` is not a generator.
            ValueError: a fan below 1, or a shape that this initializer cannot fill.
        """
        if not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"rng is a {type(rng).__name__}; expected a NumPy generator: np.random.default_rng(seed)"
            )
        if fan is None:
            fan = compute_fans(shape)
        elif len(fan) != 2 or min(fan) < 1:
            raise ValueError(f"fan is {fan!r}; expected (fan_in, fan_out), both at least 1")
        return np.asarray(self.draw(rng, tuple(shape), fan), dtype=np.float64)

    @abstractmethod
    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan: tuple[int, int]) -> Floats:
        """Return the values; `rng`, `shape` and `fan` are checked."""


def compute_fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of an array of `shape`, by Keras's rule (see `Initializer`)."""
    if len(shape) == 0:
        return 1, 1
    if len(shape) == 1:
        return max(1, shape[0]), max(1, shape[0])
    stacked = math.prod(shape[:-2])
    return max(1, shape[-2] * stacked), max(1, shape[-1] * stacked)


def _draw_uniform(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> Floats:
    limit = math.sqrt(3.0) * std  # U(-a, a) has the variance a^2 / 3
    return np.asarray(rng.uniform(-limit, limit, shape))


def _draw_normal(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> Floats:
    return np.asarray(rng.standard_normal(shape)) * std


def _draw_truncated_unit(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Return unit normals, those beyond two deviations drawn again."""
    flat = rng.standard_normal(math.prod(shape))
    again = np.flatnonzero(np.abs(flat) > 2.0)
    while again.size:
        flat[again] = rng.standard_normal(again.size)
        again = again[np.abs(flat[again]) > 2.0]
    return flat.reshape(shape)


def _draw_truncated(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> Floats:
    return _draw_truncated_unit(rng, shape) * (std / _STD_OF_TRUNCATED)


_DRAW = {"uniform": _draw_uniform, "normal": _draw_normal, "truncated": _draw_truncated}


@dataclass(frozen=True)
class Constant(Initializer):
    """Every entry is `value`."""

    name: ClassVar[str] = "constant"
    value: float = 0.0

    def __post_init__(self) -> None:
        set_number(self, "value", "a finite number")

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan: tuple[int, int]) -> Floats:
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Normal(Initializer):
    """Normal distribution N(mean, std^2)."""

    name: ClassVar[str] = "normal"
    mean: float = 0.0
    std: float = 0.05

    def __post_init__(self) -> None:
        set_number(self, "mean", "a finite number")
        set_number(self, "std", "a finite number >= 0", from_zero)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan: tuple[int, int]) -> Floats:
        return self.mean + _draw_normal(rng, shape, self.std)


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normal distribution cut at mean - 2 std and mean + 2 std; what falls outside is drawn again.

    `std` is the deviation *before* the cut, as in Keras's TruncatedNormal: the values have 0.8796 of it. (The
    Glorot, He and LeCun forms give the deviation after the cut, also as in Keras.)
    """

    name: ClassVar[str] = "truncated_normal"
    mean: float = 0.0
    std: float = 0.05

    def __post_init__(self) -> None:
        set_number(self, "mean", "a finite number")
        set_number(self, "std", "a finite number >= 0", from_zero)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan: tuple[int, int]) -> Floats:
        return self.mean + _draw_truncated_unit(rng, shape) * self.std


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform distribution over [low, high)."""

    name: ClassVar[str] = "uniform"
    low: float = -0.05
    high: float = 0.05

    def __post_init__(self) -> None:
        set_number(self, "low", "a finite number")
        set_number(self, "high", "a finite number")
        if self.low > self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; expected low <= high; swap them")
        if not math.isfinite(self.high - self.low):
            raise ValueError(
                f"high - low is beyond float64 (low {self.low}, high {self.high}); bring them closer"
            )

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan: tuple[int, int]) -> Floats:
        return np.asarray(rng.uniform(self.low, self.high, shape))


@dataclass(frozen=True)
class _Scaled(Initializer):
    """A distribution of mean 0 whose deviation follows from the fans."""

    gain: float = 1.0
    _distribution: ClassVar[str]

    def __post_init__(self) -> None:
        set_number(self, "gain", "a finite number > 0", above_zero)

    @abstractmethod
    def std(self, fan_in: int, fan_out: int) -> float:
        """Return the deviation of the values for these fans."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan: tuple[int, int]) -> Floats:
        return _DRAW[self._distribution](rng, shape, self.std(*fan))


@dataclass(frozen=True)
class _Glorot(_Scaled):
    """std = gain sqrt(2 / (fan_in + fan_out)): Glorot and Bengio 2010, equations 12 and 16."""

    def std(self, fan_in: int, fan_out: int) -> float:
        return self.gain * math.sqrt(2.0 / (fan_in + fan_out))


@dataclass(frozen=True)
class _He(_Scaled):
    """std = gain sqrt(2 / fan): He et al. 2015, equations 10 (`mode` "fan_in") and 14 ("fan_out")."""

    mode: Literal["fan_in", "fan_out"] = "fan_in"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "mode", ("fan_in", "fan_out"))

    def std(self, fan_in: int, fan_out: int) -> float:
        return self.gain * math.sqrt(2.0 / (fan_in if self.mode == "fan_in" else fan_out))


@dataclass(frozen=True)
class _LeCun(_Scaled):
    """std = gain sqrt(1 / fan_in): LeCun et al. 1998, Efficient BackProp, equation 16."""

    def std(self, fan_in: int, fan_out: int) -> float:
        return self.gain / math.sqrt(fan_in)


@dataclass(frozen=True)
class GlorotUniform(_Glorot):
    """U(-a, a), a = gain sqrt(6 / (fan_in + fan_out)): Glorot and Bengio 2010, equation 16."""

    name: ClassVar[str] = "glorot_uniform"
    _distribution = "uniform"


@dataclass(frozen=True)
class GlorotNormal(_Glorot):
    """N(0, std^2), std = gain sqrt(2 / (fan_in + fan_out)): Glorot and Bengio 2010, equation 12."""

    name: ClassVar[str] = "glorot_normal"
    _distribution = "normal"


@dataclass(frozen=True)
class GlorotTruncatedNormal(_Glorot):
    """`GlorotNormal` cut at two deviations; std is the deviation after the cut. Keras's glorot_normal."""

    name: ClassVar[str] = "glorot_truncated_normal"
    _distribution = "truncated"


@dataclass(frozen=True)
class HeUniform(_He):
    """U(-a, a), a = gain sqrt(6 / fan), fan by `mode`: He et al. 2015.

    `gain` stands beside the 2 for ReLU: for a leaky ReLU of slope a it is 1 / sqrt(1 + a^2).
    """

    name: ClassVar[str] = "he_uniform"
    _distribution = "uniform"


@dataclass(frozen=True)
class HeNormal(_He):
    """N(0, std^2), std = gain sqrt(2 / fan), fan by `mode`: He et al. 2015, equations 10 and 14."""

    name: ClassVar[str] = "he_normal"
    _distribution = "normal"


@dataclass(frozen=True)
class HeTruncatedNormal(_He):
    """`HeNormal` cut at two deviations; std is the deviation after the cut. Keras's he_normal."""

    name: ClassVar[str] = "he_truncated_normal"
    _distribution = "truncated"


@dataclass(frozen=True)
class LeCunUniform(_LeCun):
    """U(-a, a), a = gain sqrt(3 / fan_in): LeCun et al. 1998.

    With gain 1 / sqrt(3), and the layer's fans for the bias, it is the default of PyTorch's Linear.
    """

    name: ClassVar[str] = "lecun_uniform"
    _distribution = "uniform"


@dataclass(frozen=True)
class LeCunNormal(_LeCun):
    """N(0, std^2), std = gain / sqrt(fan_in): LeCun et al. 1998, equation 16; the one for SELU."""

    name: ClassVar[str] = "lecun_normal"
    _distribution = "normal"


@dataclass(frozen=True)
class LeCunTruncatedNormal(_LeCun):
    """`LeCunNormal` cut at two deviations; std is the deviation after the cut. Keras's lecun_normal."""

    name: ClassVar[str] = "lecun_truncated_normal"
    _distribution = "truncated"


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """gain times a matrix with orthonormal columns (tall) or rows (wide): Saxe et al. 2014.

    The Q of a normal matrix's QR, its signs set by R's diagonal so that every rotation is equally likely
    (Mezzadri 2007). It fills matrices only; a bias of one dimension is a ValueError.
    """

    name: ClassVar[str] = "orthogonal"
    gain: float = 1.0

    def __post_init__(self) -> None:
        set_number(self, "gain", "a finite number > 0", above_zero)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], fan: tuple[int, int]) -> Floats:
        if len(shape) != 2:
            raise ValueError(
                f"an orthogonal array of shape {shape} does not exist; expected (in_features, out_features); "
                "give the bias another initializer"
            )
        rows, columns = shape
        q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
        q = q * np.where(np.diagonal(r) < 0, -self.gain, self.gain)
        return q if rows >= columns else np.ascontiguousarray(q.T)


_CLASSES: tuple[type[Initializer], ...] = (
    Constant,
    Normal,
    TruncatedNormal,
    Uniform,
    GlorotUniform,
    GlorotNormal,
    GlorotTruncatedNormal,
    HeUniform,
    HeNormal,
    HeTruncatedNormal,
    LeCunUniform,
    LeCunNormal,
    LeCunTruncatedNormal,
    Orthogonal,
)

INITIALIZERS: dict[str, Callable[..., Initializer]] = {
    **{cls.name: cls for cls in _CLASSES},
    "zeros": functools.partial(Constant, 0.0),
    "ones": functools.partial(Constant, 1.0),
    "xavier_uniform": GlorotUniform,
    "xavier_normal": GlorotNormal,
    "kaiming_uniform": HeUniform,
    "kaiming_normal": HeNormal,
}


def get_initializer(spec: str | Mapping[str, Any] | float | Initializer) -> Initializer:
    """Return the initializer for an object, a name, ``{"name": ..., **settings}`` or a number (a constant).

    Raises:
        ValueError: unknown name or setting, or a bad value of one.
        TypeError: none of the four.
    """
    if isinstance(spec, numbers.Real) and not isinstance(spec, bool):
        return Constant(float(spec))
    return build("initializer", spec, Initializer, INITIALIZERS)  # type: ignore[type-abstract]
