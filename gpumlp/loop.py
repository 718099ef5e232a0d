"""The loop of a training: blocks of steps, the history in bulk, validation and callbacks between blocks."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .callbacks import Callback
from .checks import check_count
from .executors import StepPlan
from .failure import explain
from .feed import connect
from .history import History
from .kernels import BAD_STEP, EPOCH, POSITION, SLOT, START, STEP
from .program import RING
from .progress import Interrupt, Progress, deferred_interrupt
from .rows import Data
from .schedules import ConstantRate, ReduceOnPlateau
from .step import DataShape, training_plan

if TYPE_CHECKING:
    from .trainer import Trainer


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
        network = trainer.network
        shape = DataShape(
            len(data.x), data.used, data.x.shape[1], data.target.shape[1:], data.weight is not None
        )
        self.trainer, self.history, self.epochs = trainer, history, epochs
        self.data = data
        self.plan: StepPlan = training_plan(
            network, trainer.loss, trainer.optimizer, shape, batch_rows, shuffle
        )
        self.control = trainer.control
        notice = _compiling_notice() if progress else None
        self.memory, self.executor = connect(trainer, data, self.plan, notice)
        self.executor.longest_run = 2 * self.executor.block_seconds  # others may take the processor away
        self.validate, self.every, self.callbacks = validate, validate_every, callbacks
        self.record_steps, self.progress = record_steps, progress
        self.total_steps = (epochs - len(history)) * self.plan.steps - int(self.control[POSITION])
        self.steps_done = 0
        self.first_step = int(self.control[STEP])
        trainer.trained_on = self.executor.name
        self._take_schedule()

    def _take_schedule(self) -> None:
        """Train by the schedule that the optimizer has now; a callback may give it another."""
        schedule = self.schedule = self.trainer.optimizer.schedule
        self.constant_rate = isinstance(schedule, ConstantRate)
        if isinstance(schedule, ConstantRate):
            # no more: to touch memory takes time
            self.memory.arrays["rates"][: self.total_steps] = schedule.lr
        self.plateau = schedule if isinstance(schedule, ReduceOnPlateau) else None
        self.stop_at_epochs = self.plateau is not None or any(c.every_epoch for c in self.callbacks)

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
                block = self.executor.first_block
                while self.steps_done < self.total_steps and not self.history.stopped:
                    if self.trainer.optimizer.schedule is not self.schedule:
                        self._take_schedule()
                    if epochs := self._epochs_one_by_one():
                        self._run_epochs(epochs, bar, interrupt)
                    else:
                        block = self._block(block, bar)
                    if interrupt.pressed:
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.history.stopped = "interrupted"
            raise
        finally:
            bar.close()
            # what is left there depends on where blocks ended, a matter of time
            self.control[[SLOT, START]] = 0
            for callback in self.callbacks:
                callback.on_train_end(self.trainer)

    def _block(self, size: int, bar: Progress) -> int:
        """Run one block and what follows it; return the size of the next."""
        n = min(size, RING, self._until_stop())
        step = int(self.control[STEP])
        rates = self.memory.arrays["rates"][:n]
        if not self.constant_rate:
            rates[...] = self.schedule.rates(
                np.arange(step, step + n), self.plan.steps, self.first_step + self.total_steps
            )
        position = int(self.control[POSITION])
        start = time.perf_counter()
        done = self.executor.run(self.plan, n)
        seconds = time.perf_counter() - start
        self._ran(done, position, rates, seconds, bar)
        paced = min(2 * n, int(self.executor.block_seconds * done / max(seconds, 1e-9)))
        return max(self.executor.first_block, paced)

    def _ran(self, done: int, position: int, rates: np.ndarray, seconds: float, bar: Progress) -> None:
        """Record steps and do what follows them."""
        ended = self._record(done, position, rates, seconds)
        if self.control[BAD_STEP] >= 0:
            network, epoch = self.trainer.network, len(self.history) + 1
            self.history.stopped = "the loss was not finite"
            memory, plan = self.executor.replayable(self.plan)
            error = explain(network, network.backend, memory, plan, epoch, float(rates[done]))
            self._block_ended(ended, bar)
            raise error
        self._validate_if_due()
        self._block_ended(ended, bar)

    def _epochs_one_by_one(self) -> int:
        """How many whole epochs only callbacks come between; 0 where a block may be longer, or more is to be done."""
        ready = self.stop_at_epochs and self.plateau is None and self.executor.epoch_sums is not None
        if not ready or self.control[POSITION] or self.plan.steps > RING:
            return 0
        left = self.total_steps - self.steps_done
        if self.validate is not None:  # the epoch that ends with a validation is a block
            every = self.every.steps(self.plan.steps)
            left = min(left, every - self.history.steps % every) - 1
        return left // self.plan.steps

    def _run_epochs(self, count: int, bar: Progress, interrupt: Interrupt) -> None:
        """Run whole epochs, the callbacks after each, for about the time of a block.

        What blocks of one epoch would do, in plain Python: beside an epoch of 80 us each call of NumPy shows.
        """
        executor, plan, history, trainer = self.executor, self.plan, self.history, self.trainer
        run, sums, clock = executor.run, executor.epoch_sums, time.perf_counter
        steps, samples = plan.steps, self.data.used
        by_mean = trainer.loss.reduction == "mean"
        called = [c.on_epoch_end for c in self.callbacks if hears_of_epochs(c)]
        add_epoch, add_loss, add_lr, add_seconds, *add_others = (c.append for c in history.epochs.values())
        others = dict.fromkeys(list(history.epochs)[4:], float("nan"))  # measured by validations alone
        each, record = bar.shows_each, self.record_steps
        table, rates = self._rates_of_epochs(count), self.memory.arrays["rates"][:steps]
        lr, first, row = float(rates[-1]), len(history) + 1, {}
        over = clock() + executor.block_seconds
        for epoch in range(first, first + (count if table is None else len(table))):
            if trainer.optimizer.schedule is not self.schedule:  # a callback gave it another
                break
            if table is not None:
                rates[...] = table[epoch - first]
                lr = float(rates[-1])
            start = clock()
            done = run(plan, steps)
            now = clock()
            if done < steps:
                break
            loss = sums[0] / (sums[1] or 1e-300) if by_mean else sums[2]
            seconds = history.train_seconds = history.train_seconds + (now - start)
            history.steps += steps
            history.samples += samples
            self.steps_done += steps
            add_epoch(epoch)
            add_loss(loss)
            add_lr(lr)
            add_seconds(seconds)
            for add in add_others:
                add(float("nan"))
            row = {"epoch": epoch, "loss": loss, "lr": lr, "seconds": seconds, **others}
            if record:
                history.step_losses.extend(self.memory.arrays["ring"][:steps, 0].tolist())
            if each:
                bar.epochs_ended([row], 1, history.it_per_second)
            for on_epoch_end in called:
                on_epoch_end(trainer, epoch, row)
            if now > over or history.stopped or interrupt.pressed:
                break
        if row and not each:
            bar.epochs_ended([row], len(history) + 1 - first, history.it_per_second)
        if done < steps:
            self._ran(done, 0, rates, now - start, bar)
        else:
            self._block_ended(0, bar)

    def _rates_of_epochs(self, count: int) -> np.ndarray | None:
        """The rates of the next epochs, (epochs, steps), at most a block's; None for a rate that stays."""
        if self.constant_rate:
            return None
        first, steps = int(self.control[STEP]), self.plan.steps
        ahead = np.arange(first, first + steps * min(count, RING // steps))
        rates = self.schedule.rates(ahead, steps, self.first_step + self.total_steps)
        return rates.reshape(-1, steps)

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
        ring = self.executor.losses(done)
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
            lr = [float(rates[0])] * len(ends) if self.constant_rate else rates[ends].tolist()
            history.add_epochs(
                {
                    "epoch": list(range(first, first + len(ends))),
                    "loss": (sums[0][:-1] / divisor).tolist(),
                    "lr": lr,
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

    def _block_ended(self, epochs: int, bar: Progress) -> None:
        """Tell the progress and the callbacks of a block in which so many epochs ended."""
        if epochs:
            self._epochs_ended(epochs, bar)
        for callback in self.callbacks:
            callback.on_block_end(self.trainer)

    def _epochs_ended(self, count: int, bar: Progress) -> None:
        called = [c.on_epoch_end for c in self.callbacks if hears_of_epochs(c)]
        shown = count if called or self.plateau is not None or bar.shows_each else 1
        names = list(self.history)
        columns = [self.history[name][-shown:] for name in names]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        bar.epochs_ended(rows, count, self.history.it_per_second)
        for row in rows:
            if self.plateau is not None:
                self._observe(row)
            for on_epoch_end in called:
                on_epoch_end(self.trainer, int(row["epoch"]), row)

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
    epochs = values[first:whole].reshape(-1, steps)
    if len(epochs) > steps:  # many short ones: step by step, since each cumulative sum is a call
        inner = epochs[:, 0].copy()
        for step in range(1, steps):
            inner += epochs[:, step]
    else:
        inner = np.cumsum(epochs, axis=1)[:, -1]
    tail = np.cumsum(np.append(0.0, values[whole:]))[-1:]
    return np.concatenate([head, inner, tail])


def hears_of_epochs(callback: Callback) -> bool:
    """Whether a callback does anything when an epoch ends, so that rows of the history must be made for it."""
    return getattr(callback.on_epoch_end, "__func__", None) is not Callback.on_epoch_end


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
