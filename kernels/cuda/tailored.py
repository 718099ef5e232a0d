"""The resident kernel for one kind of network: its programs as functions, in which a row is constants.

The compiler then knows every size, place and scalar: of an operation what this row does is left, without the questions
that tell it from others. On a model of an H200's multiprocessor a step of a small network has half of the instructions.
Each number is made by the same operations in the same order as by the general kernel: bits are the same.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import layout
from . import FILES, OPERATIONS, TYPES, constants, text

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
            # as if it were the launch's own: what depends on it is known
            f"struct Threads {{ unsigned x; }};\nconstexpr Threads known_threads = {{{threads}}};",
            "#define blockDim known_threads",
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

    operands = []
    for first in range(layout.OPERANDS, layout.ROW_WIDTH, layout.OPERAND_WIDTH):
        numbers = ", ".join(map(str, words[first + 1 : first + layout.OPERAND_WIDTH]))
        operands.append(f"{{{address(first)}, {numbers}}}")
    scalars = ", ".join(map(_number, rows.scalars[i].tolist()))
    code, flags = words[layout.FUNCTION], words[layout.FLAGS]
    kind = f"{real}, true" if name == "matmul" else real
    return (
        f"__device__ __noinline__ void {function}(size_t at) {{\n"
        f"  char* shared = (char*)__cvta_shared_to_generic(at);\n"
        f"  const double scalars[] = {{{scalars}}};\n"
        f"  const Row row = {{{code}, {flags}, scalars, (char*)({address(layout.SCRATCH)}),\n"
        f"                   {{{', '.join(operands)}}}}};\n"
        f"  {name}<{kind}>(row, Block{{0, 1}});\n}}\n"
    )


def _number(x: float) -> str:
    if math.isinf(x):
        return "INFINITE" if x > 0 else "-INFINITE"
    return x.hex()
