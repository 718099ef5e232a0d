"""What this machine is: processor, memory, libraries, GPUs. Nothing here fails because something is missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._version import __version__
from .backend import Backend, get_backend
from .cpus import cpu_counts
from .executors import choose_executor

PACKAGE = Path(__file__).resolve().parent

DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "numba": ("numba",),
    "scikit-learn": ("scikit-learn",),
    "pyarrow": ("pyarrow",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "nvmath": ("nvmath-python",),
}
"""The names that each library is distributed under."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Environment variables that set numbers of threads."""


def versions() -> dict[str, str | None]:
    """Return the versions of gpumlp, Python and the libraries that it may use; None for one not installed."""
    found: dict[str, str | None] = {"gpumlp": __version__, "python": platform.python_version()}
    for name, distributions in DISTRIBUTIONS.items():
        found[name] = next(filter(None, map(_version, distributions)), None)
    return found


def _version(distribution: str) -> str | None:
    # read, not imported: an import takes seconds and can fail where a driver is missing
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- processor and memory ----------------------------------------------------------------------------------------


def cpu_model() -> str:
    """Return the processor's name as the system gives it, or its architecture."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        fields = (line.partition(":") for line in lines)
        names = [value.strip() for key, _, value in fields if key.strip() == "model name"]
        if names and names[0]:
            return names[0]
    if sys.platform == "darwin" and (name := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return name
    return platform.processor() or platform.machine() or "unknown"


def memory_bytes() -> int | None:
    """Return the size of the main memory, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def machine() -> dict[str, Any]:
    """Return the processor, its CPUs, the memory and the system, as benchmarks write them down."""
    return {
        "cpu": cpu_model(),
        "cpus": cpu_counts(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "thread_variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }


# --- libraries -------------------------------------------------------------------------------------------------


def blas_libraries() -> list[dict[str, Any]]:
    """Return the BLAS libraries that are loaded, those of NumPy and SciPy among them.

    Returns:
        For each "name", "version", "threads", "library" (its file's name) and "architecture" (the processor that it
        chose its code for); None where it is not known: threads need threadpoolctl, which comes with scikit-learn.
    """
    import numpy as np

    with contextlib.suppress(ImportError):
        importlib.import_module("scipy.linalg")  # SciPy brings a BLAS of its own, which loads with this
    try:
        from threadpoolctl import threadpool_info

        loaded = [entry for entry in threadpool_info() if entry.get("user_api") == "blas"]
    except ImportError:
        loaded = []
    if loaded:
        return [
            {
                "name": entry.get("internal_api"),
                "version": entry.get("version"),
                "threads": entry.get("num_threads"),
                "library": os.path.basename(entry.get("filepath") or "") or None,
                "architecture": entry.get("architecture"),
            }
            for entry in loaded
        ]
    built: Mapping[str, Any] = np.show_config(mode="dicts") or {}
    blas = built.get("Build Dependencies", {}).get("blas", {})
    unknown = {"threads": None, "library": None, "architecture": None}
    return [{"name": blas.get("name"), "version": blas.get("version"), **unknown}] if blas else []


# --- devices -------------------------------------------------------------------------------------------------------


def gpus() -> tuple[list[dict[str, Any]], str | None]:
    """Return the GPUs, each with "name" and "memory_bytes", and why gpumlp cannot use them (None where it can).

    Where CuPy cannot be asked, NVIDIA's own tool is.
    """
    try:
        backend = get_backend("gpu")
        runtime = backend.xp.cuda.runtime
        properties = [runtime.getDeviceProperties(i) for i in range(runtime.getDeviceCount())]
        return [{"name": p["name"].decode(), "memory_bytes": p["totalGlobalMem"]} for p in properties], None
    except Exception as error:  # CuPy's errors cannot be named without CuPy
        reason = str(error).removeprefix("device 'gpu' was asked for, but ")
        reason = reason.removesuffix('; or use device="cpu"')
    text = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    found = [line.rpartition(",") for line in text.splitlines() if "," in line]
    return [{"name": name.strip(), "memory_bytes": _mebibytes(size)} for name, _, size in found], reason


def _mebibytes(text: str) -> int | None:
    try:
        return int(text) * 2**20
    except ValueError:
        return None


def executor_name(backend: Backend) -> str:
    """Return the name of the executor that runs programs on a backend."""
    return choose_executor(backend, has_python=False)[0].name


# --- the checkout --------------------------------------------------------------------------------------------------


def commit(package: Path = PACKAGE) -> str | None:
    """Return what ``git describe`` says of the checkout that this package stands in, or None outside of one.

    A package that is installed inside somebody's repository is not part of it: the folder above the package must be
    the root of the checkout.
    """
    root = package.parent
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root:
        return None
    return _output("git", "-C", str(root), "describe", "--always", "--dirty", "--tags") or None


def _output(*command: str) -> str:
    """What a command prints, or nothing where it is not there, fails, or takes longer than 10 s."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=True,
            # describe --dirty would else refresh the index, which a look must not
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def in_words(size: int | None) -> str:
    """Return a size in bytes as people read it, for example "23.4 GiB"."""
    if size is None:
        return "unknown"
    power = min(4, max(0, (size.bit_length() - 1) // 10))
    return f"{size / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
