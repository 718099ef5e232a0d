"""Peers in bench/gpu_check: checked side by side, and timed in turn."""

from __future__ import annotations

import importlib
import time

import numpy as np
import pytest

from gpumlp.workloads import WORKLOADS
from tests.bench_gpu_check.sections import module

# --- peers -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def new_race(context):
    """Makes a race of NumPy and scikit-learn in small workloads, which ends with the test."""
    registry = importlib.import_module("bench.peers.registry")
    races = []

    def make(*names: str, rounds: int = 2):
        known = {name: registry.PEERS[name] for name in ("numpy-float32", "scikit-learn")}
        contests = {}
        for name in names:
            workload = WORKLOADS[name].reduced(64)
            contests[name] = registry.Contest(name, workload, (workload.lr,)), "float32"
        races.append(module("race").Race(context, known, contests, rounds=rounds, seconds=0.02))
        return races[-1]

    yield make
    for race in races:
        race.close()


def test_peers_are_checked_and_timed_in_turn_and_those_that_fail_are_named(new_race):
    race = new_race("polar")
    values = race.run("polar")
    (entry,) = (e for e in values["peers"] if e["peer"] == "numpy-float32")
    assert len(entry["rounds"]) >= 2
    assert entry["check"]["move_error"] < 1e-3
    assert entry["steps_per_second"]["min"] > 0
    assert values["over_best_peer"] is None  # gpumlp did not take part
    assert {e["peer"] for e in values["peers"]} | set(values["left_out"]) == {"numpy-float32", "scikit-learn"}
    assert not race.starts["polar"].folder.exists()


def test_peers_that_are_ready_are_only_timed_and_the_others_get_ready_at_their_turn(new_race, monkeypatch):
    race, worker = new_race("small", "clf"), importlib.import_module("bench.peers.worker")
    started = []
    start = worker.Worker.__init__

    def noted(self, *settings):
        started.append(settings)
        start(self, *settings)

    monkeypatch.setattr(worker.Worker, "__init__", noted)
    race.get_ready(["small"])
    race.get_ready(["clf"], lambda: False)
    assert set(race.starts["small"].entries) | set(race.starts["small"].left_out) == {
        p.name for p in race.peers
    }
    assert race.starts["clf"].entries == {}
    n_ready = len(started)
    assert race.run("small")["peers"]
    assert len(started) == n_ready
    assert race.run("clf")["peers"]
    assert len(started) == 2 * n_ready


def test_a_peer_that_must_be_alone_prepares_when_its_workload_is_timed(new_race, monkeypatch):
    race = new_race("small")
    alone = race.peers[0]
    monkeypatch.setattr(alone, "prepares_alone", True)
    asked = []
    worker = importlib.import_module("bench.peers.worker").Worker
    ask = worker.ask

    def noted(self, do, *rest, **settings):
        asked.append((self.peer.name, do))
        return ask(self, do, *rest, **settings)

    monkeypatch.setattr(worker, "ask", noted)
    race.get_ready(["small"])
    assert (alone.name, "check") in asked
    assert (alone.name, "prepare") not in asked
    del asked[:]
    assert alone.name in {entry["peer"] for entry in race.run("small")["peers"]}
    assert [do for name, do in asked if name == alone.name][:2] == ["prepare", "run"]


def test_a_peer_that_is_called_between_check_and_preparing_prepares_later(new_race):
    race = new_race("small")
    start, peer = race.starts["small"], race.peers[0]
    start.enter(peer, 1, 60, lambda: False)
    assert start.unprepared == set(start.entries) == {peer.name}
    assert peer.name in {entry["peer"] for entry in race.run("small")["peers"]}


def test_a_peer_that_fails_in_one_workload_is_left_out_of_that_one_alone(new_race, monkeypatch):
    race, judge = new_race("small", "clf"), module("race").Judge
    make = judge.__init__

    def only_clf(self, contest, *rest):
        if contest.name == "small":
            raise MemoryError("too large")
        make(self, contest, *rest)

    monkeypatch.setattr(judge, "__init__", only_clf)
    race.get_ready(["small", "clf"])
    with pytest.raises(module("checks").Failed, match="no library could be timed") as failure:
        race.run("small")
    assert set(failure.value.values["left_out"].values()) == {"MemoryError: too large"}
    assert race.run("clf")["peers"]


def test_workloads_are_left_out_when_the_time_is_over(context, new_race):
    race = new_race("small")
    context.end = time.monotonic() + module("race").LEAST_UNREADY - 1
    with pytest.raises(module("checks").Skipped, match="no time was left"):
        race.run("small")


@pytest.mark.parametrize(
    ("rates", "goes_on"), [([100, 100.5], False), ([100, 103], True), ([100, 103, 103.5], False)]
)
def test_rounds_are_repeated_until_two_agree(rates, goes_on):
    assert module("targets").differ(rates, 0.01) == goes_on


def test_ours_is_held_against_the_best_other():
    entries = [
        {"peer": name, "steps_per_second": {"median": rate}}
        for name, rate in (("gpumlp", 30.0), ("jax", 20.0), ("torch", 10.0))
    ]
    values = module("race").judged(entries)
    assert (values["best_peer"], values["over_best_peer"]) == ("jax", 1.5)


def test_all_workloads_are_raced_in_float32():
    named = {name for name, precision in module("peers").ORDER if precision == "float32"}
    assert named == {*WORKLOADS, "sweep", "wide"}


def test_adam_of_the_reference_moves_every_weight_by_the_rate_in_its_first_step():
    loop = importlib.import_module("bench.peers.numpy_loop")
    network = [(np.array([[2.0]]), np.array([0.5]))]
    _, moved = loop.Adam().step(network, np.array([[3.0]]), np.array([0.0]), 0.1, "mse", "relu")
    np.testing.assert_allclose([moved[0][0][0, 0], moved[0][1][0]], [1.9, 0.4], rtol=1e-6)
