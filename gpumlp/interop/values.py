"""What all converters share: arrays from foreign tensors, checked values, and a network made of them."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import Backend
from ..layers import BatchNorm1d, Layer, LayerNorm, Linear, Sigmoid, Softmax
from ..network import Sequential

WITH_VALUES = (Linear, BatchNorm1d, LayerNorm)
"""The shipped layers that hold values."""


def need_library(name: str, install: str) -> Any:
    """Return a library that is needed for one conversion only.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"this needs {name}, which does not import ({error}); pip install {install}"
        ) from None


def as_array(value: Any, name: str, dtype: str | None = None) -> np.ndarray:
    """Return a foreign tensor as a host array of float32 or float64.

    Args:
        value: an array, or a tensor of PyTorch, JAX or TensorFlow.
        name: that a message gives it.
        dtype: to convert to; None keeps float64 and makes float32 of shorter floats.

    Raises:
        ValueError: not floating-point, or NaN or infinity in it.
    """
    try:
        if hasattr(value, "detach"):  # a tensor of PyTorch; NumPy has no bfloat16 to make of it
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() and value.element_size() < 4 else value
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise ValueError(f"{name} is a {type(value).__name__} without values; expected an array") from None
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(
            f"{name} has dtype {array.dtype}; expected floating-point values (of a quantized layer: "
            "save the layer before it is quantized)"
        )
    wanted = dtype or ("float64" if array.dtype.itemsize >= 8 else "float32")
    with np.errstate(over="ignore"):  # an infinity is refused below
        array = np.asarray(array, dtype=wanted)
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(f"{name} holds {array[~finite][0]}; expected finite values in {wanted}")
    return array


def value_names(layer: Layer) -> list[str]:
    """The names of the parameters and running statistics of a layer."""
    return [*layer.parameter_specs, *layer.state_specs]


def layers_with_values(network: Sequential) -> list[Layer]:
    """The layers that hold values, in order.

    Raises:
        TypeError: not a network.
        ValueError: a user's own layer with values, which no other library has.
    """
    check_network(network)
    found = [layer for layer in network.layers if value_names(layer)]
    for layer in found:
        if type(layer) not in WITH_VALUES:
            raise ValueError(
                f"layer {layer.key}, {layer!r}, is a layer of your own, whose values no other library knows; "
                "move those of the others with state_dict()"
            )
    return found


def check_network(network: Any) -> None:
    """Raise a TypeError unless it is a network."""
    if not isinstance(network, Sequential):
        raise TypeError(
            f"network is a {type(network).__name__}; expected a gm.Sequential (of a model or trainer: "
            "its .network)"
        )


def no_twin(layer: Layer, library: str, instead: str = "") -> ValueError:
    """The error for a layer that the other library does not have."""
    instead = instead or "make a network without it and move the values of the other layers"
    return ValueError(f"layer {layer.key}, {layer!r}, has no like in {library}; {instead}")


def checked_values(
    layer: Layer, given: Mapping[str, Any], source: str, dtype: str, transposed: bool = False
) -> dict[str, np.ndarray]:
    """Return values for a layer of a network under the names of its `state_dict`: "3.weight".

    Args:
        layer: part of a network.
        given: by the names "weight", "bias", "running_mean", "running_var".
        source: what the other side calls the layer.
        dtype: of the network.
        transposed: whether matrices are (out, in), as in PyTorch.

    Raises:
        ValueError: names too few or too many, another shape, not finite floating-point values.
    """
    expected = value_names(layer)
    if set(given) != set(expected):
        raise ValueError(
            f"{source} has {_listing(given)}; layer {layer.key}, {layer!r}, holds {_listing(expected)}"
        )
    values = {}
    for name, value in given.items():
        array = as_array(value, f"{name} of {source}", dtype)
        shape = np.shape(getattr(layer, name))
        shape = shape[::-1] if transposed else shape
        if array.shape != shape:
            raise ValueError(
                f"{name} of {source} has shape {array.shape}; layer {layer.key}, {layer!r}, takes {shape}"
            )
        values[f"{layer.key}.{name}"] = array.T if transposed else array
    return values


def _listing(names: Any) -> str:
    return ", ".join(sorted(names)) or "no values"


@dataclass
class Step:
    """A layer that stands for one of another library, with its values.

    Attributes:
        layer: not part of a network yet.
        values: by name, matrices as (in, out); empty where it has none.
        source: what the other side calls it.
        trainable: False to freeze it.
    """

    layer: Layer
    values: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    trainable: bool = True


def make_network(
    steps: Sequence[Step], device: str | Backend, dtype: Any = None, in_features: int | None = None
) -> Sequential:
    """Return a network of those layers and values, in float64 where a value is so and no dtype is given.

    Raises:
        ValueError: no layers, widths that do not chain, or values that are not finite floating-point.
    """
    arrays = [
        {name: as_array(value, f"{name} of {step.source}") for name, value in step.values.items()}
        for step in steps
    ]
    double = any(a.dtype == np.float64 for values in arrays for a in values.values())
    layers = [step.layer if step.trainable else step.layer.freeze() for step in steps]
    network = Sequential(
        layers, in_features=in_features, device=device, dtype=dtype or ("float64" if double else "float32")
    )
    found: dict[str, np.ndarray] = {}
    for step, values in zip(steps, arrays, strict=True):
        found |= checked_values(step.layer, values, step.source, network.dtype)
    network.load_state_dict(found)
    return network


def without_output_activation(network: Sequential) -> Sequential:
    """Return a copy without the final softmax or sigmoid: its outputs are logits, as most losses take them.

    A network that ends otherwise is copied as it is.

    Raises:
        TypeError: not a network.
        ValueError: the network is nothing but that activation.
    """
    check_network(network)
    if not isinstance(network.layers[-1], Softmax | Sigmoid):
        return network.copy()
    if len(network) == 1:
        raise ValueError(f"the network is only {network.layers[-1]!r}; without it nothing is left")
    return Sequential(
        copy.deepcopy(network.layers[:-1]),
        in_features=network.in_features,
        device=network.backend,
        dtype=network.dtype,
        seed=network.seed,
    )
