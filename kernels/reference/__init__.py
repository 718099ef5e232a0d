"""The catalogue in plain ``xp`` code: every function takes NumPy or CuPy as `xp`, then the operands, then scalars.

This is the implementation to read, and the one that all others are tested against. It is written for clarity:
unlike a compiled kernel it may use temporaries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import CATALOGUE
from . import activations, batches, epilogues, fused, losses, normalisation, optimizers, products

MODULES = (batches, products, activations, normalisation, losses, optimizers)


def kernel(name: str) -> Callable[..., None]:
    """Return the reference implementation of a catalogued kernel.

    Raises:
        KeyError: no kernel of that name is in the catalogue.
    """
    return KERNELS[name] if name in KERNELS else FOR_GPUS[name]


def _collect() -> dict[str, Callable[..., None]]:
    found: dict[str, Any] = {}
    for module in MODULES:
        found.update({name: getattr(module, name) for name in CATALOGUE if hasattr(module, name)})
    return found | fused.KERNELS


KERNELS = _collect()
FOR_GPUS: dict[str, Callable[..., None]] = dict(epilogues.KERNELS)
