"""Files of PyTorch, Keras and ONNX with their outputs, and how the recorded ones were made.

    python tests/recorded/interop/make_interop.py

writes beside this file, in an environment with gpumlp, PyTorch, onnx, onnxscript, safetensors, Keras 3
(on any backend) and h5py:

- ``keras_dense.keras`` and ``keras_dense.weights.h5``: one Keras Sequential, whole and its weights alone
- ``keras_bfloat16.weights.h5``: two layers in bfloat16
- ``keras_clusters.weights.h5``: a classifier that Keras trained on the points in ``interop.npz``
- ``torch_dense.safetensors`` and ``torch_bfloat16.safetensors``: the state_dict of one torch.nn.Sequential
- ``torch_opset20.onnx``, ``torch_opset17.onnx``: the same model, exported by both of PyTorch's exporters
- ``interop.npz``: the versions, inputs, the outputs of each model, points of two rings, and the losses and accuracies
  that Keras's own `evaluate` gives on them

The recorded files are of PyTorch 2.13.0, Keras 3.15.1 on JAX, and onnxscript 0.7.2. `tests/interop` holds gpumlp to
them, and calls the functions here where the libraries are installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
os.environ.setdefault("KERAS_BACKEND", "jax")


def inputs() -> np.ndarray:
    """Rows for the models, float32 (40, 3)."""
    return np.random.default_rng(274).normal(size=(40, 3)).astype(np.float32)


def values_like(arrays: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Random values of those shapes: matrices that keep the size of what they multiply, so that rounding stays small,
    and vectors above 0.5, which can be variances."""
    rng = np.random.default_rng(seed)
    return [
        (
            2 * rng.normal(size=a.shape) / np.sqrt(sum(a.shape))
            if a.ndim == 2
            else rng.uniform(0.5, 1.5, a.shape)
        ).astype(np.float32)
        for a in arrays
    ]


def torch_model() -> Any:
    """A torch.nn.Sequential, in eval mode, with every kind of layer that gpumlp shares and no two equal widths."""
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(3, 7),
        nn.GELU(),
        nn.BatchNorm1d(7, eps=1e-3, momentum=0.2),
        nn.Linear(7, 5, bias=False),
        nn.GELU(approximate="tanh"),
        nn.Dropout(0.3),
        nn.LayerNorm(5),
        nn.Linear(5, 6),
        nn.Sequential(nn.SiLU(), nn.Linear(6, 4), nn.Mish()),
        nn.Softplus(beta=2.0),
        nn.LeakyReLU(0.05),
        nn.Linear(4, 9),
        nn.ELU(alpha=0.7),
        nn.SELU(),
        nn.Linear(9, 2),
        nn.Tanh(),
    )
    tensors = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    new = values_like([t.numpy() for t in tensors.values()], 1)
    model.load_state_dict(
        {name: torch.from_numpy(v) for name, v in zip(tensors, new, strict=True)}, strict=False
    )
    return model.eval()


def torch_outputs(model: Any, x: np.ndarray) -> np.ndarray:
    """The outputs of a PyTorch model."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def export_by_torch(model: Any, path: Path, opset: int) -> None:
    """Export by PyTorch's present exporter (operator set 18 and on) or by the former one."""
    import torch

    x = torch.from_numpy(inputs())
    if opset >= 18:
        settings: dict[str, Any] = {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("rows")},)}
    else:
        settings = {"dynamo": False, "dynamic_axes": {"x": {0: "rows"}, "y": {0: "rows"}}}
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(
        model, (x,), str(path), opset_version=opset, external_data=False, verbose=False, **names, **settings
    )
    _without_notes(path)


def _without_notes(path: Path) -> None:
    """Take out what the exporter notes of the code that it ran, paths of the machine among it."""
    import onnx

    model = onnx.load(path)
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, model.graph):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.value_info[:]
    onnx.save(model, path)


