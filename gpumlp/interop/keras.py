"""Keras 3: a live model, a ``.keras`` archive and a ``.weights.h5`` file, both ways.

Weights lie as (in_features, out_features) on both sides. Keras's momentum of batch normalisation is the share
that the running statistics keep, 1 - gpumlp's; its running variance is the biased one, so that batch normalisation
gives equal outputs and goes on learning a little otherwise.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import Backend
from ..layers import GELU, Layer, Linear
from ..network import Sequential
from .keras_files import numbered, open_weights, read_archive, write_archive, write_weights
from .keras_graph import Entry, chain_of_layers, input_width
from .keras_layers import (
    CLASSES,
    GELU_TANH,
    NAMES,
    activation_layer,
    keras_layer,
    normalisation_layer,
    plain_layer,
    snake_case,
)
from .values import Step, check_network, checked_values, layers_with_values, make_network, need_library

INSTALL = "keras, and a backend of it"


# --- into gpumlp ----------------------------------------------------------------------------------------------------


def from_keras(model: Any, device: str | Backend = "auto", dtype: Any = None) -> Sequential:
    """Return a network with the layers and values of a Keras model whose layers stand in a chain.

    Args:
        model: a live Sequential or functional model, or the path of a ``.keras`` archive, for which Keras need not
            be installed. A Dense layer with an activation becomes two layers; models within the model are taken
            apart; a Flatten is left out (give rows of features).
        device: of the network; see `get_backend`.
        dtype: "float32" or "float64"; None for float64 where the model is so, else float32.

    Raises:
        TypeError: neither a model nor a path.
        ValueError: layers that do not stand in a chain, one that gpumlp does not have, values that are not finite,
            a file that is no such archive.
    """
    if isinstance(model, str | os.PathLike):
        config, weights = read_archive(model)
        with open_weights(weights, f"model.weights.h5 of {os.fspath(model)!r}") as file:
            return _network(config, lambda entry: file.variables(entry.group), device, dtype)
    if not hasattr(model, "to_json") or not hasattr(model, "layers"):
        raise TypeError(
            f"model is a {type(model).__name__}; expected a Keras model or the path of a .keras file"
        )
    if not model.built:
        raise ValueError(f"the model {model.name!r} has no weights yet; call model.build((None, n_features))")
    live = _LiveModel(model)
    return _network(json.loads(model.to_json()), live.variables, device, dtype, live.activation)


class _LiveModel:
    """The variables and the activations of the layers of a live model."""

    def __init__(self, model: Any) -> None:
        self._keras = need_library("keras", INSTALL)
        self._model = model

    def _find(self, entry: Entry) -> Any:
        found = self._model
        for name in entry.names:
            found = found.get_layer(name)
        return found

    def variables(self, entry: Entry) -> list[Any]:
        """The values of a layer in the order of a weight file."""
        layer = self._find(entry)
        held = [getattr(layer, name, None) for name in NAMES[entry.class_name]]
        ops = self._keras.ops
        # of tensors: NumPy has deprecated how a variable of Keras turns itself into an array
        return [ops.convert_to_numpy(ops.convert_to_tensor(v)) for v in held if v is not None]

    def activation(self, entry: Entry) -> Any:
        """The activation in the words of a configuration.

        A configuration calls `keras.ops.gelu` "gelu" like `keras.activations.gelu`, and they are not the same.
        """
        spec, function = entry.config["activation"], getattr(self._find(entry), "activation", None)
        if not isinstance(spec, str) or function is self._keras.activations.get(spec):
            return spec
        if function is getattr(self._keras.ops, spec, None):
            return GELU_TANH if spec == "gelu" else spec
        raise ValueError(f"{entry.where} has a function of your own as its activation, which cannot be moved")


def _network(
    model: Mapping[str, Any],
    variables: Callable[[Entry], Sequence[Any]],
    device: str | Backend,
    dtype: Any,
    activation: Callable[[Entry], Any] = lambda entry: entry.config["activation"],
) -> Sequential:
    """The network of an architecture, with the values and the activation that functions give for each layer."""
    steps: list[Step] = []
    try:
        entries = list(chain_of_layers(model))
        in_features = width = input_width(entries)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"the configuration of the model is not in the form of Keras 3 ({type(error).__name__}: {error})"
        ) from None
    for entry in entries:
        if entry.class_name in NAMES:
            step = _with_values(entry, variables(entry), width)
            steps.append(step)
            width = getattr(step.layer, "out_features", None)
        layer: Layer | None = None
        if entry.class_name == "Dense":
            layer = activation_layer(activation(entry), entry.where)
        elif entry.class_name == "Activation":
            config = {**entry.config, "activation": activation(entry)}
            layer = plain_layer(entry.class_name, config, entry.where)
        elif entry.class_name not in NAMES and entry.class_name != "InputLayer":
            layer = plain_layer(entry.class_name, entry.config, entry.where)
        if layer is not None:
            steps.append(Step(layer, source=entry.where))
    if not steps:
        raise ValueError("the model has no layers; expected at least one Dense")
    return make_network(steps, device, dtype, in_features)


def _with_values(entry: Entry, variables: Sequence[Any], width: int | None) -> Step:
    """A Dense layer without its activation, or a normalisation."""
    config, names = entry.config, list(NAMES[entry.class_name])
    absent = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
    names = [name for name in names if config.get(absent.get(name, ""), True)]
    if len(variables) != len(names):
        raise ValueError(
            f"{entry.where} has {len(variables)} variables; expected {len(names)}, {', '.join(names)} (merge or "
            "undo what was added to the layer)"
        )
    values = {NAMES[entry.class_name][name]: value for name, value in zip(names, variables, strict=True)}
    shapes = [np.shape(value) for value in values.values()]
    layer: Layer
    if entry.class_name == "Dense":
        if len(shapes[0]) != 2:
            raise ValueError(f"{entry.where} has a kernel of shape {shapes[0]}; expected (in, out)")
        layer = Linear(shapes[0][0], shapes[0][1], bias="bias" in values)
    else:
        width = shapes[0][0] if shapes else width
        if width is None:
            raise ValueError(f"{entry.where} does not tell its width; give the model an Input")
        layer = normalisation_layer(entry.class_name, config, width, entry.where)
        if "weight" in values or "bias" in values:  # Keras may have one of them alone
            values = {"weight": np.ones(width, "f4"), "bias": np.zeros(width, "f4"), **values}
    return Step(layer, values, entry.where, bool(config.get("trainable", True)))


# --- out of gpumlp --------------------------------------------------------------------------------------------------


def to_keras(network: Sequential) -> Any:
    """Return a live Keras Sequential with the layers and values of a network, one for one.

    An approximate GELU becomes a registered function ``gpumlp>gelu_tanh``: call `to_keras` once, on any network with
    one, before Keras loads a file that holds it.

    Raises:
        TypeError: not a network.
        ValueError: a layer that Keras does not have.
        ModuleNotFoundError: Keras is not installed.
    """
    config = _architecture(network)
    keras = need_library("keras", INSTALL)
    if any(isinstance(layer, GELU) and layer.approximate == "tanh" for layer in network.layers):
        _register_gelu_tanh(keras)
    model = keras.models.model_from_json(json.dumps(config))
    for ours, theirs in zip(network.layers, model.layers, strict=True):
        if ours.parameter_specs or ours.state_specs:
            theirs.set_weights(_variables(ours))
    return model


def _register_gelu_tanh(keras: Any) -> None:
    if keras.saving.get_registered_object(GELU_TANH) is not None:
        return

    @keras.saving.register_keras_serializable(package="gpumlp", name="gelu_tanh")
    def gelu_tanh(x: Any) -> Any:
        return keras.activations.gelu(x, approximate=True)


def save_keras(network: Sequential, path: str | os.PathLike[str]) -> None:
    """Write a network as a ``.keras`` archive that `keras.models.load_model` reads; Keras need not be installed.

    Raises:
        TypeError: not a network.
        ValueError: a layer that Keras does not have; another ending; the folder is missing.
    """
    config = _architecture(network)
    _check_ending(path, ".keras")
    for layer in network.layers:
        if isinstance(layer, GELU) and layer.approximate == "tanh":
            raise ValueError(
                f"layer {layer.key}, {layer!r}, has no name in Keras that a file can hold; to_keras(network) has it"
            )
    write_archive(path, config, _groups(network))


def _architecture(network: Sequential) -> dict[str, Any]:
    """What Keras's config.json says of a Sequential."""
    check_network(network)
    counts: Counter[str] = Counter()
    shape = [None, network.in_features]
    input_config = {"batch_shape": shape, "dtype": network.dtype, "name": "input_layer"}
    layers = [_keras_object("InputLayer", input_config)]
    for layer in network.layers:
        class_name, settings = keras_layer(layer)
        kind = snake_case(class_name)
        common = {"name": numbered(kind, counts[kind]), "trainable": layer.trainable, "dtype": network.dtype}
        counts[kind] += 1
        build = {"build_config": {"input_shape": [None, layer.in_features]}}
        layers.append({**_keras_object(class_name, {**common, **settings}), **build})
    config = {"name": "sequential", "trainable": True, "layers": layers, "build_input_shape": shape}
    return {
        **_keras_object("Sequential", config, "keras"),
        "build_config": {"input_shape": shape},
    }


