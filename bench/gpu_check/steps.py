"""Training steps of the graph and the resident executor against float64, each step from the same state.

Two orders of summation drift apart over many steps; so before each step the reference takes over all that the device
has, and only this step is judged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpumlp.arena import Arena
from gpumlp.executors import EagerExecutor, Executor
from gpumlp.executors.graph import GraphExecutor
from gpumlp.executors.resident import ResidentExecutor
from gpumlp.kernels import BAD_STEP, EPOCH, POSITION, STEP, UPDATE
from gpumlp.losses import get_loss
from gpumlp.optimizers import get_optimizer
from gpumlp.program import Memory, new_control
from gpumlp.step import RING, DataShape, training_plan

from .checks import PRECISIONS, Check, Context, Failed, Skipped, Values, relative_error
from .networks import CASES, Case

N_STEPS = 12

LOSS_TOLERANCE = {"float64": 1e-11, "float32": 1e-5, "tf32": 1e-2, "bf16": 1e-1}
"""Relative, of the loss of a step: of a squared error that is small beside what it is the difference of."""

GRADIENT_TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "tf32": 1e-2, "bf16": 1e-1}
"""Relative, of all gradients together: a chain of products, ten times what one may be off."""

UPDATE_TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "tf32": 1e-1, "bf16": 3e-1}
"""Relative, of the way that all state goes in a step: short beside the parameters, which round it; and Adam divides a
gradient by its own size, so that where it is rounding alone, so is the step."""

KINK_TOLERANCE = {"float64": 1e-10, "float32": 3e-3, "tf32": 1.5e-1, "bf16": 2e-1}
"""The same where there are kinks: a ReLU whose input is within rounding of 0 goes the other way. In TF32 these are
few, but one of them is much of a batch of eight rows: NumPy in float32, its factors rounded likewise, comes to 0.0005
to 0.052 in single steps of "wide, relu", and an H200 came to 0.080."""

COUNTERS = (STEP, UPDATE, EPOCH, POSITION, BAD_STEP)

EXECUTORS: dict[str, type[Executor]] = {"graph": GraphExecutor, "resident": ResidentExecutor}


class Steps:
    """A training that is run step by step, with all of its state in reach.

    Args:
        case: what is trained.
        device: where.
        dtype: of the network.
        kind: the executor.
        settings: of the executor: precision.
    """

    def __init__(self, case: Case, device: Any, dtype: str, kind: type[Executor], **settings: Any) -> None:
        network = self.network = case.network(device, dtype)
        backend, loss, optimizer = network.backend, get_loss(case.loss), get_optimizer(case.optimizer())
        X, y = case.data()
        target = loss.prepare_target(y[:, None] if not case.classes else y, network.out_features, dtype)
        shape = DataShape(len(X), len(X), X.shape[1], target.shape[1:], False)
        self.plan = training_plan(network, loss, optimizer, shape, case.batch_rows, True)
        self.control = new_control(network.seed)
        self.slots: dict[str, Arena] = {}
        for name, value in optimizer.initial_slots().items():
            arena = self.slots[f"slot.{name}"] = network.parameters.twin()
            for _, view in arena.items():
                view[...] = value
        rates = np.zeros(RING)
        rates[...] = optimizer.schedule.rates(np.zeros(1, np.int64), self.plan.steps, 1)
        self.ring = backend.asarray(np.zeros((RING, 2)))
        arrays: dict[str, Any] = {
            "control": self.control,
            "rates": rates,
            "ring": self.ring,
            "X": backend.asarray(np.ascontiguousarray(X, dtype)),
            "y": backend.asarray(target),
            "rows": backend.asarray(np.arange(len(X))),
            "index": backend.asarray(np.zeros(len(X), dtype=np.int64)),
        }
        memory = Memory({**network.arenas(), **self.slots}, arrays)
        self.executor = kind(backend, memory, **settings)
        self.executor.prepare(*self.plan.programs)

    def _arenas(self) -> dict[str, Arena]:
        arenas = {**self.network.arenas(), **self.slots}
        return {role: arena for role, arena in arenas.items() if role != "gradients"}

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """All that a step changes, on the host."""
        return {role: arena.to_host() for role, arena in self._arenas().items()}

    def take_over(self, state: dict[str, dict[str, np.ndarray]], control: np.ndarray) -> None:
        """Go on from another training's state; on the CPU."""
        for role, arena in self._arenas().items():
            for name, view in arena.items():
                view[...] = state[role][name]
        self.control[...] = control

    def step(self) -> float:
        """Do one step; return its loss."""
        if self.executor.run(self.plan, 1) != 1:
            raise Failed("the executor found the loss of a step not finite")
        return float(self.network.backend.to_host(self.ring)[0, 0])

    def gradients(self) -> np.ndarray:
        """The gradients of the last step, one behind the other."""
        return np.concatenate([g.ravel() for g in self.network.gradients.to_host().values()])


