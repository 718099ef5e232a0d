"""What only time, memory and threads show: Ctrl-C, the length of launches, leaks, streamed data, several threads."""

from __future__ import annotations

import functools
import gc
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

import gpumlp as gm
from gpumlp.backend import Backend
from gpumlp.kernels.cuda.device import Kernels
from gpumlp.workloads import WORKLOADS

from .checks import Check, Context, Failed, Values, executor
from .networks import CASES, Case
from .steps import EXECUTORS
from .trainings import _fit, _same, bits, need

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
            "threads of a user do not disturb each other": check_threads,
            "no memory is left behind by many fits": check_leak,
        }
        for name, run in named.items():
            found.append(Check(f"{name}; {kind}", functools.partial(run, context, kind), limit=150))
    found.append(Check("launches are short", functools.partial(check_launches, context)))
    found.append(Check("data that do not fit are streamed", functools.partial(check_streaming, context)))
    found.append(Check("too little memory is a clear error", functools.partial(check_memory_error, context)))
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


# --- threads ---------------------------------------------------------------------------------------------------------


def check_threads(context: Context, kind: str) -> Values:
    """Networks that several threads of a user train at once end with the bits that each has alone."""
    need(context, kind)
    names = [name for name, case in CASES.items() if case.is_small]
    epochs = context.either(40, 2)
    with executor(EXECUTORS[kind]):
        alone = {name: bits(_fit(CASES[name], context.backend, "float32", epochs)) for name in names}
        with ThreadPoolExecutor(len(names)) as pool:
            futures = {
                name: pool.submit(_fit, CASES[name], context.backend, "float32", epochs) for name in names
            }
            together = {name: bits(future.result()) for name, future in futures.items()}
    for name in names:
        _same(alone[name], together[name])
    return {"threads": len(names), "epochs": epochs}


# --- memory ----------------------------------------------------------------------------------------------------------


def check_leak(context: Context, kind: str) -> Values:
    """A thousand fits, each of a new network, leave the device's memory as they found it."""
    need(context, kind)
    case, device = CASES["tanh, cross-entropy"], context.gpu
    warm, most = context.either((50, 1000), (3, 10))
    end = time.monotonic() + min(context.seconds_left / 2, context.either(60.0, 3.0))

    def fit() -> None:
        _fit(case, context.backend, "float32", 1)

    with executor(EXECUTORS[kind]):
        for _ in range(warm):
            fit()
        before, done = _free(device), 0
        while done < most and (time.monotonic() < end or not done):
            fit()
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


@contextmanager
def limited(context: Context, free: int) -> Iterator[Backend]:
    """Let the device say, within the block, that it has this much memory."""
    if context.is_host:
        from gpumlp.kernels.cuda.host_device import HostDevice

        yield Backend("host", np, HostDevice(memory_bytes=free))
        return
    device = context.gpu
    usual = device.memory
    device.memory = lambda: (free, free)
    try:
        yield context.backend
    finally:
        device.memory = usual


def check_streaming(context: Context) -> Values:
    """A training whose data are larger than the memory gives what it gives where they fit."""
    need(context, "graph")
    rows, width, room = context.either((200_000, 784, 300 << 20), (3000, 64, 600_000))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, width), dtype=np.float32)
    y = X[:, :10].argmax(axis=1)

    def train(backend: Backend) -> gm.Trainer:
        network = gm.mlp((width, 32, 10), device=backend, seed=2)
        trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(0.05), metrics=())
        trainer.fit(X, y, epochs=2, batch_size=context.either(256, 50), progress=False)
        return trainer

    with executor(EXECUTORS["graph"]):
        wanted = train(context.backend)
        with limited(context, room) as backend, _noted_streaming() as streamed:
            found = train(backend)
    if not streamed:
        raise Failed("the data were not streamed", {"bytes": X.nbytes, "memory": room})
    one, other = (
        np.concatenate([w.ravel() for w in t.network.state_dict().values()]) for t in (wanted, found)
    )
    error = float(np.linalg.norm(one - other) / np.linalg.norm(one))
    losses = [t.history["loss"] for t in (wanted, found)]
    values = {"bytes": X.nbytes, "memory": room, "difference of weights": error, "losses": losses}
    if not error <= 1e-5:
        raise Failed(f"streamed, the weights are {error:.3g} off", values)
    return values | {"samples/s": found.history.samples / found.history.train_seconds}


@contextmanager
def _noted_streaming() -> Iterator[list[str]]:
    """Note whether a training streams its data."""
    from gpumlp.executors.streaming import StreamingExecutor

    seen: list[str] = []
    usual = StreamingExecutor.prepare_plan

    def prepare_plan(self: Any, *arguments: Any, **settings: Any) -> None:
        seen.append("streamed")
        usual(self, *arguments, **settings)

    StreamingExecutor.prepare_plan = prepare_plan  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        StreamingExecutor.prepare_plan = usual  # type: ignore[method-assign]


def check_memory_error(context: Context) -> Values:
    """Asking for more than there is names the bytes asked for and the bytes free, and the device goes on working."""
    nbytes = 1 << context.either(45, 41)
    try:
        context.gpu.allocate(nbytes)
    except MemoryError as error:
        message = str(error)
    else:
        raise Failed(f"{nbytes:,} bytes were given")
    if f"{nbytes:,}" not in message or "free" not in message:
        raise Failed("the message does not name the bytes", {"message": message})
    workload = WORKLOADS["small"].reduced(64)
    data = workload.load()
    workload.trainer(context.backend).fit(data.X, data.y, epochs=1, progress=False)
    return {"message": message}
