"""Kernels made for one kind of network: the same bits as the general one's, and made beside the training."""

import re
import threading
import time
import warnings

import numpy as np
import pytest

import gpumlp as gm
from bench.gpu_check.checks import executor
from gpumlp.executors import tailoring
from gpumlp.executors.graph import GraphExecutor
from gpumlp.executors.resident import ResidentExecutor
from gpumlp.kernels.cuda import SCRATCH_BYTES
from gpumlp.kernels.cuda.host_device import HostDevice, HostKernels
from tests.executors.gpu_trainings import LABELS, VALUES, WEIGHT, X
from tests.kernels.test_cuda_compile import compile_for, spills


@pytest.fixture
def texts(stand_in, monkeypatch):
    """The texts of tailored kernels, as they are asked for; each makes a device, and nothing compiles on the way."""
    found: list[str] = []
    make = HostDevice.tailored

    def noted(self, text, names):
        found.append(text)
        return make(self, text, names)

    monkeypatch.setattr(HostDevice, "tailored", noted)
    stand_in()
    return found


def wide():
    return [gm.Linear(5, 32), gm.ReLU(), gm.Linear(32, 64), gm.ReLU(), gm.Linear(64, 3)]


def uneven():
    """Products of many blocks, of rows that are pairs and no fours, and of an odd number."""
    return [
        gm.Linear(5, 90),
        gm.ReLU(),
        gm.Linear(90, 70),
        gm.ReLU(),
        gm.Linear(70, 61),
        gm.ReLU(),
        gm.Linear(61, 3),
    ]


def varied():
    """A layer of each kind that a program has an operation of its own for."""
    return [
        *(gm.Linear(5, 16), gm.BatchNorm1d(16), gm.Tanh(), gm.Dropout(0.2), gm.Linear(16, 10)),
        *(gm.LayerNorm(10), gm.GELU(), gm.Linear(10, 2)),
    ]


CASES = {
    "wide layers, SGD": (wide, "cross_entropy", LABELS, lambda: gm.SGD(0.05), {}),
    "rows that are no fours": (uneven, "cross_entropy", LABELS, lambda: gm.SGD(0.05), {}),
    "layers of every kind, Adam, weights": (
        *(varied, "mse", VALUES, lambda: gm.Adam(1e-2, clip_norm=1.0)),
        {"sample_weight": WEIGHT},
    ),
}


def trainer_of(layers, loss="cross_entropy", optimizer=None, seed=1, dtype="float32", **settings):
    network = gm.Sequential(*layers(), device="stand-in", seed=seed, dtype=dtype)
    return gm.Trainer(network, loss=loss, optimizer=optimizer or gm.SGD(0.05), seed=5, **settings)


def fit(trainer, y=LABELS, epochs=3, **settings):
    settings = {"batch_size": 16, "progress": False, **settings}
    history = trainer.fit(X, y, epochs=epochs, **settings)
    return trainer.network.state_dict(), history["loss"]


def assert_same_bits(one, other):
    (weights, losses), (expected, true) = one, other
    for name, value in expected.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    np.testing.assert_array_equal(losses, true)


@pytest.fixture(params=[GraphExecutor, ResidentExecutor], ids=["graph", "resident"])
def kind(request):
    """Either executor, in the place of the one that would be chosen."""
    with executor(request.param):
        yield request.param


@pytest.mark.parametrize("case", CASES)
def test_tailored_kernels_give_the_bits_of_general_ones(case, kind, texts, used):
    layers, loss, y, optimizer, settings = CASES[case]

    def trained():
        return fit(trainer_of(layers, loss, optimizer()), y, **settings)

    general = trained()
    assert not texts
    with tailoring.at_once():
        tailored = trained()
    assert len(texts) == 1
    assert used == [kind, kind]
    assert_same_bits(tailored, general)


