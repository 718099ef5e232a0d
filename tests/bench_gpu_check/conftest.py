"""A checkout, and what a section is given, on the stand-in for a GPU."""

from __future__ import annotations

import time

import pytest

from gpumlp.kernels.cuda.host import compiler
from tests.bench_gpu_check.sections import ROOT, module


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """The root of the checkout, where `bench` is found; a compiler, for the stand-in's kernels."""
    try:
        compiler()
    except RuntimeError as error:
        pytest.skip(str(error))
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("GPUMLP_DATA", raising=False)


@pytest.fixture
def context(monkeypatch):
    from gpumlp import backend

    monkeypatch.setattr(backend, "_REGISTERED", {})
    context = module("checks").Context("host", time.monotonic() + 600)
    context.called.set()  # nothing gets ready before it is asked for
    return context
