"""The graph executor: the launches of many steps, captured once into a CUDA graph and relaunched."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..backend import Backend
from ..kernels import BFLOAT16, EPOCH, POSITION, PRODUCTS, SEED
from ..kernels.cuda.device import Launch
from ..kernels.cuda.tailored import Group
from ..kernels.philox import permutation
from ..program import Call, Memory, Operand, Program, activation_bytes
from .bfloat16 import (
    DATA_COPY,
    PARAMETERS_COPY,
    cast_with_update,
    expects_copy,
    keep_in_bfloat16,
    parameters_copy,
    use_bfloat16,
)
from .device import DeviceExecutor, Linked, product_kind
from .lowering import (
    Rewrite,
    fuse_bias_activation,
    fuse_gradient_bias,
    gather_late,
    read_full_batch_in_place,
    sum_early,
)
from .narrow import fuse_narrow_gradients, fuse_narrow_products
from .products import ENDINGS, by_own_kernel, fuse_epilogues, is_large
from .tailored_launches import groups_of, tailored_launches
from .tailoring import Tailor, tailor_for_launches
from .turned import DATA_TURNED, read_turned, turned
from .workers import multiply_adds_of

if TYPE_CHECKING:
    from . import StepPlan

GRAPH_STEPS = 32
"""Steps in one graph, at most: enough that relaunching costs nothing beside the work."""

TURNED_FROM = 1 << 27
"""Multiply-adds from which the gradient of a weight in TF32 reads a turned copy of the data, made once a block of
steps. On an H200, cuBLASLt 13.1, one of 60,000 x 784 by 60,000 x 1000 (350 times as many) took 495 us turned by the
library, 319 from the copy. If the gain is in proportion, it is half a microsecond a step here: with less work a copy
does not pay. `bench.gpu_check` measures a training without."""

TURNED_SHARE = 4
"""A turned copy may take one part in so many of the bytes that are free beside a step's tensors, or there is none: it
makes a training quicker, and must not end one for want of memory."""

SORTED_BY_LIBRARY_FROM = 1 << 17
"""Rows from which the order of an epoch is sorted by the array library: each block of the kernel makes the keys of all
rows, some 75 instructions a row (sm_90)."""


SLOW_EPILOGUES = frozenset({"product_relu_grad", "product_gelu_tanh_grad", "product_bias_grad"})
"""What the library does in an epilogue slower than a launch of our own beside the plain product: on an H200, cuBLASLt
13.1, a gradient through relu took 280 us in bf16 where other products of these sides (4096) take 190, 9.2 us and not
2.6 in float32 at batch 32; a gradient of weights with the bias's 190 to 215 us, where the plain product takes 170 to
180 and the gradient through relu sums the bias on its way. `bench.gpu_check` measures trainings with them."""

OWN_PRODUCT, OWN_RESULT = 30_000_000, 1 << 19
"""Multiply-adds of a product in float32, and numbers of its result, up to which a kernel of our own does it: the
library takes 5 to 8 us on an H200 for one of 64 rows; `ee6132` did 9,271 steps/s with 30 million, 8,935 with 10 million
and 8,486 with two, in short trainings. The library's gradient of 784 x 500 weights takes 4.7 us, and the sums of the
bias's 1.7 beside it; what our own take together is not measured. `bench.gpu_check` measures trainings without, and with
fewer."""

NARROW_FROM = 256
"""Rows from which more than one block sums the gradients of a layer with few outputs. One alone took 10.4 us for 64
rows of 100 on an H200, where a launch with little work takes 1.5: products of our own are better, where they may be."""

SUMS_APART_FROM = 1 << 62
"""Numbers of a matrix from which the gradient of an activation and the sums of its columns are two passes: none has so
many. On an H200 those of 4096 x 4096 in bf16 took 25.3 and 14.1 us; one pass has 100 MB to move, and is better from
2.8 TB/s on. It took 51.7 while its loads waited for each other. `bench.gpu_check` measures a training in two."""


TAILORED_BELOW = 2e-4
"""Seconds of a step up to which kernels made for its launches can pay: in longer ones they wait for memory, or there is
more of the library's work than of theirs."""


