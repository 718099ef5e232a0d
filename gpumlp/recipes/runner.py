"""Runs the parts of a recipe that are not done yet, keeps each outcome, and writes the results and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..failure import NonFiniteLossError
from ..files import write_json, write_whole
from ..mistakes import is_meant
from .context import Context
from .keeping import Keeper
from .kinds import run_part
from .recipe import Part, Recipe
from .results import Results
from .store import Record, Store, pictures_of

Advance = Callable[[float], None]


class Runner:
    """A recipe, and the folder of its results.

    Args:
        recipe: to run.
        out: folder of all reports; this one's is ``out/NAME``, of quick runs ``out/quick/NAME``.
        quick: shorten training.
        device: "auto", "cpu", "gpu" or "gpu:N"; None for what each part's settings say.
        data_dir: where the files of MNIST are.

    Raises:
        ValueError: a device that is not there.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: str | Path = "reproduced",
        quick: bool = False,
        device: str | None = None,
        data_dir: str | None = None,
    ) -> None:
        from ..backend import get_backend

        self.recipe, self.quick, self.data_dir = recipe, quick, data_dir
        self.device = None if device is None else get_backend(device).name
        self._device_used = self.device or get_backend("auto").name
        self.out, self.root = Path(out), root_folder(out, quick)
        self.folder = self.root / recipe.name
        self.store = Store(self.folder)
        self.records: dict[str, Record] = {}
        for part in recipe.parts:
            record = self.store.read(part.id, self._key(part))
            if record is not None:
                self.records[part.id] = record

    def _key(self, part: Part) -> str:
        return self.recipe.key(part, self.quick, self._device_used)

    def _keeper(self, id: str) -> Keeper:
        return Keeper(self.folder / "unfinished" / id)

    def pending(self, only: Sequence[str] = ()) -> list[Part]:
        """Return the parts that are to be run, in order: those of `only`, and what they need, or all.

        Raises:
            ValueError: no such part.
        """
        wanted = {part.id for part in self.recipe.parts} if not only else set()
        queue = [self.recipe.part(id) for id in only]
        while queue:
            part = queue.pop()
            wanted.add(part.id)
            queue += [self.recipe.part(id) for id in part.needs]
        return [part for part in self.recipe.parts if part.id in wanted and part.id not in self.records]

    def forget(self, only: Sequence[str] = ()) -> None:
        """Let parts be run anew: those of `only`, or all."""
        for id in only or [part.id for part in self.recipe.parts]:
            self.recipe.part(id)
            self.records.pop(id, None)
            self._keeper(id).clear()

    def run(self, part: Part, advance: Advance = lambda share: None) -> Record:
        """Run a part and keep what came out; a part that could not be run has an error, and is not kept.

        Args:
            part: of the recipe.
            advance: is told the share of it that is done.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        key = self._key(part)
        broken = [id for id in part.needs if id not in self.records or self.records[id].error]
        keeper = self._keeper(part.id)
        try:
            if broken:
                raise ValueError(f"it needs {broken[0]}, which was not run")
            needed = {
                id: replace(self.records[id].outcome, values=self.records[id].values) for id in part.needs
            }
            context = Context(
                self.recipe, part, self.quick, self.device, self.data_dir, needed, advance, keeper
            )
            outcome = run_part(context)
        except (ValueError, TypeError, ImportError, OSError, NonFiniteLossError) as error:
            if isinstance(error, ValueError | TypeError) and not is_meant(error, self.recipe.packages):
                raise
            record = Record(part.id, key, 0.0, 0.0, error=str(error))
            self.records[part.id] = record
            return record
        seconds, cpu_seconds = keeper.spent()
        record = Record(part.id, key, seconds, cpu_seconds, outcome, pictures_of(part.id, outcome.figures))
        self.store.write(record)
        keeper.clear()
        self.records[part.id] = record
        return record

    def results(self) -> Results:
        """Return what the parts that are there came to."""
        return Results.of(self.recipe, self.quick, self.records)

    def write(self) -> Results:
        """Write ``results.json`` and ``report.html`` from the parts that are there, and return the results."""
        from .page import recipe_page

        results = self.results()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "results.json", results.to_dict())
        write_whole(self.folder / "report.html", recipe_page(results))
        return results


def root_folder(out: str | Path, quick: bool) -> Path:
    """Return the folder that holds a folder for each report and ``index.html``."""
    return Path(out) / "quick" if quick else Path(out)
