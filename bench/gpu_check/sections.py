"""The sections by name and how long each may take: first those that share the GPU, what takes longest ahead."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from .checks import Check, Context


@dataclass(frozen=True)
class Section:
    """Checks that belong together; each section has processes of its own.

    Attributes:
        name: of it, and of its module.
        about: what it finds out.
        seconds: that it may take.
        alone: whether nothing else may run on the GPU meanwhile.
        on_host: whether the stand-in can do any of it.
        kept: seconds that those before it leave it.
        processes: that share its checks, where there are CPUs for them.
        early: seconds for which it may get ready beside those that share the GPU, before any that is alone.
    """

    name: str
    about: str
    seconds: float
    alone: bool = False
    on_host: bool = True
    kept: float = 0.0
    processes: int = 1
    early: float = 0.0

    def checks(self, context: Context) -> list[Check]:
        """Return its checks, in order."""
        checks: list[Check] = importlib.import_module(f"{__package__}.{self.name}").checks(context)
        return checks


SECTIONS: Mapping[str, Section] = {
    section.name: section
    for section in (
        Section(
            "repeats", "trainings that must come out the same: twice, by threads, streamed", 180, processes=3
        ),
        Section(
            "steps", "training steps of each executor against float64, from the same state", 180, processes=3
        ),
        Section("kernels", "every operation against the reference in float64", 180, processes=4),
        Section("narrow", "products of few outputs against the reference in float64", 180, processes=3),
        Section("trainings", "whole trainings against the CPU", 180, processes=3),
        Section("products", "products of the library, with each epilogue, against float64", 150),
        Section("targets", "speed of the workloads that have a target", 120, alone=True, early=150),
        Section("peers", "the workloads beside PyTorch and JAX", 300, alone=True, early=150),
        Section("behaviour", "interruption, length of launches, memory", 90, alone=True, kept=35),
        Section("changes", "what it is worth that executors do what they do", 120, alone=True),
    )
}
