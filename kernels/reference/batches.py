"""Which rows make up a batch."""

from __future__ import annotations

from typing import Any

from .. import EPOCH, SEED, START
from ..philox import permutation

Array = Any


def shuffle(xp: Any, control: Array, rows: Array, index: Array) -> None:
    order = permutation(xp, rows.shape[0], int(control[SEED]), int(control[EPOCH]))
    xp.take(rows, order, out=index)


def copy_rows(xp: Any, rows: Array, index: Array) -> None:
    index[...] = rows


def gather_rows(xp: Any, control: Array, source: Array, index: Array, out: Array) -> None:
    start = int(control[START])
    out[...] = source[index[start : start + out.shape[0]]]


gather_labels = gather_weights = gather_rows
