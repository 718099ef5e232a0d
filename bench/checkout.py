"""Lets Python find gpumlp in a checkout that is not installed: on a machine without network nothing has to be."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


class _Kernels(MetaPathFinder):
    """Finds ``gpumlp.kernels`` in the folder ``kernels`` where nothing else has found it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "gpumlp.kernels":
            return None
        folder = ROOT / "kernels"
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def find_here() -> None:
    """Look in this checkout for what is not installed."""
    if not any(isinstance(finder, _Kernels) for finder in sys.meta_path):
        if str(ROOT) not in sys.path:
            sys.path.append(str(ROOT))
        sys.meta_path.append(_Kernels())
