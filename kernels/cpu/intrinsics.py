"""What Numba does not give: pointers made from addresses, atomics, indirect calls; and the operands of a row."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..layout import LONG, NARROW, OPERAND_WIDTH, OPERANDS, SCALARS


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
    return row[OPERANDS + OPERAND_WIDTH * k] != 0


@njit
def rows_of(row, k):
    return row[OPERANDS + OPERAND_WIDTH * k + 1]


@njit
def columns_of(row, k):
    return row[OPERANDS + OPERAND_WIDTH * k + 2]


@njit
def span(row, k, i, first, last, like):
    """The columns [first, last) of row i of operand k."""
    start = row[OPERANDS + OPERAND_WIDTH * k] + (
        i * row[OPERANDS + OPERAND_WIDTH * k + 3] + first
    ) * itemsize(like)
    return carray(pointer(start, like), (last - first,))


@njit
def vector(row, k, like):
    """Operand k, a vector."""
    return carray(pointer(row[OPERANDS + OPERAND_WIDTH * k], like), (row[OPERANDS + OPERAND_WIDTH * k + 2],))


@njit
def integers(row, k):
    """Operand k, a vector of int64."""
    return carray(pointer(row[OPERANDS + OPERAND_WIDTH * k], row), (row[OPERANDS + OPERAND_WIDTH * k + 2],))


@njit
def doubles(row, k):
    """Operand k, float64 numbers in a row."""
    return carray(
        double_pointer(row[OPERANDS + OPERAND_WIDTH * k]),
        (row[OPERANDS + OPERAND_WIDTH * k + 1] * row[OPERANDS + OPERAND_WIDTH * k + 2],),
    )


@njit
def scalars(row):
    """The scalars of the call, float64."""
    return carray(double_pointer(row[SCALARS]), (8,))


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
    if rows > LONG and rows > NARROW * columns:
        first, last = part(rows, ctx, 16)
        return first, last, 0, columns
    first, last = part(columns, ctx, 16)
    return 0, rows, first, last


@njit
def part_of_columns(row, ctx):
    """This worker's columns of operand 0."""
    return part(columns_of(row, 0), ctx, 16)
