"""A training as its config describes it: data, network, trainer, and the scores that come out."""

from __future__ import annotations

import copy
import inspect
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backend import Backend, get_backend
from .callbacks import Callback, EarlyStopping
from .checks import as_matrix
from .config import WIDTHS, Config
from .config_values import at, name_of
from .data import Dataset, Prepared, dataset_name, load, load_file, prepare
from .data.dataset import DEFAULT_TEST_SIZE
from .data.pairs import join
from .history import History
from .inference import Evaluator
from .layers import LAYERS, Layer, layer_from_dict
from .losses import BinaryCrossEntropy, Loss, get_loss
from .metrics import classification_scores, regression_scores
from .model import Model
from .network import Sequential, mlp
from .optimizers import get_optimizer
from .registry import nearest
from .trainer import Trainer


@dataclass
class Experiment:
    """A training that is ready to begin.

    Attributes:
        config: complete, with what the data decided.
        prepared: the data.
        y: targets in the order of `prepared`, as they were read: codes, or values in their units.
        trainer: with a new network.
    """

    config: Config
    prepared: Prepared
    y: np.ndarray
    trainer: Trainer

    def fit(self, progress: bool = True) -> History:
        """Train on the training rows; the test rows take no part."""
        p = self.prepared
        return self.trainer.fit(p.X_train, p.y_train, progress=progress, **self.fit_settings())

    def fit_settings(self) -> dict[str, Any]:
        """Return what the config says of `Trainer.fit`: epochs, batch_size, validation_split, ..."""
        settings = self.config["training"]
        size = settings["batch_size"]
        names = ("epochs", "validation_split", "validate_every", "shuffle", "train_metrics")
        return {"batch_size": None if size == "full" else size, **{name: settings[name] for name in names}}

    def check_schedule(self) -> None:
        """Raise a ValueError where the learning rate cannot be followed for the planned steps."""
        settings, n = self.config["training"], self.prepared.n_train
        n = max(1, n - round(n * settings["validation_split"]))
        size = n if settings["batch_size"] == "full" else min(settings["batch_size"], n)
        steps = -(-n // size)
        total = settings["epochs"] * steps
        with at("optimizer.lr"):
            self.trainer.optimizer.schedule.rates([0, total - 1], steps, total)

    def check_early_stopping(self) -> None:
        """Raise a ValueError where early stopping watches what is not measured; for the time that `fit` begins."""
        stopping, columns = self.config["training"]["early_stopping"], self.trainer.columns()
        if stopping and stopping["monitor"] not in columns:
            known = [name for name in columns if name not in ("epoch", "lr", "seconds")]
            raise ValueError(
                f"training.early_stopping.monitor is {stopping['monitor']!r}, which is not measured"
                f"{nearest(stopping['monitor'], known)}"
            )

    def model(self) -> Model:
        """Return the network with all that is needed to predict from raw data."""
        p = self.prepared
        trainer = self.trainer
        return Model(
            trainer.network, trainer.loss, p.classes, p.preprocessor, p.target_scaler, p.target_names
        )

    def scores(self) -> dict[str, Scored]:
        """Score the present network on the "train" rows, and on the "test" rows where there are any."""
        p, n, model = self.prepared, self.prepared.n_train, self.model()
        found = {"train": score(model, p.X_train, self.y[:n])}
        if len(p.test_rows):
            found["test"] = score(model, p.X_test, self.y[n:])
        return found

    def fingerprint(self) -> str:
        """Return a checksum of the prepared data: a training can go on with the same data only."""
        p = self.prepared
        arrays: list[Any] = [p.X, np.ascontiguousarray(p.y), json.dumps(p.preprocessor.to_dict()).encode()]
        return "-".join(map(str, [*p.X.shape, *map(zlib.crc32, arrays)]))


def set_up(config: Config, callbacks: Sequence[Callback] = (), like: Experiment | None = None) -> Experiment:
    """Return the training of a complete config: data read and split, the network made.

    Args:
        config: from `complete_config`; it is not changed.
        callbacks: of the trainer, before early stopping.
        like: a training that was set up with the same ``[data]``: its data are taken, and not read again.

    Raises:
        ValueError, TypeError: a device that is not there, data that cannot be read, settings that do not fit them.
    """
    config = copy.deepcopy(config)
    training, data = config["training"], config["data"]
    with at("training.device"):
        backend = get_backend(training["device"])
    training["device"] = backend.name
    if like is None:
        dataset = _load(data)
        loss = _loss(config, dataset)
        y = np.asarray(dataset.y)
        prepared = _prepare(dataset, data)
        y = y[np.concatenate([prepared.train_rows, prepared.test_rows])]
    else:
        config["data"] = copy.deepcopy(like.config["data"])
        prepared, y = like.prepared, like.y
        loss = _loss(config, prepared)
    if training["batch_size"] == "auto":
        training["batch_size"] = automatic_batch_size(prepared.n_train)
    network = _network(config, prepared, loss, backend)
    stopping = training["early_stopping"]
    trainer = Trainer(
        network,
        loss=loss,
        optimizer=get_optimizer(config["optimizer"]),
        seed=training["seed"],
        metrics=training["metrics"],
        threads=training["threads"],
        precision=training["precision"],
        callbacks=[*callbacks, *([EarlyStopping(**stopping)] if stopping else [])],
    )
    training["metrics"] = [metric.name for metric in trainer.metrics]
    experiment = Experiment(config, prepared, y, trainer)
    experiment.check_schedule()
    return experiment


def automatic_batch_size(n_train: int) -> int:
    """Return the power of two near a hundredth of the rows, from 32 to 512."""
    return int(np.clip(2 ** round(np.log2(max(1, n_train / 100))), 32, 512))


# --- data ---------------------------------------------------------------------------------------------------------


def _load(data: Config) -> Dataset:
    source = data["source"]
    settings = dict(data["settings"])
    if dataset_name(source) is not None:
        if data["drop"]:
            raise ValueError(
                f"data.drop is for files; the data set {source!r} is taken as it is: leave it out"
            )
    else:
        settings |= {"drop": data["drop"], "delimiter": data["delimiter"]}
    dataset = load(source, target=data["target"], task=data["task"], data_dir=data["data_dir"], **settings)
    return dataset if data["test_source"] is None else _with_test_file(dataset, data)


def _with_test_file(dataset: Dataset, data: Config) -> Dataset:
    if dataset_name(data["source"]) is not None:
        raise ValueError(
            f"data.test_source goes with a file for training; {data['source']!r} is a data set: leave it out"
        )
    if data["test_size"] is not None:
        raise ValueError("data.test_size and data.test_source both say what is tested; leave one of them out")
    names = ("drop", "delimiter")
    settings = {**data["settings"], **{name: data[name] for name in names}}
    target = data["target"] if data["test_source"].lower().endswith(".npz") else dataset.target_names
    with at("data.test_source"):
        test = load_file(
            data["test_source"], target=target, task=dataset.task, classes=dataset.classes, **settings
        )
        return join(dataset, test)


def _prepare(dataset: Dataset, data: Config) -> Prepared:
    """Split and preprocess; what the config left open is written into it."""
    if data["standardize"] is None:  # pixels are scaled to 0 ... 1 as they are read
        data["standardize"] = dataset.name != "mnist" and data["scale"] == 1.0
    if data["standardize_target"] is None:
        data["standardize_target"] = dataset.task == "regression"
    if data["test_size"] is None and dataset.n_train is None:
        data["test_size"] = DEFAULT_TEST_SIZE
    names = (
        "test_size", "seed", "stratify", "standardize", "missing", "unknown", "scale", "standardize_target",
    )  # fmt: skip
    return prepare(dataset, copy=False, **{name: data[name] for name in names})


# --- loss and network ---------------------------------------------------------------------------------------------


def _loss(config: Config, dataset: Dataset | Prepared) -> Loss:
    training = config["training"]
    if training["loss"] is None:
        default = get_loss("cross_entropy" if dataset.task == "classification" else "mse")
        training["loss"] = {key: value for key, value in default.to_dict().items() if value is not None}
    loss = get_loss(training["loss"])
    if loss.is_classification != (dataset.task == "classification"):
        other = "cross_entropy" if dataset.task == "classification" else "mse"
        raise ValueError(
            f"training.loss {name_of(training['loss'])!r} does not go with {dataset.name}, a set of {dataset.task}; "
            f"use one such as {other!r}, or set data.task"
        )
    if isinstance(loss.class_weight, Mapping) and dataset.classes is not None:
        given = {str(name): weight for name, weight in loss.class_weight.items()}
        if set(given) != set(dataset.classes):
            raise ValueError(
                f"training.loss.class_weight has the classes {sorted(given)}; expected one for each of "
                f"{dataset.classes}"
            )
        loss.class_weight = [float(given[name]) for name in dataset.classes]
    return loss


def _outputs(loss: Loss, prepared: Prepared) -> int:
    if prepared.classes is None:
        return 1 if prepared.y.ndim == 1 else prepared.y.shape[1]
    k = len(prepared.classes)
    if not isinstance(loss, BinaryCrossEntropy):
        return k
    if k > 2:
        raise ValueError(
            f"training.loss is binary_cross_entropy, for two classes; {prepared.name} has {k}: use cross_entropy"
        )
    return 1


def _network(config: Config, prepared: Prepared, loss: Loss, backend: Backend) -> Sequential:
    spec, training = config["network"], config["training"]
    n_in, n_out = prepared.X.shape[1], _outputs(loss, prepared)
    settings = {"device": backend, "dtype": training["dtype"], "seed": training["seed"]}
    if spec["layers"] is None:
        names = ("activation", "output_activation", "dropout", "weight_init", "bias_init")
        network = mlp([n_in, *spec["hidden"], n_out], **{name: spec[name] for name in names}, **settings)
    else:
        with at("network.layers"):
            network = Sequential(_layers(spec["layers"], n_in, n_out), in_features=n_in, **settings)
        if network.out_features != n_out:
            what = "one for each class" if prepared.classes is not None else "one for each target"
            raise ValueError(
                f"network.layers: the network has {network.out_features} outputs; {prepared.name} needs {n_out}, "
                f"{what}: leave out_features of the last linear layer out"
            )
    return network


def _layers(specs: Sequence[Mapping[str, Any]], n_in: int, n_out: int) -> list[Layer]:
    """Make the layers; widths that are left out come from the layer before, the last one from the data."""
    last = max((i for i, spec in enumerate(specs) if spec["name"] == "linear"), default=-1)
    layers, width = [], n_in
    for i, spec in enumerate(specs):
        settings = dict(spec)
        trainable = settings.pop("trainable", True)
        takes = inspect.signature(LAYERS[spec["name"]]).parameters
        for name in WIDTHS:
            if name not in takes or name in settings:
                continue
            if name == "out_features" and i != last:
                raise ValueError(
                    f"layer {i} needs out_features; only the last linear layer takes it from the data"
                )
            settings[name] = n_out if name == "out_features" else width
        layer = layer_from_dict(settings)
        width = layer.out_features or width
        layers.append(layer if trainable else layer.freeze())
    return layers


# --- scores -------------------------------------------------------------------------------------------------------


@dataclass
class Scored:
    """Predictions on rows whose truth is known.

    Attributes:
        scores: "loss", and all that apply by name.
        true: codes (n,), or values in their units (n, k).
        predicted: codes (n,), or values in their units (n, k).
    """

    scores: dict[str, float]
    true: np.ndarray
    predicted: np.ndarray


def score(model: Model, X: Any, y: np.ndarray) -> Scored:
    """Score a model on inputs of its network.

    Args:
        model: to score.
        X: (n, in_features), preprocessed.
        y: codes of classes (n,), or values in their units, (n,) or (n, k).
    """
    network, loss = model.network, model.loss
    x = as_matrix(X, network.dtype)
    values = y if model.target_scaler is None else model.target_scaler.transform(y)
    target = loss.prepare_target(values, network.out_features, network.dtype)
    weight = loss.row_weights(target, network.out_features, None, None)
    value, out = Evaluator(network, loss).evaluate(x, target, weight)
    if model.is_classifier:
        found = classification_scores(y, out, model.n_classes)
        return Scored({"loss": value, **found}, y, model.codes(out))
    predicted = out if model.target_scaler is None else model.target_scaler.inverse(out)
    true = np.asarray(y).reshape(len(y), -1)
    return Scored({"loss": value, **regression_scores(true, predicted)}, true, predicted)
