"""Runs the sections, each in a process of its own that may hang or die, and keeps what they found."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

SAVE_SECONDS = 2.0
AT_A_TIME = 4
"""Sections that share the GPU, where they only tell right from wrong."""

Say = Callable[[str], None]


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
        try:
            with ThreadPoolExecutor(max(1, min(AT_A_TIME, cpus // 2, len(together) or 1))) as pool:
                try:
                    list(pool.map(self._section, together))
                except BaseException:  # an interrupt: the pool ends when the processes do
                    pool.shutdown(wait=False, cancel_futures=True)
                    self.close()
                    raise
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

    # --- one section ---------------------------------------------------------------------------------------------

    def _section(self, section: Section, keep: float = 0.0) -> None:
        entry = self.result["sections"][section.name]
        seconds = min(section.seconds, self.end - time.monotonic() - keep)
        if self.device == "host" and not section.on_host:
            entry |= {"status": "skipped", "note": "the stand-in for a GPU cannot do it"}
        elif seconds < 5:
            entry |= {"status": "skipped", "note": "no time was left"}
        else:
            self.say(f"{section.name}: {section.about}")
            start = time.monotonic()
            entry["status"] = "running"
            self._in_processes(section, entry, start + seconds)
            entry["seconds"] = round(time.monotonic() - start, 1)
            entry["status"] = _status(entry)
            self.say(
                f"{section.name}: {entry['status']}, {len(entry['checks'])} checks, {entry['seconds']} s"
            )
        self.save()

    def _in_processes(self, section: Section, entry: dict[str, Any], end: float) -> None:
        """Run a section, in a new process again each time that one is lost."""
        for _ in range(MOST_STARTS):
            if self._stopped.is_set():
                entry["note"] = "interrupted"
                return
            code = self._in_a_process(section, entry, end)
            if code == 0:
                return
            if code == NO_DEVICE and not entry["checks"]:
                return
            if end - time.monotonic() < 5:
                entry["note"] = "out of time after a process was lost"
                return
        entry["note"] = f"given up after {MOST_STARTS} processes were lost"

    def _in_a_process(self, section: Section, entry: dict[str, Any], end: float) -> int:
        done = [record["check"] for record in entry["checks"]]
        seconds = str(max(1.0, end - time.monotonic()))
        with tempfile.TemporaryFile() as log:
            child = Child(
                *("bench.gpu_check.worker", section.name, self.device, seconds),
                log=log,
                environment=self._environment,
            )
            self._children.add(child)
            try:
                with contextlib.suppress(BrokenPipeError):
                    child.write(done)
                return self._follow(child, entry, end, log)
            finally:
                child.close()
                self._children.discard(child)

    def _follow(self, child: Child, entry: dict[str, Any], end: float, log: IO[bytes]) -> int:
        """Take down what a process says until it ends; return its exit code, `LOST` where it was ended."""
        at_hand, limit = "", BEGIN_LIMIT
        while True:
            # what takes longer than the section has left is not waited for either, but for a little
            seconds = min(limit, max(1.0, end + 10 - time.monotonic()))
            try:
                value = child.read(seconds)
            except TimeoutError:
                _note_loss(entry, at_hand, f"no end within {seconds:.0f} s", log)
                return LOST
            if value is None:
                code = child.wait()
                if (at_hand and code != LOST) or (not at_hand and code not in (0, NO_DEVICE, LOST)):
                    _note_loss(entry, at_hand, f"its process ended with code {code}", log)
                    return LOST
                return code
            if "begin" in value:
                at_hand, limit = value["begin"], value["limit"]
            elif "check" in value:
                at_hand, limit = "", BEGIN_LIMIT
                entry["checks"].append(value)
                if value["status"] in ("failed", "error"):
                    self.say(f"  {value['check']}: {value['message']}")
            else:
                entry |= value
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
