"""How fast the workloads are that have a target, beside what this GPU's own best product does."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import gpumlp as gm
from gpumlp.commands.bench_peak import Peak
from gpumlp.commands.bench_rounds import Session, executor_of
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
    """The limit of the device in each precision, then each row; the most telling first."""
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
    rows: list[tuple[str, Callable[[], Values]]] = [
        ("small, resident", functools.partial(row, context, "small", "float32", "resident", peaks)),
        ("small, graph", functools.partial(row, context, "small", "float32", "graph", peaks)),
        ("wide, bf16", functools.partial(row, context, "wide", "bf16", "", peaks)),
        *(
            (f"mlpnn, {p}", functools.partial(row, context, "mlpnn", p, "", peaks))
            for p in ("float32", "bf16", "tf32")
        ),
        ("ee6132", functools.partial(row, context, "ee6132", "float32", "", peaks)),
        ("sweep", functools.partial(sweep, context)),
    ]
    found += [
        Check(name, functools.partial(judged, name, run), limit=100, measures=True) for name, run in rows
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


def row(
    context: Context, name: str, precision: str, kind: str = "", peaks: Mapping[str, Peak] | None = None
) -> Values:
    """Measure a workload through `Trainer.fit`, on the executor that is asked for or that it chooses."""
    peaks = peaks or {}
    if kind == "graph" and not context.gpu.has_products:
        raise Skipped("nvmath-python is not installed: there is no graph executor")
    if not kind:
        return _measured(context, name, precision, peaks)
    with executor(EXECUTORS[kind]):
        return _measured(context, name, precision, peaks) | {"executor": kind}


def _measured(context: Context, name: str, precision: str, peaks: Mapping[str, Peak]) -> Values:
    workload = workload_of(context, name)
    start = time.perf_counter()
    session = Session(workload, workload.load(), context.backend, precision)
    session.warm_up(context.either(ROUND_SECONDS, 0.05))
    ready = time.perf_counter() - start
    for i in range(MOST_ROUNDS):
        if i >= ROUNDS and not differ([r.steps / r.seconds for r in session.rounds], SETTLED):
            break
        session.measure_round()
    rates = session.rates()
    values: Values = {
        "steps/s": rates["steps_per_second"]["median"],
        "least and most": [rates["steps_per_second"]["min"], rates["steps_per_second"]["max"]],
        "samples/s": rates["samples_per_second"]["median"],
        "TFLOP/s": rates["gflops"] / 1e3,
        "executor": session.executor,
        "precision": precision,
        "losses": session.losses,
        "seconds to be ready": ready,
    }
    if (peak := peaks.get(precision)) is not None and peak.gflops:
        values["share of limit"] = rates["gflops"] / peak.gflops
        if name == "wide" and precision == "bf16":
            values["target of share"] = SHARE_OF_PEAK
    return values


def sweep(context: Context) -> Values:
    """Measure many networks by the difference of a long and a short training, so that writing programs is left out."""
    workload = workload_of(context, "sweep")
    data = workload.load()
    trainers = workload.trainers(context.backend)
    settings: dict[str, Any] = {"batch_size": workload.batch_size, "progress": False}

    def fit(epochs: int) -> tuple[float, int, float]:
        start = time.perf_counter()
        histories = gm.fit_many(trainers, data.X, data.y, epochs=epochs, **settings)
        losses = [history["loss"][-1] for history in histories]
        return time.perf_counter() - start, sum(h.steps for h in histories), statistics.mean(losses)

    short, long = context.either((20, 2000), (2, 8))
    compiled, _, first = fit(short)
    few, many = fit(short), fit(long)
    if not many[2] < first:
        raise Failed("the mean loss did not fall", {"first": first, "last": many[2]})
    return {
        "steps/s": (many[1] - few[1]) / max(many[0] - few[0], 1e-9),
        "steps/s with writing the programs": many[1] / many[0],
        "networks": workload.networks,
        "epochs": long,
        "seconds of the first": compiled,
        "executor": executor_of(trainers[0], workload, workload.networks),
    }
