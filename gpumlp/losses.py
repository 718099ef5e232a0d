"""Losses: what a network is trained on, value and gradient together.

With ``reduction="mean"`` the loss of a batch is the weighted mean over its rows, sum(w l) / sum(w), and a row's
loss is the mean over the outputs where it is one per output; with ``"sum"`` it is the weighted sum over the rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .program import Builder, Operand
from .registry import build
from .settings import above_zero, check_number

ClassWeight = str | Sequence[float] | Mapping[Any, float] | None


class Loss:
    """Base of all losses.

    Attributes:
        reduction: "mean" or "sum".
        class_weight: a weight for each class, by position or by label, or "balanced": n / (classes * count), as
            scikit-learn has it; None for equal weights.
        output_activation: what turns outputs into probabilities: "softmax", "sigmoid", "identity" where they are
            such already, or None for a loss of regression.
    """

    kernel: str
    output_activation: str | None = None
    takes_labels = False
    """Whether integer labels are given to the kernel as they are."""

    def __init__(self, reduction: str = "mean", class_weight: ClassWeight = None) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction is {reduction!r}; expected "mean" or "sum"')
        if class_weight is not None and not self.is_classification:
            raise ValueError(f"{type(self).__name__} is a loss of regression and takes no class_weight")
        self.reduction = reduction
        self.class_weight = class_weight

    @property
    def is_classification(self) -> bool:
        """Whether the outputs stand for probabilities of classes."""
        return self.output_activation is not None

    def n_classes(self, outputs: int) -> int:
        """Classes that a network with that many outputs tells apart."""
        return 2 if self.output_activation == "sigmoid" and outputs == 1 else outputs

    def _scalars(self) -> dict[str, Any]:
        return {}

    def _kernel_for(self, target: Operand) -> str:
        return self.kernel

    def emit(
        self,
        b: Builder,
        output: Operand,
        target: Operand,
        weight: Operand | None,
        ring: Operand,
        grad: Operand | None,
    ) -> None:
        """Write the loss of a batch into the ring, and its gradient into `grad` where one is wanted."""
        mean = self.reduction == "mean"
        operands = (b.control, output, target, weight, ring, grad)
        b.call(self._kernel_for(target), *operands, mean=mean, **self._scalars())

    def prepare_target(self, y: np.ndarray, outputs: int, dtype: str) -> np.ndarray:
        """Return targets as the kernel takes them: (n, outputs) of `dtype`, or int64 labels (n,).

        Args:
            y: (n,) or (n, outputs) numbers; for classification labels 0 ... K - 1, (n,), or a row of
                probabilities a sample, (n, K).

        Raises:
            ValueError: another shape, labels outside 0 ... K - 1, probabilities outside [0, 1].
        """
        y = np.asarray(y)
        if y.ndim == 1:
            y = y[:, None]
        if y.ndim != 2 or y.shape[1] != outputs:
            raise ValueError(f"y has shape {y.shape}; expected (rows, {outputs}), one column for each output")
        return np.ascontiguousarray(y, dtype=dtype)

    def row_weights(
        self,
        target: np.ndarray,
        outputs: int,
        sample_weight: np.ndarray | None = None,
        classes: Sequence[Any] | None = None,
    ) -> np.ndarray | None:
        """Return the weight of each row, float64 (n,), from class and sample weights; None where all are 1.

        Args:
            target: as `prepare_target` makes it; a soft target takes the weights of its classes by their shares.
            outputs: of the network.
            sample_weight: (n,).
            classes: labels of the classes, where they are not 0 ... K - 1.

        Raises:
            ValueError: a class without weight, an unknown class, a negative or non-finite weight.
        """
        if self.class_weight is None:
            return sample_weight
        if target.ndim == 1:
            shares = None
            counts = np.bincount(target, minlength=outputs)
        elif self.n_classes(outputs) == 2 and outputs == 1:
            shares = np.column_stack([1 - target[:, 0], target[:, 0]])
            counts = shares.sum(axis=0)
        elif self.output_activation == "softmax" or isinstance(self, _OverClasses):
            shares, counts = target, target.sum(axis=0)
        else:
            raise ValueError("class_weight of binary_cross_entropy needs one output; the network has several")
        per_class = self._class_weights(
            counts, list(classes) if classes is not None else list(range(len(counts)))
        )
        weights = per_class[target] if target.ndim == 1 else shares @ per_class
        return weights if sample_weight is None else weights * sample_weight

    def _class_weights(self, counts: np.ndarray, names: Sequence[Any]) -> np.ndarray:
        k = len(counts)
        if isinstance(self.class_weight, str):
            if self.class_weight != "balanced":
                raise ValueError(
                    f'class_weight is {self.class_weight!r}; expected "balanced", a mapping or a list'
                )
            return counts.sum() / (k * np.maximum(counts, 1))
        if isinstance(self.class_weight, Mapping):
            given = {str(key): value for key, value in self.class_weight.items()}
            if set(given) != {str(n) for n in names}:
                raise ValueError(
                    f"class_weight has the classes {sorted(given)}; expected one for each of {names}"
                )
            weights = np.array([given[str(n)] for n in names], dtype=np.float64)
        else:
            weights = np.asarray(self.class_weight, dtype=np.float64)
        if weights.shape != (k,) or not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError(
                f"class_weight is {self.class_weight!r}; expected {k} finite weights of at least 0"
            )
        return weights

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"name": ..., **settings}``, from which `get_loss` makes the loss again."""
        name = next(n for n, cls in LOSSES.items() if cls is type(self))
        weight = self.class_weight
        if isinstance(weight, Mapping):
            weight = {str(k): float(v) for k, v in weight.items()}
        elif weight is not None and not isinstance(weight, str):
            weight = [float(w) for w in weight]
        given = {} if weight is None else {"class_weight": weight}
        return {"name": name, "reduction": self.reduction, **given, **self._settings()}

    def _settings(self) -> dict[str, Any]:
        return self._scalars()

    def __repr__(self) -> str:
        usual = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        settings = {k: v for k, v in self.to_dict().items() if k != "name" and v != usual.get(k)}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"


