"""Networks: layers in sequence, their weights, and what can be said of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .backend import Backend, get_backend
from .chain import Chain, check_dtype
from .checks import check_seed
from .executors import executor_in_words
from .inference import Evaluator
from .layers import Dropout, Layer, Linear, get_activation, layer_from_dict

Array = Any


class Sequential(Chain):
    """Layers in sequence.

    Args:
        layers: in order, or one list of them.
        in_features: width of the input, where no layer knows it.
        device: "auto", "cpu", "gpu" or "gpu:N"; see `get_backend`.
        dtype: "float32" or "float64".
        seed: of the initial weights.

    Raises:
        ValueError: no layers, widths that do not chain, a layer that is part of another network.
        TypeError: something that is not a layer.
    """

    def __init__(
        self,
        *layers: Layer | Sequence[Layer],
        in_features: int | None = None,
        device: str | Backend = "auto",
        dtype: Any = "float32",
        seed: int = 0,
    ) -> None:
        flat, seed = _flatten(layers), check_seed(seed)
        if not flat:
            raise ValueError("a network needs at least one layer; for example Sequential(Linear(4, 3))")
        if len({id(layer) for layer in flat}) < len(flat):
            raise ValueError("a layer stands twice in the network; make a layer for each place")
        super().__init__(flat, in_features, device, dtype, seed)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]

    def __repr__(self) -> str:
        inner = "".join(f"\n  {i}: {layer!r}" for i, layer in enumerate(self.layers))
        return f"Sequential({inner}\n)"

    def predict(self, x: Any, batch_size: int | None = None) -> np.ndarray:
        """Return the outputs for `x`, (rows, in_features), as a host array (rows, out_features).

        Nothing is kept for a backward pass: memory goes with the batch, not with the depth.

        Raises:
            ValueError: another number of features.
        """
        return Evaluator(self).predict(x, batch_size)

    def to(self, device: str | Backend | None = None, dtype: Any = None) -> Sequential:
        """Move the network to another device or type, with its values; return it."""
        backend = self.backend if device is None else get_backend(device)
        name = self.dtype if dtype is None else check_dtype(dtype)
        if backend.name != self.backend.name or name != self.dtype:
            values, as_drawn = self.state_dict(), self.is_as_drawn
            self.backend, self.dtype, self._pass = backend, name, None
            self._allocate()
            self.load_state_dict(values)
            if as_drawn:
                self.note_draw()
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return copies of parameters and running statistics on the host, as ``"0.weight"``, ``"0.bias"``, ..."""
        return {**self.parameters.to_host(), **self.state.to_host()}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Copy values into the network; all are checked before any is changed.

        Raises:
            ValueError: a name too few or too many, or another shape.
        """
        arenas = {name: arena for arena in (self.parameters, self.state) for name in arena}
        if set(values) != set(arenas):
            missing, extra = sorted(set(arenas) - set(values)), sorted(set(values) - set(arenas))
            raise ValueError(
                f"state_dict does not fit: missing {missing}, unknown {extra}; give those of this network"
            )
        try:
            arrays = {name: np.asarray(value, dtype=self.dtype) for name, value in values.items()}
        except (TypeError, ValueError):
            raise ValueError(
                "state_dict has values that are not numbers; give those of this network"
            ) from None
        for name, array in arrays.items():
            if array.shape != arenas[name][name].shape:
                expected = arenas[name][name].shape
                raise ValueError(f"state_dict has {name} of shape {array.shape}; expected {expected}")
        self.parameters.fill(arrays)
        self.state.fill(arrays)

    def n_parameters(self, trainable_only: bool = False) -> int:
        """Return how many numbers are learnt."""
        return sum(s.size for s in self.segments() if s.trainable or not trainable_only)

    @property
    def multiply_adds(self) -> int:
        """Of its products, a sample that goes forward."""
        return sum(map(_multiply_adds, self.layers))

    def layer_table(self) -> list[tuple[str, str, int, int]]:
        """Return for each layer: its text, output shape, parameters, multiply-adds of its products a sample."""
        rows = []
        for layer in self.layers:
            specs = layer.parameter_specs
            count = sum(int(np.prod(spec.shape)) for spec in specs.values())
            text = repr(layer) + ("" if layer.trainable else " (frozen)")
            rows.append((text, f"(rows, {layer.out_features})", count, _multiply_adds(layer)))
        return rows

    def summary(self) -> str:
        """Return a table of the layers: output shape, parameters, bytes, multiply-adds a sample; and the device."""
        itemsize = np.dtype(self.dtype).itemsize
        head = ("", "layer", "output", "parameters", "bytes", "multiply-adds")
        table = self.layer_table()
        body = [
            (str(i), text, shape, f"{count:,}", f"{count * itemsize:,}", f"{products:,}")
            for i, (text, shape, count, products) in enumerate(table)
        ]
        parameters, products = sum(row[2] for row in table), sum(row[3] for row in table)
        total = ("", "total", "", f"{parameters:,}", f"{parameters * itemsize:,}", f"{products:,}")
        widths = [max(len(row[k]) for row in (head, *body, total)) for k in range(len(head))]

        def line(row: Sequence[str]) -> str:
            left = [row[k].ljust(widths[k]) for k in range(3)]
            return "  ".join([*left, *(row[k].rjust(widths[k]) for k in range(3, 6))]).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(head) - 1))
        foot = (
            f"trainable: {self.n_parameters(trainable_only=True):,} of {parameters:,} parameters; {self.dtype}; "
            f"device: {self.backend.describe()}; executor: {executor_in_words(self.backend, self.has_python, products)}"
        )
        return "\n".join([line(head), rule, *map(line, body), rule, line(total), foot])

    def to_dict(self) -> dict[str, Any]:
        """Return the architecture, from which `from_dict` makes the network again, without its values.

        Raises:
            ValueError: a user's own layer, which a file cannot describe.
        """
        layers = [
            {**layer.to_dict(), **({} if layer.trainable else {"trainable": False})} for layer in self.layers
        ]
        return {"in_features": self.in_features, "dtype": self.dtype, "seed": self.seed, "layers": layers}

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any], device: str | Backend = "auto") -> Sequential:
        """Return the network that `to_dict` described, with newly drawn weights."""
        layers = []
        for given in spec["layers"]:
            settings = dict(given)
            trainable = settings.pop("trainable", True)
            layer = layer_from_dict(settings)
            layers.append(layer if trainable else layer.freeze())
        known = {k: spec[k] for k in ("in_features", "dtype", "seed") if k in spec}
        return cls(*layers, device=device, **known)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "in_features": self.in_features,
            "device": self.backend.name,
            "dtype": self.dtype,
            "seed": self.seed,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # the layers carry their values
        settings = {name: value for name, value in state.items() if name != "layers"}
        Sequential.__init__(self, *state["layers"], **settings)

    def copy(self) -> Sequential:
        """Return a network of its own memory with equal layers and values."""
        return copy.deepcopy(self)


def _multiply_adds(layer: Layer) -> int:
    return math.prod(layer.parameter_specs["weight"].shape) if isinstance(layer, Linear) else 0


def _flatten(layers: Sequence[Any]) -> list[Layer]:
    flat: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Layer):
            flat.append(layer)
        elif isinstance(layer, Sequential):
            raise TypeError("a Sequential stands in a Sequential; give its layers one by one")
        elif isinstance(layer, list | tuple):
            flat.extend(_flatten(layer))
        else:
            raise TypeError(
                f"{layer!r} is not a layer; expected gm.Linear(...), gm.ReLU(), ... (an object, not a class)"
            )
    return flat


def mlp(
    sizes: Sequence[int],
    activation: Any = "relu",
    output_activation: Any = None,
    dropout: float = 0.0,
    weight_init: Any = "glorot_uniform",
    bias_init: Any = "zeros",
    **settings: Any,
) -> Sequential:
    """Return the plain multilayer perceptron of those widths.

    Args:
        sizes: widths from input to output, for example (784, 500, 10).
        activation: behind each hidden layer: an object, a name, or a table with a name.
        output_activation: behind the last layer; None for none.
        dropout: rate behind each hidden activation.
        weight_init, bias_init: initializers of the linear layers.
        settings: of `Sequential`: device, dtype, seed.

    Raises:
        ValueError: fewer than two widths.
    """
    if not hasattr(sizes, "__len__") or len(sizes) < 2:
        given = list(sizes) if hasattr(sizes, "__len__") else sizes
        raise ValueError(f"sizes is {given!r}; expected at least the widths of input and output")
    layers: list[Layer] = []
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        layers.append(Linear(n_in, n_out, weight_init=weight_init, bias_init=bias_init))
        if i < len(sizes) - 2:
            layers.append(copy.deepcopy(get_activation(activation)))
            if dropout:
                layers.append(Dropout(dropout))
    if output_activation is not None:
        layers.append(get_activation(output_activation))
    return Sequential(*layers, **settings)
