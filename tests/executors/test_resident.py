"""How much of a multiprocessor a resident network takes, on a GPU's stand-in."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors import gang
from gpumlp.kernels.cuda import NEIGHBOUR_THREADS, RESIDENT_THREADS, SCRATCH_BYTES
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


def two_fit(shared_bytes: int) -> bool:
    """Whether two such blocks fit the 100 KB of an sm_86, of which the driver takes one for each; as the stand-in."""
    assert HostDevice().shared_bytes == 99 * 1024
    return 2 * (shared_bytes + SCRATCH_BYTES + 1024) <= 100 * 1024


@pytest.mark.parametrize(
    ("sizes", "threads"), [(SMALL, NEIGHBOUR_THREADS), (MIDDLE, NEIGHBOUR_THREADS), (LARGE, RESIDENT_THREADS)]
)
def test_a_network_that_half_a_multiprocessor_is_enough_for_has_half_of_the_threads(sizes, threads, launched):
    trained([sizes])
    assert {size[1] for size in launched} == {threads}


def test_networks_take_half_a_multiprocessor_each_where_there_are_more_of_them_than_multiprocessors(launched):
    together = trained([MIDDLE] * (HostDevice.multiprocessors + 1))
    assert all(two_fit(size[2]) for size in launched)
    launched.clear()
    few = trained([MIDDLE] * HostDevice.multiprocessors)
    assert not any(two_fit(size[2]) for size in launched)
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


def test_a_launch_of_slow_networks_is_not_as_long_as_those_of_quick_ones_were(launched, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(gang, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    launch, paces = gang.Gang._launch, {}

    def noted(self, requests, seconds):
        kind = requests[0].entry.kind
        synchronize = self._device.synchronize

        def slow_or_quick():
            clock[0] += 1.0 if kind[1] == RESIDENT_THREADS else 1e-3
            synchronize()

        with monkeypatch.context() as patched:
            patched.setattr(self._device, "synchronize", slow_or_quick)
            done = launch(self, requests, seconds)
        paces[kind[1]] = self._paces[kind]
        return done

    monkeypatch.setattr(gang.Gang, "_launch", noted)
    trained([SMALL, LARGE])
    assert paces == {NEIGHBOUR_THREADS: 12, RESIDENT_THREADS: 1}  # of the six steps of a first launch


def test_a_program_whose_rows_do_not_fit_is_refused(stand_in):
    stand_in(shared_bytes=10 * 1024)
    with pytest.raises(ValueError, match=r"a program of \d+ bytes does not fit the 1024 of shared memory"):
        trained([SMALL])
