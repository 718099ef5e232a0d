"""What runs programs: an executor lowers, links and replays them, a block of steps at a time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..backend import Backend
from ..program import Memory, Program
from .eager import EagerExecutor

__all__ = ["EagerExecutor", "Executor", "StepPlan", "choose_executor", "make_executor"]


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

    def __init__(self, backend: Backend, memory: Memory, workers: int | None = None) -> None: ...

    def prepare(self, *programs: Program, on_compile: Callable[[], None] | None = None) -> None:
        """Lower and link programs that take turns: their intermediate tensors share memory.

        Args:
            programs: every one that will run.
            on_compile: called after each kernel that had to be compiled, which takes a part of a second.
        """

    def execute(self, program: Program) -> None:
        """Run a prepared program once."""

    def run(self, plan: StepPlan, n_steps: int) -> int:
        """Run the next `n_steps` training steps, on into further epochs; return how many were good.

        The run ends at the first step that the control block names as bad; its counters then still are
        those of that step.
        """

    def view(self, program: Program, operand: Any) -> Any:
        """The array behind an operand of a prepared program."""


def choose_executor(backend: Backend, has_python: bool) -> tuple[type[Executor], str]:
    """Return the class of the executor for a network, and in words why.

    Args:
        backend: where it runs.
        has_python: whether a user's own Python layer takes part.
    """
    if backend.is_gpu:
        return EagerExecutor, "eager (on a GPU)"
    if has_python:
        return EagerExecutor, "eager (a layer of your own is Python code)"
    if importlib.util.find_spec("numba") is None:
        return EagerExecutor, "eager (Numba is not installed)"
    from .compiled import CompiledExecutor

    return CompiledExecutor, "compiled"


def make_executor(
    backend: Backend, memory: Memory, has_python: bool = False, workers: int | None = None
) -> Executor:
    """Return an executor over `memory`; see `choose_executor`.

    Args:
        workers: threads that share each instruction, where the executor has such; None for a number by size.
    """
    return choose_executor(backend, has_python)[0](backend, memory, workers)
