"""The trainer: epochs, batches, validation, callbacks and history around one network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arena import Arena
from .backend import get_backend
from .callbacks import as_callbacks
from .checks import (
    as_matrix,
    as_rows,
    as_weights,
    check_count,
    check_lengths,
    check_precision,
    check_seed,
    check_width,
    on_host,
)
from .feed import Shared
from .history import History
from .layers import BatchNorm1d
from .loop import Every, FitLoop, begin_epochs_anew
from .losses import Loss, get_loss
from .metrics import Metric, get_metric
from .model import Model, check_output, class_names, encode_target, only_class
from .network import Sequential
from .optimizers import Optimizer, get_optimizer
from .program import new_control
from .rows import Data
from .schedules import ReduceOnPlateau
from .splits import split_rows


class Trainer:
    """Trains a network.

    Args:
        network: to train; its weights go on from where they are.
        loss: an object, a name ("mse", "mae", "huber", "cross_entropy", "binary_cross_entropy", "kl_div",
            "softmax_mse"), or a table with a name and settings.
        optimizer: an object, a name ("sgd", "adagrad", "rmsprop", "adam", "adamw"), or a table.
        device: moves the network there; None leaves it where it is.
        dtype: "float32" or "float64"; None leaves it as it is.
        seed: of batches, dropout and noise, and of the initial weights where they still are as they were drawn:
            what was trained, loaded or set is kept (`reset` draws it anew). None for the seed of the network.
        callbacks: `Callback` objects, or functions ``f(trainer, epoch, logs)``.
        metrics: measured with each validation; names or `Metric` objects. ("accuracy",) for classification
            unless given.
        threads: that share the work of each step on the CPU; None for a number by the network's size and by the
            CPUs that are there. The same number gives the same bits.
        precision: of products of float32 matrices on a GPU: "float32", "tf32", or "bf16", which rounds what lies
            between layers too; parameters, their gradients and sums stay in float32.

    Attributes:
        history: of the last `fit`.
        classes: labels of the classes where `y` held text; None where they are numbers.
        trained_on: name of the executor of the last `fit`; None before.
        shared: what it shares on a GPU with others that train at the same time, while they do.
    """

    def __init__(
        self,
        network: Sequential,
        *,
        loss: Any,
        optimizer: Any = "adam",
        device: Any = None,
        dtype: Any = None,
        seed: int | None = None,
        callbacks: Any = None,
        metrics: Sequence[Any] | None = None,
        threads: int | None = None,
        precision: str = "float32",
    ) -> None:
        if not isinstance(network, Sequential):
            raise TypeError(f"network is a {type(network).__name__}; expected a gm.Sequential or gm.mlp(...)")
        self.loss: Loss = get_loss(loss)
        # a schedule may have state: trainers that were given the same optimizer must not share it
        self.optimizer: Optimizer = copy.deepcopy(get_optimizer(optimizer))
        self.callbacks = as_callbacks(callbacks)
        if isinstance(metrics, str):
            raise TypeError(f"metrics is {metrics!r}; expected a list of them: [{metrics!r}]")
        if metrics is None:
            metrics = ("accuracy",) if self.loss.is_classification else ()
        self.metrics: list[Metric] = [get_metric(m) for m in metrics]
        for metric in self.metrics:
            if (metric.needs == "values") == self.loss.is_classification:
                kind = "classification" if self.loss.is_classification else "regression"
                raise ValueError(f"metric {metric.name!r} does not go with {self.loss!r}, a loss of {kind}")
        check_output(network, self.loss)
        seed = seed if seed is None else check_seed(seed)
        self.threads = None if threads is None else check_count("threads", threads)
        self.precision = precision
        check_precision(
            precision, network.backend if device is None else get_backend(device), dtype or network.dtype
        )
        self.network = network.to(device, dtype)  # the network is touched once all else is known to be right
        if seed is not None:
            if not network.was_drawn_by(seed) and network.is_as_drawn:
                network.reset(seed)
            network.seed = seed
        self.seed = network.seed
        self.history = History()
        self.classes: list[str] | None = None
        self.trained_on: str | None = None
        self._forget()

    def _forget(self) -> None:
        """Let the optimizer and the counters start anew."""
        network = self.network
        self.control = new_control(self.seed)
        self.slots: dict[str, Arena] = {}
        for name, value in self.optimizer.initial_slots().items():
            arena = network.parameters.twin()
            for _, view in arena.items():
                network.backend.write(view, value)
            self.slots[f"slot.{name}"] = arena
        if isinstance(self.optimizer.schedule, ReduceOnPlateau):
            self.optimizer.schedule.reset()
        self._resuming = False
        self._columns: list[str] = list(self.history)
        self.shared: Shared | None = None

    def reset(self, seed: int | None = None) -> None:
        """Draw new weights and forget optimizer, counters and history, as if nothing had been trained."""
        self.network.reset(seed)
        self.seed = self.network.seed
        self.history = History()
        self._forget()

    # --- training ------------------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        epochs: int = 10,
        batch_size: int | None = 32,
        validation_data: tuple[Any, ...] | None = None,
        validation_split: float = 0.0,
        validate_every: int | str = 1,
        shuffle: bool = True,
        sample_weight: Any = None,
        progress: bool = True,
        train_metrics: bool = False,
        record_steps: bool = False,
        rows: Any = None,
        held_rows: Any = None,
    ) -> History:
        """Train, from the present weights on.

        Args:
            X: (rows, in_features), an array of any library; float arrays of the network's type are read where they
                are, never copied: on the host, or on the network's GPU.
            y: values (rows,) or (rows, outputs); labels 0 ... K - 1, text labels, or probabilities (rows, K).
            epochs: passes over the rows.
            batch_size: rows of a step; None for all of them, 1 for one-sample descent.
            validation_data: (X, y) or (X, y, sample_weight).
            validation_split: share of the rows kept apart for validation: drawn by the seed, in each class alike
                where `y` holds labels.
            validate_every: a number of epochs, or for example "200 steps"; the end is always validated.
            shuffle: whether each epoch has a new order.
            sample_weight: (rows,), at least 0.
            progress: a bar on a terminal, elsewhere a hundred lines and one every five seconds; False: silence.
            train_metrics: measure the metrics on the training rows too, with each validation.
            record_steps: keep the loss of every step in `History.step_losses`.
            rows: indices of the rows of X to train on; None for all. Nothing is copied, but for as many of them as X
                has where some repeat.
            held_rows: indices of rows of X to validate on, in place of validation_data.

        Returns:
            The history, also at `Trainer.history`.

        Raises:
            ValueError: data or settings that do not fit; the message says which and what to do.
            NonFiniteLossError: the loss or a gradient became NaN or infinite; the last good weights are kept.
        """
        epochs = check_count("epochs", epochs)
        every = Every.parse(validate_every)
        data, classes = self._training_data(X, y, sample_weight, rows)
        data, validation = self._validation(data, classes, validation_data, validation_split, held_rows)
        self._plan_columns(validation is not None, train_metrics)
        self._check_monitor()
        batch_rows = self._batch_rows(batch_size, data.used)
        data = data.without_repeats()
        self.classes = classes
        if not self._resuming:
            self.history = History()
            begin_epochs_anew(self.control)
        self._resuming = False
        measured = {"": data} if train_metrics else {}
        if validation is not None:
            measured["val_"] = validation
        self.model = self._as_model()
        with self.network.backend.active():
            loop = FitLoop(
                self,
                data,
                batch_rows,
                shuffle,
                epochs,
                self.history,
                (lambda: self._measure(measured)) if measured else None,
                every,
                self.callbacks,
                record_steps,
                progress,
            )
            loop.run()
        return self.history

    def _training_data(self, X: Any, y: Any, sample_weight: Any, rows: Any) -> tuple[Data, list[str] | None]:
        y = on_host(y, "y")
        x = self._matrix(X, y, sample_weight)
        classes = class_names(y, self.classes) if self.loss.is_classification else self.classes
        data = self._data(x, y, sample_weight, classes)
        if rows is not None:
            data = data.taking(as_rows(rows, len(x)))
        if self.loss.is_classification:
            code = only_class(data.target if data.rows is None else data.target[data.rows])
            if code is not None:
                name = classes[code] if classes else code
                raise ValueError(f"y has one class only, {name!r}; a classifier needs at least two")
        return data, classes

    def _matrix(self, X: Any, y: Any, sample_weight: Any = None, name: str = "X") -> np.ndarray:
        """Check features, which stay on a GPU where they and the network are there, and the numbers of rows."""
        x = as_matrix(X, self.network.dtype, name, self.network.backend)
        check_width(x, self.network.in_features)
        check_lengths(len(x), y=y, sample_weight=sample_weight)
        return x

    def _data(self, x: np.ndarray, y: Any, sample_weight: Any, classes: list[str] | None) -> Data:
        """Check targets and weights of rows that are checked already."""
        outputs = self.network.out_features
        target = encode_target(y, classes, self.loss, outputs, self.network.dtype)
        weight = self.loss.row_weights(target, outputs, as_weights(sample_weight, len(x)), classes)
        return Data(x, target, None if weight is None else weight.astype(self.network.dtype))

    def _validation(
        self,
        data: Data,
        classes: list[str] | None,
        given: tuple[Any, ...] | None,
        split: float,
        held_rows: Any,
    ) -> tuple[Data, Data | None]:
        if isinstance(split, bool) or not isinstance(split, int | float | np.number) or not 0 <= split < 1:
            told = repr(split) if isinstance(split, str | int | float) else f"a {type(split).__name__}"
            raise ValueError(
                f"validation_split is {told}; expected a share from 0 up to, not including, 1 (rows of their own go to "
                "validation_data)"
            )
        if (given is not None) + bool(split) + (held_rows is not None) > 1:
            raise ValueError("give one of validation_data, validation_split and held_rows")
        if held_rows is not None:
            return data, data.taking(as_rows(held_rows, len(data.x)))
        if given is not None:
            if not isinstance(given, tuple | list) or len(given) not in (2, 3):
                raise ValueError("validation_data must be (X, y) or (X, y, sample_weight)")
            y = on_host(given[1], "y of validation_data")
            x = self._matrix(given[0], y, name="X of validation_data")
            return data, self._data(x, y, given[2] if len(given) == 3 else None, classes)
        if not split:
            return data, None
        rows = np.arange(len(data.x)) if data.rows is None else data.rows
        labels = data.target[rows] if data.target.ndim == 1 else None
        train, held = split_rows(len(rows), split, labels, self.seed)
        return data.taking(rows[train]), data.taking(rows[held])

    def _batch_rows(self, batch_size: int | None, n: int) -> int:
        if batch_size is None:
            return n
        size = check_count("batch_size", batch_size)
        if size == 1 and any(isinstance(la, BatchNorm1d) and la.trainable for la in self.network.layers):
            raise ValueError(
                "batch_size is 1; BatchNorm1d learns from batches of at least 2 rows (or freeze() it)"
            )
        if size > n:
            warnings.warn(
                f"batch_size {size} is more than the {n} rows; training on the full batch",
                UserWarning,
                stacklevel=3,
            )
        return min(size, n)

    def _plan_columns(self, validated: bool, train_metrics: bool) -> None:
        names = [m.name for m in self.metrics]
        self._columns = [*History()]
        self._columns += names if train_metrics else []
        self._columns += [f"val_{name}" for name in ("loss", *names)] if validated else []

    def _check_monitor(self) -> None:
        schedule = self.optimizer.schedule
        if isinstance(schedule, ReduceOnPlateau) and not self.measures(schedule.monitor):
            raise ValueError(
                f"reduce_on_plateau monitors {schedule.monitor!r}, which is not measured; expected one of "
                f"{', '.join(self.columns())}: give validation data, or another monitor"
            )

    def columns(self) -> list[str]:
        """Names of what is measured in this training, in order."""
        return self._columns

    def measures(self, name: str) -> bool:
        """Whether a column of the history will have values in this training."""
        return name in self._columns

    def _measure(self, measured: dict[str, Data]) -> dict[str, float]:
        """Scores of a validation: "val_loss", "val_accuracy", and "accuracy" of the training rows."""
        scores: dict[str, float] = {}
        for prefix, data in measured.items():
            found = self.model.scores(data, self.metrics)
            if not prefix:  # the loss of the epoch stands there already
                found.pop("loss")
            scores.update({prefix + name: value for name, value in found.items()})
        return scores

    def stop(self, reason: str = "stopped by a callback") -> None:
        """End the training after the present block; for callbacks."""
        self.history.stopped = reason

    # --- using what was trained ----------------------------------------------------------------------------------

    def _as_model(self) -> Model:
        return Model(self.network, self.loss, classes=self.classes)

    def evaluate(self, X: Any, y: Any, sample_weight: Any = None, rows: Any = None) -> dict[str, float]:
        """Return the loss and the metrics on all rows, or on those of the indices `rows`.

        For example {"loss": 0.08, "accuracy": 0.98}.

        Raises:
            ValueError: data that do not fit, or labels that were not there in training.
        """
        y = on_host(y, "y")
        x = self._matrix(X, y, sample_weight)
        data = self._data(x, y, sample_weight, self.classes)
        data = data if rows is None else data.taking(as_rows(rows, len(x)))
        return self._as_model().scores(data, self.metrics)

    def predict(self, X: Any, batch_size: int | None = None) -> np.ndarray:
        """Return values, or probabilities where the loss is one of classification, (rows, outputs)."""
        return self._as_model().predict(X, batch_size)

    def predict_classes(self, X: Any, threshold: float = 0.5) -> np.ndarray:
        """Return the class of each row: its number, or its text where the network was trained on text."""
        return self._as_model().predict_classes(X, threshold)

    def save(self, path: str | Path) -> None:
        """Write the model (network, loss, class names) to a safetensors file; `gm.load_model` reads it."""
        self._as_model().save(path)

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all that a training needs to go on: arrays by name, and plain values."""
        arrays = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for slot, arena in self.slots.items():
            arrays |= {f"{slot}/{name}": value for name, value in arena.to_host().items()}
        arrays["control"] = self.control.copy()
        callbacks = []
        for i, callback in enumerate(self.callbacks):
            own, plain = callback.state_dict()
            arrays |= {f"callback.{i}/{name}": value for name, value in own.items()}
            callbacks.append(plain)
        schedule = self.optimizer.schedule
        values = {
            "history": self.history.to_dict(),
            "plateau": schedule.state_dict() if isinstance(schedule, ReduceOnPlateau) else None,
            "classes": self.classes,
            "callbacks": callbacks,
        }
        return arrays, values

    def load_state_dict(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Take over a state; the next `fit`, called as the one before, goes on where that one was.

        Raises:
            ValueError: arrays of another network or optimizer.
        """
        network = {k.removeprefix("network."): v for k, v in arrays.items() if k.startswith("network.")}
        expected = {f"{slot}/{name}" for slot, arena in self.slots.items() for name in arena}
        if expected != {name for name in arrays if name.startswith("slot.")} or "control" not in arrays:
            raise ValueError(
                "the saved state is of another optimizer; resume with the settings of that training"
            )
        self.network.load_state_dict(network)
        for name in expected:
            slot, segment = name.split("/")
            self.network.backend.write(self.slots[slot][segment], arrays[name])
        self.control[...] = arrays["control"]
        if isinstance(self.optimizer.schedule, ReduceOnPlateau) and values["plateau"]:
            self.optimizer.schedule.load_state_dict(values["plateau"])
        for i, (callback, plain) in enumerate(zip(self.callbacks, values["callbacks"], strict=False)):
            if plain:
                mark = f"callback.{i}/"
                own = {k.removeprefix(mark): v for k, v in arrays.items() if k.startswith(mark)}
                callback.load_state_dict(own, plain)
        self.history = History.from_dict(values["history"])
        self.history.stopped = ""
        self.classes = values["classes"]
        self._resuming = True
