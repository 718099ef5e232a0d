"""``gpumlp reproduce``: what course reports published, and what comes out here, figure beside figure."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from .output import note

if TYPE_CHECKING:
    from ..recipes import Part, Recipe, Runner
    from ..recipes.results import Results


def add_parser(subparsers: Any) -> None:
    """Add the command to ``parser.add_subparsers()``."""
    parser = subparsers.add_parser(
        "reproduce",
        help="reproduce what course reports published, figure beside figure",
        description="Run a report's parts, and write results.json and report.html with the published figures beside "
        "ours. Without a name it lists the reports. Interrupted, the same command goes on where it was.",
        epilog="any part can be changed and run by itself: gpumlp reproduce upf --show cross-entropy > part.toml; "
        "gpumlp train part.toml",
    )
    parser.add_argument(
        "report", nargs="?", help="sdm274, tnm112, upf, ee6132, mlpnn, all, or a folder with a recipe.toml"
    )
    parser.add_argument("--quick", action="store_true", help="every part with short training; minutes in all")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="this part; may be repeated"
    )
    parser.add_argument("--fresh", action="store_true", help="run parts anew that are done already")
    parser.add_argument(
        "--show", metavar="PART", help="print a part's config (TOML, for gpumlp train) and stop"
    )
    parser.add_argument("--device", help="auto, cpu, gpu or gpu:N")
    parser.add_argument(
        "--out", default="reproduced", metavar="DIR", help="folder of results (default: reproduced)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the files of MNIST are")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it; return the exit code."""
    from ..recipes import RECIPES, Runner, load_recipe

    if args.report is None:
        for name in ("only", "show", "fresh"):
            if getattr(args, name):
                raise ValueError(f"--{name} goes with a report, for example: gpumlp reproduce upf --{name}")
        print(_listing(args.out, args.quick))
        return 0
    names = list(RECIPES) if args.report == "all" else [args.report]
    if args.report == "all" and (args.only or args.show):
        raise ValueError("--only and --show go with one report, not with all")
    recipes = [load_recipe(name) for name in names]
    if args.show:
        print(show(recipes[0], args.show, args.quick), end="")
        return 0
    runners = [Runner(recipe, args.out, args.quick, args.device, args.data_dir) for recipe in recipes]
    for runner in runners:
        if args.fresh:
            runner.forget(args.only)
    return reproduce(runners, args.only)


def _listing(out: str, quick: bool) -> str:
    from ..recipes import RECIPES, load_recipe
    from ..recipes.runner import root_folder

    lines = []
    for name in RECIPES:
        recipe = load_recipe(name)
        page = root_folder(out, quick) / name / "report.html"
        there = f"results in {page}" if page.is_file() else "no results yet"
        lines.append(f"{name:<8} {recipe.title}; {len(recipe.parts)} parts; {there}")
    return "\n".join(
        [*lines, "", "run one with: gpumlp reproduce NAME, quickly with --quick, or all of them with: all"]
    )


def show(recipe: Recipe, id: str, quick: bool = False) -> str:
    """Return a part's complete config as TOML, or its options where it has no config of its own.

    Raises:
        ValueError: no such part.
    """
    from ..config import config_toml

    part = recipe.part(id)
    options = part.options_for(quick)
    config = recipe.config(part, quick)
    head = f"# {recipe.name}, part {id} ({part.kind}): {part.title}\n"
    if options:
        lines = config_toml({"options": options}).splitlines()
        head += "# what the part does beyond one training:\n" + "".join(
            f"# {line}".rstrip() + "\n" for line in lines
        )
    return head + (config_toml(config) if config else "")


def reproduce(runners: list[Runner], only: list[str]) -> int:
    """Run what is pending, write results and pages after each part, and say what came out.

    Returns:
        0, 1 where a claim fails or a part could not run, or 130 where Ctrl-C was pressed.
    """
    work = [(runner, part) for runner in runners for part in runner.pending(only)]
    bar = _Bar([part for _, part in work], runners[0].quick)
    try:
        for runner, part in work:
            bar.begin(f"{runner.recipe.name} {part.id}", part)
            record = runner.run(part, bar.advance)
            bar.end(record.seconds)
            if record.error:
                bar.write(f"{runner.recipe.name} {part.id} could not run: {record.error}")
            runner.write()
    except KeyboardInterrupt:
        bar.close()
        _write_all(runners)
        note(
            f"interrupted in {bar.name}; {bar.done} of {len(work)} parts are done; the same command goes on there"
        )
        return 130
    finally:
        bar.close()
    found = _write_all(runners)
    for runner, results in zip(runners, found, strict=True):
        _print(runner, results)
    return 0 if all(results.holds for results in found) else 1


