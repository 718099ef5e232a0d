"""What Numba does not give: pointers made from addresses, atomics, indirect calls; and the operands of a row."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..layout import OPERAND_WIDTH, OPERANDS, SCALARS, TALL_RATIO, TALL_ROWS


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
def address_of(typingctx: Any, place: Any) -> Any:
    """The address that a pointer holds."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(place), codegen


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


# --- rows that do not overlap ---------------------------------------------------------------------------------
#
# LLVM cannot know that of arrays, and compares where they end before each loop over a row, which takes as long as a
# short row itself. These accesses tell it: each names one of a few ranges of memory, of which none overlap.

RANGES = 8


def _mark(module: Any, access: Any, own: int) -> None:
    """Say of a load or a store that it is of range `own`, and of no other.

    https://llvm.org/docs/LangRef.html#noalias-and-alias-scope-metadata
    """
    domain = module.add_metadata(["gpumlp ranges"])
    scopes = [module.add_metadata([f"gpumlp range {k}", domain]) for k in range(RANGES)]
    access.set_metadata("alias.scope", module.add_metadata([scopes[own]]))
    access.set_metadata("noalias", module.add_metadata(scopes[:own] + scopes[own + 1 :]))


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.gep(builder.inttoptr(args[1], context.get_value_type(signature.args[0])), [args[2]])


@intrinsic(prefer_literal=True)
def read(typingctx: Any, like: Any, address: Any, j: Any, own: Any) -> Any:
    """Element j behind the address of range `own`, a literal."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_place(context, builder, signature, args))
        _mark(builder.module, value, own.literal_value)
        return value

    return like.dtype(like, types.int64, types.int64, own), codegen


@intrinsic(prefer_literal=True)
def write(typingctx: Any, like: Any, address: Any, j: Any, own: Any, value: Any) -> Any:
    """Set element j behind the address of range `own`, a literal."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store = builder.store(args[4], _place(context, builder, signature, args))
        _mark(builder.module, store, own.literal_value)
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64, own, like.dtype), codegen


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
def address_of_row(row, k, i, first, like):
    """The address of column `first` of row i of operand k."""
    return row[OPERANDS + OPERAND_WIDTH * k] + (i * row[OPERANDS + OPERAND_WIDTH * k + 3] + first) * itemsize(
        like
    )


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

    Tall matrices are split by rows, others by columns, in whole cache lines. Products and the
    element-wise calls behind them split alike, and so need no barrier between them.
    """
    rows, columns = rows_of(row, k), columns_of(row, k)
    if rows > TALL_ROWS and rows > TALL_RATIO * columns:
        first, last = part(rows, ctx, 16)
        return first, last, 0, columns
    first, last = part(columns, ctx, 16)
    return 0, rows, first, last


@njit
def part_of_columns(row, ctx):
    """This worker's columns of operand 0."""
    return part(columns_of(row, 0), ctx, 16)
