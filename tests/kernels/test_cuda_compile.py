"""The text of the kernels compiles for every architecture by NVRTC, which needs neither a driver nor a GPU.

It comes from NVIDIA's wheel (nvidia-cuda-nvrtc, or nvidia-cuda-nvrtc-cu12 for CUDA 12); without it the tests that
compile are skipped. Each architecture and type and each operation is compiled at least once; where operations stand
together in one kernel they are functions of that, and not compiled once more as kernels of their own.
"""

import ctypes
import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpumlp.kernels import IN_BFLOAT16
from gpumlp.kernels.cuda import MAX_CHAIN, MAX_SCALARS, OPERATIONS, OPTIONS, SCRATCH_BYTES, source
from gpumlp.kernels.layout import ROW_WIDTH

NAMES = sorted(OPERATIONS)
# What every resident network calls.
CORE = ("gather_rows", "matmul", "bias_relu", "mse", "relu_grad_bias", "adam", "advance")
STATIC_SHARED = 48 << 10  # that a kernel may have without being allowed to
# The last layer of most, in float32.
LAST = ("bias_relu_narrow", "narrow_relu_grad_sums", "column_sums")
# What may read or write bfloat16, and updates; of the many forms with a narrow product those that want most registers.
NARROW = {"bias_gelu_narrow", "bias_mish_narrow", "narrow_mish_grad", "narrow_relu_grad_sums"}
HALVES = sorted(
    {name for name in IN_BFLOAT16 if name in OPERATIONS and "narrow" not in name}
    | {*NARROW, "cast_bf16", "adam", "adam_cast"}
)
# What a chain may be made of: one operation of each kind.
SHORT = (
    *(
        "shuffle",
        "gather_rows",
        "gather_labels",
        "bias_gelu",
        "gelu_grad_bias",
        "softmax_cross_entropy",
        "mse",
        "small_matmul",
    ),
    *(
        "check_loss",
        "batch_norm",
        "layer_norm_grad",
        "dropout",
        "column_sums",
        "check_gradients",
        "adam",
        "advance",
    ),
)
UNITS = [
    *((arch, "float32", NAMES[start::3], "") for start, arch in enumerate(("sm_80", "sm_90", "sm_100"))),
    *(("sm_75", "float64", NAMES[start::3], "") for start in range(3)),
    ("sm_90", "float32", (*CORE, *LAST), "resident"),
    ("sm_86", "float64", CORE, "resident"),
    *((arch, "bf16", HALVES[start::2], "") for start, arch in enumerate(("sm_80", "sm_90"))),
    *((arch, dtype, SHORT, "chain") for arch, dtype in (("sm_75", "float32"), ("sm_90", "bf16"))),
]


@functools.cache
def nvrtc() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*[0-9]"), reverse=True):
            return ctypes.CDLL(str(path))
    pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc): the kernels are not compiled")


def checked(code: int) -> None:
    assert code == 0, f"NVRTC fails with code {code}"


def compile_for(arch: str, text: str) -> tuple[bytes, str]:
    """The machine code, and what NVRTC and ptxas say."""
    library, program = nvrtc(), ctypes.c_void_p()
    checked(library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None))

    def read(what: str) -> bytes:
        size = ctypes.c_size_t()
        checked(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        checked(getattr(library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    options = [f"-arch={arch}".encode(), b"--ptxas-options=-v", *(option.encode() for option in OPTIONS)]
    failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = read("ProgramLog").decode().rstrip("\0\n")
    assert not failed, f"NVRTC refuses the text for {arch}:\n{log[:2000]}"
    cubin = read("CUBIN")
    checked(library.nvrtcDestroyProgram(ctypes.byref(program)))
    return cubin, log


def spills(log: str) -> dict[str, int]:
    """Bytes that each function stores into local memory because registers do not suffice."""
    found = re.findall(r"Function properties for (\w+)\n.*?(\d+) bytes spill stores", log)
    # functions of C++ have mangled names: _Z<length><name>...
    return {re.sub(r"^_Z\d+(perform_\w+)[my]$", r"\1", name): int(count) for name, count in found}


def unit_text(dtype: str, names: Sequence[str], together: str) -> str:
    """The text of a unit, in which each operation stands once."""
    if together == "chain":
        return source(dtype, (), chained=names)
    return source(dtype, (), walked=names) if together == "resident" else source(dtype, names)


def test_each_architecture_and_each_operation_is_compiled():
    assert {unit[0] for unit in UNITS} == {"sm_75", "sm_80", "sm_86", "sm_90", "sm_100"}
    for dtype in ("float32", "float64"):
        alone = [unit for unit in UNITS if unit[1] == dtype and not unit[3]]
        assert {name for unit in alone for name in unit[2]} == set(OPERATIONS)
    assert {name for unit in UNITS if unit[1] == "bf16" and not unit[3] for name in unit[2]} == set(HALVES)


@pytest.mark.parametrize(
    ("arch", "dtype", "names", "together"), UNITS, ids=lambda v: str(v) if isinstance(v, str) else ""
)
def test_the_kernels_compile_without_spilling_registers(
    arch: str, dtype: str, names: list[str], together: str
) -> None:
    cubin, log = compile_for(arch, unit_text(dtype, names, together))
    assert cubin[:4] == b"\x7fELF"
    assert "warning" not in log
    found = spills(log)
    for name in names:
        function = f"perform_{name}" if together else f"gpumlp_{name}"
        assert OPERATIONS[name].spills or found[function] == 0, f"{function}: {found[function]} bytes"
    shared = [int(size) for size in re.findall(r"(\d+) bytes smem", log)]
    rows = MAX_CHAIN * 8 * (ROW_WIDTH + MAX_SCALARS) if together == "chain" else 0
    if not together and any(name == "large_matmul" or name in NARROW for name in names):
        assert max(shared) <= STATIC_SHARED, "some have more, as kernels of their own"
    else:
        assert max(shared) == SCRATCH_BYTES + rows, (
            "operations share one scratch, and a chain has its rows and scalars"
        )
    if together:
        # some of their own addresses may wait in local memory while an operation runs
        assert found[f"gpumlp_{together}"] <= 64


def test_the_text_is_the_same_every_time_and_in_every_order_of_names() -> None:
    given = source("float32", ["relu"], walked=["relu", "adam", "matmul"])
    assert given == source("float32", iter(["relu"]), walked=iter(["matmul", "relu", "adam", "relu"]))
    assert given != source("float64", ["relu"], walked=["relu", "adam", "matmul"])


def test_the_text_has_what_is_asked_for_and_no_more() -> None:
    walked = source("float32", (), walked=["relu", "adam"])
    assert "gpumlp_resident(" in walked
    assert "perform_adam(" in walked
    assert "gpumlp_adam(" not in walked
    assert "gpumlp_chain(" not in walked
    chained = source("float32", ["relu"], chained=["adam", "advance"])
    assert "gpumlp_chain(" in chained
    assert "gpumlp_relu(" in chained
    assert "perform_relu(" not in chained
    assert "gpumlp_resident(" not in chained
    assert all(f"gpumlp_{name}(" in source("float64") for name in OPERATIONS)


@pytest.mark.parametrize(
    ("dtype", "names", "message"),
    [
        ("float16", None, "dtype is 'float16'.*float32, float64, bf16"),
        ("float32", ["reluu"], "no operation 'reluu'"),
    ],
)
def test_a_type_or_an_operation_that_there_is_not_is_refused(dtype: str, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(dtype, names)
