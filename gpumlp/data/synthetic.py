"""The synthetic data sets of the five course reports that gpumlp reproduces."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from gpumlp.data.dataset import Dataset

Array = npt.NDArray[np.float64]


def sine_sqrt_regression(
    n_samples: int = 500, noise: float = 0.2, low: float = -10.0, high: float = 10.0, seed: int = 0
) -> Dataset:
    """Return y = sin x + 0.3 exp(sqrt|x|) + noise N(0, 1) at evenly spaced x (report sdm274).

    Args:
        n_samples: number of points, n.
        noise: deviation of the noise; the floor of the MSE is its square.
        low: the first x.
        high: the last x.
        seed: of the noise.

    Returns:
        A set with features (n, 1) and a target (n,), in the order of x.
    """
    _at_least("n_samples", n_samples, 2)
    _not_negative("noise", noise)
    if not low < high:
        raise ValueError(f"low is {low} and high {high}; expected low below high")
    x = np.linspace(low, high, n_samples)
    y = (
        np.sin(x)
        + 0.3 * np.exp(np.sqrt(np.abs(x)))
        + noise * np.random.default_rng(seed).standard_normal(n_samples)
    )
    return Dataset("sine_sqrt_regression", x[:, np.newaxis].astype(np.float32), y, ["x"])


def sdm274_classification(n_samples: int = 1000, class_sep: float = 1.5, seed: int = 17) -> Dataset:
    """Return the 2-D set of report sdm274: `make_classification` with two classes of two clusters.

    Args:
        n_samples: number of points, n.
        class_sep: half the side of the square whose corners the clusters have.
        seed: `random_state` of scikit-learn; 17 is the report's.

    Returns:
        A set with features (n, 2) and codes 0 and 1.
    """
    from sklearn.datasets import make_classification

    _at_least("n_samples", n_samples, 4)
    X, y = make_classification(
        n_samples=n_samples,
        n_features=2,
        n_informative=2,
        n_redundant=0,
        n_repeated=0,
        n_classes=2,
        n_clusters_per_class=2,
        class_sep=class_sep,
        random_state=seed,
    )
    return Dataset("sdm274_classification", X.astype(np.float32), y, ["x1", "x2"], ["class"], ["0", "1"])


def linear_clusters(
    n_per_class: int = 512, n_classes: int = 2, sigma: float = 0.1, n_test_per_class: int = 0, seed: int = 0
) -> Dataset:
    """Return clusters along the diagonal: both coordinates N((k + 1) / (K + 1), sigma) (report tnm112).

    Args:
        n_per_class: training points a class.
        n_classes: K.
        sigma: deviation of each coordinate.
        n_test_per_class: test points a class, which follow the training rows (`Dataset.n_train`).
        seed: of the points.

    Returns:
        A set with features ((n_per_class + n_test_per_class) K, 2), the classes mixed within each part.
    """

    def points(rng: np.random.Generator, k: int, count: int) -> Array:
        return rng.normal((k + 1) / (n_classes + 1), sigma, (count, 2))

    return _clusters("linear_clusters", points, (n_per_class, n_test_per_class), n_classes, sigma, seed)


def polar_clusters(
    n_per_class: int = 512, n_classes: int = 2, sigma: float = 0.1, n_test_per_class: int = 0, seed: int = 0
) -> Dataset:
    """Return concentric noisy rings: radius |N(k / K, sigma)|, the angle uniform (report tnm112).

    Args:
        n_per_class: training points a class.
        n_classes: K.
        sigma: deviation of the radius.
        n_test_per_class: test points a class, which follow the training rows (`Dataset.n_train`).
        seed: of the points.

    Returns:
        A set with features ((n_per_class + n_test_per_class) K, 2), the classes mixed within each part.
    """

    def points(rng: np.random.Generator, k: int, count: int) -> Array:
        radius = np.abs(rng.normal(k / n_classes, sigma, count))
        angle = rng.uniform(0.0, 2.0 * np.pi, count)
        return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])

    return _clusters("polar_clusters", points, (n_per_class, n_test_per_class), n_classes, sigma, seed)


def two_cluster_classification(n_train: int = 200, n_test: int = 100, seed: int = 0) -> Dataset:
    """Return two overlapping, differently shaped clusters in 2-D with a training and a test part.

    It stands in for the pair of files of report upf, which are not public. The columns have different units,
    so that standardisation matters; the best possible boundary is a curve and is right for about 95 % of the
    points.

    Args:
        n_train: training points, half of each class.
        n_test: test points.
        seed: of the points.

    Returns:
        A set with features (n_train + n_test, 2) and `n_train`, the classes mixed within each part.
    """
    _at_least("n_train", n_train, 2)
    centres = np.array([[3.0, 40.0], [5.5, 65.0]])
    shapes = np.array([[[1.0, 5.0], [0.0, 12.0]], [[1.4, -8.0], [0.0, 10.0]]])

    def points(rng: np.random.Generator, k: int, count: int) -> Array:
        return centres[k] + rng.standard_normal((count, 2)) @ shapes[k]

    rng = np.random.default_rng(seed)
    halves = [(n_train // 2, n_test // 2), (n_train - n_train // 2, n_test - n_test // 2)]
    return _mixed("two_cluster_classification", points, halves, rng)


def _clusters(
    name: str,
    points: Callable[[np.random.Generator, int, int], Array],
    counts: tuple[int, int],
    n_classes: int,
    sigma: float,
    seed: int,
) -> Dataset:
    _at_least("n_classes", n_classes, 2)
    _at_least("n_per_class", counts[0], 1)
    _at_least("n_test_per_class", counts[1], 0)
    _not_negative("sigma", sigma)
    return _mixed(name, points, [counts] * n_classes, np.random.default_rng(seed))


def _mixed(
    name: str,
    points: Callable[[np.random.Generator, int, int], Array],
    counts: list[tuple[int, int]],
    rng: np.random.Generator,
) -> Dataset:
    """Draw (training, test) points of each class, and mix the classes within each part."""
    X, y = [], []
    for part in (0, 1):
        parts = [points(rng, k, count[part]) for k, count in enumerate(counts)]
        codes = np.repeat(np.arange(len(counts)), [count[part] for count in counts])
        order = rng.permutation(len(codes))
        X.append(np.concatenate(parts)[order])
        y.append(codes[order])
    return Dataset(
        name,
        np.concatenate(X).astype(np.float32),
        np.concatenate(y),
        ["x1", "x2"],
        ["class"],
        [str(k) for k in range(len(counts))],
        len(y[0]) if len(y[1]) else None,
    )


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected a whole number of {least} or more")
    if value < least:
        raise ValueError(f"{name} is {value}; expected {least} or more")


def _not_negative(name: str, value: float) -> None:
    if not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value}; expected a finite number, 0 or more")


SYNTHETIC: Mapping[str, Callable[..., Dataset]] = {
    make.__name__: make
    for make in (
        sine_sqrt_regression,
        sdm274_classification,
        linear_clusters,
        polar_clusters,
        two_cluster_classification,
    )
}
