"""Running a trained network: outputs, probabilities and losses, batch by batch, with nothing kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import as_matrix, check_count, check_width
from .executors import Executor, make_executor
from .interchange import like
from .kernels import SLOT
from .program import Builder, Memory, Operand, Program, new_control

if TYPE_CHECKING:
    from .chain import Chain
    from .losses import Loss

Array = Any

BATCH = 1024
"""Rows at a time unless asked otherwise: large enough to keep the processor busy, small beside any data set."""


class Evaluator:
    """Runs a network forward over any number of rows.

    Args:
        network: in its present state; later updates of its weights are seen.
        loss: gives `probabilities` their meaning, and the loss its formula; None for plain outputs.
    """

    def __init__(self, network: Chain, loss: Loss | None = None) -> None:
        self.network = network
        self.loss = loss
        self._passes: dict[tuple[Any, ...], _InferencePass] = {}

    def predict(self, x: Any, batch_size: int | None = None, probabilities: bool = False) -> Array:
        """Return outputs, or probabilities where the loss is one of classification, (rows, out_features).

        They come as the kind of array that `x` is; see `interchange.like`.

        Raises:
            ValueError: not a finite matrix, another number of features, or a batch size below 1.
        """
        given, backend = x, self.network.backend
        x = as_matrix(x, self.network.dtype, backend=backend)
        check_width(x, self.network.in_features)
        out = np.empty((len(x), self.network.out_features), dtype=self.network.dtype)
        for start, stop in _batches(len(x), batch_size):
            work = self._pass(stop - start, None)
            work.run(x[start:stop])
            out[start:stop] = work.result(probabilities)
        return like(given, out, backend)

    def evaluate(
        self,
        x: np.ndarray,
        target: np.ndarray,
        weight: np.ndarray | None = None,
        rows: np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> tuple[float, np.ndarray]:
        """Return the loss over the rows, by the reduction of the loss, and the probabilities (or outputs).

        Args:
            x: (n, in_features), checked before.
            target: as `Loss.prepare_target` makes it.
            weight: (n,), of the rows; None for equal ones.
            rows: which rows to take; None for all.
        """
        assert self.loss is not None
        n = len(x) if rows is None else len(rows)
        out = np.empty((n, self.network.out_features), dtype=self.network.dtype)
        total = weights = 0.0
        for start, stop in _batches(n, batch_size):
            part: Any = slice(start, stop) if rows is None else rows[start:stop]
            work = self._pass(stop - start, target)
            with self.network.backend.active():
                on_gpu = rows is not None and not isinstance(x, np.ndarray)  # its rows are chosen there
                chosen = x[self.network.backend.asarray(part) if on_gpu else part]
            work.run(chosen, target[part], None if weight is None else weight[part])
            value, w = work.loss()
            total += value * (w if self.loss.reduction == "mean" else 1.0)
            weights += w
            out[start:stop] = work.result(probabilities=True)
        return (total / weights if self.loss.reduction == "mean" and weights else total), out

    def _pass(self, rows: int, target: np.ndarray | None) -> _InferencePass:
        kind = None if target is None else (target.shape[1:], target.dtype.name)
        layers = tuple(layer.trainable for layer in self.network.layers)
        key = (rows, kind, layers, id(self.network.parameters))  # `Sequential.to` makes new arenas
        if key not in self._passes:
            if len(self._passes) >= 4:  # batches of very many sizes would each keep their memory
                self._passes.clear()
            self._passes[key] = _InferencePass(self.network, self.loss, rows, target)
        return self._passes[key]


def _batches(n: int, batch_size: int | None) -> list[tuple[int, int]]:
    size = BATCH if batch_size is None else check_count("batch_size", batch_size)
    return [(start, min(start + size, n)) for start in range(0, n, size)]


class _InferencePass:
    """The program of one batch size: forward, loss where there is a target, probabilities."""

    def __init__(self, network: Chain, loss: Loss | None, rows: int, target: np.ndarray | None) -> None:
        b = Builder(rows, network.dtype, training=False)
        self._x = b.buffer("x", rows, network.in_features, keep=True)
        self._y = network.emit_forward(b, self._x)[-1]
        b.keep(self._y)
        self._target: Operand | None = None
        if target is not None and loss is not None:
            self._target = b.buffer("target", rows, *target.shape[1:], dtype=target.dtype.name, keep=True)
            self._weight = b.buffer("weight", rows, keep=True)
            ring = Operand("ring", "", (1, 2), "float64")
            loss.emit(b, self._y, self._target, self._weight, ring, None)
        self._p = self._y
        if loss is not None and loss.output_activation in ("softmax", "sigmoid"):
            self._p = b.buffer("probabilities", *self._y.shape, keep=True)
            b.call(loss.output_activation, self._y, self._p)
        self._program: Program = b.finish()
        self._backend = network.backend
        self._ring = self._backend.asarray(np.zeros((1, 2)))
        control = new_control(network.seed)
        control[SLOT] = 0
        memory = Memory(network.arenas(), {"control": control, "ring": self._ring})
        self._executor: Executor = make_executor(network.backend, memory, network.has_python)
        self._executor.prepare(self._program)

    def _set(self, operand: Operand, values: np.ndarray) -> None:
        self._backend.write(self._executor.view(self._program, operand), values)

    def run(self, x: np.ndarray, target: np.ndarray | None = None, weight: np.ndarray | None = None) -> None:
        self._set(self._x, x)
        if self._target is not None and target is not None:
            self._set(self._target, target)
            self._set(self._weight, np.ones(len(x)) if weight is None else weight)
        self._executor.execute(self._program)

    def loss(self) -> tuple[float, float]:
        value, weight = self._backend.to_host(self._ring)[0]
        return float(value), float(weight)

    def result(self, probabilities: bool) -> np.ndarray:
        operand = self._p if probabilities else self._y
        return self._backend.to_host(self._executor.view(self._program, operand))