def keras_model() -> Any:
    """A Keras Sequential with every kind of layer that gpumlp shares and no two equal widths."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(7, activation="gelu", name="inner"),
            layers.BatchNormalization(momentum=0.8),
            layers.Dense(5, use_bias=False),
            layers.LeakyReLU(negative_slope=0.05),
            layers.Dropout(0.3),
            layers.LayerNormalization(),
            layers.Dense(6, activation="silu"),
            layers.GaussianNoise(0.2),
            layers.Dense(4, activation="mish"),
            layers.Dense(9, activation=layers.ELU(alpha=0.7)),
            layers.Activation("selu"),
            layers.BatchNormalization(scale=False, center=False),
            layers.Dense(2, activation="softmax"),
        ]
    )
    for seed, layer in enumerate(model.layers):
        if layer.weights and layer.get_weights():
            layer.set_weights(values_like(layer.get_weights(), seed))
    return model


def keras_bfloat16() -> Any:
    """Two dense layers whose weights are bfloat16."""
    import keras

    keras.utils.set_random_seed(16)
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, dtype="bfloat16"), keras.layers.Dense(2, dtype="bfloat16")]
    )


def clusters() -> dict[str, np.ndarray]:
    """Two rings of 512 points each for training and as many for the test, as report tnm112 makes them."""
    from gpumlp.data import polar_clusters

    n = 512
    data = polar_clusters(n_per_class=n, n_test_per_class=n, seed=112)
    x, y = np.asarray(data.features, np.float32), np.asarray(data.y, np.int8)
    return {"X_train": x[: 2 * n], "y_train": y[: 2 * n], "X_test": x[2 * n :], "y_test": y[2 * n :]}


def clusters_model() -> Any:
    """A Keras classifier with linear, sigmoid, relu and softmax layers, not trained yet."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(112)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(8, activation="relu"),
            layers.Dense(6, activation="sigmoid"),
            layers.Dense(5, activation="linear"),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse", metrics=["accuracy"])
    return model


def train_on_clusters(model: Any, points: dict[str, np.ndarray]) -> np.ndarray:
    """Train by Keras; return its losses and accuracies: training loss, its accuracy, test loss, its accuracy."""
    one_hot = {name: np.eye(2, dtype=np.float32)[points[name]] for name in ("y_train", "y_test")}
    model.fit(points["X_train"], one_hot["y_train"], batch_size=16, epochs=20, verbose=0)
    train = model.evaluate(points["X_train"], one_hot["y_train"], verbose=0)
    return np.array([*train, *model.evaluate(points["X_test"], one_hot["y_test"], verbose=0)])


def main() -> None:
    import keras
    import safetensors.torch
    import torch

    x = inputs()
    model = torch_model()
    state = model.state_dict()
    safetensors.torch.save_file(state, HERE / "torch_dense.safetensors")
    short = {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}
    safetensors.torch.save_file(short, HERE / "torch_bfloat16.safetensors")
    for opset in (20, 17):
        export_by_torch(model, HERE / f"torch_opset{opset}.onnx", opset)
    arrays: dict[str, Any] = {"x": x, "torch_y": torch_outputs(model, x)}
    rounded = torch_model()
    rounded.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in short.items()})
    arrays["torch_bfloat16_y"] = torch_outputs(rounded, x)

    dense = keras_model()
    dense.save(HERE / "keras_dense.keras")
    dense.save_weights(HERE / "keras_dense.weights.h5")
    arrays["keras_y"] = np.asarray(dense.predict(x, verbose=0))
    low = keras_bfloat16()
    low.save_weights(HERE / "keras_bfloat16.weights.h5")
    for i, weight in enumerate(low.get_weights()):
        arrays[f"keras_bfloat16_{i}"] = np.asarray(weight, np.float32)

    points, classifier = clusters(), clusters_model()
    arrays |= points
    arrays["clusters_scores"] = train_on_clusters(classifier, points)
    classifier.save_weights(HERE / "keras_clusters.weights.h5")
    versions = f"torch {torch.__version__}, keras {keras.__version__} on {keras.backend.backend()}"
    np.savez_compressed(HERE / "interop.npz", versions=np.array(versions), **arrays)
    print(versions, arrays["clusters_scores"])


if __name__ == "__main__":
    main()
