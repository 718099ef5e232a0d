"""Launches of a step that need not wait for each other become branches of a captured graph.

The gradient of a layer's weights and that of its input, for one, only read what the other reads. Small products leave
most of a GPU idle, and a launch waits until all of the one before it has ended: side by side they take the time of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..kernels import PRODUCTS, kernel_spec
from ..kernels.cuda import PARTS
from ..kernels.cuda.device import Launch, Node
from ..kernels.layout import SCRATCH
from ..program import Memory, Program
from .linking import Place, locate
from .unfolding import Step

if TYPE_CHECKING:
    from .device import Linked

MAX_LANES = 4
"""Launches that may be under way at a time."""

BLOCK_TILE = 128 * 128
"""Numbers of a result that one multiprocessor computes at a time in a large product."""


@dataclass
class Access:
    """The memory that a launch reads and that it writes: ranges of addresses, (start, end)."""

    reads: list[tuple[int, int]] = field(default_factory=list)
    writes: list[tuple[int, int]] = field(default_factory=list)


def branch(linked: Linked, launches: Sequence[Launch], memory: Memory, multiprocessors: int) -> list[Node]:
    """Return the launches of a program, each with the lane that it takes and what else it waits for.

    Where a product fills the GPU by itself all stay in one lane: the others are soon done.

    Args:
        linked: the program.
        launches: of its groups.
        memory: what its operands refer to.
        multiprocessors: of the GPU.
    """
    if fills(linked.program, multiprocessors):
        return [Node(launch) for launch in launches]
    accesses = [access(linked, range(first, last), memory) for first, last in linked.groups]
    return [
        Node(launch, lane, after)
        for launch, (lane, after) in zip(launches, assign_lanes(accesses), strict=True)
    ]


def fills(program: Program, multiprocessors: int) -> bool:
    """Whether a product of the program fills a GPU by itself."""
    for call in program.calls:
        if call.kernel in PRODUCTS:
            result = call.by_name["c"]
            if result is not None and is_wide(result.shape, multiprocessors):
                return True
    return False


def is_wide(shape: Sequence[int], multiprocessors: int) -> bool:
    """Whether a product with a result of this shape fills a GPU by itself."""
    return math.prod(shape) >= multiprocessors * BLOCK_TILE


def access(linked: Linked, steps: Iterable[int], memory: Memory) -> Access:
    """Return what steps of a program read and write together."""
    found = Access()
    for i in steps:
        step = linked.steps[i]
        reads, writes = _operands(step, linked, memory)
        owner = step.scratch_of or step
        if owner.scratch:
            start = int(linked.rows[i, SCRATCH])
            found.writes.append((start, start + owner.scratch))
        found.reads += [(place.address, place.end) for place in reads]
        found.writes += [(place.address, place.end) for place in writes]
    return found


def _operands(step: Step, linked: Linked, memory: Memory) -> tuple[list[Place], list[Place]]:
    """What a step reads, and what it writes; both, where it is one of the parts that only a GPU has."""
    if step.call is not None:
        places = [locate(memory, o, linked.activations) for o in step.call.operands]
    else:
        places = list(step.places)
    if step.operation in PARTS:
        return [], [p for p in places if p is not None]
    spec = kernel_spec(step.operation)
    first = len(spec.reads)
    return [p for p in places[:first] if p is not None], [p for p in places[first:] if p is not None]


def assign_lanes(accesses: Sequence[Access]) -> list[tuple[int, tuple[int, ...]]]:
    """Return the lane of each launch, and those of other lanes that it waits for.

    A launch follows the latest that it has to wait for anyway; where that has a follower already it begins a branch.

    Args:
        accesses: of the launches, in an order in which they could run one by one.
    """
    ancestors: list[int] = []  # bit i: launch i has ended before
    tails: list[int | None] = [None] * MAX_LANES
    found: list[tuple[int, tuple[int, ...]]] = []
    earlier = _Earlier()
    for j, own in enumerate(accesses):
        direct = earlier.conflicts(own)
        before = 0
        for i in direct:
            before |= ancestors[i] | 1 << i
        lane = _lane(tails, before)
        tail = tails[lane]
        ended = 0 if tail is None else ancestors[tail] | 1 << tail
        after = []
        for i in sorted(direct, reverse=True):
            if not ended >> i & 1:
                after.append(i)
                ended |= ancestors[i] | 1 << i
        ancestors.append(ended)
        tails[lane] = j
        found.append((lane, tuple(after)))
        earlier.add(own)
    return found


def _lane(tails: Sequence[int | None], before: int) -> int:
    """The lane whose last launch is the latest of those waited for; else a free one; else the one that ends first."""
    behind = [lane for lane, tail in enumerate(tails) if tail is not None and before >> tail & 1]
    if behind:
        return max(behind, key=lambda lane: tails[lane] or 0)
    if None in tails:
        return tails.index(None)
    return min(range(len(tails)), key=lambda lane: tails[lane] or 0)


class _Earlier:
    """The accesses of all launches so far."""

    def __init__(self) -> None:
        self._reads: list[tuple[int, int, int]] = []  # start, end, launch
        self._writes: list[tuple[int, int, int]] = []
        self._count = 0

    def add(self, access: Access) -> None:
        self._reads += [(start, end, self._count) for start, end in access.reads]
        self._writes += [(start, end, self._count) for start, end in access.writes]
        self._count += 1

    def conflicts(self, access: Access) -> list[int]:
        """The launches that wrote what this one reads or writes, or read what it writes."""
        found: set[int] = set()
        for ranges, others in (
            (access.reads, self._writes),
            (access.writes, self._writes),
            (access.writes, self._reads),
        ):
            known = np.array(others, dtype=np.int64).reshape(-1, 3)
            for start, end in ranges:
                found.update(known[(known[:, 0] < end) & (known[:, 1] > start), 2].tolist())
        return sorted(found)
