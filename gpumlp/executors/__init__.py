"""What runs programs: an executor lowers, links and replays them, a block of steps at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ..backend import Backend
from ..program import Memory, Program
from .eager import EagerExecutor

__all__ = ["EagerExecutor", "Executor", "StepPlan", "make_executor"]


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


class Executor(Protocol):
    """Runs programs over one memory. `prepare` comes first, with every program that will run."""

    name: str

    def __init__(self, backend: Backend, memory: Memory) -> None: ...

    def prepare(self, *programs: Program) -> None:
        """Lower and link programs that take turns: their intermediate tensors share memory."""

    def execute(self, program: Program, start: int = 0, stop: int | None = None) -> None:
        """Run the calls [start, stop) of a prepared program."""

    def run(self, plan: StepPlan, n_steps: int) -> int:
        """Run the next `n_steps` training steps, on into further epochs; return how many were good.

        The run ends at the first step that the control block names as bad; its counters then still are
        those of that step.
        """

    def view(self, program: Program, operand: Any) -> Any:
        """The array behind an operand of a prepared program."""


def make_executor(backend: Backend, memory: Memory) -> Executor:
    """Return the executor for a backend."""
    return EagerExecutor(backend, memory)
