"""Arrays of other libraries: taken where they lie, and results given back as the kind that was given."""

import sys
import types

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.backend import Backend, register_backend, unregister_backend
from gpumlp.interchange import is_on_gpu, like, to_host
from gpumlp.kernels.cuda.host_device import DeviceArray, HostDevice

CPU_MEMORY, CUDA_MEMORY = 1, 2


class Tensor:
    """An array of some library, as much of it as speaks DLPack."""

    kind = CPU_MEMORY

    def __init__(self, array):
        self.array = array
        self.shape, self.ndim = array.shape, array.ndim

    def __len__(self):
        return len(self.array)

    def __dlpack__(self, **settings):
        return self.array.__dlpack__(**settings)

    def __dlpack_device__(self):
        return self.kind, 0


class GpuTensor(Tensor):
    """One whose memory the stand-in for a GPU has."""

    kind = CUDA_MEMORY

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.fixture
def other_library(monkeypatch):
    """The library of `Tensor`, with its ``from_dlpack``."""
    module = types.ModuleType("otherlib")
    vars(module)["from_dlpack"] = lambda x: Tensor(np.asarray(x))
    monkeypatch.setitem(sys.modules, "otherlib", module)
    for cls in (Tensor, GpuTensor):
        monkeypatch.setattr(cls, "__module__", "otherlib.tensors")


@pytest.fixture
def stand_in():
    backend = Backend("stand-in", np, HostDevice())
    register_backend(backend)
    yield backend
    unregister_backend("stand-in")


def test_where_an_array_lies_is_what_its_library_says():
    x = np.ones((2, 2))
    assert not is_on_gpu(x)
    assert not is_on_gpu([[1.0]])
    assert not is_on_gpu(Tensor(x))
    assert is_on_gpu(GpuTensor(x))
    assert is_on_gpu(types.SimpleNamespace(__cuda_array_interface__={}))


def test_a_tensor_of_the_host_is_read_without_a_copy():
    x = np.ones((3, 2), np.float32)
    assert np.shares_memory(to_host(Tensor(x)), x)


def test_what_is_no_array_is_left_to_numpy():
    for given in ([1, 2], (3,), None, 4.5):
        assert to_host(given) is given


def test_a_tensor_that_is_not_given_away_says_what_to_do():
    class Attached(Tensor):
        def __dlpack__(self, **settings):
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(
        ValueError, match=r"cannot be read: Can't export tensors that require gradient.*x.detach\(\)"
    ):
        gm.mlp((2, 1), device="cpu").predict(Attached(np.ones((3, 2), np.float32)))


def test_predictions_come_as_the_kind_that_was_given(other_library):
    network = gm.mlp((2, 3, 1), device="cpu", seed=1)
    x = np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2)
    expected = network.predict(x)
    assert type(expected) is np.ndarray
    assert type(network.predict(x.tolist())) is np.ndarray
    found = network.predict(Tensor(x))
    assert isinstance(found, Tensor)
    np.testing.assert_array_equal(found.array, expected)


def test_a_library_that_takes_no_dlpack_gets_numpy_arrays(monkeypatch):
    assert isinstance(like(Tensor(np.ones(2)), np.ones(3), gm.get_backend("cpu")), np.ndarray)


def test_classes_come_as_the_kind_that_was_given_unless_they_are_text(other_library):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2)).astype(np.float32)
    for labels, kind in ((x[:, 0] > 0).astype(int), Tensor), (np.where(x[:, 0] > 0, "a", "b"), np.ndarray):
        trainer = gm.Trainer(gm.mlp((2, 2), device="cpu"), loss="cross_entropy", seed=0)
        trainer.fit(x, labels, epochs=1, batch_size=10, progress=False)
        assert isinstance(trainer.predict_classes(Tensor(x)), kind)


def test_a_training_takes_tensors_for_everything(other_library):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)).astype(np.float32), rng.integers(0, 2, 30)
    weight = rng.uniform(size=30)
    weights = []
    for wrap in (np.asarray, Tensor):
        trainer = gm.Trainer(gm.mlp((2, 2), device="cpu"), loss="cross_entropy", seed=0)
        trainer.fit(wrap(x), wrap(y), sample_weight=wrap(weight), epochs=2, batch_size=10, progress=False)
        trainer.evaluate(wrap(x), wrap(y), wrap(weight))
        weights.append(trainer.network.state_dict()["0.weight"])
    np.testing.assert_array_equal(weights[0], weights[1])


def test_an_array_on_the_networks_gpu_is_trained_on_where_it_lies(stand_in, other_library, monkeypatch):
    adopted: list[object] = []
    uploaded: list[tuple[int, ...]] = []
    adopt, upload = HostDevice.adopt, Backend._upload

    def noted_adopt(self, x):
        adopted.append(x)
        return adopt(self, x)

    def noted_upload(self, x):
        uploaded.append(x.shape)
        return upload(self, x)

    monkeypatch.setattr(HostDevice, "adopt", noted_adopt)
    monkeypatch.setattr(Backend, "_upload", noted_upload)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)).astype(np.float32), rng.integers(0, 2, 30)
    trainer = gm.Trainer(gm.mlp((2, 2), device="stand-in"), loss="cross_entropy", seed=0)
    given = GpuTensor(x)
    trainer.fit(given, y, epochs=2, batch_size=10, validation_split=0.2, progress=False)
    assert adopted
    assert adopted[0] is given
    assert x.shape not in uploaded
    again = gm.Trainer(gm.mlp((2, 2), device="stand-in"), loss="cross_entropy", seed=0)
    again.fit(x, y, epochs=2, batch_size=10, validation_split=0.2, progress=False)
    np.testing.assert_array_equal(
        trainer.network.state_dict()["0.weight"], again.network.state_dict()["0.weight"]
    )


def test_an_infinity_on_a_gpu_is_named_by_its_row(stand_in, other_library):
    x = np.ones((5, 2), np.float32)
    x[3, 1] = np.inf
    with pytest.raises(ValueError, match=r"X has inf in row 3, column 1"):
        gm.mlp((2, 1), device="stand-in").predict(GpuTensor(x))


def test_arrays_of_the_stand_in_are_known_from_those_of_the_host(stand_in):
    placed = stand_in.asarray(np.ones(3))
    assert isinstance(placed, DeviceArray)
    assert stand_in.owns(placed)
    assert not stand_in.owns(np.ones(3))
    assert stand_in.asarray(placed) is placed


def test_torch_tensors_go_in_and_come_out():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    network = gm.mlp((2, 3, 1), device="cpu", seed=1)
    x = torch.linspace(0, 1, 8).reshape(4, 2)
    found = network.predict(x)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), network.predict(x.numpy()))
    with pytest.raises(ValueError, match=r"an array of torch cannot be read.*detach"):
        network.predict(x.requires_grad_())


def test_jax_arrays_go_in_and_come_out():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    network = gm.mlp((2, 3, 1), device="cpu", seed=1)
    x = jax.numpy.linspace(0, 1, 8, dtype="float32").reshape(4, 2)
    found = network.predict(x)
    assert isinstance(found, jax.Array)
    np.testing.assert_array_equal(np.asarray(found), network.predict(np.asarray(x)))
