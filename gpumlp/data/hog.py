"""Histograms of oriented gradients (HOG; Dalal & Triggs 2005) of images, through scikit-image."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpumlp.checks import check_count, check_finite
from gpumlp.files import open_whole

Features = npt.NDArray[np.float32]

FEWEST_PER_WORKER = 500
"""Images below which another process costs more than it saves."""


def hog_features(
    images: Any,
    *,
    orientations: int = 9,
    pixels_per_cell: int | tuple[int, int] = 5,
    cells_per_block: int | tuple[int, int] = 2,
    shape: tuple[int, int] | None = None,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> Features:
    """Return the HOG features of grey images, blocks normalised by L2-Hys.

    Images of 28 x 28 with the settings below have 4 x 4 blocks of 2 x 2 cells of 9 orientations: 576 features.

    Args:
        images: (n, height, width), or (n, height * width) of square images; any numbers.
        orientations: bins of the angle, from 0 to 180 degrees.
        pixels_per_cell: height and width of a cell; one number for both.
        cells_per_block: height and width of a block; one number for both.
        shape: (height, width), where flat images are not square.
        workers: processes that share the images; None for the CPUs that are there, as far as it pays.
        cache: an .npy file: read where it holds the features of these images with these settings, else written.

    Returns:
        float32 (n, features).

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: images of another shape, or smaller than a block; settings below 1; NaN or infinity.
    """
    stack = _stack(images, shape)
    settings: dict[str, Any] = {
        "orientations": check_count("orientations", orientations),
        "pixels_per_cell": _pair("pixels_per_cell", pixels_per_cell),
        "cells_per_block": _pair("cells_per_block", cells_per_block),
    }
    block = np.multiply(settings["pixels_per_cell"], settings["cells_per_block"])
    if (block > stack.shape[1:]).any():
        raise ValueError(
            f"images of {stack.shape[1]} x {stack.shape[2]} are smaller than a block of {block[0]} x {block[1]} "
            "pixels (pixels_per_cell times cells_per_block); make one of them smaller"
        )
    if cache is None:
        return _compute(stack, settings, workers)
    path, mark = Path(cache), _mark(stack, settings)
    if not path.parent.is_dir():  # said before the work is done
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    known = _read(path, mark)
    if known is not None:
        return known
    found = _compute(stack, settings, workers)
    _write(path, mark, found)
    return found


def _stack(images: Any, shape: tuple[int, int] | None) -> npt.NDArray[Any]:
    array = np.asarray(images)
    if array.dtype.kind not in "buif":
        raise ValueError(f"images have the type {array.dtype}; expected numbers")
    if array.ndim == 2 and array.size:
        side = math.isqrt(array.shape[1])
        height, width = shape if shape is not None else (side, side)
        if height * width != array.shape[1]:
            expected = f"{height} x {width}" if shape is not None else "a square; give shape=(height, width)"
            raise ValueError(f"images have {array.shape[1]} pixels each; expected {expected}")
        array = array.reshape(len(array), height, width)
    elif shape is not None and array.shape[1:] != tuple(shape):
        raise ValueError(f"images have the shape {array.shape}; shape says {tuple(shape)} for each")
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"images have the shape {array.shape}; expected (n, height, width) or (n, pixels)")
    check_finite(array.reshape(len(array), -1), "images")
    return array


def _pair(name: str, value: Any) -> tuple[int, int]:
    values = value if isinstance(value, Sequence) and len(value) == 2 else (value, value)
    return check_count(name, values[0]), check_count(name, values[1])


def _compute(stack: npt.NDArray[Any], settings: dict[str, Any], workers: int | None) -> Features:
    """Share the images among processes: scikit-image takes one at a time, and most of its time is Python's."""
    from joblib import Parallel, cpu_count, delayed

    _hog()  # said here, once, where it is missing
    most = max(1, len(stack) // FEWEST_PER_WORKER)
    count = min(check_count("workers", workers) if workers is not None else cpu_count(), most)
    if count == 1:
        return hog_of_stack(stack, settings)
    # small parts: they end at about the same time, whatever else the machine does
    parts = np.array_split(np.arange(len(stack)), 4 * count)
    with Parallel(n_jobs=count) as pool:
        found = pool(delayed(hog_of_stack)(stack[part[0] : part[-1] + 1], settings) for part in parts)
    return np.concatenate(found)


def hog_of_stack(stack: npt.NDArray[Any], settings: dict[str, Any]) -> Features:
    """Return the features of images (n, height, width), one after the other; public for the other processes."""
    hog = _hog()
    first = hog(stack[0], block_norm="L2-Hys", **settings)
    found = np.empty((len(stack), first.size), np.float32)
    found[0] = first
    for i in range(1, len(stack)):
        found[i] = hog(stack[i], block_norm="L2-Hys", **settings)
    return found


def _hog() -> Any:
    try:
        from skimage.feature import hog
    except ImportError:
        raise ImportError(
            "HOG features need scikit-image, which is not installed; install it: pip install scikit-image"
        ) from None
    return hog


# --- the cache ----------------------------------------------------------------------------------------------------


def _mark(stack: npt.NDArray[Any], settings: dict[str, Any]) -> str:
    """What the features depend on, as a checksum."""
    digest = hashlib.sha256(json.dumps([settings, stack.shape, stack.dtype.str]).encode())
    digest.update(np.ascontiguousarray(stack).data)
    return digest.hexdigest()


def _mark_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _read(path: Path, mark: str) -> Features | None:
    try:
        if _mark_file(path).read_text(encoding="ascii").strip() != mark:
            return None
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # none yet, or a damaged one: it is made anew
        return None
    return found if found.ndim == 2 and found.dtype == np.float32 else None


def _write(path: Path, mark: str, features: Features) -> None:
    _mark_file(path).unlink(missing_ok=True)  # no moment in which an old mark stands beside new features
    with open_whole(path) as stream:
        np.save(stream, features, allow_pickle=False)
    with open_whole(_mark_file(path)) as stream:
        stream.write(f"{mark}\n".encode("ascii"))
