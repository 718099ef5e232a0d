"""Flat memory by role: parameters, gradients, slots of the optimizer, state, activations.

One allocation holds all tensors of a role as named segments. It makes an update one pass over one array, a
checkpoint a few arrays, and gives every tensor an address that never changes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import ALIGNMENT, Backend

Array = Any


@dataclass(frozen=True, slots=True)
class Segment:
    """A named tensor of an arena: its shape, its type, where it starts (bytes), and its flags."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0
    decays: bool = False
    trainable: bool = True

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without what aligns the next."""
        return self.size * np.dtype(self.dtype).itemsize


def aligned(nbytes: int) -> int:
    """Return `nbytes` rounded up to the alignment of segments."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def lay_out(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Place segments one behind the other, aligned, those that decay first, in a stable order."""
    placed, offset = [], 0
    for s in sorted(segments, key=lambda s: not s.decays):
        placed.append(Segment(s.name, s.shape, s.dtype, offset, s.decays, s.trainable))
        offset += aligned(s.nbytes)
    return tuple(placed)


class Arena:
    """One zeroed allocation with its placed segments.

    Args:
        backend: where the memory lies.
        segments: with their offsets, as `lay_out` or a program's plan gives them.
        memory: bytes to use in place of a new allocation (activations of several programs share theirs).

    Attributes:
        layout: equal for arenas in which each tensor lies at the same place.
    """

    def __init__(self, backend: Backend, segments: Iterable[Segment], memory: Array | None = None) -> None:
        self.backend = backend
        self.segments = {s.name: s for s in segments}
        self.nbytes = max((s.offset + aligned(s.nbytes) for s in self.segments.values()), default=0)
        self.memory = backend.allocate(self.nbytes) if memory is None else memory
        self._views = {s.name: self._view(s) for s in self.segments.values()}
        self.layout: Hashable = tuple((s.name, s.shape, s.dtype, s.offset) for s in self.segments.values())

    def _view(self, segment: Segment) -> Array:
        raw = self.memory[segment.offset : segment.offset + segment.nbytes]
        return raw.view(segment.dtype).reshape(segment.shape)

    def __getitem__(self, name: str) -> Array:
        """The tensor of that name: a view, so that assignment copies into the arena."""
        return self._views[name]

    def __contains__(self, name: object) -> bool:
        return name in self._views

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def items(self) -> Iterable[tuple[str, Array]]:
        """Names and tensors, which are views."""
        return self._views.items()

    def flat(self, dtype: str) -> Array:
        """The whole arena as one vector, gaps between segments included (they stay zero)."""
        return self.memory[: self.nbytes].view(dtype)

    def twin(self) -> Arena:
        """A zeroed arena of the same layout, for gradients or a slot of the optimizer."""
        return Arena(self.backend, self.segments.values())

    def fill(self, values: Mapping[str, Any]) -> None:
        """Copy a value into every tensor: arrays of the host, or numbers; to a GPU all in one."""
        if self.backend.device is None:
            for name, view in self.items():
                view[...] = values[name]
        elif self.nbytes:
            image = np.zeros(self.nbytes, np.uint8)
            for s in self.segments.values():
                image[s.offset : s.offset + s.nbytes].view(s.dtype).reshape(s.shape)[...] = values[s.name]
            self.backend.device.copy_in(self.memory[: self.nbytes], image)

    def to_host(self) -> dict[str, np.ndarray]:
        """Copies of all tensors on the host, by name."""
        return {name: np.array(self.backend.to_host(view)) for name, view in self._views.items()}


@dataclass(frozen=True, slots=True)
class Run:
    """A contiguous range of elements of an arena whose segments share their flags."""

    start: int
    stop: int
    decays: bool


def trainable_runs(segments: Iterable[Segment], split_by_decay: bool) -> list[Run]:
    """Return the ranges that an optimizer updates, as few as the flags allow.

    Args:
        segments: of one arena, all of one type.
        split_by_decay: whether segments with and without weight decay need ranges of their own.
    """
    runs: list[Run] = []
    for s in sorted(segments, key=lambda s: s.offset):
        if not s.trainable:
            continue
        itemsize = np.dtype(s.dtype).itemsize
        start, stop = s.offset // itemsize, (s.offset + aligned(s.nbytes)) // itemsize
        decays = s.decays if split_by_decay else False
        if runs and runs[-1].stop == start and runs[-1].decays == decays:
            runs[-1] = Run(runs[-1].start, stop, decays)
        else:
            runs.append(Run(start, stop, decays))
    return runs
