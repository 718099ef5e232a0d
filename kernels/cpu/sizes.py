"""How products are cut into tiles and blocks, and what working memory that takes; it needs no Numba."""

from __future__ import annotations

from .processor import vector_bytes

WIDEST = vector_bytes()
ROWS = 8 if WIDEST == 64 else 6
"""Rows of a tile: with two vectors a row its sums take 16 of 32 registers, or 12 of 16."""

K_WHOLE, K_BLOCK = 1024, 512
"""An inner side up to the first is taken in one pass; a longer one in blocks of the second."""
M_BLOCK, M_BLOCK_PACKED = 1024, 256
"""Rows of c that a block of columns of b serves; fewer where a is packed, which must fit the second cache too."""
PANEL_BYTES = K_WHOLE * 2 * WIDEST
"""Working memory for a panel of b."""


def packs_a(a_row, a_k, n, k, size):
    """Whether a is packed: its columns are read as rows, from places far apart, often enough to pay."""
    return a_row == size and a_k != size and n * size >= 4 * WIDEST and (k > K_WHOLE or a_k % 4096 == 0)


def work_bytes(a_row: int, a_k: int, n: int, k: int, size: int) -> int:
    """Return the bytes of working memory that a product needs.

    Args:
        a_row, a_k: bytes from row to row and from column to column of the first operand.
        n, k: columns of the result, and the inner side.
        size: bytes of an element.
    """
    if not packs_a(a_row, a_k, n, k, size):
        return PANEL_BYTES
    return PANEL_BYTES + M_BLOCK_PACKED * (K_BLOCK if k > K_WHOLE else k) * size
