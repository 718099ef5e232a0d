"""A peer in a process of its own: ``python -m bench.peers.worker NAME THREADS TABLE`` answers commands, JSON lines both
ways; TABLE is "cpu" or "gpu".

A command is ``{"do": NAME, ...}``; the answer is ``{"ok": true, ...}`` or ``{"error": "one line"}``. So no peer's
thread pools, BLAS settings or memory disturb another's.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from bench.child import Child, answers_alone

from .contract import Pace, Peer, Problem, save_weights


class WorkerError(Exception):
    """A peer that failed, ended or took too long; the message is one line."""


# --- inside the process ------------------------------------------------------------------------------------------


class Commands:
    """What a worker does when it is asked."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.pace: Pace | None = None

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a command; whatever goes wrong is an answer too."""
        arguments = dict(command)
        what = arguments.pop("do", None)
        known: Mapping[str, Callable[..., dict[str, Any]]] = {
            "check": self.check,
            "prepare": self.prepare,
            "run": self.run,
            "weights": self.weights,
            "forget": self.forget,
        }
        if what not in known:
            return {"error": f"unknown command {what!r}; expected one of {', '.join(known)}"}
        try:
            return {"ok": True, **known[what](**arguments)}
        except Exception as error:
            traceback.print_exc()
            return {"error": one_line(error)}

    def check(self, problem: Mapping[str, Any], epochs: int, path: str) -> dict[str, Any]:
        """Train a problem for some epochs and write its weights, for others to judge."""
        self.forget()
        self.peer.prepare(Problem.load(problem))
        for _ in range(epochs):
            self.peer.train(1)
        save_weights(Path(path), self.peer.weights())
        return {}

    def prepare(self, problem: Mapping[str, Any]) -> dict[str, Any]:
        """Take a problem, and train one epoch of it, so that all is compiled."""
        self.forget()
        self.pace = Pace(self.peer, Problem.load(problem))
        return {}

    def run(self, seconds: float, least: int) -> dict[str, Any]:
        """Train one round of what was prepared."""
        return {"measurement": self._prepared().run(seconds, least).to_dict()}

    def weights(self, path: str) -> dict[str, Any]:
        """Write the present weights."""
        pace = self._prepared()
        save_weights(Path(path), pace.peer.weights())
        return {"epochs": pace.epochs}

    def forget(self) -> dict[str, Any]:
        """Let the memory of the last problem go."""
        self.pace = None
        self.peer = type(self.peer)(self.peer.threads)
        return {}

    def _prepared(self) -> Pace:
        if self.pace is None:
            raise ValueError("nothing is prepared; send prepare first")
        return self.pace


def one_line(error: BaseException) -> str:
    """Return kind and message of an error, the first line of it."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


def serve(peer: Peer, commands: IO[str], answers: IO[str]) -> None:
    """Answer commands until there are no more."""
    served = Commands(peer)
    for line in commands:
        try:
            command = json.loads(line)
            if not isinstance(command, dict):
                raise ValueError("expected an object")
            answer = served.answer(command)
        except ValueError as error:
            answer = {"error": f"no command: {one_line(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def end_with(parent: int) -> None:
    """Let this process end soon after the one that started it, in the middle of a command too.

    It has a session of its own, so that what ends the other leaves it alone; and the end of the pipe is only seen
    between two commands, while it would go on disturbing what is timed next.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(name: str, threads: str, table: str = "cpu") -> None:
    end_with(os.getppid())
    from .registry import GPU_PEERS, PEERS

    answers = answers_alone()
    peers = PEERS if table == "cpu" else GPU_PEERS
    serve(peers[name](int(threads)), sys.stdin, answers)


# --- outside of it -----------------------------------------------------------------------------------------------


class Worker:
    """A peer's process, as the one who asks it sees it; a context manager that ends it.

    Args:
        peer: which.
        threads: that it may use.
        log: file that its errors and prints go to.
    """

    def __init__(self, peer: type[Peer], threads: int, log: Path) -> None:
        self.peer, self.threads, self.log = peer, threads, log
        with log.open("ab") as errors:
            self._child = Child(
                *("bench.peers.worker", peer.name, str(threads), "cpu" if peer.device == "cpu" else "gpu"),
                log=errors,
                environment=peer.environment(threads),
            )

    def ask(self, do: str, limit: float, **arguments: Any) -> dict[str, Any]:
        """Send a command and return the answer.

        Args:
            do: name of the command.
            limit: seconds to wait; a worker that takes longer is ended.
            arguments: of the command.

        Raises:
            WorkerError: it failed, ended, or took too long.
        """
        try:
            self._child.write({"do": do, **arguments})
            answer = self._child.read(limit)
        except TimeoutError:
            self.close()
            raise WorkerError(f"no answer within {limit:g} s") from None
        except (OSError, ValueError):
            answer = None
        if answer is None:
            self.close()
            raise WorkerError(f"{do}: the process ended{self._last_words()}")
        if "error" in answer:
            raise WorkerError(f"{do}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1]}" if lines else ""

    def is_alive(self) -> bool:
        """Whether the process is there to be asked."""
        return self._child.is_alive()

    def close(self) -> None:
        """End the process and those that it started; may be called again, and while another thread asks."""
        self._child.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
