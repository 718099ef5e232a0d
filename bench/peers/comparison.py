"""Holds the peers against each other: each checked first, then timed in rounds that take turns."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpumlp import get_backend
from gpumlp.commands.bench_peak import Peak
from gpumlp.machine import commit, machine, versions
from gpumlp.workloads import DataDir

from .contract import Measurement, Peer, Problem
from .judge import (
    ANSWER_LIMIT,
    CHECK_EPOCHS,
    CHECK_ROWS,
    LOSS_TOLERANCE,
    MOVE_TOLERANCE,
    Entry,
    Judge,
    first_problem,
    is_small,
)
from .registry import Contest
from .worker import Worker, WorkerError

Say = Callable[[str], None]


class Comparison:
    """Peers, their processes and what was measured; a context manager that ends the processes.

    Args:
        peers: to compare.
        cpus: that each may use.
        rounds: of each peer and contest.
        seconds: of a round, about.
        data_dir: where MNIST is looked for.
        say: called with a line of text on what happens.

    Attributes:
        absent: why peers are left out altogether, by name.
    """

    def __init__(
        self,
        peers: Sequence[type[Peer]],
        cpus: int,
        rounds: int,
        seconds: float,
        data_dir: DataDir = None,
        say: Say = lambda text: None,
    ) -> None:
        self.cpus, self.rounds, self.seconds = cpus, rounds, seconds
        self.data_dir, self.say = data_dir, say
        reasons = {peer.name: peer.available() for peer in peers}
        self.peers = [peer for peer in peers if reasons[peer.name] is None]
        self.absent = {name: reason for name, reason in reasons.items() if reason is not None}
        self.peak = Peak(get_backend("cpu"))
        self._workers: dict[tuple[str, int], Worker] = {}
        self._sets: dict[Any, Any] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Comparison:
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gpumlp-peers-")))
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._stack.close()

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()

    def problem(self, contest: Contest) -> Problem:
        """Return what the peers train: the rows of the workload, and the first weights that gpumlp draws."""
        w = contest.workload
        key = w.data, w.rows
        if key not in self._sets:
            self._sets[key] = w.load(self.data_dir)
        data = self._sets[key]
        return first_problem(contest, data.X, data.y)

    def run(self, contest: Contest) -> dict[str, Any]:
        """Check and time all peers on one contest; return the result as JSON has it."""
        problem = self.problem(contest)
        with tempfile.TemporaryDirectory(dir=self._scratch) as name:
            judge = Judge(contest, problem, Path(name))
            reasons = {peer.name: peer.unsupported(problem) for peer in self.peers}
            left_out = {name: reason for name, reason in reasons.items() if reason is not None}
            candidates = self._prepared(judge, left_out)
            entries = [self._fastest(candidates[name]) for name in candidates]
            self._race(contest, entries, left_out)
            results = [self._result(entry, judge) for entry in entries if len(entry.rounds) == self.rounds]
            for entry in entries:
                self._forget(entry.worker)
        return {
            "workload": contest.name,
            "sizes": list(problem.workload.sizes),
            "activation": problem.workload.activation,
            "loss": problem.workload.loss,
            "lrs": list(problem.lrs),
            "networks": len(problem.lrs),
            "rows": problem.workload.rows,
            "batch_size": problem.workload.step_rows,
            "steps": problem.workload.steps,
            "dtype": "float32",
            "data": self._sets[problem.workload.data, problem.workload.rows].source,
            "it": contest.it,
            "left_out": left_out,
            "peers": results,
        }

    def _prepared(self, judge: Judge, left_out: dict[str, str]) -> dict[str, list[Entry]]:
        """Check and compile all, several at a time; return for each peer an entry for each number of threads."""
        entries: dict[str, list[Entry]] = {}
        with ThreadPoolExecutor(self.cpus) as pool:
            tasks = []
            for peer in self.peers:
                if peer.name in left_out:
                    continue
                try_one = is_small(judge.problem.workload) and self.cpus > 1 and not peer.chooses_threads
                for threads in (self.cpus, 1) if try_one else (self.cpus,):
                    task = pool.submit(judge.enter, self._worker(peer, threads))
                    tasks.append((peer.name, threads, task))
            try:
                for name, threads, task in tasks:
                    self.say(f"{judge.contest.name}: preparing {name}, threads {threads}")
                    try:
                        entries.setdefault(name, []).append(task.result())
                    except WorkerError as error:
                        left_out[name] = str(error)
            except BaseException:  # an interrupt: the pool ends when those who are asked do
                pool.shutdown(wait=False, cancel_futures=True)
                self.close()
                raise
        return {name: entries[name] for name in entries if name not in left_out}

    def _fastest(self, entries: Sequence[Entry]) -> Entry:
        """Time each number of threads for a moment, and keep the fastest."""
        if len(entries) == 1:
            return entries[0]
        for entry in entries:
            # left out of the race, if it fails here, when it fails there
            with contextlib.suppress(WorkerError):
                answer = entry.worker.ask("run", ANSWER_LIMIT, seconds=0.3 * self.seconds, least=1)
                done = Measurement(**answer["measurement"])
                entry.tried = {str(entry.worker.threads): done.steps / done.seconds}
        best, *others = sorted(entries, key=lambda entry: -max(entry.tried.values(), default=0.0))
        for entry in others:
            best.tried |= entry.tried
            self._forget(entry.worker)
        return best

    def _worker(self, peer: type[Peer], threads: int) -> Worker:
        """Return the process of a peer; one that has ended is started anew."""
        key = peer.name, threads
        if key in self._workers and not self._workers[key].is_alive():
            del self._workers[key]
        if key not in self._workers:
            self._workers[key] = Worker(peer, threads, self._scratch / f"{peer.name}-{threads}.log")
        return self._workers[key]

    def _forget(self, worker: Worker) -> None:
        with contextlib.suppress(WorkerError):
            worker.ask("forget", ANSWER_LIMIT)

    def _race(self, contest: Contest, entries: Sequence[Entry], left_out: dict[str, str]) -> None:
        """Time all in turn; the one who starts changes from round to round."""
        running, seconds = list(entries), contest.length * self.seconds
        for i in range(self.rounds):
            self.say(f"{contest.name}: round {i + 1} of {self.rounds}")
            self.peak.measure()
            start = i % max(1, len(running))
            for entry in running[start:] + running[:start]:
                limit = 10 * seconds + ANSWER_LIMIT
                try:
                    answer = entry.worker.ask("run", limit, seconds=seconds, least=contest.least_epochs)
                except WorkerError as error:
                    left_out[entry.worker.peer.name] = str(error)
                    running.remove(entry)
                    continue
                entry.rounds.append(Measurement(**answer["measurement"]))

    def _result(self, entry: Entry, judge: Judge) -> dict[str, Any]:
        peer, problem = entry.worker.peer, judge.problem
        workload, networks = problem.workload, len(problem.lrs)
        per_it = 1 if judge.contest.it == "step" else workload.steps
        steps = [r.steps / r.seconds for r in entry.rounds]
        samples = [rate * workload.rows / workload.steps for rate in steps]
        return {
            "peer": peer.name,
            "about": peer.about,
            "threads": "its own choice" if peer.chooses_threads else entry.worker.threads,
            "steps_per_second_by_threads": entry.tried,
            "loss_function": entry.loss,
            "check": entry.check,
            "it_per_second": spread([rate / per_it for rate in steps]),
            "steps_per_second": spread(steps),
            "samples_per_second": spread(samples),
            "cpu_seconds_per_second": statistics.median(r.cpu_seconds / r.seconds for r in entry.rounds),
            "gflops": statistics.median(samples) * workload.flops_per_sample / 1e9,
            "end": judge.end(entry),
            "rounds": [r.to_dict() for r in entry.rounds],
            "networks": networks,
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(
    contests: Sequence[Contest],
    peers: Sequence[type[Peer]],
    cpus: int,
    rounds: int,
    seconds: float,
    data_dir: DataDir = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Return all that was measured, with what it was measured on; see `Comparison` for the arguments."""
    with Comparison(peers, cpus, rounds, seconds, data_dir, say) as comparison:
        results = [comparison.run(contest) for contest in contests]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions() | _versions(comparison.peers),
        "machine": machine(),
        "settings": {
            "rounds": rounds,
            "seconds": seconds,
            "cpus": cpus,
            "check_rows": CHECK_ROWS,
            "check_epochs": CHECK_EPOCHS,
            "loss_tolerance": LOSS_TOLERANCE,
            "move_tolerance": MOVE_TOLERANCE,
        },
        "peak": {"gflops": comparison.peak.gflops, "product": [comparison.peak.n] * 3, "dtype": "float32"},
        "absent": comparison.absent,
        "results": [judged(result, comparison.peak.gflops) for result in results],
    }


def _versions(peers: Sequence[type[Peer]]) -> dict[str, str | None]:
    libraries = {peer.library for peer in peers if peer.library not in (None, "gpumlp")}
    return {library: importlib.metadata.version(library) for library in sorted(filter(None, libraries))}


def judged(result: Mapping[str, Any], peak_gflops: float) -> dict[str, Any]:
    """Return a result with what follows from its medians: shares of the peak, and ratios."""
    rates = {entry["peer"]: entry["it_per_second"]["median"] for entry in result["peers"]}
    loop = rates.get("numpy-float64")
    peers = [
        {
            **entry,
            "share_of_peak": entry["gflops"] / peak_gflops,
            "over_float64_loop": rates[entry["peer"]] / loop if loop else None,
        }
        for entry in result["peers"]
    ]
    others = {name: rate for name, rate in rates.items() if name != "gpumlp"}
    best = max(others, key=lambda name: others[name], default=None)
    ours = rates.get("gpumlp")
    return {
        **result,
        "peers": peers,
        "best_peer": best,
        "over_best_peer": ours / others[best] if ours and best else None,
        "over_float64_loop": ours / loop if ours and loop else None,
    }
