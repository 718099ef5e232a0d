"""Operations in the one block of a chain."""

from __future__ import annotations

from gpumlp.executors.device import Linked
from gpumlp.executors.unfolding import NEVER_CHAINED
from gpumlp.kernels import CATALOGUE
from gpumlp.kernels.cuda import OPERATIONS
from gpumlp.kernels.cuda.device import Launch

from .checks import Context, Failed, Values
from .one_call import SIZES, OneCall, call, compare, reference

NAMES = sorted(set(CATALOGUE) - NEVER_CHAINED - {"matmul"})


class InChain(OneCall):
    """Runs all operations of a program in one chain."""

    def launches(self, linked: Linked) -> list[Launch]:
        table = self.backend.asarray(self.encode(linked))
        return [self.kernels(linked.program.dtype).launch_chain(table, len(linked.steps))]


def check_chains(context: Context, compiled_for: str) -> Values:
    """Hold each kernel in float32 against the reference, its operations being a chain."""
    worst, faults = 0.0, []
    chained = frozenset(OPERATIONS) - NEVER_CHAINED - {"matmul"}
    kernels = context.gpu.kernels(compiled_for, (), chained=chained)
    for size in context.either(("small", "odd"), ("small",)):
        examples = SIZES[size]
        for name in NAMES:
            values, scalars = examples.operands(name, "float32"), examples.scalars(name)
            wanted = reference(name, values, scalars)
            found = call(context, name, values, scalars, compiled_for, 1, kernels, kind=InChain)
            error, wrong = compare(CATALOGUE[name], values, found, wanted, "float32")
            worst = max(worst, error)
            faults += [f"{name}, {size}: {text}" for text in wrong]
    if faults:
        raise Failed(faults[0], {"error": worst, "faults": faults[:20]})
    return {"error": worst, "kernels": len(NAMES)}
