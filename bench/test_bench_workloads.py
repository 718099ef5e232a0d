"""Whole trainings of the workloads; a round is one about a second long, checked before it is timed.

`gpumlp bench` measures the same thing by itself; here pytest-benchmark keeps and compares the results.
"""

from __future__ import annotations

from typing import Any

import pytest

import gpumlp as gm
from gpumlp.commands.bench_peak import Peak
from gpumlp.commands.bench_rounds import Session
from gpumlp.workloads import WORKLOADS

ROUNDS = 3


@pytest.fixture(scope="module")
def peak(backend: gm.Backend) -> Peak:
    """This machine's rate of matrix products."""
    peak = Peak(backend)
    peak.measure(0.5)
    return peak


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload(name: str, backend: gm.Backend, peak: Peak, benchmark: Any) -> None:
    workload = WORKLOADS[name]
    session = Session(workload, workload.load(), backend)
    session.warm_up(seconds=1.0)  # raises where the loss does not fall
    benchmark.pedantic(session.measure_round, rounds=ROUNDS)
    result = session.result(peak.gflops)
    kept = ("data", "device_description", "executor", "dtype", "it", "gflops", "share_of_peak", "losses")
    benchmark.extra_info.update({key: result[key] for key in kept})
    benchmark.extra_info["it/s"] = result["it_per_second"]
    benchmark.extra_info["samples/s"] = result["samples_per_second"]
