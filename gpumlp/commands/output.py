"""What commands print: notices on stderr, tables of scores on stdout."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def note(message: str) -> None:
    """Print one line to stderr, marked as gpumlp's."""
    print(f"gpumlp: {' '.join(message.split())}", file=sys.stderr)


def score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table: a row for each metric, a column for each part."""
    names = list(dict.fromkeys(name for part in scores.values() for name in part))
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{part:>12}" for part in scores)]
    for name in names:
        cells = "".join(f"{part[name]:>12.6g}" if name in part else " " * 12 for part in scores.values())
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(line.rstrip() for line in lines)