def _write_all(runners: list[Runner]) -> list[Results]:
    """Write every page, and the index over all reports that have results in the folder."""
    from ..files import write_whole
    from ..recipes import RECIPES, Runner, load_recipe
    from ..recipes.page import index_page

    found = [runner.write() for runner in runners]
    first = runners[0]
    here = {runner.recipe.name: results for runner, results in zip(runners, found, strict=True)}
    shown = []
    for name in dict.fromkeys([*RECIPES, *here]):
        if name in here:
            shown.append(here[name])
        elif (first.root / name / "report.html").is_file():
            other = Runner(load_recipe(name), first.out, first.quick, first.device, first.data_dir)
            shown.append(other.results())
    write_whole(first.root / "index.html", index_page(shown, first.quick))
    return found


def _print(runner: Runner, results: Results) -> None:
    from ..recipes.results import FAILS, figure_text

    print(f"\n{runner.recipe.name}: {', '.join(f'{n} {verdict}' for verdict, n in results.counts.items())}")
    for part in runner.recipe.parts:
        for verdict in results.verdicts[part.id]:
            if verdict.verdict == FAILS:
                claim = verdict.claim
                print(
                    f"  fails  {part.id}: {claim.what}: published {figure_text(claim.published, claim.unit)}, "
                    f"ours {figure_text(verdict.reproduced, claim.unit)}; holds if {verdict.rule}"
                )
    print(f"report   {runner.folder / 'report.html'}")
    print(f"results  {runner.folder / 'results.json'}")
    print(f"all      {runner.root / 'index.html'}")


class _Bar:
    """One bar for all parts on a terminal, in their expected seconds; a line a part elsewhere."""

    def __init__(self, parts: list[Part], quick: bool) -> None:
        self.quick = quick
        self.total = sum(map(self._expected, parts))
        self.count, self.done, self.name = len(parts), 0, ""
        self._finished = self._current = self._share = 0.0
        self._spent, self._start, self._shown = 0.0, time.perf_counter(), 0.0
        self._bar: Any = None
        if parts and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=100.0, file=sys.stderr, dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {desc}",
            )  # fmt: skip

    def _expected(self, part: Part) -> float:
        return max(0.1, part.quick_seconds if self.quick else part.seconds)

    def begin(self, name: str, part: Part) -> None:
        self.name, self._current, self._share = name, self._expected(part), 0.0
        self._start = time.perf_counter()
        if self._bar is None:
            print(f"[{self.done + 1}/{self.count}] {name}: {part.title}", file=sys.stderr, flush=True)
        self._show(force=True)

    def advance(self, share: float) -> None:
        self._share = max(self._share, share)
        self._show()

    def end(self, seconds: float) -> None:
        self._spent += seconds
        self._finished += self._current
        self._current, self._share = 0.0, 0.0
        self.done += 1
        if self._bar is None:
            print(f"      {seconds:.1f} s", file=sys.stderr, flush=True)

    def seconds_left(self) -> float:
        """What is left, as expected, times how much longer than expected the work took so far."""
        in_part = self._share * self._current
        known = self._finished + in_part
        spent = self._spent + (time.perf_counter() - self._start if in_part else 0.0)
        pace = spent / known if known > 0.02 * self.total else 1.0
        return max(0.0, self.total - known) * pace

    def _show(self, force: bool = False) -> None:
        now = time.perf_counter()
        if self._bar is None or (not force and now - self._shown < 0.1):
            return
        self._shown = now
        left = self.seconds_left()
        self._bar.n = min(100.0, 100.0 * (self._finished + self._share * self._current) / self.total)
        self._bar.set_description_str(
            f"part {self.done + 1} of {self.count}, {self.name}; {int(left // 60)}:{int(left % 60):02d} left"
        )

    def write(self, line: str) -> None:
        """Say something above the bar."""
        if self._bar is not None:
            self._bar.clear()
        note(line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
