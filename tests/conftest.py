"""Fixtures that tests of several modules share.

A test that takes `backend` runs on every backend of the machine: always on the CPU, and on a GPU where one answers.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import gpumlp as gm
from gpumlp.arena import Arena
from gpumlp.executors import Executor, StepPlan, choose_executor, make_executor
from gpumlp.kernels import BAD_STEP
from gpumlp.losses import Loss, get_loss
from gpumlp.optimizers import Optimizer
from gpumlp.program import RING, Builder, Memory, Operand, new_control
from gpumlp.step import DataShape, training_plan

# examples are timed by the whole suite; a deadline for one of them fails on a busy machine
settings.register_profile("gpumlp", deadline=None)
settings.load_profile("gpumlp")


def _present() -> list[str]:
    try:
        gm.get_backend("gpu")
    except ValueError:
        return ["cpu"]
    return ["cpu", "gpu"]


@pytest.fixture(scope="session", params=_present())
def backend(request) -> gm.Backend:
    """Every backend that this machine has."""
    return gm.get_backend(request.param)


@pytest.fixture(scope="session", params=["float32", "float64"])
def dtype(request) -> str:
    """Every type that networks compute in."""
    return request.param


def _central_differences(f: Callable[[], float], x: Any, step: float = 1e-6) -> np.ndarray:
    gradient = np.empty(x.shape)
    for place in np.ndindex(*x.shape):
        value = x[place]
        x[place] = value + step
        above = float(f())
        x[place] = value - step
        below = float(f())
        x[place] = value
        gradient[place] = (above - below) / (2 * step)
    return gradient


@pytest.fixture(scope="session")
def central_differences() -> Callable[..., np.ndarray]:
    """The numeric gradient of ``f()`` by the entries of `x`, which are moved in place, in float64."""
    return _central_differences


def _assert_close(actual: Any, expected: Any, tolerance: float, floor: float = 1e-3) -> None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    difference = np.linalg.norm(actual - expected)
    scale = max(float(np.linalg.norm(expected)), floor)
    assert difference <= tolerance * scale, (
        f"relative difference {difference / scale:.3g}, expected at most {tolerance:g}\n{actual}\n{expected}"
    )


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Hold ||a - b|| / ||b|| within a tolerance, with a floor where the true value is 0."""
    return _assert_close


class Step:
    """A training step on a fixed full batch, as `Trainer.fit` writes it, that can be repeated.

    It runs on the executor that a trainer would take, unless another class is given. The rates are 0 unless set,
    so that running it measures loss and gradients and changes no parameter.
    """

    def __init__(
        self,
        network: gm.Sequential,
        loss: Any,
        x: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray | None = None,
        optimizer: Optimizer | None = None,
        batch_rows: int | None = None,
        shuffle: bool = False,
        executor: type[Executor] | None = None,
    ) -> None:
        self.network, self.loss_object = network, get_loss(loss)
        backend, dtype = network.backend, network.dtype
        target = self.loss_object.prepare_target(y, network.out_features, dtype)
        shape = DataShape(len(x), len(x), x.shape[1], target.shape[1:], weight is not None)
        optimizer = gm.SGD(0.1) if optimizer is None else optimizer
        self.plan: StepPlan = training_plan(
            network, self.loss_object, optimizer, shape, batch_rows or len(x), shuffle
        )
        self.control, self.rates = new_control(network.seed), np.zeros(RING)
        self.slots: dict[str, Arena] = {}
        for name, value in optimizer.initial_slots().items():
            self.slots[f"slot.{name}"] = network.parameters.twin()
            for _, view in self.slots[f"slot.{name}"].items():
                view[...] = value
        self.ring = backend.asarray(np.zeros((RING, 2)))
        arrays: dict[str, Any] = {
            "control": self.control,
            "rates": self.rates,
            "ring": self.ring,
            "X": backend.asarray(np.array(x, dtype=dtype)),
            "y": backend.asarray(target.copy()),
            "rows": backend.asarray(np.arange(len(x))),
            "index": backend.asarray(np.zeros(len(x), dtype=np.int64)),
        }
        if weight is not None:
            arrays["weight"] = backend.asarray(np.array(weight), dtype=dtype)
        self.memory = Memory({**network.arenas(), **self.slots}, arrays)
        executor = executor or choose_executor(backend, network.has_python)[0]
        self.executor: Executor = executor(backend, self.memory)
        self.executor.prepare(*self.plan.programs)

    def run(self, n_steps: int) -> int:
        """Train: the counters go on. Returns how many steps were good."""
        return self.executor.run(self.plan, n_steps)

    def loss(self) -> float:
        """The loss of the batch, at the counters at hand, in training mode; the gradients are left behind."""
        self.control[BAD_STEP] = -1
        self.executor.execute(self.plan.begin)
        self.executor.execute(self.plan.batch)
        return float(self.network.backend.to_host(self.ring)[0, 0])

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of all parameters at the counters at hand."""
        self.loss()
        return self.network.gradients.to_host()


@pytest.fixture(scope="session")
def training_step() -> type[Step]:
    """Make a `Step`: ``training_step(network, loss, x, y)``."""
    return Step


def _loss_and_gradient(
    loss: Loss, output: Any, y: Any, weight: Any = None, backend: gm.Backend | None = None
) -> tuple[float, np.ndarray]:
    """Value and gradient of a loss on given outputs, through a program of one call."""
    backend = backend or gm.get_backend("cpu")
    output = np.asarray(output)
    dtype = "float32" if output.dtype == np.float32 else "float64"
    target = loss.prepare_target(np.asarray(y), output.shape[1], dtype)
    b = Builder(len(output), dtype, training=True)
    places = {
        "output": (b.buffer("output", *output.shape, keep=True), output),
        "target": (b.buffer("target", *target.shape, dtype=target.dtype.name, keep=True), target),
    }
    if weight is not None:
        places["weight"] = (b.buffer("weight", len(output), keep=True), np.asarray(weight))
    grad = b.buffer("grad", *output.shape, keep=True)
    ring = Operand("ring", "", (1, 2), "float64")
    loss.emit(b, places["output"][0], places["target"][0], places.get("weight", (None,))[0], ring, grad)
    program = b.finish()
    memory = Memory({}, {"control": new_control(0), "ring": backend.asarray(np.zeros((1, 2)))})
    executor = make_executor(backend, memory)
    executor.prepare(program)
    for operand, value in places.values():
        executor.view(program, operand)[...] = backend.asarray(value, dtype=operand.dtype)
    executor.execute(program)
    value = float(backend.to_host(memory.arrays["ring"])[0, 0])
    return value, np.array(backend.to_host(executor.view(program, grad)))


@pytest.fixture(scope="session")
def loss_and_gradient() -> Callable[..., tuple[float, np.ndarray]]:
    """Evaluate a loss: ``loss_and_gradient(loss, output, y, weight)`` returns its value and its gradient."""
    return _loss_and_gradient


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    """A machine without CuPy, whatever this one has."""
    monkeypatch.setitem(sys.modules, "cupy", None)
