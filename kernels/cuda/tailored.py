"""Kernels for one kind of network, in which its rows are constants: the resident kernel, and launches of their own.

The compiler then knows every size, place and scalar: of an operation what this row does is left, without the questions
that tell it from others. On a model of an H200's multiprocessor a step of a small network has half of the instructions.
Each number is made by the same operations in the same order as by a general kernel: bits are the same.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import layout
from . import CHAIN_THREADS, FILES, MAX_CHAIN, OPERATIONS, THREADS, TYPES, by_one_block, constants, text

IN_SHARED = -1
"""Stands for shared memory, where otherwise the number of a piece of memory stands."""

_BY_CODE = {operation.code: name for name, operation in OPERATIONS.items()}


@dataclass(frozen=True)
class Rows:
    """A linked program whose addresses are told by pieces of memory.

    Attributes:
        words: (rows, ROW_WIDTH) int64; an address is that within its piece.
        pieces: of the same shape, the number of each address's piece, from 1, or `IN_SHARED`; 0 for other words.
        scalars: of the rows, (rows, MAX_SCALARS).
    """

    words: np.ndarray
    pieces: np.ndarray
    scalars: np.ndarray


def tailored(dtype: str, programs: Sequence[Rows], n_pieces: int, threads: int, large: bool = False) -> str:
    """Return the text of a kernel ``gpumlp_resident`` for networks that have these programs.

    Args:
        dtype: of `TYPES`.
        programs: begin, batch and last, see `Network` in network.cuh.
        n_pieces: pieces of memory, and one more: of the table at ``Network.pieces``, int64.
        threads: of the block.
        large: whether some operand has more than `MOST_ELEMENTS`.
    """
    real = TYPES[dtype]
    functions, cases = [], []
    for p, rows in enumerate(programs):
        calls = []
        for i in range(len(rows.words)):
            name = _BY_CODE[int(rows.words[i, layout.FUNCTION])]
            functions.append(_function(f"perform_{name}__{p}_{i}", name, real, rows, i))
            calls.append(f"perform_{name}__{p}_{i}(at); __syncthreads();")
        cases.append(f"    case {p}: {' '.join(calls)} break;")
    counts = ", ".join(str(len(rows.words)) for rows in programs)
    return "\n".join(
        [
            constants(dtype, large),
            _KNOWN,
            f"constexpr Threads known_threads = {{{threads}}};",
            *map(_inlined, FILES),
            text("network"),
            *functions,
            "__device__ __noinline__ void walk(size_t at, int program) {\n  switch (program) {",
            *cases,
            "  }\n}",
            _PROGRAMS % {"counts": counts, "pieces": n_pieces},
            text("walker"),
        ]
    )


_KNOWN = "#define GPUMLP_CONSTANT_ROWS\nstruct Threads { unsigned x; };\n#define blockDim known_threads"
"""In place of the launch's own, so that what depends on how many threads a block has is known too."""

_PROGRAMS = """
struct Programs {
  size_t at;

  __device__ Programs(const Network& network, char* shared) : at(__cvta_generic_to_shared(shared)) {
    copy_bytes(shared, (const char*)network.pieces, %(pieces)d * (long long)sizeof(long long));
  }
  __device__ void place(const Stage*, int, char*) {}
  __device__ bool has(int p) const {
    constexpr int counts[] = {%(counts)s};
    return counts[p] > 0;
  }
  __device__ void run(int p) const { walk(at, p); }
};
"""


@functools.cache
def _inlined(file: str) -> str:
    """A file of the text whose operations go into each function that calls them."""
    return re.sub(
        r"__device__ (void \w+\(const Row& row, Block block)", r"__device__ __forceinline__ \1", text(file)
    )


def _function(function: str, name: str, real: str, rows: Rows, i: int) -> str:
    """A row as a function; `at` is where shared memory begins, and there the table of pieces."""
    words, pieces = rows.words[i], rows.pieces[i]

    def address(k: int) -> str:
        if pieces[k] == IN_SHARED:
            return f"(long long)(shared + {words[k]})"
        return f"((const long long*)shared)[{pieces[k]}] + {words[k]}" if pieces[k] else "0"

    return (
        f"__device__ __noinline__ void {function}(size_t at) {{\n"
        # it begins at 16 bytes, said so that a compiler takes it for known
        f"  char* shared = (char*)__cvta_shared_to_generic(at & ~(size_t)15);\n"
        f"{_row(words, rows.scalars[i], address)}"
        f"  {by_one_block(name, real)}(row, Block{{0, 1}});\n}}\n"
    )


def _row(words: np.ndarray, scalars: np.ndarray, address: Callable[[int], str]) -> str:
    """A row as a constant of a function; `address` says what stands for that of a word."""
    operands = []
    for first in range(layout.OPERANDS, layout.ROW_WIDTH, layout.OPERAND_WIDTH):
        numbers = ", ".join(map(str, words[first + 1 : first + layout.OPERAND_WIDTH]))
        operands.append(f"{{{address(first)}, {numbers}}}")
    numbers = ", ".join(map(_number, scalars.tolist()))
    code, flags = words[layout.FUNCTION], words[layout.FLAGS]
    return (
        f"  const double scalars[] = {{{numbers}}};\n"
        f"  const Row row = {{{code}, {flags}, scalars, (char*)({address(layout.SCRATCH)}),\n"
        f"                   {{{', '.join(operands)}}}}};\n"
    )


