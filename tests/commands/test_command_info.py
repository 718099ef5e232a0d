"""gpumlp info: what runs here, whatever is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import machine
from gpumlp.commands import info

LIBRARIES = ["gpumlp", "python", "numpy", "scipy", "numba", "scikit-learn", "pyarrow", "cupy", "nvmath"]


def run(*given: str) -> int:
    parser = argparse.ArgumentParser()
    info.add_parser(parser.add_subparsers())
    args = parser.parse_args(["info", *given])
    return args.run(args)


@pytest.fixture
def core_only(monkeypatch, no_gpu):
    """Nothing of what is optional is installed: no CuPy, nvmath, threadpoolctl, and no nvidia-smi."""
    real = importlib.metadata.version

    def version(name):
        if name.startswith(("cupy", "nvmath")):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    monkeypatch.setenv("PATH", "")


def test_text_has_a_line_for_each_library_and_for_the_machine(capsys):
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*LIBRARIES, "CPU", "CPUs", "memory", "BLAS", 'device "auto"'):
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert lines[0].split()[:2] == ["gpumlp", gm.__version__]
    assert any(line.split()[:2] == ["numpy", np.__version__] for line in lines)


def test_json_has_what_the_text_has(capsys):
    assert run("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["versions"]) == LIBRARIES
    assert found["versions"]["gpumlp"] == gm.__version__
    assert found["machine"]["cpus"]["usable"] >= 1
    assert found["machine"]["memory_bytes"] > 2**28
    assert found["blas"]
    assert found["auto"]["device"] == gm.get_backend("auto").name


def test_blas_libraries_show_their_threads(capsys):
    pytest.importorskip("threadpoolctl")
    from threadpoolctl import threadpool_limits

    run()  # loads SciPy's library, so that the limit reaches it too
    capsys.readouterr()
    with threadpool_limits(1, user_api="blas"):
        run("--json")
    found = json.loads(capsys.readouterr().out)["blas"]
    assert [library["threads"] for library in found] == [1] * len(found)


def test_it_works_with_the_core_dependencies_and_no_gpu(core_only, capsys):
    assert run() == 0
    text = capsys.readouterr().out
    for name in ("cupy", "nvmath"):
        assert f"{name:<21}not installed" in text
    assert "not usable: CuPy does not import" in text
    assert f"cpu (NumPy), executor {machine.executor_name(gm.get_backend('cpu'))}" in text
    assert "threads unknown (needs threadpoolctl)" in text
    assert run("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["cupy"] is None
    assert found["gpus"] == []
    assert found["commit"] is None


def test_the_reason_against_the_gpu_tells_what_to_install_and_no_more(core_only):
    reason = machine.gpus()[1]
    assert reason is not None
    assert reason.startswith("CuPy does not import")
    assert reason.endswith("install it with: pip install 'gpumlp[cuda12]' or 'gpumlp[cuda13]'")


def test_gpus_and_thread_variables_stand_in_the_text():
    card = {"name": "NVIDIA H200", "memory_bytes": 150_754_820_096}
    found = {
        **info.collect(),
        "gpus": [card, {"name": "NVIDIA L4", "memory_bytes": None}],
        "gpu_unusable_because": None,
        "commit": "v1.0-3-gabc",
    }
    found["machine"] = {**found["machine"], "thread_variables": {"OMP_NUM_THREADS": "3"}}
    lines = info.describe(found).splitlines()
    assert f"{'GPU 0':<21}NVIDIA H200, 140.4 GiB" in lines
    assert f"{'GPU 1':<21}NVIDIA L4, unknown" in lines
    assert f"{'OMP_NUM_THREADS':<21}3" in lines
    assert lines[0].endswith("(v1.0-3-gabc)")
    assert not any("not usable" in line for line in lines)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"present": 8, "affinity": 4, "quota": None, "usable": 4}, "4 usable of 8 (affinity 4, quota none)"),
        ({"present": 8, "affinity": 8, "quota": 1.5, "usable": 2}, "2 usable of 8 (affinity 8, quota 1.5)"),
    ],
)
def test_cpus_in_words(counts, text):
    assert info.describe_cpus(counts) == text
