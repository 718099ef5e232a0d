"""What networks that are alike share on the resident kernel: rows written once, and put to any memory."""

import copy
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors import resident
from gpumlp.executors.patterns import Movable, Patterns, overlap
from gpumlp.losses import get_loss
from gpumlp.program import Program
from gpumlp.step import DataShape, training_plan

SPANS = [(1000, 64), (2000, 8)]
ADDRESSES = np.array([True, False])
WORDS = np.array([[1000, 7], [1063, 1000], [2007, 2000], [0, 3]])

RNG = np.random.default_rng(5)
X = RNG.normal(size=(40, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 40)


def test_words_move_with_the_pieces_of_memory_that_they_point_at():
    movable = Movable.of(WORDS, ADDRESSES, SPANS)
    np.testing.assert_array_equal(movable.at(np.array([0, 1000, 2000])), WORDS)
    moved = movable.at(np.array([0, 50_000, 1]))
    np.testing.assert_array_equal(moved, [[50_000, 7], [50_063, 1000], [8, 2000], [0, 3]])


def test_words_stay_right_where_pieces_that_overlap_stay_where_they_are():
    spans = [(1000, 64), (1000, 64), (1040, 64), (2000, 8)]
    movable = Movable.of(WORDS, ADDRESSES, spans)
    np.testing.assert_array_equal(movable.at(np.array([0, 1000, 1000, 1040, 2000])), WORDS)


@pytest.mark.parametrize("address", [999, 1064, 2008])
def test_an_address_outside_of_all_pieces_is_refused(address):
    with pytest.raises(ValueError, match="none of the pieces"):
        Movable.of(np.array([[address, 0]]), ADDRESSES, SPANS)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(100, 50), (150, 10), (0, 100)], False),
        ([(100, 51), (150, 10)], True),
        ([(100, 8), (100, 8)], True),
        ([(100, 8), (104, 0)], False),
    ],
)
def test_pieces_overlap_where_they_have_bytes_in_common(spans, expected):
    assert overlap(spans) is expected


def programs(width: int = 8, momentum: float = 0.5) -> tuple[Program, ...]:
    network = gm.mlp((4, width, 3), device="cpu")
    loss, optimizer = get_loss("cross_entropy"), gm.SGD(0.1, momentum=momentum)
    return training_plan(network, loss, optimizer, DataShape(40, 40, 4, (), False), 16, True).programs


def test_equal_programs_over_equal_memories_are_lowered_once():
    patterns, lowered = Patterns(), []

    def lower(program: Program) -> Program:
        lowered.append(program)
        return program

    first = patterns.find("a layout", programs(), lower)
    for equal in (
        programs(),
        copy.deepcopy(programs()),
    ):  # the same ones, and as a user's own class writes them
        assert patterns.find("a layout", equal, lower) is first
    assert len(lowered) == 3
    others: list[tuple[Any, tuple[Program, ...]]] = [
        ("another", programs()),
        ("a layout", programs(momentum=0.6)),
        ("a layout", programs(width=9)),
    ]
    for k, (layout, other) in enumerate(others, 2):
        assert patterns.find(layout, other, lower) is not first
        assert len(lowered) == 3 * k


def fitted(makers: list[Any], together: bool, y: Any = LABELS, loss: str = "cross_entropy") -> Any:
    trainers = [
        gm.Trainer(make(), loss=loss, optimizer=gm.SGD(0.1, momentum=0.1 * i), seed=i)
        for i, make in enumerate(makers)
    ]
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 16, "progress": False}
    if together:
        gm.fit_many(trainers, X, y, **settings)
    else:
        for trainer in trainers:
            trainer.fit(X, y, **settings)
    return [(t.network.state_dict(), t.history["loss"]) for t in trainers]


def assert_same(found, expected):
    for (ours, our_losses), (theirs, their_losses) in zip(found, expected, strict=True):
        assert our_losses == their_losses
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)


def test_networks_of_a_gang_that_are_not_alike_keep_the_bits_of_each_alone(stand_in):
    stand_in()
    makers = [
        lambda: gm.mlp((4, 8, 3), device="stand-in"),
        lambda: gm.mlp((4, 8, 3), device="stand-in", dropout=0.2),
        lambda: gm.mlp((4, 9, 3), device="stand-in"),
        lambda: gm.mlp((4, 8, 3), device="stand-in", dtype="float64"),
        lambda: gm.mlp((4, 8, 3), device="stand-in", activation="tanh"),
        lambda: gm.mlp((4, 8, 3), device="stand-in"),
    ]
    assert_same(fitted(makers, together=True), fitted(makers, together=False))


def test_data_that_are_their_own_targets_are_read_right(stand_in):
    """Features and targets are one piece of memory there: an address does not tell which is meant."""
    stand_in()
    makers = [lambda: gm.mlp((4, 6, 4), device="stand-in")] * 3
    found = fitted(makers, together=True, y=X, loss="mse")
    assert_same(found, fitted(makers, together=False, y=X, loss="mse"))


@pytest.mark.parametrize(("outputs", "y", "loss"), [(3, LABELS, "cross_entropy"), (4, X, "mse")])
def test_programs_of_a_sweep_are_written_for_the_kernel_once(outputs, y, loss, stand_in, monkeypatch):
    """Also where features and targets are one array, as an autoencoder has them."""
    stand_in()
    written: list[Any] = []
    write = resident.ResidentExecutor._write

    def noted(self, programs, plan):
        written.append(programs)
        return write(self, programs, plan)

    monkeypatch.setattr(resident.ResidentExecutor, "_write", noted)
    trainers = gm.make_trainers(
        [{"optimizer": gm.SGD(0.01 * (i + 1)), "seed": i} for i in range(6)],
        lambda: gm.mlp((4, 8, outputs), device="stand-in"),
        loss=loss,
    )
    gm.fit_many(trainers, X, y, epochs=2, batch_size=16, progress=False)
    assert len(written) == 1
