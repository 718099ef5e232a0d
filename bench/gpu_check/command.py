"""``python -m bench.gpu_check``: one command that proves and measures gpumlp on a GPU."""

from __future__ import annotations

import argparse
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpumlp.commands.bench import check_place
from gpumlp.commands.output import note
from gpumlp.registry import look_up

from .driver import Run
from .environment import describe
from .report import text
from .sections import SECTIONS, Section


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 where a check failed, 2 for a user's mistake, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_check",
        description="Hold every kernel, product, executor and whole training on a GPU against float64 on the CPU, "
        "and measure them beside their targets, PyTorch and JAX.",
        epilog="sections: " + "; ".join(f"{s.name}: {s.about}" for s in SECTIONS.values()),
    )
    parser.add_argument("--only", action="append", metavar="SECTION[,SECTION...]", help="which to run; all")
    parser.add_argument("--seconds", type=float, default=470.0, help="for everything (470)")
    parser.add_argument("--out", default="gpu_check.json", metavar="FILE", help="results (gpu_check.json)")
    parser.add_argument(
        "--device", choices=("gpu", "host"), default="gpu", help="host: the stand-in for a GPU, small sizes"
    )
    parser.add_argument(
        "--commit", metavar="NAME", help="what was checked, for a copy without its history; git is asked"
    )
    args = parser.parse_args(arguments)
    # a time limit of somebody else's ends it as Ctrl-C does
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return check(_chosen(args.only), args.device, args.seconds, Path(args.out), args.commit)
    except ValueError as error:
        note(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        note(f"interrupted; what was found until now is in {args.out}")
        return 130
    finally:
        signal.signal(signal.SIGTERM, usual)


def check(
    sections: Sequence[Section], device: str, seconds: float, out: Path, commit: str | None = None
) -> int:
    """Run sections, write what they found to a file as they go on, and print it; return 1 where a check failed.

    Args:
        sections: to run.
        device: "gpu" or "host".
        seconds: for everything.
        out: the file, JSON.
        commit: name of what is checked, where git cannot tell.

    Raises:
        ValueError: a number outside its range, or a place that no file can be written to.
    """
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f"seconds is {seconds}; expected a number greater than 0")
    check_place(out)
    run = Run(device, seconds, out, note)
    run.result |= describe(device)
    if commit is not None:
        run.result["commit"] = commit
    result: dict[str, Any] = run.run(sections)
    print(text(result))
    return 1 if result["summary"]["failed"] else 0


def _chosen(given: Sequence[str] | None) -> list[Section]:
    if given is None:
        return list(SECTIONS.values())
    names = [name for part in given for name in part.split(",")]
    chosen = {look_up("section", name, SECTIONS).name for name in names}
    return [section for section in SECTIONS.values() if section.name in chosen]
