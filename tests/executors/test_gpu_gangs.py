"""Many small networks on a GPU's stand-in: common launches, with the bits and the fate of each its own."""

import math
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import executors
from gpumlp.backend import Backend
from gpumlp.executors import crew, gang, resident
from gpumlp.executors.crew import Crew
from gpumlp.executors.device import DeviceExecutor
from gpumlp.executors.gang import Gang
from gpumlp.failure import NonFiniteLossError
from gpumlp.feed import Shared
from gpumlp.kernels.cuda.host_device import HostDevice
from tests.executors.gpu_trainings import LABELS, VALUES, X


def many(device, count, optimizer=None, callbacks=None, **settings):
    trainers = gm.make_trainers(
        list(range(count)),
        lambda: gm.mlp((5, 8, 3), device=device, dropout=0.1),
        loss="cross_entropy",
        optimizer=optimizer or gm.Adam(1e-2),
        callbacks=callbacks,
    )
    gm.fit_many(trainers, X, LABELS, batch_size=16, progress=False, **{"epochs": 3, **settings})
    return [trainer.network.state_dict() for trainer in trainers]


def test_many_small_networks_train_in_common_launches_with_the_bits_of_each_alone(stand_in, monkeypatch):
    launched: list[int] = []
    launch = Gang._launch

    def noted(self, requests, seconds):
        launched.append(len(requests))
        return launch(self, requests, seconds)

    monkeypatch.setattr(Gang, "_launch", noted)
    stand_in()
    together = many("stand-in", 7)
    assert max(launched) == 7
    for seed, weights in enumerate(together):
        trainer = gm.Trainer(
            gm.mlp((5, 8, 3), device="stand-in", dropout=0.1),
            loss="cross_entropy",
            optimizer=gm.Adam(1e-2),
            seed=seed,
        )
        trainer.fit(X, LABELS, epochs=3, batch_size=16, progress=False)
        for name, value in trainer.network.state_dict().items():
            np.testing.assert_array_equal(weights[name], value)


def test_a_block_of_many_networks_ends_after_a_time_of_the_gpu_with_the_same_bits(stand_in, monkeypatch):
    stand_in()
    lengths: list[int] = []
    run = resident.ResidentExecutor.run

    def noted(self, plan, n_steps):
        lengths.append(run(self, plan, n_steps))
        return lengths[-1]

    monkeypatch.setattr(resident.ResidentExecutor, "run", noted)
    monkeypatch.setattr(gang, "TOGETHER_SECONDS", math.inf)
    expected = many("stand-in", 2, epochs=30)
    assert lengths == [150, 150]
    monkeypatch.setattr(gang, "TOGETHER_SECONDS", 1e-9)
    lengths.clear()
    found = many("stand-in", 2, epochs=30)
    assert sum(lengths) == 300
    assert lengths[:2] == [64, 64]  # a launch
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)


@pytest.mark.parametrize("multiprocessors", [4, 1])
def test_networks_that_are_alike_have_their_programs_lowered_once(multiprocessors, stand_in, monkeypatch):
    """In two gangs too."""
    monkeypatch.setattr(HostDevice, "multiprocessors", multiprocessors)
    stand_in()
    lowered = []
    lower = DeviceExecutor._lower

    def noted(self, program):
        lowered.append(program)
        return lower(self, program)

    monkeypatch.setattr(DeviceExecutor, "_lower", noted)
    monkeypatch.setattr(crew, "AT_ONCE", 1)  # one after the other
    many("stand-in", 5, epochs=1)
    assert len(lowered) == 3  # the beginning of an epoch, the step, the short one


@pytest.mark.parametrize("rate", [0.01, gm.StepDecay(0.01, every=1)])
def test_what_is_copied_for_a_block_is_copied_once_for_all_networks(rate, stand_in, monkeypatch):
    device = stand_in().device
    monkeypatch.setattr(gang, "TOGETHER_SECONDS", 1e-9)
    copies: list[int] = []
    launch = Gang._launch_if_complete

    def noted(self):
        copied: list[Any] = []

        def counting(copy):
            def counted(*arrays):
                copied.append(copy)
                return copy(*arrays)

            return counted

        with monkeypatch.context() as patched:
            for name in ("copy_in", "copy_out"):
                patched.setattr(device, name, counting(getattr(device, name)))
            launch(self)
        if copied:
            copies.append(len(copied))

    monkeypatch.setattr(Gang, "_launch_if_complete", noted)
    many("stand-in", 5, epochs=40, optimizer=gm.SGD(rate))
    # the networks and their counters; their counters and losses; their rates at first, and where they change
    assert copies[0] == 5
    assert copies[1] == (4 if rate == 0.01 else 5)
    assert max(copies[1:]) == copies[1]


