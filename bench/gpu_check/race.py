"""The same trainings in several libraries: all are checked and get ready side by side, and then each is timed alone.

Getting ready takes many times as long as being timed, and the CPUs do most of it. So the peers of all workloads may do
it at once, each in a process of its own that keeps what it has compiled, while other sections tell right from wrong.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.peers.comparison import spread
from bench.peers.contract import Measurement, Peer, Problem
from bench.peers.judge import Entry, Judge, first_problem
from bench.peers.registry import Contest
from bench.peers.worker import Worker, WorkerError, one_line
from gpumlp.cpus import cpu_counts
from gpumlp.workloads import random_classes

from .checks import Context, Failed, Skipped, Values
from .targets import differ

LOSS_TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
"""Between the losses of a peer and of the float64 reference after the check, relative."""

MOVE_TOLERANCE = {"float32": 2e-3, "tf32": 1e-1, "bf16": 5e-1}
"""Between the ways that the weights went in the check, relative; ten times that with Adam, below."""

ROUNDS = 2
MOST_ROUNDS = 4
SETTLED = 0.02
"""Relative difference that two of a peer's rounds must come to; until then it runs further ones."""

ROUND_SECONDS = 0.5
READY_LIMIT = 100.0
"""Seconds that a peer may take to import, compile and train what it is checked by, and again to prepare."""

RUN_LIMIT = 30.0
MAKERS = 2
"""Workloads whose files are made at the same time."""

LEAST_SECONDS = 15.0
LEAST_UNREADY = 40.0
"""Of the section, without which no workload is begun whose peers are ready, and are not."""

PEER_THREADS = 4
"""Of a peer on the CPU: many get ready at once, and on a GPU a step needs one."""

CHECK_WIDTH = 256
"""Of the layers of "wide" where it is checked: float64 on the CPU, and files of weights, must be done soon."""


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


