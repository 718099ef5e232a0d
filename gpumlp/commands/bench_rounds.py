"""How workloads are timed: sessions, each on one device, whose rounds take turns, and the device's own best product."""

from __future__ import annotations

import math
import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..backend import Backend, get_backend
from ..callbacks import Callback
from ..executors import choose_executor, tailoring
from ..many import fit_many
from ..step import DataShape, training_plan
from ..trainer import Trainer
from ..workloads import TrainingData, Workload

DTYPE = "float32"
WARM_EPOCH_BELOW = 100
"""Steps of an epoch up to which the first epoch of a round is left out of its time; see `Stopwatch`."""

CHECK_EPOCHS = 2
"""Epochs from the same seed after which all devices must have the same loss."""

LOSS_TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""Between two devices' losses after these epochs, relative to the loss, or to a hundredth of that before training."""


@dataclass(frozen=True)
class Place:
    """Where a workload trains.

    Attributes:
        backend: the device.
        precision: of products on a GPU: "float32", "tf32" or "bf16".
    """

    backend: Backend
    precision: str = "float32"

    @property
    def name(self) -> str:
        """For example "cpu", "gpu:0" or "gpu:0 tf32"."""
        named = "" if self.precision == "float32" else f" {self.precision}"
        return f"{self.backend.name}{named}"


@dataclass(frozen=True)
class Round:
    """What was done in a round, and how long it took, in seconds of the clock and of all CPUs together."""

    steps: int
    samples: int
    seconds: float
    cpu_seconds: float


