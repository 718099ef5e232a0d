"""Operations in the one block of a chain."""

from __future__ import annotations

from collections.abc import Collection

from gpumlp.executors.device import Linked
from gpumlp.executors.unfolding import NEVER_CHAINED
from gpumlp.kernels import CATALOGUE
from gpumlp.kernels.cuda.device import Launch

from .checks import Context, Failed, Values
from .one_call import SIZES, OneCall, call, compare, operations_of, reference

NAMES = sorted(set(CATALOGUE) - NEVER_CHAINED - {"matmul"})
PARTS = [NAMES[i::6] for i in range(6)]
"""All of them in one module take a minute to compile, and one process."""


class InChain(OneCall):
    """Runs all operations of a program in one chain."""

    def launches(self, linked: Linked) -> list[Launch]:
        table = self.backend.asarray(self.encode(linked))
        return [self.kernels(linked.program.dtype).launch_chain(table, len(linked.steps))]


def check_chains(context: Context, compiled_for: str, names: Collection[str]) -> Values:
    """Hold kernels in float32 against the reference, the operations of each being a chain."""
    worst, faults = 0.0, []
    sizes = context.either(("small", "odd"), ("small",))
    chained = {op for size in sizes for name in names for op in operations_of(context, name, SIZES[size], 1)}
    kernels = context.gpu.kernels(compiled_for, (), chained=chained)
    for size in sizes:
        examples = SIZES[size]
        for name in names:
            values, scalars = examples.operands(name, "float32"), examples.scalars(name)
            wanted = reference(name, values, scalars)
            found = call(context, name, values, scalars, compiled_for, 1, kernels, kind=InChain)
            error, wrong = compare(CATALOGUE[name], values, found, wanted, "float32")
            worst = max(worst, error)
            faults += [f"{name}, {size}: {text}" for text in wrong]
    if faults:
        raise Failed(faults[0], {"error": worst, "faults": faults[:20]})
    return {"error": worst, "kernels": len(names)}
