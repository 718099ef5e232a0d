"""What this processor can do, asked without Numba where the system tells it."""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path

_TOLD = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
"""Lines of /proc/cpuinfo on x86-64 that tell one kind of processor from another."""


@functools.cache
def _told() -> dict[str, str]:
    """What Linux tells of the first processor; empty elsewhere, and where it tells no flags."""
    if sys.platform != "linux":
        return {}
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in first.splitlines())
    found = {name.strip(): value.strip() for name, value in pairs}
    return {name: found.get(name, "") for name in _TOLD} if "flags" in found else {}


@functools.cache
def features() -> frozenset[str]:
    """Names of the instruction sets that it has, as Linux and LLVM name them ("avx2", "avx512f", ...)."""
    if told := _told():
        return frozenset(told["flags"].split())
    from llvmlite import binding

    try:
        return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)
    except RuntimeError:  # LLVM does not know this processor
        return frozenset()


@functools.cache
def identity() -> str:
    """A text that differs between processors that machine code could differ for."""
    told = "\n".join(_told().values()) or "\n".join([platform.processor(), *sorted(features())])
    return f"{sys.platform} {platform.machine()}\n{told}"


@functools.cache
def vector_bytes() -> int:
    """Bytes of its widest vectors."""
    if "avx512f" in features():
        return 64
    return 32 if "avx2" in features() else 16
