"""What must come out the same: bits of a training that is repeated or shared by threads, weights of streamed data."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

import gpumlp as gm
from gpumlp.backend import Backend
from gpumlp.executors.tailoring import at_once
from gpumlp.workloads import WORKLOADS, Workload

from .checks import PRECISIONS, Check, Context, Failed, Values, executor
from .networks import CASES, Case
from .steps import EXECUTORS
from .trainings import need


def checks(context: Context) -> list[Check]:
    """What takes longest first, since other sections wait for the last."""
    found = [
        Check("data that do not fit are streamed", functools.partial(check_streaming, context)),
        Check("twice the same bits; wide and large batch", functools.partial(check_wide, context)),
    ]
    for name, case in CASES.items():
        for kind in ("graph", "resident"):
            if kind == "resident" and not case.is_small:
                continue
            for precision in PRECISIONS if kind == "graph" else PRECISIONS[:1]:
                repeat = functools.partial(check_repeats, context, case, kind, precision)
                found.append(Check(f"twice the same bits; {name}; {kind}, {precision}", repeat))
    for kind in ("graph", "resident"):
        named: dict[str, Callable[..., Values]] = {
            "a lost loss keeps the last good weights": check_lost_loss,
            "threads of a user do not disturb each other": check_threads,
        }
        found += [
            Check(f"{name}; {kind}", functools.partial(run, context, kind)) for name, run in named.items()
        ]
    found.append(Check("many networks at once", functools.partial(check_many, context), limit=120))
    return [
        *found,
        Check("too little memory is a clear error", functools.partial(check_memory_error, context)),
    ]


# --- the same bits ---------------------------------------------------------------------------------------------------


def fit(case: Case, device: Any, precision: str, epochs: int) -> gm.Trainer:
    trainer = gm.Trainer(
        case.network(device, "float32"),
        loss=case.loss,
        optimizer=case.optimizer(),
        precision=precision,
        metrics=(),
    )
    X, y = case.data()
    trainer.fit(X, y, epochs=epochs, batch_size=case.batch_rows, progress=False, record_steps=True)
    return trainer


def bits(trainer: gm.Trainer) -> dict[str, bytes]:
    """All weights, slots and losses of a training, as bytes."""
    arrays, _ = trainer.state_dict()
    found = {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}
    return found | {"losses": np.array(trainer.history.step_losses).tobytes()}


def same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    if different := [name for name in one if one[name] != other.get(name)]:
        raise Failed(f"the bits of {different[0]} differ", {"different": different})


def check_repeats(context: Context, case: Case, kind: str, precision: str) -> Values:
    """Train twice from the same seed, in blocks that time decides: weights, slots and all losses are equal.

    The resident executor does so the second time by a kernel that is made for the network.
    """
    need(context, kind)
    epochs = context.either(60, 2)
    with executor(EXECUTORS[kind]):
        one = fit(case, context.backend, precision, epochs)
        with at_once():
            other = fit(case, context.backend, precision, epochs)
    same(bits(one), bits(other))
    return {"epochs": epochs, "steps": one.history.steps, "loss": one.history["loss"][-1]}


def check_wide(context: Context) -> Values:
    """The same with products that a library may split over their inner side."""
    need(context, "graph")
    width, rows = context.either((2048, 16_384), (64, 256))
    found = []
    for _ in range(2):
        workload = _wide(width, rows)
        data, trainer = workload.load(), workload.trainer(context.backend, precision="bf16")
        trainer.fit(
            data.X,
            data.y,
            epochs=context.either(20, 2),
            batch_size=rows // 2,
            progress=False,
            record_steps=True,
        )
        found.append(trainer)
    same(*map(bits, found))
    return {"width": width, "batch": rows // 2, "steps": found[0].history.steps}


def _wide(width: int, rows: int) -> Workload:
    from gpumlp.commands.bench_sizes import grid_workload

    return grid_workload(width, rows).reduced(rows)


def check_lost_loss(context: Context, kind: str) -> Values:
    """A rate that overflows ends the training in its step, with finite weights and a message that says where."""
    need(context, kind)
    case = CASES["relu, mse"]
    trainer = gm.Trainer(
        case.network(context.backend, "float32"), loss=case.loss, optimizer=gm.SGD(1e12), metrics=()
    )
    X, y = case.data()
    try:
        with executor(EXECUTORS[kind]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(X, y, epochs=50, batch_size=case.batch_rows, progress=False)
    except gm.NonFiniteLossError as error:
        weights = np.concatenate([w.ravel() for w in trainer.network.state_dict().values()])
        if not np.isfinite(weights).all():
            raise Failed("the weights are not finite", {"message": str(error)}) from None
        return {"message": str(error), "good steps": trainer.history.steps}
    raise Failed("a loss that overflows was not noticed", {"loss": trainer.history["loss"][-1]})


def check_many(context: Context) -> Values:
    """Networks that train side by side end with the bits that each has alone."""
    workload = WORKLOADS["small"].reduced(context.either(280, 64))
    data, count, epochs = workload.load(), context.either(200, 3), context.either(20, 2)
    rates = np.geomspace(workload.lr / 30, workload.lr, count)

    def make(lr: float) -> gm.Trainer:
        network = gm.mlp(workload.sizes, device=context.backend, seed=3)
        return gm.Trainer(network, loss="mse", optimizer=gm.SGD(lr=float(lr)), seed=3)

    together = [make(lr) for lr in rates]
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": 32, "progress": False}
    gm.fit_many(together, data.X, data.y, **settings)
    for i in (0, count // 2, count - 1):
        alone = make(rates[i])
        with executor(EXECUTORS["resident"]):
            alone.fit(data.X, data.y, **settings)
        same(bits(alone), bits(together[i]))
    return {"networks": count, "epochs": epochs}


def check_threads(context: Context, kind: str) -> Values:
    """Networks that several threads of a user train at once end with the bits that each has alone."""
    need(context, kind)
    names = [name for name, case in CASES.items() if case.is_small]
    epochs = context.either(40, 2)
    with executor(EXECUTORS[kind]):
        alone = {name: bits(fit(CASES[name], context.backend, "float32", epochs)) for name in names}
        with ThreadPoolExecutor(len(names)) as pool:
            futures = {
                name: pool.submit(fit, CASES[name], context.backend, "float32", epochs) for name in names
            }
            together = {name: bits(future.result()) for name, future in futures.items()}
    for name in names:
        same(alone[name], together[name])
    return {"threads": len(names), "epochs": epochs}


# --- little memory ---------------------------------------------------------------------------------------------------


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
