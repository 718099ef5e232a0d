"""The networks that are trained here, small enough for float64 on the CPU and of many kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

import gpumlp as gm


@dataclass(frozen=True)
class Case:
    """A network with what it is trained on.

    Attributes:
        layers: makes new ones.
        loss: its name.
        optimizer: makes a new one.
        features, classes: of the data; 0 classes are one value.
        rows, batch_rows: trained on.
        smooth: whether it has no kink, at which rounding decides.
        is_small: whether one multiprocessor is enough for it.
    """

    layers: Callable[[], list[Any]]
    loss: str
    optimizer: Callable[[], Any]
    features: int
    classes: int
    rows: int
    batch_rows: int
    smooth: bool = True
    is_small: bool = True

    def network(self, device: Any, dtype: str) -> gm.Sequential:
        """Return a new network, always with the same weights."""
        return gm.Sequential(self.layers(), device=device, dtype=dtype, seed=5)

    def data(self, seed: int = 0, rows: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and their targets, which can be learnt."""
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((rows or self.rows, self.features), dtype=np.float32)
        weights = np.random.default_rng(99).standard_normal((self.features, max(self.classes, 1)))
        scores = X.astype(np.float64) @ weights
        y = scores.argmax(axis=1) if self.classes else np.tanh(scores[:, 0]).astype(np.float32)
        return X, y


def _plain(*sizes: int, activation: Callable[[], Any]) -> Callable[[], list[Any]]:
    """What makes linear layers of these widths, from input to output, with an activation between."""

    def make() -> list[Any]:
        layers: list[Any] = []
        for n_in, n_out in pairwise(sizes):
            layers += [gm.Linear(n_in, n_out), activation()]
        return layers[:-1]

    return make


def _gelu() -> Any:
    return gm.GELU("tanh")


def _everything() -> list[Any]:
    return [
        *(gm.Linear(10, 33), gm.BatchNorm1d(33), gm.Tanh(), gm.Dropout(0.2)),
        *(gm.Linear(33, 24), gm.LayerNorm(24), _gelu(), gm.GaussianNoise(0.05)),
        *(gm.Linear(24, 16), gm.SiLU(), gm.Linear(16, 3)),
    ]


CASES: Mapping[str, Case] = {
    "relu, mse": Case(
        _plain(1, 64, 128, 1, activation=gm.ReLU), "mse", lambda: gm.SGD(0.01), 1, 0, 280, 32, False
    ),
    "tanh, cross-entropy": Case(
        _plain(20, 50, 30, 5, activation=gm.Tanh), "cross_entropy", lambda: gm.Adam(0.01), 20, 5, 200, 64
    ),
    "all kinds of layers": Case(
        _everything,
        "cross_entropy",
        lambda: gm.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3, clip_norm=1.0),
        10,
        3,
        150,
        32,
    ),
    "gelu, full batch": Case(
        _plain(32, 96, 64, 4, activation=_gelu),
        "cross_entropy",
        lambda: gm.AdamW(0.005),
        32,
        4,
        256,
        256,
    ),
    "softmax_mse, rmsprop": Case(
        _plain(8, 40, 40, 40, 5, activation=gm.Tanh), "softmax_mse", lambda: gm.RMSprop(0.002), 8, 5, 100, 25
    ),
    "wide, relu": Case(
        _plain(784, 500, 250, 100, 10, activation=gm.ReLU),
        "cross_entropy",
        lambda: gm.SGD(0.1),
        784,
        10,
        200,
        64,
        smooth=False,
        is_small=False,
    ),
}
