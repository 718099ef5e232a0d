"""The programs that measure a network on fixed rows: what its neurons are given and give, slopes, gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import as_matrix, check_lengths, check_width
from .executors import Executor, make_executor
from .layers import Activation, Layer, Linear, PerUnit, Softmax
from .model import encode_target
from .network import Sequential
from .program import Builder, Memory, Operand, Program, new_control

if TYPE_CHECKING:
    from .trainer import Trainer

ACTIVITY = ("inactive", "dead", "zero", "saturated", "mean", "std")
WEIGHTS = ("weight_mean", "weight_std", "weight_norm")


def greatest_slopes(layer: Activation | PerUnit) -> np.ndarray:
    """Return the greatest |f'| of each unit, float64 (1,) where all are alike, else (units,).

    Found at 20,001 points from -10 to 10, with the layer's own gradient kernels.
    """
    units = [layer] if isinstance(layer, Activation) else layer.units
    grid = np.linspace(-10.0, 10.0, 20_001)[:, np.newaxis]
    slopes = []
    for unit in units:
        alone = Sequential(copy.deepcopy(unit), in_features=1, device="cpu", dtype="float64")
        alone.forward(grid)
        slopes.append(np.abs(alone.backward(np.ones_like(grid))).max())
    return np.array(slopes)


class Probe:
    """The programs that measure a network on fixed rows."""

    def __init__(self, trainer: Trainer, X: Any, y: Any, saturation: float) -> None:
        self.network, self.saturation = trainer.network, saturation
        name = "X of ActivationStatistics"
        self.x = as_matrix(X, self.network.dtype, name)
        check_width(self.x, self.network.in_features)
        self.linear, self.hidden = _named_layers(self.network.layers)
        if not self.hidden:
            raise ValueError(
                "ActivationStatistics found no hidden layer: no activation stands behind a linear layer that is not "
                "the last one; leave it out for this network"
            )
        self.slopes = {key: greatest_slopes(layer) for key, layer in self.hidden.items()}
        self._forward = ForwardPass(self.network, self.x, self.hidden, trainer.threads)
        self._gradient: LossGradient | None = None
        if y is not None:
            check_lengths(len(self.x), y=y)
            outputs, dtype = self.network.out_features, self.network.dtype
            target = encode_target(y, trainer.classes, trainer.loss, outputs, dtype)
            self._gradient = LossGradient(trainer, self.x, target)

    def columns(self) -> dict[str, dict[str, float]]:
        """Measure now; return layer -> column -> number."""
        found: dict[str, dict[str, float]] = {name: {} for name in self.linear}
        self._forward.run()
        for name in self.hidden:
            z, out, slope = self._forward.result(name)
            inactive = z <= 0
            flat = np.abs(slope) < (self.saturation * self.slopes[name]).astype(slope.dtype)
            values = (
                inactive.mean(),
                inactive.all(axis=0).mean(),
                (out == 0).mean(),
                flat.mean(),
                out.mean(dtype=np.float64),
                out.std(dtype=np.float64),
            )
            found.setdefault(name, {}).update(zip(ACTIVITY, map(float, values), strict=True))
        for name, weight in self.weights().items():
            spread = weight.mean(dtype=np.float64), weight.std(dtype=np.float64), _norm(weight)
            found[name].update(zip(WEIGHTS, map(float, spread), strict=True))
        if self._gradient is not None:
            self._gradient.run()
            for name, layer in self.linear.items():
                found[name]["gradient_norm"] = _norm(self._gradient.result(layer.key))
        return found

    def activations(self) -> dict[str, np.ndarray]:
        """Outputs of the hidden layers, as last measured."""
        return {name: self._forward.result(name)[1] for name in self.hidden}

    def weights(self) -> dict[str, np.ndarray]:
        """Weights of the linear layers, on the host."""
        arena, backend = self.network.parameters, self.network.backend
        return {name: backend.to_host(arena[f"{layer.key}.weight"]) for name, layer in self.linear.items()}


def _norm(values: np.ndarray) -> float:
    return math.sqrt(float(np.square(values, dtype=np.float64).sum()))


def _named_layers(layers: Sequence[Layer]) -> tuple[dict[str, Linear], dict[str, Activation | PerUnit]]:
    """Return the linear layers and the first activation behind each but the last, both by name."""
    places = [i for i, layer in enumerate(layers) if isinstance(layer, Linear)]
    linear: dict[str, Linear] = {}
    hidden: dict[str, Activation | PerUnit] = {}
    for count, place in enumerate(places, start=1):
        layer = layers[place]
        assert isinstance(layer, Linear)
        if count == len(places):
            linear["output"] = layer
            break
        linear[f"h{count}"] = layer
        for behind in layers[place + 1 : places[count]]:
            if isinstance(behind, Activation | PerUnit) and not isinstance(behind, Softmax):
                hidden[f"h{count}"] = behind
                break
    return linear, hidden


class ForwardPass:
    """A forward pass that keeps what activations are given, what they give, and their slopes."""

    def __init__(
        self,
        network: Sequential,
        x: np.ndarray,
        hidden: Mapping[str, Activation | PerUnit],
        threads: int | None,
    ) -> None:
        names = {id(layer): name for name, layer in hidden.items()}
        b = Builder(len(x), network.dtype, training=False)
        self._x = value = b.buffer("x", *x.shape, keep=True)
        self._kept: dict[str, tuple[Operand, Operand, Operand]] = {}
        self._ones: list[Operand] = []
        for layer in network.layers:
            b.enter(layer)
            name = names.get(id(layer))
            if name is None:
                value = layer.emit_forward(b, value)
                continue
            # a copy: executors may give an activation the product without its bias, and add that as they go
            z = b.buffer("z", *value.shape, keep=True)
            ones = b.buffer("ones", *value.shape, keep=True)
            b.call("copy", value, z)
            value = layer.emit_forward(b, z)
            slope = layer.emit_backward(b, z, value, ones, need_dx=True)
            assert slope is not None
            b.keep(value)
            b.keep(slope)
            self._kept[name] = z, value, slope
            self._ones.append(ones)
        b.enter(None)
        self._program = b.finish()
        memory = Memory(network.arenas(), {"control": new_control(network.seed)})
        self._run = _Run(network, memory, self._program, threads)
        self._values = x

    def run(self) -> None:
        self._run.set(self._x, self._values)
        for ones in self._ones:
            self._run.set(ones, 1)
        self._run.execute()

    def result(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z, out, slope = (self._run.get(operand) for operand in self._kept[name])
        return z, out, slope


class LossGradient:
    """The gradient of the loss on the probe, beside the gradients of the training."""

    def __init__(self, trainer: Trainer, x: np.ndarray, target: np.ndarray) -> None:
        network = trainer.network
        b = Builder(len(x), network.dtype, training=True)
        self._given = {
            b.buffer("x", *x.shape, keep=True): x,
            b.buffer("target", *target.shape, dtype=target.dtype.name, keep=True): target,
        }
        place, goal = self._given
        values = network.emit_forward(b, place)
        dy = b.buffer("dy", *values[-1].shape)
        ring = Operand("ring", "", (1, 2), "float64")
        trainer.loss.emit(b, values[-1], goal, None, ring, dy)
        network.emit_backward(b, values, dy)
        self._gradients = network.parameters.twin()
        arrays = {
            "control": new_control(network.seed),
            "ring": network.backend.asarray(np.zeros((1, 2))),
        }
        memory = Memory({**network.arenas(), "gradients": self._gradients}, arrays)
        self._run = _Run(network, memory, b.finish(), trainer.threads)
        self._to_host = network.backend.to_host

    def run(self) -> None:
        for operand, values in self._given.items():
            self._run.set(operand, values)
        self._run.execute()

    def result(self, key: str) -> np.ndarray:
        return self._to_host(self._gradients[f"{key}.weight"])


class _Run:
    """A program with its executor."""

    def __init__(self, network: Sequential, memory: Memory, program: Program, threads: int | None) -> None:
        self._backend, self._program = network.backend, program
        self._executor: Executor = make_executor(network.backend, memory, network.has_python, threads)
        self._executor.prepare(program)

    def set(self, operand: Operand, values: Any) -> None:
        self._backend.write(self._executor.view(self._program, operand), values)

    def get(self, operand: Operand) -> np.ndarray:
        return self._backend.to_host(self._executor.view(self._program, operand))

    def execute(self) -> None:
        self._executor.execute(self._program)
