"""What a part is given to work with, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import Config
from .recipe import Part, Recipe, merged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..experiment import Experiment, Scored
    from ..history import History
    from .keeping import Keeper


@dataclass
class Table:
    """A table of the page.

    Attributes:
        title: a line.
        columns: names.
        rows: text or numbers, one entry a column; the first names the row.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Drawn:
    """A figure of the page.

    Attributes:
        figure: of matplotlib.
        caption: a sentence.
        alternative: what a reader who does not see it is told; the figure's label, or the caption, unless given.
    """

    figure: Figure
    caption: str
    alternative: str = ""


@dataclass
class Outcome:
    """What came out of a part.

    Attributes:
        values: figures by key: numbers, lists of numbers, or text; claims look here.
        arrays: for parts that need this one; kept beside the values.
        figures: to draw on the page.
        tables: to show on the page.
        notes: sentences for the page.
        seeds: of the trainings.
        it_per_second: epochs a second, of one training (their mean, of several); None where nothing was trained.
        device, executor: in words.
    """

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    figures: list[Drawn] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    it_per_second: float | None = None
    device: str = ""
    executor: str = ""


@dataclass
class Trained:
    """One training that is done.

    Attributes:
        label: among the trainings of its part.
        experiment: config, data, trainer with the trained network.
        history: of the training.
        scores: "train" and, where there are test rows, "test".
    """

    label: str
    experiment: Experiment
    history: History
    scores: dict[str, Scored]

    def predict(self, X: Any) -> np.ndarray:
        """Return values in the target's units, or probabilities, of inputs as the network takes them."""
        return self._model().predict(X)

    def predict_codes(self, X: Any) -> np.ndarray:
        """Return the number of each row's class, of inputs as the network takes them."""
        model = self._model()
        return model.codes(model.predict(X))

    def points(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return {"train": (X, y), "test": (X, y)}: inputs as the network takes them, targets in their units."""
        p, y = self.experiment.prepared, self.experiment.y
        parts = {"train": (p.X_train, y[: p.n_train])}
        return parts | ({"test": (p.X_test, y[p.n_train :])} if len(p.test_rows) else {})

    def _model(self) -> Any:
        from ..model import Model

        p, trainer = self.experiment.prepared, self.experiment.trainer
        return Model(trainer.network, trainer.loss, None, None, p.target_scaler)


class Context:
    """What a part is given: its settings, its recipe, outcomes of the parts it needs, and ways to train.

    Attributes:
        recipe, part: at hand.
        quick: whether training is shortened.
        config: complete; {} where the part has no settings.
        options: of the part's kind.
        needed: id -> outcome of each part that this one needs.
    """

    def __init__(
        self,
        recipe: Recipe,
        part: Part,
        quick: bool = False,
        device: str | None = None,
        data_dir: str | None = None,
        needed: Mapping[str, Outcome] | None = None,
        report: Callable[[float], None] | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.recipe, self.part, self.quick = recipe, part, quick
        self.device, self.data_dir = device, data_dir
        self.config: Config = recipe.config(part, quick, device, data_dir)
        self.options = part.options_for(quick)
        self.needed = dict(needed or {})
        self._report = report or (lambda share: None)
        self._keeper = keeper

    def config_with(self, changes: Mapping[str, Any] | None = None) -> Config:
        """Return the part's config with some settings changed, complete.

        Args:
            changes: nested tables, as in a config.

        Raises:
            ValueError, TypeError: settings that are none.
        """
        raw = merged(self.part.raw_config(self.quick), changes or {})
        return self.recipe.complete(raw, f"{self.recipe.name}.{self.part.id}", self.device, self.data_dir)

    def advance(self, share: float) -> None:
        """Tell the progress bar that this share, 0 to 1, of the part is done."""
        self._report(min(1.0, max(0.0, share)))

    def fit(self, configs: Mapping[str, Config], **settings: Any) -> dict[str, Trained]:
        """Train by each config; as `gpumlp.recipes.training.fit`."""
        from .training import fit

        return fit(configs, self.advance, keeper=self._keeper, **settings)

    def outcome(self, trained: Mapping[str, Trained] | Sequence[Trained] = ()) -> Outcome:
        """Return an outcome with the device, executor, seeds and it/s of trainings filled in, and no values."""
        from ..executors import choose_executor

        runs = list(trained.values() if isinstance(trained, Mapping) else trained)
        outcome = Outcome()
        if runs:
            trainer = runs[0].experiment.trainer
            backend, has_python = trainer.network.backend, trainer.network.has_python
            outcome.device = backend.describe()
            # folds train networks of their own, and some networks are filled by hand
            outcome.executor = trainer.trained_on or choose_executor(backend, has_python)[1]
            outcome.seeds = [run.experiment.config["training"]["seed"] for run in runs]
            outcome.it_per_second = float(np.mean([run.history.it_per_second for run in runs]))
        return outcome
