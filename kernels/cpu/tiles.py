"""Products of matrices by register tiles: vectors of sums that stay in registers over the inner side.

BLAS packs its operands and checks its arguments before it computes; a net of a hundred units spends a third of its
time on that. A tile here computes `rows` x `vectors` whole vectors of c with one pass over k, straight from the
operands. Where a side does not divide, the last tile overlaps the one before: it computes the same numbers again,
with the same bits. The order of summation is that of k, whatever the tile and the number of workers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from . import sizes
from .intrinsics import itemsize, pointer, read, write
from .sizes import M_BLOCK, M_BLOCK_PACKED, M_PACKS, N_BLOCK, ROWS, WIDEST

AHEAD = 12
"""Rows ahead of the one that is packed whose memory is asked for."""


def _prefetch(builder: Any, address: Any) -> None:
    """Bring a line to the cache."""
    i8, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [i8, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [builder.inttoptr(address, i8), *(ir.Constant(i32, n) for n in (1, 3, 1))])


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Bring a line to the cache; the address need not be one of the process."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _count(nbytes: int, size: int) -> int:
    """How many elements of a size are in so many bytes: one at least, where a vector has less than four."""
    return max(1, nbytes // size)


def _tile(rows: int, vectors: int, share: int) -> Any:
    """Make the intrinsic that computes a tile of c.

    Args:
        rows: of the tile.
        vectors: a row, each of `WIDEST / share` bytes.
        share: 1 for the widest vectors, 2 for half of that, ...
    """

    @intrinsic
    def tile(
        typingctx: Any, like: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, second: Any, c: Any, c_row: Any,
        k: Any, more: Any,
    ) -> Any:  # fmt: skip
        """c = a b, or c += a b with `more`; a, b, c are addresses, the steps are in bytes, `second` is the distance
        of the two vectors of a row."""
        i32, i64 = ir.IntType(32), ir.IntType(64)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, a, a_row, a_k, b, b_k, second, c, c_row, k, more = args
            scalar = context.get_value_type(like.dtype)
            width = _count(WIDEST // share, like.dtype.bitwidth // 8)
            vector = ir.VectorType(scalar, width)
            zero, nothing = ir.Constant(vector, [0.0] * width), ir.Constant(vector, ir.Undefined)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(rows * vectors)]
            a_place = cgutils.alloca_once_value(builder, a)
            b_place = cgutils.alloca_once_value(builder, b)
            align = like.dtype.bitwidth // 8

            def load_vector(address: Any) -> Any:
                return builder.load(builder.inttoptr(address, vector.as_pointer()), align=align)

            places = []
            for _ in range(rows):
                places += [c, builder.add(c, second)][:vectors]
                c = builder.add(c, c_row)
            below = builder.mul(c_row, ir.Constant(i64, rows))
            with builder.if_then(builder.icmp_signed("!=", more, ir.Constant(i64, 0))):
                for total, place in zip(sums, places, strict=True):
                    builder.store(load_vector(place), total)
                for place in places:  # of the next tile, which would wait for them
                    _prefetch(builder, builder.add(place, below))
            with cgutils.for_range(builder, k, intp=i64):
                a_here, b_here = builder.load(a_place), builder.load(b_place)
                bs = [load_vector(b_here)]
                if vectors == 2:
                    bs.append(load_vector(builder.add(b_here, second)))
                for i in range(rows):
                    element = builder.load(builder.inttoptr(a_here, scalar.as_pointer()), align=align)
                    one = builder.insert_element(nothing, element, ir.Constant(i32, 0))
                    mask = ir.Constant(ir.VectorType(i32, width), [0] * width)
                    spread = builder.shuffle_vector(one, nothing, mask)
                    for j in range(vectors):
                        place = sums[i * vectors + j]
                        product = builder.fmul(spread, bs[j], flags=("contract",))
                        builder.store(builder.fadd(builder.load(place), product, flags=("contract",)), place)
                    a_here = builder.add(a_here, a_row)
                builder.store(builder.add(builder.load(a_place), a_k), a_place)
                builder.store(builder.add(b_here, b_k), b_place)
            for total, place in zip(sums, places, strict=True):
                builder.store(builder.load(total), builder.inttoptr(place, vector.as_pointer()), align=align)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 10), codegen

    return tile


tile_wide, tile_full, tile_half, tile_quarter = (
    _tile(ROWS, 2, 1),
    _tile(ROWS, 1, 1),
    _tile(ROWS, 1, 2),
    _tile(ROWS, 1, 4),
)
line_wide, line_full, line_half, line_quarter = _tile(1, 2, 1), _tile(1, 1, 1), _tile(1, 1, 2), _tile(1, 1, 4)
packs_a, inner_block = njit(sizes.packs_a), njit(sizes.inner_block)

IN_PLACE, PACK, TURN, PACKED = range(4)
"""What becomes of a panel of b: it is read where it lies, packed, turned as it is packed, or it is packed already."""


def _copy(count: Any) -> Any:
    """Make the intrinsic that copies some neighbours at once; `count` of the bytes of an element says how many."""

    @intrinsic
    def copy(typingctx: Any, like: Any, source: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, source, out = args
            align = like.dtype.bitwidth // 8
            kind = ir.VectorType(context.get_value_type(like.dtype), count(align)).as_pointer()
            value = builder.load(builder.inttoptr(source, kind), align=align)
            builder.store(value, builder.inttoptr(out, kind), align=align)
            return context.get_dummy_value()

        return types.void(like, types.int64, types.int64), codegen

    return copy


copy_vector, copy_quarter = _copy(lambda size: WIDEST // size), _copy(lambda size: _count(WIDEST // 4, size))
copy_tile_row = _copy(lambda size: ROWS)


@intrinsic
def transpose_square(typingctx: Any, like: Any, source: Any, source_row: Any, out: Any, out_row: Any) -> Any:
    """Write the transpose of a square block as wide as a vector, by exchanges between rows; steps in bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, source, source_row, out, out_row = args
        scalar = context.get_value_type(like.dtype)
        align = like.dtype.bitwidth // 8
        width = WIDEST // align
        vector, i32 = ir.VectorType(scalar, width), ir.IntType(32)
        rows = []
        for _ in range(width):
            rows.append(builder.load(builder.inttoptr(source, vector.as_pointer()), align=align))
            source = builder.add(source, source_row)
        half = width // 2
        while half:
            # lanes whose index has the bit `half` change places with the row that lies `half` away
            low = [lane if not lane & half else width + lane - half for lane in range(width)]
            high = [lane + half if not lane & half else width + lane for lane in range(width)]
            masks = [ir.Constant(ir.VectorType(i32, width), lanes) for lanes in (low, high)]
            for i in range(width):
                if not i & half:
                    pair = rows[i], rows[i + half]
                    rows[i], rows[i + half] = (builder.shuffle_vector(*pair, mask) for mask in masks)
            half //= 2
        for row in rows:
            builder.store(row, builder.inttoptr(out, vector.as_pointer()), align=align)
            out = builder.add(out, out_row)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 4), codegen


