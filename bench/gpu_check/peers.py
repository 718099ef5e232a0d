"""The workloads in gpumlp, PyTorch and JAX on the GPU, in turn; each library in a process of its own, checked first."""

from __future__ import annotations

import atexit
import contextlib
import functools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.peers.comparison import spread
from bench.peers.contract import Measurement, Peer, Problem
from bench.peers.judge import Entry, Judge, first_problem
from bench.peers.registry import GPU_PEERS, Contest
from bench.peers.worker import Worker, WorkerError
from gpumlp.cpus import cpu_counts
from gpumlp.workloads import ON_REQUEST, WORKLOADS, random_classes

from .checks import Check, Context, Failed, Skipped, Values

LOSS_TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
"""Between the losses of a peer and of the float64 reference after the check, relative."""

MOVE_TOLERANCE = {"float32": 2e-3, "tf32": 1e-1, "bf16": 5e-1}
"""Between the ways that the weights went in the check, relative; ten times that with Adam, below."""

ORDER = (
    *(("small", "float32"), ("wide", "bf16"), ("sweep", "float32"), ("ee6132", "float32")),
    *(("mlpnn", "bf16"), ("mlpnn", "tf32"), ("mlpnn", "float32"), ("clf", "float32")),
    *(("polar", "float32"), ("deepwide", "float32"), ("wide", "tf32"), ("ee6132", "tf32")),
    *(("ee6132", "bf16"), ("wide", "float32")),
)
"""The most telling first, since time may not be enough for all."""

ROUNDS = 2
ROUND_SECONDS = 1.0
CHECK_LIMIT = 100.0
"""Seconds in which a peer must have imported, compiled and trained what it is checked by."""

RUN_LIMIT = 30.0
LEAST_SECONDS = 30.0
"""Of the section, without which no workload is begun."""

CHECK_WIDTH = 256
"""Of the layers of "wide" where it is checked: float64 on the CPU, and files of weights, must be done soon."""


def checks(context: Context) -> list[Check]:
    """One workload in one precision at a time."""
    race = Race(context, GPU_PEERS)
    return [
        Check(
            f"{name}, {precision}",
            functools.partial(race.run, contest_of(name), precision),
            limit=400,
            measures=True,
        )
        for name, precision in ORDER
    ]


def contest_of(name: str) -> Contest:
    """Return a workload with its rates."""
    workload = {**WORKLOADS, **ON_REQUEST}[name]
    return Contest(name, replace(workload, networks=1), workload.rates)


class WideJudge(Judge):
    """A contest whose peers are checked on narrower layers."""

    def _to_check(self, loss: str) -> Problem:
        sizes = tuple(min(CHECK_WIDTH, n) for n in self.contest.workload.sizes)
        workload = replace(
            self.contest.workload, sizes=sizes, data=random_classes(sizes[0]), rows=CHECK_WIDTH, loss=loss
        )
        data = workload.load()
        contest = Contest(self.contest.name, workload, self.contest.lrs)
        return replace(first_problem(contest, data.X, data.y, self.problem.precision), shuffle=False)


