"""``gpumlp info``: versions, processor, BLAS and threads, GPUs, and what "auto" comes to."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..backend import get_backend
from ..machine import blas_libraries, commit, executor_name, gpus, in_words, machine, versions


def add_parser(subparsers: Any) -> None:
    """Add the command to ``parser.add_subparsers()``."""
    parser = subparsers.add_parser(
        "info",
        help="versions, devices, BLAS and threads of this machine",
        description="Show what gpumlp runs on here. Nothing of it needs a GPU.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what is known of this machine; return 0."""
    found = collect()
    print(json.dumps(found, indent=2) if args.json else describe(found))
    return 0


def collect() -> dict[str, Any]:
    """Return versions, machine, BLAS libraries, GPUs and the choice of "auto", as `--json` prints them."""
    cards, why_no_gpu = gpus()
    backend = get_backend("auto")
    return {
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "blas": blas_libraries(),
        "gpus": cards,
        "gpu_unusable_because": why_no_gpu,
        "auto": {
            "device": backend.name,
            "description": backend.describe(),
            "executor": executor_name(backend),
        },
    }


def describe(found: dict[str, Any]) -> str:
    """Return what `collect` found as lines of text."""
    lines = [_line(name, version or "not installed") for name, version in found["versions"].items()]
    if found["commit"]:
        lines[0] += f" ({found['commit']})"
    host = found["machine"]
    lines += [
        "",
        _line("CPU", host["cpu"]),
        _line("CPUs", describe_cpus(host["cpus"])),
        _line("memory", in_words(host["memory_bytes"])),
        _line("system", f"{host['system']}, {host['architecture']}"),
    ]
    lines += [_line("BLAS", describe_blas(library)) for library in found["blas"]] or [
        _line("BLAS", "unknown")
    ]
    lines += [_line(name, value) for name, value in host["thread_variables"].items()]
    lines.append("")
    for i, card in enumerate(found["gpus"]):
        lines.append(_line(f"GPU {i}", f"{card['name']}, {in_words(card['memory_bytes'])}"))
    if found["gpu_unusable_because"]:
        lines.append(_line("GPU", f"not usable: {found['gpu_unusable_because']}"))
    auto = found["auto"]
    lines.append(_line('device "auto"', f"{auto['description']}, executor {auto['executor']}"))
    return "\n".join(lines)


def describe_cpus(counts: dict[str, Any]) -> str:
    """Return the counts of `cpu_counts` in words, for example "2 usable of 8 (affinity 8, quota 2)"."""
    quota = "none" if counts["quota"] is None else f"{counts['quota']:g}"
    return f"{counts['usable']} usable of {counts['present']} (affinity {counts['affinity']}, quota {quota})"


def describe_blas(library: dict[str, Any]) -> str:
    """Return a BLAS library in words, for example "openblas 0.3.31, 2 threads (libscipy_openblas.so)"."""
    threads = library["threads"]
    text = " ".join(filter(None, (library["name"], library["version"]))) or "unknown"
    text += ", threads unknown (needs threadpoolctl)" if threads is None else f", {threads} threads"
    return text + (f" ({library['library']})" if library["library"] else "")


def _line(name: str, value: str) -> str:
    return f"{name:<21}{value}"
