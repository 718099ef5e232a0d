"""What the neurons of a network do while it trains: inactive, dead and saturated ones, activations and weights.

Measured on a fixed probe of rows, before the first epoch (epoch 0) and after epochs, in inference mode. A hidden layer
is the activation behind a linear layer that is not the last one; h1 is the first. z is what the activation f is given,
and a pair is one row of the probe and one neuron. Of each hidden layer:

========== ==========================================================================================================
column     meaning
========== ==========================================================================================================
inactive   share of pairs with z <= 0. For a sigmoid that is an output of at most 1/2, for tanh of at most 0, for ReLU
           an output of 0: the lower half of f, and so the one definition by which different activations compare. With
           weights drawn about 0 it begins near 50 %.
dead       share of neurons with z <= 0 on every row of the probe: of ReLU those that pass nothing on, and learn
           nothing from these rows
zero       share of pairs with f(z) = 0 exactly
saturated  share of pairs with |f'(z)| < `saturation` times the greatest |f'|: flat ends of sigmoid and tanh; for ReLU
           the same as inactive
mean, std  of f(z) over all pairs
========== ==========================================================================================================

Of each linear layer, which has the name of the hidden layer behind it, the last one "output": weight_mean, weight_std,
weight_norm (Frobenius), and, where targets were given, gradient_norm of its weights: of the loss on the probe, in
training mode.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .callbacks import Callback
from .checks import check_count
from .probe import Probe
from .registry import nearest
from .settings import check_number

if TYPE_CHECKING:
    from .trainer import Trainer

Histogram = tuple[list[float], list[int]]
"""(edges (bins + 1,), counts (bins,))."""


class ActivationStatistics(Callback):
    """Measures, on a fixed probe of rows, what the neurons do: before training and after epochs.

    Args:
        X: the probe (rows, in_features), as the network takes it. All of it goes through the network at once: its
            activations are in memory together.
        y: targets of the probe, for the norms of gradients; None for none.
        every: epochs between two measurements; the last epoch of a training is always measured.
        saturation: share of the greatest slope below which a neuron counts as saturated.
        bins: of the histograms of activations and weights; 0 for no histograms.

    Attributes:
        epochs: measured, the first one 0.
        columns: layer -> column -> one number for each measured epoch; see the table above.
        histograms: "activations" or "weights" -> layer -> one (edges, counts) for each measured epoch.

    Raises:
        ValueError: a probe that the network does not take, when the training begins.
    """

    def __init__(
        self, X: Any, y: Any = None, *, every: int = 1, saturation: float = 0.05, bins: int = 30
    ) -> None:
        self.X, self.y = X, y
        self.every = check_count("every", every)
        expected = "a number above 0 and below 1"
        self.saturation = check_number("saturation", saturation, expected, lambda share: 0 < share < 1)
        self.bins = check_count("bins", bins, least=0)
        self._goes_on = False
        self._probe: Probe | None = None
        self._clear()

    def _clear(self) -> None:
        self.epochs: list[int] = []
        self.columns: dict[str, dict[str, list[float]]] = {}
        self.histograms: dict[str, dict[str, list[Histogram]]] = {}

    # --- while the network trains ---------------------------------------------------------------------------------

    def on_train_begin(self, trainer: Trainer) -> None:
        self._probe = Probe(trainer, self.X, self.y, self.saturation)
        if not self._goes_on:
            self._clear()
            self._measure(0)
        self._goes_on = False

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: Mapping[str, float]) -> None:
        if epoch % self.every == 0:
            self._measure(epoch)

    def on_train_end(self, trainer: Trainer) -> None:
        done = len(trainer.history)
        if self._probe is not None and self.epochs and self.epochs[-1] < done:
            self._measure(done)
        self._probe = None  # its memory is that of a pass over all rows

    def _measure(self, epoch: int) -> None:
        assert self._probe is not None
        self.epochs.append(epoch)
        for layer, columns in self._probe.columns().items():
            own = self.columns.setdefault(layer, {})
            for name, value in columns.items():
                own.setdefault(name, []).append(value)
        if not self.bins:
            return
        for kind, values in (
            ("activations", self._probe.activations()),
            ("weights", self._probe.weights()),
        ):
            for layer, array in values.items():
                self.histograms.setdefault(kind, {}).setdefault(layer, []).append(
                    _histogram(array, self.bins)
                )

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, self.to_dict()

    def load_state_dict(self, arrays: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        found = copy.deepcopy(dict(values))
        self.epochs, self.columns, self.histograms = (
            found[name] for name in ("epochs", "columns", "histograms")
        )
        self._goes_on = True

    # --- what was found -------------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[str]:
        """Names of the hidden layers: "h1", "h2", ..."""
        return [layer for layer, columns in self.columns.items() if "inactive" in columns]

    def curves(self, column: str) -> dict[str, tuple[list[int], list[float]]]:
        """Return layer -> (epochs, values) of a column, for `gpumlp.report.plot_curves`.

        Raises:
            ValueError: nothing measured yet, or an unknown column.
        """
        found = {layer: (self.epochs, own[column]) for layer, own in self.columns.items() if column in own}
        if not found:
            known = {name for own in self.columns.values() for name in own}
            told = nearest(column, known) if known else "; nothing was measured yet: train first"
            raise ValueError(f"no column {column!r}{told}")
        return found

    def histogram_panels(
        self, kind: str = "activations", epochs: Sequence[int] | None = None
    ) -> dict[str, dict[str, Histogram]]:
        """Return layer -> {"epoch 0": (edges, counts), ...}, for `gpumlp.report.plot_histograms`.

        Args:
            kind: "activations" or "weights".
            epochs: measured ones; None for the first and the last.

        Raises:
            ValueError: another kind, an epoch that was not measured, or no histograms.
        """
        if kind not in self.histograms:
            known = (
                nearest(kind, self.histograms) if self.histograms else "; none were kept: give bins, train"
            )
            raise ValueError(f"no histograms of {kind!r}{known}")
        chosen = sorted({self.epochs[0], self.epochs[-1]}) if epochs is None else list(epochs)
        missing = [epoch for epoch in chosen if epoch not in self.epochs]
        if missing:
            raise ValueError(f"epoch {missing[0]} was not measured; measured were {self.epochs}")
        return {
            layer: {f"epoch {epoch}": measured[self.epochs.index(epoch)] for epoch in chosen}
            for layer, measured in self.histograms[kind].items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all that was measured as plain values."""
        return copy.deepcopy({"epochs": self.epochs, "columns": self.columns, "histograms": self.histograms})


def activity_panels(
    statistics: Mapping[str, ActivationStatistics], column: str = "inactive"
) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Return layer -> {label: (epochs, values)} of several trainings, for `gpumlp.report.plot_curve_panels`.

    Args:
        statistics: label, such as the activation's name, -> its callback after training.
        column: to compare.

    Raises:
        ValueError: a column that was not measured.
    """
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for label, own in statistics.items():
        for layer, curve in own.curves(column).items():
            panels.setdefault(layer, {})[label] = curve
    return panels


def _histogram(values: np.ndarray, bins: int) -> Histogram:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # a width that the values' type cannot divide
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins, (low, high))
    return edges.tolist(), counts.tolist()
