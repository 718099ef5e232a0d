"""Keras's layers as their configurations describe them, and gpumlp's: a table for each direction."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..layers import (
    ELU,
    GELU,
    SELU,
    BatchNorm1d,
    Dropout,
    GaussianNoise,
    Identity,
    Layer,
    LayerNorm,
    LeakyReLU,
    Linear,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from .values import no_twin

Config = Mapping[str, Any]

GELU_TANH = "gpumlp>gelu_tanh"
"""The registered name of the one activation that Keras has as a function and not by a name."""

CLASSES: dict[type[Layer], str] = {
    Linear: "Dense",
    BatchNorm1d: "BatchNormalization",
    LayerNorm: "LayerNormalization",
}

# Keras's name for each of ours, in the order of its variables: trainable ones first
NAMES: dict[str, dict[str, str]] = {
    "Dense": {"kernel": "weight", "bias": "bias"},
    "BatchNormalization": {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    },
    "LayerNormalization": {"gamma": "weight", "beta": "bias"},
}


def snake_case(class_name: str) -> str:
    """The name that Keras makes of a class: LeakyReLU is leaky_re_lu."""
    parts = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", parts).lower()


ACTIVATIONS: dict[str, Callable[[], Layer]] = {
    "linear": Identity,
    "relu": ReLU,
    "leaky_relu": lambda: LeakyReLU(0.2),
    "elu": ELU,
    "selu": SELU,
    "gelu": GELU,
    "silu": SiLU,
    "swish": SiLU,
    "mish": Mish,
    "softplus": Softplus,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "softmax": Softmax,
    GELU_TANH: lambda: GELU("tanh"),
}


def activation_layer(spec: Any, where: str) -> Layer | None:
    """Return the layer for the activation of a configuration, None where it is linear.

    Raises:
        ValueError: an activation that gpumlp does not have.
    """
    if isinstance(spec, Mapping) and spec.get("class_name") in ("function", "__lambda__"):
        spec = spec.get("config")
    if isinstance(spec, Mapping) and "class_name" in spec:  # a layer, given as an activation
        return plain_layer(spec["class_name"], spec["config"], where)
    if spec is None or spec == "linear":
        return None
    if not isinstance(spec, str):
        raise ValueError(f"{where} has a lambda as its activation, which is never run; gpumlp has known ones")
    if spec not in ACTIVATIONS:
        raise ValueError(
            f"{where} has the activation {spec!r}; gpumlp has {', '.join(n for n in ACTIVATIONS if '>' not in n)}"
        )
    return ACTIVATIONS[spec]()


def _over_features(config: Config, where: str) -> None:
    axis = config.get("axis", -1)
    if axis not in (-1, 1, [-1], [1], (-1,), (1,)):
        raise ValueError(f"{where} goes over axis {axis}; expected the features, axis -1")


def _relu(config: Config, where: str) -> Layer:
    if config.get("max_value") is not None or config.get("threshold", 0):
        raise ValueError(f"{where} has a max_value or a threshold, which gpumlp's ReLU has not")
    slope = config.get("negative_slope", 0)
    return LeakyReLU(slope) if slope else ReLU()


def _softmax(config: Config, where: str) -> Layer:
    _over_features(config, where)
    return Softmax()


def _dropout(config: Config, where: str) -> Layer:
    if config.get("noise_shape") is not None:
        raise ValueError(f"{where} has a noise_shape; gpumlp drops each value by itself")
    return Dropout(config["rate"])


_PLAIN: dict[str, Callable[[Config, str], Layer | None]] = {
    "Activation": lambda c, where: activation_layer(c["activation"], where) or Identity(),
    "Identity": lambda c, where: Identity(),
    "Flatten": lambda c, where: None,
    "ReLU": _relu,
    # called alpha in Keras 2
    "LeakyReLU": lambda c, where: LeakyReLU(c.get("negative_slope", c.get("alpha", 0.3))),
    "ELU": lambda c, where: ELU(c.get("alpha", 1.0)),
    "Softmax": _softmax,
    "Dropout": _dropout,
    "GaussianNoise": lambda c, where: GaussianNoise(c["stddev"]),
}


def plain_layer(class_name: str, config: Config, where: str) -> Layer | None:
    """Return the layer for one of Keras's without values, None where nothing has to be done.

    Raises:
        ValueError: a layer that gpumlp does not have, or a setting of it.
    """
    if class_name not in _PLAIN:
        raise ValueError(
            f"{where} is a {class_name}, which gpumlp does not have; expected a chain of "
            f"{', '.join([*NAMES, *_PLAIN])}"
        )
    return _PLAIN[class_name](config, where)


def normalisation_layer(class_name: str, config: Config, width: int, where: str) -> Layer:
    """Return the batch or layer normalisation of that width.

    Raises:
        ValueError: an axis or a variant that gpumlp does not have.
    """
    _over_features(config, where)
    variant = next((key for key in ("renorm", "rms_scaling") if config.get(key)), None)
    if variant:
        raise ValueError(f"{where} has {variant}=True, which gpumlp's {class_name} has not")
    affine = bool(config.get("scale", True) or config.get("center", True))
    eps = config.get("epsilon", 1e-3)
    if class_name == "LayerNormalization":
        return LayerNorm(width, eps, affine)
    # Keras's momentum is the share that the running statistics keep
    return BatchNorm1d(width, eps, round(1 - config.get("momentum", 0.99), 12), affine)


# --- the other way --------------------------------------------------------------------------------------------------


def _activation(name: str) -> Callable[[Any], tuple[str, dict[str, Any]]]:
    return lambda layer: ("Activation", {"activation": name})


def _gelu(layer: GELU) -> tuple[str, dict[str, Any]]:
    if layer.approximate == "none":
        return "Activation", {"activation": "gelu"}
    function = {
        "module": "builtins",
        "class_name": "function",
        "config": GELU_TANH,
        "registered_name": "function",
    }
    return "Activation", {"activation": function}


def _softplus(layer: Softplus) -> tuple[str, dict[str, Any]]:
    if layer.beta != 1:
        raise no_twin(layer, "Keras, whose softplus has beta 1")
    return "Activation", {"activation": "softplus"}


def _normalisation(layer: Any) -> dict[str, Any]:
    return {"axis": -1, "epsilon": layer.eps, "center": layer.affine, "scale": layer.affine}


_TO: dict[type[Layer], Callable[[Any], tuple[str, dict[str, Any]]]] = {
    Linear: lambda m: (
        "Dense",
        {"units": m.out_features, "activation": "linear", "use_bias": m.has_bias},
    ),
    BatchNorm1d: lambda m: (
        "BatchNormalization",
        {**_normalisation(m), "momentum": round(1 - m.momentum, 12)},
    ),
    LayerNorm: lambda m: ("LayerNormalization", _normalisation(m)),
    Dropout: lambda m: ("Dropout", {"rate": m.rate}),
    GaussianNoise: lambda m: ("GaussianNoise", {"stddev": m.std}),
    LeakyReLU: lambda m: ("LeakyReLU", {"negative_slope": m.negative_slope}),
    ELU: lambda m: ("ELU", {"alpha": m.alpha}),
    GELU: _gelu,
    Softplus: _softplus,
    Identity: _activation("linear"),
    ReLU: _activation("relu"),
    SELU: _activation("selu"),
    SiLU: _activation("silu"),
    Mish: _activation("mish"),
    Sigmoid: _activation("sigmoid"),
    Tanh: _activation("tanh"),
    Softmax: _activation("softmax"),
}


def keras_layer(layer: Layer) -> tuple[str, dict[str, Any]]:
    """Return the class and the settings of the Keras layer that does the same.

    Raises:
        ValueError: Keras has none.
    """
    if type(layer) not in _TO:
        raise no_twin(layer, "Keras")
    return _TO[type(layer)](layer)
