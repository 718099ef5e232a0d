"""A section in a process of its own: ``python -m bench.gpu_check.worker SECTION DEVICE SECONDS``.

It reads the names of checks to leave out, as JSON, and writes a line of JSON before and after each check. A kernel that
reads or writes where it must not makes the GPU useless to its process: this one then ends, and another goes on.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import IO, Any

from bench.child import answers_alone

from .checks import Context, perform
from .sections import SECTIONS

NO_DEVICE, LOST = 3, 4
"""Exit codes: the section could not begin; the device does not answer any more."""


def serve(section: str, device: str, seconds: float, left_out: set[str], answers: IO[str]) -> int:
    """Run the checks of a section that are not left out; return the exit code."""

    def write(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value, default=_plain) + "\n")
        answers.flush()

    try:
        context = Context(device, time.monotonic() + seconds)
        checks = SECTIONS[section].checks(context)
    except Exception as error:
        write({"failure": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        return NO_DEVICE
    checks = [check for check in checks if check.name not in left_out]
    for i, check in enumerate(checks):
        if context.seconds_left <= 0:
            write({"out_of_time": [c.name for c in checks[i:]]})
            return 0
        write({"begin": check.name, "limit": check.limit})
        record = perform(check)
        write(record)
        if record["status"] == "error" and not context.is_alive():
            return LOST
    return 0


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def main(section: str, device: str, seconds: str) -> int:
    answers = answers_alone()
    left_out = set(json.loads(sys.stdin.readline()))
    return serve(section, device, float(seconds), left_out, answers)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
