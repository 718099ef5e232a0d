"""What is special to report ee6132: losses by step, inactive neurons, HOG features, and the errors of all it tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumlp.recipes import Context, Outcome, Trained
from gpumlp.recipes.context import Drawn, Table

if TYPE_CHECKING:
    from gpumlp.data import Dataset

MEANS_OF = 100
"""Steps whose losses a point of a curve is the mean of; single batches of 64 scatter too much to be told apart."""


# --- losses by step ---------------------------------------------------------------------------------------------------


def losses_by_step(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> Drawn:
    """Draw the loss of the batches and that of the test images of one network."""
    from gpumlp.report import plot_curves

    (run,) = trained.values()
    curves = {"training": _train_curve(run), "test": _test_curve(run)}
    figure = plot_curves(curves, "loss", xlabel="step", log=True)
    return Drawn(
        figure, f"Loss on the training batches (means of {MEANS_OF} steps) and on the test images, by step"
    )


def train_losses_by_step(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> Drawn:
    """Draw the loss of the batches of several networks."""
    from gpumlp.report import plot_curves

    figure = plot_curves(
        {label: _train_curve(run) for label, run in trained.items()}, "training loss", xlabel="step", log=True
    )
    return Drawn(figure, f"Loss on the training batches by step, means of {MEANS_OF} steps")


def test_losses_by_step(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> Drawn:
    """Draw the loss of the test images of several networks."""
    from gpumlp.report import plot_curves

    figure = plot_curves(
        {label: _test_curve(run) for label, run in trained.items()}, "test loss", xlabel="step", log=True
    )
    return Drawn(figure, "Loss on the test images by step, measured every 400 steps")


def _train_curve(run: Trained) -> tuple[np.ndarray, np.ndarray]:
    losses = np.array(run.history.step_losses)
    size = min(MEANS_OF, len(losses))
    means = losses[: len(losses) // size * size].reshape(-1, size).mean(axis=1)
    return np.arange(1, len(means) + 1) * size, means


def _test_curve(run: Trained) -> tuple[np.ndarray, np.ndarray]:
    found = run.history.validations
    return np.array(found["step"]), np.array(found["val_loss"])


# --- the baseline -----------------------------------------------------------------------------------------------------


def misclassified(context: Context, trained: Mapping[str, Trained], outcome: Outcome) -> None:
    """Add the share of misclassified test images, and the pairs of digits that are taken for one another most."""
    from gpumlp.metrics import confusion_matrix

    (run,) = trained.values()
    scored = run.scores["test"]
    outcome.values["test.misclassified"] = 100 * (1 - scored.scores["accuracy"])
    counts = np.asarray(confusion_matrix(scored.true, scored.predicted, 10))
    both = counts + counts.T
    pairs = sorted(((int(both[i, j]), i, j) for i in range(10) for j in range(i)), reverse=True)
    outcome.values["place_of_4_and_9"] = 1 + sum(count > both[4, 9] for count, _, _ in pairs)
    rows = [[f"{j} and {i}", count] for count, i, j in pairs[:5]]
    outcome.tables.append(Table("Digits taken for one another most often", ["digits", "test images"], rows))


# --- activations ------------------------------------------------------------------------------------------------------


def compare_activations(context: Context) -> Outcome:
    """Train a network with each activation, and measure its neurons on the test images after every epoch."""
    from gpumlp.activity import ActivationStatistics
    from gpumlp.experiment import set_up
    from gpumlp.recipes.figures import draw
    from gpumlp.recipes.kinds import curves_of, score_table, values_of

    names = context.options["activations"]
    like = set_up(context.config)
    statistics = {name: ActivationStatistics(like.prepared.X_test, bins=0) for name in names}
    trained = context.fit(
        {name: context.config_with({"network": {"activation": name}}) for name in names},
        validate_on_test=True,
        record_steps=True,
        callbacks=lambda label: [statistics[label]],
        like=like,
    )
    outcome = context.outcome(trained)
    outcome.values |= values_of(trained)
    for name, run in trained.items():
        outcome.arrays |= {f"{name}.{column}": values for column, values in curves_of(run).items()}
        for layer, (epochs, shares) in statistics[name].curves("inactive").items():
            outcome.arrays[f"{name}.{layer}.inactive"] = np.array(shares)
            outcome.arrays["activity.epoch"] = np.array(epochs)
    outcome.tables.append(score_table(trained))
    outcome.figures += draw(context, trained, outcome)
    return outcome


def after_steps(context: Context) -> Outcome:
    """Look up the test losses of the three networks after a number of steps, or the last before it."""
    found = context.needed["activations"]
    outcome = context.outcome()
    losses = []
    for name in ("sigmoid", "tanh", "relu"):
        steps = found.arrays[f"{name}.val.step"]
        at = int(np.flatnonzero(steps <= context.options["step"])[-1])
        outcome.values[name] = float(found.arrays[f"{name}.val.val_loss"][at])
        losses.append(outcome.values[name])
        if steps[at] < context.options["step"]:
            outcome.notes.append(
                f"{name}: measured after {int(steps[at])} steps, the last of a shorter training."
            )
    outcome.values["losses"] = losses
    return outcome


def inactive_neurons(context: Context) -> Outcome:
    """Draw the share of inactive neurons of each layer, and add its first, last, mean and greatest value in percent."""
    from gpumlp.report import plot_curve_panels

    arrays = context.needed["activations"].arrays
    epochs = arrays["activity.epoch"]
    outcome = context.outcome()
    panels: dict[str, dict[str, Any]] = {}
    rows = []
    for layer in ("h1", "h2", "h3"):
        for name in ("sigmoid", "tanh", "relu"):
            share = arrays[f"{name}.{layer}.inactive"]
            panels.setdefault(layer, {})[name] = (epochs, share)
            trained = 100 * share[1:]  # behind the untrained network
            told = [trained[0], trained[-1], trained.mean(), 100 * share.max()]
            for what, value in zip(("first", "last", "mean", "peak"), told, strict=True):
                outcome.values[f"{name}.{layer}.{what}"] = float(value)
            rows.append([f"{layer}, {name}", 100 * float(share[0]), *map(float, told)])
    means = [
        outcome.values[f"{name}.{layer}.mean"]
        for layer in ("h1", "h2")
        for name in ("sigmoid", "tanh", "relu")
    ]
    outcome.values["level"] = float(np.mean(means))
    columns = ["", "untrained, %", "first epoch, %", "last epoch, %", "mean, %", "peak, %"]
    outcome.tables.append(Table("Inactive neurons", columns, rows))
    figure = plot_curve_panels(panels, "inactive neurons", percent=True)
    outcome.figures.append(
        Drawn(figure, "Share of inactive neurons by layer and epoch; epoch 0 is untrained")
    )
    return outcome


# --- HOG features -----------------------------------------------------------------------------------------------------


def networks_on_hog(context: Context) -> Outcome:
    """Train a network of each shape on the features."""
    from gpumlp.data import prepare
    from gpumlp.experiment import Experiment
    from gpumlp.recipes.figures import draw
    from gpumlp.recipes.kinds import score_table, values_of

    dataset, seconds = _hog_of_mnist(context)
    y = np.asarray(dataset.y)
    like = Experiment(context.config, prepare(dataset, copy=False, standardize=False), y, None)  # type: ignore[arg-type]
    configs = {
        "-".join(map(str, hidden)): context.config_with({"network": {"hidden": hidden}})
        for hidden in context.options["hidden"]
    }
    trained = context.fit(configs, validate_on_test=True, record_steps=True, like=like)
    outcome = context.outcome(trained)
    outcome.values |= values_of(trained)
    outcome.values["hog_seconds"] = seconds
    outcome.tables.append(score_table(trained))
    outcome.notes.append(f"The features of {len(y)} images took {seconds:.1f} s.")
    outcome.figures += draw(context, trained, outcome)
    return outcome


def baseline_on_hog(context: Context) -> Outcome:
    """Fit one of scikit-learn's learners on the features."""
    from gpumlp.baselines import fit_baseline
    from gpumlp.machine import cpu_model

    dataset, seconds = _hog_of_mnist(context)
    context.advance(0.1)
    X, y, n = dataset.features, np.asarray(dataset.y), dataset.n_train
    found = fit_baseline(context.options["baseline"], X[:n], y[:n], (X[n:], y[n:]))
    outcome = context.outcome()
    outcome.device, outcome.executor = cpu_model(), "scikit-learn"
    for part, scores in found.scores.items():
        outcome.values |= {f"{part}.{name}": value for name, value in scores.items()}
    times = {
        "fit_seconds": found.fit_seconds,
        "predict_seconds": found.predict_seconds,
        "hog_seconds": seconds,
    }
    outcome.values |= times
    outcome.notes.append(
        f"{seconds:.1f} s for the features, {found.fit_seconds:.1f} s to fit {n} images, "
        f"{found.predict_seconds:.1f} s to predict all {len(y)}."
    )
    return outcome


