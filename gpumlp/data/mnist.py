"""MNIST: the four IDX files of a folder, or OpenML's copy of them, as one float32 array.

The IDX format is described at http://yann.lecun.com/exdb/mnist/: big-endian 32-bit magic number (0x00000803
for images, 0x00000801 for labels) and sizes, then unsigned bytes.
"""

from __future__ import annotations

import gzip
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from gpumlp.data.columns import listing
from gpumlp.data.dataset import Dataset
from gpumlp.data.features import Matrix

IMAGES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
LABELS = ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = [str(digit) for digit in range(10)]

ROWS_AT_ONCE = 1000
WIDEST_IMAGE = 4096  # pixels; more is a damaged header, which must not claim the memory


def load_mnist(data_dir: str | Path | None = None) -> Dataset:
    """Return MNIST: pixels / 255 in float32 (70000, 784), the 60000 training rows first, and codes 0 to 9.

    The four files, raw or .gz, are looked for in `data_dir` and in the folder that the environment variable
    GPUMLP_DATA names, and in a subfolder mnist of each. Where they are in none, OpenML's copy is fetched by
    scikit-learn, which keeps it in its own cache (and needs about 1 GB of memory to read it).

    Args:
        data_dir: a folder with the files.

    Raises:
        ValueError: no such folder, or one with some of the files only; a damaged file; no files and no
            network.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ValueError(f"there is no folder {data_dir}; expected one with the four MNIST files")
    places = _places(data_dir)
    for folder in places:
        files = {name: _find(folder, name) for name in (*IMAGES, *LABELS)}
        lacking = [name for name, path in files.items() if path is None]
        if not lacking:
            found = {name: cast(Path, path) for name, path in files.items()}
            return _from_idx(found)
        if len(lacking) < len(files):
            raise ValueError(
                f"{folder} lacks {listing(lacking)} (or .gz) of the four MNIST files; put them beside the "
                "others"
            )
    return _from_openml(places)


def _places(data_dir: str | Path | None) -> list[Path]:
    roots = [Path(root) for root in (data_dir, os.environ.get("GPUMLP_DATA")) if root]
    return list(dict.fromkeys(place for root in roots for place in (root, root / "mnist")))


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _from_idx(files: dict[str, Path]) -> Dataset:
    labels = [read_labels(files[name]) for name in LABELS]
    counts = [len(part) for part in labels]
    X: Matrix | None = None
    start = 0
    for name, label_name, count in zip(IMAGES, LABELS, counts, strict=True):
        with _open(files[name]) as stream:
            n, height, width = _header(stream, files[name], 3)
            if n != count:
                raise ValueError(
                    f"{files[name]} has {n} images and {files[label_name]} {count} labels; get the files anew"
                )
            if X is None:
                X = np.empty((sum(counts), height * width), np.float32)
            if X.shape[1] != height * width:
                raise ValueError(
                    f"{files[name]} has images of {height} x {width}, unlike {files[IMAGES[0]]}; get the "
                    "files anew"
                )
            _read_pixels(stream, files[name], X[start : start + n])
        start += n
    assert X is not None
    return _dataset(X, np.concatenate(labels), counts[0])


def _dataset(X: Matrix, y: npt.NDArray[np.int64], n_train: int) -> Dataset:
    names = [f"pixel{j}" for j in range(X.shape[1])]
    return Dataset("mnist", X, y, names, ["digit"], list(CLASSES), n_train)


def read_labels(path: Path) -> npt.NDArray[np.int64]:
    """Return the labels of an IDX file, raw or .gz, as int64 codes (n,).

    Raises:
        ValueError: another magic number, a file that is cut short or too long, a label above 9.
    """
    with _open(path) as stream:
        (n,) = _header(stream, path, 1)
        labels = np.frombuffer(_read(stream, path, n), np.uint8).astype(np.int64)
        _expect_end(stream, path)
    if n and labels.max() > 9:
        raise ValueError(f"{path} holds the label {labels.max()}; expected digits 0 to 9: get the file anew")
    return labels


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _read(stream: BinaryIO, path: Path, count: int) -> bytes:
    try:
        data = stream.read(count)
    except EOFError:
        data = b""
    except (OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); get the file anew") from None
    if len(data) < count:
        raise ValueError(f"{path} is cut short; get the file anew")
    return data


def _header(stream: BinaryIO, path: Path, n_dimensions: int) -> tuple[int, ...]:
    (magic,) = struct.unpack(">I", _read(stream, path, 4))
    expected = 0x0800 + n_dimensions
    if magic != expected:
        raise ValueError(
            f"{path} begins with {magic:#010x}; expected {expected:#010x}, an IDX file of {n_dimensions} "
            "dimensions"
        )
    sizes = struct.unpack(f">{n_dimensions}I", _read(stream, path, 4 * n_dimensions))
    if 0 in sizes or max(sizes[1:], default=1) > WIDEST_IMAGE:
        raise ValueError(f"{path} says that it is {' x '.join(map(str, sizes))}; get the file anew")
    return sizes


def _read_pixels(stream: BinaryIO, path: Path, out: Matrix) -> None:
    for start in range(0, len(out), ROWS_AT_ONCE):
        part = out[start : start + ROWS_AT_ONCE]
        pixels = np.frombuffer(_read(stream, path, part.size), np.uint8).reshape(part.shape)
        np.divide(pixels, np.float32(255), out=part)
    _expect_end(stream, path)


def _expect_end(stream: BinaryIO, path: Path) -> None:
    try:
        more = stream.read(1)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged at its end ({error}); get the file anew") from None
    if more:
        raise ValueError(f"{path} goes on after the last of its rows; get the file anew")


def _from_openml(places: list[Path]) -> Dataset:
    from sklearn.datasets import fetch_openml

    try:
        with warnings.catch_warnings():  # its warning before the second try says less than the line below
            warnings.simplefilter("ignore")
            bunch = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff", n_retries=1)
    except (OSError, ValueError) as error:  # no network; an answer that scikit-learn refuses
        looked = listing([str(p) for p in places]) or "no folder (no data_dir given, GPUMLP_DATA not set)"
        reason = " ".join(str(error).split())
        raise ValueError(
            f"MNIST is not here and OpenML gave no copy ({reason}); looked in {looked}: "
            f"put {', '.join((*IMAGES, *LABELS))} (raw or .gz) into a folder and name it (data_dir, "
            "GPUMLP_DATA)"
        ) from None
    pixels, digits = bunch.data, bunch.target
    X = np.empty(pixels.shape, np.float32)
    for start in range(0, len(X), ROWS_AT_ONCE):
        part = X[start : start + ROWS_AT_ONCE]
        part[...] = pixels[start : start + ROWS_AT_ONCE]
        part /= np.float32(255)  # in float32, as for the files, so that both give the same bits
    return _dataset(X, digits.astype(np.int64), 60000)
