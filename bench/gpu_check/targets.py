"""How fast the workloads are that have a target, beside what this GPU's own best product does."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import gpumlp as gm
from gpumlp.commands.bench_peak import Peak
from gpumlp.commands.bench_rounds import Session, executor_of
from gpumlp.executors.tailoring import at_once
from gpumlp.workloads import ON_REQUEST, WORKLOADS, Workload

from .checks import PRECISIONS, Check, Context, Failed, Skipped, Values, executor
from .steps import EXECUTORS

ROUNDS, MOST_ROUNDS = 2, 4
ROUND_SECONDS = 0.7
SETTLED = 0.01
"""Relative difference that two rounds must come to; until then there are further ones."""

# H200; what it is counted in stands beside it. None: without a target, to be compared.
TARGETS: dict[str, float] = {
    "small, graph": 50_000,
    "small, resident": 100_000,
    "sweep": 10_000_000,
    "ee6132": 25_000,
    "mlpnn, float32": 250,
    "mlpnn, tf32": 1_400,
    "mlpnn, bf16": 2_200,
    "wide, bf16": 190,
}
"""Steps a second (of a full batch: epochs; of the sweep: of all networks together)."""

SHARE_OF_PEAK = 0.85
"""Of the GPU's own best product in bf16, for the products of "wide"."""


def checks(context: Context) -> list[Check]:
    """The limit of the device in each precision, then each row; they get ready before this returns, if they are let."""
    peaks: dict[str, Peak] = {}
    found = [
        Check(
            f"limit: {precision}",
            functools.partial(limit, context, peaks, precision),
            limit=60,
            measures=True,
        )
        for precision in PRECISIONS
    ]
    rows: dict[str, Row | Sweep] = {
        "small, resident": Row(context, "small", "float32", "resident", peaks),
        "small, graph": Row(context, "small", "float32", "graph", peaks),
        "sweep": Sweep(context),
        "ee6132": Row(context, "ee6132", "float32", "", peaks),
        **{f"mlpnn, {p}": Row(context, "mlpnn", p, "", peaks) for p in ("float32", "bf16", "tf32")},
        "wide, bf16": Row(context, "wide", "bf16", "", peaks),
    }
    for name, one in rows.items():
        if name not in context.left_out and not context.called.is_set() and context.seconds_left > 0:
            with contextlib.suppress(Exception):  # which shows again when it is measured
                one.get_ready()
    found += [
        Check(name, functools.partial(judged, name, one.measure), limit=100, measures=True)
        for name, one in rows.items()
    ]
    return found


def workload_of(context: Context, name: str) -> Workload:
    """Return a workload; on the stand-in a small part of it."""
    workload = {**WORKLOADS, **ON_REQUEST}[name]
    if not context.is_host:
        return workload
    if name == "wide":
        from gpumlp.workloads import random_classes

        return replace(workload, sizes=(24, 24, 24), data=random_classes(24), rows=64, batch_size=32, lr=1e-2)
    return replace(workload.reduced(64), networks=min(3, workload.networks))


def differ(rates: Sequence[float], settled: float) -> bool:
    """Whether no two rounds agree within a relative difference."""
    return all((b - a) / b > settled for a, b in pairwise(sorted(rates)))


def judged(name: str, run: Callable[[], Values]) -> Values:
    """Put the target beside what was measured."""
    values = run()
    target = TARGETS.get(name)
    if target is None:
        return values
    return values | {"target": target, "of target": values["steps/s"] / target}


def limit(context: Context, peaks: dict[str, Peak], precision: str) -> Values:
    """Measure the best product of the device in one precision."""
    if precision != "float32" and not context.gpu.has_products:
        raise Skipped("nvmath-python is not installed: no products but those of float32")
    peak = peaks[precision] = Peak(context.backend, precision=precision)
    peak.measure(context.either(0.5, 0.05))
    return {"TFLOP/s": peak.gflops / 1e3, "product": peak.n}