@dataclass(frozen=True)
class Chunk:
    """What one graph does: `epochs` whole epochs; or, where that is 0, the parts of one."""

    epochs: int = 0
    begin: bool = False
    full: int = 0
    last: bool = False

    def steps(self, plan: StepPlan) -> int:
        """How many training steps that is."""
        return self.epochs * plan.steps + self.full + self.last


def chunks(plan: StepPlan, position: int, n_steps: int, begin_in_graph: bool) -> Iterator[Chunk]:
    """Cut the next `n_steps` steps into few kinds of chunks, since each kind is captured once.

    Args:
        plan: of the training.
        position: of the first step in its epoch.
        n_steps: to do.
        begin_in_graph: whether the beginning of an epoch can be captured.
    """
    short = plan.last is not None
    while n_steps:
        if position == 0 and begin_in_graph and plan.steps <= min(GRAPH_STEPS, n_steps):
            epochs = _power_of_two(min(n_steps, GRAPH_STEPS) // plan.steps)
            chunk = Chunk(epochs=epochs)
        else:
            if position == 0:
                yield Chunk(begin=True)
            full = min(n_steps, plan.steps - short - position)
            chunk = Chunk(full=_power_of_two(min(full, GRAPH_STEPS))) if full else Chunk(last=True)
        yield chunk
        done = chunk.steps(plan)
        n_steps -= done
        position = (position + done) % plan.steps


def _result(product: Call) -> Operand:
    c = product.by_name["c"]
    assert c is not None
    return c


def _power_of_two(n: int) -> int:
    """The largest that is at most `n`, which is at least 1."""
    return 1 << (n.bit_length() - 1)


class GraphExecutor(DeviceExecutor):
    """Runs programs on a GPU, products by its library; see `DeviceExecutor`."""

    name = "graph"
    uses_library = True
    block_seconds = 0.1  # copies of data and parameters are made anew for each

    def __init__(
        self, backend: Backend, memory: Memory, workers: int | None = None, precision: str = "float32"
    ) -> None:
        super().__init__(backend, memory, workers, precision)
        self._ready: dict[tuple[int, int], list[Launch]] = {}
        self._graphs: dict[tuple[int, Chunk], Launch] = {}
        self._tailors: dict[int, Tailor | None] = {}
        self._tailored: dict[int, list[list[Launch]]] = {}  # of a plan's steps, where they are in use
        self._copying: Linked | None = None
        self._copy_launches: list[Launch] | None = None
        self._plans: list[StepPlan] = []  # whose graphs there are; kept, so that no other has their identity

    def rewrites(self, program: Program) -> tuple[Rewrite, ...]:
        def supports(kernel: str, call: Call, last: bool) -> bool:
            if self._is_large(call):
                return False
            if not self.in_library(call):
                b = call.by_name["b"]
                assert b is not None
                # blocks share the sums of a tall matrix
                tall = kernel == "product_bias_grad" and b.shape[0] >= NARROW_FROM
                return by_own_kernel(kernel, call, last) and not tall
            if kernel in SLOW_EPILOGUES or kernel not in PRODUCTS:
                return False
            return self.device.supports_product(product_kind(kernel, call, self.precision, last))

        def many_rows(product: Call) -> bool:
            return self.in_library(product) or _result(product).shape[0] >= NARROW_FROM

        def few_numbers(gradient: Call) -> bool:
            dx = gradient.operands[-1]
            return dx is None or math.prod(dx.shape) < SUMS_APART_FROM

        fusions = (
            *(gather_late, fuse_narrow_products, partial(fuse_narrow_gradients, pays=many_rows)),
            *(fuse_epilogues(supports), fuse_bias_activation),
            *(partial(fuse_gradient_bias, pays=few_numbers), sum_early),
        )
        if self.precision == "tf32" and program.dtype == "float32":
            pays = partial(self._pays_turned, step_bytes=activation_bytes(program))
            return (read_full_batch_in_place, *fusions, read_turned(pays))
        if self.compiled_for(program.dtype) != "bf16":
            return (read_full_batch_in_place, *fusions)
        n_parameters = len(self.memory.arenas["parameters"].flat(program.dtype))
        return (
            read_full_batch_in_place,
            keep_in_bfloat16(supports),
            *fusions,
            *(use_bfloat16(n_parameters), cast_with_update),
        )

    def _pays_turned(self, product: Call, step_bytes: int) -> bool:
        """Whether a product had better read a turned copy of the data; see `read_turned`.

        Args:
            product: one that turns the data itself.
            step_bytes: of the tensors of its program.
        """
        if not self.in_library(product) or multiply_adds_of(product) < TURNED_FROM:
            return False
        asked = turned(product)
        plain = replace(asked, operands=asked.operands[:3])
        if not self.device.supports_product(product_kind(product.kernel, plain, self.precision)):
            return False
        if DATA_TURNED in self.memory.arrays:
            return True
        return TURNED_SHARE * self.memory.arrays["X"].nbytes <= self.device.memory()[0] - step_bytes

    def in_library(self, product: Call) -> bool:
        c = _result(product)
        ours = product.kernel in ENDINGS and product.by_name.get("mask") is None
        small = multiply_adds_of(product) <= OWN_PRODUCT and math.prod(c.shape) <= OWN_RESULT
        ours = ours and small and self.precision == c.dtype == "float32"
        return not (ours or self._is_large(product))

    def _is_large(self, product: Call) -> bool:
        """Whether our kernel for large products does it."""
        return self.precision == "float32" and self.device.has_tf32 and is_large(product)

    def before_linking(self, programs: Sequence[Program]) -> None:
        read = {o.arena for p in programs for call in p.calls for o in call.operands if o is not None}
        calls = []

        def copy(array: str, shape: tuple[int, ...], to: str) -> None:
            whole = Operand(array, "", shape, "float32")
            calls.append(Call("cast_bf16", (whole, replace(whole, arena=to, dtype=BFLOAT16))))

        if PARAMETERS_COPY in read and PARAMETERS_COPY not in self.memory.arenas:
            parameters = self.memory.arenas["parameters"]
            self.memory.arenas[PARAMETERS_COPY] = parameters_copy(self.backend, parameters)
            if any(map(expects_copy, programs)):
                copy("parameters", parameters.flat("float32").shape, PARAMETERS_COPY)
        if DATA_COPY in read and DATA_COPY not in self.memory.arrays:
            x = self.memory.arrays["X"]
            memory = self.backend.allocate(2 * x.size)[: 2 * x.size]
            self.memory.arrays[DATA_COPY] = memory.view(BFLOAT16).reshape(x.shape)
            copy("X", x.shape, DATA_COPY)
        if DATA_TURNED in read and DATA_TURNED not in self.memory.arrays:
            x = self.memory.arrays["X"]
            memory = self.backend.allocate(x.nbytes)[: x.nbytes]
            self.memory.arrays[DATA_TURNED] = memory.view(x.dtype).reshape(x.shape[::-1])
        if calls:
            copying = Program(tuple(calls), {}, frozenset(), 1)
            self._copying = self._link(copying, self.backend.allocate(0))

    def execute(self, program: Program) -> None:
        self.copy_in()
        with self.backend.active():
            if self._sorts_by_library(program):
                self._order_rows(program)
            else:
                for launch in (*self._copies(), *self._launches_of(program)):
                    launch()
        self.copy_out()

    def run(self, plan: StepPlan, n_steps: int, first_slot: int = 0, first_position: int = 0) -> int:
        self.copy_in(n_steps, plan.batch.rows, first_slot, first_position)
        control = self._host["control"]
        position, sorts = int(control[POSITION]), self._sorts_by_library(plan.begin)
        epoch = int(control[EPOCH]) + (position > 0)  # the next to begin
        tailor, start = self._tailor(plan), time.perf_counter()
        with self.backend.active():
            # once a block: whoever owns data and parameters may change them between
            for copy in self._copies():
                copy()
            if self._stays(plan.begin):
                for launch in self._launches_of(plan.begin):
                    launch()
            for chunk in chunks(plan, position, n_steps, not sorts):
                if chunk.begin and sorts:
                    self._order_rows(plan.begin, epoch)
                else:
                    self._graph(plan, chunk)()
                epoch += chunk.begin
            done = self.copy_out(first_slot)
            if done < n_steps and sorts:  # later epochs may have begun: back to the order of the failing one
                self._order_rows(plan.begin)
        seconds = time.perf_counter() - start
        if tailor is not None and seconds < n_steps * TAILORED_BELOW:
            tailor.worked(seconds)
        return done

    def _copies(self) -> list[Launch]:
        """What turns the data, or rounds them and the parameters to bfloat16, where products read them so."""
        if self._copy_launches is None:
            self._copy_launches = [] if self._copying is None else self.launches(self._copying)
            if DATA_TURNED in self.memory.arrays:
                self._copy_launches.append(self._turn_data)
        return self._copy_launches

    def _turn_data(self) -> None:
        """By the array library, in the stream of the device that is active."""
        self.memory.arrays[DATA_TURNED][...] = self.memory.arrays["X"].T

    def _launches_of(self, program: Program, plan: StepPlan | None = None) -> list[Launch]:
        key = (id(program), id(plan))
        if key not in self._ready:
            linked = self.linked(program) if plan is None else self.with_advance(program, plan)
            self._ready[key] = self.launches(linked)
        return self._ready[key]

    def _steps(self, plan: StepPlan) -> list[Linked]:
        """The programs of a plan that kernels are made for: the step, and the short one where there is one."""
        steps = [program for program in (plan.batch, plan.last) if program is not None]
        return [self.with_advance(program, plan) for program in steps]

    def _groups(self, plan: StepPlan) -> list[list[Group | None]]:
        return [
            groups_of(p, linked.steps, self.groups(linked.steps, linked.program.dtype))
            for p, linked in enumerate(self._steps(plan))
        ]

    def _tailor(self, plan: StepPlan) -> Tailor | None:
        """Who makes kernels for a plan; they are taken once they are ready."""
        if id(plan) not in self._tailors:
            dtype, made = plan.batch.dtype, None
            if self.compiled_for(dtype) == "float32":  # float64 is for checking, bfloat16 for longer steps
                made = tailor_for_launches(self._groups(plan), self.device, dtype, self._large)
            self._tailors[id(plan)] = made
            self._plans.append(plan)
        tailor = self._tailors[id(plan)]
        if tailor is None or id(plan) in self._tailored or (kernels := tailor.kernels()) is None:
            return tailor
        of_steps = zip(self._groups(plan), self._steps(plan), self._launches_of_steps(plan), strict=True)
        self._tailored[id(plan)] = [
            tailored_launches(kernels, groups, self.encode(linked), general)
            for groups, linked, general in of_steps
        ]
        self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] != id(plan)}
        return tailor

    def _launches_of_steps(self, plan: StepPlan) -> list[list[Launch]]:
        """Launches of the step, and of the short one where there is one: by kernels made for them once there are."""
        if id(plan) in self._tailored:
            return self._tailored[id(plan)]
        return [
            self._launches_of(program, plan) for program in (plan.batch, plan.last) if program is not None
        ]

    def _graph(self, plan: StepPlan, chunk: Chunk) -> Launch:
        key = (id(plan), chunk)
        if key not in self._graphs:
            begin = [] if self._stays(plan.begin) else self._launches_of(plan.begin)
            batch, *rest = self._launches_of_steps(plan)
            last = rest[0] if rest else []
            full = plan.steps - (plan.last is not None)
            if chunk.epochs:
                launches = (begin + batch * full + last) * chunk.epochs
            else:
                launches = begin * chunk.begin + batch * chunk.full + last * chunk.last
            self._graphs[key] = self.device.capture(launches)
        return self._graphs[key]

    @staticmethod
    def _stays(begin: Program) -> bool:
        """Whether all epochs have the same order of rows: a block of steps then needs it once."""
        return all(call.kernel == "copy_rows" for call in begin.calls)

    @staticmethod
    def _sorts_by_library(program: Program) -> bool:
        if not program.calls or program.calls[0].kernel != "shuffle":
            return False
        index = program.calls[0].operands[-1]
        return index is not None and index.shape[0] >= SORTED_BY_LIBRARY_FROM

    def _order_rows(self, program: Program, epoch: int | None = None) -> None:
        """What the kernel "shuffle" does, by the array library."""
        _, rows, index = program.calls[0].operands
        assert rows is not None
        assert index is not None
        control = self._host["control"]
        epoch = int(control[EPOCH]) if epoch is None else epoch
        order = permutation(self.backend.xp, index.shape[0], int(control[SEED]), epoch)
        self.memory.view(index)[...] = self.memory.view(rows)[order]
