"""What was found, as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpumlp.commands.bench_text import number


def text(result: Mapping[str, Any]) -> str:
    """Return what it ran on, a line for each section, what failed, the targets and the peers."""
    lines = [*_head(result), "", *_sections(result)]
    for part in (_errors(result), _speeds(result), _peers(result), _faults(result)):
        if part:
            lines += ["", *part]
    summary = result["summary"]
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(summary["counts"].items()))
    return "\n".join([*lines, "", f"{counts or 'nothing was checked'}; {result['seconds']:g} s in all"])


def _head(result: Mapping[str, Any]) -> list[str]:
    gpu = result["gpu"] or {}
    named = {**result["versions"], **result.get("libraries", {})}
    return [
        f"GPU: {gpu.get('name') or gpu.get('error')}; driver {gpu.get('driver', '?')}, CUDA {gpu.get('cuda', '?')}, "
        f"CuPy {gpu.get('cupy', '?')}",
        f"commit {result['commit']}; " + ", ".join(f"{k} {v}" for k, v in named.items() if v),
    ]


def _sections(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, entry in result["sections"].items():
        counts: dict[str, int] = {}
        for record in entry["checks"]:
            counts[record["status"]] = counts.get(record["status"], 0) + 1
        told = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        left = f"; {len(entry['out_of_time'])} not begun" if "out_of_time" in entry else ""
        note = entry.get("failure") or entry.get("note") or ""
        lines.append(
            f"{name:<10} {entry['status']:<10} {told}{left}{' ' if told else ''}"
            + (f"({entry['seconds']:g} s)" if "seconds" in entry else "")
            + (f" {note}" if note else "")
        )
    return lines


def _errors(result: Mapping[str, Any]) -> list[str]:
    """The largest relative errors of the products."""
    records = result["sections"].get("products", {}).get("checks", [])
    found = [r for r in records if "error" in r.get("values", {}) and "tolerance" in r["values"]]
    if not found:
        return []
    lines = ["largest relative error of a product"]
    for precision in ("float32", "tf32", "bf16", "float64"):
        errors = [r["values"] for r in found if r["check"].endswith(precision)]
        if errors:
            worst = max(errors, key=lambda v: v["error"])
            lines.append(f"  {precision:<8} {worst['error']:.2g}, allowed {worst['tolerance']:g}")
    return lines


def _speeds(result: Mapping[str, Any]) -> list[str]:
    records = [
        record
        for name in ("targets", "changes")
        for record in result["sections"].get(name, {}).get("checks", [])
    ]
    measured = [r for r in records if r["status"] == "measured"]
    if not measured:
        return []
    lines = ["steps a second (of a full batch an epoch is a step; of the sweep those of all networks)"]
    for record in measured:
        v = record["values"]
        if "steps/s" not in v:
            lines.append(f"  {record['check']:<18} {number(v['TFLOP/s'])} TFLOP/s")
            continue
        parts = [f"  {record['check']:<18} {number(v['steps/s']):>12}  {v['executor']:<9}"]
        if "target" in v:
            parts.append(f"target {number(v['target'])}, {100 * v['of target']:.0f} % of it")
        if "share of limit" in v:
            parts.append(f"{100 * v['share of limit']:.1f} % of the GPU's best product")
        lines.append("  ".join(parts))
    return lines


def _peers(result: Mapping[str, Any]) -> list[str]:
    records = result["sections"].get("peers", {}).get("checks", [])
    measured = [r for r in records if r["status"] == "measured" and "peers" in r.get("values", {})]
    if not measured:
        return []
    lines = ["beside other libraries, steps a second"]
    for record in measured:
        peers = record["values"]["peers"]
        lines.append(f"  {record['check']}")
        for entry in sorted(peers, key=lambda e: -e["steps_per_second"]["median"]):
            rate = entry["steps_per_second"]["median"]
            lines.append(f"    {entry['peer']:<14} {number(rate):>12}  loss {entry['end_loss']:.4g}")
        lines += [f"    {name}: {reason}" for name, reason in record["values"]["left_out"].items()]
        if (ratio := record["values"]["over_best_peer"]) is not None:
            lines.append(f"    gpumlp is {number(ratio)} times as fast as the best other")
    return lines


def _faults(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, entry in result["sections"].items():
        for record in entry["checks"]:
            if record["status"] in ("failed", "error"):
                lines.append(f"{record['status'].upper()} {name}: {record['check']}: {record['message']}")
                last = (record.get("traceback") or "").strip().splitlines()[-4:]
                lines += [f"    {line.strip()}" for line in last]
    return lines
