"""The catalogue in CUDA C++: which operations there are, how many blocks each wants, and the text to compile.

Every operation is one block-level template function ``name<T>(const Row&, Block)`` in a ``.cuh`` file of this folder. A
kernel of its own (``gpumlp_name``) calls it with the block's place in the grid; the resident kernel calls it with the
only block there is. The text needs no header, so that NVRTC compiles it as it stands and a host compiler behind
``host.h`` does too.

A loss is two operations where the rows have weights, because the blocks of a grid cannot wait for each other:
`sum_weights` and the loss. Clipping by the norm is two: `sum_squares` and `clip_by_norm`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import (
    ACTIVATIONS,
    BAD_STEP,
    CATALOGUE,
    CONTROL_SIZE,
    EPOCH,
    FOR_GPUS,
    NARROW,
    POSITION,
    SEED,
    SLOT,
    START,
    STEP,
    UPDATE,
)
from ..layout import (
    ADD_AND_RELU,
    ADD_BIAS,
    ENDING_BIT,
    FIRST_TURNED,
    FORM_BIT,
    MAX_OPERANDS,
    PLAIN,
    RELU_GRADIENT,
    SECOND_BITS,
    SECOND_TURNED,
    SUM_COLUMNS,
    WATCHED_BIT,
)
from ..philox import DROPOUT, NOISE, SHUFFLE
from ..reference.activations import GELU_TANH_CUBIC, GELU_TANH_SCALE, SELU_ALPHA, SELU_SCALE

Grid = Literal["elements", "rows", "columns", "one", "tiles", "groups", "ranges"]

FILES = (
    "common",
    "memory",
    "tensor",
    "sharing",
    "column_sums",
    "narrow_halves",
    "narrow",
    "activations",
    "batches",
    "losses",
    "row_losses",
    "normalisation",
    "optimizers",
    "tiles",
    "warp_tiles",
    "large_products",
    "products",
)
"""Files of the translation unit, in order; a file uses those before it."""

TYPES = {"float32": "float", "float64": "double", "bf16": "float"}
"""What is computed in, by what the text is compiled for; "bf16" is float32 with operands that may be bfloat16."""

OPTIONS = ("-std=c++17", "-fmad=false")
"""What NVRTC is told: a multiply-add is one instruction where the text says so, and nowhere else."""

PACK = 4  # elements that a thread takes at once; 8 where some are bfloat16, for accesses of 16 bytes
TILE = 4  # rows and columns of c that a thread of a product takes
WARP = 32
LARGE_TILE = 128  # rows and columns of c that a block of a large product takes
LONG_ROW = 2048  # columns from which a whole block takes a row, where an operation knows how to
HALVES_WIDTH = 64  # columns that a block takes of matrices of bfloat16 that are summed: a line of memory
ROW_EACH = 4  # columns of a row that a lane takes where a warp has several rows
RANGE_KEYS = 64  # of rows that are ordered by many blocks, for a range of keys
NARROW_ROWS = 16  # rows that a warp takes at once of an activation and a narrow product
THREADS_HELD = 2048  # by a multiprocessor at a time, at most
THREADS = 256  # of a block, where an operation is a kernel of its own
RESIDENT_THREADS = 256  # of a block of the resident kernel, at most
NEIGHBOUR_THREADS = 128  # of one that leaves half of its multiprocessor, registers too, to another
CHAIN_THREADS = 512  # of the block of a chain; for doubles there would be too few registers
MAX_CHAIN = 8  # operations of a chain
MAX_SCALARS = 8  # of an operation
COPY_IN, COPY_OUT = 1, 2  # flags of a `Stage` of the resident kernel
MOST_ELEMENTS = 1 << 30  # of an operand, counted by 32-bit numbers with room for a step of a grid beyond
SCRATCH_BYTES = 8192  # static shared memory of every kernel: a double for each of 1024 threads


LONG_ROWS = frozenset(["softmax_cross_entropy_labels", "softmax_cross_entropy", "kl_divergence_logits"])
"""Operations of which a whole block takes a row of `LONG_ROW` columns or more."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation: its number in the resident kernel, and what its grid is made for.

    Args:
        name: in the catalogue, or one of those that only this backend has.
        code: what ``Row.op`` holds.
        grid: what the blocks share: "elements" (4 a thread), "rows" or "columns" of an operand, "tiles" (of 4 x 4,
            eight a block), "groups" of rows, "ranges" of keys, or "one" block does it all.
        operand: whose shape that is.
        spills: whether registers may spill into local memory.
        at_once: blocks that a multiprocessor is to hold at a time, in float32; 0 leaves it to the compiler.
    """

    name: str
    code: int
    grid: Grid
    operand: int
    spills: bool = False
    at_once: int = 0


_GRIDS: dict[str, tuple[Grid, int]] = {
    "shuffle": ("ranges", 2),
    "copy_rows": ("elements", 1),
    "gather_rows": ("elements", 3),
    "gather_labels": ("elements", 3),
    "gather_weights": ("elements", 3),
    "dropout": ("elements", 1),
    "dropout_grad": ("elements", 1),
    "gaussian_noise": ("elements", 1),
    "matmul": ("tiles", 2),
    "matmul_pair": ("tiles", 2),
    "small_matmul": ("tiles", 2),
    "large_matmul": ("tiles", 2),
    "add_bias": ("elements", 1),
    "column_sums": ("columns", 0),
    "sums_of_shares": ("columns", 0),
    "copy": ("elements", 0),
    "cast_bf16": ("elements", 0),
    "softmax": ("rows", 0),
    "softmax_grad": ("rows", 0),
    "layer_norm": ("rows", 0),
    "layer_norm_grad": ("rows", 0),
    "batch_norm": ("columns", 0),
    "batch_norm_grad": ("columns", 0),
    "batch_norm_fixed": ("elements", 0),
    "batch_norm_fixed_grad": ("elements", 2),
    "running_average": ("elements", 1),
    "sum_weights": ("one", 0),
    "check_loss": ("one", 0),
    "check_gradients": ("elements", 0),
    "clip_by_value": ("elements", 0),
    "sum_squares": ("elements", 0),
    "clip_by_norm": ("elements", 0),
    "advance": ("one", 0),
}


def _table() -> dict[str, Operation]:
    grids = dict(_GRIDS)
    for name, spec in CATALOGUE.items():
        if "ring" in spec.updates:
            grids[name] = ("rows", 1)
        elif "parameters" in spec.updates:
            grids[name] = ("elements", 3)
    for name in ACTIVATIONS:
        grids[name] = grids[f"{name}_grad"] = ("elements", 0)
        grids[f"bias_{name}"] = ("elements", 1)
        grids[f"{name}_grad_bias"] = ("columns", 0)
    for name in FOR_GPUS:
        if "narrow" in name or name.endswith("_cast"):
            grids[name] = ("groups", 3) if name.endswith("_narrow") else ("elements", 3)
    return {
        # two products at once want some registers more than one, but not fewer blocks
        name: Operation(name, code, *grids[name], spills=name == "matmul_pair", at_once=_at_once(name))
        for code, name in enumerate(sorted(grids))
    }


def _at_once(name: str) -> int:
    """Blocks on a multiprocessor where an operation waits for memory, and wants many warps.

    Sums want registers, and so does the slope of mish. Updates with many operands have as many as four blocks allow.
    """
    if name in LONG_ROWS or name.startswith(("adam", "rmsprop")):
        return 4
    if name == "large_matmul":
        return 1
    if name.endswith(("_narrow", "_grad_sums")) or name in ("matmul", "matmul_pair", "narrow_mish_grad"):
        return 2
    return 3 if name.startswith("narrow_") else 0


OPERATIONS: dict[str, Operation] = _table()
"""The catalogue, and the operations that only this backend has, by name."""


def lanes(columns: int) -> int:
    """Return how many columns a block takes, or, of a fourth of its columns, threads a row: a power of two to 32."""
    return min(1 << max(columns - 1, 0).bit_length(), WARP)


def blocks(operation: Operation, rows: int, columns: int, threads: int, most: int) -> int:
    """Return how many blocks share an operation.

    Args:
        operation: of the table.
        rows, columns: of its operand `operation.operand`.
        threads: of a block.
        most: blocks that are of use at once, the machine's multiprocessors times what each holds.
    """
    match operation.grid:
        case "elements":
            wanted = -(-rows * columns // (PACK * threads))
        case "rows":
            wanted = -(-rows * lanes(-(-columns // ROW_EACH)) // threads)
            if columns >= LONG_ROW and operation.name in LONG_ROWS:
                # as many as run at once: none begins late
                wanted = min(rows, most * operation.at_once * THREADS // THREADS_HELD)
        case "columns":
            wanted = -(-columns // lanes(columns))
        case "tiles":
            # a block takes 2 x 4 tiles, or its warps 4 x 4, together or each, and has them for several in turn where
            # there are many; where tiles are a single row or column, a warp takes one, whose inner side it shares
            if min(rows, columns) <= TILE:
                wanted = -(-(-(-rows // TILE) * -(-columns // TILE)) * WARP // threads)
            else:
                wanted = min(-(-rows // (2 * TILE)) * -(-columns // (4 * TILE)), most // 4)
        case "groups":  # one a block while there are few; else as many blocks as run at once
            wanted = min(-(-rows // NARROW_ROWS), most * operation.at_once * THREADS // THREADS_HELD)
        case "ranges":
            # each makes all keys: one on a multiprocessor, unless there is no room for those of so large a range
            wanted = min(-(-columns // RANGE_KEYS), most * THREADS // THREADS_HELD)
            wanted = max(wanted, -(-columns // (8 * RANGE_KEYS)))
        case "one":
            wanted = 1
    return max(1, min(wanted, most))


def shares(rows: int, columns: int, threads: int, most: int, halves: bool = False) -> tuple[int, int]:
    """Return into how many shares the rows of a matrix are best split where its columns are summed, and its tiles.

    A block takes a tile, up to 32 columns, of one share. With more than one share, ``db`` is a matrix of that many
    rows, to be summed by `column_sums` once more.

    Args:
        halves: whether all operands are bfloat16 and rows are whole packs of eight: a tile then is up to `HALVES_WIDTH`
            columns, and a multiprocessor has registers for four blocks at a time; more would begin late.
    """
    width = min(1 << (columns - 1).bit_length(), HALVES_WIDTH) if halves else lanes(columns)
    tiles = -(-columns // width)
    worth = rows * width // (threads * 8)  # a second pass does not pay below 8 rows a thread
    return max(1, min((most * 4 * threads // THREADS_HELD if halves else most) // tiles, worth)), tiles


def narrow_tiles(columns: int, itemsize: int) -> int:
    """Return how many parts of the columns there are in the gradient of a narrow product, a block for each."""
    return -(-columns // (SCRATCH_BYTES // (NARROW * itemsize)))


def narrow_shares(rows: int, tiles: int, threads: int, most: int) -> int:
    """Return into how many shares the rows of such a gradient are best split where their sums are wanted.

    As many as make the blocks that run at once: each share is a row of sums to be added up afterwards.
    """
    worth = rows * WARP // (threads * 16)  # below 16 rows a warp the second pass does not pay
    return max(1, min(most // (4 * tiles), worth))


@functools.cache
def text(file: str) -> str:
    return Path(__file__).with_name(f"{file}.cuh").read_text(encoding="utf-8")


def constants(dtype: str, large: bool) -> str:
    """Return what the text shares with Python, so that each is stated once."""
    mixed = dtype == "bf16"
    control = {"STEP": STEP, "UPDATE": UPDATE, "EPOCH": EPOCH, "START": START, "SLOT": SLOT, "SEED": SEED}
    control |= {"BAD_STEP": BAD_STEP, "POSITION": POSITION, "CONTROL_SIZE": CONTROL_SIZE}
    layout = {"PLAIN": PLAIN, "FIRST_TURNED": FIRST_TURNED, "SECOND_TURNED": SECOND_TURNED}
    layout |= {"ADD_BIAS": ADD_BIAS, "ADD_AND_RELU": ADD_AND_RELU}
    layout |= {"RELU_GRADIENT": RELU_GRADIENT, "SUM_COLUMNS": SUM_COLUMNS}
    layout |= {
        "FORM_BIT": FORM_BIT,
        "ENDING_BIT": ENDING_BIT,
        "SECOND_BITS": SECOND_BITS,
        "WATCHED_BIT": WATCHED_BIT,
    }
    layout |= {
        "MAX_OPERANDS": MAX_OPERANDS,
        "PACK": 2 * PACK if mixed else PACK,
        "MIXED": int(mixed),
        "TILE": TILE,
        "WARP": WARP,
        "LARGE_TILE": LARGE_TILE,
        "LONG_ROW": LONG_ROW,
        "HALVES_WIDTH": HALVES_WIDTH,
        "ROW_EACH": ROW_EACH,
        "NARROW": NARROW,
        "NARROW_ROWS": NARROW_ROWS,
        "SCRATCH_BYTES": SCRATCH_BYTES,
    }
    uses = {
        "SHUFFLE": SHUFFLE,
        "DROPOUT": DROPOUT,
        "NOISE": NOISE,
        "COPY_IN": COPY_IN,
        "COPY_OUT": COPY_OUT,
        "THREADS": THREADS,
        "RESIDENT_THREADS": RESIDENT_THREADS,
        "CHAIN_THREADS": CHAIN_THREADS,
        "MAX_CHAIN": MAX_CHAIN,
        "MAX_SCALARS": MAX_SCALARS,
    }
    integers = ", ".join(f"{name} = {value}" for name, value in (control | layout | uses).items())
    numbers = {"SELU_ALPHA": SELU_ALPHA, "SELU_SCALE": SELU_SCALE}
    numbers |= {"GELU_TANH_SCALE": GELU_TANH_SCALE, "GELU_TANH_CUBIC": GELU_TANH_CUBIC}
    doubles = "".join(
        f"[[maybe_unused]] constexpr double {name} = {value!r};\n" for name, value in numbers.items()
    )
    index = "long long" if large else "int"  # 64-bit products and quotients cost several instructions
    return f"enum {{ {integers} }};\n{doubles}typedef {index} Index;  // of rows, columns and elements\n"


def source(
    dtype: str,
    operations: Iterable[str] | None = None,
    walked: Iterable[str] = (),
    chained: Iterable[str] = (),
    large: bool = False,
) -> str:
    """Return the text of one translation unit; the same arguments give the same text.

    It has a kernel ``extern "C" __global__ void gpumlp_NAME(const Row row)`` for each of the operations. Each that is
    there in more than one of these ways is compiled as often.

    Args:
        dtype: "float32", "float64" or "bf16": see `TYPES`.
        operations: names of `OPERATIONS`; None takes all.
        walked: operations that ``gpumlp_resident`` does, which is there where there are any.
        chained: operations of which ``gpumlp_chain`` does several in one launch; likewise.
        large: whether some operand has more than `MOST_ELEMENTS`.

    Raises:
        ValueError: a type or an operation that there is not.
    """
    if dtype not in TYPES:
        raise ValueError(f"dtype is {dtype!r}; the kernels are compiled for {', '.join(TYPES)}")
    alone = sorted(set(OPERATIONS if operations is None else operations))
    walked, chained = set(walked), set(chained)
    together = sorted(walked | chained)
    if unknown := [name for name in (*alone, *together) if name not in OPERATIONS]:
        raise ValueError(f"no operation {unknown[0]!r}; choose from gpumlp.kernels.cuda.OPERATIONS")
    real = TYPES[dtype]
    parts = [constants(dtype, large), *map(text, FILES)]
    parts += [_kernel(OPERATIONS[name], real) for name in alone]
    parts += [_perform(together, real), text("walk")] if together else []
    parts += [text("chain")] if chained else []
    parts += [*map(text, ("network", "programs", "walker"))] if walked else []
    return "\n".join(parts)


def _kernel(operation: Operation, real: str) -> str:
    """An operation as a kernel of its own."""
    bounds = (
        f"__launch_bounds__({THREADS}, {operation.at_once}) " if operation.at_once and real == "float" else ""
    )
    return (
        f'extern "C" __global__ void {bounds}gpumlp_{operation.name}(const __grid_constant__ Row row) {{\n'
        f"  {operation.name}<{real}>(row, Block{{(int)blockIdx.x, (int)gridDim.x}});\n}}\n"
    )


def by_one_block(name: str, real: str) -> str:
    """Return an operation as the only block there is calls it."""
    return f"{name}<{real}, true>" if name == "matmul" else f"{name}<{real}>"


def _perform(operations: Iterable[str], real: str) -> str:
    """The function that calls the operation of a row in shared memory, whose address there it is given.

    Each operation is a function of its own there: inlined, they would be compiled as one, which takes several times as
    long, and would share the registers of the largest, which then spill.
    """
    apart = "".join(
        f"__device__ __noinline__ void perform_{name}(size_t at) {{\n"
        f"  {by_one_block(name, real)}(row_at(at), Block{{0, 1}});\n}}\n"
        for name in operations
    )
    cases = "".join(f"    case {OPERATIONS[name].code}: perform_{name}(at); break;\n" for name in operations)
    switch = f"  switch ((int)row_at(at).op) {{\n{cases}  }}\n"
    return f"{apart}\n__device__ void perform(size_t at) {{\n{switch}}}\n"
