"""Where compiled kernels are kept: one object file each, found by what it was made from.

The name of a file has a hash of all that machine code depends on, so that an edit, an upgrade or another processor
asks for another file; its first bytes are a hash of the rest, so that a damaged one is not taken. Files are put in
place whole, and processes that compile at once write the same one.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from .processor import identity

DIGEST_BYTES = 16


@functools.cache
def stamp() -> str:
    """A hash of all sources of kernels: constants of the catalogue and of the layout are compiled in too."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _origin() -> str:
    """A hash of what else machine code depends on: the compiler, its settings, the processor."""
    versions = [f"{name} {version(name)}" for name in ("numba", "llvmlite")]
    settings = [
        f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("NUMBA_") and "CACHE" not in k
    ]
    text = "\n".join([*versions, f"python {sys.version_info[:2]}", identity(), *settings])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _digest(code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=DIGEST_BYTES).digest()


def folders() -> Iterator[Path]:
    """Folders that may hold kernels, the best first: the one asked for; or beside the sources, then the user's own."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(named) / "gpumlp"
        return
    yield Path(__file__).parent / "__pycache__"
    if sys.platform == "darwin":
        yield Path.home() / "Library" / "Caches" / "gpumlp"
    elif sys.platform == "win32":
        yield Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gpumlp" / "Cache"
    else:
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpumlp"


def file_name(kernel: str, dtype: str) -> str:
    """The name of a kernel's file."""
    return f"{kernel}.{dtype}.{stamp()}.{_origin()}.o"


def read(kernel: str, dtype: str) -> bytes | None:
    """Return a kernel's object file, or None where there is none that is whole."""
    for folder in folders():
        try:
            content = (folder / file_name(kernel, dtype)).read_bytes()
        except OSError:
            continue
        digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if _digest(code) == digest:
            return code
    return None


def write(kernel: str, dtype: str, code: bytes) -> Path | None:
    """Keep a kernel's object file in the first folder that takes it, and return where; None if there is none."""
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, prefix=f"{kernel}.", suffix=".part")
        except OSError:
            continue
        part, path = Path(name), folder / file_name(kernel, dtype)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_digest(code) + code)
            part.replace(path)
        except OSError:  # a full disk
            part.unlink(missing_ok=True)
            continue
        return path
    return None
