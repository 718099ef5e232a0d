"""gpumlp.intake: data that many networks train on are checked once for those that take them alike."""

from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import intake
from gpumlp.intake import Checked, Intake
from gpumlp.losses import get_loss

RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 40)


@pytest.fixture
def encoded(monkeypatch):
    """The losses that targets were encoded for, in order."""
    losses = []
    encode = intake.encode_target

    def noted(y, classes, loss, *widths):
        losses.append(loss)
        return encode(y, classes, loss, *widths)

    monkeypatch.setattr(intake, "encode_target", noted)
    return losses


def take(checked, y=Y, outputs=3, loss: Any = "cross_entropy", dtype="float32", classes=None, rows=None):
    network = gm.mlp((4, 8, outputs), device="cpu", dtype=dtype)
    return Intake(network, get_loss(loss), classes, checked).training(X, y, None, rows)


def test_data_are_checked_once_for_all_networks_that_take_them_alike(encoded):
    checked, parts = Checked(), [np.arange(30), np.arange(10, 40), None]
    found = [take(checked, rows=rows)[0] for rows in parts]
    assert len(encoded) == 1
    assert len({id(data.target) for data in found}) == 1
    for data, rows in zip(found, parts, strict=True):
        np.testing.assert_array_equal(data.rows, rows)


@pytest.mark.parametrize(
    "other",
    [
        {"y": Y.copy()},
        {"outputs": 4},
        {"loss": gm.CrossEntropy(class_weight="balanced")},
        {"dtype": "float64"},
        {"y": Y.astype(str), "classes": ["0", "1", "2"]},
    ],
)
def test_what_another_network_would_take_otherwise_is_checked_for_itself(other, encoded):
    checked = Checked()
    take(checked)
    found, classes = take(checked, **other)
    expected, known = take(None, **other)
    assert len(encoded) == 3
    assert classes == known
    np.testing.assert_array_equal(found.target, expected.target)
    assert (found.x.dtype, found.weight is None) == (expected.x.dtype, expected.weight is None)


def test_a_loss_of_a_users_own_and_one_whose_settings_do_not_compare_are_asked_each_time(encoded):
    class Own(gm.CrossEntropy):
        pass

    checked = Checked()
    for loss in (Own(), Own(), *[gm.CrossEntropy(class_weight=[1, 2, 3])] * 2):
        take(checked, loss=loss)
    assert len(encoded) == 4


def test_data_that_do_not_fit_are_refused_for_each_network():
    checked = Checked()
    for _ in range(2):
        with pytest.raises(ValueError, match="y has the label 3"):
            take(checked, y=Y + 1)


@pytest.mark.parametrize("y", [Y, Y.astype(str)])
def test_many_networks_have_one_copy_of_their_targets(y, encoded):
    trainers = gm.make_trainers([0, 1, 2], lambda: gm.mlp((4, 8, 3), device="cpu"), loss="cross_entropy")
    gm.fit_many(trainers, X, y, epochs=1, progress=False)
    assert len(encoded) == 1
    assert [trainer.shared for trainer in trainers] == [None] * 3
    assert all(trainer.classes == (["0", "1", "2"] if y.dtype.kind == "U" else None) for trainer in trainers)
