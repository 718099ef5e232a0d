"""What only time and memory show where nothing else is on the GPU: Ctrl-C, the length of launches, leaks."""

from __future__ import annotations

import functools
import gc
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import gpumlp as gm
from gpumlp.kernels.cuda.device import Kernels

from .checks import Check, Context, Failed, Values, executor
from .networks import CASES, Case
from .repeats import fit
from .steps import EXECUTORS
from .trainings import need

LAUNCH_LIMIT = 0.05
"""Seconds that a launch of the resident kernel may take, so that Ctrl-C is answered between two."""

ANSWER_LIMIT = 0.5
"""Seconds from Ctrl-C to the end of the training."""

LEAK_BYTES = 1 << 20
"""That many fits may leave behind together: less than a kilobyte each."""


def checks(context: Context) -> list[Check]:
    """One check for each behaviour, on each executor where it matters."""
    found = []
    for kind in ("graph", "resident"):
        named: dict[str, Callable[..., Values]] = {
            "Ctrl-C is answered": check_interrupt,
            "no memory is left behind by many fits": check_leak,
        }
        for name, run in named.items():
            found.append(Check(f"{name}; {kind}", functools.partial(run, context, kind), limit=150))
    found.append(Check("launches are short", functools.partial(check_launches, context)))
    return sorted(found, key=lambda check: "left behind" in check.name)  # the longest last


# --- time ------------------------------------------------------------------------------------------------------------


def check_interrupt(context: Context, kind: str) -> Values:
    """SIGINT in the middle of a long training ends it soon, with finite weights."""
    need(context, kind)
    case = CASES["relu, mse"]
    trainer = _trainer(case, context.backend)
    X, y = case.data()
    sent: list[float] = []
    over = threading.Event()

    def interrupt() -> None:
        wait = context.either(1.0, 0.2)
        # again, since Python drops an exception that a signal raises while an object is finalized
        while not over.wait(wait):
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)
            wait = 10.0

    with executor(EXECUTORS[kind]):
        trainer.fit(X, y, epochs=2, batch_size=case.batch_rows, progress=False)  # compiles
        sender = threading.Thread(target=interrupt, daemon=True)
        # a shell's job in the background ignores the signal, and would train on
        usual = signal.signal(signal.SIGINT, signal.default_int_handler)
        sender.start()
        try:
            trainer.fit(X, y, epochs=10_000_000, batch_size=case.batch_rows, progress=False)
        except KeyboardInterrupt:
            ended = time.perf_counter()
        else:
            raise Failed("the training was not interrupted")
        finally:
            over.set()
            signal.signal(signal.SIGINT, usual)
    took = ended - sent[-1]
    values = {"seconds": took, "limit": ANSWER_LIMIT, "sent": len(sent), "stopped": trainer.history.stopped}
    if len(sent) > 1 and not context.is_host:
        raise Failed(f"the training went on until signal {len(sent)}", values)
    weights = np.concatenate([w.ravel() for w in trainer.network.state_dict().values()])
    if not np.isfinite(weights).all():
        raise Failed("the weights are not finite", values)
    if not took <= context.either(ANSWER_LIMIT, 10 * ANSWER_LIMIT):
        raise Failed(f"the training went on for {took:.2f} s", values)
    return values


def check_launches(context: Context) -> Values:
    """No launch of the resident kernel takes longer than the limit, for nets of every size that it is chosen for."""
    found: dict[str, Any] = {}
    slow: list[str] = []
    for name, sizes, batch in (
        ("small", (1, 64, 128, 1), 32),
        ("at its limit", (64, 128, 128, 10), 32),
        ("one sample at a time", (8, 16, 3), 1),
    ):
        with timed_launches(context) as times:
            _train_for(context, sizes, batch, context.either(1.5, 0.2))
        times = times[1:]  # the first also loads the module
        if not times:
            found[name] = "one launch only"
            continue
        found[name] = {"launches": len(times), "longest": max(times), "median": statistics.median(times)}
        if max(times) > context.either(LAUNCH_LIMIT, 20 * LAUNCH_LIMIT):
            slow.append(f"{name}: {1e3 * max(times):.0f} ms")
    if slow:
        raise Failed(f"a launch took too long: {', '.join(slow)}", found)
    return found | {"limit": LAUNCH_LIMIT}


@contextmanager
def timed_launches(context: Context) -> Iterator[list[float]]:
    """Collect the seconds of each launch of the resident kernel within the block."""
    device = context.gpu
    usual, times = device.kernels, []

    class Timed:
        def __init__(self, kernels: Kernels) -> None:
            self._kernels = kernels
            self.launch = kernels.launch

        def launch_resident(self, *arguments: Any) -> Callable[[], None]:
            launch = self._kernels.launch_resident(*arguments)

            def run() -> None:
                device.synchronize()
                start = time.perf_counter()
                launch()
                device.synchronize()
                times.append(time.perf_counter() - start)

            return run

    known: dict[int, Timed] = {}  # executors tell kernels apart by identity

    def kernels(*arguments: Any, **settings: Any) -> Timed:
        made = usual(*arguments, **settings)
        return known.setdefault(id(made), Timed(made))

    device.kernels = kernels
    try:
        yield times
    finally:
        device.kernels = usual


def _train_for(context: Context, sizes: tuple[int, ...], batch: int, seconds: float) -> None:
    """Train on the resident executor for about that long."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((batch * 16, sizes[0]), dtype=np.float32)
    y = rng.standard_normal((batch * 16, sizes[-1]), dtype=np.float32)
    network = gm.mlp(sizes, device=context.backend)
    end = time.monotonic() + seconds

    trainer = gm.Trainer(network, loss="mse", optimizer=gm.SGD(1e-3), callbacks=[_Stop(end)])
    with executor(EXECUTORS["resident"]):
        trainer.fit(X, y, epochs=10_000_000, batch_size=batch, progress=False)


class _Stop(gm.Callback):
    """Ends a training at a time, without asking for every epoch."""

    every_epoch = False

    def __init__(self, end: float) -> None:
        self.end = end

    def on_epoch_end(self, trainer: gm.Trainer, epoch: int, logs: Any) -> None:
        if time.monotonic() > self.end:
            trainer.stop("long enough")


def _trainer(case: Case, device: Any) -> gm.Trainer:
    network = case.network(device, "float32")
    return gm.Trainer(network, loss=case.loss, optimizer=case.optimizer(), metrics=())


# --- memory ----------------------------------------------------------------------------------------------------------


def check_leak(context: Context, kind: str) -> Values:
    """A thousand fits, each of a new network, leave the device's memory as they found it."""
    need(context, kind)
    case, device = CASES["tanh, cross-entropy"], context.gpu
    warm, most = context.either((50, 1000), (3, 10))
    end = time.monotonic() + min(context.seconds_left / 2, context.either(60.0, 3.0))

    def once() -> None:
        fit(case, context.backend, "float32", 1)

    with executor(EXECUTORS[kind]):
        for _ in range(warm):
            once()
        before, done = _free(device), 0
        while done < most and (time.monotonic() < end or not done):
            once()
            done += 1
    left = before - _free(device)
    values = {"fits": done, "asked for": most, "bytes left behind": left, "limit": LEAK_BYTES}
    if left > LEAK_BYTES:
        raise Failed(f"{done} fits left {left:,} bytes behind", values)
    if done < most:
        values["note"] = "the time was over before all were done"
    return values


def _free(device: Any) -> int:
    gc.collect()
    device.synchronize()
    free: int = device.memory()[0]
    return free