@njit
def _row_of_a(a, a_row, a_tile, i):
    """The address of row i; `a_tile` is the distance of the rows of two tiles where they are packed, else 0."""
    return a + i // ROWS * a_tile + i % ROWS * a_row if a_tile else a + i * a_row


@njit
def _panel(like, a, a_row, a_k, a_tile, b, b_k, second, c, c_row, m, k, more, exact, kind):
    """One or two vectors of columns, all rows."""
    i = 0
    while i < m:
        if i + ROWS <= m or (m >= ROWS and not exact):
            i = min(i, m - ROWS)
            # a last tile that overlaps lies by itself where a is packed
            a_here = a + (i + ROWS - 1) // ROWS * a_tile if a_tile else a + i * a_row
            c_here = c + i * c_row
            if kind == 0:
                tile_wide(like, a_here, a_row, a_k, b, b_k, second, c_here, c_row, k, more)
            elif kind == 1:
                tile_full(like, a_here, a_row, a_k, b, b_k, second, c_here, c_row, k, more)
            elif kind == 2:
                tile_half(like, a_here, a_row, a_k, b, b_k, second, c_here, c_row, k, more)
            else:
                tile_quarter(like, a_here, a_row, a_k, b, b_k, second, c_here, c_row, k, more)
            i += ROWS
        else:
            a_here, c_here = _row_of_a(a, a_row, a_tile, i), c + i * c_row
            if kind == 0:
                line_wide(like, a_here, a_row, a_k, b, b_k, second, c_here, c_row, k, more)
            elif kind == 1:
                line_full(like, a_here, a_row, a_k, b, b_k, second, c_here, c_row, k, more)
            elif kind == 2:
                line_half(like, a_here, a_row, a_k, b, b_k, second, c_here, c_row, k, more)
            else:
                line_quarter(like, a_here, a_row, a_k, b, b_k, second, c_here, c_row, k, more)
            i += 1


@njit
def _element(like, address):
    return carray(pointer(address, like), (1,))


@njit
def _pack_rows(like, source, source_row, out, out_row, rows, columns):
    """Copy a matrix, whose rows are a power of two, to where they lie together."""
    size = itemsize(like)
    vector = WIDEST // size
    step = vector if columns >= vector else max(1, vector // 4)
    for _ in range(rows):
        # rows far apart are no stream that a processor would see coming
        prefetch(source + AHEAD * source_row)
        prefetch(source + AHEAD * source_row + columns * size - 1)
        for j in range(0, columns, step):
            if step == vector:
                copy_vector(like, source + j * size, out + j * size)
            else:
                copy_quarter(like, source + j * size, out + j * size)
        source += source_row
        out += out_row


@njit
def _pack_tiles(like, source, source_k, out, m, k, exact):
    """Copy columns of a, which are rows of what it lies in, to where those of a tile lie together.

    Row k of the source has element (i, k) for all i; the rows of a are the columns of the result: (tiles, k, ROWS).
    Rows that are no whole tile come in one that overlaps the one before, or, with `exact`, by themselves.
    """
    size = itemsize(like)
    tile = k * ROWS * size
    whole = m // ROWS
    last = m - ROWS if m >= ROWS and not exact else whole * ROWS  # where the rest is read
    for p in range(k):
        place = out + p * ROWS * size
        for t in range(whole):
            copy_tile_row(like, source + t * ROWS * size, place)
            place += tile
        if whole * ROWS < m:
            for i in range(min(ROWS, m - last)):
                write(like, place, i, 1, read(like, source, last + i, 0))
        source += source_k


@njit
def _pack_transposed(like, source, source_row, out, out_row, rows, columns):
    """out[i, j] = source[j, i] for i < rows, j < columns."""
    size = itemsize(like)
    width = WIDEST // size
    if rows < width or columns < width:
        for i in range(rows):
            for j in range(columns):
                _element(like, out + i * out_row + j * size)[0] = _element(
                    like, source + j * source_row + i * size
                )[0]
        return
    for j0 in range(0, columns, width):
        j = min(j0, columns - width)
        for i0 in range(0, rows, width):
            i = min(i0, rows - width)
            transpose_square(
                like, source + j * source_row + i * size, source_row, out + i * out_row + j * size, out_row
            )


@njit
def _columns(like, a, a_row, a_k, a_tile, b, b_row, pack, work, c, c_row, m, k, more, exact, kind):
    """One panel of columns of c; b is packed where its rows lie far apart, and where it must be turned."""
    size = itemsize(like)
    vector = WIDEST // size
    columns = 2 * vector >> kind
    if pack == TURN:
        _pack_transposed(like, b, b_row, work, columns * size, k, columns)
    elif pack == PACK:
        _pack_rows(like, b, b_row, work, columns * size, k, columns)
    if pack != IN_PLACE:
        b, b_row = work, columns * size
    _panel(like, a, a_row, a_k, a_tile, b, b_row, vector * size, c, c_row, m, k, more, exact, kind)


# "contract" as in a tile, and no reassociation: a column has the same bits here and there, so that the number of
# workers, which decides where a part ends, does not show
@njit(fastmath={"contract"})
def _few_columns(like, a, a_row, a_k, a_tile, b, b_row, b_column, c, c_row, m, n, k, more):
    """Columns too few for a vector, one sum at a time."""
    size = itemsize(like)
    # of the type of c, without its value: that may be NaN
    zero = _element(like, c)[0]
    zero = type(zero)(0)
    for i in range(m):
        a_here = _row_of_a(a, a_row, a_tile, i)
        for j in range(n):
            place = _element(like, c + i * c_row + j * size)
            total = place[0] if more else zero
            for p in range(k):
                total += _element(like, a_here + p * a_k)[0] * _element(like, b + p * b_row + j * b_column)[0]
            place[0] = total


@njit
def _block(like, a, a_row, a_k, a_tile, b, b_row, step, pack, keep, work, c, c_row, m, n, k, more, exact):
    """All columns of a block of rows, from the widest panels to the narrowest; `step` from column to column of b.

    With `keep` each packed panel has a place of its own.

    A rest is covered by a last panel that overlaps, or in narrower panels and single columns where sums go on
    (`exact`): there an overlap would be added twice.
    """
    size = itemsize(like)
    vector = WIDEST // size
    narrowest = max(1, vector // 4)
    j = 0
    for kind in range(4):
        columns = 2 * vector >> kind
        may_overlap = not exact and n >= columns
        while columns and (
            n - j >= columns or (may_overlap and j < n and (2 * (n - j) > columns or columns == narrowest))
        ):
            first = min(j, n - columns)
            _columns(
                like, a, a_row, a_k, a_tile, b + first * step, b_row, pack, work, c + first * size, c_row, m, k, more,
                exact, kind,
            )  # fmt: skip
            work += columns * k * size if keep else 0
            j = first + columns
    if j < n:
        b_row_k, b_column = (size, b_row) if step != size else (b_row, size)
        _few_columns(
            like, a, a_row, a_k, a_tile, b + j * step, b_row_k, b_column, c + j * size, c_row, m, n - j, k, more,
        )  # fmt: skip


@njit
def product(like, a, a_row, a_k, b, b_row, turned, c, c_row, m, n, k, work):
    """c = a b, or c = a b^T where `turned`; addresses, and steps in bytes.

    Args:
        like: a pointer that carries the type.
        a, a_row, a_k: element (i, k) of a lies at a + i a_row + k a_k; one of the two steps is an element's size.
        b, b_row: b is (k, n) with rows `b_row` apart; (n, k) where `turned`.
        c, c_row: c is (m, n).
        m, n, k: sizes.
        work: `work_bytes(...)` of this worker's own.
    """
    size = itemsize(like)
    deep = inner_block(k)
    exact = deep < k
    b_step, b_deep = (b_row, size) if turned else (size, b_row)
    # a step of a multiple of 4096 bytes puts all rows into the same few places of a cache
    packed = m >= M_PACKS or (m >= 16 and b_row % 4096 == 0)
    gathered = packs_a(a_row, a_k, n, k, size)
    block = M_BLOCK_PACKED if gathered else M_BLOCK
    b_work = work + (M_BLOCK_PACKED * deep * size if gathered else 0)
    for j0 in range(0, n, N_BLOCK):
        columns = min(N_BLOCK, n - j0)
        for k0 in range(0, k, deep):
            depth = min(deep, k - k0)
            pack = TURN if turned else PACK if packed else IN_PLACE
            for i0 in range(0, m, block):
                rows = min(block, m - i0)
                a_here, step, tile = a + i0 * a_row + k0 * a_k, a_k, 0
                if gathered:
                    _pack_tiles(like, a_here, a_k, work, rows, depth, exact)
                    a_here, step, tile = work, ROWS * size, depth * ROWS * size
                _block(
                    like, a_here, a_row, step, tile, b + j0 * b_step + k0 * b_deep, b_row, b_step, pack, m > block,
                    b_work, c + i0 * c_row + j0 * size, c_row, rows, columns, depth, k0 > 0, exact,
                )  # fmt: skip
                if pack != IN_PLACE:
                    pack = PACKED  # for the other blocks of rows
