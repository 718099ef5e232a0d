"""The command line: the parser, the dispatch to `gpumlp.commands`, and what becomes of errors.

Exit codes: 0; 2 for a user's mistake, with one line on stderr; 1 for a loss that became non-finite; 130 for Ctrl-C. A
mistake of gpumlp's own shows its traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from ._version import __version__
from .commands.output import note
from .mistakes import is_meant


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        note(f"error: {message}; see: {self.prog} --help")
        raise SystemExit(2)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    # within `main`, where Ctrl-C is one line
    from .commands import bench, evaluate, info, predict, reproduce, sweep, train

    parser = _Parser(
        prog="gpumlp",
        description="Train dense networks on an NVIDIA GPU or on the CPU.",
        epilog="begin with: gpumlp train demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gpumlp {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (train, sweep, evaluate, predict, bench, reproduce, info):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    Args:
        argv: without the program's name; those of the process unless given.
    """
    try:
        try:
            args = make_parser().parse_args(argv)
        except SystemExit as done:  # --help, --version, or arguments that do not parse
            return int(done.code or 0)
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            return _run(args)
    except KeyboardInterrupt:
        note("interrupted")
        return 130


def _run(args: argparse.Namespace) -> int:
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        note(f"error: {_os_error(error)}")
        return 2
    except (ValueError, TypeError) as error:
        if not is_meant(error):
            raise
        note(f"error: {error}")
        return 2


def _os_error(error: OSError) -> str:
    if error.strerror is None or error.filename is None:
        return str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror}"


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    if issubclass(category, UserWarning):
        note(f"note: {message}")
    else:
        print(warnings.formatwarning(message, category, *where[:2]), end="", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
