"""Products by cuBLASLt through nvmath-python's bindings: CuPy's own calls of cuBLAS cannot be captured into a graph.

Matrices here are row-major, and the library's column-major: it computes the transposed product, c^T = b^T a^T, of the
same memory. So its first operand is our b, the rows of its result are our columns, and its vectors, biases and their
gradients, have one entry for each of our columns and are, as what an epilogue saves, of the type of the result.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from .device import Launch, Product, ProductKind
from .trial import computes_right, operand_types, small

WORKSPACE_BYTES = 32 << 20
"""What NVIDIA recommends for Hopper."""

EPILOGUES = {
    "matmul": "DEFAULT",
    "product_bias": "BIAS",
    "product_bias_relu": "RELU_AUX_BIAS",
    "product_bias_gelu_tanh": "GELU_AUX_BIAS",
    "product_bias_grad": "BGRADA",  # the library's first operand is our second, whose columns are summed
    "product_relu_grad": "DRELU_BGRAD",
    "product_gelu_tanh_grad": "DGELU_BGRAD",
}
WITHOUT_LAST = {
    "product_bias_relu": "RELU_BIAS",
    "product_bias_gelu_tanh": "GELU_BIAS",
    "product_relu_grad": "DRELU",
    "product_gelu_tanh_grad": "DGELU",
}
"""The epilogues where the last operand, which may be, is absent."""

VECTOR, AUXILIARY = "vector", "auxiliary"

# Which operands beside a, b and c an epilogue has, in the order of the catalogue; None is c.
OTHERS: dict[str, tuple[str | None, ...]] = {
    "matmul": (None,),
    "product_bias": (VECTOR, None),
    "product_bias_relu": (VECTOR, None, AUXILIARY),
    "product_bias_gelu_tanh": (VECTOR, None, AUXILIARY),
    "product_bias_grad": (None, VECTOR),
    "product_relu_grad": (AUXILIARY, None, VECTOR),
    "product_gelu_tanh_grad": (AUXILIARY, None, VECTOR),
}


GRADIENTS = frozenset(["product_bias_grad", "product_relu_grad", "product_gelu_tanh_grad"])
"""Those that the library has not where the inner side is 1, though it may say to; nvmath refuses them too."""


def is_installed() -> bool:
    """Whether nvmath-python is there."""
    return importlib.util.find_spec("nvmath") is not None


class CublasLt:
    """The library on the device that is current when it is made; calls go to the current stream.

    Args:
        cupy: the module.
        allocate: returns so many bytes of the device.
    """

    def __init__(self, cupy: Any, allocate: Callable[[int], Any]) -> None:
        self._cupy = cupy
        self._lt = importlib.import_module("nvmath.bindings.cublasLt")
        self._cublas = importlib.import_module("nvmath.bindings.cublas")
        self._types = importlib.import_module("nvmath").CudaDataType
        self._handle = self._lt.create()
        self._workspace = allocate(WORKSPACE_BYTES)  # one for all products, which wait for each other
        self._supported: dict[ProductKind, bool] = {}

    def supports(self, kind: ProductKind) -> bool:
        """Whether the library has an algorithm for a product, and computes it right."""
        if kind not in self._supported:
            missing = kind.kernel in GRADIENTS and kind.inner == 1
            self._supported[kind] = not missing and self._has_algorithm(kind) and self._is_right(small(kind))
        return self._supported[kind]

    def _has_algorithm(self, kind: ProductKind) -> bool:
        """Whether it has one for matrices of these shapes, of which there need not be any."""
        try:
            self._algorithm(_product(kind, [_Unallocated(*types) for types in operand_types(kind).values()]))
        except (self._lt.cuBLASLtError, ValueError):
            return False
        return True

    @functools.lru_cache(maxsize=1024)  # noqa: B019, the library lives as long as the process
    def _is_right(self, kind: ProductKind) -> bool:
        try:
            return computes_right(kind, self._multiply)
        except (self._lt.cuBLASLtError, ValueError):
            return False

    def _multiply(self, kind: ProductKind, operands: list[np.ndarray | None]) -> list[np.ndarray | None]:
        arrays: list[Any] = [None if o is None else self._cupy.asarray(o) for o in operands]
        self.plan(_product(kind, arrays))()
        return [None if arrays[k] is None else arrays[k].get() for k in kind.written]

    # --- one product ---------------------------------------------------------------------------------------------

    def plan(self, product: Product) -> Launch:
        """Return what launches the product, with the algorithm that the library thinks best.

        Raises:
            ValueError: it has none.
        """
        description, algorithm = self._algorithm(product)
        lt, cupy, workspace = self._lt, self._cupy, self._workspace
        scale = np.dtype(np.float64 if _is_double(product) else np.float32)
        alpha, beta = np.ones(1, scale), np.zeros(1, scale)
        a, b, c = description.operands
        pointers = [b.data.ptr, a.data.ptr, c.data.ptr]

        def launch() -> None:
            lt.matmul(
                self._handle,
                description.product,
                alpha.ctypes.data,
                pointers[0],
                description.layouts[0],
                pointers[1],
                description.layouts[1],
                beta.ctypes.data,
                pointers[2],
                description.layouts[2],
                pointers[2],
                description.layouts[2],
                algorithm.ctypes.data,
                workspace.data.ptr,
                workspace.nbytes,
                cupy.cuda.get_current_stream().ptr,
            )

        return launch

    def _algorithm(self, product: Product) -> tuple[_Description, np.ndarray]:
        lt = self._lt
        description = _Description(lt, self._cublas, self._types, product)
        found, count = lt.MatmulHeuristicResult(1), np.zeros(1, np.int32)
        preference = lt.matmul_preference_create()
        try:
            attribute = lt.MatmulPreferenceAttribute
            aligned = {
                attribute.MAX_WORKSPACE_BYTES: WORKSPACE_BYTES,
                attribute.MIN_ALIGNMENT_A_BYTES: _alignment(description.operands[1]),
                attribute.MIN_ALIGNMENT_B_BYTES: _alignment(description.operands[0]),
                attribute.MIN_ALIGNMENT_C_BYTES: _alignment(description.operands[2]),
                attribute.MIN_ALIGNMENT_D_BYTES: _alignment(description.operands[2]),
            }
            for key, number in aligned.items():
                value = np.array([number], dtype=lt.get_matmul_preference_attribute_dtype(key))
                lt.matmul_preference_set_attribute(preference, key, value.ctypes.data, value.nbytes)
            b_layout, a_layout, c_layout = description.layouts
            with contextlib.suppress(lt.cuBLASLtError):  # which says that there is none, where the count is 0
                lt.matmul_algo_get_heuristic(
                    self._handle,
                    description.product,
                    b_layout,
                    a_layout,
                    c_layout,
                    c_layout,
                    preference,
                    1,
                    found.ptr,
                    count.ctypes.data,
                )
        finally:
            lt.matmul_preference_destroy(preference)
        if not count[0]:
            a, b, _ = description.operands
            raise ValueError(
                f"cuBLASLt has no algorithm for {product.kernel} of {a.shape} and {b.shape}, {a.dtype}, in "
                f'{product.precision}; train with precision="float32", or on device="cpu"'
            )
        return description, np.array(found.algo["data_"]).reshape(-1).view(np.uint64).copy()


def _product(kind: ProductKind, operands: list[Any]) -> Product:
    last = operands[-1] if kind.last else None
    return Product(kind.kernel, (*operands[:-1], last), kind.transpose_a, kind.transpose_b, kind.precision)


@dataclass(frozen=True)
class _Unallocated:
    """What the library asks about an array before there is one: it lies as those of an arena do."""

    shape: tuple[int, ...]
    dtype: str

    data = SimpleNamespace(ptr=256)

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.shape[-1] * self.itemsize, self.itemsize)[-len(self.shape) :]


class _Description:
    """The library's description of a product, destroyed with this object.

    Attributes:
        product: its handle.
        layouts: handles of the layouts of b, a and c.
        operands: the arrays a, b and c; others are kept alive too.
    """

    def __init__(self, lt: Any, cublas: Any, types: Any, product: Product) -> None:
        self._lt, self._product = lt, product
        a, b, *others = product.operands
        roles = OTHERS[product.kernel]
        c = others[roles.index(None)]
        vector = others[roles.index(VECTOR)] if VECTOR in roles else None
        auxiliary = others[roles.index(AUXILIARY)] if AUXILIARY in roles else None
        assert a is not None
        assert b is not None
        assert c is not None
        self.operands = a, b, c
        cuda_types = {"uint16": types.CUDA_R_16BF, "float32": types.CUDA_R_32F, "float64": types.CUDA_R_64F}
        compute = cublas.ComputeType
        if _is_double(product):
            computed, scale = compute.COMPUTE_64F, types.CUDA_R_64F
        else:
            computed = compute.COMPUTE_32F_FAST_TF32 if product.precision == "tf32" else compute.COMPUTE_32F
            scale = types.CUDA_R_32F
        self.product = lt.matmul_desc_create(computed, scale)
        weakref.finalize(self, lt.matmul_desc_destroy, self.product).atexit = False
        name = EPILOGUES[product.kernel] if product.operands[-1] is not None else WITHOUT_LAST[product.kernel]
        operation = cublas.Operation
        self._set("TRANSA", operation.T if product.transpose_b else operation.N)
        self._set("TRANSB", operation.T if product.transpose_a else operation.N)
        self._set("EPILOGUE", lt.Epilogue[name])
        if vector is not None:
            self._set("BIAS_POINTER", vector.data.ptr)
        if auxiliary is not None:
            bits = str(auxiliary.dtype) == "uint8"
            self._set("EPILOGUE_AUX_POINTER", auxiliary.data.ptr)
            self._set("EPILOGUE_AUX_LD", auxiliary.shape[1] * 8 if bits else auxiliary.shape[1])
        self.layouts = [
            lt.matrix_layout_create(cuda_types[str(m.dtype)], m.shape[1], m.shape[0], _leading(m))
            for m in (b, a, c)
        ]
        for layout in self.layouts:
            weakref.finalize(self, lt.matrix_layout_destroy, layout).atexit = False

    def _set(self, name: str, number: int) -> None:
        attribute = self._lt.MatmulDescAttribute[name]
        value = np.array([int(number)], dtype=self._lt.get_matmul_desc_attribute_dtype(attribute))
        self._lt.matmul_desc_set_attribute(self.product, attribute, value.ctypes.data, value.nbytes)


def _is_double(product: Product) -> bool:
    return str(getattr(product.operands[0], "dtype", "")) == "float64"


def _leading(matrix: Any) -> int:
    """Elements from row to row; a matrix of one row may say anything there."""
    if matrix.shape[0] == 1:
        return int(matrix.shape[1])
    return int(matrix.strides[0] // matrix.itemsize)


def _alignment(matrix: Any) -> int:
    """The largest power of two, to 256, that the address and the rows of a matrix are multiples of."""
    place = int(matrix.data.ptr) | _leading(matrix) * int(matrix.itemsize) | 256
    return place & -place
