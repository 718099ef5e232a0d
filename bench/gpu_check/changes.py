"""How fast other workloads are, and what it is worth that executors do what they do: left out, or done otherwise.

Without the share of the GPU's own best product, which only `targets` measures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpumlp.executors import graph, narrow, products, resident, tailoring, unfolding
from gpumlp.kernels.cuda import RESIDENT_THREADS

from .checks import Check, Context, Values
from .targets import Row, Sweep


@dataclass(frozen=True)
class Change:
    """Another value of a constant, to be compared with the one that is set.

    Attributes:
        words: what it makes of the executor.
        kind: of the executor, of `EXECUTORS`.
        constant: its name.
        module: that has it.
        value: in its place.
    """

    words: str
    kind: str
    constant: str
    module: Any
    value: Any


WITHOUT_CHAINS = Change("graph without chains", "graph", "CHAIN_NUMBERS", unfolding, 0)
WITHOUT_PAIRS = Change("graph without pairs of products", "graph", "PAIRED_BLOCKS", unfolding, 0)
WITHOUT_NARROW = Change("graph without narrow products", "graph", "NARROW", narrow, 0)
NARROW_GRADIENTS = Change("graph with narrow gradients of few rows", "graph", "NARROW_FROM", graph, 0)
MORE_THREADS = Change(
    "resident with 256 threads", "resident", "NEIGHBOUR_THREADS", resident, RESIDENT_THREADS
)
GRADIENTS_IN_EPILOGUES = Change(
    "graph with gradients of relu in epilogues", "graph", "SLOW_EPILOGUES", graph, frozenset()
)
SUMS_APART = Change(
    "graph with sums of large gradients in a pass of their own", "graph", "SUMS_APART_FROM", graph, 1 << 22
)
BY_LIBRARY = Change("graph with all products by the library", "graph", "OWN_PRODUCT", graph, 0)
FEWER_OWN = Change("graph with fewer products of our own", "graph", "OWN_PRODUCT", graph, 2_000_000)
WITHOUT_LARGE = Change(
    "graph with large products by the library", "graph", "LARGE_PRODUCT_FROM", products, 1 << 62
)
DATA_AS_THEY_LIE = Change("graph without a turned copy of the data", "graph", "TURNED_FROM", graph, 1 << 62)
GENERAL_LAUNCHES = Change("graph by general kernels", "graph", "MOST_ROWS", tailoring, 0)
GENERAL_KERNEL = Change("resident by the general kernel", "resident", "MOST_ROWS", tailoring, 0)
SHORT_GRAPHS = Change("graphs of 8 steps", "graph", "GRAPH_STEPS", graph, 8)
OTHERWISE = (
    ("small", "float32", GENERAL_KERNEL),
    ("small", "float32", GENERAL_LAUNCHES),
    ("ee6132", "float32", GENERAL_LAUNCHES),
    ("mlpnn", "float32", WITHOUT_LARGE),
    ("sweep", "float32", MORE_THREADS),
    ("wide", "bf16", GRADIENTS_IN_EPILOGUES),
    ("wide", "bf16", SUMS_APART),
    ("small", "float32", BY_LIBRARY),
    ("ee6132", "float32", BY_LIBRARY),
    ("ee6132", "float32", FEWER_OWN),
    ("ee6132", "float32", GRADIENTS_IN_EPILOGUES),
    ("small", "float32", GRADIENTS_IN_EPILOGUES),
    ("ee6132", "float32", WITHOUT_NARROW),
    ("small", "float32", WITHOUT_NARROW),
    ("mlpnn", "bf16", WITHOUT_NARROW),
    ("mlpnn", "tf32", WITHOUT_NARROW),
    ("mlpnn", "tf32", DATA_AS_THEY_LIE),
    ("small", "float32", MORE_THREADS),
    ("small", "float32", WITHOUT_CHAINS),
    ("small", "float32", WITHOUT_PAIRS),
    ("ee6132", "float32", WITHOUT_PAIRS),
    ("ee6132", "float32", NARROW_GRADIENTS),
    ("small", "float32", NARROW_GRADIENTS),
    ("ee6132", "float32", SHORT_GRAPHS),
)
"""What the executors do, left out or done otherwise: the difference is its worth."""

OTHERS = (
    *(("ee6132", "tf32"), ("ee6132", "bf16"), ("wide", "tf32"), ("wide", "float32")),
    *(("clf", "float32"), ("polar", "float32"), ("deepwide", "float32")),
)
"""Workloads in a precision that has no target."""


def checks(context: Context) -> list[Check]:
    """The changes, the most telling first, then the workloads."""
    runs: list[tuple[str, Callable[[], Values]]] = [
        (f"{name}, {p}, {change.words}", functools.partial(otherwise, change, context, name, p))
        for name, p, change in OTHERWISE
    ]
    runs += [(f"{name}, {p}", Row(context, name, p).measure) for name, p in OTHERS]
    return [Check(name, run, limit=100, measures=True) for name, run in runs]


def otherwise(change: Change, context: Context, name: str, precision: str) -> Values:
    """Measure a workload with another value of a constant."""
    usual = getattr(change.module, change.constant)
    setattr(change.module, change.constant, change.value)
    try:
        one = Sweep(context) if name == "sweep" else Row(context, name, precision, change.kind)
        return one.measure()
    finally:
        setattr(change.module, change.constant, usual)
