"""Operands for every kernel of the catalogue, made from their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpumlp.kernels import CATALOGUE, SLOT, START, STEP, KernelSpec
from gpumlp.program import new_control

SCALARS: dict[str, Any] = {
    "transpose_a": False,
    "transpose_b": False,
    "negative_slope": 0.1,
    "alpha": 0.9,
    "beta": 1.5,
    "rate": 0.4,
    "layer": 3,
    "std": 0.5,
    "eps": 1e-5,
    "momentum": 0.9,
    "mean": True,
    "delta": 0.5,
    "clip": 1e-6,
    "smoothing": 0.1,
    "limit": 0.3,
    "weight_decay": 0.01,
    "dampening": 0.2,
    "nesterov": False,
    "lr_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "decoupled": False,
    "squared": False,
}
OTHERWISE: dict[str, Any] = {
    **dict.fromkeys(("transpose_a", "transpose_b", "nesterov", "decoupled", "squared"), True),
    "mean": False,
    "smoothing": 0.0,
    "clip": 0.0,
    "weight_decay": 0.0,
    "negative_slope": 0.0,
}
"""Values of scalars at which a kernel takes another way through its code."""

MATRICES = {"x", "y", "dy", "dx", "output", "target", "grad"}
COLUMN_VECTORS = {"bias", "db", "gamma", "beta", "dgamma", "dbeta", "running_mean", "running_var"}
STATISTICS = {"mean", "var", "rstd"}
FLAT = {
    *("gradients", "parameters", "velocity", "accumulator"),
    *("square", "average", "first", "second"),
}
NOT_NEGATIVE = {"var", "rstd", "running_var", "weight", "accumulator", "square", "second", "rates"}
LABELS = {"gather_labels", "softmax_cross_entropy_labels"}
RING = 4


def control() -> np.ndarray:
    """Return a control block in the middle of a training."""
    values = new_control(seed=11)
    values[[STEP, START, SLOT]] = 6, 2, 1
    return values


@dataclass(frozen=True)
class Examples:
    """Operands of one size.

    Args:
        rows, columns: of matrices.
        flat: elements of ranges of the arenas.
    """

    rows: int
    columns: int
    flat: int

    def shape(self, spec: KernelSpec, operand: str) -> tuple[int, ...]:
        """The shape of an operand."""
        if operand in MATRICES:
            labels = spec.name in LABELS and operand == "target"
            return (self.rows,) if labels else (self.rows, self.columns)
        if operand in COLUMN_VECTORS:
            return (self.columns,)
        if operand in STATISTICS:
            return (self.rows,) if spec.name.startswith("layer_norm") else (self.columns,)
        if operand in FLAT:
            return (self.flat,)
        if operand in ("source", "out"):
            n = 2 * self.rows if operand == "source" else self.rows
            return (n, self.columns) if spec.name == "gather_rows" else (n,)
        inner, others = self.columns, max(1, self.columns // 2)
        return {
            "weight": (self.rows,),
            "rows": (2 * self.rows,),
            "index": (2 * self.rows,),
            "a": (self.rows, inner),
            "b": (inner, others),
            "c": (self.rows, others),
            "ring": (RING, 2),
            "rates": (RING,),
        }[operand]

    def operands(
        self, name: str, dtype: str = "float64", changed: Mapping[str, Any] | None = None, seed: int = 3
    ) -> dict[str, np.ndarray]:
        """Return operands by name: sound values to read, noise to overwrite.

        Args:
            changed: scalars that are not as `scalars` has them, of `variants`.
        """
        spec, rng = CATALOGUE[name], np.random.default_rng(seed)
        values: dict[str, np.ndarray] = {}
        for operand in spec.operands:
            if operand == "control":
                values[operand] = control()
                continue
            shape = self.shape(spec, operand)
            if operand in ("rows", "index"):
                values[operand] = rng.permutation(shape[0])
            elif name in LABELS and operand in ("source", "target", "out"):
                values[operand] = rng.integers(0, self.columns, shape)
            else:
                floats = self._floats(name, operand, rng, shape)
                if name.startswith("relu_grad") and operand == "y":  # what relu gave
                    floats = np.maximum(floats, 0)
                values[operand] = floats.astype("float64" if operand in ("ring", "rates") else dtype)
        for operand, turned in (("a", "transpose_a"), ("b", "transpose_b")):
            if changed and changed.get(turned):
                values[operand] = np.ascontiguousarray(values[operand].T)
        return values

    @staticmethod
    def _floats(name: str, operand: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        v = rng.normal(size=shape)
        if operand == "target" or (operand == "output" and f"{name}_logits" in CATALOGUE):
            v = np.exp(v) / np.exp(v).sum(axis=-1, keepdims=True)  # probabilities
        if operand in NOT_NEGATIVE:
            v = np.abs(v) + 0.5
        # a centred spread is E[g^2] - E[g]^2: the average must be small beside the square
        return 0.1 * v if operand == "average" else v

    def scalars(self, name: str) -> dict[str, Any]:
        """Return the scalars of a kernel."""
        return {s: self.rows if s == "rows" else SCALARS[s] for s in CATALOGUE[name].scalars}


def variants(name: str) -> list[dict[str, Any]]:
    """What to change among the scalars of a kernel: nothing, and each that makes it take another way."""
    found: list[dict[str, Any]] = [{}]
    for scalar in CATALOGUE[name].scalars:
        on_logits = scalar != "clip" or f"{name}_logits" not in CATALOGUE  # others need a clip above 0
        if scalar in OTHERWISE and on_logits:
            found.append({scalar: OTHERWISE[scalar]})
    return found
