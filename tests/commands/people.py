"""A table of people to train on, and a training of a moment."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

QUICK = ["--set", "training.epochs=2", "--set", "network.hidden=[4]"]
ROWS = 60


def table(
    folder: Path, name: str = "people.csv", change: Callable[[list[list[str]]], Any] | None = None
) -> str:
    """Write a CSV file with numbers, a category, a class and a quantity; return its name."""
    rng = np.random.default_rng(0)
    rows = [["age", "city", "group", "spend"]]
    for i in range(ROWS):
        age = int(rng.integers(18, 80))
        rows.append(
            [str(age), ("Aachen", "Bonn")[i % 2], "old" if age > 50 else "young", f"{3 * age + i % 2:.1f}"]
        )
    if change is not None:
        change(rows)
    with (folder / name).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return name


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}
