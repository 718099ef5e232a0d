"""The products of cuBLASLt on its stand-in: what is asked of the library, and that its answers are tried."""

# mypy: ignore-errors
# The stand-ins are modules and classes put together from attributes, which types cannot follow.

import inspect
import sys

import numpy as np
import pytest

from gpumlp.kernels import PRODUCTS
from gpumlp.kernels.cuda import cupy_device
from gpumlp.kernels.cuda.cublaslt import EPILOGUES, OTHERS
from gpumlp.kernels.cuda.device import ProductKind
from tests.kernels.stand_in_cublaslt import (
    ATTRIBUTE_TYPES,
    EPILOGUE,
    PREFERENCE_TYPES,
    FakeCublasLt,
    cuBLASLtError,
)
from tests.kernels.stand_in_cupy import CUDA

KINDS = [
    ProductKind(name, 40, 24, inner, ta, tb, dtype, precision)
    for name in EPILOGUES
    for ta, tb in ((False, False), (True, False), (False, True))
    for dtype, precision in (
        *(("float32", "float32"), ("float32", "tf32"), ("float64", "float32")),
        *(("float32", "bf16"), ("uint16", "bf16")),
    )
    for inner in (1, 17)
    if name != "product_bias_grad" or ta  # weights' gradients alone have it
]


@pytest.mark.parametrize("product", KINDS, ids=lambda k: f"{k.kernel}-{k.inner}-{k.dtype}-{k.precision}")
def test_every_product_is_described_as_the_library_computes_it(product, gpu):
    has_gradient = product.kernel.endswith("grad")
    assert gpu().device.supports_product(product) is not (has_gradient and product.inner == 1)


@pytest.mark.parametrize("lost", [0.0, 5.0])
@pytest.mark.parametrize("last", [True, False])
def test_a_gradient_of_relu_may_select_by_its_mask_where_a_nan_times_0_is_nan(
    last, lost, gpu, library, monkeypatch
):
    """Nothing is lost by 0: the gradient above has the NaN. Another number there is wrong."""
    right = library._epilogue

    def selecting(given, left, x, kind):
        masked = right(given, left, np.ones_like(x), kind) == 0
        product = right(given, left, np.where(masked, 0, x), kind)  # writes the sums of the columns too
        return np.where(masked & np.isnan(x), lost, product)

    monkeypatch.setattr(library, "_epilogue", selecting)
    kind = ProductKind("product_relu_grad", 8, 24, 16, False, True, "float32", "float32", last)
    assert gpu().device.supports_product(kind) is (lost == 0)


def test_an_epilogue_that_the_library_computes_wrong_is_not_taken(gpu, library, monkeypatch):
    right = library._epilogue
    monkeypatch.setattr(library, "_epilogue", lambda *given: 1.01 * right(*given))
    assert not gpu().device.supports_product(
        ProductKind("product_bias", 8, 8, 8, False, False, "float32", "float32")
    )


def test_what_the_library_has_not_is_one_clear_error(gpu, library, monkeypatch):
    device = gpu().device
    with device.active():
        a, b, c = (sys.modules["cupy"].zeros((8, 8), np.float32) for _ in range(3))
    product = cupy_device.Product("matmul", (a, b, c), False, False, "tf32")

    def refuse(*given):
        raise cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(library, "matmul_algo_get_heuristic", refuse)
    with pytest.raises(
        ValueError, match=r"no algorithm for matmul of \(8, 8\) and \(8, 8\), float32, in tf32; train"
    ):
        device.product(product)


def test_whether_there_is_an_algorithm_is_asked_without_memory_for_the_matrices(gpu):
    device = gpu().device
    CUDA.free = 40 << 20  # less than the matrices of this product
    huge = ProductKind("product_bias", 60_000, 1000, 784, False, False, "float32", "float32")
    assert device.supports_product(huge)


# --- the real ones, where they are --------------------------------------------------------------------------------


def test_the_library_is_asked_for_every_product_that_there_is():
    assert set(EPILOGUES) == set(OTHERS) == PRODUCTS


def test_the_stand_in_takes_what_nvmath_takes():
    real = pytest.importorskip("nvmath.bindings.cublasLt", reason="nvmath-python is not installed")
    for name, function in vars(FakeCublasLt).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            own = list(inspect.signature(function).parameters)[1:]
            assert list(inspect.signature(getattr(real, name)).parameters) == own, name


def test_the_stand_in_numbers_epilogues_and_types_as_nvmath_does():
    real = pytest.importorskip("nvmath.bindings.cublasLt", reason="nvmath-python is not installed")
    for member in EPILOGUE:
        assert real.Epilogue[member.name] == member
    for name, dtype in ATTRIBUTE_TYPES.items():
        assert real.get_matmul_desc_attribute_dtype(real.MatmulDescAttribute[name]) == dtype
    for name, dtype in PREFERENCE_TYPES.items():
        attribute = real.MatmulPreferenceAttribute[name]
        assert real.get_matmul_preference_attribute_dtype(attribute) == dtype
    algorithms = np.array(real.MatmulHeuristicResult(1).algo["data_"]).reshape(-1)
    assert (algorithms.size, algorithms.itemsize) == (8, 8)
