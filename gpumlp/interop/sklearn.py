"""scikit-learn: `MLPClassifier` and `MLPRegressor`, both ways.

Weights lie as (in_features, out_features) on both sides. Their networks apply softmax or the logistic function to
the outputs themselves; here the outputs are logits, and the loss of the model knows what they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Backend
from ..layers import Dropout, GaussianNoise, Identity, Layer, Linear, ReLU, Sigmoid, Softmax, Tanh
from ..losses import MSE, BinaryCrossEntropy, CrossEntropy, Loss
from ..model import Model
from .values import Step, make_network, no_twin

_ACTIVATIONS: dict[str, type[Layer]] = {
    "identity": Identity,
    "logistic": Sigmoid,
    "tanh": Tanh,
    "relu": ReLU,
}


def from_sklearn(estimator: Any, device: str | Backend = "auto", dtype: Any = None) -> Model:
    """Return a model with the network, the loss and the classes of a fitted MLPClassifier or MLPRegressor.

    Its `predict` gives probabilities, (rows, classes), or (rows, 1) of the second of two classes; its
    `predict_classes` the estimator's own labels.

    Args:
        estimator: fitted; of a Pipeline give the last step (its inputs are what the steps before make).
        device: of the network; see `get_backend`.
        dtype: "float32" or "float64"; None for float64 where the coefficients are so, else float32.

    Raises:
        TypeError: another estimator.
        ValueError: not fitted, an activation that gpumlp does not have, values that are not finite.
    """
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    if not isinstance(estimator, MLPClassifier | MLPRegressor):
        inner = {"Pipeline": "pipeline[-1]", "GridSearchCV": "search.best_estimator_"}
        hint = inner.get(type(estimator).__name__)
        raise TypeError(
            f"estimator is a {type(estimator).__name__}; expected an MLPClassifier or MLPRegressor"
            + (f" ({hint})" if hint else "")
        )
    if not hasattr(estimator, "coefs_"):
        raise ValueError(f"the {type(estimator).__name__} is not fitted; call fit first")
    if estimator.activation not in _ACTIVATIONS or estimator.out_activation_ == "exp":
        raise ValueError(
            f"the {type(estimator).__name__} has activation {estimator.activation!r} and output "
            f"{estimator.out_activation_!r}; expected {', '.join(_ACTIVATIONS)}, and no Poisson loss"
        )
    steps: list[Step] = []
    for i, (weight, bias) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        if i:
            steps.append(Step(_ACTIVATIONS[estimator.activation]()))
        values = {"weight": weight, "bias": bias}
        steps.append(Step(Linear(*np.shape(weight)), values, f"coefs_[{i}] and intercepts_[{i}]"))
    network = make_network(steps, device, dtype)
    if isinstance(estimator, MLPRegressor):
        return Model(network, MSE())
    loss = CrossEntropy() if estimator.out_activation_ == "softmax" else BinaryCrossEntropy()
    # several yes-or-no questions have no classes to name
    several = isinstance(loss, BinaryCrossEntropy) and network.out_features > 1
    return Model(network, loss, None if several else _names(estimator.classes_))


def _names(classes: np.ndarray) -> list[Any] | None:
    """The labels as plain values; None where they are the numbers that a network gives anyway."""
    labels = classes.tolist()
    return None if labels == list(range(len(labels))) and classes.dtype.kind in "iu" else labels


def to_sklearn(model: Any) -> Any:
    """Return an MLPClassifier or MLPRegressor that predicts as a model does; `partial_fit` trains it further.

    Dropout and noise, which do nothing in prediction, are left out.

    Args:
        model: a `Model` or a `Trainer`: linear layers with one activation behind all hidden ones, identity, sigmoid,
            tanh or ReLU. A loss over classes, binary cross-entropy, or, for an MLPRegressor, one of regression.

    Raises:
        TypeError: neither a model nor a trainer.
        ValueError: a layer that scikit-learn's networks do not have, or a preprocessor, which is not part of them.
    """
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    if not all(hasattr(model, name) for name in ("network", "loss", "classes")):
        raise TypeError(
            f"model is a {type(model).__name__}; expected a gm.Trainer or a gm.Model (of a network alone: "
            "gm.Model(network, loss))"
        )
    for part in ("preprocessor", "target_scaler"):
        if getattr(model, part, None) is not None:
            raise ValueError(
                f"the model has a {part}, which an MLP of scikit-learn has not; give gm.Model(model.network, "
                "model.loss, model.classes), which takes what model.inputs(X) gives"
            )
    loss: Loss = model.loss
    weights, biases, activation = _dense_layers(model.network.layers, loss)
    over_classes = loss.is_classification and not isinstance(loss, BinaryCrossEntropy)
    if over_classes and len(biases[-1]) == 2:
        # of two classes scikit-learn keeps one output, the difference of the logits
        weights[-1] = weights[-1][:, 1:] - weights[-1][:, :1]
        biases[-1] = biases[-1][1:] - biases[-1][:1]
    settings = {"hidden_layer_sizes": tuple(len(bias) for bias in biases[:-1]), "activation": activation}
    if not loss.is_classification:
        return _fitted(MLPRegressor(**settings), weights, biases, "identity")
    outputs = len(biases[-1])
    output = "softmax" if over_classes and outputs > 1 else "logistic"
    estimator = _fitted(MLPClassifier(**settings), weights, biases, output)
    return _with_labels(estimator, loss, outputs, model.classes)


def _dense_layers(layers: Sequence[Layer], loss: Loss) -> tuple[list[np.ndarray], list[np.ndarray], str]:
    """Weights, biases, and the activation behind the hidden layers."""
    names = {cls: name for name, cls in _ACTIVATIONS.items()}
    kept = [layer for layer in layers if not isinstance(layer, Dropout | GaussianNoise | Identity)]
    if loss.output_activation == "identity":  # the network makes probabilities itself
        expected = Sigmoid if isinstance(loss, BinaryCrossEntropy) else Softmax
        if type(kept[-1]) is not expected:
            raise ValueError(f"{loss!r} takes probabilities; expected {expected.__name__} as the last layer")
        kept = kept[:-1]
    found: list[list[Layer]] = []  # each linear layer and what stands behind it
    for layer in kept:
        if isinstance(layer, Linear):
            found.append([layer])
        elif type(layer) in names and found and len(found[-1]) == 1:
            found[-1].append(layer)
        else:
            raise no_twin(layer, "scikit-learn's MLP, linear layers with identity, sigmoid, tanh or ReLU")
    if not found or len(found[-1]) > 1:
        raise ValueError("the network ends in an activation; an MLP of scikit-learn ends in a linear layer")
    hidden = {names[type(group[1])] if len(group) > 1 else "identity" for group in found[:-1]}
    if len(hidden) > 1:
        raise ValueError(
            f"the hidden layers have the activations {', '.join(sorted(hidden))}; scikit-learn has one for all"
        )
    linear = [group[0] for group in found]
    weights = [layer.values()["weight"] for layer in linear]
    biases = [
        layer.values().get("bias", np.zeros(weight.shape[1], weight.dtype))
        for layer, weight in zip(linear, weights, strict=True)
    ]
    return weights, biases, hidden.pop() if hidden else "relu"


def _fitted(estimator: Any, weights: list[np.ndarray], biases: list[np.ndarray], output: str) -> Any:
    """Set what `fit` would have set, so that the estimator predicts, and goes on with `partial_fit`."""
    estimator.coefs_, estimator.intercepts_ = weights, biases
    estimator.n_features_in_, estimator.n_outputs_ = weights[0].shape[0], weights[-1].shape[1]
    estimator.n_layers_, estimator.out_activation_ = len(weights) + 1, output
    estimator.n_iter_ = estimator.t_ = estimator._no_improvement_count = 0
    estimator.loss_curve_, estimator.best_loss_ = [], np.inf
    estimator.validation_scores_ = estimator.best_validation_score_ = None
    return estimator


def _with_labels(estimator: Any, loss: Loss, outputs: int, classes: Sequence[Any] | None) -> Any:
    from sklearn.preprocessing import LabelBinarizer

    several = isinstance(loss, BinaryCrossEntropy) and outputs > 1
    if several:
        labels: Any = np.array([[0] * outputs, [1] * outputs])
    else:
        labels = np.arange(max(outputs, 2)) if classes is None else np.array(classes)
    if not several and len(labels) != max(outputs, 2):
        raise ValueError(f"the model has {len(labels)} classes; its network tells {max(outputs, 2)} apart")
    estimator._label_binarizer = LabelBinarizer().fit(labels)
    estimator.classes_ = estimator._label_binarizer.classes_
    if not several and list(estimator.classes_) != list(labels):
        raise ValueError(f"the classes {list(labels)} are not in sorted order, which scikit-learn needs")
    return estimator