class Start:
    """A workload in a precision: what its peers are given, their processes, and which of them are ready.

    Args:
        contest: the workload with its rates.
        precision: of products.
        folder: for its files; made here.
        absent: why peers are left out everywhere, by name.

    Attributes:
        left_out: why peers are left out here.
        entries: the peers that were checked.
        unprepared: names of those among them that have yet to prepare.
    """

    def __init__(self, contest: Contest, precision: str, folder: Path, absent: Mapping[str, str]) -> None:
        self.contest, self.precision, self.folder = contest, precision, folder
        self.left_out = dict(absent)
        self.entries: dict[str, Entry] = {}
        self.unprepared: set[str] = set()
        self.source = ""  # of the data
        self._workers: list[Worker] = []
        self._judge: Judge | None = None
        self._lock = threading.Lock()

    def judge(self) -> Judge:
        """Return who checks the peers; makes what they train when it is first asked for."""
        with self._lock:
            if self._judge is None:
                self.folder.mkdir(exist_ok=True)  # where it failed for another peer
                workload = self.contest.workload
                data = workload.load()
                self.source = data.source
                looser = 10 if workload.optimizer == "adam" else 1
                self._judge = (WideJudge if max(workload.sizes) > 2048 else Judge)(
                    self.contest,
                    first_problem(self.contest, data.X, data.y, self.precision),
                    self.folder,
                    LOSS_TOLERANCE[self.precision],
                    min(1.0, looser * MOVE_TOLERANCE[self.precision]),
                )
            return self._judge

    def make_files(self) -> None:
        """Make what the peers are given, so that none waits for it; what is wrong with it shows when they ask."""
        with contextlib.suppress(Exception):
            self.judge().make_files()

    def enter(self, peer: type[Peer], threads: int, limit: float, go_on: Callable[[], bool]) -> None:
        """Check one peer in a process of its own, and let it prepare unless it is stopped or must be alone for it."""
        try:
            judge = self.judge()
            if (reason := peer.unsupported(judge.problem)) is not None:
                raise WorkerError(reason)
            worker = Worker(peer, threads, self.folder / f"{peer.name}.log")
            self._workers.append(worker)
            try:
                entry = judge.check(worker, limit)
                if peer.prepares_alone or not go_on():
                    self.unprepared.add(peer.name)
                else:
                    judge.prepare(entry, limit)
            except BaseException:
                worker.close()
                raise
            self.entries[peer.name] = entry
        except WorkerError as error:
            self.left_out[peer.name] = str(error)
        except Exception as error:  # of this workload; others go on
            self.left_out[peer.name] = one_line(error)

    def prepare(self, limit: float) -> None:
        """Let those prepare that have yet to, one after the other: some must be alone on the device for it."""
        for name in sorted(self.unprepared):
            try:
                self.judge().prepare(self.entries[name], limit)
            except WorkerError as error:
                self.left_out[name] = str(error)
                del self.entries[name]
        self.unprepared.clear()

    def close(self) -> None:
        """End its processes and remove its files."""
        for worker in self._workers:
            worker.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Race:
    """Peers in several workloads.

    Args:
        context: of the section.
        peers: who takes part, by name.
        contests: workloads with a precision, by the name of their check, in their order.
        rounds: of each peer, at least.
        seconds: of a round.
    """

    def __init__(
        self,
        context: Context,
        peers: Mapping[str, type[Peer]],
        contests: Mapping[str, tuple[Contest, str]],
        rounds: int = ROUNDS,
        seconds: float = ROUND_SECONDS,
    ) -> None:
        self.context, self.rounds, self.seconds = context, rounds, seconds
        reasons = {name: peer.available() for name, peer in peers.items()}
        absent = {name: reason for name, reason in reasons.items() if reason is not None}
        self.peers = [peer for name, peer in peers.items() if name not in absent]
        cpus = int(cpu_counts()["usable"] or 1)
        self.threads = min(PEER_THREADS, cpus)
        self.at_once = max(2, cpus // 2)  # each that gets ready keeps somewhat more than one CPU busy
        self._folder = tempfile.TemporaryDirectory(
            prefix="peers-", dir=context.folder, ignore_cleanup_errors=True
        )
        self.starts = {
            name: Start(contest, precision, Path(self._folder.name) / str(i), absent)
            for i, (name, (contest, precision)) in enumerate(contests.items())
        }
        atexit.register(self.close)

    def close(self) -> None:
        """End all processes."""
        for start in self.starts.values():
            start.close()
        self._folder.cleanup()

    # --- getting ready -------------------------------------------------------------------------------------------

    def _waiting(self, start: Start) -> list[type[Peer]]:
        """The peers of a workload that nobody has asked yet to get ready."""
        return [peer for peer in self.peers if peer.name not in {*start.entries, *start.left_out}]

    def get_ready(self, names: Sequence[str], go_on: Callable[[], bool] = lambda: True) -> None:
        """Let the peers of workloads get ready, several at a time and in order; return when none is at it any more.

        Args:
            names: of the workloads.
            go_on: asked before whatever is begun; once it says no, the rest is left for later.
        """

        def enter(start: Start, peer: type[Peer]) -> None:
            if go_on():
                limit = max(1.0, min(READY_LIMIT, self.context.seconds_left))
                start.enter(peer, self.threads, limit, go_on)

        def make(start: Start) -> None:
            if go_on():
                start.make_files()

        starts = [self.starts[name] for name in names]
        with ThreadPoolExecutor(MAKERS) as makers, ThreadPoolExecutor(self.at_once) as pool:
            # ahead of the peers, of whom else all of a workload would wait for one to make its files
            tasks = [makers.submit(make, start) for start in starts]
            tasks += [pool.submit(enter, start, peer) for start in starts for peer in self._waiting(start)]
            try:
                for task in tasks:
                    task.result()
            except BaseException:  # an interrupt: the pool ends when those who are asked do
                for one in (makers, pool):
                    one.shutdown(wait=False, cancel_futures=True)
                self.close()
                raise

    def _unready(self, name: str) -> list[str]:
        """A workload and those behind it, as many as can get ready at the same time as it, which are not yet."""
        names = list(self.starts)
        behind = [n for n in names[names.index(name) :] if self._waiting(self.starts[n])]
        return behind[: max(1, self.at_once // max(1, len(self.peers)))]

    # --- being timed ---------------------------------------------------------------------------------------------

    def run(self, name: str) -> Values:
        """Time all peers on one workload, those that are not ready after they have become so."""
        start = self.starts[name]
        unready = bool(self._waiting(start))
        if self.context.seconds_left < (LEAST_UNREADY if unready else LEAST_SECONDS):
            raise Skipped("no time was left")
        try:
            if unready:
                self.get_ready(self._unready(name))
            start.prepare(max(1.0, min(READY_LIMIT, self.context.seconds_left)))
            rates = self._timed(start)
            results = [self._result(start, start.entries[peer], rates[peer]) for peer in rates if rates[peer]]
            values = judged(results) | {"left_out": start.left_out, "it": "step", "data": start.source}
        finally:
            start.close()
        if not results:
            raise Failed("no library could be timed", values)
        return values

    def _timed(self, start: Start) -> dict[str, list[float]]:
        """Time all in turn, those whose rounds differ more often; return steps a second of each round."""
        rates: dict[str, list[float]] = {name: [] for name in start.entries}
        seconds = self.seconds * start.contest.length
        for i in range(max(self.rounds, MOST_ROUNDS)):
            names = [n for n in rates if n not in start.left_out]
            if i >= self.rounds:
                if self.context.seconds_left < LEAST_SECONDS:
                    break
                names = [n for n in names if differ(rates[n], SETTLED)]
            for name in names[i % len(names) :] + names[: i % len(names)] if names else []:
                try:
                    answer = start.entries[name].worker.ask(
                        "run", RUN_LIMIT + 10 * seconds, seconds=seconds, least=start.contest.least_epochs
                    )
                except WorkerError as error:
                    start.left_out[name] = str(error)
                    rates[name] = []
                    continue
                done = Measurement(**answer["measurement"])
                start.entries[name].rounds.append(done)
                rates[name].append(done.steps / done.seconds)
        return rates

    def _result(self, start: Start, entry: Entry, rates: Sequence[float]) -> dict[str, Any]:
        workload = start.contest.workload
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
