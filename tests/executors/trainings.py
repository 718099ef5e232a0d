"""What tests of executors have in common: small data in an uneven number of batches, and trainings step by step."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gpumlp as gm

ROWS, BATCH, FEATURES, WIDTH, OUTPUTS = 43, 16, 6, 40, 3  # two full batches and one of 11

RNG = np.random.default_rng(4)
X, REGRESSION, LABELS = (
    RNG.normal(size=(ROWS, FEATURES)),
    RNG.normal(size=(ROWS, OUTPUTS)),
    RNG.integers(0, OUTPUTS, ROWS),
)


def build(
    layers: Callable[[], Sequence[gm.Layer]], dtype: str, freeze: Sequence[int] = (), device: str = "cpu"
) -> gm.Sequential:
    network = gm.Sequential(*layers(), dtype=dtype, seed=3, device=device)
    for i in freeze:
        network.layers[i].trainable = False
    return network


def step_of(
    training_step: Any,
    executor: Any,
    layers: Callable[[], Sequence[gm.Layer]],
    loss: Any,
    y: np.ndarray,
    dtype: str,
    freeze: Sequence[int] = (),
    optimizer: Callable[[], Any] | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Any:
    """A training on an executor, the rate falling from step to step."""
    step = training_step(
        build(layers, dtype, freeze, device),
        loss() if callable(loss) else loss,
        settings.get("x", X),
        y,
        settings.get("weight"),
        optimizer=optimizer() if optimizer else gm.SGD(0.1),
        batch_rows=settings.get("batch_rows", BATCH),
        shuffle=settings.get("shuffle", True),
        executor=executor,
    )
    step.rates[...] = np.linspace(0.05, 0.01, step.rates.size)
    return step
