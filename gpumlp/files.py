"""Files that appear whole or not at all.

A file is written aside, in the same folder, under the name ``.NAME.RANDOM.tmp``; only when all of it is on
the disk does it take its own name, in one step of the file system. Whoever reads the folder, at any moment
and after any crash, sees the old file, or the new one, and never a part. A killed process can leave the
``.tmp`` file behind.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

TEMPORARY_SUFFIX = ".tmp"


def make_folder(path: Path) -> list[Path]:
    """Make a folder, and those above it; return those that were missing, the innermost first.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir()
    return missing


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders in their order, but none that others use by now."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; what was written there becomes `path` when the block ends.

    For libraries that write to a path; `open_whole` and `open_whole_text` give a stream. When the block
    raises, the temporary file is removed and an old file at `path` stays as it was.

    Raises:
        ValueError: the folder of `path` is missing, or `path` is a folder.
        OSError: the file cannot be written (no permission, disk full).
    """
    # through a symbolic link, so that the link stays and what it points to is replaced
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ValueError(
            f"cannot write {os.fspath(path)!r}: there is no folder {str(target.parent)!r}; create it first"
        )
    if target.is_dir():
        raise ValueError(f"cannot write {os.fspath(path)!r}: it is a folder; give the name of a file")
    # cut, for a name at the file system's limit of 255 bytes must leave room for the rest
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    # Windows opens no folder and some network file systems sync none: the rename is as safe as they make it
    with suppress(OSError):
        _sync(target.parent, os.O_RDONLY)


@contextmanager
def open_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open `path` for writing bytes; the file appears, whole, when the block ends without an error.

    Raises:
        ValueError, OSError: as `aside`.
    """
    with aside(path) as temporary, open(temporary, "xb") as stream:
        yield stream


@contextmanager
def open_whole_text(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    r"""Open `path` for writing UTF-8 text; the file appears, whole, when the block ends without an error.

    Line ends are written as given (``"\n"`` everywhere, and the csv module may write its own).

    Raises:
        ValueError, OSError: as `aside`.
    """
    with aside(path) as temporary, open(temporary, "x", encoding="utf-8", newline="") as stream:
        yield stream


def write_whole(path: str | os.PathLike[str], data: bytes | bytearray | memoryview | str) -> None:
    """Write `data` (text as UTF-8) to `path`, which appears whole or not at all.

    Raises:
        ValueError, OSError: as `aside`.
    """
    with open_whole(path) as stream:
        stream.write(data.encode("utf-8") if isinstance(data, str) else data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON to `path`, which appears whole or not at all.

    NumPy scalars and arrays are written as numbers and lists. JSON has no NaN or infinity: these become
    ``null``.

    Raises:
        TypeError: `value` holds something that JSON cannot.
        ValueError, OSError: as `aside`.
    """
    write_whole(path, json.dumps(_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(
        f"cannot write a {type(value).__name__} as JSON; expected numbers, text, lists and mappings"
    )


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
