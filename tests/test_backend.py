import copy
import pickle
import sys
import types

import numpy as np
import pytest

from gpumlp.backend import ALIGNMENT, Backend, address, array_module, get_backend


def fake_cupy(count):
    """A module that answers like CuPy with `count` GPUs, or raises as it does without a driver."""

    def device_count():
        if count is None:
            raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return count

    runtime = types.SimpleNamespace(getDeviceCount=device_count)
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime), __name__="cupy")


@pytest.mark.parametrize("name", ["cpu", "CPU", " cpu "])
def test_the_cpu_is_there_by_name(name):
    backend = get_backend(name)
    assert backend.name == "cpu"
    assert backend.xp is np
    assert not backend.is_gpu


def test_a_backend_is_its_own_backend():
    backend = get_backend("cpu")
    assert get_backend(backend) is backend


@pytest.mark.parametrize("name", ["tpu", "cpu:1", "auto:0", "gpu:x", "cuda", "", None, 3])
def test_an_unknown_device_names_what_is_expected(name):
    with pytest.raises(ValueError, match=r'unknown device .*; expected "auto", "cpu", "gpu" or "gpu:N"'):
        get_backend(name)


def test_a_gpu_without_cupy_says_what_to_install(no_gpu):
    with pytest.raises(ValueError, match=r"'gpu' was asked for, but CuPy does not import .*gpumlp\[cuda12\]"):
        get_backend("gpu")


def test_a_gpu_without_a_driver_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(None))
    with pytest.raises(ValueError, match=r"no NVIDIA GPU answers .*cudaErrorNoDevice.*nvidia-smi"):
        get_backend("gpu")


@pytest.mark.parametrize(("name", "count"), [("gpu:2", "2 GPUs"), ("gpu:1", "1 GPU,")])
def test_a_gpu_of_too_high_a_number_says_how_many_there_are(name, count, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(int(count[0])))
    with pytest.raises(ValueError, match=f"this machine has {count}"):
        get_backend(name)


def test_auto_takes_the_cpu_where_no_gpu_is(no_gpu):
    assert get_backend("auto").name == get_backend().name == "cpu"
    assert get_backend().describe() == "cpu (NumPy)"


def test_auto_takes_the_cpu_where_cupy_is_there_and_no_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(None))
    assert get_backend("auto").name == "cpu"


def test_auto_takes_the_first_gpu_where_one_answers(monkeypatch):
    cupy = fake_cupy(2)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    backend = get_backend("auto")
    assert backend.name == "gpu:0"
    assert backend.is_gpu
    assert backend.xp is cupy
    assert get_backend("gpu:1").name == "gpu:1"


def test_allocate_gives_zeroed_aligned_bytes(backend):
    for nbytes in (0, 1, 1000):
        memory = backend.allocate(nbytes)
        assert memory.size == nbytes
        assert memory.dtype == np.uint8
        assert not backend.to_host(memory).any()
        place = address(memory)
        assert nbytes == 0 or place % ALIGNMENT == 0


def test_asarray_does_not_copy_what_is_there_already():
    backend = get_backend("cpu")
    x = np.ones((2, 3), "float32")
    assert backend.asarray(x, dtype="float32") is x
    assert backend.asarray(x.T).flags.c_contiguous
    assert backend.to_host(x) is x


def test_round_trip_to_the_device(backend):
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(backend.to_host(backend.asarray(x)), x)
    backend.synchronize()
    with backend.active():
        pass


def test_a_backend_survives_copies_and_pickles_by_name(backend):
    for twin in (copy.deepcopy(backend), pickle.loads(pickle.dumps(backend))):
        assert isinstance(twin, Backend)
        assert twin.name == backend.name
        assert twin.xp is backend.xp


def test_array_module_of_a_host_array_is_numpy():
    assert array_module(np.ones(2)) is np
    assert array_module([1, 2]) is np
