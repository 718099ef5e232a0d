"""safetensors: the values of a network alone, in PyTorch's names and layout, both ways."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..files import write_whole
from ..network import Sequential
from .state_dicts import SAVE_INSTEAD, load_state_arrays, state_arrays

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}


def save_safetensors(network: Sequential, path: str | os.PathLike[str]) -> None:
    """Write the values of a network to a safetensors file that PyTorch's `load_state_dict` takes.

    Args:
        network: written as the state_dict of a `torch.nn.Sequential` with the same layers: ``0.weight`` as
            (out_features, in_features).
        path: the file, by custom ``*.safetensors``; it appears whole or not at all.

    Raises:
        TypeError: not a network.
        ValueError: a user's own layer with values; the folder is missing.
    """
    from safetensors.numpy import save

    # what readers of PyTorch's files look for
    write_whole(path, save(state_arrays(network), metadata={"format": "pt"}))


def load_safetensors(
    network: Sequential, path: str | os.PathLike[str], names: Sequence[str] | None = None
) -> None:
    """Copy the values of a safetensors file in PyTorch's layout into a network; all are checked first.

    Args:
        network, names: as for `load_torch_state_dict`.
        path: a file of float64, float32, float16 or bfloat16 tensors.

    Raises:
        TypeError: not a network.
        ValueError: a missing, damaged or foreign file; layers, shapes or values that do not fit.
    """
    load_state_arrays(network, _read(path), names, os.path.basename(os.fspath(path)))


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize, safe_open

    name = os.fspath(path)
    _refuse_pickles(name)
    try:
        with safe_open(name, framework="numpy") as file:
            metadata = file.metadata() or {}
        with open(name, "rb") as stream:
            tensors: list[tuple[str, dict[str, Any]]] = deserialize(stream.read())
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{name!r} is truncated, damaged, or no safetensors file ({' '.join(str(error).split())})"
        ) from None
    if metadata.get("format") == "gpumlp":
        raise ValueError(
            f"{name!r} is a model that gpumlp saved, with weights as (in, out); gm.load_model reads it"
        )
    return {key: _array(key, tensor, name) for key, tensor in tensors}


def _array(key: str, tensor: dict[str, Any], name: str) -> np.ndarray:
    dtype = _DTYPES.get(tensor["dtype"])
    if dtype is None:
        raise ValueError(
            f"{key!r} of {name!r} has type {tensor['dtype']}; expected float64, float32, float16 or bfloat16"
        )
    array = np.frombuffer(tensor["data"], dtype=dtype)
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(tensor["shape"])


def _refuse_pickles(name: str) -> None:
    try:
        with open(name, "rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise ValueError(f"cannot read {name!r}: {error.strerror or error}") from None
    # torch.save writes a zip archive with a pickle in it, or, before version 1.6, a pickle; a safetensors file may
    # begin with the same bytes, which are the length of its header, a JSON object
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:] != b"{"):
        raise ValueError(f"{name!r} is a pickle of torch.save, which is never read; use {SAVE_INSTEAD}")
