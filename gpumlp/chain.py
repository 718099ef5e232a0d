"""Layers in sequence over their arenas: parameters, gradients and state, and the passes through them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .arena import Arena, Segment, lay_out
from .backend import Backend, get_backend
from .executors import EagerExecutor
from .kernels import STEP
from .program import Builder, Memory, Operand, Program, new_control

if TYPE_CHECKING:
    from .layers import Layer

Array = Any

DTYPES = ("float32", "float64")


def check_dtype(dtype: Any) -> str:
    """Return the name of a type that networks compute in.

    Raises:
        ValueError: neither float32 nor float64.
    """
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ValueError(f'dtype {dtype!r} is not supported; expected "float32" or "float64"')
    return name


class Chain:
    """Layers whose widths chain, and the memory that holds what they learn.

    Args:
        layers: in order; the first that knows its number of inputs sets the width of the input.
        in_features: width of the input, where no layer knows it.
        device: see `get_backend`.
        dtype: "float32" or "float64".
        seed: of the initial weights.
        alone: whether this is the private chain of one layer that is used by itself.

    Raises:
        ValueError: widths that do not chain, or a layer that is part of another network.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        in_features: int | None = None,
        device: str | Backend = "auto",
        dtype: Any = "float32",
        seed: int = 0,
        alone: bool = False,
    ) -> None:
        self.layers = list(layers)
        self.alone = alone
        self.backend = get_backend(device)
        self.dtype = check_dtype(dtype)
        self.seed = seed
        # what a layer learnt while it was used alone goes with it
        learnt = {i: layer.values() for i, layer in enumerate(self.layers)}
        before = [layer.attributes() for layer in self.layers]
        try:
            self.in_features, self.out_features = self._build(in_features)
            self._allocate()
            self.reset(seed)
        except Exception:  # the layers are free for another try
            for layer, attributes in zip(self.layers, before, strict=True):
                vars(layer).clear()
                vars(layer).update(attributes)
            raise
        for i, values in learnt.items():
            for name, value in values.items():
                setattr(self.layers[i], name, value)
        self._pass: _Pass | None = None

    def _build(self, in_features: int | None) -> tuple[int, int]:
        expected = next(
            (n for n in (layer.expected_features for layer in self.layers) if n is not None), None
        )
        width = in_features if in_features is not None else expected
        if width is None:
            raise ValueError("no layer says how wide the input is; give in_features")
        first = width
        for i, layer in enumerate(self.layers):
            wanted = layer.expected_features
            if wanted is not None and wanted != width:
                before = f"layer {i - 1}, {self.layers[i - 1]!r}, gives" if i else "the input has"
                raise ValueError(
                    f"layer {i}, {layer!r}, takes {wanted} features, but {before} {width}; make the widths equal"
                )
            width = layer._attach(self, str(i), width)
        return first, width

    def _allocate(self) -> None:
        parameters, state = [], []
        for layer in self.layers:
            for name, spec in layer.parameter_specs.items():
                segment = Segment(f"{layer.key}.{name}", spec.shape, self.dtype, decays=spec.decays)
                parameters.append(segment)
            for name, (shape, _) in layer.state_specs.items():
                state.append(Segment(f"{layer.key}.{name}", shape, self.dtype))
        self.parameters = Arena(self.backend, lay_out(parameters))
        self.gradients = self.parameters.twin()
        self.state = Arena(self.backend, lay_out(state))

    def reset(self, seed: int | None = None) -> None:
        """Draw new initial weights and start the running statistics anew.

        Args:
            seed: of the draw; the present one when None. The same seed gives the same weights everywhere.
        """
        self.seed = self.seed if seed is None else seed
        for i, layer in enumerate(self.layers):
            for k, (name, spec) in enumerate(layer.parameter_specs.items()):
                rng = np.random.Generator(
                    np.random.Philox(key=np.array([self.seed, (i << 16) | k], np.uint64))
                )
                values = spec.initializer(rng, spec.shape, spec.fan).astype(self.dtype)
                self.backend.write(self.parameters[f"{layer.key}.{name}"], values)
            for name, (_, value) in layer.state_specs.items():
                self.backend.write(self.state[f"{layer.key}.{name}"], value)
        self._drawn_by = self.seed, self.dtype
        self.note_draw()

    def was_drawn_by(self, seed: int) -> bool:
        """Whether a draw by this seed, in the present type, was the last: another would give the same weights."""
        return self._drawn_by == (seed, self.dtype)

    def note_draw(self) -> None:
        """Take the present values for those that were drawn."""
        self._drawn = self._checksum()

    @property
    def is_as_drawn(self) -> bool:
        """Whether nothing was trained, loaded or set since the weights were drawn."""
        return self._checksum() == self._drawn

    def _checksum(self) -> int:
        parameters, state = map(self.backend.to_host, (self.parameters.memory, self.state.memory))
        return zlib.crc32(state.data, zlib.crc32(parameters.data))

    def segments(self) -> list[Segment]:
        """The placed parameters, with the present flags of their layers."""
        trainable = {layer.key: layer.trainable for layer in self.layers}
        return [
            Segment(s.name, s.shape, s.dtype, s.offset, s.decays, trainable[s.name.split(".")[0]])
            for s in self.parameters.segments.values()
        ]

    @property
    def has_python(self) -> bool:
        """Whether a layer is a user's own Python code, which the eager executor alone can run."""
        return any(layer.is_python for layer in self.layers)

    def arenas(self) -> dict[str, Arena]:
        """The memory by role, as operands name it."""
        return {"parameters": self.parameters, "gradients": self.gradients, "state": self.state}

    # --- writing programs ------------------------------------------------------------------------------------

    def emit_forward(self, b: Builder, x: Operand, layers: Sequence[Layer] | None = None) -> list[Operand]:
        """Write the forward pass; return the input of each layer and, last, the output."""
        values = [x]
        for layer in self.layers if layers is None else layers:
            b.enter(layer)
            values.append(layer.emit_forward(b, values[-1]))
        b.enter(None)
        return values

    def emit_backward(
        self,
        b: Builder,
        values: Sequence[Operand],
        dy: Operand,
        need_dx: bool = False,
        layers: Sequence[Layer] | None = None,
    ) -> Operand | None:
        """Write the backward pass, down to the first layer that learns; return the gradient of the input."""
        layers = self.layers if layers is None else layers
        learning = [i for i, layer in enumerate(layers) if layer.trainable and layer.parameter_specs]
        lowest = 0 if need_dx else min(learning, default=len(layers))
        gradient: Operand | None = dy
        for i in range(len(layers) - 1, lowest - 1, -1):
            assert gradient is not None
            b.enter(layers[i])
            gradient = layers[i].emit_backward(b, values[i], values[i + 1], gradient, need_dx or i > lowest)
        b.enter(None)
        return gradient

    def emit_update(self, b: Builder) -> None:
        """Write what layers do after the loss was found finite: running statistics."""
        for layer in self.layers:
            b.enter(layer)
            layer.emit_update(b)
        b.enter(None)

    # --- running them by hand ----------------------------------------------------------------------------------

    def forward(self, x: Array, training: bool = True, layers: Sequence[Layer] | None = None) -> Array:
        """Run `x`, of shape (rows, in_features), through the layers; return (rows, out_features).

        With `training` the intermediate values are kept for `backward`; without, nothing is.

        Raises:
            ValueError: another number of features, or not a matrix.
        """
        chosen = self.layers if layers is None else list(layers)
        x = self.backend.asarray(x, dtype=self.dtype)
        width = chosen[0].in_features if chosen else self.in_features
        if x.ndim != 2 or x.shape[1] != width:
            raise ValueError(f"x has shape {x.shape}; expected (rows, {width})")
        key = (tuple(map(id, chosen)), x.shape[0], training, tuple(layer.trainable for layer in chosen))
        if not training:
            return _Pass(self, key, chosen).forward(x)
        if self._pass is None or self._pass.key != key:
            self._pass = _Pass(self, key, chosen)
        return self._pass.forward(x)

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the input of the last `forward`; those of the parameters go to `gradients`.

        Args:
            dy: gradient of the output, in its shape (rows, out_features).

        Raises:
            ValueError: no forward pass before, or another shape.
        """
        if self._pass is None:
            raise ValueError("backward needs a forward pass before it; call forward(x) first")
        return self._pass.backward(self.backend.asarray(dy, dtype=self.dtype))


class _Pass:
    """A forward and a backward pass over a batch of one size, called by hand."""

    def __init__(self, chain: Chain, key: Any, layers: Sequence[Layer]) -> None:
        self.key = key
        self._chain = chain
        rows, training = key[1], key[2]
        width = layers[0].in_features if layers else chain.in_features
        assert width is not None
        b = Builder(rows, chain.dtype, training)
        self._x = b.buffer("x", rows, width, keep=True)
        values = chain.emit_forward(b, self._x, layers)
        self._y = values[-1]
        b.keep(self._y)
        b.mark("backward")
        if training:
            self._dy = b.buffer("dy", *self._y.shape, keep=True)
            dx = chain.emit_backward(b, values, self._dy, need_dx=True, layers=layers)
            assert dx is not None
            self._dx = dx
            b.keep(dx)
        self._program: Program = b.finish()
        self._control = new_control(chain.seed)
        # eager: a pass by hand runs in two parts, and is there to be read and debugged
        self._executor = EagerExecutor(chain.backend, Memory(chain.arenas(), {"control": self._control}))
        self._executor.prepare(self._program)

    def forward(self, x: Array) -> Array:
        self._control[STEP] += 1  # dropout draws another mask at each pass
        return self._run(self._x, x, self._y, 0, self._program.marks["backward"])

    def backward(self, dy: Array) -> Array:
        place = self._executor.view(self._program, self._dy)
        if dy.shape != place.shape:
            raise ValueError(f"dy has shape {dy.shape}; expected that of the output, {place.shape}")
        return self._run(self._dy, dy, self._dx, self._program.marks["backward"], None)

    def _run(self, given: Operand, values: Array, result: Operand, start: int, stop: int | None) -> Array:
        backend, view = self._chain.backend, partial(self._executor.view, self._program)
        backend.write(view(given), values)
        self._executor.execute(self._program, start, stop)
        with backend.active():
            return view(result).copy()
