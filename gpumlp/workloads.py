"""The workloads that gpumlp is measured on: small networks of five course reports, as data.

Learning rates are in the usual convention (the gradient is a mean over the batch); report sdm274 divides by the
batch size once more, and so its 0.3 at batch 32 is 0.3 / 32 here. Two more are run when they are asked for: many small
networks at once, and a deep and wide one, which is made for GPUs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .backend import Backend
from .checks import check_count
from .network import Sequential, mlp
from .trainer import Trainer

DataDir = str | Path | None


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows to train on.

    Attributes:
        X: float32 (rows, features), C-contiguous.
        y: float32 values or int64 labels, (rows,).
        source: what they are, in words.
    """

    X: np.ndarray
    y: np.ndarray
    source: str


@dataclass(frozen=True)
class Workload:
    """A network, a data set and how the one is trained on the other; plain SGD unless an optimizer is named.

    Quick tests train on fewer rows: ``workload.reduced(64)``, with everything else as it is.

    Attributes:
        name: what it is asked for by.
        sizes: widths from input to output.
        data: returns the first rows of the data set: ``data(rows, data_dir)``.
        rows: trained on.
        batch_size: rows of a step; None for all of them.
        loss: name of the loss.
        lr: learning rate.
        it: what it/s counts, "epoch" or "step", or "network-epoch" where there are several networks.
        activation: behind each hidden layer.
        weight_init, bias_init: initializers.
        about: where it comes from, one line.
        optimizer: name of the optimizer.
        networks: trained side by side, each with a rate of its own; see `rates`.
    """

    name: str
    sizes: tuple[int, ...]
    data: Callable[[int, DataDir], TrainingData]
    rows: int
    batch_size: int | None
    loss: str
    lr: float
    about: str
    it: str = "epoch"
    activation: str = "relu"
    weight_init: Any = "glorot_uniform"
    bias_init: Any = "zeros"
    optimizer: str = "sgd"
    networks: int = 1

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of the networks: evenly spaced by ratio, from a thirtieth of `lr` to `lr`."""
        if self.networks == 1:
            return (self.lr,)
        return tuple(float(lr) for lr in np.geomspace(self.lr / 30, self.lr, self.networks))

    @property
    def shape(self) -> str:
        """The widths as they are written, for example "784-1000-10"."""
        runs = [(width, len(list(run))) for width, run in itertools.groupby(self.sizes)]
        return "-".join(f"{n}x{width}" if n > 2 else "-".join([str(width)] * n) for width, n in runs)

    @property
    def step_rows(self) -> int:
        """Rows of a full step."""
        return self.rows if self.batch_size is None else min(self.batch_size, self.rows)

    @property
    def steps(self) -> int:
        """Steps of an epoch, the short last one counted."""
        return -(-self.rows // self.step_rows)

    @property
    def flops_per_sample(self) -> int:
        """Floating-point operations of the matrix products of one training step, a row of the batch.

        A multiply-add is two. A layer has three products of its size (output, weight gradient, input gradient);
        the first one needs no input gradient.
        """
        products = [a * b for a, b in itertools.pairwise(self.sizes)]
        return 2 * (3 * sum(products) - products[0])

    def load(self, data_dir: DataDir = None) -> TrainingData:
        """Return the training rows.

        Args:
            data_dir: where MNIST is looked for, before the folder that GPUMLP_DATA names.

        Raises:
            ValueError: more rows than the data set has; a `data_dir` without MNIST.
        """
        rows = check_count("rows", self.rows)
        data = self.data(rows, data_dir)
        if len(data.X) != rows:
            raise ValueError(f"workload {self.name!r} has {len(data.X)} rows; {rows} were asked for")
        return data

    def trainer(
        self,
        device: str | Backend = "auto",
        dtype: str = "float32",
        seed: int = 0,
        callbacks: Any = None,
        precision: str = "float32",
    ) -> Trainer:
        """Return a trainer of a fresh network.

        Raises:
            ValueError: an unknown device, type or precision, or a GPU that is not there.
        """
        network: Sequential = mlp(
            self.sizes,
            self.activation,
            weight_init=self.weight_init,
            bias_init=self.bias_init,
            device=device,
            dtype=dtype,
            seed=seed,
        )
        return Trainer(
            network,
            loss=self.loss,
            optimizer={"name": self.optimizer, "lr": self.lr},
            seed=seed,
            metrics=(),
            callbacks=callbacks,
            precision=precision,
        )

    def trainers(
        self,
        device: str | Backend = "auto",
        dtype: str = "float32",
        seed: int = 0,
        precision: str = "float32",
    ) -> list[Trainer]:
        """Return a trainer for each of the networks, which begin alike and differ in their rate.

        Raises:
            ValueError: as `trainer`.
        """
        return [
            replace(self, lr=lr, networks=1).trainer(device, dtype, seed, precision=precision)
            for lr in self.rates
        ]

    def reduced(self, rows: int) -> Workload:
        """Return the same workload on its first `rows` rows, for quick tests."""
        return replace(self, rows=rows)


# --- data: the same rows each time ------------------------------------------------------------------------------


def _regression(rows: int, data_dir: DataDir) -> TrainingData:
    """280 of 500 points: a fold of five of the 70 % that the report trains on."""
    from .data import sine_sqrt_regression

    data = sine_sqrt_regression(500)
    chosen = np.random.default_rng(0).permutation(500)[: min(rows, 280)]
    return TrainingData(data.features[chosen], data.y[chosen], "sine_sqrt_regression")


def _classification(rows: int, data_dir: DataDir) -> TrainingData:
    """The first 800 of 1000 points, as the report splits them."""
    from .data import sdm274_classification

    data = sdm274_classification(1000)
    n = min(rows, 800)
    return TrainingData(data.features[:n], data.y[:n], "sdm274_classification")


def _rings(rows: int, data_dir: DataDir) -> TrainingData:
    from .data import polar_clusters

    data = polar_clusters(512, n_classes=5, sigma=0.05)
    return TrainingData(data.features[:rows], data.y[:rows], "polar_clusters")


def _digits(rows: int, data_dir: DataDir) -> TrainingData:
    """MNIST where its folder is found, else made-up images of the same shape; nothing is fetched."""
    if not _mnist_is_here(data_dir):
        return _synthetic_digits(min(rows, 60000))
    from .data import load_mnist

    data = load_mnist(data_dir)
    n = min(rows, data.n_train or data.n_samples)
    return TrainingData(data.features[:n], data.y[:n], "MNIST")


def _mnist_is_here(data_dir: DataDir) -> bool:
    """Whether one of the four files is; `load_mnist` then loads them, or says what is wrong with them.

    Raises:
        ValueError: a folder was named and has none of them.
    """
    from .data.mnist import IMAGES, LABELS

    def has(root: Path) -> bool:
        names = [name + end for name in (*IMAGES, *LABELS) for end in ("", ".gz")]
        return any((place / name).is_file() for place in (root, root / "mnist") for name in names)

    if data_dir is not None:
        if not has(Path(data_dir)):
            raise ValueError(
                f"there are no MNIST files in {os.fspath(data_dir)!r}; expected {IMAGES[0]} (or .gz) and the three "
                "others there or in its subfolder mnist: name another folder, or none for synthetic images"
            )
        return True
    root = os.environ.get("GPUMLP_DATA")
    return bool(root) and has(Path(root or ""))


def _synthetic_digits(rows: int) -> TrainingData:
    """Ten random patterns of bright pixels, a fifth of all, under noise; clipped to [0, 1]."""
    rng = np.random.default_rng(0)
    patterns = (rng.random((10, 784)) < 0.2).astype(np.float32)
    y = rng.permutation(np.arange(rows, dtype=np.int64) % 10)
    X = rng.standard_normal((rows, 784), dtype=np.float32)
    X *= np.float32(0.5)
    X += patterns[y]
    np.clip(X, 0, 1, out=X)
    return TrainingData(X, y, "synthetic, in MNIST's shape")


def random_classes(features: int, classes: int = 10) -> Callable[[int, DataDir], TrainingData]:
    """Return what draws normal rows whose class is the greatest of their first features.

    Args:
        features: of a row, at least `classes`.
        classes: how many.
    """

    def data(rows: int, data_dir: DataDir) -> TrainingData:
        X = np.random.default_rng(0).standard_normal((rows, features), dtype=np.float32)
        return TrainingData(X, X[:, :classes].argmax(axis=1), "random rows")

    return data


# --- the table ------------------------------------------------------------------------------------------------------

WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "small",
            (1, 64, 128, 1),
            _regression,
            rows=280,
            batch_size=32,
            loss="mse",
            lr=0.3 / 32,
            about="regression of report sdm274, a fold of five",
        ),
        Workload(
            "deepwide",
            (1, 128, 256, 512, 1),
            _regression,
            rows=280,
            batch_size=32,
            loss="mse",
            lr=0.3 / 32,
            about="the same data, the deepest and widest net of report sdm274",
        ),
        Workload(
            "clf",
            (2, 64, 128, 1),
            _classification,
            rows=800,
            batch_size=32,
            loss="binary_cross_entropy",
            lr=0.1,
            about="classification of report sdm274, cross-entropy on the logit",
        ),
        Workload(
            "polar",
            (2, *[50] * 10, 5),
            _rings,
            rows=2560,
            batch_size=32,
            loss="softmax_mse",
            lr=0.05,
            weight_init={"name": "normal", "mean": 0.035, "std": 0.1},
            about="five rings of report tnm112, ten hidden layers, without its momentum",
        ),
        Workload(
            "ee6132",
            (784, 500, 250, 100, 10),
            _digits,
            rows=60000,
            batch_size=64,
            loss="cross_entropy",
            lr=0.1,
            it="step",
            about="MNIST of report ee6132, ReLU",
        ),
        Workload(
            "mlpnn",
            (784, 1000, 10),
            _digits,
            rows=60000,
            batch_size=None,
            loss="cross_entropy",
            lr=0.1,
            activation="tanh",
            weight_init={"name": "normal", "std": 1.0},
            bias_init={"name": "uniform", "low": 0.0, "high": 1.0},
            about="MNIST of report mlpnn, full batch, weights N(0, 1)",
        ),
    )
}

SMALL = WORKLOADS["small"]

ON_REQUEST: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        replace(
            SMALL,
            name="sweep",
            networks=528,
            it="network-epoch",
            about="528 networks like small, each with a rate of its own, at once",
        ),
        Workload(
            "wide",
            (4096,) * 9,
            random_classes(4096),
            rows=8192,
            batch_size=4096,
            loss="cross_entropy",
            lr=3e-5,
            optimizer="adam",
            it="step",
            weight_init="he_normal",
            about="8 layers of 4096 with Adam, made to fill a GPU",
        ),
    )
}
"""Workloads that are run only when they are named."""