def _hog_of_mnist(context: Context) -> tuple[Dataset, float]:
    """Return the features of the first training and test images, and the seconds that they took."""
    import time

    from gpumlp.data import Dataset, load_mnist
    from gpumlp.data.hog import hog_features

    mnist = load_mnist(context.data_dir)
    most_train, most_test = context.options["images"]
    n_train = mnist.n_train or mnist.n_samples
    rows = np.r_[: min(most_train, n_train), n_train : min(n_train + most_test, mnist.n_samples)]
    start = time.perf_counter()
    features = hog_features(mnist.features[rows], orientations=9, pixels_per_cell=5, cells_per_block=2)
    seconds = time.perf_counter() - start
    dataset = Dataset(
        "mnist-hog", features, mnist.y[rows], target_names=mnist.target_names, classes=mnist.classes,
        n_train=min(most_train, n_train),
    )  # fmt: skip
    return dataset, seconds


# --- all of it --------------------------------------------------------------------------------------------------------

PUBLISHED = {  # test accuracy by (part, value)
    "rate 1": ("learning-rates", "lr=1.test.accuracy", 0.9798),
    "rate 0.1, the baseline": ("baseline", "test.accuracy", 0.9387),
    "rate 0.01": ("learning-rates", "lr=0.01.test.accuracy", 0.8048),
    "rate 0.001": ("learning-rates", "lr=0.001.test.accuracy", 0.1135),
    "tanh": ("activations", "tanh.test.accuracy", 0.9801),
    "ReLU": ("activations", "relu.test.accuracy", 0.9825),
    "L2": ("l2", "test.accuracy", 0.8965),
    "noise, sigma 0.5": ("noise", "sigma 0.5.test.accuracy", 0.8832),
    "noise, sigma 0.1": ("noise", "sigma 0.1.test.accuracy", 0.926),
    "HOG, 300-150": ("hog-networks", "300-150.test.accuracy", 0.9758),
    "HOG, 400-200-100": ("hog-networks", "400-200-100.test.accuracy", 0.9773),
    "HOG, SVM": ("svm", "test.accuracy", 0.9859),
    "HOG, KNN": ("knn", "test.accuracy", 0.961),
}
ON_PIXELS = (
    "baseline",
    "learning-rates",
    "activations",
    "after-2000-steps",
    "inactive-neurons",
    "l2",
    "noise",
)


def summarise(context: Context) -> Outcome:
    """Draw the test errors of all that was tried beside the published ones, and add up the time of the tables."""
    from gpumlp.report import plot_published_and_ours

    pairs = {}
    rows = []
    for label, (part, value, published) in PUBLISHED.items():
        ours = float(context.needed[part].values[value])
        pairs[label] = (100 * (1 - published), 100 * (1 - ours))
        rows.append([label, *pairs[label]])
    outcome = context.outcome()
    for name in ("seconds", "cpu_seconds"):
        outcome.values[f"table_{name}"] = sum(float(context.needed[part].values[name]) for part in ON_PIXELS)
    outcome.tables.append(Table("Misclassified test images", ["", "published, %", "ours, %"], rows))
    some_in_all = all(ours > 0 for _, ours in pairs.values())  # a logarithm of none is none
    figure = plot_published_and_ours(pairs, "misclassified test images", unit="%", log=some_in_all)
    outcome.figures.append(Drawn(figure, "Misclassified test images, published and ours"))
    return outcome
