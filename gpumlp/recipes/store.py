"""Outcomes of parts on the disk: each is written at once when it is there, and read again by later runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import aside, write_json
from .context import Drawn, Outcome, Table


@dataclass
class Picture:
    """A drawn figure.

    Attributes:
        svg: an ``<svg>`` element with its alternative text inside.
        alternative, caption: text.
        wide: whether it needs the whole width of a page.
    """

    svg: str
    alternative: str
    caption: str
    wide: bool = False


@dataclass
class Record:
    """A part that was run.

    Attributes:
        id: of the part.
        key: of the settings it was run with; `Recipe.key`.
        seconds, cpu_seconds: that it took, all of it.
        outcome: without its figures.
        pictures: its figures.
        error: why it could not be run, or "".
    """

    id: str
    key: str
    seconds: float
    cpu_seconds: float
    outcome: Outcome = field(default_factory=Outcome)
    pictures: list[Picture] = field(default_factory=list)
    error: str = ""

    @property
    def cpu_load(self) -> float:
        """CPU seconds over seconds: 1 is one CPU at work all the time."""
        return self.cpu_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def values(self) -> dict[str, Any]:
        """Return what claims can look at: the outcome's values, seconds, cpu_seconds, cpu_load, it_per_second."""
        found: dict[str, Any] = dict(self.outcome.values)
        if self.outcome.it_per_second is not None:
            found.setdefault("it_per_second", self.outcome.it_per_second)
        for name in ("seconds", "cpu_seconds", "cpu_load"):
            found.setdefault(name, getattr(self, name))
        return found


class Store:
    """The records of a recipe in a folder.

    Args:
        folder: that holds ``parts/PART.json`` and ``parts/PART.npz``; made when the first part is written.
    """

    def __init__(self, folder: Path) -> None:
        self.parts = folder / "parts"

    def write(self, record: Record) -> None:
        """Write a record; the JSON file, by which it is found, goes first and comes last."""
        self.parts.mkdir(parents=True, exist_ok=True)
        (self.parts / f"{record.id}.json").unlink(missing_ok=True)
        outcome = record.outcome
        arrays = self.parts / f"{record.id}.npz"
        if outcome.arrays:
            with aside(arrays) as temporary, temporary.open("xb") as stream:
                np.savez_compressed(stream, **outcome.arrays)  # type: ignore[arg-type]
        else:
            arrays.unlink(missing_ok=True)
        said = {
            "values": outcome.values,
            "tables": [asdict(table) for table in outcome.tables],
            "notes": outcome.notes,
            "seeds": outcome.seeds,
            "it_per_second": outcome.it_per_second,
            "device": outcome.device,
            "executor": outcome.executor,
            "arrays": bool(outcome.arrays),
        }
        write_json(
            self.parts / f"{record.id}.json",
            {
                "key": record.key,
                "seconds": record.seconds,
                "cpu_seconds": record.cpu_seconds,
                "outcome": said,
                "pictures": [asdict(picture) for picture in record.pictures],
            },
        )

    def read(self, id: str, key: str) -> Record | None:
        """Return the record of a part, or None where there is none with this key."""
        path = self.parts / f"{id}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["key"] != key:
                return None
            said = found["outcome"]
            arrays = self._arrays(id) if said["arrays"] else {}
            outcome = Outcome(
                {name: _numbers(value) for name, value in said["values"].items()},
                arrays,
                [],
                [Table(**table) for table in said["tables"]],
                said["notes"],
                said["seeds"],
                said["it_per_second"],
                said["device"],
                said["executor"],
            )
            pictures = [Picture(**picture) for picture in found["pictures"]]
            return Record(id, key, found["seconds"], found["cpu_seconds"], outcome, pictures)
        except (OSError, EOFError, zipfile.BadZipFile, KeyError, TypeError, ValueError):
            return None  # none, or not one of ours, or damaged: the part is run anew

    def _arrays(self, id: str) -> dict[str, np.ndarray]:
        # opened here: NumPy leaves a file that is damaged open
        with open(self.parts / f"{id}.npz", "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def pictures_of(id: str, figures: Sequence[Drawn]) -> list[Picture]:
    """Return figures as SVG, with ids of their own."""
    from ..report import figure_svg

    pictures = []
    for i, drawn in enumerate(figures, start=1):
        alternative = drawn.alternative or str(drawn.figure.get_label()) or drawn.caption
        svg = figure_svg(drawn.figure, f"{id}-{i}", alternative)
        pictures.append(Picture(svg, alternative, drawn.caption, drawn.figure.get_figwidth() > 6.5))
    return pictures


def _numbers(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if value is None:
        return float("nan")
    return [float("nan") if item is None else item for item in value] if isinstance(value, list) else value
