"""What ``gpumlp bench`` prints: a table of the workloads, and from which size a GPU pays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    "workload",
    "device",
    "executor",
    "precision",
    "it/s",
    "(min - max)",
    "it",
    "steps/s",
    "samples/s",
    "CPU s/s",
    "GFLOP/s",
    "of peak",
    "loss",
)
TEXTS = {0, 1, 2, 3, 6}


def number(value: float) -> str:
    """Three digits or all before the point: "0.983", "41.7", "52,300"."""
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def table(result: Mapping[str, Any]) -> str:
    """Return the results as a table, with what it ran on and the data below."""
    results = result["results"]
    several = any(r["speed_up"] is not None for r in results)
    columns = (*COLUMNS, *(["speed-up"] if several else []))
    rows = [_row(r) + ((_ratio(r["speed_up"]),) if several else ()) for r in results]
    if any(r["device"] != "cpu" for r in results):
        columns = tuple("TFLOP/s" if c == "GFLOP/s" else c for c in columns)
        place = columns.index("TFLOP/s")
        for i, r in enumerate(results):
            rows[i] = (*rows[i][:place], number(r["gflops"] / 1e3), *rows[i][place + 1 :])
    return "\n".join([*aligned([columns, *rows]), *_sizes(result), *_foot(result)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of cells under one another, a rule under the first; `TEXTS` are columns that stand to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in TEXTS else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return lines


def _row(r: Mapping[str, Any]) -> tuple[str, ...]:
    its = r["it_per_second"]
    return (
        r["workload"],
        r["device"],
        r["executor"],
        r["precision"],
        number(its["median"]),
        f"({number(its['min'])} - {number(its['max'])})",
        r["it"],
        number(r["steps_per_second"]["median"]),
        number(r["samples_per_second"]["median"]),
        f"{r['cpu_seconds_per_second']:.2f}",
        number(r["gflops"]),
        f"{100 * r['share_of_peak']:.1f} %",
        f"{r['losses']['end']:.4g}",
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{number(value)} x"


def _sizes(result: Mapping[str, Any]) -> list[str]:
    """Say for each workload what pays, and from which width on at each batch."""
    lines = []
    if best := result["fastest"]:
        named = dict.fromkeys(best.values())
        by = (f"{place}: {', '.join(w for w in best if best[w] == place)}" for place in named)
        lines.append(f"what pays: {'; '.join(by)}")
    sizes = result["sizes"]
    if sizes is None:
        return lines
    pairs = dict.fromkeys((p["place"], p["than"]) for p in sizes["pays"])
    for place, than in pairs:
        found = [p for p in sizes["pays"] if (p["place"], p["than"]) == (place, than)]
        by = (
            f"batch {p['batch']}: "
            + ("nowhere measured" if p["from_width"] is None else f"width {p['from_width']}")
            for p in found
        )
        lines.append(f"{place} is faster than {than} on {sizes['network']} from: {'; '.join(by)}")
    if sizes["left_out"]:
        total = len(sizes["left_out"]) + len(sizes["points"])
        lines.append(
            f"left out, for the time they would take: {len(sizes['left_out'])} of {total} points of width and batch"
        )
    return lines


def _foot(result: Mapping[str, Any]) -> list[str]:
    results, cpus = result["results"], result["machine"]["cpus"]
    sources = dict.fromkeys(r["data"] for r in results)
    by_source = (
        f"{', '.join(dict.fromkeys(r['workload'] for r in results if r['data'] == source))}: {source}"
        for source in sources
    )
    lines = [
        f"peak: {number(peak['gflops'])} GFLOP/s, the best product of {' x '.join(map(str, peak['product']))} in "
        f"{peak['precision']} on {peak['device']}"
        for peak in result["peaks"]
    ]
    lines[-1] += "; rates count products only"
    return [
        *lines,
        f"data: {'; '.join(by_source)}",
        f"machine: {result['machine']['cpu']}, {cpus['usable']} CPUs; "
        + "".join(f"{gpu['name']}; " for gpu in result["machine"]["gpus"])
        + f"gpumlp {result['versions']['gpumlp']}"
        + (f" ({result['commit']})" if result["commit"] else ""),
    ]
