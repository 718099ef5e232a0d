"""Part 3 of report tnm112: weights that give the boundary x2 = 1 - x1, weights that do not, and how to tell."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BREAKS: dict[str, str] = {
    "slope": "break w11 - w12 = w21 - w22",
    "place": "break w12 + b1 = w22 + b2",
    "side": "break b1 > b2",
}
"""The parts of the condition, and what breaking one means; W is (out, in)."""


def random_weights(rng: np.random.Generator, broken: str) -> tuple[np.ndarray, np.ndarray]:
    """Random W (out, in) and b that meet the condition, but for the part of it that `broken` names."""
    gap = rng.uniform(0.1, 2.0) * (-1 if broken == "side" else 1)
    row, b1 = rng.normal(size=2), rng.normal()
    weight, bias = np.array([row, row + gap]), np.array([b1, b1 - gap])
    if broken == "slope":
        weight[0, 0] += rng.choice([-1, 1]) * rng.uniform(0.1, 1.0)
    elif broken == "place":
        bias[0] += rng.uniform(0.1, 1.0)  # upwards, so that b1 stays above b2
    return weight, bias


_ALONG = np.linspace(-1.0, 2.0, 61)


def _beside(offset: np.ndarray | float) -> np.ndarray:
    """Points at a distance from the line x2 = 1 - x1, above it where that is positive, (61, 2)."""
    return np.column_stack([_ALONG, 1 - _ALONG]) + np.reshape(offset, (-1, 1)) / np.sqrt(2)


def boundary_distance(predict_codes: Callable[[np.ndarray], np.ndarray]) -> float:
    """Largest distance of the boundary from x2 = 1 - x1, found by halving; inf where no boundary is within 1."""
    low, high = np.full(len(_ALONG), -1.0), np.full(len(_ALONG), 1.0)
    if predict_codes(_beside(low)).any() or not predict_codes(_beside(high)).all():
        return float("inf")
    for _ in range(30):
        middle = (low + high) / 2
        above = predict_codes(_beside(middle)) == 1
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return float(np.abs(low + high).max() / 2)


def parts_the_plane(predict_codes: Callable[[np.ndarray], np.ndarray], margin: float = 0.01) -> bool:
    """Whether all points closely below the line are of the first class, and all closely above it of the second."""
    below, above = np.split(predict_codes(np.concatenate([_beside(-margin), _beside(margin)])), 2)
    return not below.any() and bool(above.all())
