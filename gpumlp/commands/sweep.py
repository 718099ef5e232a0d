"""``gpumlp sweep``: train by a config once for each value of some settings, and compare what comes out."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import note
from .train import given_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..config import Config
    from ..sweep import Sweep, SweepMember


def add_parser(subparsers: Any) -> None:
    """Add the command to ``parser.add_subparsers()``."""
    parser = subparsers.add_parser(
        "sweep",
        help="train once for each value of some settings, and compare",
        description="Train by a config once for each value of some settings, or each point of the grid of several, "
        "side by side where that is possible, and write a folder: sweep.json, config.toml, the curves of the losses "
        "as SVG, and the best of the networks as best.toml and best.safetensors.",
        epilog="for example: gpumlp sweep demo --set optimizer.lr=0.1,0.01 --set network.hidden=[32],[64,64]",
    )
    parser.add_argument("config", help="a config, a data set or a data file, as gpumlp train takes it")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE[,VALUE...]",
        help="a setting; with several values, with commas between them, it is swept",
    )
    parser.add_argument(
        "--by",
        metavar="SCORE",
        help="choose the best by it (default: the validation's, else the test rows')",
    )
    parser.add_argument(
        "--target", action="append", metavar="COLUMN", help="column of a data file to predict"
    )
    parser.add_argument("--device", help="auto, cpu, gpu or gpu:N")
    parser.add_argument("--threads", type=int, help="that share each step on the CPU (default: by size)")
    parser.add_argument("--workers", type=int, help="networks at a time (default: the CPUs that are there)")
    parser.add_argument("--out", metavar="DIR", help="the new folder (default: runs/NAME-sweep-DATE-TIME)")
    parser.add_argument("--data-dir", metavar="DIR", help="where the files of MNIST are")
    parser.add_argument("--quiet", action="store_true", help="print the folder only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it; return the exit code: 0, or 1 where the loss of every member was lost."""
    from ..checks import check_count
    from ..run import new_folder
    from ..sweep import sweep

    if args.by is not None:
        _check_by(args.by)
    if args.workers is not None:
        check_count("--workers", args.workers)
    args.set, grid = split_settings(args.set)
    config = given_config(args)
    folder = Path(args.out) if args.out is not None else new_folder(f"{config.get('name', 'run')}-sweep")
    if folder.exists():
        raise ValueError(f"output folder {folder} exists already; give another one with --out, or remove it")
    with _made(folder):
        try:
            found = sweep(config, grid, workers=args.workers, progress=not args.quiet)
        except KeyboardInterrupt:
            note("nothing of an interrupted sweep is kept")
            raise
        if all(member.failure for member in found.members):
            note(f"error: every training failed: {found[0].failure}; sweep lower learning rates")
            return 1
        best = _write(folder, config, found, args.by)
    if args.quiet:
        print(folder)
    else:
        print(f"{found.table()}\n\nbest          {best.label}\nsweep folder  {folder}")
    return 0


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder before the work whose results it is for, and remove it where nothing was written to it."""
    from ..files import make_folder, remove_empty

    made = make_folder(folder)
    try:
        yield
    finally:
        remove_empty(made)


def split_settings(given: list[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the settings with one value, as they are, and the values of the others by key.

    Raises:
        ValueError: a setting without a value, or none with several.
    """
    from ..config import setting_value

    single, grid = [], {}
    for setting in given:
        key, equals, text = setting.partition("=")
        values = split_values(text)
        if len(values) == 1 or not equals:
            single.append(setting)
        else:
            grid[key.strip()] = [setting_value(key.strip(), value) for value in values]
    if not grid:
        raise ValueError(
            "sweep needs a setting with several values, for example --set optimizer.lr=0.1,0.01; "
            "for one training use gpumlp train"
        )
    return single, grid


def split_values(text: str) -> list[str]:
    """Return what stands between the commas that are not within brackets, braces or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _check_by(by: str) -> None:
    """Refuse a score that no training has, before any begins."""
    from ..metrics import METRICS

    names = ["loss", *METRICS]
    known = {f"{prefix}{name}" for prefix in ("train.", "test.", "val_") for name in names}
    if by not in {*known, *names}:
        close = difflib.get_close_matches(by, sorted(known), n=1, cutoff=0.6)
        told = f"did you mean {close[0]!r}?" if close else "expected one such as test.accuracy or val_loss"
        raise ValueError(f"--by got {by!r}; {told}")


def _write(folder: Path, config: Config, found: Sweep, by: str | None) -> SweepMember:
    """Write the folder, sweep.json last, and return the best member."""
    from ..config import config_toml
    from ..files import write_json, write_whole

    write_whole(folder / "config.toml", config_toml(config))
    for column in ("loss", "val_loss"):
        if any(column in member.history for member in found.members):
            write_whole(folder / f"{column}.svg", _svg(found.plot(column)))
    try:
        best = found.best(by)
    except ValueError as error:
        best = found.best()
        note(f"{error}; best.toml is chosen without --by")
    assert best.config is not None
    write_whole(folder / "best.toml", config_toml(best.config))
    best.model.save(folder / "best.safetensors")
    write_json(folder / "sweep.json", {"best": best.label, **found.to_dict()})
    return best


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
