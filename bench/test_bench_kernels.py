"""Kernels at the shapes of the workloads, reference and compiled, each held against float64 before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors.compiled import CompiledExecutor
from gpumlp.kernels import CATALOGUE
from gpumlp.kernels.reference import kernel
from gpumlp.program import Call, Memory, Operand, Program, new_control

Arrays = Mapping[str, np.ndarray]
DTYPE = np.float32
LR = 0.01
EPS = 1e-8


@dataclass(frozen=True)
class Case:
    """A call of a kernel.

    Attributes:
        kernel: its name in the catalogue.
        shapes: of the float operands, by name; random normal numbers.
        expect: what must stand in the operands afterwards, from copies of all operands in float64.
        given: operands that are not random floats, by name.
        scalars: of the call.
        flops: of the call; 0 where the bytes count.
    """

    kernel: str
    shapes: Mapping[str, tuple[int, ...]]
    expect: Callable[[Arrays], Arrays]
    given: Mapping[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    scalars: Mapping[str, Any] = field(default_factory=dict)
    flops: int = 0

    @property
    def id(self) -> str:
        shapes = "-".join("x".join(map(str, shape)) for shape in self.shapes.values())
        return f"{self.kernel}-{shapes}"

    def operands(self) -> dict[str, np.ndarray | None]:
        rng = np.random.default_rng(1)
        found: dict[str, np.ndarray | None] = {}
        for name in CATALOGUE[self.kernel].operands:
            if name in self.given:
                found[name] = self.given[name]()
            elif name in self.shapes:
                found[name] = rng.standard_normal(self.shapes[name], dtype=DTYPE)
            else:
                assert name in CATALOGUE[self.kernel].optional
                found[name] = None
        return found

    def nbytes(self, operands: Mapping[str, np.ndarray | None]) -> int:
        """Bytes that the call must read and write at least; of a gather's source the rows it takes."""
        spec = CATALOGUE[self.kernel]
        sizes = {name: 0 if o is None else o.nbytes for name, o in operands.items()}
        if "source" in sizes:
            sizes["source"], sizes["index"] = sizes["out"], 8 * self.shapes["out"][0]
        return sum(size * (2 if name in spec.updates else 1) for name, size in sizes.items())


def _matmul(rows: int, n_in: int, n_out: int, which: str) -> Case:
    """One of the three products of a layer: its output, its weight gradient, its input gradient."""
    x, w, y = (rows, n_in), (n_in, n_out), (rows, n_out)
    a, b, c, transposed = {
        "output": (x, w, y, (False, False)),
        "weight": (x, y, w, (True, False)),
        "input": (y, w, x, (False, True)),
    }[which]

    def expect(o: Arrays) -> Arrays:
        return {"c": (o["a"].T if transposed[0] else o["a"]) @ (o["b"].T if transposed[1] else o["b"])}

    scalars = {"transpose_a": transposed[0], "transpose_b": transposed[1]}
    return Case("matmul", {"a": a, "b": b, "c": c}, expect, scalars=scalars, flops=2 * rows * n_in * n_out)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _activation(name: str, shape: tuple[int, int], f: Callable[[np.ndarray], np.ndarray]) -> Case:
    return Case(name, {"x": shape, "y": shape}, lambda o: {"y": f(o["x"])})


def _gradient(name: str, shape: tuple[int, int], slope: Callable[[np.ndarray], np.ndarray]) -> Case:
    """Of an activation whose gradient reads its result y, or its argument x."""
    saved = CATALOGUE[name].reads[0]

    def values() -> np.ndarray:
        # relu gives nothing below 0
        return np.abs(np.random.default_rng(2).standard_normal(shape, dtype=DTYPE))

    shapes = {saved: shape, "dy": shape, "dx": shape}
    return Case(name, shapes, lambda o: {"dx": o["dy"] * slope(o[saved])}, {saved: values})


def _ring(value: Any, rows: int) -> np.ndarray:
    return np.array([[float(value), rows]])


def _loss_given(**others: Callable[[], np.ndarray]) -> dict[str, Callable[[], np.ndarray]]:
    return {"control": lambda: new_control(0), "ring": lambda: np.zeros((1, 2)), **others}


def _mse(rows: int) -> Case:
    def expect(o: Arrays) -> Arrays:
        e = o["output"] - o["target"]
        return {"ring": _ring((e * e).mean(), rows), "grad": 2 * e / rows}

    shapes = dict.fromkeys(("output", "target", "grad"), (rows, 1))
    return Case("mse", shapes, expect, _loss_given(), {"mean": True})


