"""The loop of a training: blocks of steps, the history in bulk, validation and callbacks between blocks."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import check_count
from .executors import Executor, StepPlan, make_executor
from .failure import explain
from .history import History
from .kernels import BAD_STEP, EPOCH, POSITION, STEP
from .program import Memory
from .progress import Progress, deferred_interrupt
from .schedules import ConstantRate, ReduceOnPlateau
from .step import RING, DataShape, training_plan

if TYPE_CHECKING:
    from .callbacks import Callback
    from .trainer import Trainer

BLOCK_SECONDS = 0.05
"""Length of a block: short enough for Ctrl-C and the progress bar, long enough for Python to cost nothing."""


@dataclass(frozen=True)
class Data:
    """Rows that take part, checked and as the kernels take them.

    Attributes:
        x: (n, in_features), on the host.
        target: (n, outputs), or labels (n,).
        weight: (n,), or None for equal weights.
        rows: which of them, int64; None for all.
    """

    x: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    rows: np.ndarray | None = None

    @property
    def used(self) -> int:
        """How many rows take part."""
        return len(self.x) if self.rows is None else len(self.rows)

    def taking(self, rows: np.ndarray) -> Data:
        """The same arrays, other rows of them."""
        return Data(self.x, self.target, self.weight, rows)


@dataclass(frozen=True)
class Every:
    """How often something happens: every `count` epochs, or steps."""

    count: int
    unit: str

    def steps(self, per_epoch: int) -> int:
        """Return the distance in steps, where an epoch has `per_epoch` of them."""
        return self.count * (per_epoch if self.unit == "epochs" else 1)

    @classmethod
    def parse(cls, spec: Any) -> Every:
        """Return what ``5`` (epochs), ``"5 epochs"`` or ``"200 steps"`` says.

        Raises:
            ValueError: anything else.
        """
        match = re.fullmatch(r"\s*(\d+)\s*(epochs?|steps?)\s*", spec) if isinstance(spec, str) else None
        if isinstance(spec, str) and not match:
            raise ValueError(
                f'validate_every is {spec!r}; expected a number of epochs, or for example "200 steps"'
            )
        count = int(match[1]) if match else spec
        return cls(
            check_count("validate_every", count), "steps" if match and match[2][:4] == "step" else "epochs"
        )


class FitLoop:
    """One call of `Trainer.fit`.

    Args:
        trainer: whose network is trained.
        data: to train on.
        batch_rows: rows of a step, at most all of them.
        shuffle: whether each epoch has a new order.
        epochs: to do.
        history: to fill; not empty where a training goes on.
        validate: returns the scores of a validation, or None where there is nothing to validate.
        validate_every: how often.
        callbacks: called in their order.
        record_steps: whether the history keeps the loss of every step.
        progress: whether to show the progress, and that kernels are compiled.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: Data,
        batch_rows: int,
        shuffle: bool,
        epochs: int,
        history: History,
        validate: Callable[[], dict[str, float]] | None,
        validate_every: Every,
        callbacks: Sequence[Callback],
        record_steps: bool,
        progress: bool,
    ) -> None:
        network, backend = trainer.network, trainer.network.backend
        shape = DataShape(
            len(data.x), data.used, data.x.shape[1], data.target.shape[1:], data.weight is not None
        )
        self.trainer, self.history, self.epochs = trainer, history, epochs
        self.data = data
        self.plan: StepPlan = training_plan(
            network, trainer.loss, trainer.optimizer, shape, batch_rows, shuffle
        )
        self.control = trainer.control
        rows = np.arange(len(data.x)) if data.rows is None else np.asarray(data.rows, dtype=np.int64)
        arrays: dict[str, Any] = {
            "control": self.control,
            "rates": np.zeros(RING),
            "ring": backend.asarray(np.zeros((RING, 2))),
            "X": backend.asarray(data.x),
            "y": backend.asarray(data.target),
            "rows": backend.asarray(rows),
            "index": backend.asarray(np.zeros(data.used, dtype=np.int64)),
        }
        if data.weight is not None:
            arrays["weight"] = backend.asarray(data.weight, dtype=network.dtype)
        self.memory = Memory({**network.arenas(), **trainer.slots}, arrays)
        self.executor: Executor = make_executor(backend, self.memory, network.has_python, trainer.threads)
        self.executor.prepare(*self.plan.programs, on_compile=_compiling_notice() if progress else None)
        self.validate, self.every, self.callbacks = validate, validate_every, callbacks
        self.record_steps, self.progress = record_steps, progress
        self.total_steps = (epochs - len(history)) * self.plan.steps - int(self.control[POSITION])
        self.steps_done = 0
        self.first_step = int(self.control[STEP])
        schedule = trainer.optimizer.schedule
        self.constant_rate = isinstance(schedule, ConstantRate)
        if self.constant_rate:
            arrays["rates"][...] = schedule.rates(np.zeros(1, np.int64), self.plan.steps, self.first_step + 1)
        self.plateau = schedule if isinstance(schedule, ReduceOnPlateau) else None
        self.stop_at_epochs = self.plateau is not None or any(c.every_epoch for c in callbacks)

    def run(self) -> None:
        """Train until the epochs are done, a callback stops it, or it fails.

        Raises:
            NonFiniteLossError: the loss or a gradient was not finite.
            KeyboardInterrupt: Ctrl-C, after the block in progress.
        """
        bar = Progress(self.progress, self.epochs, len(self.history))
        self.control[BAD_STEP] = -1
        self.trainer.network.gradients.memory[...] = 0
        if self.control[POSITION]:  # within an epoch that an earlier process began
            self.executor.execute(self.plan.begin)
        try:
            with deferred_interrupt() as interrupt:
                for callback in self.callbacks:
                    callback.on_train_begin(self.trainer)
                block = 1
                while self.steps_done < self.total_steps and not self.history.stopped:
                    block = self._block(block, bar)
                    if interrupt.pressed:
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.history.stopped = "interrupted"
            raise
        finally:
            bar.close()
            for callback in self.callbacks:
                callback.on_train_end(self.trainer)

    def _block(self, size: int, bar: Progress) -> int:
        """Run one block and what follows it; return the size of the next."""
        n = min(size, RING, self._until_stop())
        step = int(self.control[STEP])
        rates = self.memory.arrays["rates"][:n]
        if not self.constant_rate:
            rates[...] = self.trainer.optimizer.schedule.rates(
                np.arange(step, step + n), self.plan.steps, self.first_step + self.total_steps
            )
        position = int(self.control[POSITION])
        start = time.perf_counter()
        done = self.executor.run(self.plan, n)
        self.trainer.network.backend.synchronize()
        seconds = time.perf_counter() - start
        ended = self._record(done, position, rates, seconds)
        if done < n:
            epoch = len(self.history) + 1
            self.history.stopped = "the loss was not finite"
            network = self.trainer.network
            raise explain(network, network.backend, self.memory, self.plan, epoch, float(rates[done]))
        self._validate_if_due()
        self._epochs_ended(ended, bar)
        return min(2 * n, max(1, int(BLOCK_SECONDS * n / max(seconds, 1e-9))))

    def _until_stop(self) -> int:
        """Steps to the next place where a block must end."""
        until = [self.total_steps - self.steps_done]
        if self.stop_at_epochs:
            until.append(self.plan.steps - int(self.control[POSITION]))
        if self.validate is not None:
            every = self.every.steps(self.plan.steps)
            until.append(every - self.history.steps % every)
        return min(until)

    def _record(self, done: int, position: int, rates: np.ndarray, seconds: float) -> int:
        """Put the good steps of a block into the history; return how many epochs ended."""
        history, steps = self.history, self.plan.steps
        ring = self.trainer.network.backend.to_host(self.memory.arrays["ring"][:done])
        if self.record_steps:
            history.step_losses.extend(ring[:, 0].tolist())
        by_mean = self.trainer.loss.reduction == "mean"
        losses = ring[:, 0] * ring[:, 1] if by_mean else ring[:, 0].copy()
        weights = ring[:, 1] if by_mean else np.ones(done)
        ends = np.arange(steps - position - 1, done, steps)
        sums = [
            _sums_by_epoch(values, before, steps - position, steps)
            for values, before in zip((losses, weights), history.partial, strict=True)
        ]
        history.partial = [float(sums[0][-1]), float(sums[1][-1])]
        if len(ends):
            divisor = np.maximum(sums[1][:-1], 1e-300) if by_mean else 1.0
            first = len(history) + 1
            history.add_epochs(
                {
                    "epoch": list(range(first, first + len(ends))),
                    "loss": (sums[0][:-1] / divisor).tolist(),
                    "lr": rates[ends].tolist(),
                    "seconds": (history.train_seconds + seconds * (ends + 1) / done).tolist(),
                }
            )
        history.train_seconds += seconds
        history.steps += done
        self.steps_done += done
        full, last = divmod(position + done, steps)
        before = position * self.plan.batch.rows
        history.samples += full * self.data.used + last * self.plan.batch.rows - before
        return len(ends)

    def _validate_if_due(self) -> None:
        if self.validate is None:
            return
        done = self.history.steps
        if done % self.every.steps(self.plan.steps) == 0 or self.steps_done == self.total_steps:
            scores = self.validate()
            steps = self.plan.steps
            epoch = len(self.history) + int(self.control[POSITION]) / steps
            self.history.add_validation(scores, int(self.control[STEP]), epoch)
            for callback in self.callbacks:
                callback.on_validation(self.trainer, int(self.control[STEP]), scores)

    def _epochs_ended(self, count: int, bar: Progress) -> None:
        if not count:
            return
        shown = count if self.callbacks or self.plateau is not None or bar.shows_each else 1
        names = list(self.history)
        columns = [self.history[name][-shown:] for name in names]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        bar.epochs_ended(rows, count, self.history.it_per_second)
        for row in rows:
            if self.plateau is not None:
                self._observe(row)
            for callback in self.callbacks:
                callback.on_epoch_end(self.trainer, int(row["epoch"]), row)

    def _observe(self, row: dict[str, float]) -> None:
        assert self.plateau is not None
        if (value := row.get(self.plateau.monitor, float("nan"))) == value:
            self.plateau.observe(value)