def checks(context: Context) -> list[Check]:
    """Each network on each executor in each precision."""
    found = []
    for name, case in CASES.items():
        for kind, precision in ways():
            if kind == "resident" and not case.is_small:
                continue
            run = functools.partial(check_steps, context, case, kind, precision)
            found.append(Check(f"{name}; {kind}, {precision}", run))
    return found


def ways() -> Iterator[tuple[str, str]]:
    """Executors with the precisions that they know."""
    for precision in (*PRECISIONS, "float64"):
        yield "graph", precision
    for precision in ("float32", "float64"):
        yield "resident", precision


def check_steps(context: Context, case: Case, kind: str, precision: str) -> Values:
    """Hold loss, gradients and all state of each step against the reference, from the device's state."""
    if kind == "graph" and not context.gpu.has_products:
        raise Skipped("nvmath-python is not installed: there is no graph executor")
    dtype = "float64" if precision == "float64" else "float32"
    settings = {"precision": "float32" if precision == "float64" else precision}
    found = Steps(case, context.backend, dtype, EXECUTORS[kind], **settings)
    true = Steps(case, context.cpu, "float64", EagerExecutor)
    gradient_tolerance = (GRADIENT_TOLERANCE if case.smooth else KINK_TOLERANCE)[precision]
    worst, faults = {"loss": 0.0, "gradients": 0.0, "update": 0.0}, []
    for i in range(context.either(N_STEPS, 4)):
        before = found.state()
        true.take_over(before, found.control)
        loss, wanted = found.step(), true.step()
        errors = {
            "loss": abs(loss - wanted) / max(abs(wanted), 1e-3),
            "gradients": relative_error(found.gradients(), true.gradients(), 1e-6),
            "update": _update_error(before, found.state(), true.state()),
        }
        limits = {"loss": LOSS_TOLERANCE[precision], "gradients": gradient_tolerance}
        limits["update"] = UPDATE_TOLERANCE[precision]
        for name, error in errors.items():
            worst[name] = max(worst[name], error)
            if not error <= limits[name]:
                faults.append(f"step {i}: {name} is {error:.3g} off, expected at most {limits[name]:g}")
        counters = [[int(one.control[k]) for k in COUNTERS] for one in (found, true)]
        if counters[0] != counters[1]:
            faults.append(f"step {i}: the counters are {counters[0]}, expected {counters[1]}")
    values = {**worst, "tolerance of gradients": gradient_tolerance}
    if faults:
        raise Failed(faults[0], {**values, "faults": faults})
    return values


def _update_error(before: Any, found: Any, true: Any) -> float:
    """How far the way that all state went is from the true one, relative to it."""

    def way(after: Any) -> np.ndarray:
        parts = [
            np.ravel(after[role][name].astype(np.float64) - before[role][name])
            for role in before
            for name in before[role]
        ]
        return np.concatenate(parts)

    return relative_error(way(found), way(true), 1e-6)
