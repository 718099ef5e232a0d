"""Errors that gpumlp raises on purpose are told from bugs."""

import pytest

from gpumlp.mistakes import is_meant
from gpumlp.registry import look_up


def caught(function):
    with pytest.raises(Exception) as info:
        function()
    return info.value


def test_a_raise_in_the_package_is_meant():
    assert is_meant(caught(lambda: look_up("loss", "mes", {"mse": 1})))


def test_an_error_that_python_raises_within_the_package_is_a_bug():
    assert not is_meant(caught(lambda: look_up("loss", 3, {"mse": 1})))  # type: ignore[arg-type]


def test_a_raise_elsewhere_is_meant_only_where_that_package_is_named():
    def fail():
        raise ValueError("no")

    error = caught(fail)
    assert not is_meant(error)
    assert is_meant(error, (__name__.split(".")[0],))


def test_an_error_that_was_never_raised_is_not_meant():
    assert not is_meant(ValueError("no"))
