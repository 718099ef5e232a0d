"""What the tests of all converters share: recorded files of the other libraries, and networks with random values."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.layers import Layer

RECORDED = Path(__file__).parent.parent / "recorded" / "interop"


@pytest.fixture(scope="session")
def recorded_files() -> Path:
    """The folder of the files that the other libraries wrote."""
    return RECORDED


@pytest.fixture(scope="session")
def recorded() -> dict[str, np.ndarray]:
    """Inputs, and the outputs that the other libraries gave for them."""
    with np.load(RECORDED / "interop.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """The script that made the recorded files, with the models in it."""
    spec = importlib.util.spec_from_file_location("make_interop", RECORDED / "make_interop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _randomized(network: gm.Sequential, seed: int = 0) -> gm.Sequential:
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 2:  # of the size that keeps that of what it multiplies: no activation saturates
            return 2 * rng.normal(size=shape) / np.sqrt(sum(shape))
        if name.endswith(("bias", "mean")):
            return 0.5 * rng.normal(size=shape)
        return rng.uniform(0.5, 1.5, shape)

    network.load_state_dict({name: draw(name, value.shape) for name, value in network.state_dict().items()})
    return network


@pytest.fixture(scope="session")
def randomized() -> Callable[..., gm.Sequential]:
    """Give a network random values everywhere, running statistics too, and return it."""
    return _randomized


# no two widths are equal, so that a transposed or exchanged weight cannot fit; activations do not saturate
MIXED: list[Callable[[], Layer]] = [
    lambda: gm.Linear(3, 7),
    gm.GELU,
    lambda: gm.BatchNorm1d(7, eps=1e-3, momentum=0.2),
    lambda: gm.Linear(7, 5, bias=False),
    gm.SELU,
    lambda: gm.LayerNorm(5, eps=1e-4),
    lambda: gm.Dropout(0.3),
    lambda: gm.Linear(5, 6),
    gm.Mish,
    gm.Identity,
    lambda: gm.LayerNorm(6, affine=False),
    lambda: gm.BatchNorm1d(6, affine=False),
    lambda: gm.Linear(6, 2),
]


@pytest.fixture
def mixed() -> gm.Sequential:
    """A network with normalisations, a layer without a bias, dropout and random values."""
    return _randomized(gm.Sequential(*(make() for make in MIXED), device="cpu"))


ACTIVATIONS: list[Callable[[], Layer]] = [
    gm.Identity,
    gm.ReLU,
    lambda: gm.LeakyReLU(0.05),
    lambda: gm.ELU(0.7),
    gm.SELU,
    gm.GELU,
    lambda: gm.GELU("tanh"),
    gm.SiLU,
    gm.Mish,
    gm.Softplus,
    lambda: gm.Softplus(2.5),
    gm.Sigmoid,
    gm.Tanh,
    gm.Softmax,
]


@pytest.fixture(params=ACTIVATIONS, ids=lambda make: repr(make()))
def activation(request) -> Layer:
    """Every shipped activation, and settings of those that have some."""
    return request.param()


@pytest.fixture
def rows() -> np.ndarray:
    """Float32 rows for networks of three features, (50, 3)."""
    return np.random.default_rng(5).normal(size=(50, 3)).astype(np.float32)


def _assert_equal_outputs(actual, expected, rtol=1e-6) -> None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    # by the norm of each output: an element near 0 is off by roundings of the terms that it is the sum of
    difference = np.linalg.norm(actual - expected, axis=0) / np.linalg.norm(expected, axis=0)
    assert difference.max() <= rtol, f"relative difference {difference.max():.3g}, expected at most {rtol:g}"
    # and the rows differ: outputs that are all alike would prove nothing
    assert np.ptp(expected, axis=0).min() > 1e-3


@pytest.fixture(scope="session")
def assert_equal_outputs() -> Callable[..., None]:
    """Hold outputs equal to a relative 1e-6, on outputs that are not constant."""
    return _assert_equal_outputs
