"""Every executor equals the eager one, which is the truth, step by step from the same state.

Two orders of summation drift apart over many steps, and so each step begins where the eager executor stands. Those of
a GPU run on its stand-in. What every executor keeps of `run` is in `test_executors.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors import EagerExecutor
from gpumlp.executors.compiled import CompiledExecutor
from gpumlp.executors.graph import GraphExecutor
from gpumlp.executors.resident import ResidentExecutor
from gpumlp.kernels import CONTROL_SIZE, START
from gpumlp.layers import LAYERS
from gpumlp.losses import LOSSES, Loss
from gpumlp.optimizers import OPTIMIZERS, Optimizer
from tests.executors.trainings import FEATURES, LABELS, OUTPUTS, REGRESSION, ROWS, WIDTH, step_of

TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
RNG = np.random.default_rng(5)
SOFT = RNG.dirichlet(np.ones(OUTPUTS), ROWS)
SOFT[3] = [0, 1, 0]
WEIGHT = RNG.uniform(0.2, 2, ROWS)
WEIGHT[5] = 0


EXECUTORS = {
    "compiled": ("cpu", functools.partial(CompiledExecutor, workers=1)),
    "two workers": ("cpu", functools.partial(CompiledExecutor, workers=2)),
    "three workers": ("cpu", functools.partial(CompiledExecutor, workers=3)),
    "graph": ("stand-in", GraphExecutor),
    "resident": ("stand-in", ResidentExecutor),
}
ONE_OF_EACH = ["compiled", "graph", "resident"]


@pytest.fixture(autouse=True)
def gpu(request):
    """The stand-in for a GPU, where a test asks for an executor of one."""
    given = getattr(request.node, "callspec", None)
    if given is not None and given.params.get("executor") in ("graph", "resident"):
        request.getfixturevalue("stand_in")()


def hidden(*layers):
    """A network with layers of `WIDTH` in its middle."""
    return lambda: [gm.Linear(FEATURES, WIDTH), *(make() for make in layers), gm.Linear(WIDTH, OUTPUTS)]


def step_on(training_step, executor, layers, loss, y, dtype, **settings):
    """A training on one of `EXECUTORS`, or on the eager one."""
    device, kind = EXECUTORS.get(executor, ("cpu", EagerExecutor))
    return step_of(training_step, kind, layers, loss, y, dtype, device=device, **settings)


COUNTERS = [i for i in range(CONTROL_SIZE) if i != START]  # a GPU has the next batch's there


@pytest.fixture(scope="module")
def latest() -> dict[tuple[Any, ...], list[Any]]:
    """The steps of the eager executor in the latest case, which tests with other executors follow too."""
    return {}


@pytest.fixture
def follow(request, latest, training_step, everything_of, assert_agree):
    """Take steps with both executors, each from the state of the eager one, and compare all tensors after each."""
    # by identity, since weights are arrays; what tests are given lives as long as they do
    given = ((name, id(value)) for name, value in request.node.callspec.params.items() if name != "executor")
    case = request.node.originalname, *sorted(given)

    def steps_of_eager(n, *training, **how):
        """Arenas before each step, control block and all tensors after it."""
        truth, steps = step_on(training_step, "eager", *training, **how), []
        for _ in range(n):
            before = {name: arena.memory.copy() for name, arena in truth.memory.arenas.items()}
            assert truth.run(1) == 1
            steps.append((before, truth.control[COUNTERS].copy(), everything_of(truth)))
        assert all(np.isfinite(value).all() for value in everything_of(truth).values())
        return steps

    def run(layers, loss, y, dtype, executor="compiled", n=7, **how):
        if case not in latest:
            latest.clear()
            latest[case] = steps_of_eager(n, layers, loss, y, dtype, **how)
        step = step_on(training_step, executor, layers, loss, y, dtype, **how)
        for before, control, after in latest[case]:
            for name, memory in before.items():
                step.memory.arenas[name].memory[...] = memory
            assert step.run(1) == 1
            np.testing.assert_array_equal(step.control[COUNTERS], control)
            assert_agree(everything_of(step), after, TOLERANCE[dtype])

    return run


def activation(cls, **settings):
    return hidden(functools.partial(cls, **settings))


LAYER_CASES = {
    "linear": {
        "one layer": lambda: [gm.Linear(FEATURES, OUTPUTS)],
        "without bias": lambda: [
            gm.Linear(FEATURES, WIDTH, bias=False),
            gm.Linear(WIDTH, OUTPUTS, bias=False),
        ],
        "sides of 1": lambda: [
            gm.Linear(FEATURES, 1),
            gm.Tanh(),
            gm.Linear(1, WIDTH),
            gm.Linear(WIDTH, OUTPUTS),
        ],
        "wide": lambda: [
            gm.Linear(FEATURES, 130),
            gm.ReLU(),
            gm.Linear(130, 70),
            gm.ReLU(),
            gm.Linear(70, OUTPUTS),
        ],
    },
    "identity": {"": hidden(gm.Identity)},
    "relu": {"": hidden(gm.ReLU)},
    "leaky_relu": {"": hidden(gm.LeakyReLU), "slope": activation(gm.LeakyReLU, negative_slope=0.3)},
    "elu": {"": hidden(gm.ELU), "alpha": activation(gm.ELU, alpha=0.5)},
    "selu": {"": hidden(gm.SELU)},
    "gelu": {"": hidden(gm.GELU), "tanh": activation(gm.GELU, approximate="tanh")},
    "silu": {"": hidden(gm.SiLU)},
    "swish": {"": hidden(gm.SiLU)},
    "mish": {"": hidden(gm.Mish)},
    "softplus": {"": hidden(gm.Softplus), "beta": activation(gm.Softplus, beta=2.0)},
    "sigmoid": {"": hidden(gm.Sigmoid)},
    "tanh": {"": hidden(gm.Tanh), "last": lambda: [gm.Linear(FEATURES, OUTPUTS), gm.Tanh()]},
    "softmax": {"": hidden(gm.Softmax), "last": lambda: [gm.Linear(FEATURES, OUTPUTS), gm.Softmax()]},
    "per_unit": {
        "": hidden(lambda: gm.PerUnit(["relu"] * 7 + ["tanh"] * 20 + ["gelu"] * 13)),
        "first": lambda: [gm.PerUnit(["tanh", "tanh", *["identity"] * 4]), gm.Linear(FEATURES, OUTPUTS)],
        "mixed": lambda: [gm.Linear(FEATURES, OUTPUTS), gm.PerUnit(["sigmoid", "relu", "softplus"])],
    },
    "dropout": {
        "": hidden(gm.ReLU, lambda: gm.Dropout(0.4)),
        "first": lambda: [gm.Dropout(0.2), *hidden()()],
    },
    "gaussian_noise": {"": hidden(lambda: gm.GaussianNoise(0.3), gm.Tanh)},
    "layer_norm": {
        "": hidden(lambda: gm.LayerNorm(WIDTH), gm.Tanh),
        "plain": hidden(lambda: gm.LayerNorm(WIDTH, affine=False)),
        "first": lambda: [gm.LayerNorm(FEATURES), gm.Linear(FEATURES, OUTPUTS)],
    },
    "batch_norm": {
        "": hidden(lambda: gm.BatchNorm1d(WIDTH), gm.Tanh),
        "plain": hidden(lambda: gm.BatchNorm1d(WIDTH, affine=False), gm.ReLU),
        "first": lambda: [gm.BatchNorm1d(FEATURES, momentum=0.3), gm.Linear(FEATURES, OUTPUTS)],
    },
}
CASES = [(name, case) for name, cases in LAYER_CASES.items() for case in cases]


def test_the_table_has_every_layer():
    assert set(LAYER_CASES) == set(LAYERS)


@pytest.mark.parametrize("executor", ONE_OF_EACH)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_layer_agrees_with_eager(follow, name, case, executor, dtype):
    follow(LAYER_CASES[name][case], "mse", REGRESSION, dtype, executor)


@pytest.mark.parametrize(
    ("name", "case"), [c for c in CASES if c[0] in ("linear", "batch_norm", "per_unit", "gelu")]
)
def test_layers_agree_with_eager_on_three_workers(follow, name, case, dtype):
    follow(LAYER_CASES[name][case], "mse", REGRESSION, dtype, "three workers", n=4)


DEEP = hidden(
    lambda: gm.BatchNorm1d(WIDTH), gm.ReLU, lambda: gm.Dropout(0.3), lambda: gm.LayerNorm(WIDTH), gm.GELU
)


@pytest.mark.parametrize("executor", ONE_OF_EACH)
@pytest.mark.parametrize("freeze", [(0,), (1,), (0, 1), (4,), (6,), (0, 1, 4)], ids=str)
def test_frozen_layers_agree_with_eager(follow, freeze, executor, dtype):
    follow(DEEP, "cross_entropy", LABELS, dtype, executor, freeze=freeze, n=4)


LOSS_CASES: dict[str, dict[str, Callable[[], Loss]]] = {
    "mse": {"": gm.MSE, "sum": lambda: gm.MSE(reduction="sum")},
    "mae": {"": gm.MAE, "sum": lambda: gm.MAE(reduction="sum")},
    "huber": {"": gm.Huber, "delta": lambda: gm.Huber(delta=0.3), "sum": lambda: gm.Huber(reduction="sum")},
    "binary_cross_entropy": {
        "": gm.BinaryCrossEntropy,
        "clip": lambda: gm.BinaryCrossEntropy(clip=0.4),
        "probabilities": lambda: gm.BinaryCrossEntropy(from_logits=False),
        "probabilities, clip": lambda: gm.BinaryCrossEntropy(from_logits=False, clip=0.3, reduction="sum"),
    },
    "cross_entropy": {
        "": gm.CrossEntropy,
        "smoothing": lambda: gm.CrossEntropy(label_smoothing=0.2),
        "clip": lambda: gm.CrossEntropy(clip=0.3),
        "sum": lambda: gm.CrossEntropy(reduction="sum", label_smoothing=0.1, clip=1e-3),
    },
    "kl_div": {
        "": gm.KLDivergence,
        "clip": lambda: gm.KLDivergence(clip=0.3),
        "probabilities": lambda: gm.KLDivergence(from_logits=False),
        "probabilities, sum": lambda: gm.KLDivergence(from_logits=False, clip=0.2, reduction="sum"),
    },
    "softmax_mse": {"": gm.SoftmaxMSE, "sum": lambda: gm.SoftmaxMSE(reduction="sum")},
}


def targets_of(name):
    if name in ("mse", "mae", "huber"):
        return {"numbers": REGRESSION}
    if name == "binary_cross_entropy":
        return {"0 and 1": (SOFT > 0.3).astype(float), "soft": SOFT}
    return {"labels": LABELS, "soft": SOFT}


def test_the_table_has_every_loss():
    assert set(LOSS_CASES) == set(LOSSES)


@pytest.mark.parametrize("executor", ONE_OF_EACH)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
@pytest.mark.parametrize(
    ("name", "case", "target"),
    [(n, c, t) for n, cases in LOSS_CASES.items() for c in cases for t in targets_of(n)],
)
def test_every_loss_agrees_with_eager(follow, name, case, target, weight, executor, dtype):
    last = {"binary_cross_entropy": gm.Sigmoid, "kl_div": gm.Softmax}.get(name, gm.Identity)
    on_probabilities = "probabilities" in case
    layers = hidden(gm.Tanh)
    make = (lambda: [*layers(), last()]) if on_probabilities else layers
    targets = targets_of(name)[target]
    follow(make, LOSS_CASES[name][case], targets, dtype, executor, weight=weight, n=4)


OPTIMIZER_CASES: dict[str, dict[str, Callable[[], Optimizer]]] = {
    "sgd": {
        "": gm.SGD,
        "decay": lambda: gm.SGD(weight_decay=0.1),
        "decay of all": lambda: gm.SGD(weight_decay=0.1, decay_bias=True),
        "momentum": lambda: gm.SGD(momentum=0.9),
        "dampening": lambda: gm.SGD(momentum=0.9, dampening=0.3, weight_decay=0.01),
        "nesterov": lambda: gm.SGD(momentum=0.9, nesterov=True),
        "keras": lambda: gm.SGD(momentum=0.9, form="keras", weight_decay=0.01),
        "keras, nesterov": lambda: gm.SGD(momentum=0.9, form="keras", nesterov=True),
        "average": lambda: gm.SGD(momentum=0.9, form="average"),
        "clip_norm": lambda: gm.SGD(clip_norm=0.05),
        "clip_value": lambda: gm.SGD(clip_value=0.05),
        "both clips": lambda: gm.SGD(clip_value=0.05, clip_norm=0.1, momentum=0.5),
    },
    "adagrad": {
        "": gm.Adagrad,
        "all": lambda: gm.Adagrad(lr_decay=0.1, initial_accumulator=0.1, eps=1e-3, weight_decay=0.1),
    },
    "rmsprop": {
        "": gm.RMSprop,
        "momentum": lambda: gm.RMSprop(momentum=0.9),
        "centered": lambda: gm.RMSprop(centered=True, eps=1e-3),
        "all": lambda: gm.RMSprop(centered=True, momentum=0.5, alpha=0.9, eps=1e-2, weight_decay=0.1),
    },
    "adam": {
        "": gm.Adam,
        "all": lambda: gm.Adam(beta1=0.8, beta2=0.9, eps=1e-4, weight_decay=0.1, clip_norm=0.1),
    },
    "adamw": {"": gm.AdamW, "all": lambda: gm.AdamW(weight_decay=0.3, decay_bias=True, beta1=0.5)},
}


def test_the_table_has_every_optimizer():
    assert set(OPTIMIZER_CASES) == set(OPTIMIZERS)


@pytest.mark.parametrize("executor", [*ONE_OF_EACH, "two workers"])
@pytest.mark.parametrize(("name", "case"), [(n, c) for n, cases in OPTIMIZER_CASES.items() for c in cases])
def test_every_optimizer_agrees_with_eager(follow, name, case, executor, dtype):
    layers = hidden(gm.Tanh)
    optimizer = OPTIMIZER_CASES[name][case]
    follow(layers, "mse", REGRESSION, dtype, executor, optimizer=optimizer)


@pytest.mark.parametrize("executor", ONE_OF_EACH)
@pytest.mark.parametrize("batch_rows", [1, 5, ROWS, 16])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_any_size_agree_with_eager(follow, batch_rows, shuffle, executor, dtype):
    follow(
        hidden(gm.ReLU),
        "cross_entropy",
        LABELS,
        dtype,
        executor,
        batch_rows=batch_rows,
        shuffle=shuffle,
        n=4,
    )


@pytest.mark.parametrize("executor", [*ONE_OF_EACH, "three workers"])
def test_long_and_narrow_batches_agree_with_eager(follow, executor, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1509, 2)), rng.normal(size=(1509, 1))

    def narrow():
        return [gm.Linear(2, 5), gm.Tanh(), gm.Linear(5, 4), gm.ReLU(), gm.Linear(4, 1)]

    follow(narrow, "mse", y, dtype, executor, n=3, x=x, batch_rows=1500)