def _keras_object(class_name: str, config: dict[str, Any], module: str = "keras.layers") -> dict[str, Any]:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def _variables(layer: Layer) -> list[np.ndarray]:
    """The values of a layer in Keras's order."""
    values = layer.values()
    return [values[name] for name in NAMES[CLASSES[type(layer)]].values() if name in values]


def _groups(network: Sequential) -> list[tuple[str, list[np.ndarray]]]:
    """The variables of the layers that hold some, by the names of their groups in a weight file."""
    layers_with_values(network)  # refuses a user's own layer
    counts: Counter[str] = Counter()
    found = []
    for layer in network.layers:
        if type(layer) in CLASSES:
            kind = snake_case(CLASSES[type(layer)])
            found.append((numbered(kind, counts[kind]), _variables(layer)))
            counts[kind] += 1
    return found


def _check_ending(path: str | os.PathLike[str], ending: str) -> None:
    if not os.fspath(path).endswith(ending):
        raise ValueError(
            f"path is {os.fspath(path)!r}; Keras reads such a file only under a name in {ending}"
        )


# --- values alone ---------------------------------------------------------------------------------------------------


def save_keras_weights(network: Sequential, path: str | os.PathLike[str]) -> None:
    """Write the values of a network as a ``.weights.h5`` file, which `load_weights` of a Keras 3 model reads.

    Args:
        network: the model must have the same Dense and normalisation layers in the same order; its activations,
            in the Dense layers or beside them, do not matter.
        path: ``*.weights.h5``; it appears whole or not at all.

    Raises:
        TypeError: not a network.
        ValueError: a user's own layer with values; another ending; the folder is missing.
        ModuleNotFoundError: h5py is not installed.
    """
    check_network(network)
    _check_ending(path, ".weights.h5")
    write_weights(path, _groups(network))


