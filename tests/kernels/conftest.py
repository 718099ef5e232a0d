"""What the tests of kernels share: calling one by itself, with rows of addresses; a GPU of stand-ins."""

import ctypes
import functools
import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.arena import Arena
from gpumlp.backend import Backend, register_backend, unregister_backend
from gpumlp.executors.linking import encode, instruct, work_bytes
from gpumlp.executors.unfolding import encode_steps, scratch_bytes, unfold
from gpumlp.kernels import kernel_spec
from gpumlp.kernels.cpu import address
from gpumlp.kernels.cuda import OPERATIONS, TYPES, cupy_device, host, source
from gpumlp.kernels.layout import WORK, WORKER, WORKERS
from gpumlp.program import Call, Memory, Operand, Program
from tests.kernels.cases import SHARING
from tests.kernels.stand_in_cublaslt import COMPUTE, CUDA_TYPES, OPERATION, FakeCublasLt
from tests.kernels.stand_in_cupy import CUDA, fake_cupy

_signature = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def _operand(name: str, array: np.ndarray | None) -> Operand | None:
    if array is None:
        return None
    stride = array.strides[0] // array.itemsize if array.ndim == 2 and len(array) > 1 else None
    width = array.shape[1] if array.ndim == 2 else None
    return Operand(name, "", array.shape, str(array.dtype), stride=None if stride == width else stride)


def _base(array: np.ndarray) -> np.ndarray:
    """The memory of a matrix whose rows lie apart, as whole rows of that width."""
    if array.ndim != 2 or array.flags.c_contiguous:
        return array
    stride = array.strides[0] // array.itemsize
    return np.lib.stride_tricks.as_strided(
        array, (len(array), stride), (stride * array.itemsize, array.itemsize)
    )


def _run_compiled(
    kernel: str,
    arrays: Mapping[str, np.ndarray | None],
    scalars: Mapping[str, Any],
    dtype: str,
    workers: int = 1,
) -> None:
    call = Call(kernel, tuple(_operand(name, array) for name, array in arrays.items()), scalars)
    memory = Memory({}, {name: _base(array) for name, array in arrays.items() if array is not None})
    nothing = Arena(gm.get_backend("cpu"), ())
    instructions = instruct(Program((call,), {}, frozenset(), 1, dtype), memory, nothing)
    keep: list[Any] = []
    functions = [address(instruction.kernel, dtype) for instruction in instructions]
    (row,) = encode(instructions, functions, keep)
    work = np.full(work_bytes(instructions) // 8 + 8, np.nan)  # what is read there before it is written shows
    for worker in range(workers):
        ctx = np.zeros(16, np.int64)
        ctx[[WORKER, WORKERS, WORK]] = worker, workers, work.ctypes.data
        _signature(functions[0])(row.ctypes.data, ctx.ctypes.data, 0)


@pytest.fixture(scope="session")
def run_compiled() -> Callable[..., None]:
    """Run a compiled kernel on arrays: ``run_compiled(kernel, {operand: array}, scalars, dtype, workers)``.

    A matrix may be some columns of a wider one. The workers' shares are done one after the other.
    """
    return _run_compiled


@pytest.fixture(scope="session")
def host_compiler() -> str:
    """The C++ compiler that builds CUDA for the CPU; without one the test is skipped."""
    try:
        return host.compiler()
    except RuntimeError as error:
        pytest.skip(str(error))


def _run_on_host(
    module: host.HostModule,
    kernel: str,
    arrays: Mapping[str, np.ndarray | None],
    scalars: Mapping[str, Any],
    dtype: str,
    blocks: int,
    threads: int,
    order: str,
) -> None:
    call = Call(kernel, tuple(_operand(name, array) for name, array in arrays.items()), scalars)
    memory = Memory({}, {name: _base(array) for name, array in arrays.items() if array is not None})
    nothing = Arena(gm.get_backend("cpu"), ())
    steps = unfold(Program((call,), {}, frozenset(), 1, dtype), memory, nothing, 1, lambda _: False)
    for step in list(steps):
        step.blocks = 1 if OPERATIONS[step.operation].grid == "one" else blocks
        if step.operation == "sum_squares":
            step.scratch = 8 * blocks
        elif "ring" in kernel_spec(kernel).updates and step.scratch:
            step.scratch = 8 * (2 + blocks)
        elif step.operation == "clip_by_norm":
            step.scalars = [step.scalars[0], blocks]
    scratch = np.full(scratch_bytes(steps) // 8 + 8, np.nan)  # what is read there before it is written shows
    if "ring" in kernel_spec(kernel).updates:
        scratch[1] = 0  # the ticket of its blocks
    values = np.zeros((len(steps), 8))
    rows, values[...] = encode_steps(steps, values.ctypes.data, scratch.ctypes.data)
    for step, row in zip(steps, rows, strict=True):
        module.launch(step.operation, row, step.blocks, threads, order)
    if "ring" in kernel_spec(kernel).updates:
        assert scratch[1] == 0, "the ticket is not left as it was"


@pytest.fixture(scope="session")
def run_cuda(host_compiler) -> Callable[..., None]:
    """Run a kernel of CUDA on the CPU: ``run_cuda(kernel, {operand: array}, scalars, dtype, blocks, threads, order)``.

    A matrix may be some columns of a wider one. A loss is all of its operations.
    """
    modules = {dtype: host.HostModule(dtype) for dtype in TYPES}

    def run(kernel, arrays, scalars, dtype, blocks=1, threads=32, order="ascending"):
        _run_on_host(modules[dtype], kernel, arrays, scalars, dtype, blocks, threads, order)

    return run


@pytest.fixture(scope="session")
def run_cuda_large(host_compiler) -> Callable[..., None]:
    """The same in float32 with kernels that count elements by 64 bits, those of `SHARING`."""
    names = (*SHARING, "sum_squares", "sum_weights")
    return functools.partial(_run_on_host, host.HostModule(text=source("float32", names, large=True)))


@pytest.fixture(scope="session")
def run_cuda_plainly(host_compiler) -> Callable[..., None]:
    """The same of "matmul" in float32, as a GPU does it whose tensor cores take no floats."""
    text = f"#define GPUMLP_WITHOUT_TENSOR_CORES\n{source('float32', ['matmul'])}"
    return functools.partial(_run_on_host, host.HostModule(text=text))


@pytest.fixture
def library(monkeypatch, host_compiler):
    """CuPy's and nvmath's stand-ins in the place of the modules; the one of cuBLASLt."""
    lt, nvmath = FakeCublasLt(), types.ModuleType("nvmath")
    nvmath.__spec__ = importlib.machinery.ModuleSpec("nvmath", None)
    nvmath.__dict__["CudaDataType"] = CUDA_TYPES
    cublas = types.SimpleNamespace(ComputeType=COMPUTE, Operation=OPERATION)
    modules = {"cupy": fake_cupy(), "nvmath": nvmath, "nvmath.bindings": types.ModuleType("nvmath.bindings")}
    modules |= {"nvmath.bindings.cublasLt": lt, "nvmath.bindings.cublas": cublas}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(cupy_device, "_DEVICES", {})
    CUDA.__init__()  # type: ignore[misc]
    return lt


@pytest.fixture
def gpu(library):
    """Make a GPU of a number: ``gpu(1)`` returns its backend, "fake:1"."""
    made = []

    def make(index=0):
        device = cupy_device.cupy_device(index)
        made.append(f"fake:{index}")
        register_backend(Backend(made[-1], sys.modules["cupy"], device))
        return gm.get_backend(made[-1])

    yield make
    for name in made:
        unregister_backend(name)
