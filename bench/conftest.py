"""What the benchmark suites share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import gpumlp as gm


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("the benchmarks need pytest-benchmark: pip install pytest-benchmark")


def _devices() -> list[str]:
    try:
        gm.get_backend("gpu")
    except ValueError:
        return ["cpu"]
    return ["cpu", "gpu"]


@pytest.fixture(scope="session", params=_devices())
def backend(request: pytest.FixtureRequest) -> gm.Backend:
    """Every backend that this machine has."""
    return gm.get_backend(request.param)


@pytest.fixture
def timed(benchmark: Any, backend: gm.Backend) -> Callable[..., None]:
    """Time a function, the device's work included, and note its rate: ``timed(function, flops=..., nbytes=...)``."""

    def measure(function: Callable[[], None], flops: int = 0, nbytes: int = 0) -> None:
        def work() -> None:
            function()
            backend.synchronize()

        benchmark(work)
        benchmark.extra_info["device"] = backend.describe()
        if benchmark.stats is None:  # --benchmark-disable
            return
        seconds = benchmark.stats.stats.median
        if flops:
            benchmark.extra_info["GFLOP/s"] = round(flops / seconds / 1e9, 3)
        if nbytes:
            benchmark.extra_info["GB/s"] = round(nbytes / seconds / 1e9, 3)

    return measure