def test_a_few_networks_at_a_time_have_their_turn_in_python(stand_in):
    stand_in()
    lock = threading.Lock()
    at_work, most = 0, 0

    def look(trainer, epoch, logs):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(1e-3)
        with lock:
            at_work -= 1

    many("stand-in", 16, epochs=3, callbacks=[look])  # in two gangs
    assert 1 < most <= crew.AT_ONCE


def test_many_networks_share_one_copy_of_the_data(stand_in, monkeypatch):
    backend = stand_in()
    sizes: list[Any] = []
    asarray = type(backend).asarray

    def noted(self, array, dtype=None):
        sizes.append(np.shape(array))
        return asarray(self, array, dtype)

    monkeypatch.setattr(type(backend), "asarray", noted)
    many("stand-in", 5, epochs=1)
    assert sizes.count(X.shape) == 1


def test_a_network_of_the_gang_that_fails_does_not_hold_the_others(stand_in):
    stand_in()
    trainers = [
        gm.Trainer(gm.mlp((5, 8, 2), device="stand-in"), loss="mse", optimizer=gm.SGD(lr), seed=1)
        for lr in (0.01, 1e6, 0.02)
    ]
    with pytest.raises(NonFiniteLossError):
        gm.fit_many(trainers, X, VALUES, epochs=4, batch_size=16, progress=False)
    assert [len(trainer.history) for trainer in trainers] == [4, len(trainers[1].history), 4]


def test_a_launch_that_fails_says_it_once_however_many_networks_were_in_it(stand_in, monkeypatch):
    def lose(self, requests, seconds):
        raise MemoryError("the GPU has 5 bytes free")

    stand_in()
    monkeypatch.setattr(Gang, "_launch", lose)
    with pytest.raises(MemoryError, match="5 bytes free") as raised:
        many("stand-in", 20)
    frames = [frame.name for frame in traceback.extract_tb(raised.tb)]
    assert frames[-1] == "lose"
    assert len(frames) < 20


def test_settings_that_are_refused_leave_nobody_waiting(stand_in):
    stand_in()
    trainers = gm.make_trainers(list(range(3)), lambda: gm.mlp((5, 8, 3), device="stand-in"), loss="mse")
    for wrong in ({"epochs": "2"}, {"batch_size": 0}, {"epochs": 1, "validate_every": "often"}):
        with pytest.raises(ValueError, match=r"(epochs|batch_size|validate_every) is"):
            gm.fit_many(trainers, X, VALUES, progress=False, **wrong)
        assert [trainer.shared for trainer in trainers] == [None] * 3


def test_the_executor_of_a_network_does_not_depend_on_how_far_the_others_of_the_gang_are(
    stand_in, monkeypatch
):
    """One that is small only together takes the resident kernel, though all others have left."""
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 1000)
    backend = stand_in()
    seats = executors.new_seats([backend] * 3)
    for seat in seats[1:]:
        seat.leave()
    trainer = gm.Trainer(gm.mlp((5, 8, 3), device="stand-in"), loss="cross_entropy")
    for shared, name in ((Shared(seat=seats[0]), "resident"), (None, "graph")):
        trainer.shared = shared
        trainer.fit(X, LABELS, epochs=1, batch_size=16, progress=False)
        assert trainer.trained_on == name


def test_where_a_thread_cannot_be_started_nobody_waits_for_its_network(stand_in, monkeypatch):
    class Few(ThreadPoolExecutor):
        def submit(self, function, /, *given, **settings):
            if given[-1] == 2:
                raise RuntimeError("can't start new thread")
            return super().submit(function, *given, **settings)

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor", Few)
    stand_in()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        many("stand-in", 4)


def test_cross_validation_of_small_networks_fills_the_gpu(stand_in, assert_close):
    stand_in()
    settings: dict[str, Any] = {
        "k": 3,
        "loss": "cross_entropy",
        "epochs": 2,
        "batch_size": 16,
        "progress": False,
    }

    def scores(device):
        return gm.cross_validate(lambda: gm.mlp((5, 8, 3), device=device), X, LABELS, **settings)

    found, expected = scores("stand-in"), scores("cpu")
    for a, b in zip(found.scores, expected.scores, strict=True):
        assert a["accuracy"] == b["accuracy"]
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


