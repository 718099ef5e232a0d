"""The CUDA text on the CPU: compiled as C++ behind ``host.h`` and launched with threads as fibers.

It is made for tests: exact, checked for missing barriers by the order of its threads, and slow.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from ..layout import ROW_WIDTH
from . import OPERATIONS, source
from .tailored import PLACES

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-strict-aliasing", "-w")
MAX_POINTERS = 12

_ORDERS = {"ascending": 0, "descending": 1, "random": 2}
_FAILURES = {
    1: "some threads wait at a barrier that the others do not come to: they have ended, or wait at another one",
    2: "a launch wants at least one block of 32 to 1024 threads, a multiple of 32",
    3: "a shuffle or __syncwarp names some lanes only; the host build knows whole warps",
}

_LOCK = threading.Lock()

_ENTRY = """
namespace gpumlp_entry {
struct Arguments {
  void* function;
  long long words[%(pointers)d];
};
template <int COUNT>
struct Words {
  long long words[COUNT];
};
template <int COUNT>
static void with_words(const void* a) {
  const Arguments* arguments = static_cast<const Arguments*>(a);
  reinterpret_cast<void (*)(Words<COUNT>)>(arguments->function)(
      *reinterpret_cast<const Words<COUNT>*>(arguments->words[0]));
}
static void with_pointers(const void* a) {
  const long long* w = static_cast<const Arguments*>(a)->words;
  reinterpret_cast<void (*)(%(types)s)>(static_cast<const Arguments*>(a)->function)(%(words)s);
}
}  // namespace gpumlp_entry
extern "C" __attribute__((visibility("default")))
int gpumlp_launch(void* function, const long long* words, int by_value, int blocks, int threads, long long shared_bytes,
                  int order, unsigned seed) {
  gpumlp_entry::Arguments arguments = {function, {}};
  for (int k = 0; k < (by_value ? 1 : %(pointers)d); k++) arguments.words[k] = words[k];
  const auto call = by_value == %(row)d      ? gpumlp_entry::with_words<%(row)d>
                    : by_value == %(places)d ? gpumlp_entry::with_words<%(places)d>
                                             : gpumlp_entry::with_pointers;
  return fibers::launch(call, &arguments, blocks, threads, size_t(shared_bytes), order, seed);
}
"""


def compiler() -> str:
    """Return the path of the C++ compiler: that of ``CXX``, else the first of `COMPILERS` that is there.

    Raises:
        RuntimeError: there is none.
    """
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        if path := shutil.which(name):
            return path
    tried = f"CXX={wanted}" if wanted else ", ".join(COMPILERS)
    raise RuntimeError(
        f"no C++ compiler ({tried}); install g++ or clang++, or name one by CXX, to run CUDA on the CPU"
    )


@functools.cache
def _version(path: str) -> str:
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout


def cache_folder() -> Path:
    """Return where compiled texts are kept: in the user's cache, or in a temporary folder of the user's own."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "gpumlp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = Path(tempfile.gettempdir()) / f"gpumlp-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # a library that another user wrote is not loaded
        return Path(tempfile.mkdtemp(prefix="gpumlp-"))
    return folder


