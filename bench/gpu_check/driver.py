"""Runs the sections, each in a process of its own that may hang or die, and keeps what they found."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.child import Child
from gpumlp.cpus import cpu_counts
from gpumlp.files import write_json
from gpumlp.machine import commit, machine, versions

from .sections import Section
from .worker import LOST, NO_DEVICE

BEGIN_LIMIT = 120.0
"""Seconds that a process may take to import, to find the GPU and to list its checks."""

MOST_STARTS = 6
"""How often a section is gone on with in a new process."""

REST_LIMIT = 60.0
"""Seconds in which what gets ready early must come to rest when it is called."""

SAVE_SECONDS = 2.0
AT_A_TIME = 12
"""Processes of sections that share the GPU, where they only tell right from wrong; three quarters of the CPUs at most,
since what gets ready early has the others."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

Say = Callable[[str], None]


@dataclass
class _Process:
    """Of a section, with its errors and prints, and what it said first, where somebody has waited for that."""

    child: Child
    log: IO[bytes]
    first: dict[str, Any] | None = None

    def close(self) -> None:
        self.child.close()
        self.log.close()


class Run:
    """All sections and what they found, written to a file as they go on.

    Args:
        device: "gpu" or "host".
        seconds: for everything.
        out: the file.
        say: called with a line of text on what happens.
        environment: of the processes, beside this one's.
    """

    def __init__(
        self, device: str, seconds: float, out: Path, say: Say, environment: dict[str, str] | None = None
    ) -> None:
        self.device, self.out, self.say = device, out, say
        self.end = time.monotonic() + seconds
        self._environment = environment or {}
        self._lock = threading.Lock()
        self._saved = 0.0
        self._children: set[Child] = set()
        self._early: dict[str, _Process] = {}
        # a process that is ended leaves its files behind
        self._folder = tempfile.TemporaryDirectory(prefix="gpumlp-check-", ignore_cleanup_errors=True)
        self._begun: dict[str, float] = {}  # by section
        self._ended: Counter[str] = Counter()  # parts of it
        self._stopped = threading.Event()
        self.result: dict[str, Any] = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "versions": versions(),
            "machine": machine(),
            "gpu": None,
            "settings": {"device": device, "seconds": seconds},
            "finished": False,
            "sections": {},
        }

    # --- what is kept ----------------------------------------------------------------------------------------------

    def save(self, at_once: bool = True) -> None:
        """Write the file, whole; but not again within two seconds unless `at_once`."""
        with self._lock:
            if at_once or time.monotonic() - self._saved > SAVE_SECONDS:
                write_json(self.out, self.result)
                self._saved = time.monotonic()

    def run(self, sections: Sequence[Section]) -> dict[str, Any]:
        """Run the sections, those that may share the GPU first and side by side; return all that was found."""
        start = time.monotonic()
        together = [s for s in sections if not s.alone]
        alone = [s for s in sections if s.alone]
        for section in sections:
            self.result["sections"][section.name] = {
                "about": section.about,
                "status": "waiting",
                "checks": [],
            }
        self.save()
        cpus = int(cpu_counts()["usable"] or 1)
        parts = [(s, 0.0, part, n) for s in together for n in (self._parts(s, cpus),) for part in range(n)]
        at_once = max(1, min(AT_A_TIME, 3 * cpus // 4, len(parts)))
        # libraries whose threads wait for each other are slower with too many of them than with one
        self._shared = dict.fromkeys(THREADS, str(max(1, cpus // (at_once + 2))))
        try:
            for section in alone:
                if section.early and not (self.device == "host" and not section.on_host):
                    self._begin_early(section)
            with ThreadPoolExecutor(at_once) as pool:
                try:
                    list(pool.map(self._section, *zip(*parts, strict=True)))
                except BaseException:  # an interrupt: the pool ends when the processes do
                    pool.shutdown(wait=False, cancel_futures=True)
                    self.close()
                    raise
            self._settle(called=bool(together))
            for i, section in enumerate(alone):
                self._section(section, keep=sum(s.kept for s in alone[i + 1 :]))
            self.result["finished"] = True
        finally:
            self.close()
            self.result["seconds"] = round(time.monotonic() - start, 1)
            self.result["summary"] = summary(self.result)
            self.save()
        return self.result

    def close(self) -> None:
        """End all processes; none is started any more."""
        self._stopped.set()
        for child in list(self._children):
            child.kill()
        for name in list(self._early):
            self._end_early(name)
        self._folder.cleanup()

    def _parts(self, section: Section, cpus: int) -> int:
        """Into how many processes a section is divided; the stand-in compiles all of its kernels at once."""
        return 1 if self.device == "host" else max(1, min(section.processes, cpus // 4))

    # --- what gets ready early -----------------------------------------------------------------------------------

    def _begin_early(self, section: Section) -> None:
        """Start the process of a section that gets ready beside those that share the GPU."""
        seconds = min(section.early, self.end - time.monotonic())
        self.say(f"{section.name}: getting ready")
        self._early[section.name] = self._started(section, [], seconds, self._shared)

    def _settle(self, called: bool) -> None:
        """Wait until all that gets ready early has come to rest: what is timed must be alone.

        Args:
            called: whether it is not to begin anything more; else it may take the time that it was given.
        """
        start = time.monotonic()
        limit = start + REST_LIMIT if called else self.end
        for process in self._early.values():
            with contextlib.suppress(BrokenPipeError):  # it has ended, which shows when it is read from
                if called:
                    process.child.write({"called": True})
        for name, process in list(self._early.items()):
            entry = self.result["sections"][name]
            try:
                process.first = process.child.read(max(1.0, limit - time.monotonic()))
            except TimeoutError:  # another process then begins with all of it
                _note_loss(entry, "", "it did not come to rest when it was called", process.log)
                self._end_early(name)
            entry["seconds waited for"] = round(time.monotonic() - start, 1)

    def _end_early(self, name: str) -> None:
        if (process := self._early.pop(name, None)) is not None:
            process.close()
            self._children.discard(process.child)

    # --- one section ---------------------------------------------------------------------------------------------

    def _section(self, section: Section, keep: float = 0.0, part: int = 0, parts: int = 1) -> None:
        """Run a section, or one of the parts that it is divided into."""
        entry, name = self.result["sections"][section.name], section.name
        start = time.monotonic()
        seconds = min(section.seconds, self.end - start - keep)
        if self.device == "host" and not section.on_host:
            entry["note"] = "the stand-in for a GPU cannot do it"
        elif seconds < 5:
            entry["note"] = "no time was left"
            self._end_early(name)
        else:
            begun = self._begun.setdefault(name, start)
            if part == 0:
                self.say(f"{name}: {section.about}")
            entry["status"] = "running"
            self._in_processes(section, entry, start + seconds, part, parts)
            entry["seconds"] = round(time.monotonic() - begun, 1)
        with self._lock:
            self._ended[name] += 1
            is_over = self._ended[name] == parts
        if is_over:
            entry["status"] = _status(entry) if name in self._begun else "skipped"
            self.say(f"{name}: {entry['status']}, {len(entry['checks'])} checks, {entry.get('seconds', 0)} s")
        self.save()

    def _in_processes(
        self, section: Section, entry: dict[str, Any], end: float, part: int, parts: int
    ) -> None:
        """Run a part of a section, in a new process again each time that one is lost."""
        for _ in range(MOST_STARTS):
            if self._stopped.is_set():
                entry["note"] = "interrupted"
                return
            code = self._in_a_process(section, entry, end, part, parts)
            if code == 0:
                return
            if code == NO_DEVICE and not entry["checks"]:
                return
            if end - time.monotonic() < 5:
                entry["note"] = "out of time after a process was lost"
                return
        entry["note"] = f"given up after {MOST_STARTS} processes were lost"

    def _in_a_process(
        self, section: Section, entry: dict[str, Any], end: float, part: int, parts: int
    ) -> int:
        process = self._early.pop(section.name, None)
        if process is None:
            done = [record["check"] for record in entry["checks"]]
            # what could get ready early has no time of its own for it any more
            seconds = 0.0 if section.early else max(1.0, end - time.monotonic())
            shared = {} if section.alone else self._shared
            process = self._started(section, done, seconds, shared, part, parts)
        try:
            return self._follow(process, entry, end)
        finally:
            process.close()
            self._children.discard(process.child)

    def _started(
        self,
        section: Section,
        done: Sequence[str],
        seconds: float,
        environment: dict[str, str],
        part: int = 0,
        parts: int = 1,
    ) -> _Process:
        log = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        child = Child(
            *("bench.gpu_check.worker", section.name, self.device, str(seconds), str(part), str(parts)),
            log=log,
            environment={**environment, **self._environment},
        )
        self._children.add(child)
        with contextlib.suppress(BrokenPipeError):
            child.write({"left_out": list(done), "folder": self._folder.name})
        return _Process(child, log)

    def _follow(self, process: _Process, entry: dict[str, Any], end: float) -> int:
        """Take down what a process says until it ends; return its exit code, `LOST` where it was ended."""
        child, log = process.child, process.log
        at_hand, limit = "", BEGIN_LIMIT
        while True:
            # what takes longer than the section has left is not waited for either, but for a little
            seconds = min(limit, max(1.0, end + 10 - time.monotonic()))
            try:
                value, process.first = process.first or child.read(seconds), None
            except TimeoutError:
                _note_loss(entry, at_hand, f"no end within {seconds:.0f} s", log)
                return LOST
            if value is None:
                code = child.wait()
                if (at_hand and code != LOST) or (not at_hand and code not in (0, NO_DEVICE, LOST)):
                    _note_loss(entry, at_hand, f"its process ended with code {code}", log)
                    return LOST
                return code
            if "ready" in value:
                with contextlib.suppress(BrokenPipeError):
                    child.write({"seconds": end - time.monotonic()})
            elif "begin" in value:
                at_hand, limit = value["begin"], value["limit"]
            elif "check" in value:
                at_hand, limit = "", BEGIN_LIMIT
                with self._lock:
                    entry["checks"].append(value)
                if value["status"] in ("failed", "error"):
                    self.say(f"  {value['check']}: {value['message']}")
            else:
                with self._lock:  # each part may say what it had no time for
                    entry |= value | {
                        k: entry[k] + v for k, v in value.items() if k in entry and k == "out_of_time"
                    }
            self.save(at_once=False)


def _note_loss(entry: dict[str, Any], check: str, what: str, log: IO[bytes]) -> None:
    """Write down that a check, or the beginning of a section, took its process along."""
    log.seek(0)
    words = log.read().decode(errors="replace")[-4000:]
    entry["checks"].append(
        {"check": check or "(begin)", "status": "error", "message": what, "traceback": words, "seconds": None}
    )


def _status(entry: dict[str, Any]) -> str:
    if "failure" in entry:
        return "error"
    kinds = {record["status"] for record in entry["checks"]}
    if kinds & {"failed", "error"}:
        return "failed"
    return "incomplete" if "out_of_time" in entry or "note" in entry else "passed"


def records(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All checks that were made, each with the name of its section."""
    for name, entry in result["sections"].items():
        for record in entry["checks"]:
            yield name, record


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return how many checks ended how, and the names of those that failed."""
    counts: dict[str, int] = {}
    failed = [name for name, entry in result["sections"].items() if "failure" in entry]
    for name, record in records(result):
        counts[record["status"]] = counts.get(record["status"], 0) + 1
        if record["status"] in ("failed", "error"):
            failed.append(f"{name}: {record['check']}")
    return {"counts": counts, "failed": failed}
