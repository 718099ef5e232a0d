"""``gpumlp bench``: how fast the workloads train here, each checked first, beside what they ran on."""

from __future__ import annotations

import argparse
import datetime
import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Backend, get_backend
from ..callbacks import Callback
from ..checks import check_count
from ..files import write_json
from ..machine import PACKAGE, blas_libraries, commit, executor_name, gpus, machine, versions
from ..registry import look_up
from ..trainer import Trainer
from ..workloads import WORKLOADS, DataDir, TrainingData, Workload
from .output import note

DTYPE = "float32"
WARM_EPOCH_BELOW = 100
"""Steps of an epoch up to which the first epoch of a round is left out of its time; see `Stopwatch`."""


def add_parser(subparsers: Any) -> None:
    """Add the command to ``parser.add_subparsers()``."""
    parser = subparsers.add_parser(
        "bench",
        help="measure how fast the workloads train here",
        description="Train each workload for a few rounds, in turn, and print how fast it went. "
        "An it is an epoch; for ee6132 it is a step.",
        epilog="workloads: " + "; ".join(f"{w.name}, {w.shape}: {w.about}" for w in WORKLOADS.values()),
    )
    parser.add_argument(
        "--workload",
        action="append",
        metavar="NAME[,NAME...]",
        help="which to run, repeated or with commas; all unless given",
    )
    parser.add_argument(
        "--device", default="auto", help='"auto" (the GPU where there is one), "cpu", "gpu", "gpu:1"'
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there, with machine and versions")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with MNIST; GPUMLP_DATA unless given")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round (1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each workload (3)")
    parser.add_argument(
        "--compare", action="store_true", help="beside other libraries, on the CPU; in a checkout only"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the workloads and print a table; return 1 where the loss of one does not fall, else 0.

    Raises:
        ValueError: an unknown workload or device, a number outside its range, a folder that is not there; a
            comparison outside of a checkout.
    """
    if args.compare:
        return _compare(args)
    workloads = chosen_workloads(args.workload)
    rounds = check_count("rounds", args.rounds)
    if not (args.seconds > 0 and math.isfinite(args.seconds)):
        raise ValueError(f"seconds is {args.seconds}; expected a number greater than 0")
    if args.json is not None:
        _check_place(Path(args.json))
    backend = get_backend(args.device)
    try:
        result = measure(workloads, backend, args.seconds, rounds, args.data_dir, note)
    except ArithmeticError as error:  # a loss that does not fall, or is not finite
        note(f"error: {error}")
        return 1
    print(table(result))
    if args.json is not None:
        write_json(args.json, result)
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Run the peers of the checkout that this package stands in, as ``python -m bench.peers`` does."""
    if args.device not in ("auto", "cpu"):
        raise ValueError(f"device is {args.device!r}; the peers run on the CPU: leave --device out")
    root = PACKAGE.parent
    if not (root / "bench" / "peers" / "command.py").is_file():
        raise ValueError(
            "--compare needs a checkout of gpumlp, whose folder bench/peers is no part of the installed package"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    status: int = importlib.import_module("bench.peers.command").compare(
        workloads=args.workload,
        rounds=args.rounds,
        seconds=args.seconds,
        json=args.json,
        data_dir=args.data_dir,
    )
    return status


def _check_place(path: Path) -> None:
    """Refuse, before anything is measured, a place that no file can be written to."""
    if path.is_dir():
        raise ValueError(f"cannot write {str(path)!r}: it is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; create it first"
        )


def chosen_workloads(given: Sequence[str] | None) -> list[Workload]:
    """Return the workloads of ``["small,clf", "polar"]``, each once; all for None.

    Raises:
        ValueError: an unknown name; the message has the nearest valid one.
    """
    if given is None:
        return list(WORKLOADS.values())
    names = [name for text in given for name in text.split(",")]
    return list({w.name: w for w in (look_up("workload", name, WORKLOADS) for name in names)}.values())


# --- measuring -------------------------------------------------------------------------------------------------------


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


class Session:
    """One workload on one device: warmed up, checked, and then measured round by round.

    Args:
        workload: to measure.
        data: its rows, as `Workload.load` gives them.
        device: where it trains.

    Attributes:
        losses: the loss over all rows before training ("start") and after the warm-up ("checked"), and the mean
            loss of the last epoch ("end").
        rounds: what was measured.
    """

    def __init__(self, workload: Workload, data: TrainingData, device: str | Backend = "auto") -> None:
        self.workload, self.data = workload, data
        self.stopwatch = Stopwatch()
        self.trainer = workload.trainer(device, DTYPE, callbacks=[self.stopwatch])
        self.losses: dict[str, float] = {}
        self.rounds: list[Round] = []
        self.epochs = 1

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
        """Train for about half of `seconds`, at least an epoch; check the result; set the length of a round.

        Raises:
            ArithmeticError: the loss is not finite, or has not fallen.
        """
        self.losses["start"] = self._loss()
        done = self._fit(1)
        if done.seconds < seconds / 2:
            done = self._fit(max(1, round(seconds / 2 / done.seconds)))
        start, checked = self.losses["start"], self._loss()
        if not (math.isfinite(checked) and checked < start):
            raise ArithmeticError(
                f"workload {self.workload.name!r}: the loss went from {start:.6g} to {checked:.6g} in the warm-up; "
                "expected it to fall, so nothing was timed"
            )
        self.losses["checked"] = checked
        self.epochs = max(1, round(seconds * done.steps / self.workload.steps / done.seconds))

    def measure_round(self) -> None:
        """Train one round, from the present weights on, and keep what it took."""
        self.rounds.append(self._fit(self.epochs, self.workload.steps <= WARM_EPOCH_BELOW))

    def result(self, peak_gflops: float) -> dict[str, Any]:
        """Return what was measured beside what it was measured on.

        Args:
            peak_gflops: of this machine's matrix products, GFLOP/s.
        """
        w = self.workload
        steps, samples = (
            [getattr(r, name) / r.seconds for r in self.rounds] for name in ("steps", "samples")
        )
        its = steps if w.it == "step" else [rate / w.steps for rate in steps]
        gflops = statistics.median(samples) * w.flops_per_sample / 1e9
        backend = self.trainer.network.backend
        return {
            "workload": w.name,
            "sizes": list(w.sizes),
            "activation": w.activation,
            "loss": w.loss,
            "optimizer": {"name": "sgd", "lr": w.lr},
            "rows": w.rows,
            "batch_size": w.step_rows,
            "data": self.data.source,
            "device": backend.name,
            "device_description": backend.describe(),
            "executor": executor_name(backend),
            "dtype": DTYPE,
            "it": w.it,
            "it_per_second": _spread(its),
            "steps_per_second": _spread(steps),
            "samples_per_second": _spread(samples),
            "cpu_seconds_per_second": statistics.median(r.cpu_seconds / r.seconds for r in self.rounds),
            "gflops": gflops,
            "share_of_peak": gflops / peak_gflops,
            "losses": dict(self.losses),
            "rounds": [asdict(r) for r in self.rounds],
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


class Peak:
    """The machine's own best rate of square matrix products, in GFLOP/s: what the workloads are held against."""

    def __init__(self, backend: Backend, dtype: str = DTYPE) -> None:
        n = self.n = 8192 if backend.is_gpu else 1024
        self._backend = backend
        rng = np.random.default_rng(0)
        self._a, self._b = (backend.asarray(rng.random((n, n), dtype=np.float32), dtype) for _ in range(2))
        self._c = backend.asarray(np.empty((n, n), dtype))
        self.gflops = 0.0
        self._product()

    def _product(self) -> float:
        start = time.perf_counter()
        with self._backend.active():
            self._backend.xp.matmul(self._a, self._b, out=self._c)
        self._backend.synchronize()
        return time.perf_counter() - start

    def measure(self, seconds: float = 0.2) -> None:
        """Multiply for about that long; the best product so far counts."""
        spent = 0.0
        while spent < seconds:
            spent += (took := self._product())
            self.gflops = max(self.gflops, 2 * self.n**3 / took / 1e9)


def measure(
    workloads: Sequence[Workload],
    backend: Backend,
    seconds: float,
    rounds: int,
    data_dir: DataDir = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the results of the workloads, whose rounds take turns, with all that belongs beside them.

    Args:
        workloads: to measure.
        backend: where they train.
        seconds: of a round, about; at least an epoch.
        rounds: of each workload.
        data_dir: where MNIST is looked for.
        say: called with a line of text on what happens.

    Raises:
        ArithmeticError: a loss is not finite, or does not fall in the warm-up.
        ValueError: a `data_dir` without MNIST.
    """
    peak, sets, sessions = Peak(backend), {}, []
    for workload in workloads:
        say(f"warming up {workload.name}")
        key = workload.data, workload.rows
        if key not in sets:
            sets[key] = workload.load(data_dir)
        session = Session(workload, sets[key], backend)
        session.warm_up(seconds)
        sessions.append(session)
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        peak.measure()
        for session in sessions:
            session.measure_round()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "machine": {**machine(), "gpus": gpus()[0], "blas": blas_libraries()},
        "settings": {"seconds": seconds, "rounds": rounds, "device": backend.name, "dtype": DTYPE},
        "peak": {"gflops": peak.gflops, "product": [peak.n] * 3, "dtype": DTYPE},
        "results": [session.result(peak.gflops) for session in sessions],
    }


# --- printing -------------------------------------------------------------------------------------------------------

COLUMNS = (
    "workload",
    "device",
    "executor",
    "dtype",
    "it/s",
    "(min - max)",
    "it",
    "steps/s",
    "samples/s",
    "CPU s/s",
    "GFLOP/s",
    "of peak",
    "loss",
)


def _row(r: Mapping[str, Any]) -> tuple[str, ...]:
    its = r["it_per_second"]
    return (
        r["workload"],
        r["device"],
        r["executor"],
        r["dtype"],
        _number(its["median"]),
        f"({_number(its['min'])} - {_number(its['max'])})",
        r["it"],
        _number(r["steps_per_second"]["median"]),
        _number(r["samples_per_second"]["median"]),
        f"{r['cpu_seconds_per_second']:.2f}",
        _number(r["gflops"]),
        f"{100 * r['share_of_peak']:.1f} %",
        f"{r['losses']['end']:.4g}",
    )


def _number(value: float) -> str:
    """Three digits or all before the point: "0.983", "41.7", "52,300"."""
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def table(result: Mapping[str, Any]) -> str:
    """Return the results as a table, with what it ran on and the data below."""
    rows = [COLUMNS, *map(_row, result["results"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = {0, 1, 2, 3, 6}
    lines = [
        "  ".join(
            cell.ljust(width) if i in texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    peak, cpus = result["peak"], result["machine"]["cpus"]
    size = " x ".join(map(str, peak["product"]))
    sources = dict.fromkeys(r["data"] for r in result["results"])
    by_source = (
        f"{', '.join(r['workload'] for r in result['results'] if r['data'] == source)}: {source}"
        for source in sources
    )
    return "\n".join(
        [
            *lines,
            f"peak: {_number(peak['gflops'])} GFLOP/s, the best product of {size} in {peak['dtype']}; "
            "GFLOP/s counts products only",
            f"data: {'; '.join(by_source)}",
            f"machine: {result['machine']['cpu']}, {cpus['usable']} CPUs; gpumlp {result['versions']['gpumlp']}"
            + (f" ({result['commit']})" if result["commit"] else ""),
        ]
    )
