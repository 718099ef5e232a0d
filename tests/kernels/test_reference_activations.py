import numpy as np
import pytest
import scipy.special

from gpumlp.kernels import CATALOGUE
from gpumlp.kernels.reference import kernel
from gpumlp.kernels.reference.activations import SELU_ALPHA, SELU_SCALE

X = [-6.0, -2.5, -1.0, -0.3, 0.2, 0.7, 1.5, 4.0]

SETTINGS = {"leaky_relu": {"negative_slope": 0.1}, "elu": {"alpha": 0.7}, "softplus": {"beta": 2.0}}

# f(X) and f'(X) in float64 from torch 2.13.0 (torch.nn.functional; SETTINGS where the function has some).
TORCH = {
    "leaky_relu": (
        [-0.6000000000000001, -0.25, -0.1, -0.03, 0.2, 0.7, 1.5, 4.0],
        [0.1, 0.1, 0.1, 0.1, 1.0, 1.0, 1.0, 1.0],
    ),
    "elu": (
        [
            -0.6982648734763335,
            -0.6425405009632709,
            -0.44248439117999033,
            -0.1814272455227975,
            0.2,
            0.7,
            1.5,
            4.0,
        ],
        [
            0.0017351265236664507,
            0.05745949903672916,
            0.2575156088200096,
            0.5185727544772025,
            1.0,
            1.0,
            1.0,
            1.0,
        ],
    ),
    "selu": (
        [
            *(-1.7537414482794556, -1.6137857588732425, -1.1113307378125625, -0.45566731537912203),
            *(0.2101401974710961, 0.7354906911488363, 1.5760514810332207, 4.202803949421922),
        ],
        [
            *(0.0043578925679211246, 0.1443135819741343, 0.646768603034814, 1.3024320254682547),
            *(1.0507009873554805, 1.0507009873554805, 1.0507009873554805, 1.0507009873554805),
        ],
    ),
    "gelu": (
        [
            *(-5.919525869479969e-09, -0.015524163314440398, -0.15865525393145702, -0.1146265733433142),
            *(0.11585194188782061, 0.5306254434438489, 1.399789198096713, 3.9998733150326675),
        ],
        [
            *(-3.546870945402639e-08, -0.03761108590814519, -0.08331547058768635, 0.26767223317289013),
            *(0.6574682482341941, 0.9766141011336599, 1.1274691922299795, 1.0005036496612265),
        ],
    ),
    "gelu_tanh": (
        [
            *(-8.43964897967453e-11, -0.015084266089998577, -0.15880800939172324, -0.11462907645724074),
            *(0.11585142978210627, 0.5305701347051167, 1.3995715769802328, 3.9999297540518075),
        ],
        [
            *(-7.709976012836329e-10, -0.03795157621266618, -0.08296408384578252, 0.26770454836119817),
            *(0.6574581491956996, 0.976357218656104, 1.127710793151433, 1.000335123197122),
        ],
    ),
    "silu": (
        [
            *(-0.014835738939808647, -0.18964545005310887, -0.2689414213699951, -0.1276672449565023),
            *(0.1099667994624956, 0.46773144051771626, 1.2263617142904655, 3.928055160151634),
        ],
        [
            *(-0.012326432591525513, -0.09940111134152683, 0.07232948812851325, 0.3522199896811173),
            *(0.59933731185485, 0.8233867834733425, 1.041294154299143, 1.0526646148910728),
        ],
    ),
    "mish": (
        [
            *(-0.014854080479424995, -0.19681620390653337, -0.30340146137410895, -0.15113317713833455),
            *(0.13259900186215923, 0.5611483776438518, 1.4033782663958028, 3.9974128069762385),
        ],
        [
            *(-0.01235996793178131, -0.10974357275018566, 0.059216755877395014, 0.40851087693570215),
            *(0.7246245404198407, 0.9687948682001859, 1.0884879850078475, 1.0044328769037503),
        ],
    ),
    "softplus": (
        [
            *(3.072096738866403e-06, 0.003357674244559034, 0.06346400552148625, 0.2187439752429428),
            *(0.4565076261999763, 0.8102087049592255, 1.524293675786871, 4.000167703186448),
        ],
        [
            *(6.144174602214718e-06, 0.006692850924284856, 0.11920292202211755, 0.3543436937742045),
            *(0.598687660112452, 0.8021838885585817, 0.9525741268224333, 0.9996646498695335),
        ],
    ),
}

