"""Compiling a kernel with Numba, to an object file."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import FunctionType
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from . import mathlib, walker

MODULES = ("activations", "batches", "losses", "normalisation", "optimizers", "products", "walker")


@functools.cache
def table() -> dict[str, tuple[Callable[..., Any], dict[str, str]]]:
    """Kernel name -> (function to specialise, names of the scalar functions that it takes)."""
    found: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {}
    for name in MODULES:
        found.update(importlib.import_module(f"{__package__}.{name}").KERNELS)
    return found


def specialised(name: str, dtype: str) -> FunctionType:
    """A kernel's function with its free names bound for a type."""
    function, scalars = table()[name]
    names = dict(mathlib.names(dtype))
    for free, scalar in scalars.items():
        names[free] = mathlib.scalar_function(scalar, dtype)
    return mathlib.specialise(function, names, f"{name}_{dtype}")


def compile_kernel(name: str, dtype: str, symbol: str) -> bytes:
    """Return the object file of a kernel, with one function ``symbol(row, ctx, like)`` of three integers.

    It is made as `numba.cfunc` makes one, but for the wrapper: that of `cfunc` calls into Python where the function
    raises, which kernels never do, and so would need Numba wherever it is loaded.

    Args:
        name: in `table`.
        dtype: "float32" or "float64".
        symbol: name that the function gets.
    """
    options = {
        "nopython": True,
        "error_model": "numpy",
        # the walker adds losses up in their order, each product rounded, as NumPy would
        "fastmath": False if name in walker.KERNELS else mathlib.FAST,
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }
    integers = types.CPointer(types.int64)
    arguments = (integers, integers, types.CPointer(getattr(types, dtype)))
    function = specialised(name, dtype)
    with global_compiler_lock:
        context = cpu_target.target_context
        flags = compiler.Flags()
        cpu_target.options.parse_as_flags(flags, options)
        flags.no_compile = True
        result = compiler.compile_extra(
            cpu_target.typing_context, context, function, arguments, types.void, flags, {}
        )
        library = result.library
        library.add_ir_module(_wrapper(library, context, result.fndesc, arguments, symbol))
        library.finalize()
        _, _, (code, _) = library.serialize_using_object_code()
    return bytes(code)


def _wrapper(library: Any, context: Any, described: Any, arguments: tuple[Any, ...], symbol: str) -> Any:
    """A module with a function of three integers that calls Numba's, whose status it leaves."""
    module = library.create_ir_module(symbol)
    kind = context.call_conv.get_function_type(types.void, arguments)
    inner = ir.Function(module, kind, described.llvm_func_name)
    i64 = ir.IntType(64)
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64] * len(arguments)), symbol)
    builder = ir.IRBuilder(outer.append_basic_block())
    values = [
        builder.inttoptr(value, context.get_value_type(t))
        for value, t in zip(outer.args, arguments, strict=True)
    ]
    context.call_conv.call_function(builder, inner, types.void, arguments, values)
    builder.ret_void()
    return module
