import numpy as np
import pytest

from gpumlp.kernels import CATALOGUE
from gpumlp.kernels.reference import kernel
from gpumlp.program import new_control

X = np.array([[1.0, 2, 4], [-1, 0.5, 3], [0.25, -2, 1], [2, 2, -1]])
GAMMA, BETA = np.array([0.5, 1.5, -1.0]), np.array([0.1, -0.2, 0.3])
DY = np.array([[1.0, -1, 0.5], [0.5, 2, -1], [-1.5, 1, 0.25], [2, 0.5, -0.75]])
EPS = 1e-3

# y, dx, dgamma, dbeta in float64 from torch 2.13.0: F.layer_norm(X, (3,), GAMMA, BETA, EPS) and
# F.batch_norm(X, None, None, GAMMA, BETA, True, 0.1, EPS), with the gradient DY of y.
TORCH = {
    "layer_norm": (
        [
            [-0.4343507558194737, -0.6007630668646053, -1.0358768895486836],
            [-0.4554818815874747, -0.5029901172295317, -1.012957174661304],
            [0.296055819548525, -2.2585861052595124, -0.6802790977426247],
            [0.4534650353774512, 0.8603951061323535, 1.7138601415098047],
        ],
        [
            [0.5726657914551835, -0.8587412192977171, 0.2860754278425334],
            [-0.6106532225170322, 0.9769821077756761, -0.3663288852586436],
            [-0.45260036571052475, 0.1136826333728995, 0.33891773233762534],
            [0.08838097919399546, -0.0883515384947301, -2.944069926502646e-05],
        ],
        [-0.7984907103621923, -1.1557371465251953, 0.6604461506810476],
        [2.0, 2.5, -1.0],
    ),
    "batch_norm": (
        [
            [0.2996723172866587, 1.0615504787515238, -0.871541356530362],
            [-0.613115418880924, -0.3146864071592294, -0.3508563091835345],
            [-0.04262308377618479, -2.6084145503438183, 0.6905137855101205],
            [0.75606618537045, 1.0615504787515238, 1.7318838802037755],
        ],
        [
            [0.10342448071620479, -1.0705637943511588, -0.25155503710778004],
            [0.44561590473461027, 1.2233359788679943, 0.46771309017808765],
            [-0.8236645552206606, -0.45844527607642993, -0.30666210647419395],
            [0.27462416976984555, 0.30567309155959443, 0.09050405340388633],
        ],
        [2.738363208502748, -2.1790417360253596, 0.9111988328569481],
        [2.0, 2.5, -1.0],
    ),
}
# torch.nn.BatchNorm1d(3, momentum=0.3) after one batch X from running mean 0 and variance 1.
RUNNING_MEAN, RUNNING_VAR = [0.16874999999999998, 0.1875, 0.525], [1.1796875, 1.7687499999999998, 2.175]


def call(name, given, backend, **scalars):
    """Run a kernel on named operands; results are made here and returned by name."""
    spec, xp = CATALOGUE[name], backend.xp
    rows, columns = given["x" if "x" in given else "dy"].shape
    length = rows if name.startswith("layer_norm") else columns
    shapes = {"y": (rows, columns), "dx": (rows, columns), "dgamma": (columns,), "dbeta": (columns,)}
    operands = [
        backend.asarray(given[o]) if o in given else xp.full(shapes.get(o, (length,)), np.nan)
        for o in spec.operands
    ]
    kernel(name)(xp, *operands, **scalars)
    return {o: np.array(backend.to_host(v)) for o, v in zip(spec.operands, operands, strict=True)}


@pytest.mark.parametrize("name", TORCH)
def test_values_and_gradients_are_those_of_torch(name, backend):
    y, dx, dgamma, dbeta = TORCH[name]
    forward = call(name, {"x": X, "gamma": GAMMA, "beta": BETA}, backend, eps=EPS)
    np.testing.assert_allclose(forward["y"], y, rtol=1e-12)
    saved = {k: forward[k] for k in ("x", "gamma", "mean", "rstd")}
    back = call(f"{name}_grad", {**saved, "dy": DY}, backend)
    np.testing.assert_allclose(back["dx"], dx, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(back["dgamma"], dgamma, rtol=1e-11)
    np.testing.assert_allclose(back["dbeta"], dbeta, rtol=1e-12)


@pytest.mark.parametrize(("name", "axis"), [("layer_norm", 1), ("batch_norm", 0)])
def test_statistics_are_the_mean_and_the_inverse_deviation(name, axis, backend):
    forward = call(name, {"x": X, "gamma": GAMMA, "beta": BETA}, backend, eps=EPS)
    np.testing.assert_allclose(forward["mean"], X.mean(axis=axis), rtol=1e-14)
    np.testing.assert_allclose(forward["rstd"], (X.var(axis=axis) + EPS) ** -0.5, rtol=1e-14)
    if name == "batch_norm":
        np.testing.assert_allclose(forward["var"], X.var(axis=0), rtol=1e-14)


def test_batch_norm_fixed_uses_the_statistics_it_is_given(backend):
    mean, var = np.array([0.5, -1.0, 2.0]), np.array([1.0, 4.0, 0.25])
    given = {"gamma": GAMMA, "mean": mean, "var": var}
    forward = call("batch_norm_fixed", {"x": X, "beta": BETA, **given}, backend, eps=EPS)
    np.testing.assert_allclose(forward["y"], GAMMA * (X - mean) / np.sqrt(var + EPS) + BETA, rtol=1e-13)
    back = call("batch_norm_fixed_grad", {"gamma": GAMMA, "var": var, "dy": DY}, backend, eps=EPS)
    np.testing.assert_allclose(back["dx"], DY * GAMMA / np.sqrt(var + EPS), rtol=1e-13)


def running_average(rows, backend):
    running_mean, running_var = (backend.asarray(v) for v in (np.zeros(3), np.ones(3)))
    mean, var = (backend.asarray(v) for v in (X[:rows].mean(axis=0), X[:rows].var(axis=0)))
    kernel("running_average")(
        backend.xp, new_control(0), mean, var, running_mean, running_var, momentum=0.3, rows=rows
    )
    return backend.to_host(running_mean), backend.to_host(running_var)


def test_running_average_is_that_of_torch(backend):
    mean, var = running_average(4, backend)
    np.testing.assert_allclose(mean, RUNNING_MEAN, rtol=1e-14)
    np.testing.assert_allclose(var, RUNNING_VAR, rtol=1e-14)


def test_running_average_of_a_single_row_stays_finite(backend):
    """The unbiased variance of one row is 0 / 0; its biased one, 0, is taken."""
    mean, var = running_average(1, backend)
    np.testing.assert_allclose(mean, 0.3 * X[0], rtol=1e-14)
    np.testing.assert_allclose(var, 0.7, rtol=1e-14)
