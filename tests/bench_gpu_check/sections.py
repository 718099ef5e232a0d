"""What the tests of bench/gpu_check have in common."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def module(name: str) -> ModuleType:
    return importlib.import_module(f"bench.gpu_check.{name}")
