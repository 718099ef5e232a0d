"""Products of the library with each epilogue, in each precision, against NumPy in float64."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gpumlp.kernels import BFLOAT16, PRODUCTS, kernel_spec
from gpumlp.kernels.cuda.device import Product, ProductKind
from gpumlp.kernels.cuda.trial import operand_types
from gpumlp.kernels.reference import kernel
from gpumlp.kernels.reference.epilogues import unpack_mask
from gpumlp.kernels.reference.products import as_float, to_bfloat16

from .checks import PRECISIONS, PRODUCT_TOLERANCE, Check, Context, Failed, Skipped, Values, relative_error

# rows and columns of c, and the inner side: of the workloads, odd ones, one row, one column, a square of each kind
SHAPES = (
    *((32, 128, 64), (64, 500, 784), (64, 10, 100), (24, 100, 250), (33, 7, 129), (1, 64, 17)),
    *((280, 1, 128), (1000, 1000, 784), (784, 1000, 6000), (1024, 1024, 1024), (4096, 1000, 784)),
)
LARGE = ((4096, 4096, 4096),)
ON_HOST = ((32, 128, 64), (33, 7, 129), (1, 64, 17))

FORMS = {
    "matmul": ((False, False), (True, False), (False, True)),
    "product_bias_grad": ((True, False),),
    "product_relu_grad": ((False, True),),
    "product_gelu_tanh_grad": ((False, True),),
}
"""Which operands training steps turn, by product; the others turn none."""

TO_BFLOAT16 = "bf16 to bf16"
"""Products whose result is bfloat16 too."""

OPTIONAL = {name for name in PRODUCTS if kernel_spec(name).optional}


def checks(context: Context) -> list[Check]:
    """Each epilogue in each precision: its numbers, and its NaN."""
    found = []
    for name in sorted(PRODUCTS):
        for precision in (*PRECISIONS, TO_BFLOAT16, "float64"):
            label = f"{name} {precision}"
            found.append(Check(label, functools.partial(check_product, context, name, precision)))
            found.append(
                Check(f"NaN through {label}", functools.partial(check_nan, context, name, precision))
            )
    found.append(Check("a large product in bf16", functools.partial(check_large, context), limit=120))
    return found


def kinds(
    context: Context, name: str, precision: str, shapes: tuple[tuple[int, int, int], ...]
) -> Iterator[ProductKind]:
    """All that is asked of one epilogue in one precision."""
    dtype = {"float64": "float64", TO_BFLOAT16: BFLOAT16}.get(precision, "float32")
    named = {"float64": "float32", TO_BFLOAT16: "bf16"}.get(precision, precision)
    for m, n, k in shapes:
        for ta, tb in FORMS.get(name, ((False, False),)):
            for last in (True, False) if name in OPTIONAL else (True,):
                yield ProductKind(name, m, n, k, ta, tb, dtype, named, last)


def operands(kind: ProductKind, seed: int = 0) -> list[np.ndarray | None]:
    """Return operands in the order of the catalogue, normal numbers; what is written is NaN."""
    dtype = np.dtype("float64" if kind.dtype == "float64" else "float32")
    drawn = _drawn(replace(kind, dtype="float32", precision="float32", last=True), seed)
    values: list[np.ndarray | None] = []
    for name, (shape, _) in operand_types(kind).items():
        if name in drawn:  # copies: who asks may write into them
            values.append(drawn[name].astype(np.uint8 if name == "mask" else dtype))
        else:
            values.append(np.full(shape, np.nan, dtype))
    if not kind.last:
        values[-1] = None
    return values


@functools.lru_cache(maxsize=40)
def _drawn(kind: ProductKind, seed: int) -> dict[str, np.ndarray]:
    """Return what is read, which is the same in all precisions: drawing takes as long as multiplying.

    All kinds of one epilogue find room, which are asked for in one precision after the other.
    """
    rng = np.random.default_rng(seed)
    reads = kernel_spec(kind.kernel).reads
    return {
        name: rng.integers(0, 256, shape).astype(np.uint8)
        if name == "mask"
        else rng.standard_normal(shape, dtype=np.float32)
        for name, (shape, _) in operand_types(kind).items()
        if name == "mask" or name in reads
    }


def multiply(context: Context, kind: ProductKind, values: list[np.ndarray | None]) -> dict[str, np.ndarray]:
    """Run the product on the device; return what it wrote, by name."""
    backend, spec = context.backend, kernel_spec(kind.kernel)
    rounded = {"float64": 0, BFLOAT16: len(values)}.get(kind.dtype, 2 if kind.precision == "bf16" else 0)
    placed = [
        None
        if v is None
        else backend.asarray(to_bfloat16(np, v) if i < rounded and v.dtype.kind == "f" else v)
        for i, v in enumerate(values)
    ]
    product = Product(kind.kernel, tuple(placed), kind.transpose_a, kind.transpose_b, kind.precision)
    launch = context.gpu.product(product)
    with backend.active():
        launch()
    backend.synchronize()
    found = {
        spec.operands[k]: np.array(backend.to_host(placed[k])) for k in kind.written if placed[k] is not None
    }
    return {k: as_float(np, v) for k, v in found.items()}


@functools.lru_cache(maxsize=64)
def truth(kind: ProductKind) -> dict[str, np.ndarray]:
    """Return `true_product` of the `operands` of a kind in float64: the numbers of all precisions are the same."""
    return true_product(kind, operands(kind))


def true_product(kind: ProductKind, values: list[np.ndarray | None]) -> dict[str, np.ndarray]:
    """Return the same in float64, of operands that nothing has rounded."""
    wide = [None if v is None else v.copy() if v.dtype == np.uint8 else v.astype(np.float64) for v in values]
    with np.errstate(all="ignore"):
        kernel(kind.kernel)(np, *wide, kind.transpose_a, kind.transpose_b)
    spec = kernel_spec(kind.kernel)
    return {spec.operands[k]: v for k in kind.written if (v := wide[k]) is not None}


def judge(
    kind: ProductKind,
    values: list[np.ndarray | None],
    found: dict[str, np.ndarray],
    true: dict[str, np.ndarray],
    tolerance: float,
) -> dict[str, float]:
    """Return the relative error of each result; of a mask the share of bits that are not those of c > 0."""
    errors: dict[str, float] = {}
    for name, value in found.items():
        if name == "mask":
            wrong = unpack_mask(np, value, kind.columns) != (found["c"] > 0)
            errors[name] = float((wrong & ~_near_kink(kind, values, wrong, tolerance)).mean())
        elif name == "db":
            # sums may cancel: beside what is summed, not beside themselves
            summed = values[1] if kind.kernel == "product_bias_grad" else true["c"]
            assert summed is not None
            errors[name] = relative_error(value, true[name], max(1e-3, float(np.linalg.norm(summed))))
        else:
            errors[name] = relative_error(value, true[name])
    return errors


def _near_kink(
    kind: ProductKind, values: list[np.ndarray | None], wrong: np.ndarray, tolerance: float
) -> np.ndarray:
    """Where the input of relu is 0 within rounding: there a bit may be either way, and any slope will do."""
    if not wrong.any():
        return wrong
    a, b, bias = (np.asarray(v, np.float64) for v in values[:3])
    x = (a.T if kind.transpose_a else a) @ (b.T if kind.transpose_b else b) + bias
    near: np.ndarray = np.abs(x) <= tolerance * np.sqrt(np.mean(x**2))
    return near


def check_product(context: Context, name: str, precision: str) -> Values:
    """Hold one epilogue at all shapes against float64."""
    _need_library(context)
    tolerance = PRODUCT_TOLERANCE["bf16" if precision == TO_BFLOAT16 else precision]
    worst, faults, absent, count = 0.0, [], [], 0
    for kind in kinds(context, name, precision, context.either(SHAPES, ON_HOST)):
        label = _label(kind)
        if not context.gpu.supports_product(kind):
            absent.append(label)
            continue
        values = operands(kind)
        true = truth(replace(kind, dtype="float64", precision="float32"))
        errors = judge(kind, values, multiply(context, kind, values), true, tolerance)
        count += 1
        for operand, error in errors.items():
            worst = max(worst, error)
            limit = 0.0 if operand == "mask" else tolerance
            if not error <= limit:
                faults.append(f"{label}: {operand} is {error:.3g} off, expected at most {limit:g}")
    found = {"error": worst, "tolerance": tolerance, "products": count, "not supported": absent}
    if faults:
        raise Failed(faults[0], {**found, "faults": faults})
    if not count and (name != "matmul" or precision == TO_BFLOAT16):
        raise Skipped("the library has none that is right; kernels of its own do the epilogue")
    if absent and name == "matmul" and precision != TO_BFLOAT16:  # those are written in float32
        raise Failed(f"the library has no plain product {absent[0]}", found)
    return found


def check_nan(context: Context, name: str, precision: str) -> Values:
    """A NaN in the first operand, or in the bias, shows wherever it does in the reference."""
    _need_library(context)
    faults, count = [], 0
    for kind in kinds(context, name, precision, context.either(SHAPES[:6], ON_HOST)):
        if not context.gpu.supports_product(kind):
            continue
        count += 1
        for place in (0, 1, 2):
            values = operands(kind)
            lost = values[place]
            if lost is None or place >= len(kernel_spec(name).reads) or lost.dtype.kind != "f":
                continue
            lost[tuple(n - 1 for n in lost.shape)] = np.nan
            found, true = multiply(context, kind, values), true_product(kind, values)
            allowed = [true]
            if name == "product_relu_grad":  # a mask may select where it is 0: see `CublasLt.supports`
                allowed.append(selected(kind, values, true))
            faults += [
                f"{_label(kind)}, NaN in operand {place}: {operand} has it in other places"
                for operand in found
                if operand != "mask"
                and not any(np.array_equal(np.isnan(found[operand]), np.isnan(a[operand])) for a in allowed)
            ]
    if faults:
        raise Failed(faults[0], {"faults": faults})
    if not count:
        raise Skipped("the library has none that is right")
    return {"products": count}


def selected(
    kind: ProductKind, values: list[np.ndarray | None], true: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the gradient of relu with 0 wherever its mask has no bit, NaN or not."""
    mask = values[kernel_spec(kind.kernel).operands.index("mask")]
    assert mask is not None
    c = np.where(unpack_mask(np, mask, kind.columns), true["c"], 0.0)
    return {"c": c, "db": c.sum(axis=0)}