# The same functions once more, by their definitions.
FORMULAS = {
    "relu": lambda x: np.where(x > 0, x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
    "elu": lambda x: np.where(x > 0, x, 0.7 * np.expm1(np.minimum(x, 0))),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "gelu_tanh": lambda x: x * scipy.special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
    "silu": lambda x: x * scipy.special.expit(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "softplus": lambda x: np.logaddexp(0, 2 * x) / 2,
    "sigmoid": scipy.special.expit,
    "tanh": np.tanh,
    "softmax": lambda x: scipy.special.softmax(x, axis=1),
}


def forward(name, x, backend):
    x = backend.asarray(x)
    y = backend.xp.empty_like(x)
    kernel(name)(backend.xp, x, y, **SETTINGS.get(name, {}))
    return y


def gradient(name, x, dy, backend):
    x, y, dy = backend.asarray(x), forward(name, x, backend), backend.asarray(dy)
    dx = backend.xp.empty_like(dy)
    saved = x if CATALOGUE[f"{name}_grad"].reads[0] == "x" else y
    kernel(f"{name}_grad")(backend.xp, saved, dy, dx, **SETTINGS.get(name, {}))
    return np.array(backend.to_host(dx))


def test_every_activation_of_the_catalogue_has_a_formula_here():
    pairs = {n.removesuffix("_grad") for n, spec in CATALOGUE.items() if spec.reads[-1:] == ("dy",)}
    assert {n for n in pairs if CATALOGUE.get(n) and CATALOGUE[n].operands == ("x", "y")} == set(FORMULAS)


@pytest.mark.parametrize("name", TORCH)
def test_value_and_derivative_are_those_of_torch(name, backend):
    x = np.array([X])
    values, derivatives = TORCH[name]
    np.testing.assert_allclose(backend.to_host(forward(name, x, backend))[0], values, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        gradient(name, x, np.ones_like(x), backend)[0], derivatives, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", FORMULAS)
def test_values_follow_the_definition(name, backend, dtype):
    x = np.random.default_rng(0).normal(0, 4, (40, 25)).astype(dtype)
    expected = FORMULAS[name](x.astype(np.float64))
    # gelu far below 0 is a difference of nearly equal numbers: only the absolute error is small there
    rtol, atol = (1e-5, 1e-6) if dtype == "float32" else (1e-12, 1e-14)
    np.testing.assert_allclose(backend.to_host(forward(name, x, backend)), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", FORMULAS)
def test_derivatives_agree_with_central_differences(name, backend):
    rng = np.random.default_rng(1)
    x, dy, h = rng.normal(0, 2, (8, 6)), rng.normal(size=(8, 6)), 1e-6
    x += np.sign(x) * 1e-3  # away from the kinks at 0
    if name == "softmax":
        numeric = np.empty_like(x)
        for place in np.ndindex(*x.shape):
            e = np.zeros_like(x)
            e[place] = h
            numeric[place] = (dy * (FORMULAS[name](x + e) - FORMULAS[name](x - e))).sum() / (2 * h)
    else:
        numeric = dy * (FORMULAS[name](x + h) - FORMULAS[name](x - h)) / (2 * h)
    np.testing.assert_allclose(gradient(name, x, dy, backend), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_large_values_neither_overflow_nor_warn(name, size, backend, dtype):
    """Warnings are errors here: each branch that is taken must be sound, not only the result."""
    x = np.array([[-size, -1.0, 0.0, 1.0, size]], dtype)
    y = backend.to_host(forward(name, x, backend))
    np.testing.assert_allclose(y, FORMULAS[name](x.astype(np.float64)), rtol=1e-5, atol=1e-7)
    slope = gradient(name, x, np.ones_like(x), backend)
    assert np.isfinite(slope).all()
    if name != "softmax":
        at_left = {"leaky_relu": 0.1}.get(name, 0.0)
        at_right = {"sigmoid": 0.0, "tanh": 0.0, "selu": SELU_SCALE}.get(name, 1.0)
        np.testing.assert_allclose(slope[0, [0, -1]], [at_left, at_right], rtol=1e-6, atol=1e-6)


def test_relu_and_its_kin_take_the_left_derivative_at_0(backend):
    """As torch does: relu'(0) = 0, leaky_relu'(0) = negative_slope, elu'(0) = alpha."""
    x = np.zeros((1, 2))
    for name, expected in (
        ("relu", 0.0),
        ("leaky_relu", 0.1),
        ("elu", 0.7),
        ("selu", SELU_SCALE * SELU_ALPHA),
    ):
        np.testing.assert_allclose(gradient(name, x, np.ones_like(x), backend), expected, rtol=1e-15)


def test_rows_of_softmax_sum_to_1_and_do_not_change_with_a_shift(backend):
    x = np.random.default_rng(2).normal(0, 3, (6, 5))
    y = np.array(backend.to_host(forward("softmax", x, backend)))
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(backend.to_host(forward("softmax", x + 700, backend)), y, rtol=1e-10)


def test_gaussian_noise_adds_std_times_normals(backend):
    from gpumlp.kernels.philox import NOISE, random_normals
    from gpumlp.program import new_control

    x = np.random.default_rng(0).normal(size=(4, 6))
    y = backend.xp.empty((4, 6))
    kernel("gaussian_noise")(backend.xp, new_control(3), backend.asarray(x), y, std=0.25, layer=1)
    expected = x + 0.25 * random_normals(np, 4, 6, NOISE, 3, 0, 1)
    np.testing.assert_allclose(backend.to_host(y), expected, rtol=1e-12)
