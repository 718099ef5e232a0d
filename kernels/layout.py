"""What linking and the compiled kernels must agree on; it needs no Numba."""

from __future__ import annotations

# A row of the linked program: what to call, flags, the address of its scalars, scratch; then its operands.
FUNCTION, FLAGS, SCALARS, SCRATCH, OPERANDS = 0, 1, 2, 3, 4
OPERAND_WIDTH = 4  # address, rows, columns, elements from row to row
MAX_OPERANDS = 8
# A worker's own numbers, its context: its place, how many there are, barriers passed, address of its workspace.
WORKER, WORKERS, PASSED, WORK = 0, 1, 2, 3
CONTEXT_WIDTH = 8
ROW_WIDTH = OPERANDS + OPERAND_WIDTH * MAX_OPERANDS

# What workers do together, a job: three programs, each the address of its rows and CALLS behind it their number; the
# addresses of control block and ring; steps to do, steps of an epoch, place of the first step in the table of rates
# and in the ring, rows of a batch, nanoseconds after which to leave (0: never).
BEGIN, BATCH, LAST, CONTROL, RING = 0, 2, 4, 6, 7
STEPS, EPOCH_STEPS, FIRST_SLOT, BATCH_ROWS, LIMIT = 8, 9, 10, 11, 12
CALLS = 1
# What workers write, on cache lines of its own: workers at barriers; whether to leave after this step, steps done,
# three float64 sums of the epoch at hand (loss times weight, weight, loss), room for the time.
ARRIVED, LEAVE, DONE, SUMS, CLOCK = 16, 24, 25, 26, 29
JOB_WIDTH = 32

# Forms of a product: c = a b, c = a^T b, c = a b^T.
PLAIN, FIRST_TURNED, SECOND_TURNED = 0, 1, 2

# What a product's own kernel does on the way, and with its fourth operand, if that is there: adds a bias; applies relu
# behind it; multiplies by the slope of relu, whose result it is; writes the sums of the columns of b.
ADD_BIAS, ADD_AND_RELU, RELU_GRADIENT, SUM_COLUMNS = 0, 1, 2, 3

# Where both stand in the flags of a row, and how much further on those of a second product; and where, of the two, it
# stands that their result is watched for what is not finite.
FORM_BIT, ENDING_BIT, SECOND_BITS, WATCHED_BIT = 8, 10, 4, 16

TALL_ROWS, TALL_RATIO = 1024, 4
"""Workers share a tall matrix, of more rows than TALL_ROWS and than TALL_RATIO times its columns, by rows; others by
columns."""