def check_large(context: Context) -> Values:
    """Hold a few rows of a product that fills the GPU against float64."""
    _need_library(context)
    ((m, n, k),) = context.either(LARGE, ((128, 128, 128),))
    kind = ProductKind("product_bias", m, n, k, False, False, "float32", "bf16")
    if not context.gpu.supports_product(kind):
        raise Skipped("the library has none that is right")
    values = operands(kind)
    found = multiply(context, kind, values)["c"]
    a, b, bias = (np.asarray(v, np.float64) for v in values[:3])
    rows = np.arange(0, m, max(1, m // 16))
    error = relative_error(found[rows], a[rows] @ b + bias)
    if not error <= PRODUCT_TOLERANCE["bf16"]:
        raise Failed(f"it is {error:.3g} off", {"error": error})
    return {"error": error, "tolerance": PRODUCT_TOLERANCE["bf16"], "shape": [m, n, k]}


def _need_library(context: Context) -> None:
    if not context.gpu.has_products:
        raise Skipped("nvmath-python is not installed: there are no products of a library")


def _label(kind: ProductKind) -> str:
    form = f"{'a^T' if kind.transpose_a else 'a'} {'b^T' if kind.transpose_b else 'b'}"
    return f"{kind.rows} x {kind.columns} x {kind.inner} {form}{'' if kind.last else ', no last operand'}"
