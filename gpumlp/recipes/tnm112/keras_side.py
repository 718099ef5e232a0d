"""What Keras does in report tnm112: train a model, measure it, and keep both for readers without Keras.

With Keras and a backend of it installed, ``python -m gpumlp.recipes.tnm112.keras_side`` writes ``keras.weights.h5`` and
``keras.json`` anew; it takes some seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS, MEASURED = "keras.weights.h5", "keras.json"
PART = "keras-weights"
SEED = 0
EPOCHS = 80


def load_keras() -> Any:
    """Return the module of Keras, or None where it or its backend is not installed."""
    try:
        import keras
    except ImportError:
        return None
    return keras


def train(keras: Any, widths: list[int], data: dict[str, tuple[Any, Any]], epochs: int) -> tuple[Any, Any]:
    """Train a model with linear, sigmoid, ReLU and softmax layers on squared errors.

    Args:
        keras: the module.
        widths: of the three hidden layers.
        data: "train" and "test" -> (X (n, 2), codes of classes (n,)).
        epochs: to train.

    Returns:
        The model, and what Keras measured: {"train": {"loss", "accuracy"}, "test": ..., "history": columns by epoch,
        "keras": version, "backend": name}.
    """
    keras.utils.set_random_seed(SEED)
    n_classes = int(data["train"][1].max()) + 1
    targets = {part: (X, np.eye(n_classes, dtype="float32")[y]) for part, (X, y) in data.items()}
    model = _model(keras, widths, n_classes)
    rate = keras.optimizers.schedules.ExponentialDecay(0.01, len(data["train"][1]) // 32 * 10, 0.7)
    model.compile(keras.optimizers.Adam(rate), loss="mse", metrics=["accuracy"])
    run = model.fit(
        *targets["train"], batch_size=32, epochs=epochs, validation_data=targets["test"], verbose=0
    )
    measured: dict[str, Any] = {
        "keras": keras.version(),
        "backend": keras.backend.backend(),
        "history": {name: [round(float(v), 6) for v in values] for name, values in run.history.items()},
    }
    for part, (X, y) in targets.items():
        loss, accuracy = model.evaluate(X, y, batch_size=len(X), verbose=0)
        measured[part] = {"loss": float(loss), "accuracy": float(accuracy)}
    return model, measured


def _model(keras: Any, widths: list[int], n_classes: int) -> Any:
    activations = ("linear", "sigmoid", "relu", "softmax")
    dense = [
        keras.layers.Dense(width, activation=activation)
        for width, activation in zip([*widths, n_classes], activations, strict=True)
    ]
    return keras.Sequential([keras.Input((2,)), *dense])


def record(folder: Path) -> None:
    """Train the model of the recipe's part, and write its weights and what Keras measured.

    Raises:
        ImportError: Keras or its backend is not installed.
    """
    from gpumlp.experiment import set_up
    from gpumlp.files import write_whole
    from gpumlp.recipes import load_recipe

    keras = load_keras()
    if keras is None:
        raise ImportError(
            "Keras is not installed, or its backend is not; install keras and jax, and set KERAS_BACKEND"
        )
    recipe = load_recipe("tnm112")
    part = recipe.part(PART)
    p = set_up(recipe.config(part, device="cpu")).prepared
    data = {"train": (p.X_train, p.y_train), "test": (p.X_test, p.y[p.n_train :])}
    widths = part.options["widths"]
    model, measured = train(keras, widths, data, EPOCHS)
    # a model that was never compiled: without the optimizer's memory the file is a third of the size
    bare = _model(keras, widths, int(p.y_train.max()) + 1)
    bare.set_weights(model.get_weights())
    bare.save_weights(folder / WEIGHTS)
    write_whole(folder / MEASURED, json.dumps(measured) + "\n")


if __name__ == "__main__":
    record(Path(__file__).parent)
