"""All peers by name, and all that they are held against each other on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpumlp.registry import look_up
from gpumlp.workloads import WORKLOADS, Workload

from .contract import Peer
from .gpu_peers import GpumlpGpu, JaxGpu, TorchCompileGpu, TorchEagerGpu, TorchGraph
from .gpumlp_peer import Gpumlp
from .jax_peer import Jax
from .numpy_loop import NumpyFloat32, NumpyFloat64
from .sklearn_peer import ScikitLearn
from .torch_peers import TorchCompile, TorchEager

PEERS: Mapping[str, type[Peer]] = {
    peer.name: peer
    for peer in (Gpumlp, NumpyFloat64, NumpyFloat32, ScikitLearn, TorchEager, TorchCompile, Jax)
}


GPU_PEERS: Mapping[str, type[Peer]] = {
    peer.name: peer for peer in (GpumlpGpu, TorchEagerGpu, TorchGraph, TorchCompileGpu, JaxGpu)
}
"""Those that train on a GPU; `bench.gpu_check` holds them against each other."""


@dataclass(frozen=True)
class Contest:
    """A workload, and the learning rates that it is trained with: one, or those of a sweep."""

    name: str
    workload: Workload
    lrs: tuple[float, ...]

    @property
    def it(self) -> str:
        """What it/s counts."""
        return self.workload.it if len(self.lrs) == 1 else "network-epoch"

    @property
    def least_epochs(self) -> int:
        """Epochs that a round has at least."""
        return 2 if self.workload.batch_size is None else 1

    @property
    def length(self) -> float:
        """Length of a round, in usual ones: a sweep starts 45 trainings in every round, which must not weigh."""
        return 1.0 if len(self.lrs) == 1 else 3.0


SWEEP = 45
"""Networks of the sweep: nine learning rates of report sdm274 in five folds each are as many."""


def _contests() -> dict[str, Contest]:
    contests = {w.name: Contest(w.name, w, (w.lr,)) for w in WORKLOADS.values()}
    small = WORKLOADS["small"]
    rates = tuple(float(lr) for lr in np.geomspace(small.lr / 30, small.lr, SWEEP))
    return contests | {"sweep": Contest("sweep", small, rates)}


CONTESTS: Mapping[str, Contest] = _contests()


def chosen_peers(given: Sequence[str] | None) -> list[type[Peer]]:
    """Return the peers of ``["jax,torch"]``, each once; all for None. gpumlp itself is one of them.

    Raises:
        ValueError: an unknown name; the message has the nearest valid one.
    """
    return list(PEERS.values()) if given is None else [_peer(name) for name in _names(given)]


def _peer(name: str) -> type[Peer]:
    by_key = {key.replace("-", "_"): peer for key, peer in PEERS.items()}
    return look_up("peer", name, by_key)


def chosen_contests(given: Sequence[str] | None) -> list[Contest]:
    """Return the contests of ``["small,clf", "sweep"]``, each once; all for None.

    Raises:
        ValueError: an unknown name; the message has the nearest valid one.
    """
    if given is None:
        return list(CONTESTS.values())
    return [look_up("workload", name, CONTESTS) for name in _names(given)]


def _names(given: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name for text in given for name in text.split(",")))
