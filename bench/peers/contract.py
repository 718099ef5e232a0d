"""What a peer is given, what it must do, and how it is timed."""

from __future__ import annotations

import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gpumlp.workloads import ON_REQUEST, WORKLOADS, Workload

Weights = Sequence[tuple[np.ndarray, np.ndarray]]
"""Weight (in_features, out_features) and bias (out_features,) of each layer of one network."""

SMALL_STEP = 100e6
"""Floating-point operations of a step up to which one thread is tried beside all of them."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What all peers train: the same rows and first weights, in float32, by the workload's optimizer.

    Attributes:
        workload: sizes, batch size, loss and activation.
        X: float32 (rows, features).
        y: float32 values, or int64 labels, (rows,).
        weights: of all networks, before training; float32.
        lrs: learning rates, one for each network; several are a sweep.
        shuffle: whether each epoch takes the rows in another order.
        seed: of the order.
        precision: of products on a GPU: "float32", "tf32", or "bf16" with parameters in float32.
    """

    workload: Workload
    X: np.ndarray
    y: np.ndarray
    weights: Weights
    lrs: tuple[float, ...]
    shuffle: bool = True
    seed: int = 0
    precision: str = "float32"

    @property
    def is_sweep(self) -> bool:
        return len(self.lrs) > 1

    @property
    def is_full_batch(self) -> bool:
        """Whether a step takes all rows; their order then does not matter, and nobody shuffles."""
        return self.workload.step_rows == self.workload.rows

    @property
    def shuffles(self) -> bool:
        return self.shuffle and not self.is_full_batch

    def with_loss(self, loss: str) -> Problem:
        """Return the same problem with another loss."""
        return replace(self, workload=replace(self.workload, loss=loss))

    def to_check(self, rows: int) -> Problem:
        """Return the problem on its first rows and in their order, so that every peer must do the same steps."""
        workload = self.workload.reduced(min(rows, self.workload.rows))
        X, y = self.X[: workload.rows], self.y[: workload.rows]
        return replace(self, workload=workload, X=X, y=y, shuffle=False)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the arrays into a new folder; return the rest as JSON takes it, for `load`."""
        folder.mkdir()
        np.save(folder / "X.npy", self.X)
        np.save(folder / "y.npy", self.y)
        save_weights(folder / "weights.npz", [self.weights])
        w = self.workload
        return {
            "folder": str(folder),
            "workload": w.name,
            "sizes": list(w.sizes),
            "rows": w.rows,
            "loss": w.loss,
            "lrs": list(self.lrs),
            "shuffle": self.shuffle,
            "seed": self.seed,
            "precision": self.precision,
        }

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Problem:
        """Return the problem that `save` wrote."""
        folder = Path(saved["folder"])
        known = {**WORKLOADS, **ON_REQUEST}
        changed = {"sizes": tuple(saved["sizes"]), "rows": saved["rows"], "loss": saved["loss"]}
        workload = replace(known[saved["workload"]], **changed)
        X, y = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in "Xy")
        (weights,) = load_weights(folder / "weights.npz")
        order = saved["shuffle"], saved["seed"], saved["precision"]
        return cls(workload, X, y, weights, tuple(saved["lrs"]), *order)


def save_weights(path: Path, networks: Sequence[Weights]) -> None:
    """Write the weights of several networks into one file."""
    arrays = {
        f"{i}.{j}.{name}": array
        for i, weights in enumerate(networks)
        for j, layer in enumerate(weights)
        for name, array in zip(("weight", "bias"), layer, strict=True)
    }
    # one of the overloads of NumPy's stub takes the keywords for its flag
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_weights(path: Path) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Return what `save_weights` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    networks: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for name, weight in arrays.items():
        network, layer, kind = name.split(".")
        if kind != "weight":
            continue
        if layer == "0":
            networks.append([])
        networks[-1].append((weight, arrays[f"{network}.{layer}.bias"]))
    return networks


@dataclass(frozen=True)
class Measurement:
    """What a peer did in a round: epochs of each network, steps of all, seconds of the clock and of all CPUs."""

    epochs: int
    steps: int
    seconds: float
    cpu_seconds: float
    loss: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Peer(ABC):
    """One library, used as its experts would; lives in a process of its own.

    Heavy imports stand inside the methods: the process that asks imports these modules too.

    Args:
        threads: that it may use; its process was started with `environment(threads)`.

    Attributes:
        name: what it is asked for by.
        about: how it is written, in a line.
        library: the distribution whose version counts, or None.
        chooses_threads: it finds its number of threads by itself; others are also tried with one where steps are small.
        sweeps: it has a way to train several networks at once.
        losses: those that it lacks, and the nearest that it has.
        untimed_epochs: that `timed` trains before its clock starts.
        device: "cpu", or what the library calls a GPU.
        optimizers: names of those that it is written for.
        prepares_alone: its compiler chooses by what it times on the device: beside others it would choose by chance.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    library: ClassVar[str | None] = None
    chooses_threads: ClassVar[bool] = False
    sweeps: ClassVar[bool] = True
    losses: ClassVar[Mapping[str, str]] = {}
    device: ClassVar[str] = "cpu"
    optimizers: ClassVar[tuple[str, ...]] = ("sgd",)
    prepares_alone: ClassVar[bool] = False
    untimed_epochs: int = 0

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def available(cls) -> str | None:
        """Return None where the peer can run here, else why it cannot."""
        return None

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        """Return None where the peer has a way to do this, else why it is left out."""
        if problem.is_sweep and not cls.sweeps:
            return f"{cls.name} has no way of its own to train several networks at once"
        if problem.workload.optimizer not in cls.optimizers:
            return f"{cls.name} is written for {' and '.join(cls.optimizers)} here"
        return None

    @classmethod
    def environment(cls, threads: int) -> dict[str, str]:
        """Return the environment variables that hold the process to that many threads."""
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
        return dict.fromkeys(names, str(threads))

    @abstractmethod
    def prepare(self, problem: Problem) -> None:
        """Take a problem; what is compiled once is compiled here, or in the first epoch."""

    @abstractmethod
    def train(self, epochs: int) -> float:
        """Train for whole epochs; return the mean loss of the last one (of a sweep: over its networks)."""

    @abstractmethod
    def weights(self) -> Sequence[Weights]:
        """Return the present weights of each network, as NumPy arrays."""

    def timed(self, epochs: int) -> tuple[float, int, float, float]:
        """Train, timed; return the loss, the epochs that the clock saw, its seconds, and those of all CPUs."""
        start, cpu = time.perf_counter(), time.process_time()
        loss = self.train(epochs)
        return loss, epochs, time.perf_counter() - start, time.process_time() - cpu


