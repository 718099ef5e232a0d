"""Checks a peer before it is timed: what it trains must be what a float64 reference trains."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpumlp import Linear
from gpumlp.workloads import Workload

from .contract import SMALL_STEP, Measurement, Problem, Weights, load_weights
from .numpy_loop import NumpyFloat64, loss_of
from .registry import Contest
from .worker import Worker, WorkerError

CHECK_ROWS = 2600
"""Rows that the check trains on, at most: all of the small sets; short last batches too."""

CHECK_BATCHES = 4.5
"""Batches of an epoch of the check, at most, where a step is large: a ReLU whose input is within rounding of 0 goes the
other way in float32, and a few steps later the weights have parted; `ee6132` has one such in its first 20 steps."""

CHECK_FLOPS = 1e11
"""Floating-point operations of an epoch of the check, at most, which the reference does in float64 on the CPU."""

CHECK_EPOCHS = 3

LOSS_TOLERANCE = 1e-4
"""Between the losses of a peer and of the float64 reference after the check, relative."""

MOVE_TOLERANCE = 2e-3
"""Between the ways that the weights went in the check: ||peer - reference|| / ||reference - start||."""

WARM_UP_LIMIT = 150.0
"""Seconds that a peer may take to import, compile and train an epoch."""

ANSWER_LIMIT = 120.0
"""Seconds that a peer may take for a round beyond its length."""


@dataclass
class Entry:
    """A peer with a number of threads in one contest."""

    worker: Worker
    loss: str
    check: dict[str, float]
    rounds: list[Measurement] = field(default_factory=list)
    tried: dict[str, float] = field(default_factory=dict)


class Judge:
    """Judges the peers of one contest; has its files: what they read, and what they are held to.

    Args:
        contest: which.
        problem: of it.
        folder: for the files.
        loss_tolerance, move_tolerance: see `LOSS_TOLERANCE` and `MOVE_TOLERANCE`.
    """

    def __init__(
        self,
        contest: Contest,
        problem: Problem,
        folder: Path,
        loss_tolerance: float = LOSS_TOLERANCE,
        move_tolerance: float = MOVE_TOLERANCE,
    ) -> None:
        self.contest, self.problem, self.folder = contest, problem, folder
        self.loss_tolerance, self.move_tolerance = loss_tolerance, move_tolerance
        self._saved: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._references: dict[str, list[Weights]] = {}
        self._lock = threading.Lock()

    def _path(self, worker: Worker) -> Path:
        return self.folder / f"{worker.peer.name}-{worker.threads}.npz"

    def make_files(self) -> None:
        """Write what peers of the workload's own loss read, and train the reference, before the first asks for them."""
        with self._lock:
            self._files(self.problem.workload.loss)

    def enter(self, worker: Worker) -> Entry:
        """Check a worker and let it prepare.

        Raises:
            WorkerError: it failed, or its result is not the reference's.
        """
        entry = self.check(worker)
        self.prepare(entry)
        return entry

    def prepare(self, entry: Entry, limit: float = WARM_UP_LIMIT) -> None:
        """Let a worker that was checked prepare, within so many seconds.

        Raises:
            WorkerError: it failed.
        """
        problem, _ = self._saved[entry.loss]
        entry.worker.ask("prepare", limit, problem=problem)

    def check(self, worker: Worker, limit: float = WARM_UP_LIMIT) -> Entry:
        """Hold what a worker trains against the reference, within so many seconds.

        Raises:
            WorkerError: it failed, or its result is not the reference's.
        """
        loss = worker.peer.losses.get(self.problem.workload.loss, self.problem.workload.loss)
        with self._lock:
            _, to_check = self._files(loss)
        path = self._path(worker)
        worker.ask("check", limit, problem=to_check, epochs=CHECK_EPOCHS, path=str(path))
        check = compare(load_weights(path), self._references[loss], self._to_check(loss))
        if not (check["loss_error"] <= self.loss_tolerance and check["move_error"] <= self.move_tolerance):
            raise WorkerError(
                f"check: after {CHECK_EPOCHS} epochs its loss is {check['loss']:.6g} and its weights are "
                f"{check['move_error']:.2g} off; the float64 reference has {check['reference']:.6g}: not timed"
            )
        return Entry(worker, loss, check)

    def _to_check(self, loss: str) -> Problem:
        workload, rows = self.problem.workload, CHECK_ROWS
        if not (self.problem.is_full_batch or is_small(workload)):
            rows = min(rows, round(CHECK_BATCHES * workload.step_rows))
        rows = min(rows, max(32, int(CHECK_FLOPS / workload.flops_per_sample)))
        return self.problem.with_loss(loss).to_check(rows)

    def _files(self, loss: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the saved problem and the one to check with; the reference is made beside them."""
        if loss not in self._saved:
            to_check = self._to_check(loss)
            self._saved[loss] = (
                self.problem.with_loss(loss).save(self.folder / loss),
                to_check.save(self.folder / f"{loss}-check"),
            )
            reference = NumpyFloat64(threads=1)
            reference.prepare(to_check)
            reference.train(CHECK_EPOCHS)
            self._references[loss] = list(reference.weights())
        return self._saved[loss]

    def end(self, entry: Entry) -> dict[str, float]:
        """Return the loss over all rows at the end (of a sweep: the mean), and after how many epochs."""
        path = self._path(entry.worker)
        try:
            epochs = entry.worker.ask("weights", ANSWER_LIMIT, path=str(path))["epochs"]
        except WorkerError:
            return {}
        problem = self.problem.with_loss(entry.loss)
        losses = [loss_of(weights, problem) for weights in load_weights(path)]
        return {"loss": float(np.mean(losses)), "epochs": epochs}


def is_small(workload: Workload) -> bool:
    """Whether a step is so small that one thread may be the faster choice."""
    return workload.flops_per_sample * workload.step_rows <= SMALL_STEP


def compare(networks: Sequence[Weights], reference: Sequence[Weights], problem: Problem) -> dict[str, float]:
    """Return how far networks are from the reference.

    Returns:
        "loss" and "reference", over all rows of the problem in float64, the mean over the networks; "loss_error",
        relative, and "move_error", ||network - reference|| / ||reference - start||, of the one farthest off.
    """
    if len(networks) != len(reference):
        raise WorkerError(f"check: it trained {len(networks)} networks; expected {len(reference)}")
    start = _flat(problem.weights)
    losses, expected, loss_errors, move_errors = [], [], [], []
    for network, truth in zip(networks, reference, strict=True):
        losses.append(loss_of([(w.astype(np.float64), b.astype(np.float64)) for w, b in network], problem))
        expected.append(loss_of(truth, problem))
        loss_errors.append(abs(losses[-1] - expected[-1]) / abs(expected[-1]))
        found, true = _flat(network), _flat(truth)
        move_errors.append(np.linalg.norm(found - true) / np.linalg.norm(true - start))
    return {
        "loss": float(np.mean(losses)),
        "reference": float(np.mean(expected)),
        "loss_error": float(np.max(loss_errors)),
        "move_error": float(np.max(move_errors)),
    }


def _flat(weights: Weights) -> np.ndarray:
    return np.concatenate([np.ravel(array).astype(np.float64) for layer in weights for array in layer])


def first_problem(contest: Contest, X: np.ndarray, y: np.ndarray, precision: str = "float32") -> Problem:
    """Return what peers train of a contest: these rows, and the first weights that gpumlp draws."""
    network = contest.workload.trainer("cpu", "float32").network
    state = network.state_dict()
    places = [i for i, layer in enumerate(network.layers) if isinstance(layer, Linear)]
    weights = [(state[f"{i}.weight"], state[f"{i}.bias"]) for i in places]
    return Problem(contest.workload, X, y, weights, contest.lrs, precision=precision)
