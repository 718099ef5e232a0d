"""What linking and the compiled kernels must agree on; it needs no Numba."""

from __future__ import annotations

# A row of the linked program: what to call, flags, the address of its scalars, scratch; then its operands.
FUNCTION, FLAGS, SCALARS, SCRATCH, OPERANDS = 0, 1, 2, 3, 4
OPERAND_WIDTH = 4  # address, rows, columns, elements from row to row
MAX_OPERANDS = 8
# A worker's own numbers: its place, how many there are, barriers passed, rows of a batch, address of its workspace,
# and the place of the first step in the table of rates and the ring of losses.
WORKER, WORKERS, PASSED, BATCH_ROWS, WORK, FIRST_SLOT = 0, 1, 2, 3, 4, 5
ROW_WIDTH = OPERANDS + OPERAND_WIDTH * MAX_OPERANDS

# Forms of a product: c = a b, c = a^T b, c = a b^T.
PLAIN, FIRST_TURNED, SECOND_TURNED = 0, 1, 2

LONG, NARROW = 1024, 4
"""Workers share a matrix of more rows than LONG, and than NARROW times its columns, by rows; others by columns."""
