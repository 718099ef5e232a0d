"""The catalogue in plain ``xp`` code: every function takes NumPy or CuPy as `xp`, then the operands, then scalars.

This is the implementation to read, and the one that all others are tested against. It is written for clarity:
unlike a compiled kernel it may use temporaries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import CATALOGUE, IN_BFLOAT16, kernel_spec
from . import activations, batches, epilogues, fused, losses, normalisation, optimizers, products

MODULES = (batches, products, activations, normalisation, losses, optimizers)


def kernel(name: str) -> Callable[..., None]:
    """Return the reference implementation of a catalogued kernel.

    Raises:
        KeyError: no kernel of that name is in the catalogue.
    """
    return KERNELS[name] if name in KERNELS else FOR_GPUS[name]


def kernel_in_bfloat16(name: str) -> Callable[..., None]:
    """Return the same kernel for operands of which some are bfloat16 in uint16: see `gpumlp.kernels.IN_BFLOAT16`.

    It computes in float32; what it writes is rounded once, to nearest even.
    """
    spec, run, halves = kernel_spec(name), kernel(name), IN_BFLOAT16[name]
    count = len(spec.operands)

    def rounded(xp: Any, *given: Any, **scalars: Any) -> None:
        wide = list(given)
        for k, (operand, value) in enumerate(zip(spec.operands, given, strict=False)):
            if operand in halves and value is not None:
                wide[k] = products.as_float(xp, value)
        run(xp, *wide, **scalars)
        for k in range(len(spec.reads), count):
            if wide[k] is not given[k]:
                given[k][...] = products.to_bfloat16(xp, wide[k])

    return rounded


def _collect() -> dict[str, Callable[..., None]]:
    found: dict[str, Any] = {}
    for module in MODULES:
        found.update({name: getattr(module, name) for name in CATALOGUE if hasattr(module, name)})
    return found | fused.KERNELS


KERNELS = _collect()
FOR_GPUS: dict[str, Callable[..., None]] = dict(epilogues.KERNELS)
