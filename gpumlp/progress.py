"""The progress of a training: a bar on a terminal, lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN_APART = ("epoch", "loss", "lr", "seconds")


def _text(logs: Mapping[str, float]) -> str:
    scores = {k: v for k, v in logs.items() if k not in _SHOWN_APART and v == v}
    return "".join(f", {name} {value:.4g}" for name, value in scores.items())


LINES = 100
PATIENCE = 5.0


class Progress:
    """Shows epochs as they end; an "it" is an epoch.

    Args:
        shown: True for a bar on a terminal and lines elsewhere: for each epoch, of more than `LINES` for every second,
            third, ... and the last, and whenever `PATIENCE` seconds have passed. False for silence.
        epochs: planned.
        done: of them before this start, where a training goes on.
    """

    def __init__(self, shown: bool, epochs: int, done: int = 0) -> None:
        self._epochs, self._done, self._bar = epochs, done, None
        self._lines = shown and not sys.stderr.isatty()
        self._step, self._said, self._unsaid = -(-epochs // LINES), time.monotonic(), ""
        if shown and not self._lines:
            from tqdm import tqdm

            self._bar = tqdm(total=epochs, initial=done, unit="it", file=sys.stderr, dynamic_ncols=True)

    @property
    def shows_each(self) -> bool:
        """Whether epochs are shown by their number, and not the newest alone."""
        return self._lines

    def epochs_ended(self, rows: list[dict[str, float]], count: int, it_per_second: float) -> None:
        """Show epochs that ended.

        Args:
            rows: of the history, the newest last; of all of them where each is shown.
            count: how many epochs ended.
            it_per_second: so far.
        """
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {rows[-1]['loss']:.4g}{_text(rows[-1])}", refresh=False)
            self._bar.update(count)
        elif self._lines:
            self._write_lines(rows, it_per_second)

    def _write_lines(self, rows: list[dict[str, float]], it_per_second: float) -> None:
        now, lines = time.monotonic(), []
        late = now - self._said >= PATIENCE
        for n, row in enumerate(rows, self._done - len(rows) + 1):
            text = f"loss {row['loss']:.6g}{_text(row)}, {it_per_second:.4g} it/s"
            self._unsaid = f"epoch {n}/{self._epochs}: {text}\n"
            if n % self._step == 0 or n == self._epochs or (late and n == self._done):
                lines.append(self._unsaid)
                self._unsaid = ""
        if lines:
            self._said = now
            sys.stderr.write("".join(lines))
            sys.stderr.flush()

    def advanced(self, count: int, text: str) -> None:
        """Show that `count` epochs of many networks ended; elsewhere than on a terminal, a line each tenth."""
        tenth = self._done * 10 // self._epochs
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(count)
        elif self._lines and self._done * 10 // self._epochs > tenth:
            sys.stderr.write(f"{self._done}/{self._epochs} epochs: {text}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """End the bar; or write the line of the epoch at which a training stopped."""
        if self._bar is not None:
            self._bar.close()
        elif self._unsaid:
            sys.stderr.write(self._unsaid)
            self._unsaid = ""


class Interrupt:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.pressed = False


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Note Ctrl-C instead of raising it in the middle of a step; a second one is raised at once.

    Only Python's main thread receives signals; elsewhere the block runs as it is.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # somebody else has plans for Ctrl-C
        yield interrupt
        return

    def note(signum: int, frame: Any) -> None:
        if interrupt.pressed:
            raise KeyboardInterrupt
        interrupt.pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
