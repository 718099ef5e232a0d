"""The rows that a training or a score is of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Data:
    """Rows that take part, checked and as the kernels take them.

    Attributes:
        x: (n, in_features), on the host, or on the GPU where the user has it there.
        target: (n, outputs), or labels (n,).
        weight: (n,), or None for equal weights.
        rows: which of them, int64; None for all.
    """

    x: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    rows: np.ndarray | None = None

    @property
    def used(self) -> int:
        """How many rows take part."""
        return len(self.x) if self.rows is None else len(self.rows)

    def taking(self, rows: np.ndarray) -> Data:
        """The same arrays, other rows of them."""
        return Data(self.x, self.target, self.weight, rows)

    def without_repeats(self) -> Data:
        """The same rows, as arrays of their own where some repeat and there are as many as the arrays have.

        A full batch of so many rows is read where they lie, each of them once.
        """
        rows = self.rows
        if rows is None or len(rows) != len(self.x) or len(np.unique(rows)) == len(rows):
            return self
        return Data(self.x[rows], self.target[rows], None if self.weight is None else self.weight[rows])
