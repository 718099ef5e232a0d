"""How much of a multiprocessor a resident network takes, on a GPU's stand-in."""

from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors.resident import DRIVER_SHARED, STATIC_SHARED
from gpumlp.kernels.cuda import NEIGHBOUR_THREADS, RESIDENT_THREADS
from gpumlp.kernels.cuda.host_device import HostDevice, HostKernels

RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 5)).astype(np.float32)
LABELS = RNG.integers(0, 3, 40)
SMALL, MIDDLE, LARGE = (5, 8, 3), (5, 48, 48, 3), (5, 160, 160, 3)
"""Of which two fit a multiprocessor of the stand-in, two fit but for some of their memory, and one fits in part."""


@pytest.fixture
def launched(stand_in, monkeypatch):
    """Launches of the resident kernel: networks, threads of a block, bytes of shared memory."""
    found: list[tuple[int, int, int]] = []
    launch = HostKernels.launch_resident

    def noted(self, networks, *size):
        found.append(size)
        return launch(self, networks, *size)

    monkeypatch.setattr(HostKernels, "launch_resident", noted)
    stand_in()
    return found


def trained(sizes: list[tuple[int, ...]]) -> list[Any]:
    """The weights of networks that trained together."""
    trainers = [
        gm.Trainer(
            gm.mlp(s, device="stand-in", seed=i), loss="cross_entropy", optimizer=gm.Adam(1e-2), seed=i
        )
        for i, s in enumerate(sizes)
    ]
    gm.fit_many(trainers, X, LABELS, epochs=2, batch_size=16, progress=False)
    return [trainer.network.state_dict() for trainer in trainers]


def half() -> int:
    shared_bytes = HostDevice().shared_bytes
    assert shared_bytes == 99 * 1024
    return (shared_bytes + DRIVER_SHARED) // 2 - STATIC_SHARED


@pytest.mark.parametrize(
    ("sizes", "threads"), [(SMALL, NEIGHBOUR_THREADS), (MIDDLE, NEIGHBOUR_THREADS), (LARGE, RESIDENT_THREADS)]
)
def test_a_network_that_half_a_multiprocessor_is_enough_for_has_half_of_the_threads(sizes, threads, launched):
    trained([sizes])
    assert {size[1] for size in launched} == {threads}


def test_networks_take_half_a_multiprocessor_each_where_there_are_more_of_them_than_multiprocessors(launched):
    together = trained([MIDDLE] * (HostDevice.multiprocessors + 1))
    assert all(size[2] <= half() for size in launched)
    launched.clear()
    few = trained([MIDDLE] * HostDevice.multiprocessors)
    assert all(size[2] > half() for size in launched)
    for ours, theirs in zip(together, few, strict=False):
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)


def test_networks_of_other_sizes_have_launches_of_their_own_and_the_bits_of_each_alone(launched):
    sizes = [SMALL, LARGE] * HostDevice.multiprocessors
    together = trained(sizes)
    assert {size[1] for size in launched} == {NEIGHBOUR_THREADS, RESIDENT_THREADS}
    trainer = gm.Trainer(
        gm.mlp(LARGE, device="stand-in", seed=1), loss="cross_entropy", optimizer=gm.Adam(1e-2), seed=1
    )
    trainer.fit(X, LABELS, epochs=2, batch_size=16, progress=False)
    for name, value in trainer.network.state_dict().items():
        np.testing.assert_array_equal(together[1][name], value)


def test_a_program_whose_rows_do_not_fit_is_refused(stand_in):
    stand_in(shared_bytes=10 * 1024)
    with pytest.raises(ValueError, match=r"a program of \d+ bytes does not fit the 1024 of shared memory"):
        trained([SMALL])
