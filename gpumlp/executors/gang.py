"""Networks that train at the same time on one GPU, each in a thread of its own: common launches, and common copies."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from ..backend import Backend
from ..kernels import CONTROL_SIZE
from ..kernels.cuda.device import Kernels
from ..program import RING
from .crew import Crew
from .tailoring import Tailor

LAUNCH_SECONDS = 0.04
"""Aimed length of a launch, so that Ctrl-C is answered between two."""

FIRST_STEPS = 64
"""Of the first launch, whose length nobody knows."""

TOGETHER_SECONDS = 1.0
"""Work of the GPU after which a block of many networks ends: what Python does between two is done for each of them."""

WORDS = 12
"""Int64 that tell the kernel of a network: `Network` in network.cuh."""


@dataclass
class Entry:
    """A network as the kernel takes it, compiled for it, who makes it one of its own, and what it points at."""

    words: np.ndarray
    shared_bytes: int
    threads: int
    kernels: Kernels
    tailor: Tailor | None
    keep: list[Any]

    @property
    def kind(self) -> tuple[int, int]:
        """What entries have in common that may go into one launch."""
        return id(self.kernels), self.threads


class Tables:
    """What a launch reads and writes of each member of a gang, a row each, so that one copy serves all.

    Args:
        backend: the GPU.
        members: of the gang.
        ring: memory for the losses of all of them, (members, RING, 2); None for new.

    Attributes:
        networks: words of those that are in the launch.
        control, rates, ring: on the GPU, see `kernels` and `program`.
        host_control, host_rates: the same on the host.
        losses: what the ring had after the last block, on the host, until the next one.
    """

    def __init__(self, backend: Backend, members: int, ring: Any = None) -> None:
        def rows(*shape: int, dtype: str) -> Any:
            nbytes = members * math.prod(shape) * 8
            return backend.allocate(nbytes)[:nbytes].view(dtype).reshape(members, *shape)

        self._device = backend.device
        self.networks = rows(WORDS, dtype="int64")
        self.control = rows(CONTROL_SIZE, dtype="int64")
        self.rates = rows(RING, dtype="float64")
        self.ring = rows(RING, 2, dtype="float64") if ring is None else ring
        self.host_control = np.zeros((members, CONTROL_SIZE), np.int64)
        self.host_rates = np.zeros((members, RING))
        self._landing = np.zeros(0)
        self.losses = np.zeros((members, 0, 2))
        self._stale = False

    def take(self, row: int, control: np.ndarray, rates: np.ndarray) -> None:
        """Take over what a member has for its next steps; rates that stay are not copied again."""
        self.host_control[row] = control
        known = self.host_rates[row, : len(rates)]
        if not np.array_equal(known, rates):
            known[...] = rates
            self._stale = True

    def copy_in(self) -> None:
        """Bring all rows to the GPU."""
        assert self._device is not None
        self._device.copy_in(self.control, self.host_control)
        if self._stale:
            self._device.copy_in(self.rates, self.host_rates)
            self._stale = False

    def copy_out(self, steps: int) -> None:
        """Bring back the counters, and the losses of so many steps."""
        assert self._device is not None
        self._device.copy_out(self.control, self.host_control)
        new = self.ring[:, :steps]
        # kept, since new pages for each block would cost as much as the copy
        if self._landing.size < new.size:
            self._landing = self._device.pinned((min(self.ring.size, 2 * new.size),), "float64")
        self.losses = self._device.copy_out(new, self._landing[: new.size].reshape(new.shape))


@dataclass
class _Request:
    entry: Entry
    n_steps: int
    error: BaseException | None = None
    origin: TracebackType | None = None
    turn: threading.Lock = field(default_factory=threading.Lock)


class Gang:
    """Networks whose blocks of steps go into one launch: it happens once all that still train have asked for theirs.

    What Python does for them goes in turns, see `Crew`, and so do the launches of two gangs.

    Args:
        backend: the GPU that all of them are on.
        members: how many networks there are; all others wait for the steps of each until it leaves.
        crew: all networks on that GPU, those of another gang too.
        ring: memory for the losses, see `Tables`.
    """

    def __init__(self, backend: Backend, members: int, crew: Crew, ring: Any = None) -> None:
        assert backend.device is not None
        self._backend, self._device, self._ring = backend, backend.device, ring
        self.crew = crew
        self._members = self._present = members
        self._lock = threading.Lock()
        self._waiting: list[_Request] = []
        self._paces: dict[tuple[int, int], int] = {}  # steps of a launch, of each kind of entry
        self._tables: Tables | None = None

    def begin(self, seat: Seat) -> None:
        """Wait for a network's first turn."""
        turn = threading.Lock()
        turn.acquire()
        self.crew.turns.ask(turn)
        turn.acquire()
        seat.at_work = True

    def leave(self, seat: Seat) -> None:
        """Go on without a network; once is enough."""
        with self._lock:
            if not seat.left:
                seat.left = True
                self._present -= 1
            self._end_turn(seat)
            self._launch_if_complete()

    def _end_turn(self, seat: Seat) -> None:
        if seat.at_work:
            seat.at_work = False
            self.crew.turns.end()

    @property
    def tables(self) -> Tables:
        """Memory for all members, made when the first of them asks.

        Raises:
            MemoryError: the GPU has less.
        """
        with self._lock:
            if self._tables is None:
                self._tables = Tables(self._backend, self._members, self._ring)
            return self._tables

    def run(self, seat: Seat, entry: Entry, n_steps: int) -> None:
        """Do `n_steps` steps of a network beside those of the others; fewer, where that takes `TOGETHER_SECONDS`."""
        request = _Request(entry, n_steps)
        request.turn.acquire()
        with self._lock:
            self._waiting.append(request)
            self._end_turn(seat)
            self._launch_if_complete()
        request.turn.acquire()
        seat.at_work = True
        if request.error is not None:
            # with where it came from: the frames of all other members are there too by now
            raise request.error.with_traceback(request.origin)

    def _launch_if_complete(self) -> None:
        """Launch once nobody is missing; the last to come does it for all."""
        if not self._waiting or len(self._waiting) < self._present:
            return
        requests, self._waiting = self._waiting, []
        error: BaseException | None = None
        origin: TracebackType | None = None
        try:
            with self.crew.gpu:
                self._launch_all(requests)
        except BaseException as raised:  # each of them must hear of it
            error, origin = raised, raised.__traceback__
        for request in requests:
            request.error, request.origin = error, origin
        self.crew.turns.ask(*(request.turn for request in requests))

    def _launch_all(self, requests: Sequence[_Request]) -> None:
        """Do what members have asked for, those with one kind of entry after those with another."""
        assert self._tables is not None
        self._tables.copy_in()
        groups: dict[tuple[int, int], list[_Request]] = {}
        for request in requests:
            groups.setdefault(request.entry.kind, []).append(request)
        each = TOGETHER_SECONDS / len(groups) if self.crew.members > 1 else math.inf
        self._tables.copy_out(max([self._launch(group, each) for group in groups.values()]))

    def _launch(self, requests: list[_Request], time_left: float) -> int:
        """Do the steps of a group, or as many as there is time for; return those of the longest."""
        assert self._tables is not None
        words = np.stack([request.entry.words for request in requests])
        wanted = np.array([request.n_steps for request in requests])
        left = wanted.copy()
        shared_bytes = max(request.entry.shared_bytes for request in requests)
        networks = self._tables.networks[: len(requests)]
        first = requests[0].entry
        # networks of several kinds have the general kernel in common
        alike = all(request.entry.tailor is first.tailor for request in requests)
        tailor = first.tailor if alike else None
        kernels = (tailor and tailor.kernels()) or first.kernels
        launch = kernels.launch_resident(networks, len(requests), first.threads, shared_bytes)
        pace = self._paces.get(first.kind, FIRST_STEPS)
        while left.any() and time_left > 0:
            words[:, -1] = np.minimum(left, pace)
            self._device.copy_in(networks, words)
            start = time.perf_counter()
            with self._device.active():  # a seat may be left, and so a launch begin, outside of `run`
                launch()
            self._device.synchronize()
            seconds, steps = time.perf_counter() - start, int(words[:, -1].max())
            left -= words[:, -1]
            time_left -= seconds
            if tailor is not None:
                tailor.worked(seconds)
            pace = max(1, min(2 * steps, int(steps * LAUNCH_SECONDS / max(seconds, 1e-9))))
        self._paces[first.kind] = pace
        return int((wanted - left).max())


