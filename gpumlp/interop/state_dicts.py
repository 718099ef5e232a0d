"""The names and the layout of PyTorch's state_dict: ``0.weight`` as (out_features, in_features)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..layers import BatchNorm1d, Layer, LayerNorm, Linear
from ..network import Sequential
from .values import WITH_VALUES, checked_values, layers_with_values

# the counter serves momentum=None alone, which gpumlp does not have
COUNTER = "num_batches_tracked"
ROLES = ("weight", "bias", "running_mean", "running_var", COUNTER)

SAVE_INSTEAD = (
    'safetensors.torch.save_file(model.state_dict(), "model.safetensors") in PyTorch, then '
    "gpumlp.interop.load_safetensors"
)

Groups = dict[str, dict[str, Any]]


def state_arrays(network: Sequential) -> dict[str, np.ndarray]:
    """Return the values of a network as `torch.nn.Sequential.state_dict` names and lays them out.

    Raises:
        ValueError: a user's own layer with values.
    """
    found: dict[str, np.ndarray] = {}
    for layer in layers_with_values(network):
        for name, value in layer.values().items():
            found[f"{layer.key}.{name}"] = np.ascontiguousarray(value.T)
        if isinstance(layer, BatchNorm1d):
            found[f"{layer.key}.{COUNTER}"] = np.array(0, dtype=np.int64)
    return found


def load_state_arrays(
    network: Sequential, tensors: Mapping[str, Any], names: Sequence[str] | None, source: str
) -> None:
    """Copy values in PyTorch's names and layout into a network; all are checked before any is changed.

    Args:
        network: layers of the same kinds and widths; activations and dropout do not matter.
        tensors: name -> array or tensor.
        names: the prefix of each layer with values, in order; None to find them by number or shape.
        source: what a message calls the tensors.

    Raises:
        ValueError: what does not fit.
    """
    layers = layers_with_values(network)
    groups = _grouped(tensors, source)
    prefixes = _by_names(layers, groups, names) if names is not None else _matched(layers, groups, source)
    values: dict[str, np.ndarray] = {}
    for layer, prefix in zip(layers, prefixes, strict=True):
        given = {role: value for role, value in groups[prefix].items() if role != COUNTER}
        values |= checked_values(layer, given, repr(prefix), network.dtype, transposed=True)
    network.load_state_dict(values)


def _grouped(tensors: Mapping[str, Any], source: str) -> Groups:
    groups: Groups = {}
    for name, value in tensors.items():
        prefix, _, role = str(name).rpartition(".")
        if isinstance(value, Mapping):
            raise ValueError(
                f"{source} holds a mapping under {name!r}; give the state_dict alone, without optimizer and epoch"
            )
        if role not in ROLES:
            raise ValueError(
                f"{source} has {name!r}; expected tensors of dense layers and normalisations, which end in "
                f"{', '.join(ROLES[:-1])}"
            )
        groups.setdefault(prefix, {})[role] = value
    return groups


def _kind(group: Mapping[str, Any]) -> type[Layer]:
    if "running_mean" in group:
        return BatchNorm1d
    return Linear if len(np.shape(group.get("weight", ()))) == 2 else LayerNorm


def _by_names(layers: Sequence[Layer], groups: Groups, names: Sequence[str]) -> list[str]:
    prefixes = [str(name) for name in names]
    if len(prefixes) != len(layers) or set(prefixes) != set(groups):
        raise ValueError(
            f"names is {prefixes}; expected one for each of {len(layers)} layers with values, out of {list(groups)}"
        )
    return prefixes


def _matched(layers: Sequence[Layer], groups: Groups, source: str) -> list[str]:
    """The prefix of each layer: kind by kind, by their numbers, or by shapes that fit one layer each."""
    found: dict[str, str] = {}
    for kind in WITH_VALUES:
        ours = [layer for layer in layers if type(layer) is kind]
        theirs = [prefix for prefix, group in groups.items() if _kind(group) is kind]
        if len(ours) != len(theirs):
            raise ValueError(
                f"the network has {len(ours)} {kind.__name__} with values; {source} has {len(theirs)}"
                f"{': ' + ', '.join(map(repr, theirs)) if theirs else ''}"
            )
        ordered = _by_number(theirs) or _by_shape(ours, {prefix: groups[prefix] for prefix in theirs})
        if ordered is None:
            raise ValueError(
                f"{source} names {', '.join(map(repr, theirs))}, and neither numbers nor shapes tell their order; "
                f"give names=[...], the prefixes in the order of the network"
            )
        found |= {layer.key: prefix for layer, prefix in zip(ours, ordered, strict=True)}
    return [found[layer.key] for layer in layers]


def _by_number(prefixes: Sequence[str]) -> list[str] | None:
    """The prefixes by the numbers in them, where they differ in nothing else."""
    texts = {re.sub(r"\d+", "#", prefix) for prefix in prefixes}
    if len(texts) > 1:
        return None
    return sorted(prefixes, key=lambda prefix: [int(number) for number in re.findall(r"\d+", prefix)])


def _by_shape(layers: Sequence[Layer], groups: Groups) -> list[str] | None:
    """The prefix for each layer, where every shape of a weight (or running mean) is there once on both sides."""

    def shape(values: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(np.shape(values.get("weight", values.get("running_mean"))))

    ours = [shape(layer.values())[::-1] for layer in layers]
    theirs = {shape(group): prefix for prefix, group in groups.items()}
    if len(set(ours)) < len(ours) or set(ours) != set(theirs):
        return None
    return [theirs[key] for key in ours]
