"""Elementary functions in float32: against float64 of NumPy and SciPy, over the whole range of numbers.

4 ulp where the true result is a normal number is what issue and docstring promise.
"""

import re
from functools import cache

import numpy as np
import pytest
import scipy.special
from numba import njit, types

from gpumlp.kernels.cpu import mathlib

F32 = np.finfo(np.float32)


def unit_softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


REFERENCE = {
    "exp32": np.exp,
    "tanh32": np.tanh,
    "sigmoid32": scipy.special.expit,
    "erf32": scipy.special.erf,
    "log1p32": np.log1p,
    "unit_softplus32": unit_softplus,
}
# Where a function changes its formula, saturates, or leaves the normal numbers.
BREAKPOINTS = {
    "exp32": (0.0, -87.33654, 88.72284, *(k * np.log(2) / 2 for k in range(-251, 256, 2))),
    "tanh32": (0.0, 0.55, 9.01, 44.36),
    "sigmoid32": (0.0, 16.64, 87.33654, 88.72284),
    "erf32": (0.0, 1.0, 3.83, 4.0),
    "log1p32": (0.0, 1.0),
    "unit_softplus32": (0.0, 16.64, 87.33654, 88.72284),
}
NAMES = sorted(REFERENCE)
DOMAIN = {"log1p32": (0.0, 1.0)}  # it only ever sees exp(-|x|)


@cache
def loop(name):
    """The function in a loop, as kernels have it."""
    f = getattr(mathlib, name)

    @njit(types.void(types.float32[::1], types.float32[::1]), error_model="numpy")
    def apply(x, y):
        for i in range(x.size):
            y[i] = f(x[i])

    return apply


def evaluate(name, x):
    y = np.empty_like(x)
    loop(name)(x, y)
    return y


def inside(name, x):
    low, high = DOMAIN.get(name, (-np.inf, np.inf))
    return x[(x >= low) & (x <= high)]


def dense():
    """Every 1499th float32 of both signs: all exponents, subnormals included."""
    bits = np.arange(0, 0x7F800000, 1499, dtype=np.uint32)
    return np.concatenate([bits.view(np.float32), (bits | np.uint32(1 << 31)).view(np.float32)])


def around(name):
    """Some thousand neighbours of each place where the formula changes, on both sides and for both signs."""
    steps = np.arange(-1500, 1501)
    places = []
    for value in BREAKPOINTS[name]:
        if value:
            bits = np.abs(np.float32(value)).view(np.int32) + steps
            near = bits.astype(np.int32).view(np.float32)
        else:
            near = np.concatenate([steps * 1e-9, np.arange(0, 3000, dtype=np.int32).view(np.float32)])
        places += [near, -near]
    return np.concatenate(places).astype(np.float32)


def even():
    return np.linspace(-120, 120, 400_001, dtype=np.float32)


def true_values(name, x):
    with np.errstate(all="ignore"):
        return REFERENCE[name](x.astype(np.float64))