def _cross_entropy(rows: int, classes: int) -> Case:
    def expect(o: Arrays) -> Arrays:
        p, labels = _softmax(o["output"]), o["target"].astype(int)
        one_hot = np.eye(classes)[labels]
        value = -np.log(p[np.arange(rows), labels]).mean()
        return {"ring": _ring(value, rows), "grad": (p - one_hot) / rows}

    given = _loss_given(target=lambda: np.arange(rows, dtype=np.int64) % classes)
    scalars = {"mean": True, "smoothing": 0.0, "clip": 0.0}
    shapes = dict.fromkeys(("output", "grad"), (rows, classes))
    return Case("softmax_cross_entropy_labels", shapes, expect, given, scalars)


def _binary_cross_entropy(rows: int) -> Case:
    def expect(o: Arrays) -> Arrays:
        p, t = _sigmoid(o["output"]), o["target"]
        value = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
        return {"ring": _ring(value, rows), "grad": (p - t) / rows}

    given = _loss_given(target=lambda: (np.arange(rows) % 2).astype(DTYPE)[:, None])
    shapes = dict.fromkeys(("output", "grad"), (rows, 1))
    return Case("binary_cross_entropy_logits", shapes, expect, given, {"mean": True, "clip": 0.0})


def _softmax_mse(rows: int, classes: int) -> Case:
    def expect(o: Arrays) -> Arrays:
        p = _softmax(o["output"])
        e = p - o["target"]
        # the Jacobian of softmax, row by row: diag(p) - p p'
        jacobian = p[:, :, None] * np.eye(classes) - p[:, :, None] * p[:, None, :]
        slope = np.einsum("rij,rj->ri", jacobian, 2 * e / classes)
        return {"ring": _ring((e * e).mean(), rows), "grad": slope / rows}

    shapes = dict.fromkeys(("output", "target", "grad"), (rows, classes))
    return Case("softmax_mse", shapes, expect, _loss_given(), {"mean": True})


def _gather(source_rows: int, rows: int, width: int) -> Case:
    given = {
        "control": lambda: new_control(0),
        "index": lambda: np.random.default_rng(2).permutation(source_rows),
    }

    def expect(o: Arrays) -> Arrays:
        return {"out": o["source"][o["index"][:rows].astype(int)]}

    return Case("gather_rows", {"source": (source_rows, width), "out": (rows, width)}, expect, given)


def _update(
    name: str, n: int, slots: tuple[str, ...], expect: Callable[[Arrays], Arrays], **scalars: Any
) -> Case:
    given: dict[str, Callable[[], np.ndarray]] = {
        "control": lambda: new_control(0),
        "rates": lambda: np.full(1, LR),
    }
    given |= dict.fromkeys(slots, lambda: np.zeros(n, DTYPE))
    shapes = dict.fromkeys(("gradients", "parameters"), (n,))
    return Case(name, shapes, expect, given, {"weight_decay": 0.0, **scalars})


def _momentum(o: Arrays) -> Arrays:
    return {"velocity": o["gradients"], "parameters": o["parameters"] - LR * o["gradients"]}


def _adam(o: Arrays) -> Arrays:
    """The first step: both moments lose their bias, and what is left is the gradient over its size."""
    g = o["gradients"]
    step = g / (np.abs(g) + EPS)
    return {"first": 0.1 * g, "second": 0.001 * g * g, "parameters": o["parameters"] - LR * step}


PARAMETERS = 784 * 500 + 500 * 250 + 250 * 100 + 100 * 10 + 860  # of ee6132

