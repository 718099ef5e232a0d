"""Products of the resident kernel, whose factors lie in shared memory: each form, in sizes that tiles divide or not."""

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.arena import Segment
from gpumlp.executors.resident import ResidentExecutor
from gpumlp.kernels.cuda import host, source
from gpumlp.program import ACTIVATION_ARENA, Call, Operand, Program
from tests.executors.programs import memory_of

FORMS = {"plain": (False, False), "first turned": (True, False), "second turned": (False, True)}
SIZES = [
    (32, 128, 64),  # rows, columns, inner side: a tile of 32 x 32 for each warp
    (64, 128, 32),  # two
    (32, 64, 128),  # for each two warps
    (16, 64, 200),  # the same, half empty, with steps of the inner side that are not whole
    (100, 36, 10),  # tiles beyond the last row and column, an inner side that four do not divide
    (12, 96, 3),  # an inner side below four
    (32, 64, 1),
    (33, 35, 37),  # nothing that 16 bytes divide
    (5, 12, 40),  # fewer tiles than threads
    (128, 1, 32),
    (1, 64, 32),
]
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}


def calls_of(ending, o, turned):
    """A product and what stands behind it, which the kernel does on the way."""
    product = Call("matmul", (o["a"], o["b"], o["c"]), turned)
    if ending == "bias and relu":
        return product, Call("add_bias", (o["bias"], o["c"]), {}), Call("relu", (o["c"], o["y"]), {})
    if ending == "gradient of relu":
        return product, Call("relu_grad", (o["saved"], o["c"], o["y"]), {})
    return product, Call("column_sums", (o["b"], o["bias"]), {})


def run(backend, a, b, bias, saved, form, ending, dtype):
    """All operands behind the product by the resident kernel."""
    turned_a, turned_b = FORMS[form]
    shape = (a.shape[turned_a], b.shape[1 - turned_b])
    given = {
        "a": a,
        "b": b,
        "bias": bias,
        "saved": saved,
        "c": np.full(shape, np.nan, dtype),
        "y": np.full(shape, np.nan, dtype),
    }
    buffers = {name: Segment(name, v.shape, dtype) for name, v in given.items()}
    o = {name: Operand(ACTIVATION_ARENA, name, v.shape, dtype) for name, v in given.items()}
    calls = calls_of(ending, o, {"transpose_a": turned_a, "transpose_b": turned_b})
    named = {operand.name for call in calls for operand in call.operands}
    buffers = {name: segment for name, segment in buffers.items() if name in named}
    program = Program(calls, buffers, frozenset(named - ({"c"} if "y" in named else set())), shape[0], dtype)
    network = gm.mlp((7, 4, 3), device="stand-in", dtype=dtype)
    executor = ResidentExecutor(backend, memory_of(network))
    executor.prepare(program)
    for name in named & {"a", "b", "bias", "saved"}:
        executor.view(program, o[name])[...] = given[name]
    executor.execute(program)
    assert len(executor.linked(program).steps) == 1
    results = ("y",) if "y" in named else ("c", "bias")
    return {name: np.array(executor.view(program, o[name])) for name in results}


ENDINGS = [
    (ending, form)
    for ending in ("bias and relu", "gradient of relu", "sums of columns")
    for form in FORMS
    if ending != "sums of columns" or FORMS[form][0]  # the gradient of a weight turns its first factor
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("ending", "form"), ENDINGS)
def test_a_product_in_shared_memory_is_right_in_every_order_of_its_threads(
    size, form, ending, dtype, stand_in
):
    assert_right(size, form, ending, dtype, stand_in)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("ending", "form"), ENDINGS)
def test_so_is_one_on_a_gpu_that_has_no_tensor_cores_for_floats(size, form, ending, stand_in, monkeypatch):
    plain = (
        f"#define GPUMLP_WITHOUT_TENSOR_CORES\n{source('float32', (), walked=['matmul', 'narrow_relu_grad'])}"
    )
    monkeypatch.setattr(host, "source", lambda *given, **named: plain)
    assert_right(size, form, ending, "float32", stand_in)


def assert_right(size, form, ending, dtype, stand_in):
    rows, columns, inner = size
    rng, (turned_a, turned_b) = np.random.default_rng(0), FORMS[form]
    a = rng.normal(size=(inner, rows) if turned_a else (rows, inner)).astype(dtype)
    b = rng.normal(size=(columns, inner) if turned_b else (inner, columns)).astype(dtype)
    bias = rng.normal(size=columns).astype(dtype)
    x, y = (
        m.T.astype("longdouble") if t else m.astype("longdouble") for m, t in ((a, turned_a), (b, turned_b))
    )
    saved = np.maximum(rng.normal(size=(rows, columns)), 0).astype(dtype)
    if ending == "bias and relu":
        expected = {"y": np.maximum(x @ y + bias, 0)}
    elif ending == "gradient of relu":
        expected = {"y": x @ y * (saved > 0)}
    else:
        expected = {"c": x @ y, "bias": b.sum(axis=0, dtype="longdouble")}
    found = [
        run(stand_in(order=order), a, b, bias, saved, form, ending, dtype)
        for order in ("ascending", "descending", "random:2")
    ]
    for name, value in expected.items():
        allowed = TOLERANCE[dtype] * (1 + np.abs(value).max()) * np.sqrt(inner + 1)
        assert np.abs(found[0][name] - value).max() <= allowed, name
        for other in found[1:]:
            np.testing.assert_array_equal(other[name], found[0][name])
