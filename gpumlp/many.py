"""Many networks at once over one data set: each trains in a thread of its own, and nothing is copied."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from .callbacks import Callback
from .checks import as_matrix, check_count, check_lengths, check_seed, on_host
from .cpus import cpu_counts
from .executors import is_small_together, new_seats
from .failure import NonFiniteLossError
from .feed import Shared
from .history import History
from .network import Sequential
from .progress import Progress, deferred_interrupt
from .trainer import Trainer

if TYPE_CHECKING:
    from concurrent.futures import Future

WATCH_SECONDS = 0.1
"""Between two looks at the progress, and at Ctrl-C."""


def make_trainers(
    members: Sequence[Any], make_network: Callable[[], Sequential] | None = None, **settings: Any
) -> list[Trainer]:
    """Return a trainer for each of many networks, of settings, or of seeds.

    Args:
        members: networks; or, with `make_network`, numbers (seeds), or mappings of settings of `Trainer` that differ
            from network to network, for example ``{"optimizer": gm.SGD(lr=0.1), "seed": 3}``.
        make_network: returns a new network, where `members` are not networks.
        settings: of `Trainer` that all have in common: loss, optimizer, ...

    Raises:
        TypeError: members of another kind, or no `make_network` where it is needed.
        ValueError: no member, one network twice, or settings that do not fit.
    """
    trainers: list[Trainer] = []
    if not len(members):
        raise ValueError(
            "there is no network to train; give at least one network, mapping of settings, or seed"
        )
    for member in members:
        own: dict[str, Any] = {}
        if isinstance(member, Sequential):
            network = member
        elif not callable(make_network):
            given = f"a {type(make_network).__name__}" if make_network is not None else "not given"
            raise TypeError(
                f"a member is a {type(member).__name__}, and make_network is {given}; expected networks, or a function "
                "that returns a new one: make_network=lambda: gm.mlp((4, 16, 3))"
            )
        else:
            network = make_network()
            own = dict(member) if isinstance(member, Mapping) else {"seed": check_seed(member)}
        if any(network is trainer.network for trainer in trainers):
            source = "make_network returned" if make_network else "members hold"
            raise ValueError(f"{source} the same network twice; each member needs a new one")
        # losses, optimizers and callbacks may have state that networks must not share
        trainers.append(Trainer(network, **{**copy.deepcopy(settings), **own}))
    return trainers


class _Count(Callback):
    """Notes how many epochs a member has done, and stops it, also where it was asked to before it began."""

    every_epoch = False

    def __init__(self) -> None:
        self.done = 0
        self.loss = float("nan")
        self.cancelled = False

    def on_train_begin(self, trainer: Trainer) -> None:
        if self.cancelled:
            trainer.stop("interrupted")

    def on_block_end(self, trainer: Trainer) -> None:
        history = trainer.history
        if len(history):
            self.done, self.loss = len(history), history["loss"][-1]
        if self.cancelled:
            trainer.stop("interrupted")


def fit_many(
    trainers: Sequence[Trainer],
    X: Any,
    y: Any,
    *,
    epochs: int = 10,
    rows: Sequence[Any] | None = None,
    held_rows: Sequence[Any] | None = None,
    sample_weight: Any = None,
    workers: int | None = None,
    progress: bool = True,
    **fit_settings: Any,
) -> list[History]:
    """Train many networks side by side on the same data; each ends with the bits that it would have alone.

    On a GPU small networks share each launch, one or two to a multiprocessor; large ones, of which each fills the
    GPU, train one after the other. Networks between the two, which alone would train on the graph executor, round
    otherwise in common launches: their bits are those of any `fit_many`.

    Args:
        trainers: one a network; `make_trainers` makes them from networks, settings or seeds. One that names no
            ``threads`` trains in one.
        X, y, sample_weight, epochs: as in `Trainer.fit`; read by all where they are.
        rows: for each trainer the rows to train on; None for all rows.
        held_rows: for each trainer the rows to validate on; None for none.
        workers: networks at a time; None for the CPUs that are there, and on a GPU for as many as share its launches.
        progress: one bar for all of them.
        fit_settings: of `Trainer.fit`: batch_size, validate_every, ...

    Returns:
        The histories, in the order of `trainers`.

    Raises:
        ValueError: data or settings that do not fit.
        NonFiniteLossError: of the first network whose loss was lost, once all others are trained.
    """
    from concurrent.futures import ThreadPoolExecutor

    if isinstance(trainers, Trainer):
        raise TypeError("trainers is one Trainer; expected several, or train it alone: trainer.fit(X, y)")
    trainers, epochs = list(trainers), check_count("epochs", epochs)
    for name, given in (("rows", rows), ("held_rows", held_rows)):
        if given is not None and len(given) != len(trainers):
            raise ValueError(
                f"{name} has {len(given)} entries; expected one for each of {len(trainers)} trainers"
            )
    if len({id(t.network) for t in trainers}) < len(trainers) or not trainers:
        raise ValueError("fit_many needs at least one trainer, and a network of its own for each")
    dtypes = {trainer.network.dtype for trainer in trainers}
    if len(dtypes) == 1:  # converted once, and then read where it is by all
        X = as_matrix(X, dtypes.pop(), backend=trainers[0].network.backend)
    y = np.asarray(on_host(y, "y"))
    check_lengths(len(X), y=y, sample_weight=sample_weight)
    counts = [_Count() for _ in trainers]
    size = workers if workers is None else check_count("workers", workers)
    batch_size = fit_settings.get("batch_size", 32)
    step_rows = len(X) if batch_size is None else min(check_count("batch_size", batch_size), len(X))
    bar = Progress(progress, epochs * len(trainers))
    size = _share(trainers, step_rows, size)  # the last that may fail: who has a seat is waited for

    def train(i: int) -> History:
        trainer = trainers[i]
        threads, callbacks = trainer.threads, trainer.callbacks
        trainer.threads, trainer.callbacks = threads or 1, [*callbacks, counts[i]]
        try:
            if trainer.shared is not None and trainer.shared.seat is not None:
                trainer.shared.seat.begin()
            return trainer.fit(
                X,
                y,
                epochs=epochs,
                rows=None if rows is None else rows[i],
                held_rows=None if held_rows is None else held_rows[i],
                sample_weight=sample_weight,
                progress=False,
                **fit_settings,
            )
        finally:
            trainer.threads, trainer.callbacks = threads, callbacks
            _leave([trainer])

    with (
        deferred_interrupt() as interrupt,
        ThreadPoolExecutor(min(size, len(trainers))) as pool,
    ):
        futures: list[Future[History]] = []
        try:
            futures.extend(pool.submit(train, i) for i in range(len(trainers)))
            _watch(futures, counts, bar, lambda: interrupt.pressed)
        except BaseException:
            for count in counts:
                count.cancelled = True
            begun = [not future.cancel() for future in futures]
            idle = [t for i, t in enumerate(trainers) if i >= len(begun) or not begun[i]]
            _leave(idle)  # those that did begin wait for them
            raise
        finally:
            bar.close()
    return [future.result() for future in futures]


def _leave(trainers: Sequence[Trainer]) -> None:
    """Give up what trainers share with others, who then no longer wait for them."""
    for trainer in trainers:
        if trainer.shared is not None and trainer.shared.seat is not None:
            trainer.shared.seat.leave()
        trainer.shared = None


def _share(trainers: Sequence[Trainer], step_rows: int, workers: int | None) -> int:
    """Give trainers common data, and small ones on a GPU common launches; return how many at a time."""
    common: dict[str, Shared] = {}
    for trainer in trainers:
        trainer.shared = replace(common.setdefault(trainer.network.backend.name, Shared()))
    on_gpu = [trainer for trainer in trainers if trainer.network.backend.is_gpu]
    if not on_gpu:
        return workers or int(cpu_counts()["usable"] or 1)
    if workers is not None or not all(is_small_together(t.network, step_rows) for t in on_gpu):
        return workers or 1
    seats = new_seats([trainer.network.backend for trainer in on_gpu])
    for trainer, seat in zip(on_gpu, seats, strict=True):
        assert trainer.shared is not None
        trainer.shared.seat = seat
    return len(trainers)


def _watch(
    futures: Sequence[Future[History]],
    counts: Sequence[_Count],
    bar: Progress,
    interrupted: Callable[[], bool],
) -> None:
    """Show the progress until all are done; raise what one raised, but let a lost loss wait for the others."""
    ended: SimpleQueue[Future[History]] = SimpleQueue()
    for future in futures:  # told, since to wait for the first of hundreds is to ask each of them, each time
        future.add_done_callback(ended.put)
    shown, left, due = 0, len(futures), 0.0
    while left:
        error: BaseException | None = None
        with contextlib.suppress(Empty):
            error = ended.get(timeout=WATCH_SECONDS).exception()
            left -= 1
        if time.monotonic() >= due or not left:  # to ask hundreds whenever one has ended takes time too
            due = time.monotonic() + WATCH_SECONDS
            total = sum(count.done for count in counts)
            losses = [count.loss for count in counts if count.loss == count.loss]
            if total > shown:
                bar.advanced(total - shown, f"best loss {min(losses):.4g}" if losses else "")
                shown = total
        if interrupted():
            raise KeyboardInterrupt
        if error is not None and not isinstance(error, NonFiniteLossError):
            raise error