class Row:
    """A workload through `Trainer.fit`, on the executor that is asked for or that it chooses.

    Args:
        context: of the section.
        name: of the workload.
        precision: of products.
        kind: of the executor, of `EXECUTORS`; "" for what is chosen.
        peaks: the limits of the device, as far as they are known.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        precision: str,
        kind: str = "",
        peaks: Mapping[str, Peak] | None = None,
    ) -> None:
        self.context, self.name, self.precision, self.kind = context, name, precision, kind
        self.peaks = {} if peaks is None else peaks
        self._session: Session | None = None

    def _executor(self) -> contextlib.AbstractContextManager[None]:
        if self.kind == "graph" and not self.context.gpu.has_products:
            raise Skipped("nvmath-python is not installed: there is no graph executor")
        return executor(EXECUTORS[self.kind]) if self.kind else contextlib.nullcontext()

    def get_ready(self) -> Session:
        """Draw, load and compile, where that was not done before; return what trains."""
        if self._session is None:
            workload = workload_of(self.context, self.name)
            with self._executor():
                session = Session(workload, workload.load(), self.context.backend, self.precision)
                session.warm_up(0.0)
            self._session = session
        return self._session

    def measure(self) -> Values:
        """Time rounds until two agree."""
        start = time.perf_counter()
        session = self.get_ready()
        with self._executor():
            session.warm_up(
                self.context.either(ROUND_SECONDS, 0.05)
            )  # how long a round is, with nothing beside it
            ready = time.perf_counter() - start
            for i in range(MOST_ROUNDS):
                if i >= ROUNDS and not differ([r.steps / r.seconds for r in session.rounds], SETTLED):
                    break
                session.measure_round()
        self._session = None  # its memory is free for the next
        rates = session.rates()
        values: Values = {
            "steps/s": rates["steps_per_second"]["median"],
            "least and most": [rates["steps_per_second"]["min"], rates["steps_per_second"]["max"]],
            "samples/s": rates["samples_per_second"]["median"],
            "TFLOP/s": rates["gflops"] / 1e3,
            "executor": self.kind or session.executor,
            "precision": self.precision,
            "losses": session.losses,
            "seconds to be ready": ready,
        }
        if (peak := self.peaks.get(self.precision)) is not None and peak.gflops:
            values["share of limit"] = rates["gflops"] / peak.gflops
            if self.name == "wide" and self.precision == "bf16":
                values["target of share"] = SHARE_OF_PEAK
        return values


class Sweep:
    """Many networks, by the difference of a long and a short training, so that writing programs is left out."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.workload = workload_of(context, "sweep")
        self.short, self.long = context.either((20, 2000), (2, 8))
        self._trainers: list[gm.Trainer] = []

    def _fit(self, epochs: int) -> tuple[float, int, float]:
        """Return seconds, steps and the mean loss at the end of a training."""
        start = time.perf_counter()
        histories = gm.fit_many(
            self._trainers,
            self._data.X,
            self._data.y,
            epochs=epochs,
            batch_size=self.workload.batch_size,
            progress=False,
        )
        losses = [history["loss"][-1] for history in histories]
        return time.perf_counter() - start, sum(h.steps for h in histories), statistics.mean(losses)

    def get_ready(self) -> None:
        """Draw and compile, where that was not done before."""
        if not self._trainers:
            self._data = self.workload.load()
            self._trainers = self.workload.trainers(self.context.backend)
            with at_once():
                self._first = self._fit(self.short)

    def measure(self) -> Values:
        """Time a short training and a long one."""
        self.get_ready()
        compiled, _, first = self._first
        few, many = self._fit(self.short), self._fit(self.long)
        if not many[2] < first:
            raise Failed("the mean loss did not fall", {"first": first, "last": many[2]})
        return {
            "steps/s": (many[1] - few[1]) / max(many[0] - few[0], 1e-9),
            "steps/s with writing the programs": many[1] / many[0],
            "networks": self.workload.networks,
            "epochs": self.long,
            "seconds of the first": compiled,
            "executor": executor_of(self._trainers[0], self.workload, self.workload.networks),
        }