def _number(x: float) -> str:
    if math.isinf(x):
        return "INFINITE" if x > 0 else "-INFINITE"
    return x.hex()


# --- launches of their own ---------------------------------------------------------------------------------------

ADDRESSES = (*range(layout.OPERANDS, layout.ROW_WIDTH, layout.OPERAND_WIDTH), layout.SCRATCH)
"""Words of a row that are addresses, in the order in which a launch is given them."""

PLACES = MAX_CHAIN * len(ADDRESSES)
"""Addresses that a launch is given, those of a row behind those of another."""


@dataclass(frozen=True)
class Group:
    """Rows that one launch does, one behind the other; several by one block.

    Attributes:
        name: of the kernel.
        words: (rows, ROW_WIDTH) int64; an address is told by the bytes that it is a multiple of, to 16; 0 for none.
        scalars: of the rows, (rows, MAX_SCALARS).
        blocks: that share a row.
    """

    name: str
    words: np.ndarray
    scalars: np.ndarray
    blocks: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return CHAIN_THREADS if len(self.words) > 1 else THREADS


def launched(dtype: str, groups: Sequence[Group], large: bool = False) -> str:
    """Return the text of a kernel for each of some groups of rows; see `Kernels.launch_places`.

    Args:
        dtype: of `TYPES`.
        groups: each with a name of its own.
        large: whether some operand has more than `MOST_ELEMENTS`.
    """
    parts = [constants(dtype, large), f"struct Places {{\n  long long at[{PLACES}];\n}};", _KNOWN]
    for threads in sorted({group.threads for group in groups}):
        kernels = [_kernel(group, TYPES[dtype]) for group in groups if group.threads == threads]
        known = f"constexpr Threads known_threads = {{{threads}}};"
        parts += [f"namespace of_{threads}_threads {{", known, *map(_inlined, FILES), *kernels, "}"]
    return "\n".join(parts)


def _kernel(group: Group, real: str) -> str:
    """A group as a kernel that is given the addresses by value."""
    bodies = []
    for i, (words, scalars) in enumerate(zip(group.words, group.scalars, strict=True)):
        name = _BY_CODE[int(words[layout.FUNCTION])]
        first = i * len(ADDRESSES)
        # what an address is a multiple of, said so that a compiler takes it for known
        at = {
            k: f"places.at[{first + n}] & ~{words[k] - 1}ll" if words[k] else "0"
            for n, k in enumerate(ADDRESSES)
        }
        if name == "matmul_pair":
            bodies.append(_pair(words, scalars, group.blocks, at, real))
            continue
        block = f"Block{{(int)blockIdx.x, {group.blocks}}}" if group.blocks > 1 else "Block{0, 1}"
        bodies.append(f"{{\n{_row(words, scalars, at.__getitem__)}  {name}<{real}>(row, {block});\n}}\n")
    at_once = OPERATIONS[name].at_once if len(bodies) == 1 else 0
    bounds = f"{group.threads}, {at_once}" if at_once else f"{group.threads}"
    return (
        f'extern "C" __global__ void __launch_bounds__({bounds}) '
        f"{group.name}(const __grid_constant__ Places places) {{\n"
        f"{'__syncthreads();'.join(bodies)}}}\n"
    )


def _pair(words: np.ndarray, scalars: np.ndarray, blocks: int, at: Mapping[int, str], real: str) -> str:
    """Two products in one launch, each with a row of its own; see `matmul_pair` in products.cuh."""
    firsts, half = int(scalars[0]), layout.OPERAND_WIDTH * layout.MAX_OPERANDS // 2
    second = words.copy()
    second[layout.FLAGS] >>= layout.SECOND_BITS
    second[layout.OPERANDS : -half] = words[layout.OPERANDS + half :]
    at_first, at_second = dict(at), {k: at.get(k + half, "0") for k in ADDRESSES}
    for n, of_product in enumerate((at_first, at_second)):
        watched = int(words[layout.FLAGS]) >> layout.WATCHED_BIT + n & 1
        of_product[layout.SCRATCH] = at[layout.SCRATCH] if watched else "0"
    rows = _row(words, scalars, at_first.__getitem__), _row(second, scalars, at_second.__getitem__)
    shares = f"(int)blockIdx.x, {firsts}", f"(int)blockIdx.x - {firsts}, {blocks - firsts}"
    one, other = (
        f"{{\n{row}  matmul<{real}>(row, Block{{{share}}});\n}}"
        for row, share in zip(rows, shares, strict=True)
    )
    return f"  if ((int)blockIdx.x < {firsts}) {one} else {other}\n"
