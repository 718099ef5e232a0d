"""How many workers a program deserves."""

from __future__ import annotations

from ..cpus import cpu_counts
from ..program import Program

WORK_FOR_ANOTHER_WORKER = 2_000_000
"""Multiply-adds of a step below which a barrier costs more than a second worker brings."""


def multiply_adds(program: Program) -> int:
    """Count the multiply-adds of a program's products."""
    total = 0
    for call in program.calls:
        if call.kernel == "matmul":
            a, _, c = call.operands
            assert a is not None
            assert c is not None
            inner = a.shape[0] if call.scalars["transpose_a"] else a.shape[1]
            total += c.shape[0] * c.shape[1] * inner
    return total


def default_workers(program: Program) -> int:
    """Workers for a program: by its size, at most the CPUs that this process may use."""
    return max(1, min(int(cpu_counts()["usable"] or 1), multiply_adds(program) // WORK_FOR_ANOTHER_WORKER))
