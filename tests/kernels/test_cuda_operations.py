"""What only the kernels for GPUs have: how many blocks share an operation, bfloat16, and counters on the device."""

import numpy as np
import pytest

from gpumlp.executors.unfolding import UPDATES
from gpumlp.kernels import BAD_STEP, EPOCH, POSITION, SLOT, START, STEP, UPDATE, kernel_spec
from gpumlp.kernels.cuda import OPERATIONS, blocks, shares
from gpumlp.kernels.cuda.host import HostModule
from gpumlp.kernels.layout import OPERAND_WIDTH, OPERANDS, ROW_WIDTH, SCALARS, SCRATCH
from gpumlp.kernels.reference.products import to_bfloat16
from gpumlp.program import new_control


def test_a_matrix_is_split_into_shares_only_where_there_are_rows_and_multiprocessors_for_it():
    assert shares(32, 128, 256, 132) == (1, 4)
    assert shares(60_000, 10, 256, 132) == (132, 1)
    assert shares(60_000, 1000, 256, 528) == (16, 32)
    assert shares(60_000, 8192, 256, 132) == (1, 256)


def test_shares_of_a_matrix_in_bfloat16_are_of_twice_the_columns_and_run_at_once():
    assert shares(4096, 4096, 256, 1056, halves=True) == (
        8,
        64,
    )  # four blocks on each of 132 multiprocessors, but 16
    assert shares(4096, 4096, 256, 1056) == (8, 128)
    assert shares(4096, 48, 256, 1056, halves=True) == (128, 1)
    assert shares(64, 4096, 256, 1056, halves=True) == (2, 64)


def row_of(*arrays: np.ndarray, scalars: tuple[float, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    row, values = np.zeros(ROW_WIDTH, np.int64), np.zeros(8)
    values[: len(scalars)] = scalars
    row[SCALARS] = values.ctypes.data
    for k, array in enumerate(arrays):
        rows, columns = array.shape if array.ndim == 2 else (1, array.size)
        stride = array.strides[0] // array.itemsize if array.ndim == 2 else columns
        first = OPERANDS + OPERAND_WIDTH * k
        row[first : first + OPERAND_WIDTH] = array.ctypes.data, rows, columns, stride
    return row, values


def test_bfloat16_is_rounded_to_nearest_even_and_keeps_nan_and_infinity(host_compiler):
    """All upper halves with lower halves on both sides of a tie, and on it."""
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    bits = (upper[:, None] | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).ravel()
    x = bits.view(np.float32)[None, :]
    y = np.zeros(x.shape, np.uint16)
    row, _keep = row_of(x, y)
    HostModule("float32").launch("cast_bf16", row, 2, 256)
    with np.errstate(invalid="ignore"):
        wanted = to_bfloat16(np, x)
    nan = np.isnan(x)
    np.testing.assert_array_equal(y[~nan], wanted[~nan])
    assert ((y[nan] & 0x7FFF) > 0x7F80).all()


def test_a_double_is_rounded_to_bfloat16_once(host_compiler):
    """1 + 2^-8 is a tie in bfloat16 and goes to 1; what is beyond it by less than a float can tell must go up."""
    x = np.array(
        [[1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, -1 - 2.0**-8 - 2.0**-40, np.nan]]
    )
    y = np.zeros(x.shape, np.uint16)
    row, _keep = row_of(x, y)
    HostModule("float64").launch("cast_bf16", row, 1, 32)
    np.testing.assert_array_equal(y[0, :4], [0x3F80, 0x3F81, 0x3F80, 0xBF81])
    assert (y[0, 4] & 0x7FFF) > 0x7F80


@pytest.mark.parametrize("position", [0, 3, 4])
def test_the_counters_advance_after_a_good_step_only(host_compiler, position):
    module, control = HostModule("float32"), new_control(seed=11)
    control[[POSITION, START]] = position, 64 * position
    before = control.copy()
    row, _keep = row_of(control, scalars=(64, 5))
    module.launch("advance", row, 1, 64)
    after = (position + 1) % 5
    np.testing.assert_array_equal(control[[STEP, UPDATE, SLOT]], before[[STEP, UPDATE, SLOT]] + 1)
    assert control[POSITION] == after
    assert control[START] == (before[START] + 64 if after else 0)
    assert control[EPOCH] == before[EPOCH] + (after == 0)
    control[BAD_STEP] = 3
    flagged = control.copy()
    module.launch("advance", row, 1, 64)
    np.testing.assert_array_equal(control, flagged)


@pytest.mark.parametrize("order", ["ascending", "descending", "random:3"])
@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("update", [name for name in sorted(UPDATES) if not name.endswith("_cast")])
def test_the_last_block_of_an_update_moves_the_counters_on(host_compiler, update, blocks, order):
    module, control, came = HostModule("float32"), new_control(seed=11), np.zeros(1, np.uint32)
    numbers = [np.ones((1, 300), np.float32) for _ in range(len(kernel_spec(update).operands) - 2)]
    row, _keep = row_of(control, np.full((1, 8), 0.1), *numbers, scalars=(0, 0.5, 0.5, 0.1, 0, 0, 64, 3))
    row[SCRATCH] = came.ctypes.data
    for step in range(1, 4):
        module.launch(update, row, blocks, 64, order)
        assert came[0] == 0
        assert list(control[[STEP, UPDATE, SLOT, POSITION]]) == [step, step, step, step % 3]
    control[BAD_STEP] = 3
    flagged = control.copy()
    module.launch(update, row, blocks, 64, order)
    np.testing.assert_array_equal(control, flagged)
    assert came[0] == 0


def test_a_grid_has_as_many_blocks_as_there_is_work_and_no_more_than_the_machine_holds():
    assert blocks(OPERATIONS["relu"], 32, 128, 256, 132) == 4
    assert blocks(OPERATIONS["relu"], 60_000, 1000, 256, 1056) == 1056
    assert blocks(OPERATIONS["softmax"], 60_000, 10, 256, 10_000) == 938  # 4 lanes a row
    assert blocks(OPERATIONS["column_sums"], 60_000, 1000, 256, 132) == 32
    assert blocks(OPERATIONS["matmul"], 64, 64, 256, 132) == 32
    assert blocks(OPERATIONS["sum_weights"], 1, 800, 256, 132) == 1
    assert all(blocks(o, 0, 0, 256, 132) == 1 for o in OPERATIONS.values())
