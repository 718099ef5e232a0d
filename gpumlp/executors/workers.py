"""How many workers a program deserves, and how they work together."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from ..cpus import cpu_counts
from ..program import Call, Program

WORK_FOR_ANOTHER_WORKER = 2_000_000
"""Multiply-adds of a step below which a barrier costs more than a second worker brings."""


def multiply_adds(program: Program) -> int:
    """Count the multiply-adds of a program's products."""
    return sum(multiply_adds_of(call) for call in program.calls if call.kernel == "matmul")


def multiply_adds_of(product: Call) -> int:
    """Count the multiply-adds of one product, with an epilogue or without."""
    a, c = product.by_name["a"], product.by_name["c"]
    assert a is not None
    assert c is not None
    return a.shape[0 if product.scalars["transpose_a"] else 1] * c.shape[0] * c.shape[1]


def default_workers(program: Program) -> int:
    """Workers for a program: by its size, at most the CPUs that this process may use."""
    return max(1, min(int(cpu_counts()["usable"] or 1), multiply_adds(program) // WORK_FOR_ANOTHER_WORKER))


def together(
    work: Callable[[int], None], workers: int, begin: Callable[[int], None], give_up: Callable[[], None]
) -> None:
    """Run ``work(0)`` here and other workers beside it, each in a thread.

    Threads are made for each block: a pool shared by several trainings could leave one waiting at a barrier for a
    worker that never starts. For the same reason nobody works before all are there; where the system gives no more
    threads, fewer share the work.

    Args:
        work: called with the number of the worker.
        workers: at most.
        begin: called with the number of workers, once that is known.
        give_up: called where worker 0 was kept from working; it must let go those that wait for it.
    """
    gate, crew = threading.Event(), 0

    def join_in(worker: int) -> None:
        gate.wait()
        if worker < crew:
            work(worker)

    others: list[threading.Thread] = []
    try:
        for i in range(1, workers):
            thread = threading.Thread(target=join_in, args=(i,), daemon=True)
            try:
                thread.start()
            except RuntimeError:
                break
            others.append(thread)
        begin(len(others) + 1)
        crew = len(others) + 1
        gate.set()
        work(0)
    except BaseException:  # a second Ctrl-C
        give_up()
        gate.set()
        raise
    finally:
        for thread in others:
            thread.join()


class Pace:
    """Chooses between several workers and one by what each achieves now.

    Workers wait for each other at every barrier, so where another process takes a processor away several can be many
    times slower than one. The bits do not depend on their number, and so it may change while a network trains.

    Args:
        workers: the most there may be.
    """

    TRIAL, LONGER_TRIAL = 16, 4
    """A trial of the other number takes the steps of a block over the first. The first steps of workers that were not
    at work are slow, since their caches hold nothing of it: where several are not far behind, they are tried longer."""
    PATIENCE = 12
    """Blocks between trials while one worker runs alone."""

    def __init__(self, workers: int) -> None:
        self.most = self.current = workers
        self._seconds: dict[int, float] = {}
        self._best = math.inf
        self._blocks = 0
        self._is_promising = False

    def trial(self, n_steps: int) -> tuple[int, int]:
        """Return (workers, steps) to try first in a block of `n_steps`; no steps where there is no reason to."""
        self._blocks += 1
        if self.most == 1 or n_steps < 4 or self.current not in self._seconds:
            return self.current, 0
        steps = max(1, n_steps // self.TRIAL)
        if self.current == 1:
            return self.most, steps if self._blocks >= self.PATIENCE else 0
        slower = self._seconds[self.current] > 1.3 * self._best
        return 1, steps if slower or 1 not in self._seconds else 0

    def longer_trial(self, n_steps: int) -> tuple[int, int]:
        """Return (workers, steps) to try behind a first trial, of the `n_steps` that are left of the block."""
        tries = self._is_promising and self.current != self.most
        return self.most, min(n_steps, max(1, n_steps // self.LONGER_TRIAL)) if tries else 0

    def took(self, workers: int, seconds_per_step: float) -> None:
        """Note what a number of workers achieved, and go over to it where it is the better one."""
        self._seconds[workers] = seconds_per_step
        self._best = min(self._best, seconds_per_step)
        if workers != self.current:
            self._blocks = 0
            ratio = seconds_per_step / self._seconds[self.current]
            self._is_promising = not self._is_promising and workers > 1 and 0.9 <= ratio < 2
            if ratio < 0.9:
                self.current = workers
