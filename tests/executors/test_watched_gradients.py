"""Operations that write gradients flag what is not finite themselves, and the pass over all gradients goes."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import numpy as np
import pytest

import gpumlp as gm
from bench.gpu_check.checks import executor
from gpumlp.executors import EagerExecutor, tailoring
from gpumlp.executors.graph import GraphExecutor
from gpumlp.executors.linking import Place
from gpumlp.executors.unfolding import Step, encode_steps, written
from gpumlp.executors.watching import watch_gradients
from gpumlp.failure import NonFiniteLossError
from gpumlp.kernels import BAD_STEP, STEP
from gpumlp.kernels.cuda import source
from gpumlp.kernels.cuda.host import HostModule, compiler
from gpumlp.kernels.layout import ENDING_BIT, FIRST_TURNED, FORM_BIT, SECOND_BITS, SUM_COLUMNS, WATCHED_BIT
from gpumlp.program import new_control
from tests.executors.gpu_trainings import LABELS, X

CONTROL_STEP = 7


def place(array: np.ndarray) -> Place:
    rows, columns = array.shape if array.ndim == 2 else (1, array.size)
    return Place(array.ctypes.data, rows, columns, columns, array.itemsize)


def is_flagged(module: HostModule, step: Step, blocks: int = 3) -> bool:
    """Whether an operation flags its step, and with the right number."""
    control, values = new_control(0), np.zeros((1, 8))
    control[STEP] = CONTROL_STEP
    step.control = place(control)
    rows, values[...] = encode_steps([step], values.ctypes.data, 0)
    module.launch(step.operation, rows[0], blocks, 256, "random:3")
    assert control[BAD_STEP] in (-1, CONTROL_STEP)
    return bool(control[BAD_STEP] == CONTROL_STEP)


# --- each kind of writer -------------------------------------------------------------------------------------------

# rows and columns of a weight's gradient, and rows of the batch: each way in which a product is made
SIZES = [(32, 48, 36), (34, 18, 14), (33, 35, 37), (3, 40, 20), (24, 1, 40), (1, 24, 40), (784, 500, 16)]


@pytest.fixture(scope="session")
def host_compiler() -> None:
    try:
        compiler()
    except RuntimeError:
        pytest.skip("no C++ compiler builds the GPU's kernels here")


@pytest.fixture(scope="module", params=["float32", "without tensor cores", "float64"])
def module(request, host_compiler):
    if request.param == "without tensor cores":
        names = ["matmul", "small_matmul", "matmul_pair"]
        return np.float32, HostModule(text=f"#define GPUMLP_WITHOUT_TENSOR_CORES\n{source('float32', names)}")
    return np.dtype(request.param).type, HostModule(request.param)


def gradient(size, dtype, bad: str, operation: str = "matmul") -> tuple[Step, list[np.ndarray]]:
    """A weight's gradient with the sums of the bias's, and its arrays; `bad`: what of them is not finite."""
    rows, columns, inner = size
    rng = np.random.default_rng(rows)
    x, dy = rng.normal(size=(inner, rows)).astype(dtype), rng.normal(size=(inner, columns)).astype(dtype)
    if bad == "weight":  # one number, in the last place
        x[-1, -1] = np.nan
    elif bad == "bias":
        x[:2] = 0
        dy[:2, -1] = np.finfo(dtype).max * 0.6  # a float is as good as any to the tensor cores
    dw, db = np.zeros((rows, columns), dtype), np.zeros(columns, dtype)
    flags = FIRST_TURNED << FORM_BIT | SUM_COLUMNS << ENDING_BIT
    return Step(operation, [place(a) for a in (x, dy, dw, db)], flags=flags), [x, dy, dw, db]


@pytest.mark.parametrize("operation", ["matmul", "small_matmul"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bad", ["", "weight", "bias"])
def test_a_product_flags_a_number_of_its_result_or_sums_that_is_not_finite(module, operation, size, bad):
    dtype, kernels = module
    step, arrays = gradient(size, dtype, bad, operation)
    assert is_flagged(kernels, step) == bool(bad)
    *_, dw, db = arrays
    assert np.isfinite(dw).all() == (bad != "weight")
    assert np.isfinite(db).all() == (bad != "bias")


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
@pytest.mark.parametrize("bad", ["", "weight", "input"])
@pytest.mark.parametrize("watched", [0, 1])
def test_of_two_products_that_one_flags_which_is_a_gradient_of_parameters(module, size, bad, watched):
    dtype, kernels = module
    one, arrays = gradient(size, dtype, bad if bad == "weight" else "")
    other, more = gradient(size, dtype, "weight" if bad == "input" else "")
    step = Step(
        "matmul_pair", [*one.places, *other.places], [2], flags=one.flags | other.flags << SECOND_BITS
    )
    step.flags |= 1 << WATCHED_BIT + watched
    assert is_flagged(kernels, step, 5) == (bad == ("weight", "input")[watched])
    assert len(arrays) == len(more)


@pytest.mark.parametrize("operation", ["column_sums", "relu_grad_bias"])
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("columns", [1, 5, 200])
def test_sums_of_columns_are_flagged_where_they_overflow(host_compiler, operation, bad, columns):
    dy = np.ones((9, columns), np.float32)
    if bad:
        dy[3:5, -1] = 3e38
    saved, dx, db = np.full_like(dy, 0.5), np.zeros_like(dy), np.zeros(columns, np.float32)
    arrays = [dy, db] if operation == "column_sums" else [saved, dy, dx, db]
    assert is_flagged(HostModule("float32"), Step(operation, [place(a) for a in arrays])) == bad
    assert np.isfinite(db).all() != bad


@pytest.mark.parametrize("bad", [None, 0, 1, 2])
def test_so_are_those_of_shares_in_any_of_three_vectors(host_compiler, bad):
    parts = [np.ones((4, columns), np.float32) for columns in (70, 7, 3)]
    if bad is not None:
        parts[bad][2:, -1] = 3e38
    wholes = [np.zeros(part.shape[1], np.float32) for part in parts]
    pairs = zip(parts, wholes, strict=True)
    step = Step("sums_of_shares", [place(a) for pair in pairs for a in pair], [3, 1, 1])
    assert written(step) == [[place(whole) for whole in wholes]]
    assert is_flagged(HostModule("float32"), step, 5) == (bad is not None)
    assert [bool(np.isfinite(whole).all()) for whole in wholes] == [k != bad for k in range(3)]


# --- whole steps -----------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(monkeypatch):
    """Operations of the training steps that graphs are made of, as they are linked."""
    found: list[list[str]] = []
    usual = GraphExecutor.with_advance

    def noted(self, program, plan):
        whole = usual(self, program, plan)
        found.append([step.operation for step in whole.steps])
        return whole

    monkeypatch.setattr(GraphExecutor, "with_advance", noted)
    return found


def plain():
    return [gm.Linear(5, 90), gm.ReLU(), gm.Linear(90, 61), gm.Tanh(), gm.Linear(61, 3)]


def normalised():
    return [gm.Linear(5, 16), gm.BatchNorm1d(16), gm.ReLU(), gm.Linear(16, 3)]


@pytest.mark.parametrize(
    ("layers", "optimizer", "precision", "passes"),
    [
        (plain, gm.SGD(0.1), "float32", False),
        (plain, gm.Adam(0.1, clip_norm=1.0), "float32", False),
        (plain, gm.Adam(0.1), "float32", True),  # squares of gradients may overflow
        (plain, gm.SGD(0.1), "tf32", True),  # products by the library
        (normalised, gm.SGD(0.1), "float32", True),  # gradients of a normalisation
    ],
)
def test_the_pass_stays_where_not_all_that_write_gradients_can_flag_them(
    layers, optimizer, precision, passes, stand_in, linked
):
    stand_in()
    network = gm.Sequential(*layers(), device="stand-in", seed=1)
    trainer = gm.Trainer(network, loss="cross_entropy", optimizer=optimizer, precision=precision)
    with executor(GraphExecutor):
        trainer.fit(X, LABELS, epochs=1, batch_size=16, progress=False)
    assert linked
    assert all(("check_gradients" in operations) == passes for operations in linked)


def test_the_pass_stays_where_gradients_come_from_elsewhere():
    gradients, control = np.zeros(64, np.float32), new_control(0)
    check = Step("check_gradients", [place(gradients), place(control)], [0.0])
    assert watch_gradients([check]) == [check]
    assert watch_gradients([Step("relu", [None, place(np.zeros(4))]), check])[-1] is check


def three_layers(device, hidden):
    """Outputs and loss are finite, the gradients of the first layers are not."""
    sizes = (1, *hidden, 1)
    layers = [gm.Linear(a, b) for a, b in pairwise(sizes)]
    network = gm.Sequential(*layers, dtype="float32", seed=0, device=device)
    for layer, value in zip(network.layers, (1e-37, 1e22, 1e22), strict=True):
        layer.weight[...] = value
    return network


@pytest.mark.parametrize("hidden", [(6, 5), (64, 70), (90, 61)], ids=str)
@pytest.mark.parametrize("tailored", [False, True])
def test_a_training_ends_at_the_step_that_the_cpu_names_and_with_its_weights(
    hidden, tailored, stand_in, linked
):
    stand_in()
    failures, weights = [], []
    for device, kind in (("stand-in", GraphExecutor), ("cpu", EagerExecutor)):
        network = three_layers(device, hidden)
        trainer = gm.Trainer(network, loss="mse", optimizer=gm.SGD(1e-3, momentum=0.9), seed=5)
        at_once = tailoring.at_once() if tailored else contextlib.nullcontext()
        with executor(kind), at_once, pytest.raises(NonFiniteLossError) as error:
            trainer.fit(
                np.ones((40, 1)), np.zeros((40, 1)), epochs=2, batch_size=20, shuffle=False, progress=False
            )
        failures.append((error.value.epoch, error.value.batch, error.value.layer))
        weights.append(network.state_dict())
    assert failures[0] == failures[1]
    for name, value in weights[1].items():
        np.testing.assert_array_equal(weights[0][name], value, err_msg=name)
    assert linked
    assert all("check_gradients" not in operations for operations in linked)
