"""The base of all layers: what a layer declares, and the two ways to write one.

A shipped layer *emits*: `emit_forward` and `emit_backward` write kernel calls into a program. A user's own layer
may instead override `forward` and `backward` with plain array code in ``self.xp``; its network then runs on the
eager executor.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import array_module
from ..initializers import Initializer
from ..program import PYTHON, Builder, Operand

if TYPE_CHECKING:
    from ..chain import Chain

Array = Any


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter before it has memory: shape, first values, whether weight decay applies, fans of the layer."""

    shape: tuple[int, ...]
    initializer: Initializer
    decays: bool
    fan: tuple[int, int] | None


def _built_first(method: Callable[..., Array]) -> Callable[..., Array]:
    """Let a user's `forward` find its parameters when the layer is used alone."""

    @functools.wraps(method)
    def forward(self: Layer, x: Array, *args: Any, **kwargs: Any) -> Array:
        self._home(x)
        return method(self, x, *args, **kwargs)

    return forward


class Layer:
    """A step of a network, from (rows, in_features) to (rows, out_features).

    To add a layer, override `build` (declare parameters, return the number of outputs) where it has any, and
    either `forward` and `backward` on arrays, or `emit_forward` and `emit_backward` on a program.

    Attributes:
        trainable: False once frozen: no gradient is taken, and no update or running statistic changes it.
        in_features, out_features: widths, known once the layer is part of a network.
        training: within a user's own `forward`: whether this is a training pass.
    """

    trainable: bool = True
    training: bool = True
    in_features: int | None = None
    out_features: int | None = None
    key: str = ""
    declares: tuple[str, ...] = ()
    """Names of the parameters and states of a layer that knows its width, so that they can be set at once."""
    _chain: Chain | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in cls.__dict__:
            cls.forward = _built_first(cls.__dict__["forward"])  # type: ignore[method-assign]

    @property
    def is_python(self) -> bool:
        """Whether the layer is Python code of a user's own, and not kernel calls."""
        return type(self).emit_forward is Layer.emit_forward

    # --- what a layer declares ---------------------------------------------------------------------------------

    @property
    def expected_features(self) -> int | None:
        """The input width that the layer was made for, or None where it takes any."""
        return None

    def build(self, in_features: int) -> int:
        """Declare parameters for that input width and return the output width; the default keeps the width."""
        return in_features

    def add_parameter(
        self,
        name: str,
        shape: tuple[int, ...],
        initializer: Initializer,
        decays: bool = False,
        fan: tuple[int, int] | None = None,
    ) -> None:
        """Declare a parameter; it is then an attribute of that name (assigning copies into it)."""
        self.parameter_specs[name] = ParameterSpec(shape, initializer, decays, fan)

    def add_state(self, name: str, shape: tuple[int, ...], value: float) -> None:
        """Declare an array that is saved with the network and not optimised, filled with `value`."""
        self.state_specs[name] = (shape, value)

    @property
    def parameter_specs(self) -> dict[str, ParameterSpec]:
        """What `add_parameter` declared, by name."""
        return self.__dict__.setdefault("_parameter_specs", {})

    @property
    def state_specs(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """Shape and first value of what `add_state` declared, by name."""
        return self.__dict__.setdefault("_state_specs", {})

    def freeze(self) -> Layer:
        """Keep the layer as it is in training; return it."""
        self.trainable = False
        return self

    def unfreeze(self) -> Layer:
        """Let the layer learn again; return it."""
        self.trainable = True
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"name": ..., **settings}``, from which `layer_from_dict` makes the layer again."""
        from . import layer_to_dict

        return layer_to_dict(self)

    def __repr__(self) -> str:
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, None)
            # a setting that is kept under another name: its repr would come here again
            if inspect.ismethod(value):
                continue
            if parameter.default is parameter.empty:
                shown.append(repr(value))
            elif value != parameter.default:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    # --- writing programs --------------------------------------------------------------------------------------

    def emit_forward(self, b: Builder, x: Operand) -> Operand:
        """Write the forward pass and return the output; the default calls the layer's own Python `forward`."""
        assert self.out_features is not None
        y = b.buffer("y", b.rows, self.out_features)
        b.call(PYTHON, x, y, function=self._call_forward, training=b.training)
        return y

    def emit_backward(self, b: Builder, x: Operand, y: Operand, dy: Operand, need_dx: bool) -> Operand | None:
        """Write the backward pass: the parameters' gradients, and that of the input where it is needed."""
        dx = b.buffer("dx", *x.shape)
        # x and y are named so that what `forward` kept of them is still there
        b.call(PYTHON, x, y, dy, dx, function=self._call_backward)
        return dx

    def emit_update(self, b: Builder) -> None:
        """Write what follows once the loss of a step was found finite; the default is nothing."""

    def _call_forward(self, x: Array, y: Array, training: bool) -> None:
        kept = dict(self.__dict__)
        self.training = training
        value = self.forward(x)
        if getattr(value, "shape", None) != y.shape:
            raise ValueError(
                f"forward of {self!r} gave {_told(value)}; expected {y.shape}: "
                "build(in_features) returns the number of outputs"
            )
        y[...] = value
        if not training:  # whatever forward kept for backward is dropped: inference keeps no caches
            self.__dict__.clear()
            self.__dict__.update(kept)

    def _call_backward(self, x: Array, y: Array, dy: Array, dx: Array) -> None:
        value = self.backward(dy)
        if getattr(value, "shape", None) != dx.shape:
            raise ValueError(
                f"backward of {self!r} gave {_told(value)}; expected that of its input, {dx.shape}"
            )
        dx[...] = value
        if not self.trainable:  # what nothing learns from must not count where gradients are clipped
            for gradient in self.grads.values():
                gradient[...] = 0

    # --- parameters and passes by hand ---------------------------------------------------------------------------

    @property
    def xp(self) -> Any:
        """The array module of the layer's device: `numpy` or `cupy`."""
        return self._chain.backend.xp if self._chain else array_module(None)

    @property
    def grads(self) -> dict[str, Array]:
        """The gradients of the parameters, by name: views that a `backward` fills."""
        chain = self._home()
        return {name: chain.gradients[f"{self.key}.{name}"] for name in self.parameter_specs}

    def forward(self, x: Array) -> Array:
        """Run the layer alone on `x`, (rows, in_features), in training mode; return (rows, out_features)."""
        x = x if hasattr(x, "ndim") else np.asarray(x)
        return self._home(x).forward(x, layers=[self])

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input of the last `forward`; those of the parameters go to `grads`."""
        return self._home().backward(dy)

    def reset(self, seed: int = 0) -> None:
        """Draw new initial weights for a layer that is used alone; in a network, call the network's `reset`."""
        self._home().reset(seed)

    def _attach(self, chain: Chain, key: str, in_features: int) -> int:
        """Become layer `key` of a chain; return the output width."""
        if self._chain is not None and not self._alone:
            raise ValueError(
                f"{self!r} is part of another network already; make a new layer, or copy.deepcopy the network"
            )
        self.parameter_specs.clear()
        self.state_specs.clear()
        self.__dict__.pop("_carried", None)
        self.in_features = in_features
        self.out_features = self.build(in_features)
        self.key = key
        self.__dict__["_chain"] = chain
        return self.out_features

    @property
    def _alone(self) -> bool:
        return self._chain is not None and self._chain.alone

    def values(self) -> dict[str, Array]:
        """Copies of the parameters and states on the host, by name; empty while the layer has none."""
        if self._chain is None:
            return dict(self.__dict__.get("_carried", {}))
        to_host = self._chain.backend.to_host
        return {
            name: np.array(to_host(getattr(self, name)))
            for name in [*self.parameter_specs, *self.state_specs]
        }

    def attributes(self) -> dict[str, Any]:
        """A copy of all that the layer is, apart from its memory."""
        specs = ("_parameter_specs", "_state_specs")
        return {key: dict(value) if key in specs else value for key, value in vars(self).items()}

    def _home(self, x: Array | None = None) -> Chain:
        """The network that the layer is part of, or one of its own where it is used alone."""
        from ..chain import Chain

        width = self.expected_features or (x.shape[1] if x is not None and x.ndim == 2 else None)
        device = "cpu" if x is None or array_module(x).__name__ == "numpy" else "gpu"
        dtype = "float64" if x is not None and str(x.dtype) == "float64" else "float32"
        chain = self._chain
        if chain is None or (
            self._alone
            and (
                width not in (None, self.in_features)
                or dtype > chain.dtype  # digits are never dropped
                or (device == "gpu" and not chain.backend.is_gpu)
            )
        ):
            if width is None:
                raise ValueError(f"{self!r} does not know its input width yet; call forward(x) first")
            Chain([self], in_features=width, device=device, dtype=dtype, alone=True)
        assert self._chain is not None
        return self._chain

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        for specs, arena in (("_parameter_specs", "parameters"), ("_state_specs", "state")):
            if name in own.get(specs, ()) and own.get("_chain") is not None:
                return getattr(own["_chain"], arena)[f"{self.key}.{name}"]
        if name in type(self).declares and own.get("_chain") is None:
            self._home()
            if name in self.parameter_specs or name in self.state_specs:
                return getattr(self, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        if (
            name in own.get("_parameter_specs", ())
            or name in own.get("_state_specs", ())
            or name in self.declares
        ):
            if own.get("_chain") is None:
                self._home()
            view = getattr(self, name)
            backend = self._home().backend
            array = backend.asarray(value, dtype=view.dtype)
            if array.shape != view.shape:
                raise ValueError(f"{name} of {self!r} has shape {view.shape}; got {array.shape}")
            backend.write(view, array)
        else:
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        """The settings and the values, without the network around them: a copy of a layer is a layer by itself."""
        memory = ("_chain", "_parameter_specs", "_state_specs", "_carried")
        return {**{k: v for k, v in self.__dict__.items() if k not in memory}, "_carried": self.values()}


def _told(value: Any) -> str:
    """What a user's layer gave, in words."""
    if value is None:
        return "None"
    return f"shape {value.shape}" if hasattr(value, "shape") else f"a {type(value).__name__}"