class Race:
    """Peers, and their processes, which go on from workload to workload.

    Args:
        context: of the section.
        peers: who takes part, by name.
        rounds: of each.
        seconds: of a round.
    """

    def __init__(
        self,
        context: Context,
        peers: Mapping[str, type[Peer]],
        rounds: int = ROUNDS,
        seconds: float = ROUND_SECONDS,
    ) -> None:
        self.context, self.rounds, self.seconds = context, rounds, seconds
        absent = {name: peer.available() for name, peer in peers.items()}
        self.absent = {name: reason for name, reason in absent.items() if reason is not None}
        self.peers = [peer for name, peer in peers.items() if name not in self.absent]
        self.threads = int(cpu_counts()["usable"] or 1)
        self._workers: dict[str, Worker] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="gpumlp-peers-")
        self._logs = Path(self._folder.name)
        atexit.register(self.close)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()
        self._folder.cleanup()

    def run(self, contest: Contest, precision: str) -> Values:
        """Check, prepare and time all peers on one workload."""
        if self.context.seconds_left < LEAST_SECONDS:
            raise Skipped("no time was left")
        data = contest.workload.load()
        problem = first_problem(contest, data.X, data.y, precision)
        left_out = dict(self.absent)
        for peer in self.peers:
            if (reason := peer.unsupported(problem)) is not None:
                left_out[peer.name] = reason
        with tempfile.TemporaryDirectory() as folder:
            looser = 10 if contest.workload.optimizer == "adam" else 1
            judge = (WideJudge if max(contest.workload.sizes) > 2048 else Judge)(
                contest,
                problem,
                Path(folder),
                LOSS_TOLERANCE[precision],
                min(1.0, looser * MOVE_TOLERANCE[precision]),
            )
            entries = self._entered(judge, left_out)
            rates = self._timed(contest, entries, left_out)
            results = [self._result(judge, entries[name], rates[name]) for name in entries if rates[name]]
            for entry in entries.values():
                with contextlib.suppress(WorkerError):
                    entry.worker.ask("forget", RUN_LIMIT)
        values = judged(results) | {"left_out": left_out, "it": "step", "data": data.source}
        if not results:
            raise Failed("no library could be timed", values)
        return values

    def _worker(self, peer: type[Peer]) -> Worker:
        known = self._workers.get(peer.name)
        if known is None or not known.is_alive():
            log = self._logs / f"{peer.name}.log"
            known = self._workers[peer.name] = Worker(peer, self.threads, log)
        return known

    def _entered(self, judge: Judge, left_out: dict[str, str]) -> dict[str, Entry]:
        """Let all peers be checked, and compile, side by side."""
        peers = [peer for peer in self.peers if peer.name not in left_out]
        entries: dict[str, Entry] = {}
        with ThreadPoolExecutor(max(1, len(peers))) as pool:
            futures = {peer.name: pool.submit(judge.enter, self._worker(peer)) for peer in peers}
            for name, future in futures.items():
                try:
                    entries[name] = future.result(max(1.0, min(CHECK_LIMIT, self.context.seconds_left)))
                except (WorkerError, TimeoutError) as error:
                    left_out[name] = str(error) or "it was not ready in time"
                    self._workers[name].close()  # whoever waits for it hears of its end
        return entries

    def _timed(
        self, contest: Contest, entries: Mapping[str, Entry], left_out: dict[str, str]
    ) -> dict[str, list[float]]:
        """Time all in turn; return steps a second of each round."""
        rates: dict[str, list[float]] = {name: [] for name in entries}
        seconds = self.seconds * contest.length
        for i in range(self.rounds):
            names = list(entries)
            for name in names[i % len(names) :] + names[: i % len(names)] if names else []:
                if name in left_out:
                    continue
                entry = entries[name]
                try:
                    answer = entry.worker.ask(
                        "run", RUN_LIMIT + 10 * seconds, seconds=seconds, least=contest.least_epochs
                    )
                except WorkerError as error:
                    left_out[name] = str(error)
                    rates[name] = []
                    continue
                done = Measurement(**answer["measurement"])
                entry.rounds.append(done)
                rates[name].append(done.steps / done.seconds)
        return rates

    def _result(self, judge: Judge, entry: Entry, rates: Sequence[float]) -> dict[str, Any]:
        workload = judge.problem.workload
        median = statistics.median(rates)
        return {
            "peer": entry.worker.peer.name,
            "about": entry.worker.peer.about,
            "check": entry.check,
            "steps_per_second": spread(rates),
            "samples_per_second": median * workload.rows / workload.steps,
            "tflops": median * workload.rows / workload.steps * workload.flops_per_sample / 1e12,
            "end_loss": entry.rounds[-1].loss,
            "epochs": sum(done.epochs for done in entry.rounds),
            "rounds": [done.to_dict() for done in entry.rounds],
        }


def judged(results: Sequence[Mapping[str, Any]]) -> Values:
    """Return the results, and gpumlp's rate over that of the best other."""
    rates = {entry["peer"]: entry["steps_per_second"]["median"] for entry in results}
    others = {name: rate for name, rate in rates.items() if name != "gpumlp"}
    best = max(others, key=lambda name: others[name], default=None)
    ours = rates.get("gpumlp")
    return {
        "peers": list(results),
        "best_peer": best,
        "over_best_peer": ours / others[best] if ours and best else None,
    }
