"""A process that runs a module of the checkout and speaks in lines of JSON: it may hang, die or ruin its device."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from bench.checkout import ROOT


class Child:
    """The process, as the one who started it sees it.

    Args:
        module: what it runs, as after ``python -m``.
        arguments: of the module.
        log: file that its errors and prints go to.
        environment: of it, beside this process's.
    """

    def __init__(self, module: str, *arguments: str, log: IO[bytes], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # so that processes of its own end with it
        )
        self._rest = b""

    def write(self, value: Any) -> None:
        """Send it a line.

        Raises:
            BrokenPipeError: it has ended.
            ValueError: it was closed.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        self._process.stdin.flush()

    def read(self, seconds: float) -> dict[str, Any] | None:
        """Return its next line, or None where it has ended, be it within a line.

        Raises:
            TimeoutError: none came in that time.
            ValueError: the line is no JSON, or it was closed.
        """
        assert self._process.stdout is not None
        end, pipe = time.monotonic() + seconds, self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            if not (part := os.read(pipe, 1 << 16)):
                return None
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        value: dict[str, Any] = json.loads(line)
        return value

    def is_alive(self) -> bool:
        """Whether the process is there to be asked."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Return its exit code, when it has ended."""
        return self._process.wait()

    def kill(self) -> None:
        """End the process and those that it started; another thread that reads sees the end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it and close its pipes; may be called again."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def answers_alone() -> IO[str]:
    """Return, in such a process, the pipe for its lines; what a library prints goes where its errors go from now on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers
