"""How products are cut into tiles and blocks, and what working memory that takes; it needs no Numba."""

from __future__ import annotations

from .processor import vector_bytes

WIDEST = vector_bytes()
ROWS = 8 if WIDEST == 64 else 6
"""Rows of a tile: with two vectors a row its sums take 16 of 32 registers, or 12 of 16."""

K_WHOLE, K_BLOCK = 1024, 512
"""An inner side up to the first is taken in one pass; a longer one in parts of at most the second."""
M_PACKS = 128 if WIDEST == 64 else 64
"""Rows of c from which columns of b are packed, so that they lie together for all of them."""
M_BLOCK, M_BLOCK_PACKED = 1024 // ROWS * ROWS, 256 if WIDEST == 64 else 96
"""Rows of c that a part of b serves, whole tiles; fewer where a is packed, which must fit the second cache too."""
N_BLOCK = 1024
"""Columns of c whose columns of b are packed together, where there are several blocks of rows."""


def inner_block(k):
    """The part of the inner side that is taken at a time: parts of about the same size."""
    if k <= K_WHOLE:
        return k
    blocks = (k + K_BLOCK - 1) // K_BLOCK
    return (k + blocks - 1) // blocks


def packs_a(a_row, a_k, n, k, size):
    """Whether a is packed: its columns are read as rows, from places far apart, often enough to pay."""
    return a_row == size and a_k != size and n * size >= 4 * WIDEST and (k > K_WHOLE or a_k % 4096 == 0)


def work_bytes(a_row: int, a_k: int, m: int, n: int, k: int, size: int) -> int:
    """Return the bytes of working memory that a product needs, or a part of its rows and columns.

    Args:
        a_row, a_k: bytes from row to row and from column to column of the first operand.
        m, n, k: rows and columns of the result, and the inner side.
        size: bytes of an element.
    """
    # of b as many columns as there are, and a panel that overlaps; or one panel, if there is but one block of rows
    packs = packs_a(a_row, a_k, n, k, size)
    several = m > (M_BLOCK_PACKED if packs else M_BLOCK)
    columns = 2 * WIDEST // size + (min(n, N_BLOCK) if several else 0)
    return (columns + (M_BLOCK_PACKED if packs else 0)) * inner_block(k) * size
