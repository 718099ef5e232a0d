"""Loading object files: the same function whoever loads it, and what is not known is left to LLVM."""

import ctypes
import struct
import sys

import numpy as np
import pytest

from gpumlp.kernels.cpu import address, cache, compiling, loading
from gpumlp.kernels.layout import ROW_WIDTH

ELF = pytest.mark.skipif(
    sys.platform != "linux" or loading.platform.machine() != "x86_64", reason="LLVM loads the kernels here"
)


def code_of(kernel: str, dtype: str) -> tuple[bytes, str]:
    address(kernel, dtype)
    code = cache.read(kernel, dtype)
    symbol = f"gpumlp_{kernel}_{dtype}"
    return (code if code is not None else compiling.compile_kernel(kernel, dtype, symbol)), symbol


def apply(place: int, x: np.ndarray, scalar: float = 0.0) -> np.ndarray:
    """Call an element-wise kernel."""
    y, scalars = np.zeros_like(x), np.full(8, scalar)
    row, ctx = np.zeros(ROW_WIDTH, np.int64), np.zeros(16, np.int64)
    ctx[1], row[2] = 1, scalars.ctypes.data
    row[4:8], row[8:12] = (x.ctypes.data, 1, x.size, x.size), (y.ctypes.data, 1, x.size, x.size)
    loading.function_at(place)(row.ctypes.data, ctx.ctypes.data, 0)
    return y


@ELF
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", ["relu", "tanh", "gelu", "softplus", "silu", "mish"])
def test_both_loaders_give_the_same_function(kernel, dtype):
    """In float64 these call the C library: exp, tanh, erf, log1p."""
    x = np.linspace(-6, 6, 37, dtype=dtype)
    code, symbol = code_of(kernel, dtype)
    found = apply(loading._load_elf(code, symbol), x, 1.0)
    wanted = apply(loading._load_with_llvm(code, symbol), x, 1.0)
    np.testing.assert_array_equal(found, wanted)
    assert np.ptp(found) > 1


@ELF
def test_a_reference_of_an_unknown_kind_is_left_to_llvm(monkeypatch):
    code, symbol = code_of("tanh", "float64")
    wanted = apply(loading.load(code, symbol), np.ones(3))
    monkeypatch.setattr(loading, "R_64", 99)
    with pytest.raises(loading.UnsupportedObjectError, match="relocation of kind 1"):
        loading._load_elf(code, symbol)
    np.testing.assert_array_equal(apply(loading.load(code, symbol), np.ones(3)), wanted)


@ELF
def test_a_function_that_the_process_does_not_have_is_left_to_llvm():
    assert loading.external("tanh") != loading.external("exp")
    with pytest.raises(loading.UnsupportedObjectError, match="no_such_function"):
        loading.external("no_such_function")


@ELF
def test_machine_code_cannot_be_written_once_it_is_loaded():
    code, symbol = code_of("relu", "float32")
    place = loading._load_elf(code, symbol)
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, rights = line.split()[:2]
            first, last = (int(n, 16) for n in span.split("-"))
            if first <= place < last:
                assert rights.startswith("r-x")
                return
    pytest.fail("the code lies nowhere")


@ELF
def test_a_system_that_lets_no_memory_be_executed_is_named(monkeypatch):
    class Library:
        def mprotect(self, *arguments: object) -> int:
            return -1

    code, symbol = code_of("relu", "float32")
    monkeypatch.setattr(loading, "external", lambda name: 0)
    monkeypatch.setattr(loading.ctypes, "CDLL", lambda *_, **__: Library())
    with pytest.raises(OSError, match="no memory be executed"):
        loading._load_elf(code, symbol)


@ELF
def test_relocations_are_what_the_abi_says():
    """System V ABI, AMD64: S + A in 64 bits, S + A - P in 64 and in 32."""
    memory = loading.mmap.mmap(-1, loading.PAGE)
    base, target = 0x7F0000001000, 0x7F0000000FF0
    loading._relocate(memory, base, 8, loading.R_64, target)
    loading._relocate(memory, base, 16, loading.R_PC64, target)
    loading._relocate(memory, base, 24, loading.R_PC32, target)
    loading._relocate(memory, base, 32, loading.R_PLT32, target)
    assert struct.unpack_from("<Q", memory, 8) == (target,)
    assert struct.unpack_from("<q", memory, 16) == (-0x10 - 16,)
    assert struct.unpack_from("<i", memory, 24) == (-0x10 - 24,)
    assert struct.unpack_from("<i", memory, 32) == (-0x10 - 32,)
    with pytest.raises(loading.UnsupportedObjectError):  # too far away for 32 bits
        loading._relocate(memory, base, 40, loading.R_PC32, 0x1000)


def test_functions_of_python_let_the_interpreter_go():
    """ctypes does so for what it calls by `CFUNCTYPE`, not by `PYFUNCTYPE`."""
    function = loading.function_at(address("walk_calls", "float32"))
    assert not function._flags_ & ctypes._FUNCFLAG_PYTHONAPI  # type: ignore[attr-defined]