def build(text: str) -> Path:
    """Compile a text of CUDA as a shared library, or find the one compiled before.

    Args:
        text: one translation unit that needs no header.

    Returns:
        The path of the library, named by a hash of the text, of ``host.h`` and of the compiler.

    Raises:
        RuntimeError: there is no C++ compiler, or it refuses the text.
    """
    cxx = compiler()
    whole = Path(__file__).with_name("host.h").read_text(encoding="utf-8") + text + _entry()
    key = "\0".join([whole, cxx, _version(cxx), *FLAGS, platform.machine()])
    library = cache_folder() / f"host-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        unit, made = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        unit.write_text(whole, encoding="utf-8")
        result = subprocess.run(
            [cxx, *FLAGS, str(unit), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if "error" in line] or [result.stderr]
            raise RuntimeError(f"{cxx} does not compile the kernels: {lines[0]}")
        os.replace(made, library)  # whole or not at all, whoever else builds it
    return library


def _entry() -> str:
    places = range(MAX_POINTERS)
    return _ENTRY % {
        "pointers": MAX_POINTERS,
        "row": ROW_WIDTH,
        "places": PLACES,
        "types": ", ".join("long long" for _ in places),
        "words": ", ".join(f"w[{k}]" for k in places),
    }


class HostModule:
    """A compiled text of CUDA whose kernels run on the CPU.

    Args:
        dtype: "float32" or "float64", for all operations and the resident kernel.
        text: another translation unit in place of those.
        large: whether operands may have more than `MOST_ELEMENTS`.

    Raises:
        RuntimeError: there is no C++ compiler, or it refuses the text.
    """

    def __init__(self, dtype: str = "float32", text: str | None = None, large: bool = False) -> None:
        whole = source(dtype, walked=OPERATIONS, chained=OPERATIONS, large=large) if text is None else text
        self.path = build(whole)
        self._library = ctypes.CDLL(str(self.path))
        self._launch = self._library.gpumlp_launch
        integer = ctypes.c_int
        self._launch.argtypes = [
            *(ctypes.c_void_p, ctypes.c_void_p, integer, integer, integer),
            *(ctypes.c_longlong, integer, ctypes.c_uint),
        ]

    def launch(self, name: str, row: np.ndarray, blocks: int, threads: int, order: str = "ascending") -> None:
        """Run the kernel of an operation.

        Args:
            name: in `OPERATIONS`.
            row: of the linked program, (36,) int64.
            blocks: of the grid.
            threads: of a block, a multiple of 32 up to 1024.
            order: of threads between barriers, and of blocks: "ascending", "descending" or "random:SEED".

        Raises:
            ValueError: a row, an order or a name that cannot be.
            RuntimeError: threads wait for others that do not come; it says why.
        """
        if row.shape != (ROW_WIDTH,) or row.dtype != np.int64 or not row.flags.c_contiguous:
            raise ValueError(f"a row is ({ROW_WIDTH},) int64, contiguous; given {row.shape} {row.dtype}")
        self._run_with(f"gpumlp_{name}", row, blocks, threads, order)

    def call_with_places(
        self, symbol: str, places: np.ndarray, blocks: int, threads: int, order: str = "ascending"
    ) -> None:
        """Run a kernel of `tailored.launched`, which is given addresses, (PLACES,) int64; see `launch`."""
        assert places.shape == (PLACES,)
        assert places.dtype == np.int64
        self._run_with(symbol, places, blocks, threads, order)

    def _run_with(self, symbol: str, value: np.ndarray, blocks: int, threads: int, order: str) -> None:
        """Run a kernel that is given int64 by value."""
        words = np.array([value.ctypes.data], np.int64)
        self._run(symbol, words, value.size, blocks, threads, 0, order)

    def call(
        self, symbol: str, blocks: int, threads: int, shared_bytes: int, order: str, *pointers: int
    ) -> None:
        """Run another ``extern "C" __global__`` function; `launch` tells the rest.

        Args:
            symbol: its name.
            shared_bytes: of dynamic shared memory, NaN at the start of each block.
            pointers: its arguments, addresses or integers, at most 12.
        """
        if len(pointers) > MAX_POINTERS:
            raise ValueError(f"{len(pointers)} arguments; a kernel on the host takes at most {MAX_POINTERS}")
        words = np.zeros(MAX_POINTERS, np.int64)
        words[: len(pointers)] = pointers
        self._run(symbol, words, 0, blocks, threads, shared_bytes, order)

    def _run(
        self, symbol: str, words: Any, by_value: int, blocks: int, threads: int, shared: int, order: str
    ) -> None:
        kind, _, seed = order.partition(":")
        if kind not in _ORDERS or (kind == "random") != seed.isdigit():
            raise ValueError(f"order is {order!r}; choose ascending, descending or random:SEED")
        try:
            function = ctypes.cast(getattr(self._library, symbol), ctypes.c_void_p)
        except AttributeError:
            raise ValueError(f"no kernel {symbol!r} was compiled") from None
        with _LOCK:  # the threads of a block are global in the library, which is loaded once
            code = self._launch(
                function, words.ctypes.data, by_value, blocks, threads, shared, _ORDERS[kind], int(seed or 0)
            )
        if code:
            raise RuntimeError(f"{symbol}, {blocks} blocks of {threads} threads: {_FAILURES[code]}")
