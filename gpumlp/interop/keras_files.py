"""Keras's files without Keras: ``.weights.h5`` and ``.keras``, as `keras.src.saving.saving_lib` lays them out.

A weight file is HDF5. The variables of a layer are the datasets ``0``, ``1``, ... of the group
``layers/NAME/vars``, where NAME is the layer's class in snake case, numbered from the second one on (``dense``,
``dense_1``, ...) in the order of the model, and not the name that the user gave it, which is the attribute
``name``. Keras 2.13 to 2.15 call ``layers`` ``_layer_checkpoint_dependencies``. A ``.keras`` file is a zip archive
of ``config.json`` (the architecture), ``metadata.json`` and ``model.weights.h5``.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..files import aside, write_whole
from .keras_layers import NAMES, snake_case
from .values import need_library

KINDS = tuple(snake_case(class_name) for class_name in NAMES)
INSTALL = "'gpumlp[interop]'"
ROOTS = ("layers", "_layer_checkpoint_dependencies")
LEGACY = "save it again in Keras 3 with model.save_weights('NAME.weights.h5') or model.save('NAME.keras')"


class WeightFile:
    """The variables of an open Keras weight file, by layer."""

    def __init__(self, file: Any, name: str) -> None:
        root = next((root for root in ROOTS if root in file), None)
        if root is None:
            legacy = "model_weights" in file or "layer_names" in file.attrs
            what = "is in Keras's older HDF5 form" if legacy else "has no group 'layers' of a Keras model"
            raise ValueError(f"{name} {what}; {LEGACY}")
        self._layers, self._name = file[root], name

    def variables(self, group: str) -> list[np.ndarray]:
        """The variables of a layer in Keras's order; none where the group is not there."""
        if group not in self._layers or "vars" not in self._layers[group]:
            return []
        datasets = self._layers[group]["vars"]
        found = []
        for i in range(len(datasets)):
            if str(i) not in datasets:
                raise ValueError(
                    f"{group!r} of {self._name} has the variables {sorted(datasets.keys())}; expected 0, 1, ..."
                )
            found.append(_array(datasets[str(i)]))
        return found

    def count(self, kind: str) -> int:
        """How many layers of a kind there are: the groups ``dense``, ``dense_1``, ..."""
        return sum(re.fullmatch(rf"{kind}(_\d+)?", group) is not None for group in self._layers)

    def check(self) -> None:
        """Raise a ValueError where other layers hold values, or a layer is a model of its own."""
        for group, content in self._layers.items():
            if any(root in content for root in ROOTS):
                raise ValueError(
                    f"{group!r} of {self._name} is a model within the model, whose place a weight file does not "
                    "tell; save the whole model as .keras and take from_keras"
                )
            known = any(re.fullmatch(rf"{kind}(_\d+)?", group) for kind in KINDS)
            if not known and len(content.get("vars", ())):
                raise ValueError(
                    f"{self._name} has values for {group!r}; expected {', '.join(KINDS)} layers alone"
                )


def numbered(kind: str, i: int) -> str:
    """The name that Keras gives the i-th of several alike: dense, dense_1, ..."""
    return f"{kind}_{i}" if i else kind


def _array(dataset: Any) -> np.ndarray:
    array = np.asarray(dataset)
    if dataset.attrs.get("dtype") == "bfloat16":  # HDF5 knows it as two bytes: the upper half of a float32
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array


@contextmanager
def open_weights(path: str | os.PathLike[str] | io.BytesIO, name: str) -> Iterator[WeightFile]:
    """Open a weight file for reading.

    Raises:
        ValueError: a missing or damaged file, or one of another form.
        ModuleNotFoundError: h5py is not installed.
    """
    h5py = need_library("h5py", INSTALL)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        missing = not isinstance(path, io.BytesIO) and not os.path.exists(path)
        reason = "there is no such file" if missing else f"no HDF5 file, or a damaged one ({error})"
        raise ValueError(f"cannot read {name}: {reason}; expected what model.save_weights wrote") from None
    with file:
        try:
            yield WeightFile(file, name)
        except (AttributeError, KeyError, TypeError, OSError, RuntimeError) as error:
            # a dataset where a group is expected, or parts that h5py cannot read
            reason = " ".join(str(error).split())
            raise ValueError(f"{name} is damaged, or laid out in another way ({reason}); {LEGACY}") from None


def write_weights(
    target: str | os.PathLike[str] | io.BytesIO, layers: Sequence[tuple[str, Sequence[np.ndarray]]]
) -> None:
    """Write the variables of layers, by the names of their groups, as Keras 3 does.

    Args:
        target: a path, which appears whole or not at all, or a stream.
        layers: (``dense_1``, [kernel, bias]), ...

    Raises:
        ValueError: the folder is missing.
        ModuleNotFoundError: h5py is not installed.
    """
    h5py = need_library("h5py", INSTALL)
    if not isinstance(target, io.BytesIO):
        with aside(target) as temporary:
            _write(h5py, temporary, layers)
    else:
        _write(h5py, target, layers)


def _write(h5py: Any, target: Any, layers: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    with h5py.File(target, "w") as file:
        for name, variables in layers:
            group = file.create_group(f"layers/{name}/vars")
            group.attrs["name"] = name
            for i, variable in enumerate(variables):
                group.create_dataset(str(i), data=variable)


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], io.BytesIO]:
    """Return the architecture and the weight file of a ``.keras`` archive.

    Raises:
        ValueError: no such archive.
    """
    name = os.fspath(path)
    try:
        with zipfile.ZipFile(name) as archive:
            config = json.loads(archive.read("config.json"))
            weights = io.BytesIO(archive.read("model.weights.h5"))
    except FileNotFoundError:
        raise ValueError(f"no file {name!r}; expected what model.save('NAME.keras') wrote") from None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        hint = "; a weight file goes to load_keras_weights" if name.endswith(".h5") else ""
        raise ValueError(f"{name!r} is no .keras archive, or a damaged one ({error}){hint}") from None
    return config, weights


def write_archive(
    path: str | os.PathLike[str],
    config: Mapping[str, Any],
    layers: Sequence[tuple[str, Sequence[np.ndarray]]],
) -> None:
    """Write a ``.keras`` archive, which appears whole or not at all.

    Raises:
        ValueError: the folder is missing.
    """
    weights, archive = io.BytesIO(), io.BytesIO()
    write_weights(weights, layers)
    # the form of the archive is that of this version
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d@%H:%M:%S")
    metadata = {"keras_version": "3.9.0", "date_saved": now}
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("metadata.json", json.dumps(metadata))
        file.writestr("config.json", json.dumps(config))
        file.writestr("model.weights.h5", weights.getvalue())
    write_whole(path, archive.getvalue())
