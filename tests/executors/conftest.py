"""A GPU's stand-in for tests: NumPy arrays, the kernels' own text built as C++."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gpumlp import feed
from gpumlp.backend import Backend, register_backend, unregister_backend
from gpumlp.kernels.cuda.host import compiler
from gpumlp.kernels.cuda.host_device import HostDevice


def _has_compiler() -> bool:
    try:
        compiler()
    except RuntimeError:
        return False
    return True


@pytest.fixture
def stand_in() -> Iterator[Callable[..., Backend]]:
    """Make a backend named "stand-in" that executors take for a GPU: ``stand_in(memory_bytes=..., order=...)``."""
    if not _has_compiler():
        pytest.skip("no C++ compiler builds the GPU's kernels here")

    def make(**settings) -> Backend:
        backend = Backend("stand-in", np, HostDevice(**settings))
        register_backend(backend)
        return backend

    yield make
    unregister_backend("stand-in")


@pytest.fixture
def used(monkeypatch):
    """The executors that trainings took, in order."""
    made = []
    connect = feed.connect

    def noted(*arguments, **settings):
        memory, executor = connect(*arguments, **settings)
        made.append(type(executor))
        return memory, executor

    monkeypatch.setattr("gpumlp.loop.connect", noted)
    return made


def _everything_of(step):
    """All that a step may change, by name."""
    found = {
        f"{role}.{k}": v for role, arena in step.memory.arenas.items() for k, v in arena.to_host().items()
    }
    return {**found, "ring": step.ring[:64].copy(), "index": np.array(step.memory.arrays["index"])}


@pytest.fixture(scope="session")
def everything_of() -> Callable[..., dict[str, np.ndarray]]:
    """All tensors of a training that a step may change, by name: ``everything_of(step)``."""
    return _everything_of


def _assert_agree(found, wanted, tolerance):
    """By tensor norm; where a tensor is nearly 0 beside the others of its role, that is the scale.

    The gradient of a bias before a batch norm, for one, is 0 but for rounding.
    """
    sizes: dict[str, float] = {}
    wanted = {name: value.astype(np.float64) for name, value in wanted.items()}
    for name, value in wanted.items():
        role = name.split(".")[0] if not name.startswith("slot") else ".".join(name.split(".")[:2])
        sizes[role] = max(sizes.get(role, 0.0), float(np.linalg.norm(value)))
    for name, value in wanted.items():
        role = name.split(".")[0] if not name.startswith("slot") else ".".join(name.split(".")[:2])
        difference = np.linalg.norm(found[name].astype(np.float64) - value)
        scale = max(float(np.linalg.norm(value)), 0.1 * sizes[role], 1e-6)
        assert difference <= tolerance * scale, f"{name}: relative difference {difference / scale:.3g}"


@pytest.fixture(scope="session")
def assert_agree() -> Callable[..., None]:
    """Hold tensors by name within a tolerance: ``assert_agree(found, wanted, tolerance)``."""
    return _assert_agree
