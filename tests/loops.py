"""What the tests of the loop have in common: data, a trainer of a small network, a look at its validations."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpumlp as gm
from tests.trainers import weights_of

RNG = np.random.default_rng(4)
X = RNG.normal(size=(30, 4))
LABELS = (X @ RNG.normal(size=(4, 3))).argmax(axis=1)
VALUES = X @ RNG.normal(size=4)


def trainer_of(
    callbacks: Any = None, optimizer: Any = None, loss: str = "cross_entropy", **settings: Any
) -> gm.Trainer:
    network = gm.mlp((4, 6, 3 if loss == "cross_entropy" else 1), dtype="float64", seed=2, device="cpu")
    optimizer = gm.SGD(0.1, momentum=0.9) if optimizer is None else optimizer
    return gm.Trainer(network, loss=loss, optimizer=optimizer, callbacks=callbacks, **settings)


class Steps(gm.Callback):
    """The steps at which a training was validated, with the weights of that moment."""

    every_epoch = False

    def __init__(self) -> None:
        self.at: list[int] = []
        self.weights: list[np.ndarray] = []

    def on_validation(self, trainer, step, scores):
        self.at.append(step)
        self.weights.append(weights_of(trainer))
