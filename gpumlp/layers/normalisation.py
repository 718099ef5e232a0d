"""Layers that normalise: over the features of a row, or over the rows of a batch."""

from __future__ import annotations

from ..checks import check_count
from ..initializers import Constant
from ..program import Builder, Operand
from ..settings import check_number, from_zero
from .base import Layer


class _Normalisation(Layer):
    """What both have: a width, eps, and a learnt scale `weight` and shift `bias`, which do not decay."""

    eps: float
    affine: bool

    def _set(self, features: int, eps: float, affine: bool) -> None:
        expected = "a finite number of at least 0"
        self.eps = check_number(f"eps of {type(self).__name__}", eps, expected, from_zero)
        self.in_features = self.out_features = check_count("the number of features", features)
        self.affine = bool(affine)

    @property
    def expected_features(self) -> int | None:
        return self.in_features

    def build(self, in_features: int) -> int:
        if self.affine:
            self.add_parameter("weight", (in_features,), Constant(1.0))
            self.add_parameter("bias", (in_features,), Constant(0.0))
        return in_features

    def _affine(self, b: Builder) -> tuple[Operand | None, Operand | None]:
        return (b.parameter("weight"), b.parameter("bias")) if self.affine else (None, None)

    def _affine_gradients(self, b: Builder) -> tuple[Operand | None, Operand | None]:
        if self.affine and self.trainable:
            return b.gradient("weight"), b.gradient("bias")
        return None, None


class LayerNorm(_Normalisation):
    """Give each row mean 0 and variance 1, then scale and shift each feature; Ba et al. 2016.

    Args:
        normalized_features: width.
        eps: added to the variance.
        affine: whether `weight` and `bias` are learnt.
    """

    declares = ("weight", "bias")

    def __init__(self, normalized_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        self._set(normalized_features, eps, affine)

    @property
    def normalized_features(self) -> int | None:
        """The width, under the name that it is given by."""
        return self.in_features

    def emit_forward(self, b: Builder, x: Operand) -> Operand:
        y, mean, rstd = b.buffer("y", *x.shape), b.buffer("mean", b.rows), b.buffer("rstd", b.rows)
        b.call("layer_norm", x, *self._affine(b), y, mean, rstd, eps=self.eps)
        return y

    def emit_backward(self, b: Builder, x: Operand, y: Operand, dy: Operand, need_dx: bool) -> Operand | None:
        dx = b.buffer("dx", *x.shape) if need_dx else None
        gamma, _ = self._affine(b)
        saved = b.saved("mean"), b.saved("rstd")
        b.call("layer_norm_grad", x, gamma, *saved, dy, dx, *self._affine_gradients(b))
        return dx


class BatchNorm1d(_Normalisation):
    """Give each feature mean 0 and variance 1 over the batch; in inference, by the running statistics.

    Ioffe & Szegedy 2015. The running variance is the unbiased one, as in torch.nn. A frozen layer uses its
    running statistics in training too and leaves them alone.

    Args:
        num_features: width.
        eps: added to the variance.
        momentum: share of the new batch in the running statistics, in [0, 1].
        affine: whether `weight` and `bias` are learnt.

    States: `running_mean` and `running_var`, (num_features,).
    """

    declares = ("weight", "bias", "running_mean", "running_var")

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        expected = "a number from 0 to 1"
        self.momentum = check_number("momentum of BatchNorm1d", momentum, expected, lambda m: 0 <= m <= 1)
        self._set(num_features, eps, affine)

    @property
    def num_features(self) -> int | None:
        """The width, under the name that it is given by."""
        return self.in_features

    def build(self, in_features: int) -> int:
        self.add_state("running_mean", (in_features,), 0.0)
        self.add_state("running_var", (in_features,), 1.0)
        return super().build(in_features)

    def _by_batch(self, b: Builder) -> bool:
        return b.training and self.trainable

    def emit_forward(self, b: Builder, x: Operand) -> Operand:
        y = b.buffer("y", *x.shape)
        if self._by_batch(b):
            statistics = [b.buffer(name, x.shape[1]) for name in ("mean", "var", "rstd")]
            b.call("batch_norm", x, *self._affine(b), y, *statistics, eps=self.eps)
        else:
            running = b.state("running_mean"), b.state("running_var")
            b.call("batch_norm_fixed", x, *self._affine(b), *running, y, eps=self.eps)
        return y

    def emit_backward(self, b: Builder, x: Operand, y: Operand, dy: Operand, need_dx: bool) -> Operand | None:
        dx = b.buffer("dx", *x.shape) if need_dx else None
        gamma, _ = self._affine(b)
        if self._by_batch(b):
            saved = b.saved("mean"), b.saved("rstd")
            b.call("batch_norm_grad", x, gamma, *saved, dy, dx, *self._affine_gradients(b))
        elif dx is not None:
            b.call("batch_norm_fixed_grad", gamma, b.state("running_var"), dy, dx, eps=self.eps)
        return dx

    def emit_update(self, b: Builder) -> None:
        if self._by_batch(b):
            batch = b.saved("mean"), b.saved("var")
            running = b.state("running_mean"), b.state("running_var")
            b.call("running_average", b.control, *batch, *running, momentum=self.momentum, rows=b.rows)
