"""Products of large float matrices by tensor cores, each number in two parts: every form, whole tiles or not."""

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.arena import Arena
from gpumlp.executors import products, unfolding
from gpumlp.executors.unfolding import encode_steps, unfold
from gpumlp.kernels.cuda import host, source
from gpumlp.program import Call, Memory, Operand, Program

FORMS = {"plain": (False, False), "first turned": (True, False), "second turned": (False, True)}
SIZES = [
    (128, 128, 32),  # rows, columns, inner side: one whole tile
    (130, 260, 49),  # a last tile of two rows, and one of four columns
    (136, 132, 7),  # less than a step of the inner side
    (131, 133, 65),  # rows that 16 bytes do not divide
    (192, 129, 16),
]


@pytest.fixture(scope="module")
def module(host_compiler):
    return host.HostModule(text=source("float32", ["large_matmul", "column_sums"]))


def placed(matrix, gap, shift):
    """The same matrix with `gap` numbers behind each row, and `shift` before the first."""
    rows, columns = matrix.shape
    memory = np.full(shift + rows * (columns + gap), np.nan, matrix.dtype)
    view = memory[shift:].reshape(rows, columns + gap)[:, :columns]
    view[...] = matrix
    return memory, view


def multiply(module, monkeypatch, a, b, form, parts=1, gap=0, shift=0, order="ascending", blocks=None):
    """The product as the steps of a program make it, whatever its size."""
    monkeypatch.setattr(unfolding, "is_large", lambda call: True)
    monkeypatch.setattr(unfolding, "parts_of_inner", lambda *_: parts)
    turned_a, turned_b = FORMS[form]
    given = {"a": a.T if turned_a else a, "b": b.T if turned_b else b}
    arrays, views = {}, {}
    for name, matrix in given.items():
        arrays[name], views[name] = placed(np.ascontiguousarray(matrix, "float32"), gap, shift)
    c = np.full((len(a), b.shape[1]), np.nan, "float32")
    operands = [
        Operand(n, "", v.shape, "float32", start=shift, stride=v.shape[1] + gap) for n, v in views.items()
    ]
    scalars = {"transpose_a": turned_a, "transpose_b": turned_b}
    call = Call("matmul", (*operands, Operand("c", "", c.shape, "float32")), scalars)
    cpu = gm.get_backend("cpu")
    memory = Memory({}, {**arrays, "c": c})
    steps = unfold(
        Program((call,), {}, frozenset(), 1, "float32"), memory, Arena(cpu, ()), 1056, lambda _: False
    )
    assert [s.operation for s in steps] == ["large_matmul"] + ["column_sums"] * (parts > 1)
    values = np.zeros((len(steps), 8))
    rows, values[...] = encode_steps(steps, values.ctypes.data, 0)
    for step, row in zip(steps, rows, strict=True):
        module.launch(step.operation, row, blocks or step.blocks, 256, order)
    return c


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_large_product_has_what_floats_have_in_every_order_of_threads(
    module, monkeypatch, size, form, parts
):
    rows, columns, inner = size
    rng = np.random.default_rng(rows)
    a = rng.normal(size=(rows, inner)).astype("float32")
    b = rng.normal(size=(inner, columns)).astype("float32")
    found = [
        multiply(module, monkeypatch, a, b, form, parts, order=order, blocks=blocks)
        for order, blocks in (("ascending", None), ("descending", 2), ("random:5", 5))
    ]
    true = a.astype(np.float64) @ b.astype(np.float64)
    assert np.linalg.norm(found[0] - true) / np.linalg.norm(true) < 5e-7
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize(("gap", "shift"), [(4, 0), (3, 0), (0, 1), (0, 4)])
@pytest.mark.parametrize("form", FORMS)
def test_rows_may_lie_anywhere(module, monkeypatch, form, gap, shift):
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(132, 36)).astype("float32"), rng.normal(size=(36, 136)).astype("float32")
    found = multiply(module, monkeypatch, a, b, form, gap=gap, shift=shift)
    np.testing.assert_array_equal(found, multiply(module, monkeypatch, a, b, form))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_goes_through(module, monkeypatch, bad):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(130, 20)).astype("float32"), rng.normal(size=(20, 130)).astype("float32")
    a[129, 3] = bad
    found = multiply(module, monkeypatch, a, b, "plain")
    assert not np.isfinite(found[129]).any()
    assert np.isfinite(found[:129]).all()


def test_few_tiles_are_cut_along_the_inner_side_so_that_all_multiprocessors_have_one():
    assert products.parts_of_inner(60_000, 1000, 784, 132) == 1
    assert products.parts_of_inner(784, 1000, 60_000, 132) == 7  # 392 of 396 places for a tile
    assert products.parts_of_inner(4096, 4096, 4096, 132) == 1
    assert products.parts_of_inner(256, 256, 128, 132) == 1


def test_only_float32_with_wide_sides_and_much_work_is_large():
    def product(rows, columns, inner, dtype="float32", kernel="matmul"):
        shapes = ((rows, inner), (inner, columns), (rows, columns))
        operands = tuple(Operand(n, "", s, dtype) for n, s in zip("abc", shapes, strict=True))
        return Call(kernel, operands, {"transpose_a": False, "transpose_b": False})

    assert products.is_large(product(60_000, 1000, 784))
    assert not products.is_large(product(60_000, 10, 1000))
    assert not products.is_large(product(128, 128, 128))
    assert not products.is_large(product(4096, 4096, 4096, "float64"))
