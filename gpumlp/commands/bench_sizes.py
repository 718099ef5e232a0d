"""From which size on a GPU pays: steps a second over width and batch, on all devices in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..workloads import Workload, random_classes
from .bench_rounds import Place, Session

WIDTHS = (32, 128, 512, 1024, 4096)
BATCHES = (32, 256, 2048, 8192)
CLASSES = 10
ROUNDS = 2

COST_OF_A_POINT = 10
"""Steps' time that a point costs before it is timed: two epochs and more of training, two evaluations."""


def grid_workload(width: int, batch: int) -> Workload:
    """Return the workload of a point: two hidden layers as wide as the input, ten classes."""
    steps = max(1, min(8, 8192 // batch))
    return Workload(
        f"{width} x {batch}",
        (width, width, width, CLASSES),
        random_classes(width, CLASSES),
        rows=steps * batch,
        batch_size=batch,
        loss="cross_entropy",
        lr=0.05,
        it="step",
        about="a point of the grid of widths and batches",
    )


def measure_sizes(
    places: Sequence[Place],
    widths: Sequence[int] = WIDTHS,
    batches: Sequence[int] = BATCHES,
    seconds: float = 30.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return steps a second of a network of two hidden layers at each width and batch, where time allows.

    Points come by the size of their work. One that a device is expected to need too long for, judged by what it
    took for the point before, is left out there.

    Args:
        places: devices, whose rounds take turns at each point.
        widths: of input and hidden layers, at least 10.
        batches: rows of a step.
        seconds: for all of it, about; each device has its share.
        say: called with a line of text on what happens.

    Raises:
        ArithmeticError: a loss does not fall, or devices disagree about it.
        ValueError: a width below 10.
    """
    if min(widths) < CLASSES:
        raise ValueError(f"widths has {min(widths)}; expected widths of at least {CLASSES}")
    share = seconds / len(places)  # a slow device must not keep the others from large sizes
    grid = sorted(
        (grid_workload(w, b) for w in set(widths) for b in set(batches)),
        key=lambda w: w.flops_per_sample * w.step_rows,
    )
    last: dict[str, tuple[float, float]] = {}  # by device: work and seconds of a step
    points: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    left = dict.fromkeys((place.name for place in places), share)
    for workload in grid:
        work = float(workload.flops_per_sample * workload.step_rows)
        able = [p for p in places if _expected(last.get(p.name), work) <= min(left[p.name], share / 3)]
        for place in places:
            if place not in able:
                left_out.append(_point(workload, place))
        if not able:
            continue
        say(f"width {workload.sizes[0]}, batch {workload.step_rows}")
        for session, spent in _sessions(workload, able, min(0.3, share / len(grid) / 3)):
            left[session.place.name] -= spent
            rates = session.rates()
            last[session.place.name] = work, 1 / rates["steps_per_second"]["median"]
            points.append(_point(workload, session.place) | {"executor": session.executor} | rates)
    return {
        "network": "W-W-W-10",
        "widths": sorted(set(widths)),
        "batches": sorted(set(batches)),
        "seconds": seconds,
        "points": sorted(points, key=lambda p: (p["width"], p["batch"])),
        "left_out": left_out,
        "pays": pays(points, places),
    }


def _expected(last: tuple[float, float] | None, work: float) -> float:
    """Seconds that a point will take, by those of a smaller one."""
    return 0.0 if last is None else COST_OF_A_POINT * last[1] * max(1.0, work / last[0])


def _point(workload: Workload, place: Place) -> dict[str, Any]:
    return {
        "width": workload.sizes[0],
        "batch": workload.step_rows,
        "device": place.backend.name,
        "precision": place.precision,
        "place": place.name,
    }


def _sessions(workload: Workload, places: Sequence[Place], seconds: float) -> list[tuple[Session, float]]:
    """Measure one point on all devices, in turn; return with each session the seconds that it took."""
    data = workload.load()
    spent = dict.fromkeys(places, 0.0)
    sessions: dict[Place, Session] = {}
    for place in places:
        start = time.perf_counter()
        session = sessions[place] = Session(workload, data, place.backend, place.precision)
        session.warm_up(seconds)
        spent[place] += time.perf_counter() - start
        session.check_agreement(sessions[places[0]])
    for _ in range(ROUNDS):
        for place, session in sessions.items():
            start = time.perf_counter()
            session.measure_round()
            spent[place] += time.perf_counter() - start
    return [(sessions[place], spent[place]) for place in places]


def pays(points: Sequence[Mapping[str, Any]], places: Sequence[Place]) -> list[dict[str, Any]]:
    """Return for each batch the least width from which on a GPU was faster than the CPU, at every width measured.

    Args:
        points: of `measure_sizes`.
        places: the first that is no GPU is compared with each that is one.

    Returns:
        For each GPU and batch "place", "than", "batch" and "from_width", None where it never was.
    """
    cpu = next((p for p in places if not p.backend.is_gpu), None)
    if cpu is None:
        return []
    rates = {(p["place"], p["batch"], p["width"]): p["steps_per_second"]["median"] for p in points}
    found = []
    for place in (p for p in places if p.backend.is_gpu):
        for batch in sorted({p["batch"] for p in points}):
            widths = sorted(
                w for name, b, w in rates if (name, b) == (cpu.name, batch) and (place.name, b, w) in rates
            )
            start: int | None = None
            for width in reversed(widths):
                if rates[place.name, batch, width] < rates[cpu.name, batch, width]:
                    break
                start = width
            found.append({"place": place.name, "than": cpu.name, "batch": batch, "from_width": start})
    return found
