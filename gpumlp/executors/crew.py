"""What networks that train at the same time on one GPU share, whichever gang they are in: turns, and what is alike."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from .patterns import Patterns

AT_ONCE = 2
"""Networks whose Python runs at the same time: one goes on while another waits for the GPU; more of them cost more time
by taking the interpreter from each other than they win."""

SIDE_BY_SIDE = 2
"""Small networks that a multiprocessor runs at the same time."""


class Turns:
    """Lets Python run for `AT_ONCE` networks at a time, in the order in which they ask.

    Hundreds of threads that want the interpreter at once keep each other from it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._waiting: deque[threading.Lock] = deque()

    def ask(self, *turns: threading.Lock) -> None:
        """Release each of these locks, which are held, when its turn has come."""
        with self._lock:
            self._waiting.extend(turns)
            self._give()

    def end(self) -> None:
        """Give up a turn, for the next who waits."""
        with self._lock:
            self._taken -= 1
            self._give()

    def _give(self) -> None:
        while self._waiting and self._taken < AT_ONCE:
            self._taken += 1
            self._waiting.popleft().release()


@dataclass
class Crew:
    """The networks that train at the same time on one GPU.

    Attributes:
        members: how many networks there are, those too that have left: what depends on their number, such as the
            executor of each, must depend neither on how far the others are nor on how they are dealt out to gangs.
        patterns: what those that are alike have in common.
        turns: of their Python.
        gpu: held by a gang while its launches run, so that the times measured are its own. Who holds it waits for the
            GPU alone, and for no other gang.
    """

    members: int = 1
    patterns: Patterns = field(default_factory=Patterns)
    turns: Turns = field(default_factory=Turns)
    gpu: threading.Lock = field(default_factory=threading.Lock)

    def gangs(self, multiprocessors: int) -> list[int]:
        """Return how many members each gang has: the launches of one run while the other's Python runs.

        There are two gangs where each fills the GPU by itself, else one. The first fills it a whole number of times, so
        that two do not leave more of it empty than one would.
        """
        full = SIDE_BY_SIDE * multiprocessors
        first = self.members // 2 // full * full
        return [first, self.members - first] if first else [self.members]