class Seat:
    """A network's place in a gang.

    Args:
        gang: which.
        row: of the gang's tables.

    Attributes:
        at_work: whether it is the network's turn.
        left: whether the others go on without it.
    """

    def __init__(self, gang: Gang, row: int) -> None:
        self.gang, self.row = gang, row
        self.at_work = self.left = False
        self._made: Tables | None = None

    @property
    def crew(self) -> Crew:
        """All networks that train at the same time on the GPU."""
        return self.gang.crew

    @property
    def _tables(self) -> Tables:
        # no `cached_property`: until Python 3.12 hundreds of threads would share its lock
        if self._made is None:
            self._made = self.gang.tables
        return self._made

    @property
    def ring(self) -> Any:
        """Where the network's losses go, (RING, 2) on the GPU."""
        return self._tables.ring[self.row]

    @property
    def arrays(self) -> dict[str, Any]:
        """All that the network has in the gang's tables, by the names of operands."""
        return {
            "control": self._tables.control[self.row],
            "rates": self._tables.rates[self.row],
            "ring": self.ring,
        }

    def run(self, entry: Entry, n_steps: int, control: np.ndarray, rates: np.ndarray) -> None:
        """Do the next steps, see `Gang.run`.

        Args:
            entry: the network.
            n_steps: at most.
            control: its counters on the host, which go on.
            rates: of the steps, at least.
        """
        self._tables.take(self.row, control, rates)
        self.gang.run(self, entry, n_steps)
        control[...] = self._tables.host_control[self.row]

    def losses(self, count: int) -> np.ndarray:
        """Return the loss and the weight of the first steps of the last run, (count, 2); good until the next run."""
        return self._tables.losses[self.row, :count]

    def begin(self) -> None:
        """Wait until it is the network's turn to do what comes before its first steps."""
        self.gang.begin(self)

    def leave(self) -> None:
        """Let the others go on without this network."""
        self.gang.leave(self)


def seats_on(backend: Backend, members: int, ring: Any = None) -> list[Seat]:
    """Return places for all networks that train at the same time on one GPU, in one gang or in two.

    Args:
        backend: the GPU.
        members: how many networks.
        ring: memory for the losses, where there is one network; None for new.
    """
    assert backend.device is not None
    crew, seats = Crew(members), []
    for size in crew.gangs(backend.device.multiprocessors):
        gang = Gang(backend, size, crew, ring)
        seats += [Seat(gang, row) for row in range(size)]
    return seats