def not_installed(*modules: str) -> str | None:
    """Return None where all of them are found, without importing them, else which are missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else None


class Pace:
    """Runs one problem on one peer round by round, and learns how many epochs make a round.

    Attributes:
        epochs: that the networks have been trained for.
    """

    def __init__(self, peer: Peer, problem: Problem) -> None:
        self.peer, self.problem = peer, problem
        self.epochs = 1
        self._rate: float | None = None
        peer.prepare(problem)
        peer.train(1)  # compiles what must be

    def run(self, seconds: float, least: int = 1) -> Measurement:
        """Train for about that long.

        Args:
            seconds: of a round.
            least: epochs that a round has at least.
        """
        if self._rate is None:
            self._rate = self._find_rate(seconds)
        return self._measure(max(least, round(self._rate * seconds)))

    def _find_rate(self, seconds: float) -> float:
        """Return epochs a second, from runs of growing length.

        What a call costs once must not make the rounds short: it is the difference of two runs that counts, and as long
        as that tells of a rate twice as high, a longer run is tried. A first run that is long may have compiled.
        """
        epochs, before, spent_before, repeats = 1, 0, 0.0, True
        while True:
            spent = max(self._measure(epochs).seconds, 1e-9)
            if repeats and spent >= seconds:
                repeats = False
                continue
            rate = epochs / spent
            further = (epochs - before) / max(spent - spent_before, 1e-9)
            costs_once = before > 0 and further > 2 * rate
            if spent >= seconds / 2 or (before and spent >= seconds / 8 and not costs_once):
                return min(max(rate, further), 4 * rate) if before else rate
            before, spent_before, repeats = epochs, spent, False
            epochs = max(epochs + 1, 8 * epochs if costs_once else min(8 * epochs, round(rate * seconds / 2)))

    def _measure(self, epochs: int) -> Measurement:
        loss, epochs, seconds, cpu_seconds = self.peer.timed(epochs)
        self.epochs += epochs + self.peer.untimed_epochs
        steps = epochs * self.problem.workload.steps * len(self.problem.lrs)
        return Measurement(epochs, steps, seconds, cpu_seconds, loss)
