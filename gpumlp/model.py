"""A trained model: a network with the meaning of its inputs and outputs, to predict with, save and load."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import get_backend
from .checkpoint import load_tensors, save_tensors
from .checks import check_finite, check_labels
from .inference import Evaluator
from .interchange import like, to_host
from .layers import Sigmoid, Softmax
from .losses import Loss, get_loss
from .metrics import Metric, classes_from_probabilities
from .rows import Data

if TYPE_CHECKING:
    from .data import Preprocessor, TargetScaler
    from .network import Sequential


def class_names(y: Any, known: list[str] | None) -> list[str] | None:
    """The sorted text labels of `y`; those of an earlier `fit` stay; None where labels are numbers."""
    array = np.asarray(y)
    if array.dtype.kind not in "OUS":
        return None
    check_labels(y)
    return known if known is not None else sorted({str(label) for label in array.ravel()})


def only_class(target: np.ndarray) -> int | None:
    """The number of the class that all rows have, or None where there are several, or questions of their own."""
    first = target[0]
    if (target != first).any():
        return None
    if target.ndim == 1:
        return int(first)
    if not np.isin(first, (0, 1)).all():
        return None
    if len(first) == 1:
        return int(first[0])
    return int(first.argmax()) if first.sum() == 1 else None


def check_output(network: Sequential, loss: Loss) -> None:
    """Raise a ValueError for a loss of probabilities on a network that gives none, and warn of the opposite."""
    last = network.layers[-1]
    makes = isinstance(last, Sigmoid | Softmax)
    if loss.output_activation == "identity" and not makes and not last.is_python:
        raise ValueError(
            f"{loss!r} takes probabilities, and the network ends in {last!r}; end it in Softmax() or Sigmoid() (in a "
            "config: set network.output_activation), or let the loss take logits"
        )
    if loss.output_activation in ("softmax", "sigmoid") and makes:
        warnings.warn(
            f"{loss!r} takes logits, of which it makes probabilities itself, and the network ends in {last!r}: done "
            "twice, they can hardly differ; leave that layer out",
            UserWarning,
            stacklevel=3,  # where the trainer is made
        )


def encode_target(y: Any, classes: Sequence[str] | None, loss: Loss, outputs: int, dtype: str) -> np.ndarray:
    """Return targets as the loss takes them; text labels become the numbers of their classes.

    Raises:
        ValueError: labels that are not among the classes, NaN, or targets that do not fit the loss.
    """
    given = to_host(y)
    y = np.asarray(given)
    if y.dtype.kind in "OUS":
        if not loss.is_classification or classes is None:
            raise ValueError(f"y has type {y.dtype}; expected numbers for {loss!r}")
        check_labels(given)
        if len(classes) != loss.n_classes(outputs):
            found = ", ".join(map(repr, classes[:10]))
            raise ValueError(
                f"y has {len(classes)} classes ({found}); the network has {outputs} outputs, one for each of "
                f"{loss.n_classes(outputs)} classes"
            )
        numbers = {name: i for i, name in enumerate(classes)}
        unseen = sorted({str(label) for label in y.ravel()} - set(numbers))
        if unseen:
            raise ValueError(
                f"y has the labels {', '.join(map(repr, unseen[:5]))}, unseen in training; "
                f"expected {', '.join(map(repr, classes[:10]))}"
            )
        y = np.array([numbers[str(label)] for label in y.ravel()], dtype=np.int64)
    check_finite(y, "y")
    with np.errstate(over="ignore"):
        target = loss.prepare_target(y, outputs, dtype)
    check_finite(target, "y")  # in the network's type, which may hold less
    return target


class Model:
    """A network, and what its inputs and outputs stand for.

    Args:
        network: trained.
        loss: it was trained with; decides whether outputs are probabilities.
        classes: names of the classes, or None.
        preprocessor: turns tables into the network's inputs, or None where they are given as they are.
        target_scaler: turns outputs into the target's units, or None.
        target_names: names of the target columns, or None.
    """

    def __init__(
        self,
        network: Sequential,
        loss: Loss,
        classes: Sequence[str] | None = None,
        preprocessor: Preprocessor | None = None,
        target_scaler: TargetScaler | None = None,
        target_names: Sequence[str] | None = None,
    ) -> None:
        self.network, self.loss = network, loss
        self.classes = list(classes) if classes is not None else None
        self.preprocessor, self.target_scaler = preprocessor, target_scaler
        self.target_names = list(target_names) if target_names is not None else None
        self._evaluator = Evaluator(network, loss)

    @property
    def is_classifier(self) -> bool:
        """Whether it predicts classes, with their probabilities."""
        return self.loss.is_classification

    @property
    def n_classes(self) -> int:
        """Classes that the network tells apart."""
        return self.loss.n_classes(self.network.out_features)

    def inputs(self, X: Any) -> Any:
        """Return what the network takes: a table or raw features through the preprocessor, if there is one."""
        if self.preprocessor is None:
            return X
        from .data import features_for_prediction

        return features_for_prediction(self.preprocessor, X)

    def predict(self, X: Any, batch_size: int | None = None) -> np.ndarray:
        """Return values in the units of the target, or probabilities for a classifier, (rows, outputs)."""
        out = self._evaluator.predict(self.inputs(X), batch_size, probabilities=True)
        if self.target_scaler is None:
            return out
        return like(out, self.target_scaler.inverse(to_host(out)), self.network.backend)

    def predict_classes(self, X: Any, threshold: float = 0.5) -> np.ndarray:
        """Return the class of each row: its number, or its name where the classes have names.

        Args:
            X: as in `predict`.
            threshold: probability above which the second of two classes is chosen.

        Raises:
            ValueError: a regression, a threshold outside (0, 1), or one with more than two classes.
        """
        probabilities = self.predict(X)
        codes = self.codes(to_host(probabilities), threshold)
        if self.classes is not None and codes.ndim == 1:
            return np.array(self.classes)[codes]
        return like(probabilities, codes, self.network.backend)

    def codes(self, probabilities: np.ndarray, threshold: float = 0.5) -> np.ndarray:
        """Return the numbers of the classes that probabilities choose: (rows,), or (rows, outputs) of 0 and 1
        where each output is a question of its own."""
        if not self.is_classifier:
            raise ValueError(f"{self.loss!r} is a loss of regression: there are no classes; use predict")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold!r}; expected a probability between 0 and 1")
        if self._one_question_each and probabilities.shape[1] > 1:
            return (probabilities > threshold).astype(np.int64)
        if threshold != 0.5 and probabilities.shape[1] > 2:
            raise ValueError(
                f"a threshold is for two classes; the network tells {probabilities.shape[1]} apart"
            )
        return classes_from_probabilities(probabilities, threshold)

    @property
    def _one_question_each(self) -> bool:
        return self.loss.kernel.startswith("binary_cross_entropy")

    def scores(self, data: Data, metrics: Sequence[Metric]) -> dict[str, float]:
        """Return the loss and the metrics on checked rows, in the network's units."""
        value, out = self._evaluator.evaluate(data.x, data.target, data.weight, data.rows)
        scores = {"loss": value}
        target = data.target if data.rows is None else data.target[data.rows]
        true = self.true_codes(target) if self.is_classifier and metrics else target
        several = self.is_classifier and true.ndim == 2  # yes or no, for each output: all count alike
        for metric in metrics:
            given = out if metric.needs != "classes" else self.codes(out)
            scores[metric.name] = metric(true.ravel(), given.ravel()) if several else metric(true, given)
        return scores

    def true_codes(self, target: np.ndarray) -> np.ndarray:
        """The class numbers behind targets as the loss takes them."""
        if target.ndim == 1:
            return target
        if self._one_question_each:
            codes = (target >= 0.5).astype(np.int64)
            return codes[:, 0] if target.shape[1] == 1 else codes
        return target.argmax(axis=1)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file.

        Raises:
            ValueError: the network has a user's own layer, which a file cannot describe.
        """
        metadata: dict[str, Any] = {
            "kind": "model",
            "network": self.network.to_dict(),
            "loss": self.loss.to_dict(),
            "classes": self.classes,
            "target_names": self.target_names,
            "preprocessor": None if self.preprocessor is None else self.preprocessor.to_dict(),
            "target_scaler": None if self.target_scaler is None else self.target_scaler.to_dict(),
        }
        save_tensors(path, self.network.state_dict(), metadata)


def load_model(path: str | Path, device: str = "auto") -> Model:
    """Return the model of a file that `Model.save` or `Trainer.save` wrote.

    Raises:
        ValueError: a missing, truncated or foreign file; a device that is not there.
    """
    from .data import Preprocessor, TargetScaler
    from .network import Sequential

    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != "model":
        raise ValueError(f"{path} is a gpumlp file, but not a model; expected a model.safetensors")
    backend = get_backend(device)  # what is wrong with it is no fault of the file
    try:
        network = Sequential.from_dict(metadata["network"], device=backend)
        network.load_state_dict(tensors)
        prep, scaler = metadata["preprocessor"], metadata["target_scaler"]
        return Model(
            network,
            get_loss(metadata["loss"]),
            metadata["classes"],
            None if prep is None else Preprocessor.from_dict(prep),
            None if scaler is None else TargetScaler.from_dict(scaler),
            metadata["target_names"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a model that this version can make: {error}") from None
