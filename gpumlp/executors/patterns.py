"""What networks that are alike have in common on the resident kernel: their rows, written once, and then put anywhere.

Networks of a sweep differ in their seeds and rates: their lowered programs are equal, and so are the rows of these but
for addresses. A row is kept with each address counted from the start of its piece of memory (an arena, an array).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.cuda.device import Kernels
from ..program import Program, activation_bytes

if TYPE_CHECKING:
    from .tailoring import Tailor

Span = tuple[int, int]
"""Where a piece of memory begins, and its bytes."""


@dataclass(frozen=True)
class Movable:
    """Words of which some are addresses.

    Attributes:
        words: int64; an address is that within its piece.
        pieces: of the same shape, the place of each address's piece among the spans, from 1; 0 for other words.
    """

    words: np.ndarray
    pieces: np.ndarray

    @classmethod
    def of(cls, words: np.ndarray, are_addresses: np.ndarray, spans: Sequence[Span]) -> Movable:
        """Return words that can be moved.

        Args:
            words: as they are where the pieces lie at `spans`.
            are_addresses: which of them are, or 0 for none; broadcast to the shape of `words`.
            spans: of the pieces; of two that overlap the first has what both have, and they must move together.

        Raises:
            ValueError: an address within no piece.
        """
        words, pieces = words.copy(), np.zeros_like(words)
        addresses = np.where(are_addresses, words, 0)
        for number, (start, nbytes) in enumerate(spans, 1):
            inside = (pieces == 0) & (addresses >= start) & (addresses < start + nbytes)
            pieces[inside] = number
            words[inside] -= start
        if ((addresses != 0) & (pieces == 0)).any():
            raise ValueError("an operand lies in none of the pieces of memory")
        return cls(words, pieces)

    def at(self, starts: np.ndarray) -> np.ndarray:
        """Return the words where the pieces begin at `starts[1:]`; `starts[0]` is 0."""
        moved: np.ndarray = self.words + starts[self.pieces]
        return moved


def overlap(spans: Sequence[Span]) -> bool:
    """Whether some pieces of memory have bytes in common."""
    return any(a + nbytes > b for (a, nbytes), (b, _) in pairwise(sorted(s for s in spans if s[1])))


@dataclass(frozen=True)
class Walk:
    """What the resident kernel needs of the programs of an epoch, but for the place of the memory.

    Attributes:
        image: what lies in the network's own memory from its start on: rows of all programs one behind the other,
            stages (what lies in shared memory, see network.cuh), scalars of the rows, where each piece of memory is.
        counts: rows of each program.
        stages: how many.
        pieces: how many, and one more.
        stages_at, scalars_at, pieces_at, scratch_at: bytes of that memory before stages, scalars, table of pieces and
            working memory.
        nbytes: of all of it.
        shared_bytes: of shared memory.
        threads: of the block.
        kernels: compiled for the rows.
        tailor: who makes a kernel of their own for such networks.
    """

    image: Movable
    counts: tuple[int, ...]
    stages: int
    pieces: int
    stages_at: int
    scalars_at: int
    pieces_at: int
    scratch_at: int
    nbytes: int
    shared_bytes: int
    threads: int
    kernels: Kernels
    tailor: Tailor | None = None


@dataclass
class Pattern:
    """What networks have in common whose programs are equal, and whose memory has equal parts.

    Attributes:
        programs: as they were written.
        lowered: the same, lowered.
        activation_bytes: of their intermediate tensors.
        walks: by what tells them apart, as far as they were wanted.
    """

    programs: tuple[Program, ...]
    lowered: tuple[Program, ...]
    activation_bytes: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    walks: dict[Hashable, Walk] = field(default_factory=dict)

    def walk(self, key: Hashable, write: Callable[[], Walk]) -> Walk:
        """Return a walk; the first network that wants it writes it."""
        with self.lock:
            if key not in self.walks:
                self.walks[key] = write()
            return self.walks[key]


class Patterns:
    """The patterns of networks that train at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Hashable, tuple[tuple[Program, ...], Pattern]] = {}
        self._known: dict[Hashable, list[Pattern]] = {}

    def find(
        self, layout: Hashable, programs: tuple[Program, ...], lower: Callable[[Program], Program]
    ) -> Pattern:
        """Return the pattern of a network; of a new one its programs are lowered.

        Args:
            layout: equal for memories with equal parts.
            programs: as they were written.
            lower: what it says.
        """
        same = (layout, *map(id, programs))
        with self._lock:
            if same not in self._found:  # the programs are kept there, so that no others get their ids
                self._found[same] = programs, self._equal(layout, programs, lower)
            return self._found[same][1]

    def _equal(
        self, layout: Hashable, programs: tuple[Program, ...], lower: Callable[[Program], Program]
    ) -> Pattern:
        """The pattern of programs that are equal: where a user's own class wrote them they are never the same."""
        # what differs between networks of one layout is mostly a scalar: a share of dropout, a momentum
        scalars = tuple((call.kernel, *call.scalars.items()) for p in programs for call in p.calls)
        known = self._known.setdefault((layout, scalars), [])
        for pattern in known:
            if pattern.programs == programs:
                return pattern
        lowered = tuple(map(lower, programs))
        known.append(Pattern(programs, lowered, max(map(activation_bytes, lowered), default=0)))
        return known[-1]
