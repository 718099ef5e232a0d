"""NPY and NPZ files, mapped or streamed so that no second copy is held, and never unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gpumlp.data.columns import BLOCK_ELEMENTS
from gpumlp.data.features import Matrix

Array = npt.NDArray[Any]


def map_npy(path: Path) -> Array:
    """Return the array of an NPY file, mapped into memory and read only; images (n, h, w) as (n, h * w).

    Raises:
        ValueError: a file that is not NPY, is cut short, or holds Python objects or anything but numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as NPY: {_why(error)}") from None
    _refuse_non_numbers(array.dtype, str(path))
    return two_dimensions(array, str(path))


class NpzFile:
    """The arrays of an NPZ file by name: features streamed into float32, targets read as they are.

    Raises:
        ValueError: a file that is not NPZ, or holds no arrays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path} cannot be read as NPZ: {_why(error)}") from None
        if not self.names:
            raise ValueError(
                f"{path} holds no arrays; expected X and y, as numpy.savez(path, X=X, y=y) writes them"
            )

    def holds_integers(self, name: str) -> bool:
        """Return whether an array is of whole numbers or booleans, read from its header alone."""
        with self._open(name) as stream:
            return _header(stream)[2].kind in "iub"

    def array(self, name: str) -> Array:
        """Return one array as it is, a column (n, 1) as (n,).

        Raises:
            ValueError: Python objects, a damaged file.
        """
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                array = arrays[name]
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path}: the array {name!r} cannot be read: {_why(error)}") from None
        return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array

    def matrix(self, name: str) -> Matrix:
        """Return one array of numbers as float32 (n, f), read and converted block by block.

        Raises:
            ValueError: Python objects, anything but numbers, a damaged file.
        """
        where = f"{self.path}: the array {name!r}"
        with self._open(name) as stream:
            shape, fortran, dtype = _header(stream)
            _refuse_non_numbers(dtype, where)
            if not fortran:
                return two_dimensions(_stream(stream, shape, dtype), where)
        with np.errstate(over="ignore"):  # inf is refused later, with the name of the column
            return two_dimensions(np.ascontiguousarray(self.array(name), np.float32), where)

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as stream:
                yield stream
        except _NotNumbers:
            raise
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path}: the array {name!r} cannot be read: {_why(error)}") from None


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _stream(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Matrix:
    out = np.empty(shape, np.float32)
    flat = out.reshape(-1)
    for start in range(0, flat.size, BLOCK_ELEMENTS):
        part = flat[start : start + BLOCK_ELEMENTS]
        data = stream.read(part.size * dtype.itemsize)
        if len(data) < part.size * dtype.itemsize:
            raise ValueError("it ends too early")
        with np.errstate(over="ignore"):  # inf is refused later, with the name of the column
            part[...] = np.frombuffer(data, dtype)
    stream.read()  # to the end of the member, where zipfile compares its checksum
    return out


class _NotNumbers(ValueError):
    pass


def _refuse_non_numbers(dtype: np.dtype[Any], where: str) -> None:
    if dtype.hasobject:
        raise _NotNumbers(
            f"{where} holds Python objects, which need pickle; gpumlp never reads pickle: save plain numbers"
        )
    if dtype.kind not in "fiub":
        raise _NotNumbers(
            f"{where} holds {dtype}; expected real numbers: give text and mixed columns as CSV or Parquet"
        )


def two_dimensions(array: Array, where: str) -> Array:
    """Return an array as (rows, features), images flattened; an empty one is a ValueError."""
    if array.ndim == 0 or not array.size:
        raise ValueError(f"{where} has shape {array.shape}; expected (rows, features), both above 0")
    if array.ndim == 2:
        return array
    if array.ndim > 2 and not array.flags.c_contiguous:
        raise ValueError(
            f"{where} has shape {array.shape} in Fortran order; save it in C order: numpy.ascontiguousarray"
        )
    return array.reshape(len(array), -1)


def _why(error: Exception) -> str:
    message = " ".join(str(error).split())
    if "Python objects" in message or "Object arrays" in message:  # NumPy's words
        return "it holds Python objects, which need pickle; gpumlp never reads pickle: save plain numbers"
    if "pickled data" in message or "magic" in message:
        return "it is not in that format"
    if (
        isinstance(error, EOFError)
        or "mmap length" in message
        or "EOF" in message
        or "No data left" in message
    ):
        return "it is empty or cut short"
    return message or type(error).__name__
