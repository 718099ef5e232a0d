"""Kernels made for one kind of network, compiled beside its training once that has lasted long enough to gain by it.

They give the same bits as the general kernel, so that it does not matter when they are ready.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..kernels.cuda import MAX_SCALARS
from ..kernels.cuda.device import Device, Kernels
from ..kernels.cuda.tailored import IN_SHARED, Group, Rows, launched, tailored
from ..kernels.layout import ROW_WIDTH, SCALARS
from .patterns import Walk

AFTER_SECONDS = 10.0
"""Seconds of the GPU's work on a kind of network after which a kernel is made for it: about as many as compiling takes
of one CPU core, and as a process that ends meanwhile may have to wait for it."""

MOST_ROWS = 100
"""Operations of all programs up to which that is done; compiling takes longer with each."""

MOST_KINDS = 64
"""Kinds of networks that a device remembers; the oldest is forgotten, and trains on undisturbed."""

_LOCK = threading.Lock()


@dataclass
class _Habits:
    at_once: bool = False


_HABITS = _Habits()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Make kernels before the first step within the block, and wait for them: to measure, and to test."""
    before, _HABITS.at_once = _HABITS.at_once, True
    try:
        yield
    finally:
        _HABITS.at_once = before


class Tailor:
    """Makes the kernel of one kind of network on one device, at most once.

    Args:
        make: compiles it.
    """

    def __init__(self, make: Callable[[], Kernels]) -> None:
        self._make: Callable[[], Kernels] | None = make
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._seconds = 0.0
        self._kernels: Kernels | None = None
        self._error: Exception | None = None

    def worked(self, seconds: float) -> None:
        """Note that the GPU has worked on such networks; the kernel is begun once that is worth it."""
        with self._lock:
            self._seconds += seconds
            if self._seconds >= AFTER_SECONDS:
                self._begin()

    def _begin(self) -> None:
        """Begin, where that was not done; the lock is held."""
        if self._make is None:
            return
        make, self._make = self._make, None
        # no daemon: the end of a process would take a compiler's memory from under it
        thread = threading.Thread(target=self._run, args=(make,), name="gpumlp-tailor")
        try:
            thread.start()
            self._thread = thread
        except RuntimeError as error:  # there are too many
            self._error = error

    def _run(self, make: Callable[[], Kernels]) -> None:
        try:
            self._kernels = make()
        except Exception as error:  # the training goes on without
            self._error = error

    def kernels(self) -> Kernels | None:
        """Return the kernel if it is ready; it is waited for within `at_once`."""
        with self._lock:
            if _HABITS.at_once:
                self._begin()
                if self._thread is not None:
                    self._thread.join()
            error, self._error = self._error, None
        if error is not None:
            warnings.warn(
                f"no kernel could be made for this network ({error}); it trains on with the general one",
                RuntimeWarning,
                stacklevel=2,
            )
        return self._kernels


def tailor_for(walk: Walk, device: Device, dtype: str, large: bool) -> Tailor | None:
    """Return who makes the resident kernel of a walk, the same for all that are equal; None where it does not pay.

    Args:
        walk: of a network.
        device: that it trains on.
        dtype: that its kernels are compiled for.
        large: see `kernels.cuda.source`.
    """
    if sum(walk.counts) > MOST_ROWS:
        return None
    image = walk.image.words, walk.image.pieces
    key = (dtype, large, walk.threads, walk.counts, walk.stages, walk.pieces, _digest(*image))

    def make() -> Kernels:
        text = tailored(dtype, _programs(walk), walk.pieces, walk.threads, large)
        return device.tailored(text, ["gpumlp_resident"])

    return _known(device, key, make)


def tailor_for_launches(
    programs: Sequence[Sequence[Group | None]], device: Device, dtype: str, large: bool
) -> Tailor | None:
    """The same for the launches of programs, of which None are products of the library."""
    groups = [group for program in programs for group in program if group is not None]
    if sum(len(group.words) for group in groups) > MOST_ROWS:
        return None
    told = (array for group in groups for array in (group.words, group.scalars))
    key = (dtype, large, tuple((group.name, group.blocks) for group in groups), _digest(*told))
    names = [group.name for group in groups]
    return _known(device, key, lambda: device.tailored(launched(dtype, groups, large), names))


def _digest(*arrays: np.ndarray) -> bytes:
    """What stands for the numbers of arrays, which are not kept for it."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(array.tobytes())
    return digest.digest()


def _known(device: Device, key: Hashable, make: Callable[[], Kernels]) -> Tailor:
    """The tailor of a kind of network on a device; a new one where there is none."""
    with _LOCK:
        tailors = device.tailors
        if key not in tailors:
            tailors[key] = Tailor(make)
            if len(tailors) > MOST_KINDS:
                del tailors[next(iter(tailors))]
        found: Tailor = tailors[key]
        return found


def _programs(walk: Walk) -> list[Rows]:
    """The programs of a walk, with what lies in shared memory at its place there."""
    total = sum(walk.counts)

    def part(at: int, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        both = (walk.image.words, walk.image.pieces)
        words, pieces = (whole[at // 8 : at // 8 + count * width].reshape(count, width) for whole in both)
        return words.copy(), pieces.copy()

    words, pieces = part(0, total, ROW_WIDTH)
    stages, stage_pieces = part(walk.stages_at, walk.stages, 4)
    scalars = part(walk.scalars_at, total, MAX_SCALARS)[0].view(np.float64)
    for (start, nbytes, offset, _), (piece, *_) in zip(stages, stage_pieces, strict=True):
        inside = (pieces == piece) & (words >= start) & (words < start + nbytes)
        words[inside] += offset - start
        pieces[inside] = IN_SHARED
    words[:, SCALARS] = pieces[:, SCALARS] = 0  # they are constants
    ends = np.cumsum([0, *walk.counts])
    return [Rows(words[a:b], pieces[a:b], scalars[a:b]) for a, b in pairwise(ends)]
