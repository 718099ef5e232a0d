"""PyTorch: a live `torch.nn.Sequential`, and a state_dict, both ways.

PyTorch keeps weights as (out_features, in_features); gpumlp as (in_features, out_features). Everything else is
alike: eps, momentum and the unbiased running variance of batch normalisation, and the layers' settings. Files
that `torch.save` wrote are pickles, which can run code: they are never read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import Backend
from ..layers import (
    ELU,
    GELU,
    SELU,
    BatchNorm1d,
    Dropout,
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
from ..network import Sequential
from .state_dicts import SAVE_INSTEAD, load_state_arrays, state_arrays
from .values import Step, as_array, check_network, make_network, need_library, no_twin

INSTALL = "torch"


def from_torch(model: Any, device: str | Backend = "auto", dtype: Any = None) -> Sequential:
    """Return a network with the layers and values of a `torch.nn.Sequential`, or of one layer.

    Args:
        model: nested Sequentials are taken apart; Flatten is left out (give rows of features).
        device: of the network; see `get_backend`.
        dtype: "float32" or "float64"; None for float64 where the model is so, else float32.

    A layer none of whose parameters asks for a gradient is frozen; batch normalisation where it is in eval mode too.

    Raises:
        TypeError: not such a model; a state_dict, which does not tell the activations.
        ValueError: a layer that gpumlp does not have, values that are not finite.
    """
    if isinstance(model, Mapping):
        raise TypeError(
            "a state_dict does not tell the activations; make the network and call "
            "load_torch_state_dict(network, state_dict)"
        )
    if isinstance(model, str | os.PathLike):
        raise TypeError(
            f"from_torch takes a live model, got the path {os.fspath(model)!r}; of a file: {SAVE_INSTEAD}"
        )
    torch = need_library("torch", INSTALL)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Sequential")
    steps = [step for path, module in _flat(torch, model, "") for step in _convert(path, module)]
    if not steps:
        raise ValueError("the model has no layers; expected at least one torch.nn.Linear")
    shared = _shared_parameters(model)
    if shared:
        raise ValueError(f"the model uses {shared} in two places; gpumlp shares no weights between layers")
    return make_network(steps, device, dtype)


def _flat(torch: Any, module: Any, path: str) -> list[tuple[str, Any]]:
    """The modules in order, with their places in the model; nested Sequentials are taken apart."""
    if type(module) is not torch.nn.Sequential:
        return [(path or "model", module)]
    inner = [(f"{path}.{i}" if path else str(i), child) for i, child in enumerate(module)]
    return [found for place, child in inner for found in _flat(torch, child, place)]


def _shared_parameters(model: Any) -> str:
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in names:
            return f"{names[id(parameter)]!r}, also called {name!r},"
        names[id(parameter)] = name
    return ""


def _norm_width(module: Any) -> int:
    if len(module.normalized_shape) != 1:
        raise ValueError(
            f"{module!r} normalises over {len(module.normalized_shape)} axes; gpumlp's LayerNorm over the features"
        )
    return int(module.normalized_shape[0])


def _batch_norm(module: Any) -> Layer:
    if module.momentum is None or not module.track_running_stats:
        raise ValueError(
            f"{module!r} keeps no moving average; expected a momentum and track_running_stats=True"
        )
    return BatchNorm1d(module.num_features, module.eps, module.momentum, module.affine)


def _softmax(module: Any) -> Layer:
    if module.dim not in (1, -1):
        raise ValueError(f"{module!r} does not go over the features; expected dim=1 or dim=-1")
    return Softmax()


_FROM: dict[str, Callable[[Any], Layer | None]] = {
    "Linear": lambda m: Linear(m.in_features, m.out_features, bias=m.bias is not None),
    "BatchNorm1d": _batch_norm,
    "LayerNorm": lambda m: LayerNorm(_norm_width(m), m.eps, m.elementwise_affine),
    "Dropout": lambda m: Dropout(m.p),
    "Flatten": lambda m: None,
    "Identity": lambda m: Identity(),
    "ReLU": lambda m: ReLU(),
    "LeakyReLU": lambda m: LeakyReLU(m.negative_slope),
    "ELU": lambda m: ELU(m.alpha),
    "SELU": lambda m: SELU(),
    "GELU": lambda m: GELU(m.approximate),
    "SiLU": lambda m: SiLU(),
    "Mish": lambda m: Mish(),
    "Softplus": lambda m: Softplus(m.beta),
    "Sigmoid": lambda m: Sigmoid(),
    "Tanh": lambda m: Tanh(),
    "Softmax": _softmax,
}


def _convert(path: str, module: Any) -> list[Step]:
    """The layer for a module, in a list that is empty where nothing has to be done."""
    name = type(module).__name__
    known = type(module).__module__.startswith("torch.nn.modules.") and name in _FROM
    names = {n for n, _ in module.named_parameters(recurse=False)}
    if not known or names - {"weight", "bias"}:
        hint = "leave it off and use a loss that takes logits" if name == "LogSoftmax" else ""
        hint = hint or "make the network in gpumlp and move the values with load_torch_state_dict"
        raise ValueError(f"{path!r} of the model, a {name}, has no like in gpumlp; {hint}")
    layer = _FROM[name](module)
    if layer is None:
        return []
    values = {
        key: as_array(value, f"{path}.{key}")
        for key, value in module.state_dict().items()
        if key != "num_batches_tracked"
    }
    if isinstance(layer, Linear):
        values["weight"] = values["weight"].T
    elif "weight" in values and "bias" not in values:  # LayerNorm(bias=False)
        values["bias"] = np.zeros_like(values["weight"])
    parameters = list(module.parameters())
    frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
    still_counts = isinstance(layer, BatchNorm1d) and module.training
    return [Step(layer, values, f"{path!r} ({name})", trainable=not frozen or still_counts)]


_TO: dict[type[Layer], Callable[[Any, Any], Any]] = {
    Linear: lambda nn, m: nn.Linear(m.in_features, m.out_features, bias=m.has_bias),
    BatchNorm1d: lambda nn, m: nn.BatchNorm1d(m.num_features, m.eps, m.momentum, m.affine),
    LayerNorm: lambda nn, m: nn.LayerNorm(m.normalized_features, m.eps, m.affine),
    Dropout: lambda nn, m: nn.Dropout(m.rate),
    Identity: lambda nn, m: nn.Identity(),
    ReLU: lambda nn, m: nn.ReLU(),
    LeakyReLU: lambda nn, m: nn.LeakyReLU(m.negative_slope),
    ELU: lambda nn, m: nn.ELU(m.alpha),
    SELU: lambda nn, m: nn.SELU(),
    GELU: lambda nn, m: nn.GELU(m.approximate),
    SiLU: lambda nn, m: nn.SiLU(),
    Mish: lambda nn, m: nn.Mish(),
    Softplus: lambda nn, m: nn.Softplus(m.beta),
    Sigmoid: lambda nn, m: nn.Sigmoid(),
    Tanh: lambda nn, m: nn.Tanh(),
    Softmax: lambda nn, m: nn.Softmax(dim=-1),
}


def to_torch(network: Sequential) -> Any:
    """Return a `torch.nn.Sequential` on the CPU with the layers and values of a network, one for one.

    As every new module it is in training mode: call its `eval` to predict with dropout or batch normalisation.
    Frozen layers ask for no gradient; frozen batch normalisation is in eval mode as well.

    Raises:
        TypeError: not a network.
        ValueError: a layer that PyTorch does not have.
    """
    check_network(network)
    for layer in network.layers:
        if type(layer) not in _TO:
            raise no_twin(layer, "torch.nn")
    torch = need_library("torch", INSTALL)
    modules = [_TO[type(layer)](torch.nn, layer) for layer in network.layers]
    model = torch.nn.Sequential(*modules)
    model = model.double() if network.dtype == "float64" else model.float()
    model.load_state_dict(to_torch_state_dict(network))
    for layer, module in zip(network.layers, modules, strict=True):
        if not layer.trainable:
            module.requires_grad_(False)
            module.train(not isinstance(layer, BatchNorm1d))
    return model


def to_torch_state_dict(network: Sequential) -> dict[str, Any]:
    """Return the values of a network as tensors under the names of a `torch.nn.Sequential` of the same layers.

    Raises:
        TypeError: not a network.
        ValueError: a user's own layer with values.
    """
    arrays = state_arrays(network)
    torch = need_library("torch", INSTALL)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def load_torch_state_dict(
    network: Sequential, state_dict: Mapping[str, Any], names: Sequence[str] | None = None
) -> None:
    """Copy the values of a PyTorch state_dict into a network; all are checked before any is changed.

    Args:
        network: layers of the same kinds and widths as the model's; activations and dropout do not matter.
        state_dict: name -> tensor or array, weights as (out_features, in_features). Layers are found by the
            numbers in their names (``fc1``, ``fc2``; ``net.0``, ``net.3``), each kind apart, or by shapes that
            fit one layer each.
        names: where neither tells: the prefix of each layer with values, in order: ["inner", "outer"].

    Raises:
        TypeError: not a network, or not a mapping.
        ValueError: layers, shapes or values that do not fit.
    """
    if isinstance(state_dict, str | os.PathLike):
        raise TypeError(
            f"state_dict is the path {os.fspath(state_dict)!r}; a .pt file is a pickle, which is never read here: "
            f"{SAVE_INSTEAD}"
        )
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict is a {type(state_dict).__name__}; expected model.state_dict(), a mapping of tensors"
        )
    load_state_arrays(network, state_dict, names, "the state_dict")