CASES = [
    *(_matmul(64, 784, 500, which) for which in ("output", "weight", "input")),  # ee6132
    *(_matmul(32, 64, 128, which) for which in ("output", "weight", "input")),  # small, clf
    *(_matmul(32, 256, 512, which) for which in ("output", "weight", "input")),  # deepwide
    _matmul(32, 50, 50, "output"),  # polar
    _matmul(32, 128, 1, "output"),  # a product with a side of 1
    _matmul(4096, 784, 1000, "output"),  # mlpnn, of whose rows there are more
    *(
        case
        for rows, width in ((32, 128), (64, 500), (4096, 1000))
        for case in (
            Case("add_bias", {"bias": (width,), "x": (rows, width)}, lambda o: {"x": o["x"] + o["bias"]}),
            Case("column_sums", {"dy": (rows, width), "db": (width,)}, lambda o: {"db": o["dy"].sum(axis=0)}),
            _activation("relu", (rows, width), lambda x: np.maximum(x, 0)),
            # a negative y does not come from relu; the kernel only needs its sign
            _gradient("relu_grad", (rows, width), np.sign),
            _activation("tanh", (rows, width), np.tanh),
            _gradient("tanh_grad", (rows, width), lambda y: 1 - y * y),
        )
    ),
    _activation("sigmoid", (64, 500), _sigmoid),
    _gradient("sigmoid_grad", (64, 500), lambda y: y * (1 - y)),
    _activation("silu", (64, 500), lambda x: x * _sigmoid(x)),
    _activation("softmax", (64, 10), _softmax),
    _mse(32),
    _binary_cross_entropy(32),
    _softmax_mse(32, 5),
    _cross_entropy(64, 10),
    _cross_entropy(4096, 10),
    _gather(280, 32, 1),
    _gather(60000, 64, 784),
    _update("sgd", PARAMETERS, (), lambda o: {"parameters": o["parameters"] - LR * o["gradients"]}),
    _update("momentum", PARAMETERS, ("velocity",), _momentum, momentum=0.9, dampening=0.0, nesterov=False),
    _update("adam", PARAMETERS, ("first", "second"), _adam, beta1=0.9, beta2=0.999, eps=EPS, decoupled=False),
]


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_kernel(case: Case, backend: gm.Backend, timed: Callable[..., None]) -> None:
    host = case.operands()
    exact = {name: np.array(o, dtype=np.float64) for name, o in host.items() if o is not None}
    # the control block and the rates stay on the host, as in a training
    stays = ("control", "rates")
    operands = [o if o is None or name in stays else backend.asarray(o) for name, o in host.items()]
    function, scalars = kernel(case.kernel), dict(case.scalars)

    def call() -> None:
        function(backend.xp, *operands, **scalars)

    with backend.active():
        call()
        check(case, exact, {name: backend.to_host(o) for name, o in zip(host, operands, strict=True)})
        timed(call, case.flops, 0 if case.flops else case.nbytes(host))


def check(case: Case, exact: Arrays, found: Mapping[str, Any]) -> None:
    """Hold the results of a call against float64."""
    for name, expected in case.expect(exact).items():
        size = max(float(np.linalg.norm(expected)), 1e-3)
        error = float(np.linalg.norm(found[name] - expected)) / size
        assert error < 1e-5, f"{name} of {case.kernel} is off by {error:.3g}"


CALLS = 200
"""Calls of a compiled kernel in one program: Python's part of the time is then small."""


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_compiled_kernel(case: Case, timed: Callable[..., None]) -> None:
    """By one worker; `CALLS` calls a time, so the rates count, and not the seconds."""
    host = case.operands()
    exact = {name: np.array(o, dtype=np.float64) for name, o in host.items() if o is not None}
    operands = tuple(
        None if o is None else Operand(name, "", o.shape, str(o.dtype)) for name, o in host.items()
    )
    call = Call(case.kernel, operands, dict(case.scalars))
    calls = CALLS if case.nbytes(host) < 10**7 else 1
    once, often = (Program((call,) * n, {}, frozenset(), 1, "float32") for n in (1, calls))
    arrays = {name: o for name, o in host.items() if o is not None}
    executor = CompiledExecutor(gm.get_backend("cpu"), Memory({}, arrays), workers=1)
    executor.prepare(once, often)
    executor.execute(once)
    check(case, exact, arrays)
    flops, nbytes = case.flops * calls, 0 if case.flops else case.nbytes(host) * calls
    timed(lambda: executor.execute(often), flops, nbytes)


@pytest.mark.parametrize("n", [280, 2560, 60000])
def test_shuffle(n: int, backend: gm.Backend, timed: Callable[..., None]) -> None:
    control = new_control(0)
    rows = backend.asarray(np.arange(n))
    index = backend.asarray(np.zeros(n, dtype=np.int64))

    def call() -> None:
        kernel("shuffle")(backend.xp, control, rows, index)

    with backend.active():
        call()
        order = np.array(backend.to_host(index))
        assert (np.sort(order) == np.arange(n)).all()
        assert (order != np.arange(n)).any()
        timed(call, nbytes=rows.nbytes + index.nbytes)


@pytest.mark.parametrize("shape", [(32, 128), (64, 500)], ids=["32x128", "64x500"])
def test_dropout(shape: tuple[int, int], backend: gm.Backend, timed: Callable[..., None]) -> None:
    rate, control = 0.25, new_control(0)
    x = np.random.default_rng(1).standard_normal(shape, dtype=DTYPE)
    source, out = backend.asarray(x), backend.asarray(np.zeros_like(x))

    def call() -> None:
        kernel("dropout")(backend.xp, control, source, out, rate=rate, layer=1)

    with backend.active():
        call()
        y = np.array(backend.to_host(out), dtype=np.float64)
        kept = y != 0
        np.testing.assert_allclose(y[kept], (x.astype(np.float64) / (1 - rate))[kept], rtol=1e-6)
        # four deviations of a binomial share
        assert abs(1 - kept.mean() - rate) < 4 * (rate * (1 - rate) / x.size) ** 0.5
        timed(call, nbytes=2 * x.nbytes)
