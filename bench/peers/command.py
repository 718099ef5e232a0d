"""``python -m bench.peers`` and ``gpumlp bench --compare``: one command that runs all peers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from gpumlp.checks import check_count
from gpumlp.commands.bench import check_place
from gpumlp.commands.output import note
from gpumlp.files import write_json, write_whole
from gpumlp.machine import cpu_counts
from gpumlp.workloads import DataDir

from . import table
from .comparison import measure
from .registry import CONTESTS, PEERS, chosen_contests, chosen_peers


def compare(
    workloads: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    rounds: int = 3,
    seconds: float = 1.0,
    json: str | None = None,
    markdown: str | None = None,
    data_dir: DataDir = None,
) -> int:
    """Run the peers, print a table and write what was asked for; return 1 where nothing could be timed, else 0.

    Args:
        workloads, peers: names, also several in one text with commas; None for all.
        rounds: of each peer and workload.
        seconds: of a round, about.
        json, markdown: files to write.
        data_dir: folder with MNIST.

    Raises:
        ValueError: an unknown name, a number outside its range, a folder that is not there.
    """
    contests, chosen = chosen_contests(workloads), chosen_peers(peers)
    check_count("rounds", rounds)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f"seconds is {seconds}; expected a number greater than 0")
    for place in (json, markdown):
        if place is not None:
            check_place(Path(place))
    cpus = cpu_counts()["usable"]
    result = measure(contests, chosen, int(cpus or 1), rounds, seconds, data_dir, note)
    print(table.text(result))
    if json is not None:
        write_json(json, result)
    if markdown is not None:
        write_whole(markdown, table.markdown(result) + "\n")
    return 0 if any(r["peers"] for r in result["results"]) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description="Train the same workloads in gpumlp and in other libraries, in turn, and compare them.",
        epilog=f"workloads: {', '.join(CONTESTS)}; "
        f"peers: {'; '.join(f'{peer.name}: {peer.about}' for peer in PEERS.values())}",
    )
    parser.add_argument("--workload", action="append", metavar="NAME[,NAME...]", help="which to run; all")
    parser.add_argument("--peers", action="append", metavar="NAME[,NAME...]", help="which to compare; all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (3)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round (1)")
    parser.add_argument("--json", metavar="FILE", help="write every number there")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with MNIST; GPUMLP_DATA unless given")
    args = parser.parse_args(arguments)
    try:
        return compare(
            args.workload, args.peers, args.rounds, args.seconds, args.json, args.markdown, args.data_dir
        )
    except (ValueError, TypeError) as error:
        note(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        note("interrupted; nothing was written")
        return 130
