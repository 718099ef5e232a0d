"""What a run was made on: the GPU, its driver, and the libraries that take part."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
from typing import Any

DISTRIBUTIONS = ("nvmath-python", "torch", "triton", "jax", "jaxlib", "nvidia-cublas", "nvidia-cublas-cu12")


def describe(device: str) -> dict[str, Any]:
    """Return "gpu" (name, driver, CUDA, CuPy; errors as text) and "libraries" (their versions)."""
    libraries = {name: version for name in DISTRIBUTIONS if (version := _version(name))}
    if device == "host":
        return {"gpu": {"name": "stand-in for a GPU"}, "libraries": libraries}
    return {"gpu": _gpu(), "libraries": libraries}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> dict[str, Any]:
    found: dict[str, Any] = {"smi": _smi()}
    try:
        cupy = importlib.import_module("cupy")
        runtime = cupy.cuda.runtime
        properties = runtime.getDeviceProperties(0)
        found |= {
            "name": properties["name"].decode(),
            "memory_bytes": properties["totalGlobalMem"],
            "multiprocessors": properties["multiProcessorCount"],
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "driver": runtime.driverGetVersion(),
            "cuda": runtime.runtimeGetVersion(),
            "nvrtc": list(cupy.cuda.nvrtc.getVersion()),
            "cupy": cupy.__version__,
        }
    except Exception as error:  # what is missing shows in every check too
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def _smi() -> str:
    """What NVIDIA's tool says of name, driver, clocks and power; why it says nothing, else."""
    fields = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=15,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    return (done.stdout or done.stderr).strip()