def _check_clip(name: str, clip: float, least: float) -> float:
    bound = "greater than 0" if least > 0 else "of at least 0"
    expected = f"a number {bound} and less than 0.5"
    return check_number(f"clip of {name}", clip, expected, lambda clip: least <= clip < 0.5)


class MSE(Loss):
    """Mean squared error, (output - target)^2."""

    kernel = "mse"


class MAE(Loss):
    """Mean absolute error, |output - target|."""

    kernel = "mae"


class Huber(Loss):
    """e^2 / 2 for an error up to `delta`, delta (|e| - delta / 2) beyond; Huber 1964."""

    kernel = "huber"

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        expected = "a finite number greater than 0"
        self.delta = check_number("delta of huber", delta, expected, above_zero)

    def _scalars(self) -> dict[str, Any]:
        return {"delta": self.delta}


class BinaryCrossEntropy(Loss):
    """-t log p - (1 - t) log(1 - p), for one output or several independent ones.

    Args:
        from_logits: outputs are logits, p = sigmoid(output); else they are probabilities.
        clip: on probabilities, p and 1 - p are kept at or above it, in the value and in the gradient (1e-7 unless
            given); on logits it bounds the value only, and 0, the default, leaves it alone.
        reduction, class_weight: see `Loss`.
    """

    def __init__(
        self,
        from_logits: bool = True,
        clip: float | None = None,
        reduction: str = "mean",
        class_weight: ClassWeight = None,
    ) -> None:
        self.from_logits = bool(from_logits)
        self.output_activation = "sigmoid" if from_logits else "identity"
        self.kernel = "binary_cross_entropy_logits" if from_logits else "binary_cross_entropy"
        clip = (0.0 if from_logits else 1e-7) if clip is None else clip
        self.clip = _check_clip("binary_cross_entropy", clip, 0.0 if from_logits else 1e-37)
        super().__init__(reduction, class_weight)

    def n_classes(self, outputs: int) -> int:
        return 2 if outputs == 1 else outputs

    def _scalars(self) -> dict[str, Any]:
        return {"clip": self.clip}

    def _settings(self) -> dict[str, Any]:
        return {"from_logits": self.from_logits, "clip": self.clip}

    def prepare_target(self, y: np.ndarray, outputs: int, dtype: str) -> np.ndarray:
        target = super().prepare_target(y, outputs, dtype)
        _check_probabilities(target, "labels 0 and 1 (or probabilities between them)")
        return target


class _OverClasses(Loss):
    """What the losses over several classes share: targets as labels, one-hot or soft."""

    output_activation = "softmax"

    def prepare_target(self, y: np.ndarray, outputs: int, dtype: str) -> np.ndarray:
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] == 1 and outputs > 1:
            y = y[:, 0]
        if y.ndim == 2:
            target = super().prepare_target(y, outputs, dtype)
            _check_probabilities(target, "a row of probabilities for each sample")
            return target
        labels = _check_labels(y, outputs)
        if self.takes_labels:
            return labels
        target = np.zeros((len(labels), outputs), dtype=dtype)
        target[np.arange(len(labels)), labels] = 1
        return target


