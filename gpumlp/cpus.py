"""How many CPUs are really there for this process: the machine's, its affinity mask, its control group."""

from __future__ import annotations

import math
import os
from pathlib import Path


def cpu_counts() -> dict[str, float | int | None]:
    """Return how many CPUs there are for this process.

    Returns:
        "present", in the machine; "affinity", those that the process may run on; "quota", CPUs' worth of time that
        its control group allows, None for no limit; "usable", whole CPUs that are really there for it.
    """
    present = os.cpu_count() or 1
    affinity = present
    if hasattr(os, "sched_getaffinity"):  # Linux only
        affinity = len(os.sched_getaffinity(0))
    quota = cgroup_quota()
    usable = affinity if quota is None else max(1, min(affinity, math.ceil(quota)))
    return {"present": present, "affinity": affinity, "quota": quota, "usable": usable}


def cgroup_quota(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return the CPUs' worth of time that control groups (version 2) allow this process, or None for no limit.

    A limit of a group holds for all groups inside it, and so the least one on the way to the root counts.

    Args:
        membership: the file that names this process's group.
        mount: where the groups are.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return None
    group = mount / path.lstrip("/")
    limits = [_quota_of(folder) for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return min((limit for limit in limits if limit is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    # "MICROSECONDS PERIOD", or "max PERIOD"; https://docs.kernel.org/admin-guide/cgroup-v2.html
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return float(quota) / float(period) if quota != "max" else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