def load_keras_weights(network: Sequential, path: str | os.PathLike[str]) -> None:
    """Copy the values of a Keras ``.weights.h5`` file into a network; all are checked before any is changed.

    Args:
        network: the same Dense and normalisation layers as the model's, in the same order, of each kind.
        path: what `save_weights` of a Sequential or functional model wrote.

    Raises:
        TypeError: not a network.
        ValueError: a missing or foreign file; layers, shapes or values that do not fit.
        ModuleNotFoundError: h5py is not installed.
    """
    layers_with_values(network)
    name = repr(os.fspath(path))
    found: dict[str, np.ndarray] = {}
    with open_weights(path, name) as file:
        file.check()
        for kind, class_name in CLASSES.items():
            ours = [layer for layer in network.layers if type(layer) is kind]
            group = snake_case(class_name)
            if file.count(group) > len(ours):
                raise ValueError(f"{name} has {file.count(group)} {class_name}; the network has {len(ours)}")
            for i, layer in enumerate(ours):
                place = numbered(group, i)
                found |= _checked(layer, file.variables(place), f"{place!r} of {name}", network.dtype)
    network.load_state_dict(found)


def _checked(layer: Layer, variables: Sequence[Any], source: str, dtype: str) -> dict[str, np.ndarray]:
    held = layer.values()
    names = [name for name in NAMES[CLASSES[type(layer)]].values() if name in held]
    if len(variables) != len(names):
        raise ValueError(
            f"{source} has {len(variables)} variables; layer {layer.key}, {layer!r}, holds {', '.join(names)}"
        )
    return checked_values(layer, dict(zip(names, variables, strict=True)), source, dtype)
