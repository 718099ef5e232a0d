"""gpumlp.machine: what this machine is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import feed, machine

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def test_a_system_that_says_nothing_of_its_memory_is_no_error(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert machine.memory_bytes() is None
    assert machine.machine()["memory_bytes"] is None


def test_the_processor_has_a_name():
    assert machine.cpu_model().strip()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (25_233_408_000, "23.5 GiB"),
        (2**40, "1.0 TiB"),
        (2**51, "2048.0 TiB"),
    ],
)
def test_sizes_in_words(size, text):
    assert machine.in_words(size) == text


def test_versions_name_what_is_not_installed(monkeypatch):
    monkeypatch.setitem(machine.DISTRIBUTIONS, "cupy", ("no-such-distribution", "neither-this"))
    found = machine.versions()
    assert found["cupy"] is None
    assert found["gpumlp"] == gm.__version__
    assert found["numpy"]


def test_the_executor_is_the_one_that_trains(monkeypatch):
    used = []
    make_executor = feed.make_executor

    def noted(*arguments, **settings):
        used.append(make_executor(*arguments, **settings))
        return used[-1]

    monkeypatch.setattr(feed, "make_executor", noted)
    trainer = gm.Trainer(gm.mlp([1, 2, 1], device="cpu"), loss="mse")
    trainer.fit(np.ones((4, 1)), np.ones(4), epochs=1, batch_size=2, progress=False)
    assert [executor.name for executor in used] == [machine.executor_name(gm.get_backend("cpu"))]


# --- GPUs ----------------------------------------------------------------------------------------------------------


def test_gpus_are_asked_for_through_cupy(monkeypatch):
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 2,
        getDeviceProperties=lambda i: {"name": f"card {i}".encode(), "totalGlobalMem": (i + 1) * 2**30},
    )
    backend = SimpleNamespace(xp=SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    monkeypatch.setattr(machine, "get_backend", lambda device: backend)
    assert machine.gpus() == (
        [{"name": "card 0", "memory_bytes": 2**30}, {"name": "card 1", "memory_bytes": 2**31}],
        None,
    )


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")
def test_without_cupy_nvidias_tool_says_what_cards_there_are(tmp_path, monkeypatch, no_gpu):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771'\necho 'NVIDIA, odd name, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    cards, reason = machine.gpus()
    assert cards == [
        {"name": "NVIDIA H200", "memory_bytes": 143771 * 2**20},
        {"name": "NVIDIA, odd name", "memory_bytes": None},
    ]
    assert reason is not None
    assert "CuPy does not import" in reason


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")
def test_a_tool_that_fails_is_as_good_as_none(tmp_path, monkeypatch, no_gpu):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, 1'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert machine.gpus()[0] == []


# --- the checkout ---------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository with one commit, tagged v7, and a package in it."""
    for key in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{key}_NAME", "a")
        monkeypatch.setenv(f"GIT_{key}_EMAIL", "a@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    root = tmp_path.resolve() / "repository"
    package = root / "package"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1\n")
    for command in ("init -q", "add .", "commit -q -m one", "tag v7"):
        subprocess.run(["git", "-C", str(root), *command.split()], check=True)
    return root


@needs_git
def test_the_commit_of_a_checkout_is_described_with_its_changes(checkout):
    assert machine.commit(checkout / "package") == "v7"
    (checkout / "package" / "a.py").write_text("2\n")
    assert machine.commit(checkout / "package") == "v7-dirty"


@needs_git
def test_a_package_installed_within_another_repository_has_no_commit(checkout):
    installed = checkout / "venv" / "site-packages" / "gpumlp"
    installed.mkdir(parents=True)
    assert machine.commit(installed) is None


@needs_git
def test_a_folder_outside_of_any_checkout_has_no_commit(tmp_path):
    assert machine.commit(tmp_path.resolve() / "gpumlp") is None


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.commit() is None