@pytest.mark.parametrize("make", [dense, around, even], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_an_error_is_at_most_4_ulp_where_the_true_result_is_normal(name, make):
    x = inside(name, make(name) if make is around else make())
    assert x.size > 1000
    found, wanted = evaluate(name, x), true_values(name, x)
    normal = (np.abs(wanted) >= F32.tiny) & (np.abs(wanted) <= F32.max)
    ulp = np.spacing(np.abs(wanted[normal]).astype(np.float32)).astype(np.float64)
    error = np.abs(found[normal].astype(np.float64) - wanted[normal]) / ulp
    worst = np.argmax(error)
    assert error[worst] <= 4, f"{name}({x[normal][worst]!r}) is {found[normal][worst]!r}"


@pytest.mark.parametrize("name", NAMES)
def test_below_the_normal_numbers_a_result_may_be_0_and_is_never_larger_than_the_least_normal(name):
    x = inside(name, np.concatenate([dense(), around(name)]))
    wanted = true_values(name, x)
    small = np.abs(wanted) < F32.tiny
    found = evaluate(name, x[small])
    assert (np.abs(found) <= F32.tiny * 1.000001).all()
    assert (found * np.sign(wanted[small]) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_infinity_and_no_nan_that_the_true_function_does_not_have(name):
    x = inside(name, np.concatenate([dense(), around(name), even()]))
    found, wanted = evaluate(name, x), true_values(name, x)
    assert not np.isnan(found).any()
    assert np.isfinite(found[np.abs(wanted) <= F32.max]).all()
    assert (found[wanted > float(F32.max) * (1 + 1e-6)] == np.inf).all()


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan(name):
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7FFFFFFF], np.uint32).view(np.float32)
    x = np.tile(np.concatenate([nans, np.ones(1, np.float32)]), 41)
    np.testing.assert_array_equal(np.isnan(evaluate(name, x)), np.isnan(x))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in DOMAIN])
def test_zeros_and_infinities_give_the_limits(name):
    x = np.array([np.inf, -np.inf, 0.0, -0.0], np.float32)
    np.testing.assert_allclose(evaluate(name, x), true_values(name, x), rtol=4 * float(F32.eps))


@pytest.mark.parametrize("name", ["exp32", "log1p32", "sigmoid32", "tanh32", "erf32"])
def test_what_is_exact_is_exact(name):
    exact = {"exp32": (0, 1), "log1p32": (0, 0), "sigmoid32": (0, 0.5), "tanh32": (0, 0), "erf32": (0, 0)}
    x, y = exact[name]
    assert evaluate(name, np.array([x], np.float32))[0] == y
    saturated = {"tanh32": (20, 1), "erf32": (5, 1), "sigmoid32": (40, 1)}
    if name in saturated:
        x, y = saturated[name]
        assert evaluate(name, np.array([x], np.float32))[0] == y


@pytest.mark.parametrize("name", ["tanh32", "erf32"])
def test_odd_functions_are_odd_to_the_bit(name):
    x = dense()
    half = x.size // 2
    found = evaluate(name, x)
    np.testing.assert_array_equal(found[half + 1 :], -found[1:half])


@pytest.mark.parametrize("name", ["exp32", "sigmoid32", "tanh32", "erf32"])
def test_results_stay_within_the_range_of_the_function(name):
    found = evaluate(name, np.concatenate([dense(), around(name)]))
    low, high = {"exp32": (0, np.inf), "sigmoid32": (0, 1)}.get(name, (-1, 1))
    assert found.min() >= low
    assert found.max() <= high


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_is_vectorised_and_all_in_float32(name):
    """One conversion to float64, or a call that is not inlined, makes it some ten times slower and nobody sees."""
    code = loop(name).inspect_llvm(loop(name).signatures[0])
    assert re.search(r"fmul (contract )?<\d+ x float>", code)
    assert " double" not in code
    assert not re.search(r"call .*cpython.*32_", code.split("define ")[1])


def test_float64_takes_functions_of_the_c_library_and_float32_those_of_this_module():
    single, double = mathlib.names("float32"), mathlib.names("float64")
    assert set(single) == set(double)
    assert {"T", "exp", "tanh", "sigmoid", "erf", "unit_softplus"} <= set(single)
    assert (single["T"], double["T"]) == (np.float32, np.float64)


@pytest.mark.parametrize(
    ("function", "reference"),
    [(mathlib.sigmoid64, scipy.special.expit), (mathlib.unit_softplus64, unit_softplus)],
)
def test_the_float64_forms_have_no_overflow_and_keep_nan(function, reference):
    x = np.concatenate([np.linspace(-800, 800, 4001), [1e308, -1e308, np.inf, -np.inf, np.nan]])
    with np.errstate(all="ignore"):
        np.testing.assert_allclose([function(v) for v in x], reference(x), rtol=1e-15, atol=1e-307)
