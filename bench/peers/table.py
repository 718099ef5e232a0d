"""What was measured, as text for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpumlp.commands.bench_text import number

COLUMNS = (
    "workload",
    "peer",
    "threads",
    "it/s",
    "(min - max)",
    "it",
    "samples/s",
    "CPU s/s",
    "of peak",
    "x float64 loop",
    "check loss",
    "end loss",
    "(epochs)",
)
TEXTS = {0, 1, 2, 5}

RATIOS = ("workload", "gpumlp it/s", "best peer", "its it/s", "x best peer", "x float64 loop")
RATIO_TEXTS = {0, 2}

Layout = Callable[[Sequence[str], Sequence[Sequence[str]], set[int]], list[str]]


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: set[int]) -> list[str]:
    """Return the lines of a table for a terminal; columns in `texts` stand to the left."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (columns, *rows)
    ]
    return [lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def piped(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: set[int]) -> list[str]:
    """Return the lines of a table in Markdown."""
    rule = ["---" if i in texts else "---:" for i in range(len(columns))]
    return ["| " + " | ".join(row) + " |" for row in (columns, rule, *rows)]


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for entry in result["peers"]:
        its, end = entry["it_per_second"], entry["end"]
        threads = "auto" if isinstance(entry["threads"], str) else str(entry["threads"])
        star = "" if entry["loss_function"] == result["loss"] else " *"
        rows.append(
            (
                result["workload"],
                entry["peer"],
                threads,
                number(its["median"]),
                f"({number(its['min'])} - {number(its['max'])})",
                result["it"],
                number(entry["samples_per_second"]["median"]),
                f"{entry['cpu_seconds_per_second']:.2f}",
                f"{100 * entry['share_of_peak']:.1f} %",
                _ratio(entry["over_float64_loop"]),
                f"{entry['check']['loss']:.5g}{star}",
                f"{end['loss']:.4g}{star}" if end else "-",
                f"({end['epochs']})" if end else "-",
            )
        )
    return rows


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ratio_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for result in results:
        rates = {entry["peer"]: entry["it_per_second"]["median"] for entry in result["peers"]}
        if "gpumlp" in rates and result["best_peer"]:
            rows.append(
                (
                    result["workload"],
                    number(rates["gpumlp"]),
                    result["best_peer"],
                    number(rates[result["best_peer"]]),
                    _ratio(result["over_best_peer"]),
                    _ratio(result["over_float64_loop"]),
                )
            )
    return rows


def _foot(result: Mapping[str, Any]) -> list[str]:
    """Return what belongs under the tables: how it was measured, and what is missing."""
    settings, peak, results = result["settings"], result["peak"], result["results"]
    lines = [
        f"median of {settings['rounds']} rounds of about {settings['seconds']:g} s in turn, of a sweep three; "
        "float32 but for "
        f"numpy-float64; {settings['cpus']} CPUs each; threads: the faster of {settings['cpus']} and 1 where steps "
        "are small, auto is gpumlp's own choice",
        f"check loss: after {settings['check_epochs']} epochs without shuffling on at most {settings['check_rows']} "
        f"rows, within {settings['loss_tolerance']:g} of a float64 reference, weights too; end loss: over all rows, "
        "after the epochs beside it",
        f"peak: {number(peak['gflops'])} GFLOP/s, NumPy's best product of "
        f"{' x '.join(map(str, peak['product']))} in {peak['dtype']} in this run",
    ]
    for r in results:
        for entry in r["peers"]:
            if entry["loss_function"] != r["loss"]:
                lines.append(
                    f"* {r['workload']}, {entry['peer']}: has no {r['loss']}, trains {entry['loss_function']}"
                )
    lines += [f"{name} left out: {reason}" for name, reason in result["absent"].items()]
    lines += [
        f"{r['workload']}: {name} left out: {reason}"
        for r in results
        for name, reason in r["left_out"].items()
    ]
    sources = dict.fromkeys(r["data"] for r in results)
    of = {s: ", ".join(r["workload"] for r in results if r["data"] == s) for s in sources}
    named = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return [
        *lines,
        f"data: {'; '.join(f'{names}: {source}' for source, names in of.items())}",
        f"machine: {result['machine']['cpu']}, {result['machine']['cpus']['usable']} CPUs; {named}"
        + (f"; commit {result['commit']}" if result["commit"] else ""),
    ]


def text(result: Mapping[str, Any]) -> str:
    """Return the tables and their foot for a terminal."""
    return "\n".join(_lines(result, aligned))


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables and their foot as Markdown."""
    lines = _lines(result, piped)
    return "\n".join(
        line if not line or line.startswith("|") else f"- {line}".replace("- * ", "- \\* ") for line in lines
    )


def _lines(result: Mapping[str, Any], layout: Layout) -> list[str]:
    rows = [row for r in result["results"] for row in _rows(r)]
    ratios = _ratio_rows(result["results"])
    lines = [*layout(COLUMNS, rows, TEXTS), ""]
    if ratios:
        lines += [*layout(RATIOS, ratios, RATIO_TEXTS), ""]
    return lines + _foot(result)
