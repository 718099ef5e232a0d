"""A stand-in for nvmath's binding of cuBLASLt, on CuPy's.

Products are computed from what the library is told about them, column by column as its documentation has it, with the
types, alignments and streams that were promised.
"""

# mypy: ignore-errors
# It is put together from attributes, which types cannot follow.

import ctypes
import enum
import itertools
import types

import numpy as np

from gpumlp.kernels.reference.products import as_float, to_bfloat16
from tests.kernels.stand_in_cupy import CUDA, check

CUDA_TYPES = enum.IntEnum("CudaDataType", {"CUDA_R_32F": 0, "CUDA_R_64F": 1, "CUDA_R_16BF": 14})
COMPUTE = enum.IntEnum("ComputeType", {"COMPUTE_32F": 68, "COMPUTE_64F": 70, "COMPUTE_32F_FAST_TF32": 77})
OPERATION = enum.IntEnum("Operation", {"N": 0, "T": 1})
RELU, BIAS, GELU, AUX, DRELU, DGELU, BGRADA = 2, 4, 32, 128, 136, 192, 256
EPILOGUE = enum.IntEnum(
    "Epilogue",
    {
        "DEFAULT": 1,
        "BIAS": BIAS,
        "RELU_BIAS": RELU | BIAS,
        "RELU_AUX_BIAS": RELU | BIAS | AUX,
        "GELU_BIAS": GELU | BIAS,
        "GELU_AUX_BIAS": GELU | BIAS | AUX,
        "DRELU": DRELU,
        "DRELU_BGRAD": DRELU | 16,
        "DGELU": DGELU,
        "DGELU_BGRAD": DGELU | 16,
        "BGRADA": BGRADA,
    },
)
ATTRIBUTE_TYPES = {
    "TRANSA": np.int32,
    "TRANSB": np.int32,
    "EPILOGUE": np.uint32,
    "BIAS_POINTER": np.int64,
    "EPILOGUE_AUX_POINTER": np.int64,
    "EPILOGUE_AUX_LD": np.int64,
}
ATTRIBUTES = enum.IntEnum("MatmulDescAttribute", [*ATTRIBUTE_TYPES], start=3)
PREFERENCE_TYPES = {
    "MAX_WORKSPACE_BYTES": np.uint64,
    **{f"MIN_ALIGNMENT_{m}_BYTES": np.uint32 for m in "ABCD"},
}
PREFERENCES = enum.IntEnum("MatmulPreferenceAttribute", [*PREFERENCE_TYPES], start=1)


class cuBLASLtError(Exception):
    pass


class MatmulHeuristicResult:
    def __init__(self, size=1):
        self.words = np.zeros((size, 10), np.uint64)
        self.ptr = self.words.ctypes.data

    @property
    def algo(self):
        return {"data_": self.words[:, :8]}


def column_major(pointer, layout):
    """The library's matrix as a view of the memory."""
    kind, rows, cols, ld = layout
    dtype = {CUDA_TYPES.CUDA_R_32F: "f4", CUDA_TYPES.CUDA_R_64F: "f8", CUDA_TYPES.CUDA_R_16BF: "u2"}[kind]
    size = np.dtype(dtype).itemsize
    check(ld >= rows, "a leading dimension below the rows")
    memory = np.frombuffer((ctypes.c_char * (((cols - 1) * ld + rows) * size)).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(memory, (rows, cols), (size, ld * size))


def as_numbers(matrix):
    return as_float(np, matrix).astype(np.float64)


def store(numbers, target):
    """Numbers as a matrix of the library's keeps them."""
    target[...] = to_bfloat16(np, numbers) if target.dtype == np.uint16 else numbers


def gelu_parts(x):
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + t), slope


