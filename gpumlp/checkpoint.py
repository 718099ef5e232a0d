"""A model, or a whole training state, in one safetensors file: named arrays and what is needed to read them.

The file is an ordinary safetensors file, so other programs can read its tensors. Its metadata marks it as
gpumlp's: ``format`` and ``format_version``, a checksum over everything else, and the given entries, each as
JSON text. Nothing in it is ever executed (there is no pickle).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpumlp.files import write_whole

FORMAT = "gpumlp"
FORMAT_VERSION = 1

_OWN_KEYS = ("format", "format_version", "checksum")
_DTYPES = frozenset(
    np.dtype(t)
    for t in (
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    )
)


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Write `tensors` and `metadata` to `path`, which appears whole or not at all.

    The same input gives the same bytes.

    Args:
        path: the file, by custom ``*.safetensors``; an old one is replaced.
        tensors: name -> array of any shape, of booleans, integers, or float16, float32, float64.
        metadata: name -> anything that JSON can hold (NaN and infinity included).

    Raises:
        TypeError: a tensor is not such an array, a name is not text, or a value is not JSON-able.
        ValueError: a name that the format keeps for itself; the folder is missing.
    """
    from safetensors.numpy import save

    arrays = {_checked_name("tensor", name): _checked_array(name, array) for name, array in tensors.items()}
    texts = {_checked_name("metadata", key): _encoded(key, value) for key, value in metadata.items()}
    own = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "checksum": _checksum(arrays, texts),
    }
    write_whole(path, _with_sorted_metadata(save(arrays, metadata={**own, **texts})))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what `save_tensors` wrote to `path`: the tensors (writable, bit for bit) and the metadata.

    Raises:
        ValueError: `path` is missing, empty, truncated or damaged, of another format, or of a newer version.
    """
    from safetensors import safe_open

    name = repr(os.fspath(path))
    _refuse_other_formats(path, name)
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            texts = dict(file.metadata() or {})
            _refuse_other_writers(texts, name)
            tensors = {key: np.array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except _Refusal as refusal:
        raise ValueError(str(refusal)) from None
    except Exception as error:
        # a damaged header raises a dozen types in safetensors and NumPy, AttributeError among them
        raise ValueError(
            f"model file {name} is truncated or damaged ({_one_line(error)}); copy it again or train again"
        ) from None
    checksum = texts["checksum"]
    texts = {key: text for key, text in texts.items() if key not in _OWN_KEYS}
    metadata = {key: _decoded(key, text, name) for key, text in texts.items()}
    if checksum != _checksum(tensors, texts):
        raise ValueError(
            f"model file {name} is damaged: its checksum does not fit; copy it again or train again"
        )
    return tensors, metadata


class _Refusal(Exception):
    pass


def _checked_name(kind: str, name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{kind} name {name!r} is a {type(name).__name__}; expected text")
    if name == "__metadata__" or (kind == "metadata" and name in _OWN_KEYS):
        raise ValueError(f"{kind} name {name!r} is kept for the file format; choose another one")
    return name


def _checked_array(name: str, array: object) -> np.ndarray:
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"tensor {name!r} is a {type(array).__name__}; expected a NumPy array")
    native = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    if native.dtype not in _DTYPES:
        raise TypeError(
            f"tensor {name!r} has dtype {array.dtype}; expected booleans, integers or float16 to float64"
        )
    return native


def _encoded(key: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"metadata {key!r} cannot be written as JSON: {_one_line(error)}") from None


def _decoded(key: str, text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"model file {name} is damaged: its metadata {key!r} is not JSON ({_one_line(error)})"
        ) from None


def _checksum(tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> str:
    """Return 128 bits of BLAKE2b over names, dtypes, shapes, values and metadata, in sorted order."""
    import hashlib  # loads OpenSSL

    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(texts):
        digest.update(json.dumps([key, texts[key]]).encode())
    for key in sorted(tensors):
        array = tensors[key]
        digest.update(json.dumps([key, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _with_sorted_metadata(data: bytes) -> bytes:
    """Sort the header's metadata: safetensors writes it in the order of a hash table, new at each call."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # the tensors start at a multiple of 8 bytes
    text += b" " * (-len(text) % 8)
    return b"".join((struct.pack("<Q", len(text)), text, memoryview(data)[8 + length :]))


def _refuse_other_formats(path: str | os.PathLike[str], name: str) -> None:
    try:
        with open(path, "rb") as stream:
            start = stream.read(9)
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        raise ValueError(
            f"no model file {name}; expected a file that gpumlp saved (model.safetensors)"
        ) from None
    except IsADirectoryError:
        raise ValueError(f"{name} is a folder; give the model file in it (model.safetensors)") from None
    except OSError as error:
        raise ValueError(f"cannot read model file {name}: {error.strerror or error}") from None
    if size == 0:
        raise ValueError(f"model file {name} is empty; copy it again or train again")
    if len(start) == 9 and start[8:] != b"{":
        raise ValueError(
            f"{name} is not a safetensors file; expected a model that gpumlp saved (model.safetensors)"
        )
    if size < 9 or size < 8 + struct.unpack_from("<Q", start)[0]:
        raise ValueError(f"model file {name} is truncated ({size} bytes); copy it again or train again")


def _refuse_other_writers(texts: Mapping[str, str], name: str) -> None:
    if texts.get("format") != FORMAT or "checksum" not in texts:
        raise _Refusal(
            f"{name} is a safetensors file, but not one that gpumlp saved (no gpumlp metadata); "
            "expected the model.safetensors of a run"
        )
    version = texts.get("format_version", "")
    if not (version.isascii() and version.isdecimal() and 1 <= len(version) <= 9 and int(version) >= 1):
        raise _Refusal(f"model file {name} is damaged: format_version is {version!r}; expected an integer")
    if int(version) > FORMAT_VERSION:
        raise _Refusal(
            f"model file {name} has format version {version}, this gpumlp reads up to {FORMAT_VERSION}; "
            "install a newer gpumlp"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
