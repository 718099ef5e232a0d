"""What Numba does not give: pointers made from addresses, atomics, indirect calls; and the operands of a row."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# A row of the linked program: what to call, flags, the address of its scalars, scratch; then its operands.
FUNCTION, FLAGS, SCALARS, SCRATCH, OPERANDS = 0, 1, 2, 3, 4
OPERAND_WIDTH = 4  # address, rows, columns, elements from row to row
MAX_OPERANDS = 8
# A worker's own numbers: its place, how many there are, barriers passed, rows of a batch, address of its workspace,
# and the place of the first step in the table of rates and the ring of losses.
WORKER, WORKERS, PASSED, BATCH_ROWS, WORK, FIRST_SLOT = 0, 1, 2, 3, 4, 5
ROW_WIDTH = OPERANDS + OPERAND_WIDTH * MAX_OPERANDS


@intrinsic
def pointer(typingctx: Any, address: Any, like: Any) -> Any:
    """Make a pointer of the type of `like` from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return like(types.int64, like), codegen


@intrinsic
def double_pointer(typingctx: Any, address: Any) -> Any:
    """Make a pointer to float64 from an address."""
    kind = types.CPointer(types.float64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return kind(types.int64), codegen


@intrinsic
def bits_to_float(typingctx: Any, bits: Any) -> Any:
    """Read 32 bits as a float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """Tell the processor that this is a spinning loop, where it has an instruction for that."""
    import platform

    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if x86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_row(typingctx: Any, function: Any, row: Any, ctx: Any) -> Any:
    """Call a compiled kernel by its address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i64 = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [i64] * 3)
        target = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(target, [args[1], args[2], ir.Constant(i64, 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def itemsize(typingctx: Any, like: Any) -> Any:
    """Bytes of what a pointer points at."""
    size = like.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(64), size)

    return types.int64(like), codegen


# --- operands of a row ----------------------------------------------------------------------------------------


@njit
def given(row, k):
    """Whether operand k is there."""
    return row[4 + 4 * k] != 0


@njit
def rows_of(row, k):
    return row[5 + 4 * k]


@njit
def columns_of(row, k):
    return row[6 + 4 * k]


@njit
def span(row, k, i, first, last, like):
    """The columns [first, last) of row i of operand k."""
    start = row[4 + 4 * k] + (i * row[7 + 4 * k] + first) * itemsize(like)
    return carray(pointer(start, like), (last - first,))


@njit
def vector(row, k, like):
    """Operand k, a vector."""
    return carray(pointer(row[4 + 4 * k], like), (row[6 + 4 * k],))


@njit
def integers(row, k):
    """Operand k, a vector of int64."""
    return carray(pointer(row[4 + 4 * k], row), (row[6 + 4 * k],))


@njit
def doubles(row, k):
    """Operand k, float64 numbers in a row."""
    return carray(double_pointer(row[4 + 4 * k]), (row[5 + 4 * k] * row[6 + 4 * k],))


@njit
def scalars(row):
    """The scalars of the call, float64."""
    return carray(double_pointer(row[2]), (8,))


@njit
def part(n, ctx, grain):
    """This worker's share [first, last) of n, in multiples of `grain`."""
    width = (n + ctx[1] * grain - 1) // (ctx[1] * grain) * grain
    first = min(n, ctx[0] * width)
    return first, min(n, first + width)


@njit
def share(row, k, ctx):
    """This worker's share of matrix k: rows [r0, r1) and columns [c0, c1).

    Long and narrow matrices are split by rows, others by columns, in whole cache lines. Products and the
    element-wise calls behind them split alike, and so need no barrier between them.
    """
    rows, columns = rows_of(row, k), columns_of(row, k)
    if rows > 1024 and rows > 4 * columns:
        first, last = part(rows, ctx, 16)
        return first, last, 0, columns
    first, last = part(columns, ctx, 16)
    return 0, rows, first, last


@njit
def part_of_columns(row, ctx):
    """This worker's columns of operand 0."""
    return part(columns_of(row, 0), ctx, 16)