# --- two gangs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "gangs"),
    [
        (1, [1]),
        (527, [527]),
        (528, [264, 264]),
        (600, [264, 336]),  # three rounds of the GPU; halves would take four
        (1056, [528, 528]),
    ],
)
def test_there_are_two_gangs_where_each_fills_the_gpu(members, gangs):
    """Of 132 multiprocessors, which run 264 small networks at a time."""
    assert Crew(members).gangs(132) == gangs


def test_networks_of_each_gpu_have_gangs_of_their_own_one_behind_the_other():
    one, other = (Backend(name, np, HostDevice()) for name in ("one", "other"))
    seats = executors.new_seats([one, *[other] * 16, one])
    assert [seat.row for seat in seats] == [0, *range(8), *range(8), 1]
    assert [seat.crew.members for seat in seats] == [2, *[16] * 16, 2]
    assert len({seat.gang for seat in seats}) == 3
    assert seats[0].gang is seats[-1].gang


@pytest.fixture
def in_two(stand_in, monkeypatch):
    """A GPU that two networks fill: of up to seven the first two are a gang, and the others, where there are two."""
    monkeypatch.setattr(HostDevice, "multiprocessors", 1)
    return stand_in()


def test_networks_have_the_same_bits_in_two_gangs_and_in_one(in_two, monkeypatch):
    launched: list[int] = []
    launch = Gang._launch

    def noted(self, requests, seconds):
        launched.append(len(requests))
        return launch(self, requests, seconds)

    monkeypatch.setattr(Gang, "_launch", noted)
    found = many("stand-in", 7, epochs=30)
    assert set(launched) == {2, 5}
    launched.clear()
    monkeypatch.setattr(Crew, "gangs", lambda self, multiprocessors: [self.members])
    expected = many("stand-in", 7, epochs=30)
    assert set(launched) == {7}
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)


def test_launches_of_a_gang_wait_for_those_of_the_other_whose_python_runs_meanwhile(in_two, monkeypatch):
    monkeypatch.setattr(gang, "TOGETHER_SECONDS", 1e-9)
    launch_all, run = Gang._launch_all, Gang.run
    asked, others_asked = [], threading.Event()
    under_way: list[Gang] = []
    most = 0

    def noted_run(self, *given):
        if self._members == 3:
            asked.append(self)
            if len(asked) == 3:
                others_asked.set()
        run(self, *given)

    def noted(self, requests):
        nonlocal most
        under_way.append(self)
        if self._members == 2:
            assert others_asked.wait(60)
        launch_all(self, requests)
        most = max(most, len(under_way))
        under_way.remove(self)

    monkeypatch.setattr(Gang, "run", noted_run)
    monkeypatch.setattr(Gang, "_launch_all", noted)
    many("stand-in", 5, epochs=40)
    assert most == 1


def test_the_python_of_a_network_does_not_wait_for_the_gpu(in_two, monkeypatch):
    """It would wait for the launches of the other gang."""
    outside: list[str] = []
    here = threading.local()
    launch_all, synchronize = Gang._launch_all, HostDevice.synchronize

    def noted(self, requests):
        here.launches = True
        launch_all(self, requests)
        here.launches = False

    def watched(self):
        if not getattr(here, "launches", False):
            outside.append(threading.current_thread().name)
        synchronize(self)

    monkeypatch.setattr(Gang, "_launch_all", noted)
    monkeypatch.setattr(HostDevice, "synchronize", watched)
    many("stand-in", 4)
    assert not outside


@pytest.mark.parametrize("lost", [{0}, {4}, {0, 1}])
def test_networks_of_one_gang_that_fail_do_not_stop_the_other(lost, in_two):
    trainers = [
        gm.Trainer(gm.mlp((5, 8, 2), device="stand-in"), loss="mse", optimizer=gm.SGD(lr), seed=1)
        for lr in (1e6 if i in lost else 0.01 for i in range(5))
    ]
    with pytest.raises(NonFiniteLossError):
        gm.fit_many(trainers, X, VALUES, epochs=4, batch_size=16, progress=False)
    assert {i for i, trainer in enumerate(trainers) if len(trainer.history) < 4} == lost


@pytest.mark.parametrize("size", [2, 3])
def test_a_launch_of_one_gang_that_fails_leaves_nobody_of_the_other_waiting(size, in_two, monkeypatch):
    launch = Gang._launch

    def lose(self, requests, seconds):
        if len(requests) == size:
            raise MemoryError("the GPU has 5 bytes free")
        return launch(self, requests, seconds)

    monkeypatch.setattr(Gang, "_launch", lose)
    with pytest.raises(MemoryError, match="5 bytes free"):
        many("stand-in", 5)