def test_equal_networks_have_a_kernel_in_common_and_others_have_none(texts):
    with tailoring.at_once():
        together = [trainer_of(wide, seed=seed) for seed in (1, 2, 3)]
        gm.fit_many(together, X, LABELS, epochs=2, batch_size=16, progress=False)
        assert len(texts) == 1
        fit(trainer_of(wide, seed=4), epochs=2)  # of the same kind, in another training
        assert len(texts) == 1
        mixed = [trainer_of(wide), trainer_of(lambda: [gm.Linear(5, 4), gm.Tanh(), gm.Linear(4, 3)])]
        gm.fit_many(
            mixed, X, LABELS, epochs=2, batch_size=16, progress=False
        )  # share launches of the general one
        assert len(texts) == 1
    alone = fit(trainer_of(wide, seed=2), epochs=2)[0]
    for name, value in together[1].network.state_dict().items():
        np.testing.assert_array_equal(value, alone[name])


def test_float64_and_very_long_programs_have_no_kernel_of_their_own(texts, monkeypatch):
    with tailoring.at_once():
        fit(trainer_of(wide, dtype="float64"), epochs=1)
        monkeypatch.setattr(tailoring, "MOST_ROWS", 20)
        fit(trainer_of(wide), epochs=1)
    assert not texts


def test_a_training_goes_on_while_its_kernel_is_made_and_then_takes_it(stand_in, monkeypatch):
    stand_in()
    launch, launched = HostKernels.launch_resident, []

    def noted(self, *given):
        launched.append(self)
        return launch(self, *given)

    monkeypatch.setattr(HostKernels, "launch_resident", noted)
    begun, goes_on, made = threading.Event(), threading.Event(), threading.Event()
    make = HostDevice.tailored

    def slow(self, text, names):
        begun.set()
        assert goes_on.wait(60)
        made.set()
        return make(self, text, names)

    monkeypatch.setattr(HostDevice, "tailored", slow)
    monkeypatch.setattr(tailoring, "AFTER_SECONDS", 0.0)

    class Watch(gm.Callback):
        def on_epoch_end(self, trainer, epoch, logs):
            assert not made.is_set() or goes_on.is_set()
            if epoch == 1:
                assert begun.wait(60)
            if epoch == 3:
                goes_on.set()
                for thread in threading.enumerate():
                    if thread.name == "gpumlp-tailor":
                        thread.join(60)

    beside = fit(trainer_of(wide, callbacks=[Watch()]), epochs=6)
    assert made.is_set()
    assert len(set(map(id, launched))) == 2
    assert launched[0] is not launched[-1]
    monkeypatch.setattr(tailoring, "AFTER_SECONDS", 1e9)
    stand_in()
    assert_same_bits(beside, fit(trainer_of(wide), epochs=6))


def test_a_device_remembers_so_many_kinds_and_forgets_the_oldest(texts, monkeypatch):
    monkeypatch.setattr(tailoring, "MOST_KINDS", 1)
    narrow = [gm.Linear(5, 4), gm.Tanh(), gm.Linear(4, 3)]
    with tailoring.at_once():
        for layers in (wide, lambda: narrow, wide):
            fit(trainer_of(layers), epochs=1)
    assert len(texts) == 3
    assert texts[0] == texts[2]


def test_short_trainings_make_none(texts):
    fit(trainer_of(wide))
    time.sleep(0.01)
    assert not texts


def test_a_kernel_that_does_not_compile_is_said_once_and_the_training_goes_on(stand_in, monkeypatch):
    stand_in()

    def fails(self, text, names):
        raise RuntimeError("ptxas: no")

    general = fit(trainer_of(wide))
    monkeypatch.setattr(HostDevice, "tailored", fails)
    stand_in()
    with (
        tailoring.at_once(),
        pytest.warns(RuntimeWarning, match=r"\(ptxas: no\); it trains on with the general"),
    ):
        assert_same_bits(fit(trainer_of(wide)), general)
    with tailoring.at_once(), warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(trainer_of(wide))


@pytest.mark.parametrize(
    ("kind", "arch"),
    [(GraphExecutor, "sm_90"), (ResidentExecutor, "sm_75"), (ResidentExecutor, "sm_90")],
    indirect=["kind"],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_tailored_kernels_compile_without_spilling_registers(kind, arch, texts):
    with tailoring.at_once():
        fit(trainer_of(wide), epochs=1, batch_size=14)  # which leaves no short batch
    _, log = compile_for(arch, texts[0])
    assert "warning" not in log
    assert not any(spills(log).values())
    assert {int(size) for size in re.findall(r"(\d+) bytes smem", log)} == {SCRATCH_BYTES}