class Stopwatch(Callback):
    """Times the loop of `Trainer.fit`: blocks of steps, and what stands between them.

    It runs from the start of the training to its end, by the wall clock: history and learning rates between the
    blocks are part of what a user waits for, and `History.train_seconds` leaves them out. Left out are the checks of
    the data and the writing of the programs, once a `fit`. Each `fit` takes memory of its own, and the system
    clears its pages when they are first touched: up to a tenth of the time of a large full batch, once a `fit`.
    Where an epoch has few steps, the first is therefore left out too.
    """

    every_epoch = False

    def __init__(self) -> None:
        self.leave_out_first_epoch = False
        self.measured = Round(0, 0, 0.0, 0.0)
        self._marks: list[Round] = []

    def _mark(self, trainer: Trainer) -> None:
        history = trainer.history
        self._marks.append(Round(history.steps, history.samples, time.perf_counter(), time.process_time()))

    def on_train_begin(self, trainer: Trainer) -> None:
        self._marks.clear()
        self._mark(trainer)

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: Mapping[str, float]) -> None:
        if self.leave_out_first_epoch and len(self._marks) == 1:
            self._mark(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        self._mark(trainer)
        start, end = self._marks[-2:]
        if start.steps == end.steps:  # one block did it all
            start = self._marks[0]
        self.measured = Round(
            end.steps - start.steps,
            end.samples - start.samples,
            end.seconds - start.seconds,
            end.cpu_seconds - start.cpu_seconds,
        )


class SweepClock(Callback):
    """Times many networks that train at once, as all of them are callbacks' one object.

    Small ones on a GPU share launches, of which a gang's first comes when all of it have written their programs: there
    the clock runs while some gang trains, from the last of it that begins to the last that ends. Elsewhere it runs all
    the time.
    """

    every_epoch = False

    def __init__(self) -> None:
        # when the last of each gang did; None: of those that are in none
        self._begun: dict[Any, float] = {}
        self._ended: dict[Any, float] = {}

    def on_train_begin(self, trainer: Trainer) -> None:
        self._begun[_gang(trainer)] = time.perf_counter()

    def on_train_end(self, trainer: Trainer) -> None:
        self._ended[_gang(trainer)] = time.perf_counter()

    def timed(self, train: Callable[[], Any]) -> tuple[Any, float]:
        """Return what `train()` returns, and the seconds that count."""
        start = time.perf_counter()
        result = train()
        seconds = time.perf_counter() - start
        if None not in self._begun:
            until, seconds = 0.0, 0.0
            for gang, begun in sorted(self._begun.items(), key=operator.itemgetter(1)):
                ended = max(until, self._ended[gang])
                seconds, until = seconds + ended - max(until, begun), ended
        self._begun.clear()  # what they refer to ends with the training
        self._ended.clear()
        return result, seconds


def _gang(trainer: Trainer) -> Any:
    """Whose launches its steps go into; None where it trains by itself."""
    seat = trainer.shared.seat if trainer.shared is not None else None
    return seat.gang if seat is not None else None


class Session:
    """One workload on one device: warmed up, checked, and then measured round by round.

    Args:
        workload: to measure.
        data: its rows, as `Workload.load` gives them.
        device: where it trains.
        precision: of products on a GPU.

    Attributes:
        losses: the loss over all rows before training ("start"), after the first `CHECK_EPOCHS` ("agreed") and after
            the warm-up ("checked"), and the mean loss of the last epoch ("end").
        rounds: what was measured.
    """

    def __init__(
        self,
        workload: Workload,
        data: TrainingData,
        device: str | Backend = "auto",
        precision: str = "float32",
    ) -> None:
        self.workload, self.data = workload, data
        self.place = Place(get_backend(device), precision)
        self.losses: dict[str, float] = {}
        self.rounds: list[Round] = []
        self.epochs = 1
        self._make()

    def _make(self) -> None:
        self.stopwatch = Stopwatch()
        self.trainer = self.workload.trainer(
            self.place.backend, DTYPE, callbacks=[self.stopwatch], precision=self.place.precision
        )

    @property
    def executor(self) -> str:
        """Name of what runs the training steps."""
        return executor_of(self.trainer, self.workload, together=self.workload.networks)

    def _fit(self, epochs: int, leave_out_first_epoch: bool = False) -> Round:
        self.stopwatch.leave_out_first_epoch = leave_out_first_epoch
        self.trainer.fit(
            self.data.X,
            self.data.y,
            epochs=epochs + leave_out_first_epoch,
            batch_size=self.workload.batch_size,
            progress=False,
        )
        self.losses["end"] = self.trainer.history["loss"][-1]
        return self.stopwatch.measured

    def _loss(self) -> float:
        return self.trainer.evaluate(self.data.X, self.data.y)["loss"]

    def warm_up(self, seconds: float) -> None:
        """Train for about half of `seconds`, at least two epochs; check the result; set the length of a round.

        Raises:
            ArithmeticError: the loss is not finite, or has not fallen.
        """
        self.losses["start"] = self._loss()
        with tailoring.at_once():  # what a long training has is what is timed
            self._fit(CHECK_EPOCHS)
        self.losses["agreed"] = self._loss()
        done = self._fit(1)
        if done.seconds < seconds / 2:
            done = self._fit(max(1, round(seconds / 2 / done.seconds)))
        start, checked = self.losses["start"], self._loss()
        if not (math.isfinite(checked) and checked < start):
            raise ArithmeticError(
                f"workload {self.workload.name!r}, {self.place.name}: the loss went from {start:.6g} to "
                f"{checked:.6g} in the warm-up; expected it to fall, so nothing was timed"
            )
        self.losses["checked"] = checked
        self.epochs = max(1, round(seconds * done.steps / self._steps / done.seconds))

    @property
    def _steps(self) -> int:
        """Steps of an epoch, of all networks together."""
        return self.workload.steps * self.workload.networks

    def check_agreement(self, other: Session) -> None:
        """Hold the loss after the first epochs against another session's.

        Raises:
            ArithmeticError: they differ by more than `LOSS_TOLERANCE`.
        """
        mine, theirs = self.losses["agreed"], other.losses["agreed"]
        tolerance = max(LOSS_TOLERANCE[s.place.precision] for s in (self, other))
        error = abs(mine - theirs) / max(abs(theirs), 0.01 * abs(other.losses["start"]))
        if not error <= tolerance:
            raise ArithmeticError(
                f"workload {self.workload.name!r}: after {CHECK_EPOCHS} epochs from the same seed the loss is "
                f"{mine:.6g} on {self.place.name} and {theirs:.6g} on {other.place.name}; expected it to differ by "
                f"{tolerance:g} at most, so nothing was timed"
            )

    def measure_round(self) -> None:
        """Train one round, from the present weights on, and keep what it took."""
        self.rounds.append(self._fit(self.epochs, self.workload.steps <= WARM_EPOCH_BELOW))

    def rates(self) -> dict[str, Any]:
        """Return it/s, steps/s and samples/s (median, min, max), GFLOP/s, and CPU seconds a second."""
        w = self.workload
        steps, samples = (
            [getattr(r, name) / r.seconds for r in self.rounds] for name in ("steps", "samples")
        )
        return {
            "it_per_second": _spread(steps if w.it == "step" else [rate / w.steps for rate in steps]),
            "steps_per_second": _spread(steps),
            "samples_per_second": _spread(samples),
            "cpu_seconds_per_second": statistics.median(r.cpu_seconds / r.seconds for r in self.rounds),
            "gflops": statistics.median(samples) * w.flops_per_sample / 1e9,
        }

    def result(self, peak_gflops: float) -> dict[str, Any]:
        """Return what was measured beside what it was measured on.

        Args:
            peak_gflops: of this device's matrix products, GFLOP/s.
        """
        w, backend = self.workload, self.place.backend
        rates = self.rates()
        return {
            "workload": w.name,
            "sizes": list(w.sizes),
            "networks": w.networks,
            "activation": w.activation,
            "loss": w.loss,
            "optimizer": {"name": w.optimizer, "lr": w.lr},
            "rows": w.rows,
            "batch_size": w.step_rows,
            "data": self.data.source,
            "device": backend.name,
            "device_description": backend.describe(),
            "executor": self.executor,
            "dtype": DTYPE,
            "precision": self.place.precision,
            "it": w.it,
            **rates,
            "share_of_peak": rates["gflops"] / peak_gflops,
            "losses": dict(self.losses),
            "rounds": [asdict(r) for r in self.rounds],
        }


class SweepSession(Session):
    """A workload of many networks, trained side by side by `fit_many`.

    `SweepClock` says what is timed; its losses are means over the networks of the losses of whole epochs.
    """

    def _make(self) -> None:
        self.clock = SweepClock()
        self.trainers = self.workload.trainers(self.place.backend, DTYPE, precision=self.place.precision)
        for trainer in self.trainers:
            trainer.callbacks = [self.clock]
        self.trainer = self.trainers[0]

    def _fit(self, epochs: int, leave_out_first_epoch: bool = False) -> Round:
        settings: dict[str, Any] = {"batch_size": self.workload.batch_size, "progress": False}
        cpu = time.process_time()
        histories, seconds = self.clock.timed(
            lambda: fit_many(self.trainers, self.data.X, self.data.y, epochs=epochs, **settings)
        )
        done = Round(
            sum(history.steps for history in histories),
            sum(history.samples for history in histories),
            seconds,
            time.process_time() - cpu,
        )
        self.losses["end"] = float(np.mean([history["loss"][-1] for history in histories]))
        return done

    def _loss(self) -> float:
        if not self.losses:  # nothing is trained yet: all networks are the first one
            return self.trainer.evaluate(self.data.X, self.data.y)["loss"]
        return self.losses["end"]


def session(workload: Workload, data: TrainingData, place: Place) -> Session:
    """Return what measures a workload."""
    kind = SweepSession if workload.networks > 1 else Session
    return kind(workload, data, place.backend, place.precision)


def executor_of(trainer: Trainer, workload: Workload, together: int = 1) -> str:
    """Return the name of the executor that a workload's training steps run on."""
    network = trainer.network
    labels = workload.loss in ("cross_entropy", "softmax_mse")
    shape = DataShape(
        workload.rows, workload.rows, workload.sizes[0], () if labels else (workload.sizes[-1],), False
    )
    plan = training_plan(network, trainer.loss, trainer.optimizer, shape, workload.step_rows, True)
    return choose_executor(network.backend, network.has_python, plan, together)[0].name


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
