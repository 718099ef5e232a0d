"""CUDA threads on the CPU: barriers, shuffles and orders behave as a GPU's, and what would hang there is an error."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpumlp.kernels.cuda import host
from gpumlp.kernels.cuda.host import HostModule
from gpumlp.kernels.layout import ROW_WIDTH

ORDERS = ("ascending", "descending", "random:1", "random:2")

TEXT = """
struct Row { long long words[36]; };

extern "C" __global__ void gpumlp_places(const __grid_constant__ Row row) {
  long long* out = (long long*)row.words[4];
  out[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x * 1000 + threadIdx.x + 1000000ll * gridDim.x;
}

extern "C" __global__ void order_of_arrival(int* counter, int* out) {
  for (int round = 0; round < 2; round++) {
    out[(round * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x] = (*counter)++;
    __syncthreads();
  }
}

// Reverses the numbers of a block through shared memory; without the barrier a thread may read before another writes.
template <bool BARRIER>
__device__ void reverse(int* v) {
  GPUMLP_DYNAMIC_SHARED(bytes);
  int* shared = (int*)bytes;
  shared[threadIdx.x] = v[threadIdx.x];
  if (BARRIER) __syncthreads();
  v[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void reversed(int* v) { reverse<true>(v); }
extern "C" __global__ void reversed_without_barrier(int* v) { reverse<false>(v); }

extern "C" __global__ void shuffles(int* down, int* across, double* all, float* sums) {
  const int t = threadIdx.x;
  down[t] = __shfl_down_sync(0xffffffffu, t, 5);
  across[t] = __shfl_xor_sync(0xffffffffu, t, 3);
  all[t] = __shfl_sync(0xffffffffu, t + 0.5, 7);
  float sum = t;
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  sums[t] = sum;
}

// Warps do a different number of shuffles between barriers of the block.
extern "C" __global__ void warps_apart(int* out) {
  int v = threadIdx.x;
  for (unsigned k = 0; k < threadIdx.x / 32; k++) v = __shfl_xor_sync(0xffffffffu, v, 1);
  __syncthreads();
  out[threadIdx.x] = v;
}

extern "C" __global__ void votes(int* v, int* out) {
  out[threadIdx.x] = __syncthreads_or(v[threadIdx.x]);
  out[threadIdx.x] += 10 * __syncthreads_or(0);
}

extern "C" __global__ void leaves_early(int* v) {
  if (threadIdx.x == 3) return;
  __syncthreads();
  v[threadIdx.x] = 1;
}
extern "C" __global__ void leaves_the_warp(int* v) {
  if (threadIdx.x == 3) return;
  v[threadIdx.x] = __shfl_xor_sync(0xffffffffu, v[threadIdx.x], 1);
}
extern "C" __global__ void waits_at_two_places() {
  if (threadIdx.x % 2) __syncthreads();
  else __syncwarp();
}
extern "C" __global__ void half_a_warp(int* v) { v[threadIdx.x] = __shfl_xor_sync(0xffffu, v[threadIdx.x], 1); }

extern "C" __global__ void fresh_shared(double* out) {
  GPUMLP_DYNAMIC_SHARED(bytes);
  out[blockIdx.x] = ((double*)bytes)[3];
  __syncthreads();
  ((double*)bytes)[3] = 1.0;
}

extern "C" __global__ void deep(double* out) {  // every callee-saved register and much of a stack across a barrier
  double kept[256];
  for (int k = 0; k < 256; k++) kept[k] = k * 0.5 + threadIdx.x;
  double a = out[0], b = out[1], c = out[2], d = out[3], e = out[4], f = out[5], g = out[6], h = out[7];
  __syncthreads();
  double sum = 0;
  for (int k = 0; k < 256; k++) sum += kept[k];
  out[threadIdx.x] = sum + a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h;
}
"""


@pytest.fixture(scope="module")
def module(host_compiler) -> HostModule:
    return HostModule(text=TEXT)


def call(module, symbol, blocks, threads, order, *arrays, shared=0):
    module.call(symbol, blocks, threads, shared, order, *(a.ctypes.data for a in arrays))


@pytest.mark.parametrize("order", ORDERS)
def test_a_kernel_that_takes_a_row_sees_its_place_in_block_and_grid(module, order):
    out, row = np.zeros(3 * 64, np.int64), np.zeros(ROW_WIDTH, np.int64)
    row[4] = out.ctypes.data
    module.launch("places", row, 3, 64, order)
    np.testing.assert_array_equal(out, (np.arange(3)[:, None] * 1000 + np.arange(64) + 3_000_000).ravel())


def arrivals(module, order):
    counter, out = np.zeros(1, np.int32), np.zeros((2, 2, 64), np.int32)
    call(module, "order_of_arrival", 2, 64, order, counter, out)
    return out


def test_threads_and_blocks_run_in_the_order_asked_for(module):
    ascending = arrivals(module, "ascending")
    np.testing.assert_array_equal(ascending[:, 0].ravel(), np.arange(128))
    np.testing.assert_array_equal(ascending[:, 1].ravel(), np.arange(128, 256))
    descending = arrivals(module, "descending")
    np.testing.assert_array_equal(descending[0, 1], np.arange(64)[::-1])
    np.testing.assert_array_equal(descending[1, 0], np.arange(192, 256)[::-1])


def test_a_random_order_is_that_of_its_seed_and_another_one_after_each_barrier(module):
    first = arrivals(module, "random:5")
    np.testing.assert_array_equal(first, arrivals(module, "random:5"))
    assert (first != arrivals(module, "random:6")).any()
    assert (np.argsort(first[0, 0]) != np.argsort(first[1, 0])).any()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_a_barrier_holds_all_threads_of_a_block(module, order, threads):
    v = np.arange(threads, dtype=np.int32)
    call(module, "reversed", 1, threads, order, v, shared=4 * threads)
    np.testing.assert_array_equal(v, np.arange(threads)[::-1])


def test_a_missing_barrier_shows_as_other_bits_in_another_order(module):
    found = []
    for order in ORDERS:
        v = np.arange(64, dtype=np.int32)
        call(module, "reversed_without_barrier", 1, 64, order, v, shared=256)
        found.append(v)
    assert any((v != found[0]).any() for v in found[1:])


@pytest.mark.parametrize("missing", ["as it is", "without barriers"])
def test_a_barrier_removed_from_a_kernel_of_the_catalogue_shows(host_compiler, missing):
    """The text of the sums of columns, once as it is and once with the barriers of its block-wide total gone."""
    from gpumlp.kernels.cuda import source

    text = source("float32", ["column_sums"])
    if missing == "without barriers":
        start = text.index("void put_totals(")
        end = text.index("\n}\n", start)
        text = text[:start] + text[start:end].replace("__syncthreads();", "") + text[end:]
    dy, found = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32), []
    for order in ORDERS:
        db, row = np.zeros(8, np.float32), np.zeros(ROW_WIDTH, np.int64)
        row[4:8], row[8:12] = (dy.ctypes.data, 100, 8, 8), (db.ctypes.data, 1, 8, 8)
        HostModule(text=text).launch("column_sums", row, 1, 64, order)
        found.append(db)
    differ = any(not np.array_equal(db, found[0], equal_nan=True) for db in found[1:])
    assert differ == (missing == "without barriers")


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_move_values_within_a_warp(module, order):
    t = np.arange(96)
    lane, warp = t % 32, t // 32 * 32
    down, across, sums = np.zeros(96, np.int32), np.zeros(96, np.int32), np.zeros(96, np.float32)
    everyone = np.zeros(96)
    call(module, "shuffles", 1, 96, order, down, across, everyone, sums)
    np.testing.assert_array_equal(down, np.where(lane + 5 < 32, t + 5, t))
    np.testing.assert_array_equal(across, t ^ 3)
    np.testing.assert_array_equal(everyone, warp + 7.5)
    np.testing.assert_array_equal(sums, 32 * warp + 496)


@pytest.mark.parametrize("order", ORDERS)
def test_warps_do_not_wait_for_each_other_at_shuffles(module, order):
    out = np.zeros(128, np.int32)
    call(module, "warps_apart", 1, 128, order, out)
    t = np.arange(128)
    np.testing.assert_array_equal(out, np.where(t // 32 % 2 == 1, t ^ 1, t))


@pytest.mark.parametrize("order", ORDERS)
def test_a_vote_is_the_same_for_all_and_does_not_last(module, order):
    for asked in (None, 0, 63):
        v, out = np.zeros(64, np.int32), np.full(64, -1, np.int32)
        if asked is not None:
            v[asked] = 4
        call(module, "votes", 1, 64, order, v, out)
        np.testing.assert_array_equal(out, int(asked is not None))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("symbol", ["leaves_early", "leaves_the_warp", "waits_at_two_places"])
def test_waiting_for_threads_that_do_not_come_is_an_error(module, symbol, order):
    v = np.zeros(64, np.int32)
    with pytest.raises(RuntimeError, match=f"{symbol}.*some threads wait at a barrier"):
        call(module, symbol, 1, 64, order, v)
    call(module, "reversed", 1, 64, order, v, shared=256)  # and the next launch works


def test_a_shuffle_of_some_lanes_is_refused(module):
    with pytest.raises(RuntimeError, match="names some lanes only"):
        call(module, "half_a_warp", 1, 32, "ascending", np.zeros(32, np.int32))


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 33), (1, 1056)])
def test_a_geometry_that_a_gpu_would_refuse_is_refused(module, blocks, threads):
    with pytest.raises(RuntimeError, match="32 to 1024 threads, a multiple of 32"):
        call(
            module, "votes", blocks, threads, "ascending", np.zeros(2048, np.int32), np.zeros(2048, np.int32)
        )


@pytest.mark.parametrize("order", ["sideways", "random", "random:x", "ascending:1"])
def test_an_order_that_there_is_not_is_refused(module, order):
    with pytest.raises(ValueError, match="choose ascending, descending or random:SEED"):
        call(module, "votes", 1, 32, order)


def test_a_kernel_or_a_row_that_cannot_be_is_refused(module):
    with pytest.raises(ValueError, match="no kernel 'gpumlp_nothing' was compiled"):
        module.launch("nothing", np.zeros(ROW_WIDTH, np.int64), 1, 32)
    with pytest.raises(ValueError, match=r"a row is \(36,\) int64"):
        module.launch("places", np.zeros(ROW_WIDTH), 1, 32)
    with pytest.raises(ValueError, match="13 arguments; a kernel on the host takes at most 12"):
        module.call("votes", 1, 32, 0, "ascending", *range(13))


def test_shared_memory_is_nan_at_the_start_of_each_block(module):
    out = np.zeros(3)
    call(module, "fresh_shared", 3, 32, "ascending", out, shared=64)
    assert np.isnan(out).all()


def test_what_a_thread_holds_lives_through_a_barrier(module):
    out = np.arange(1024, dtype=np.float64)
    call(module, "deep", 1, 1024, "random:3", out)
    # out[0] to out[7] were read before any thread wrote
    held = sum((k + 1) * k for k in range(8))
    np.testing.assert_allclose(out, 255 * 128 * 0.5 + 256 * np.arange(1024) + held)


# --- building -------------------------------------------------------------------------------------------------

SMALL = 'extern "C" __global__ void answer(int* v) {{ v[threadIdx.x] = {answer}; }}'


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gpumlp"


def answer(text: str) -> int:
    v = np.zeros(32, np.int32)
    HostModule(text=text).call("answer", 1, 32, 0, "ascending", v.ctypes.data)
    return int(v[0])


def test_a_text_is_compiled_once_and_again_after_an_edit(host_compiler, cache):
    assert answer(SMALL.format(answer=1)) == 1
    (library,) = cache.iterdir()
    made = library.stat().st_mtime_ns
    assert answer(SMALL.format(answer=1)) == 1
    assert library.stat().st_mtime_ns == made
    assert answer(SMALL.format(answer=2)) == 2
    assert len(list(cache.iterdir())) == 2


def test_an_edit_of_the_kernels_gives_another_library(host_compiler, cache, tmp_path):
    """A copy of the package, so that its text may be edited, in a process of its own."""
    import gpumlp
    from gpumlp.kernels import cuda

    copy, ignored = tmp_path / "site" / "gpumlp", shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(gpumlp.__file__).parent, copy, ignore=ignored)
    shutil.copytree(Path(cuda.__file__).parents[1], copy / "kernels", ignore=ignored, dirs_exist_ok=True)
    probe = "from gpumlp.kernels.cuda import host, source; print(host.build(source('float32', ['copy'])))"

    def built() -> str:
        env = {**os.environ, "PYTHONPATH": str(copy.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(
            [sys.executable, "-c", probe], capture_output=True, text=True, env=env, check=True, cwd=tmp_path
        )
        return result.stdout

    first = built()
    assert built() == first
    header = copy / "kernels" / "cuda" / "host.h"
    header.write_text(header.read_text() + "\n// edited\n")
    second = built()
    text = copy / "kernels" / "cuda" / "products.cuh"
    text.write_text(text.read_text() + "\n// edited\n")
    assert len({first, second, built()}) == 3


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(
    host_compiler, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(host.tempfile, "gettempdir", lambda: str(tmp_path))
    assert answer(SMALL.format(answer=3)) == 3
    (folder,) = tmp_path.glob("gpumlp-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_text_that_does_not_compile_is_one_line_with_the_first_error(host_compiler, cache):
    with pytest.raises(RuntimeError, match=r"does not compile the kernels: .*error.*nothing") as caught:
        HostModule(text="void f() { nothing(); }")
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("wanted", [None, "no-such-compiler"])
def test_a_machine_without_a_compiler_gets_one_clear_error(monkeypatch, tmp_path, wanted):
    monkeypatch.setenv("PATH", str(tmp_path))
    if wanted:
        monkeypatch.setenv("CXX", wanted)
        message = r"no C\+\+ compiler \(CXX=no-such-compiler\); install g\+\+ or clang\+\+"
    else:
        monkeypatch.delenv("CXX", raising=False)
        message = r"no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\); install g\+\+ or clang\+\+"
    with pytest.raises(RuntimeError, match=message):
        HostModule(text=TEXT)
