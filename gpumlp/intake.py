"""What a user gives to train, to validate and to score: checked, and as the kernels take it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import as_matrix, as_rows, as_weights, check_lengths, check_width, on_host
from .losses import LOSSES, Loss
from .model import class_names, encode_target, only_class
from .network import Sequential
from .rows import Data
from .settings import alike
from .splits import split_rows

Classes = list[str] | None
"""Labels of the classes where they are text."""


class Checked:
    """Data that many networks train on, checked and encoded for the first of those that take them alike."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Hashable, tuple[Data, Classes]] = {}
        self._given: list[Any] = []  # kept, so that nothing else gets their ids

    def get(
        self, takes: Hashable, given: tuple[Any, ...], check: Callable[[], tuple[Data, Classes]]
    ) -> tuple[Data, Classes]:
        """Return what was found for a network; what nobody has found yet is checked.

        Args:
            takes: equal for networks that take data alike.
            given: the data; the same objects for all.
            check: finds it.
        """
        key = (takes, *map(id, given))
        with self._lock:  # those that want the same at the same time wait for one of them
            if key not in self._found:
                self._found[key] = check()
                self._given.append(given)
            return self._found[key]


@dataclass(frozen=True)
class Intake:
    """Takes data for a network and a loss.

    Attributes:
        network: that they must fit.
        loss: likewise.
        classes: labels of the classes, where they are known.
        checked: of others that train at the same time; None for none.
    """

    network: Sequential
    loss: Loss
    classes: Classes
    checked: Checked | None = None

    def training(self, X: Any, y: Any, sample_weight: Any, rows: Any) -> tuple[Data, Classes]:
        """Return the rows to train on, and the labels of their classes.

        Raises:
            ValueError: data that do not fit, or one class only.
        """
        data, classes = self._once(X, y, sample_weight)
        if rows is not None:
            data = data.taking(as_rows(rows, len(data.x)))
        if self.loss.is_classification:
            code = only_class(data.target if data.rows is None else data.target[data.rows])
            if code is not None:
                name = classes[code] if classes else code
                raise ValueError(f"y has one class only, {name!r}; a classifier needs at least two")
        return data, classes

    def _once(self, X: Any, y: Any, sample_weight: Any) -> tuple[Data, Classes]:
        """All rows, checked unless they were for a network like this one."""
        network, loss = self.network, self.loss
        settings = alike([loss]) if self.checked and type(loss) in LOSSES.values() else None
        if self.checked is None or settings is None:
            return self._all(X, y, sample_weight)
        known = None if self.classes is None else tuple(self.classes)
        widths = (network.in_features, network.out_features)
        takes = (network.backend.name, network.dtype, widths, settings, known)
        return self.checked.get(takes, (X, y, sample_weight), lambda: self._all(X, y, sample_weight))

    def _all(self, X: Any, y: Any, sample_weight: Any) -> tuple[Data, Classes]:
        y = on_host(y, "y")
        x = self._matrix(X, y, sample_weight)
        classes = class_names(y, self.classes) if self.loss.is_classification else self.classes
        return self._data(x, y, sample_weight, classes), classes

    def scored(self, X: Any, y: Any, sample_weight: Any, rows: Any) -> Data:
        """Return rows to score, of the known classes.

        Raises:
            ValueError: data that do not fit, or labels of other classes.
        """
        y = on_host(y, "y")
        x = self._matrix(X, y, sample_weight)
        data = self._data(x, y, sample_weight, self.classes)
        return data if rows is None else data.taking(as_rows(rows, len(x)))

    def validation(
        self,
        data: Data,
        classes: Classes,
        given: tuple[Any, ...] | None,
        split: float,
        held_rows: Any,
        seed: int,
    ) -> tuple[Data, Data | None]:
        """Return the rows to train on, and those to validate on, or None.

        Args:
            data: to train on, as `training` returns them.
            classes: likewise.
            given, split, held_rows: validation_data, validation_split and held_rows of `Trainer.fit`.
            seed: of the split.

        Raises:
            ValueError: more than one of the three, or what does not fit.
        """
        if isinstance(split, bool) or not isinstance(split, int | float | np.number) or not 0 <= split < 1:
            told = repr(split) if isinstance(split, str | int | float) else f"a {type(split).__name__}"
            raise ValueError(
                f"validation_split is {told}; expected a share from 0 up to, not including, 1 (rows of their own go to "
                "validation_data)"
            )
        if (given is not None) + bool(split) + (held_rows is not None) > 1:
            raise ValueError("give one of validation_data, validation_split and held_rows")
        if held_rows is not None:
            return data, data.taking(as_rows(held_rows, len(data.x)))
        if given is not None:
            if not isinstance(given, tuple | list) or len(given) not in (2, 3):
                raise ValueError("validation_data must be (X, y) or (X, y, sample_weight)")
            y = on_host(given[1], "y of validation_data")
            x = self._matrix(given[0], y, name="X of validation_data")
            return data, self._data(x, y, given[2] if len(given) == 3 else None, classes)
        if not split:
            return data, None
        rows = np.arange(len(data.x)) if data.rows is None else data.rows
        labels = data.target[rows] if data.target.ndim == 1 else None
        train, held = split_rows(len(rows), split, labels, seed)
        return data.taking(rows[train]), data.taking(rows[held])

    def _matrix(self, X: Any, y: Any, sample_weight: Any = None, name: str = "X") -> np.ndarray:
        """Check features, which stay on a GPU where they and the network are there, and the numbers of rows."""
        x = as_matrix(X, self.network.dtype, name, self.network.backend)
        check_width(x, self.network.in_features)
        check_lengths(len(x), y=y, sample_weight=sample_weight)
        return x

    def _data(self, x: np.ndarray, y: Any, sample_weight: Any, classes: Classes) -> Data:
        """Check targets and weights of rows that are checked already."""
        outputs = self.network.out_features
        target = encode_target(y, classes, self.loss, outputs, self.network.dtype)
        weight = self.loss.row_weights(target, outputs, as_weights(sample_weight, len(x)), classes)
        return Data(x, target, None if weight is None else weight.astype(self.network.dtype))
