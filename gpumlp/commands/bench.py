"""``gpumlp bench``: how fast the workloads train here, each checked first, beside what they ran on."""

from __future__ import annotations

import argparse
import datetime
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..backend import PRECISIONS, get_backend
from ..checks import check_count, check_precision
from ..files import write_json
from ..machine import PACKAGE, blas_libraries, commit, gpus, machine, versions
from ..registry import look_up
from ..workloads import ON_REQUEST, WORKLOADS, DataDir, Workload
from .bench_peak import Peak
from .bench_plot import check_plot, write_plot
from .bench_rounds import DTYPE, Place, Session, SweepSession, session
from .bench_sizes import BATCHES, WIDTHS, measure_sizes
from .bench_text import table
from .output import note

SWEEP_LENGTH = 3.0
"""Length of a round of many networks, in usual ones: on the CPU writing their programs is in it, and must not weigh."""


def add_parser(subparsers: Any) -> None:
    """Add the command to ``parser.add_subparsers()``."""
    named = [*WORKLOADS.values(), *ON_REQUEST.values()]
    parser = subparsers.add_parser(
        "bench",
        help="measure how fast the workloads train here",
        description="Train each workload for a few rounds, in turn, and print how fast it went. "
        "An it is an epoch; for ee6132 and wide it is a step. With several devices their rounds take turns too, all "
        "must come to the same loss, and a grid of widths and batches shows from which size on a GPU pays.",
        epilog="workloads: " + "; ".join(f"{w.name}, {w.shape}: {w.about}" for w in named),
    )
    parser.add_argument(
        "--workload",
        action="append",
        metavar="NAME[,NAME...]",
        help=f"which to run, repeated or with commas; all but {', '.join(ON_REQUEST)} unless given",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME[,NAME...]",
        help='"auto" (the GPU where there is one), "cpu", "gpu", "gpu:1"; with commas several beside each other',
    )
    parser.add_argument(
        "--precision",
        default="float32",
        metavar="NAME[,NAME...]",
        help=f"of products on a GPU: {', '.join(PRECISIONS)}; each has rows of its own",
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there, with machine and versions")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw steps a second over width and batch: .html or .png"
    )
    parser.add_argument("--widths", default=_joined(WIDTHS), metavar="N[,N...]", help="of that grid")
    parser.add_argument("--batches", default=_joined(BATCHES), metavar="N[,N...]", help="of that grid")
    parser.add_argument(
        "--grid-seconds", type=float, default=30.0, help="for all of that grid, about; 0 for none (30)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder with MNIST; GPUMLP_DATA unless given")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round (1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each workload (3)")
    parser.add_argument(
        "--compare", action="store_true", help="beside other libraries, on the CPU; in a checkout only"
    )
    parser.set_defaults(run=run)


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def run(args: argparse.Namespace) -> int:
    """Run the workloads and print a table; return 1 where a loss does not fall or devices disagree, else 0.

    Raises:
        ValueError: an unknown workload or device, a number outside its range, a folder that is not there; a
            comparison outside of a checkout.
    """
    if args.compare:
        return _compare(args)
    workloads = chosen_workloads(args.workload)
    rounds = check_count("rounds", args.rounds)
    _check_seconds("seconds", args.seconds)
    grid = {"widths": _counts("widths", args.widths), "batches": _counts("batches", args.batches)}
    if args.grid_seconds or args.plot is not None:
        _check_seconds("grid-seconds", args.grid_seconds)
    if args.plot is not None:
        check_plot(Path(args.plot))
    for file in (args.json, args.plot):
        if file is not None:
            check_place(Path(file))
    places = chosen_places(args.device, args.precision)
    with_grid = args.plot is not None or (args.grid_seconds and len({p.backend.name for p in places}) > 1)
    try:
        result = measure(workloads, places, args.seconds, rounds, args.data_dir, note)
        result["sizes"] = (
            measure_sizes(places, **grid, seconds=args.grid_seconds, say=note) if with_grid else None
        )
    except ArithmeticError as error:  # a loss that does not fall, is not finite, or differs between devices
        note(f"error: {error}")
        return 1
    text = table(result)
    print(text)
    if args.json is not None:
        write_json(args.json, result)
    if args.plot is not None:
        write_plot(args.plot, result, text)
    return 0


def _check_seconds(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; expected a number greater than 0")


def _counts(name: str, text: str) -> list[int]:
    """Return the whole numbers of "32,128"."""
    try:
        return sorted({check_count(name, int(part)) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"{name} is {text!r}; expected whole numbers with commas, such as 32,128") from None


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


def check_place(path: Path) -> None:
    """Refuse, before anything is measured, a place that no file can be written to.

    Raises:
        ValueError: a folder, or a file in a folder that is not there.
    """
    if path.is_dir():
        raise ValueError(f"cannot write {str(path)!r}: it is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; create it first"
        )


def chosen_workloads(given: Sequence[str] | None) -> list[Workload]:
    """Return the workloads of ``["small,clf", "sweep"]``, each once; all that need not be named for None.

    Raises:
        ValueError: an unknown name; the message has the nearest valid one.
    """
    if given is None:
        return list(WORKLOADS.values())
    known = {**WORKLOADS, **ON_REQUEST}
    names = [name for text in given for name in text.split(",")]
    return list({w.name: w for w in (look_up("workload", name, known) for name in names)}.values())


def chosen_places(devices: str, precisions: str = "float32") -> list[Place]:
    """Return the devices of "cpu,gpu" in their order, each GPU once for each precision of "float32,tf32".

    Raises:
        ValueError: an unknown device, one that is not there, or a precision that none of them has.
    """
    named = dict.fromkeys(name.strip() for name in precisions.split(","))
    backends = {b.name: b for b in map(get_backend, devices.split(","))}.values()
    on_gpus = any(backend.is_gpu for backend in backends)
    for backend in backends:
        if backend.is_gpu or not on_gpus:
            for precision in named:
                check_precision(precision, backend, DTYPE)
    return [
        Place(backend, precision)
        for backend in backends
        for precision in (named if backend.is_gpu else ("float32",))
    ]


def measure(
    workloads: Sequence[Workload],
    places: Sequence[Place],
    seconds: float,
    rounds: int,
    data_dir: DataDir = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the results of the workloads, whose rounds take turns, with all that belongs beside them.

    Args:
        workloads: to measure.
        places: where they train.
        seconds: of a round, about; at least an epoch.
        rounds: of each workload.
        data_dir: where MNIST is looked for.
        say: called with a line of text on what happens.

    Raises:
        ArithmeticError: a loss is not finite, does not fall in the warm-up, or differs between devices.
        ValueError: a `data_dir` without MNIST.
    """
    peaks = {place: Peak(place.backend, DTYPE, place.precision) for place in places}
    groups = _warmed_up(workloads, places, seconds, data_dir, say)
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        for peak in peaks.values():
            peak.measure()
        for group in groups:
            start = i % len(group)  # the one that begins changes
            for one in group[start:] + group[:start]:
                one.measure_round()
    results = [one.result(peaks[one.place].gflops) for group in groups for one in group]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "machine": {**machine(), "gpus": gpus()[0], "blas": blas_libraries()},
        "settings": {
            "seconds": seconds,
            "rounds": rounds,
            "devices": list(dict.fromkeys(place.backend.name for place in places)),
            "precisions": list(dict.fromkeys(place.precision for place in places)),
            "dtype": DTYPE,
        },
        "peaks": [peak.result() for peak in peaks.values()],
        "results": [r | {"speed_up": _speed_up(r, results)} for r in results],
        "fastest": _fastest(results) if len(places) > 1 else {},
        "sizes": None,
    }


def _warmed_up(
    workloads: Sequence[Workload],
    places: Sequence[Place],
    seconds: float,
    data_dir: DataDir,
    say: Callable[[str], None],
) -> list[list[Session]]:
    """Return for each workload its sessions, checked."""
    sets: dict[Any, Any] = {}
    groups: list[list[Session]] = []
    for workload in workloads:
        key = workload.data, workload.rows
        if key not in sets:
            sets[key] = workload.load(data_dir)
        group: list[Session] = []
        for place in places:
            one = session(workload, sets[key], place)
            if one.executor == "resident" and place.precision != "float32" and group:
                continue  # it has no other products: the rows would be the same
            say(f"warming up {workload.name} on {place.name}")
            one.warm_up(seconds * (SWEEP_LENGTH if isinstance(one, SweepSession) else 1.0))
            if group:
                one.check_agreement(group[0])
            group.append(one)
        groups.append(group)
    return groups


def _speed_up(result: dict[str, Any], results: Sequence[dict[str, Any]]) -> float | None:
    """How many times as fast as on the first device, or None there."""
    first = next(r for r in results if r["workload"] == result["workload"])
    if first is result:
        return None
    speed_up: float = result["it_per_second"]["median"] / first["it_per_second"]["median"]
    return speed_up


def _fastest(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """For each workload the device, with its precision, that it is fastest on."""
    best: dict[str, dict[str, Any]] = {}
    for r in results:
        known = best.get(r["workload"])
        if known is None or r["it_per_second"]["median"] > known["it_per_second"]["median"]:
            best[r["workload"]] = r
    return {
        name: r["device"] + ("" if r["precision"] == "float32" else f" {r['precision']}")
        for name, r in best.items()
    }
