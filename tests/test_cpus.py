"""gpumlp.cpus: how many CPUs are really there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpumlp import cpus


def groups(tmp_path: Path, membership: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """Make a file of memberships and a tree of control groups with those cpu.max files."""
    mount = tmp_path / "cgroup"
    for group, text in limits.items():
        folder = mount / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(text)
    (tmp_path / "self").write_text(membership)
    return tmp_path / "self", mount


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/\n", {"": "150000 100000\n"}, 1.5),
        ("0::/\n", {"": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a": "400000 100000\n", "a/b": "max 100000\n"}, 4.0),
        ("0::/a/b\n", {"a": "200000 100000\n", "a/b": "800000 100000\n"}, 2.0),
        ("0::/host/path/of/a/container\n", {"": "50000 100000\n"}, 0.5),
        ("1:cpu:/a\n0::/\n", {"": "300000 100000\n"}, 3.0),
        ("4:memory:/a\n1:cpu:/a\n", {"": "300000 100000\n"}, None),  # version 1 only
        ("0::/\n", {"": "nonsense\n"}, None),
        ("0::/\n", {"": "100000 0\n"}, None),
    ],
)
def test_the_least_quota_on_the_way_to_the_root_counts(tmp_path, membership, limits, expected):
    assert cpus.cgroup_quota(*groups(tmp_path, membership, limits)) == expected


def test_no_control_groups_means_no_quota(tmp_path):
    assert cpus.cgroup_quota(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(("quota", "usable"), [(None, 3), (1.5, 2), (0.5, 1), (2.0, 2), (64.0, 3)])
def test_usable_cpus_are_within_affinity_and_quota(monkeypatch, quota, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: quota)
    counts = cpus.cpu_counts()
    assert (counts["affinity"], counts["quota"], counts["usable"]) == (3, quota, usable)


def test_a_system_without_affinity_counts_its_cpus(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: None)
    assert cpus.cpu_counts() == {"present": 6, "affinity": 6, "quota": None, "usable": 6}
