"""Layers: each says how to write its forward and its backward into a program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..registry import build
from .activations import (
    ACTIVATIONS,
    ELU,
    GELU,
    SELU,
    Activation,
    Identity,
    LeakyReLU,
    Mish,
    PerUnit,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
    get_activation,
)
from .base import Layer
from .linear import Linear
from .noise import Dropout, GaussianNoise
from .normalisation import BatchNorm1d, LayerNorm

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "GELU",
    "LAYERS",
    "SELU",
    "Activation",
    "BatchNorm1d",
    "Dropout",
    "GaussianNoise",
    "Identity",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Mish",
    "PerUnit",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "get_activation",
    "layer_from_dict",
    "layer_to_dict",
]

LAYERS: dict[str, Callable[..., Layer]] = {
    **{name: cls for name, cls in ACTIVATIONS.items() if name != "linear"},
    "linear": Linear,
    "per_unit": PerUnit,
    "dropout": Dropout,
    "gaussian_noise": GaussianNoise,
    "layer_norm": LayerNorm,
    "batch_norm": BatchNorm1d,
}

_NAMES = {cls: name for name, cls in reversed(LAYERS.items())}


def is_shipped(layer: Layer) -> bool:
    """Whether a layer is one of the library's, and not of a class of a user's own."""
    return type(layer) in _NAMES


def layer_to_dict(layer: Layer) -> dict[str, Any]:
    """Return ``{"name": ..., **settings}`` of a shipped layer whose settings are its attributes.

    Raises:
        ValueError: a user's own layer, which a file cannot describe.
    """
    name = _NAMES.get(type(layer))
    if name is None:
        raise ValueError(
            f"{type(layer).__name__} is a layer of your own, which a file cannot describe; "
            "save state_dict() and make the network in code"
        )
    return {"name": name, **{key: getattr(layer, key) for key in inspect.signature(type(layer)).parameters}}


def layer_from_dict(spec: str | Mapping[str, Any] | Layer) -> Layer:
    """Return a layer from ``{"name": ..., **settings}``, from a name where it needs no setting, or as it is.

    Raises:
        ValueError: unknown name or setting, or a bad value of one.
        TypeError: none of the three.
    """
    return build("layer", spec, Layer, LAYERS)