class FakeCublasLt(types.ModuleType):
    """`nvmath.bindings.cublasLt`; handles are numbers, and must be destroyed once."""

    cuBLASLtError = cuBLASLtError
    MatmulHeuristicResult = MatmulHeuristicResult
    Epilogue, MatmulDescAttribute, MatmulPreferenceAttribute = EPILOGUE, ATTRIBUTES, PREFERENCES

    def __init__(self):
        super().__init__("nvmath.bindings.cublasLt")
        self.things, self.numbers = {}, itertools.count(1)

    def _new(self, thing):
        number = next(self.numbers)
        self.things[number] = thing
        return number

    def create(self):
        return self._new(("handle", CUDA.device))

    def matmul_desc_create(self, compute_type, scale_type):
        double = compute_type == COMPUTE.COMPUTE_64F
        assert scale_type == (CUDA_TYPES.CUDA_R_64F if double else CUDA_TYPES.CUDA_R_32F)
        return self._new({"compute": COMPUTE(compute_type), "scale": "f8" if double else "f4"})

    def matmul_desc_destroy(self, matmul_desc):
        del self.things[matmul_desc]

    def get_matmul_desc_attribute_dtype(self, attr):
        return ATTRIBUTE_TYPES[ATTRIBUTES(attr).name]

    def matmul_desc_set_attribute(self, matmul_desc, attr, buf, size_in_bytes):
        dtype = np.dtype(ATTRIBUTE_TYPES[ATTRIBUTES(attr).name])
        assert size_in_bytes == dtype.itemsize
        self.things[matmul_desc][ATTRIBUTES(attr).name] = int(
            np.frombuffer(ctypes.string_at(buf, size_in_bytes), dtype)[0]
        )

    def matrix_layout_create(self, type, rows, cols, ld):
        return self._new((CUDA_TYPES(type), rows, cols, ld))

    def matrix_layout_destroy(self, mat_layout):
        del self.things[mat_layout]

    def matmul_preference_create(self):
        return self._new({})

    def matmul_preference_destroy(self, pref):
        del self.things[pref]

    def get_matmul_preference_attribute_dtype(self, attr):
        return PREFERENCE_TYPES[PREFERENCES(attr).name]

    def matmul_preference_set_attribute(self, pref, attr, buf, size_in_bytes):
        dtype = np.dtype(PREFERENCE_TYPES[PREFERENCES(attr).name])
        assert size_in_bytes == dtype.itemsize
        self.things[pref][PREFERENCES(attr).name] = int(
            np.frombuffer(ctypes.string_at(buf, size_in_bytes), dtype)[0]
        )

    def matmul_algo_get_heuristic(
        self,
        light_handle,
        operation_desc,
        adesc,
        bdesc,
        cdesc,
        ddesc,
        preference,
        requested_algo_count,
        heuristic_results_array,
        return_algo_count,
    ):
        check(CUDA.here.captures is None, "an algorithm is chosen while a stream is captured")
        assert self.things[light_handle] == ("handle", CUDA.device)
        assert requested_algo_count == 1
        d = self.things[operation_desc]
        relu, gelu = d["EPILOGUE"] & (RELU | 8), d["EPILOGUE"] & (GELU | 64)
        if d["EPILOGUE"] & AUX and d["EPILOGUE_AUX_LD"] % (128 if relu else 8 if gelu else 1):
            raise cuBLASLtError("NOT_SUPPORTED")
        chosen = self._new(dict(self.things[preference]))  # an algorithm is for these alignments
        ctypes.c_uint64.from_address(heuristic_results_array).value = chosen
        ctypes.c_int32.from_address(return_algo_count).value = 1

    def matmul(
        self,
        light_handle,
        compute_desc,
        alpha,
        a,
        adesc,
        b,
        bdesc,
        beta,
        c,
        cdesc,
        d,
        ddesc,
        algo,
        workspace,
        workspace_size_in_bytes,
        stream,
    ):
        assert self.things[light_handle] == ("handle", CUDA.device)
        check(stream == CUDA.stream.ptr != 0, "a product in another stream than the current one")
        asked = self.things[compute_desc]
        for number, value in ((alpha, 1), (beta, 0)):
            assert np.frombuffer(ctypes.string_at(number, int(asked["scale"][1])), asked["scale"])[0] == value
        promised = self.things[ctypes.c_uint64.from_address(algo).value]
        assert workspace % 256 == 0
        assert workspace_size_in_bytes >= promised["MAX_WORKSPACE_BYTES"]
        for name, pointer in zip("ABCD", (a, b, c, d), strict=True):
            check(
                pointer % promised[f"MIN_ALIGNMENT_{name}_BYTES"] == 0, "an alignment that was not promised"
            )
        check((c, cdesc) == (d, ddesc), "c is not d")
        layouts = [self.things[layout] for layout in (adesc, bdesc, ddesc)]
        given = dict(asked)
        CUDA.stream.put(lambda: self._compute(given, (a, b, d), layouts))

    def _compute(self, given, pointers, layouts):
        a, b, d = (column_major(*pair) for pair in zip(pointers, layouts, strict=True))
        CUDA.products.append(EPILOGUE(given["EPILOGUE"]).name)
        CUDA.types.add((given["compute"].name, *(kind.name for kind, *_ in layouts)))
        left, right = as_numbers(a), as_numbers(b)
        left = left.T if given["TRANSA"] else left
        right = right.T if given["TRANSB"] else right
        assert (left.shape[0], right.shape[1]) == d.shape
        assert left.shape[1] == right.shape[0]
        with np.errstate(all="ignore"):
            store(self._epilogue(given, left, left @ right, layouts[2][0]), d)

    def _epilogue(self, given, left, x, kind):
        epilogue, (m, n) = given["EPILOGUE"], x.shape
        if epilogue in (DRELU, DRELU | 16, DGELU, DGELU | 16, BGRADA) and left.shape[1] == 1:
            return np.full_like(x, np.nan)  # which nvmath refuses, as the library computes something else
        vector = None  # of the type of the result, as what is saved is
        if "BIAS_POINTER" in given:
            vector = column_major(given["BIAS_POINTER"], (kind, m, 1, m))
        if epilogue & BIAS:
            x = x + as_numbers(vector)
        if "EPILOGUE_AUX_POINTER" in given:
            ld, pointer = given["EPILOGUE_AUX_LD"], given["EPILOGUE_AUX_POINTER"]
            check(pointer % 16 == 0, "an auxiliary matrix that is not aligned to 16 bytes")
            if epilogue & (RELU | 8):
                check(ld % 128 == 0, "a mask whose columns do not begin at 16 bytes")
                check(ld >= m, "a mask whose columns are too short")
                memory = (ctypes.c_uint8 * (ld * n // 8)).from_address(pointer)
                bits = np.frombuffer(memory, np.uint8).reshape(n, ld // 8)
            else:
                saved = column_major(pointer, (kind, m, n, ld))
        if epilogue in (RELU | BIAS | AUX, RELU | BIAS):
            if epilogue & AUX:
                packed = np.packbits(x.T > 0, axis=1, bitorder="little")
                bits[:, : packed.shape[1]] = packed
            return np.maximum(x, 0)
        if epilogue in (GELU | BIAS | AUX, GELU | BIAS):
            if epilogue & AUX:
                store(x, saved)
            return gelu_parts(x)[0]
        if epilogue in (DRELU, DRELU | 16):
            x = x * np.unpackbits(bits, axis=1, count=m, bitorder="little").T
        elif epilogue in (DGELU, DGELU | 16):
            x = x * gelu_parts(as_numbers(saved))[1]
        if epilogue == BGRADA:
            store(left.sum(axis=1), vector[:, 0])
        elif epilogue & 16:
            store(x.sum(axis=1), vector[:, 0])
        return x