def _sums_by_epoch(values: np.ndarray, before: float, first: int, steps: int) -> np.ndarray:
    """Return the sum of each epoch's values, and last that of an epoch that goes on.

    Added one by one, so that the sums do not depend on where blocks end, which is a matter of time.

    Args:
        values: of steps, in order.
        before: the sum so far of the epoch that the first of them belongs to.
        first: steps that this epoch still has.
        steps: of a whole epoch.
    """
    if len(values) <= first <= 64:  # a callback that asks for every epoch: NumPy's calls would cost more
        total = before
        for value in values.tolist():
            total += value
        return np.array([total, 0.0] if len(values) == first else [total])
    head = np.cumsum(np.append(before, values[:first]))[-1:]
    if len(values) < first:
        return head
    whole = first + (len(values) - first) // steps * steps
    inner = np.cumsum(values[first:whole].reshape(-1, steps), axis=1)[:, -1]
    tail = np.cumsum(np.append(0.0, values[whole:]))[-1:]
    return np.concatenate([head, inner, tail])


def _compiling_notice() -> Callable[[], None]:
    """What says, once, that kernels are being compiled."""
    said: list[bool] = []

    def say() -> None:
        if not said:
            said.append(True)
            print("compiling kernels for this processor; later runs load them", file=sys.stderr, flush=True)

    return say


def begin_epochs_anew(control: np.ndarray) -> None:
    """Let the next step be the first of an epoch, of an order not seen before."""
    if control[POSITION]:
        control[POSITION] = 0
        control[EPOCH] += 1
