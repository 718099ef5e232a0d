"""Launches of the graph executor by kernels made for their rows; see `tailoring`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels.cuda.device import Kernels, Launch
from ..kernels.cuda.tailored import ADDRESSES, PLACES, Group
from .unfolding import Step, encode_steps

ALIGNED = 256
"""Where working memory would begin: it is as aligned as that of any device."""


def groups_of(program: int, steps: Sequence[Step], places: Sequence[tuple[int, int]]) -> list[Group | None]:
    """Return what the launches of a program do, as kernels are made for it; None for a product of the library.

    Args:
        program: its number, for the names of the kernels.
        steps: its operations.
        places: of those that go into one launch each, (first, last + 1).
    """
    rows, scalars = encode_steps(steps, 0, ALIGNED)
    addresses = rows[:, ADDRESSES]
    rows[:, ADDRESSES] = np.minimum(addresses & -addresses, 16)  # what each is a multiple of
    return [
        None
        if steps[first].call is not None
        else Group(
            f"gpumlp_{program}_{g}",
            rows[first:last],
            scalars[first:last],
            steps[first].blocks if last - first == 1 else 1,
        )
        for g, (first, last) in enumerate(places)
    ]


def tailored_launches(
    kernels: Kernels, groups: Sequence[Group | None], rows: np.ndarray, general: Sequence[Launch]
) -> list[Launch]:
    """Return launches by tailored kernels, and those of the library as they are.

    Args:
        kernels: of the groups.
        groups: of a program.
        rows: of all its operations, as they lie on the device.
        general: what launches the groups by general kernels.
    """
    launches, first = [], 0
    for group, launch in zip(groups, general, strict=True):
        last = first + (1 if group is None else len(group.words))
        if group is None:
            launches.append(launch)
        else:
            given = rows[first:last, ADDRESSES].ravel()
            places = np.concatenate([given, np.zeros(PLACES - given.size, np.int64)])
            launches.append(kernels.launch_places(group.name, places, group.blocks, group.threads))
        first = last
    return launches
