"""A section in a process of its own: ``python -m bench.gpu_check.worker SECTION DEVICE SECONDS PART PARTS``.

It reads what to leave out and where files may lie, as JSON, and says when it is ready; it begins when it reads how many
seconds it has, and writes a line of JSON before and after each check. While it gets ready, SECONDS at most, it may read
that it is called. A kernel that reads or writes where it must not makes the GPU useless to its process: this one then
ends, and another goes on.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from queue import SimpleQueue
from typing import IO, Any

from bench.child import answers_alone

from .checks import Context, perform
from .sections import SECTIONS

NO_DEVICE, LOST = 3, 4
"""Exit codes: the section could not begin; the device does not answer any more."""


def serve(
    section: str,
    device: str,
    seconds: float,
    given: dict[str, Any],
    orders: Iterable[bytes],
    answers: IO[str],
    part: int = 0,
    parts: int = 1,
) -> int:
    """Run the checks of a section, or every so manieth; return the exit code.

    Args:
        section, device: which, and where.
        seconds: to get ready.
        given: "left_out", names of checks, and "folder", for files.
        orders: lines that may call it, and then let it begin.
        answers: where lines of JSON go.
        part, parts: of the checks.
    """

    def write(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value, default=_plain) + "\n")
        answers.flush()

    try:
        context = Context(device, time.monotonic() + seconds, set(given["left_out"]), given["folder"])
        begin = _listen(orders, context)
        checks = SECTIONS[section].checks(context)
    except Exception as error:
        write({"failure": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        return NO_DEVICE
    checks = [check for check in checks[part::parts] if check.name not in context.left_out]
    write({"ready": len(checks)})
    allowed = begin.get()
    if allowed is None:
        return 0
    context.end = time.monotonic() + allowed
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


def _listen(orders: Iterable[bytes], context: Context) -> SimpleQueue[float | None]:
    """Take orders while the section gets ready; return where its seconds come, or None where nobody asks any more."""
    begin: SimpleQueue[float | None] = SimpleQueue()

    def listen() -> None:
        for line in orders:
            order = json.loads(line)
            if "called" in order:
                context.called.set()
            else:
                begin.put(order["seconds"])
        begin.put(None)

    threading.Thread(target=listen, daemon=True).start()
    return begin


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def main(section: str, device: str, seconds: str, part: str, parts: str) -> int:
    answers = answers_alone()
    # without a buffer: a thread that waits within one, which has a lock, would not let the process end
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as orders:
        given = json.loads(orders.readline())
        return serve(section, device, float(seconds), given, orders, answers, int(part), int(parts))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