def _check_labels(y: np.ndarray, k: int) -> np.ndarray:
    if k < 2:
        raise ValueError(
            f"the network has {k} output; a loss over classes needs one for each class, at least 2"
        )
    if y.ndim != 1 or y.dtype.kind not in "iufb" or (y.dtype.kind == "f" and (y != np.floor(y)).any()):
        raise ValueError(
            f"y has shape {y.shape} and type {y.dtype}; expected whole labels 0 ... {k - 1}, or (rows, {k})"
        )
    labels = y.astype(np.int64)
    outside = labels[(labels < 0) | (labels >= k)]
    if outside.size:
        raise ValueError(
            f"y has the label {outside[0]}; expected 0 ... {k - 1} for a network with {k} outputs"
        )
    return labels


def _check_probabilities(target: np.ndarray, expected: str) -> None:
    outside = target[(target < 0) | (target > 1)]
    if outside.size:
        raise ValueError(f"y has the value {outside[0]:g}; expected {expected}")


class CrossEntropy(_OverClasses):
    """-sum(t log softmax(output)); the outputs are logits.

    Args:
        label_smoothing: share of the target spread over all classes, in [0, 1); Szegedy et al. 2016.
        clip: bounds log p from below by log(clip) in the value, not in the gradient; 0 leaves it alone.
        reduction, class_weight: see `Loss`.
    """

    kernel = "softmax_cross_entropy"
    takes_labels = True

    def __init__(
        self,
        label_smoothing: float = 0.0,
        clip: float = 0.0,
        reduction: str = "mean",
        class_weight: ClassWeight = None,
    ) -> None:
        super().__init__(reduction, class_weight)
        expected = "a number of at least 0, below 1"
        self.label_smoothing = check_number(
            "label_smoothing", label_smoothing, expected, lambda share: 0 <= share < 1
        )
        self.clip = _check_clip("cross_entropy", clip, 0.0)

    def _kernel_for(self, target: Operand) -> str:
        return f"{self.kernel}_labels" if len(target.shape) == 1 else self.kernel

    def _scalars(self) -> dict[str, Any]:
        return {"smoothing": self.label_smoothing, "clip": self.clip}

    def _settings(self) -> dict[str, Any]:
        return {"label_smoothing": self.label_smoothing, "clip": self.clip}


class KLDivergence(_OverClasses):
    """sum(t (log t - log p)) with 0 log 0 = 0; Kullback & Leibler 1951.

    Args:
        from_logits: p = softmax(output); else the outputs are probabilities.
        clip: on probabilities, p is kept at or above it (1e-7 unless given); on logits it bounds the value only.
        reduction, class_weight: see `Loss`.
    """

    def __init__(
        self,
        from_logits: bool = True,
        clip: float | None = None,
        reduction: str = "mean",
        class_weight: ClassWeight = None,
    ) -> None:
        self.from_logits = bool(from_logits)
        self.output_activation = "softmax" if from_logits else "identity"
        self.kernel = "kl_divergence_logits" if from_logits else "kl_divergence"
        clip = (0.0 if from_logits else 1e-7) if clip is None else clip
        self.clip = _check_clip("kl_div", clip, 0.0 if from_logits else 1e-37)
        super().__init__(reduction, class_weight)

    def _scalars(self) -> dict[str, Any]:
        return {"clip": self.clip}

    def _settings(self) -> dict[str, Any]:
        return {"from_logits": self.from_logits, "clip": self.clip}


class SoftmaxMSE(_OverClasses):
    """Squared error between softmax(output) and the target, the mean over the classes."""

    kernel = "softmax_mse"


LOSSES: dict[str, type[Loss]] = {
    "mse": MSE,
    "mae": MAE,
    "huber": Huber,
    "binary_cross_entropy": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
    "kl_div": KLDivergence,
    "softmax_mse": SoftmaxMSE,
}


def get_loss(spec: str | Mapping[str, Any] | Loss) -> Loss:
    """Return a loss from an object, a name, or ``{"name": ..., **settings}``.

    Raises:
        ValueError: unknown name or setting, or a bad value of one.
        TypeError: none of the three.
    """
    return build("loss", spec, Loss, LOSSES)
