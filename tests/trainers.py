"""What the tests of the trainer have in common: data of three classes, a small network, a short training."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpumlp as gm

RNG = np.random.default_rng(4)
X = RNG.normal(size=(45, 4))
LABELS = (X @ RNG.normal(size=(4, 3)) + 0.3 * RNG.normal(size=(45, 3))).argmax(axis=1)
VALUES = X @ RNG.normal(size=4) + 0.1 * RNG.normal(size=45)
NAMES = np.array(["cat", "dog", "eel"])


def classifier(outputs: int = 3, dtype: str = "float64", seed: int = 1) -> gm.Sequential:
    return gm.mlp((4, 8, outputs), activation="tanh", dtype=dtype, seed=seed, device="cpu")


def fitted(network: gm.Sequential, X: Any, y: Any, loss: Any, **settings: Any) -> gm.Trainer:
    optimizer = settings.pop("optimizer", gm.SGD(0.3, momentum=0.5))
    options = {name: settings.pop(name) for name in ("seed", "metrics", "callbacks") if name in settings}
    trainer = gm.Trainer(network, loss=loss, optimizer=optimizer, **options)
    trainer.fit(X, y, **{"epochs": 4, "progress": False, "batch_size": None, **settings})
    return trainer


def weights_of(trainer: gm.Trainer) -> np.ndarray:
    return np.concatenate([v.ravel() for v in trainer.network.state_dict().values()])


def assert_same(a: gm.Trainer, b: gm.Trainer) -> None:
    np.testing.assert_array_equal(weights_of(a), weights_of(b))


def assert_equal_within_rounding(a: gm.Trainer, b: gm.Trainer) -> None:
    np.testing.assert_allclose(weights_of(a), weights_of(b), rtol=1e-10, atol=1e-12)
