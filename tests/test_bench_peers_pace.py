"""How bench/peers learns how many epochs make a round; a sweep's start costs as much as many epochs."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
ASKED = 1.5


class Peer:
    """Takes as long as it says, and no time.

    Args:
        compiling: seconds of the first training that is timed.
        once: seconds of each.
        each: seconds of an epoch.
    """

    untimed_epochs = 0

    def __init__(self, compiling, once, each):
        self.compiling, self.once, self.each = compiling, once, each
        self.trained = 0

    def prepare(self, problem): ...

    def train(self, epochs): ...

    def timed(self, epochs):
        seconds, self.compiling = self.compiling + self.once + epochs * self.each, 0.0
        self.trained += 1
        return 0.5, epochs, seconds, seconds


@pytest.mark.parametrize("compiling", [0.0, 9.0])
@pytest.mark.parametrize(
    ("once", "each"), [(0.0, 0.01), (0.25, 0.0004), (0.25, 0.3), (0.01, 1e-6), (0.0, 1.4)]
)
def test_rounds_are_about_as_long_as_asked_whatever_a_training_costs_once(monkeypatch, compiling, once, each):
    monkeypatch.syspath_prepend(str(ROOT))
    contract = importlib.import_module("bench.peers.contract")
    peer = Peer(compiling, once, each)
    problem = SimpleNamespace(workload=SimpleNamespace(steps=9), lrs=(0.1,) * 528)
    pace = contract.Pace(peer, problem)
    for _ in range(2):
        done = pace.run(ASKED)
        assert ASKED / 2 < done.seconds < 2 * ASKED
        assert done.steps == 9 * 528 * done.epochs
    assert peer.trained < 12
