"""How products are cut into tiles and blocks, and what working memory that takes; it needs no Numba."""

from __future__ import annotations

from .processor import vector_bytes

WIDEST = vector_bytes()
ROWS = 8 if WIDEST == 64 else 6
"""Rows of a tile: with two vectors a row its sums take 16 of 32 registers, or 12 of 16."""

K_WHOLE = 1024
"""An inner side up to this is taken in one pass where c has few rows, so that no sum is written down on the way."""
K_MANY, K_BLOCK = (1024, 512) if WIDEST == 64 else (512, 512)
"""The same where c has many rows, and the most of the blocks that a longer one is cut into: two vectors of columns of
b over a block are to stay in the first cache, while a tile after the other reads them."""
MANY = 256
"""Rows of c from which it has many."""
M_BLOCK, M_BLOCK_PACKED = (1024, 256) if WIDEST == 64 else (144, 144)
"""Rows of c that a block of a serves, which is to stay in the second cache; multiples of ROWS."""
N_BLOCK = 512
"""Columns of c whose columns of b are packed together, for all blocks of rows."""


def inner_block(m, k):
    """The part of the inner side that is taken at a time: parts of about the same size."""
    if k <= (K_MANY if m >= MANY else K_WHOLE):
        return k
    blocks = (k + K_BLOCK - 1) // K_BLOCK
    return (k + blocks - 1) // blocks


def packs_a(a_row, a_k, n, k, size):
    """Whether a is packed: its columns are read as rows, from places far apart, often enough to pay."""
    return a_row == size and a_k != size and n * size >= 4 * WIDEST and (k > K_WHOLE or a_k % 4096 == 0)


def a_bytes(packs, k, size):
    """Bytes of working memory for a block of a, if it is packed."""
    return M_BLOCK_PACKED * min(k, K_WHOLE) * size if packs else 0


def work_bytes(a_row: int, a_k: int, m: int, n: int, k: int, size: int) -> int:
    """Return the bytes of working memory that a product needs, or a part of its rows and columns.

    Args:
        a_row, a_k: bytes from row to row and from column to column of the first operand.
        m, n, k: rows and columns of the result, and the inner side.
        size: bytes of an element.
    """
    # of b as many columns as there are, and a panel that overlaps; or one panel, if there is but one block of rows
    columns = 2 * WIDEST // size + (min(n, N_BLOCK) if m > min(M_BLOCK, M_BLOCK_PACKED) else 0)
    return a_bytes(packs_a(a_row, a_k, n, k, size), k, size) + columns * min(k, K_WHOLE) * size
