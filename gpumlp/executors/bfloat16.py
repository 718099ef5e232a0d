"""Rewrites for bfloat16 products: what they read, and what is between them, in half the bytes.

Parameters, gradients and updates stay in float32, and so does every sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ..arena import Arena, Segment
from ..backend import Backend
from ..kernels import BFLOAT16, IN_BFLOAT16, PRODUCTS, UPDATES, kernel_spec
from ..program import ACTIVATION_ARENA, Call, Operand, Program
from .lowering import Rewrite, substitute
from .products import Supports

DATA_COPY = "X.bf16"
"""The array that holds the data in bfloat16."""

PARAMETERS_COPY = "parameters.bf16"
"""The arena that holds the parameters in bfloat16."""


def parameters_copy(backend: Backend, parameters: Arena) -> Arena:
    """Return an arena of the same tensors in bfloat16, in half the bytes."""
    size = np.dtype(BFLOAT16).itemsize
    halves = [
        replace(s, dtype=BFLOAT16, offset=s.offset // np.dtype(s.dtype).itemsize * size)
        for s in parameters.segments.values()
    ]
    return Arena(backend, halves, backend.allocate(len(parameters.flat("float32")) * size))


def keep_in_bfloat16(supports: Supports) -> Rewrite:
    """Return a rewrite that keeps each intermediate tensor in bfloat16 that only kernels touch that can read it so.

    They compute in float32 and round what they write once. What the loss, a normalisation or a user reads stays as it
    is. This rewrite is the first: the others see which types the tensors have.
    """

    def rewrite(program: Program) -> Program:
        kept = _all_that_can(program, supports)

        def turned(operand: Operand | None) -> Operand | None:
            inside = operand is not None and operand.arena == ACTIVATION_ARENA and operand.name in kept
            return replace(operand, dtype=BFLOAT16) if operand is not None and inside else operand

        return replace(
            program,
            calls=tuple(replace(c, operands=tuple(turned(o) for o in c.operands)) for c in program.calls),
            buffers={n: replace(s, dtype=BFLOAT16) if n in kept else s for n, s in program.buffers.items()},
        )

    return rewrite


def _all_that_can(program: Program, supports: Supports) -> set[str]:
    """Names of the tensors that may be in bfloat16."""
    written: set[str] = set()
    cannot = set(program.keep)
    for call in program.calls:
        for name, operand in _tensors(call):
            if name not in IN_BFLOAT16.get(call.kernel, ()) or operand.dtype != "float32":
                cannot.add(operand.name)
            if name not in kernel_spec(call.kernel).reads:
                written.add(operand.name)
        if call.kernel == "matmul":
            a, b, c = call.operands
            assert c is not None
            if not supports("matmul", replace(call, operands=(a, b, replace(c, dtype=BFLOAT16))), True):
                cannot.add(c.name)
    return written - cannot


def _tensors(call: Call) -> Iterator[tuple[str, Operand]]:
    """The intermediate tensors of a call, by the names of the catalogue."""
    for name, operand in call.by_name.items():
        if operand is not None and operand.arena == ACTIVATION_ARENA:
            yield name, operand


def use_bfloat16(n_parameters: int) -> Rewrite:
    """Return a rewrite that lets every product read bfloat16 copies of those operands that are not kept in it.

    A copy is made before the first product that reads it and serves all others until its original is written again;
    that of the parameters is one of the whole arena, see `PARAMETERS_COPY`. That of the data, where products read them
    in place, is for the executor to make: see `DATA_COPY`. A bias that a product adds to a result in bfloat16 is read
    in it too. Narrow products count as such.

    Args:
        n_parameters: elements of the arena.
    """
    return lambda program: _Copies(program, n_parameters).run()


def cast_with_update(program: Program) -> Program:
    """Leave the copy of the parameters to their update, where there is one, and so save reading them once more.

    The copy must then be made before the first step: whoever else changes parameters does not write it.
    """
    casts = {i for i, call in enumerate(program.calls) if _casts_parameters(call)}
    if not casts or not any(call.kernel in UPDATES for call in program.calls):
        return program
    calls = []
    for call in program.calls:
        if call.kernel in UPDATES:
            parameters = call.by_name["parameters"]
            assert parameters is not None
            copy = replace(parameters, arena=PARAMETERS_COPY, dtype=BFLOAT16)
            call = replace(call, kernel=f"{call.kernel}_cast", operands=(*call.operands, copy))
        calls.append(call)
    return substitute(replace(program, calls=tuple(calls)), {}, casts)


def expects_copy(program: Program) -> bool:
    """Whether a program reads a copy of the parameters that it does not make itself."""
    reads = any(o is not None and o.arena == PARAMETERS_COPY for call in program.calls for o in call.operands)
    return reads and not any(map(_casts_parameters, program.calls))


def _casts_parameters(call: Call) -> bool:
    copy = call.by_name["y"] if call.kernel == "cast_bf16" else None
    return copy is not None and copy.arena == PARAMETERS_COPY


def _is_narrow(call: Call) -> bool:
    """Whether it is a product in one pass with an activation, or with its gradient."""
    return "narrow" in call.kernel


class _Copies:
    """One pass over the calls of a program, with the copies that are as new as their originals."""

    def __init__(self, program: Program, n_parameters: int) -> None:
        self.program, self.n_parameters = program, n_parameters
        self.calls: list[Call] = []
        self.buffers = dict(program.buffers)
        self.copies: dict[Operand, Operand] = {}

    def run(self) -> Program:
        places: list[int] = []  # of the calls that were, among those that are
        for call in self.program.calls:
            places.append(len(self.calls))
            new = self._reading_copies(call) if call.kernel in PRODUCTS or _is_narrow(call) else call
            self.calls.append(new)
            for written in new.operands[len(kernel_spec(new.kernel).reads) :]:
                if written is not None:
                    self.copies = {o: c for o, c in self.copies.items() if not _shares(o, written)}
        places.append(len(self.calls))
        marks = {name: places[place] for name, place in self.program.marks.items()}
        return replace(self.program, calls=tuple(self.calls), buffers=self.buffers, marks=marks)

    def _reading_copies(self, product: Call) -> Call:
        by_name = product.by_name
        result = by_name.get("c")
        with_bias = not _is_narrow(product) and result is not None and result.dtype == BFLOAT16
        for name in ("a", "b", "bias") if with_bias else ("a", "b"):
            operand = by_name.get(name)
            if operand is not None and operand.dtype != BFLOAT16:
                by_name[name] = self._copy(operand, product.layer)
        return replace(product, operands=tuple(by_name.values()))

    def _copy(self, operand: Operand, layer: str) -> Operand:
        if operand.arena == "X":
            return replace(operand, arena=DATA_COPY, dtype=BFLOAT16)
        if operand.arena == "parameters":
            whole = Operand("parameters", "", (self.n_parameters,), operand.dtype)
            self._cast(whole, lambda: replace(whole, arena=PARAMETERS_COPY, dtype=BFLOAT16), "")
            return replace(operand, arena=PARAMETERS_COPY, dtype=BFLOAT16)
        return self._cast(operand, lambda: self._new_tensor(operand.shape), layer)

    def _cast(self, operand: Operand, make: Callable[[], Operand], layer: str) -> Operand:
        if operand not in self.copies:
            self.copies[operand] = make()
            self.calls.append(Call("cast_bf16", (operand, self.copies[operand]), {}, layer))
        return self.copies[operand]

    def _new_tensor(self, shape: tuple[int, ...]) -> Operand:
        name = f"bf16.{len(self.buffers)}"
        self.buffers[name] = Segment(name, shape, BFLOAT16)
        return Operand(ACTIVATION_ARENA, name, shape, BFLOAT16)


def _shares(operand: Operand, written: Operand) -> bool:
    """Whether writing the one changes the other: the same tensor, or one of them is the whole arena."""
    return operand.arena == written.arena and (
        "" in (operand.name, written.name) or operand.name == written.name
    )
