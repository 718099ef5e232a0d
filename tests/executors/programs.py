"""What the tests of rewrites have in common: a step of a small network, run as it is or rewritten."""

from collections.abc import Callable, Collection, Sequence

import numpy as np

import gpumlp as gm
from gpumlp.executors import EagerExecutor
from gpumlp.executors.bfloat16 import PARAMETERS_COPY, parameters_copy
from gpumlp.executors.lowering import Rewrite, lower
from gpumlp.kernels import PRODUCTS
from gpumlp.losses import get_loss
from gpumlp.program import RING, Memory, Program, new_control
from gpumlp.step import DataShape, training_plan

ALL = PRODUCTS - {"matmul"}
ROWS, FEATURES = 20, 7


def having(names: Collection[str]) -> Callable[..., bool]:
    """A library that has the products of these names."""
    return lambda kernel, call, last: kernel in names


def network(activation: object, dropout: float = 0.0, dtype: str = "float64") -> gm.Sequential:
    return gm.mlp(
        (FEATURES, 130, 6, 3), activation=activation, dropout=dropout, seed=3, device="cpu", dtype=dtype
    )


def step_program(net: gm.Sequential, batch_rows: int = 8) -> Program:
    shape = DataShape(ROWS, ROWS, FEATURES, (), False)
    return training_plan(net, get_loss("cross_entropy"), gm.SGD(0.1), shape, batch_rows, False).batch


def memory_of(net: gm.Sequential) -> Memory:
    rng = np.random.default_rng(0)
    arrays = {
        "control": new_control(0),
        "rates": np.full(RING, 0.1),
        "ring": np.zeros((RING, 2)),
        "X": rng.normal(size=(ROWS, FEATURES)).astype(net.dtype),
        "y": rng.integers(0, 3, ROWS),
        "rows": np.arange(ROWS),
        "index": np.arange(ROWS),
    }
    return Memory(net.arenas(), arrays)


def kernels_of(program: Program) -> list[str]:
    return [call.kernel for call in program.calls]


def run(
    net: gm.Sequential, rewrites: Sequence[Rewrite]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Gradients and parameters after one step of the rewritten program on the eager executor."""
    memory, program = memory_of(net), lower(step_program(net), rewrites)
    memory.arenas[PARAMETERS_COPY] = parameters_copy(net.backend, net.arenas()["parameters"])
    executor = EagerExecutor(net.backend, memory)
    executor.prepare(program)
    executor.execute(program)
    return net.gradients.to_host(), net.state_dict()
