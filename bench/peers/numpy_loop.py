"""Plain NumPy, as course code writes it: a loop over layers, fresh arrays at every step.

In float64 it is also the reference that every peer is checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from .contract import Peer, Problem, Weights

Network = list[tuple[np.ndarray, np.ndarray]]


def activation(name: str) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """Return a function and its derivative, which is given the function's value."""
    if name == "relu":
        return lambda z: np.maximum(z, 0), lambda a: a > 0
    if name == "tanh":
        return np.tanh, lambda a: 1 - a * a
    raise ValueError(f"there is no activation {name!r} here; expected 'relu' or 'tanh'")


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def mse(out: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    error = out - target[:, None]
    return float(np.mean(error**2)), 2 * error / error.size


def binary_cross_entropy(z: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    t = target[:, None]
    p = 1 / (1 + np.exp(-z))
    return float(np.mean(np.logaddexp(0, z) - t * z)), (p - t) / z.size


def cross_entropy(z: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    rows = np.arange(len(z))
    z = z - z.max(axis=1, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=1, keepdims=True)
    gradient = e / total
    gradient[rows, labels] -= 1
    return float(np.mean(np.log(total[:, 0]) - z[rows, labels])), gradient / len(z)


def softmax_mse(z: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    p = softmax(z)
    error = p - np.eye(z.shape[1], dtype=z.dtype)[labels]
    dp = 2 * error / error.size
    return float(np.mean(error**2)), p * (dp - np.sum(dp * p, axis=1, keepdims=True))


LOSSES = {
    "mse": mse,
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "softmax_mse": softmax_mse,
}
"""Loss (value and gradient in the outputs) by name; a mean over the batch, on logits."""


def gradients(
    network: Network, x: np.ndarray, target: np.ndarray, loss: str, hidden: str
) -> tuple[float, Network]:
    """Return the loss of a batch and its gradient in each weight and bias."""
    f, df = activation(hidden)
    activations = [x]
    for weight, bias in network[:-1]:
        activations.append(f(activations[-1] @ weight + bias))
    weight, bias = network[-1]
    value, d = LOSSES[loss](activations[-1] @ weight + bias, target)
    found: Network = []
    for i in reversed(range(len(network))):
        found.insert(0, (activations[i].T @ d, d.sum(axis=0)))
        if i:
            d = (d @ network[i][0].T) * df(activations[i])
    return value, found


def step(
    network: Network, x: np.ndarray, target: np.ndarray, lr: float, loss: str, hidden: str
) -> tuple[float, Network]:
    """Return the loss of a batch and the network after one step of SGD on it."""
    value, found = gradients(network, x, target, loss, hidden)
    return value, [(w - lr * dw, b - lr * db) for (w, b), (dw, db) in zip(network, found, strict=True)]


class Adam:
    """Adam as of Kingma & Ba 2015, algorithm 1, with their settings: the moments of one network."""

    def __init__(self) -> None:
        self.t = 0
        self.moments: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def step(
        self, network: Network, x: np.ndarray, target: np.ndarray, lr: float, loss: str, hidden: str
    ) -> tuple[float, Network]:
        """Return the loss of a batch and the network after one step on it."""
        value, found = gradients(network, x, target, loss, hidden)
        self.t += 1
        updated = [
            (self._moved(i, 0, w, dw, lr), self._moved(i, 1, b, db, lr))
            for i, ((w, b), (dw, db)) in enumerate(zip(network, found, strict=True))
        ]
        return value, updated

    def _moved(self, i: int, j: int, p: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        first, second = self.moments.get((i, j), (np.zeros_like(p), np.zeros_like(p)))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        self.moments[i, j] = first, second
        corrected = first / (1 - 0.9**self.t), second / (1 - 0.999**self.t)
        moved: np.ndarray = p - lr * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        return moved


def loss_of(weights: Weights, problem: Problem, chunk: int = 4096) -> float:
    """Return the mean loss over all rows of a problem, in the weights' precision."""
    f, _ = activation(problem.workload.activation)
    total = 0.0
    for start in range(0, len(problem.X), chunk):
        x = problem.X[start : start + chunk].astype(weights[0][0].dtype)
        for weight, bias in weights[:-1]:
            x = f(x @ weight + bias)
        weight, bias = weights[-1]
        y = problem.y[start : start + chunk]
        total += len(x) * LOSSES[problem.workload.loss](x @ weight + bias, y)[0]
    return total / len(problem.X)


class NumpyLoop(Peer):
    """The loop in one type of numbers."""

    dtype: ClassVar[str]
    optimizers = ("sgd", "adam")

    def prepare(self, problem: Problem) -> None:
        self.problem = problem
        self.X = problem.X.astype(self.dtype)
        is_regression = problem.workload.loss == "mse"
        self.y = problem.y.astype(self.dtype if is_regression else np.int64)
        first = [(w.astype(self.dtype), b.astype(self.dtype)) for w, b in problem.weights]
        self.networks = [first] * len(problem.lrs)
        is_adam = problem.workload.optimizer == "adam"
        self.steps = [Adam().step if is_adam else step for _ in self.networks]
        self.rng = np.random.default_rng(problem.seed)

    def train(self, epochs: int) -> float:
        losses = [self._train_one(i, epochs) for i in range(len(self.networks))]
        return float(np.mean(losses))

    def _train_one(self, i: int, epochs: int) -> float:
        workload, lr, n = self.problem.workload, self.problem.lrs[i], len(self.X)
        network, total = self.networks[i], 0.0
        for _ in range(epochs):
            X, y, total = self.X, self.y, 0.0
            if self.problem.shuffles:
                order = self.rng.permutation(n)
                X, y = X[order], y[order]
            for start in range(0, n, workload.step_rows):
                x, target = X[start : start + workload.step_rows], y[start : start + workload.step_rows]
                value, network = self.steps[i](network, x, target, lr, workload.loss, workload.activation)
                total += value * len(x)
        self.networks[i] = network
        return total / n

    def weights(self) -> Sequence[Weights]:
        return self.networks


class NumpyFloat64(NumpyLoop):
    """NumPy's own default type, and so that of most course code."""

    name = "numpy-float64"
    about = "plain NumPy in float64, fresh arrays at every step"
    library = "numpy"
    dtype = "float64"


class NumpyFloat32(NumpyLoop):
    """The same loop on float32 arrays."""

    name = "numpy-float32"
    about = "plain NumPy in float32, fresh arrays at every step"
    library = "numpy"
    dtype = "float32"
