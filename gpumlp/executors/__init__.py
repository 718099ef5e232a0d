"""What runs programs: an executor lowers, links and replays them, a block of steps at a time."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..backend import Backend
from ..program import Memory, Program
from .eager import EagerExecutor

if TYPE_CHECKING:
    from .gang import Seat

__all__ = [
    "EagerExecutor",
    "Executor",
    "StepPlan",
    "choose_executor",
    "executor_in_words",
    "is_small_together",
    "make_executor",
    "new_seats",
]


@dataclass(frozen=True)
class StepPlan:
    """The programs that make up an epoch.

    Attributes:
        begin: run before the first step: the order of the rows.
        batch: one step on a full batch.
        last: one step on the short batch at the end, where the set does not divide.
        steps: in an epoch.
    """

    begin: Program
    batch: Program
    last: Program | None
    steps: int

    @property
    def programs(self) -> tuple[Program, ...]:
        return tuple(p for p in (self.begin, self.batch, self.last) if p is not None)

    @functools.cached_property
    def multiply_adds(self) -> int:
        """Of the products of its largest program."""
        from .workers import multiply_adds

        return max(map(multiply_adds, self.programs))


class Executor(Protocol):
    """Runs programs over one memory. `prepare` comes first, with every program that will run."""

    name: str
    block_seconds: float
    """Aimed length of a block of steps: short enough for Ctrl-C, long enough for Python to cost nothing."""
    longest_run: float
    """Seconds after which `run` may end early, at the end of a step; set before the first one."""
    first_block: int
    """Steps of a first block: 1 where nothing is known of their length, more where `run` ends blocks by itself."""
    epoch_sums: Any
    """What the steps of the last epoch add up to, three float64: loss times weight, weight, and loss; None where the
    executor does not add them up, and before it runs."""

    def __init__(self, backend: Backend, memory: Memory, workers: int | None = None) -> None: ...

    def prepare(self, *programs: Program, on_compile: Callable[[], None] | None = None) -> None:
        """Lower and link programs that take turns: their intermediate tensors share memory.

        Args:
            programs: every one that will run.
            on_compile: called before each kernel that has to be compiled, which takes a part of a second; not on a
                GPU, where CuPy compiles and keeps what it made.
        """

    def execute(self, program: Program) -> None:
        """Run a prepared program once."""

    def run(self, plan: StepPlan, n_steps: int) -> int:
        """Do the next `n_steps` training steps, on into further epochs; return, once they are done, how many were good.

        The run ends at the first step that the control block names as bad; its counters then still are
        those of that step. Where no step is bad there may be fewer too, at least one: see `longest_run`.
        """

    def losses(self, count: int) -> Any:
        """Return the loss and the weight of the first steps of the last run on the host, (count, 2).

        They are good until the next run.
        """

    def replayable(self, plan: StepPlan) -> tuple[Memory, StepPlan]:
        """Return the memory and the programs with which the present step can be repeated call by call."""

    def view(self, program: Program, operand: Any) -> Any:
        """The array behind an operand of a prepared program."""


RESIDENT_MULTIPLY_ADDS = 2_000_000
"""Multiply-adds of a step up to which one multiprocessor is quicker than launches over all of them."""

STEP_TO_FORWARD = 3
"""Multiply-adds of a step to those of its forward products: each has two gradients."""

RESIDENT_TOGETHER = 16
"""How many times that, where many networks share the GPU."""

RESIDENT_CALLS = 60
"""Calls of a step up to which its rows leave shared memory for the network."""


def choose_executor(
    backend: Backend, has_python: bool, plan: StepPlan | None = None, together: int = 1
) -> tuple[type[Executor], str]:
    """Return the class of the executor for a network, and in words why.

    Args:
        backend: where it runs.
        has_python: whether a user's own Python layer takes part.
        plan: the programs of its training; None for programs that are run one by one.
        together: networks that train at the same time on the same device.
    """
    if has_python:
        return EagerExecutor, "eager (a layer of your own is Python code)"
    if backend.is_gpu:
        return _choose_on_gpu(backend, plan, together)
    if importlib.util.find_spec("numba") is None:
        return EagerExecutor, "eager (Numba is not installed)"
    from .compiled import CompiledExecutor

    return CompiledExecutor, "compiled"


def _choose_on_gpu(backend: Backend, plan: StepPlan | None, together: int) -> tuple[type[Executor], str]:
    from .graph import GraphExecutor
    from .resident import ResidentExecutor

    assert backend.device is not None
    if plan is not None and _is_small(plan, together):
        return ResidentExecutor, "resident (its steps are small: one multiprocessor does them all)"
    if backend.device.has_products:
        return GraphExecutor, "graph"
    return EagerExecutor, "eager (nvmath-python, for captured products, is not installed)"


def executor_in_words(backend: Backend, has_python: bool, multiply_adds_a_row: int) -> str:
    """Return which executor trains a network, as `summary` shows it, where no batch size is known.

    Args:
        multiply_adds_a_row: of the forward products, for one row.
    """
    words = choose_executor(backend, has_python)[1]
    if not backend.is_gpu or has_python:
        return words
    rows = RESIDENT_MULTIPLY_ADDS // max(1, STEP_TO_FORWARD * multiply_adds_a_row)
    return f"resident for batches of up to {rows:,} rows, {words} above" if rows else words


def is_small_together(network: Any, step_rows: int) -> bool:
    """Whether many such networks train best in common launches of the resident kernel."""
    most = RESIDENT_MULTIPLY_ADDS * RESIDENT_TOGETHER
    return not network.has_python and STEP_TO_FORWARD * network.multiply_adds * step_rows <= most


def new_seats(backends: Sequence[Backend]) -> list[Seat]:
    """Return a place in common launches for each of many networks.

    Args:
        backends: the GPU of each.
    """
    from .gang import seats_on

    names = [backend.name for backend in backends]
    devices = {backend.name: backend for backend in backends}
    seats = {name: iter(seats_on(backend, names.count(name))) for name, backend in devices.items()}
    return [next(seats[name]) for name in names]


def _is_small(plan: StepPlan, together: int) -> bool:
    return (
        plan.multiply_adds <= RESIDENT_MULTIPLY_ADDS * (RESIDENT_TOGETHER if together > 1 else 1)
        and max(len(p.calls) for p in plan.programs) <= RESIDENT_CALLS
        and plan.begin.rows < 1 << 16  # one block sorts them
    )


def make_executor(
    backend: Backend,
    memory: Memory,
    has_python: bool = False,
    workers: int | None = None,
    plan: StepPlan | None = None,
    precision: str = "float32",
    seat: Seat | None = None,
) -> Executor:
    """Return an executor over `memory`; see `choose_executor`.

    Args:
        workers: threads that share each instruction, where the executor has such; None for a number by size.
        plan: the programs of a training, where it is one.
        precision: of products on a GPU.
        seat: among networks that train at the same time on a GPU; it is left where this one trains by itself.
    """
    together = seat.crew.members if seat is not None else 1
    kind = choose_executor(backend, has_python, plan, together)[0]
    if kind.name == "resident":
        return kind(backend, memory, precision=precision, seat=seat)  # type: ignore[call-arg]
    if seat is not None:
        seat.leave()
    if kind.name == "graph":
        return kind(backend, memory, precision=precision)  # type: ignore[call-arg]
    return kind(backend, memory, workers)
