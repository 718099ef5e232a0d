"""The synthetic sets have the distributions that the reports give."""

import numpy as np
import pytest

from gpumlp.data import (
    linear_clusters,
    polar_clusters,
    sdm274_classification,
    sine_sqrt_regression,
    two_cluster_classification,
)
from gpumlp.data.synthetic import SYNTHETIC


def test_sine_sqrt_regression_without_noise_is_the_function_of_the_report():
    data = sine_sqrt_regression(noise=0.0)
    x = np.linspace(-10, 10, 500)
    np.testing.assert_allclose(data.features[:, 0], x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(data.y, np.sin(x) + 0.3 * np.exp(np.sqrt(np.abs(x))), rtol=1e-6)
    assert data.task == "regression"
    assert data.features.shape == (500, 1)


def test_the_noise_of_sine_sqrt_regression_leaves_an_mse_of_its_square():
    noisy, clean = sine_sqrt_regression(20_000, noise=0.2), sine_sqrt_regression(20_000, noise=0.0)
    # the report's floor of the MSE; 20000 draws give the variance within about 1 %
    assert np.mean((noisy.y - clean.y) ** 2) == pytest.approx(0.04, rel=0.04)


def test_sdm274_classification_is_scikit_learns_set_of_random_state_17():
    from sklearn.datasets import make_classification

    X, y = make_classification(1000, 2, n_informative=2, n_redundant=0, class_sep=1.5, random_state=17)
    data = sdm274_classification()
    np.testing.assert_array_equal(data.features, X.astype(np.float32))
    np.testing.assert_array_equal(data.y, y)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_linear_clusters_have_the_means_and_deviation_of_the_report(n_classes):
    data = linear_clusters(4000, n_classes, sigma=0.1)
    for k in range(n_classes):
        points = data.features[data.y == k]
        assert len(points) == 4000
        # standard error 0.1 / sqrt(4000) = 0.0016
        np.testing.assert_allclose(points.mean(axis=0), (k + 1) / (n_classes + 1), atol=0.007)
        np.testing.assert_allclose(points.std(axis=0), 0.1, rtol=0.06)


def test_polar_clusters_are_rings_of_radius_k_over_n_classes_at_every_angle():
    data = polar_clusters(4000, 5, sigma=0.05)
    for k in range(1, 5):
        x, y = data.features[data.y == k].T
        radius = np.hypot(x, y)
        assert radius.mean() == pytest.approx(k / 5, abs=0.004)
        assert radius.std() == pytest.approx(0.05, rel=0.06)
        quadrants = np.histogram(np.arctan2(y, x), bins=4, range=(-np.pi, np.pi))[0]
        assert quadrants.min() > 900
    # the radius of class 0 is |N(0, sigma)|, whose mean is sigma sqrt(2 / pi)
    inner = np.linalg.norm(data.features[data.y == 0], axis=1)
    assert inner.mean() == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.06)


@pytest.mark.parametrize("make", [linear_clusters, polar_clusters])
def test_clusters_put_their_test_points_after_the_training_points(make):
    data = make(10, 3, n_test_per_class=4)
    assert data.n_train == 30
    assert data.n_samples == 42
    np.testing.assert_array_equal(np.bincount(data.y[:30]), [10, 10, 10])
    np.testing.assert_array_equal(np.bincount(data.y[30:]), [4, 4, 4])
    assert make(10, 3).n_train is None


def test_two_clusters_overlap_so_that_about_95_percent_can_be_right():
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

    data = two_cluster_classification(20_000, 20_000)
    # exact for two Gaussians
    best = QuadraticDiscriminantAnalysis().fit(data.features[:20_000], data.y[:20_000])
    assert best.score(data.features[20_000:], data.y[20_000:]) == pytest.approx(0.954, abs=0.01)


def test_two_clusters_come_as_a_training_and_a_test_part_with_both_classes():
    data = two_cluster_classification(51, 25)
    assert data.n_train == 51
    assert data.n_samples == 76
    np.testing.assert_array_equal(np.bincount(data.y[:51]), [25, 26])
    np.testing.assert_array_equal(np.bincount(data.y[51:]), [12, 13])


@pytest.mark.parametrize("make", SYNTHETIC.values(), ids=SYNTHETIC)
def test_the_same_seed_gives_the_same_set_and_another_seed_another(make):
    first, again, other = make(seed=3), make(seed=3), make(seed=4)
    np.testing.assert_array_equal(first.features, again.features)
    np.testing.assert_array_equal(first.y, again.y)
    assert not (np.array_equal(first.features, other.features) and np.array_equal(first.y, other.y))


@pytest.mark.parametrize("make", SYNTHETIC.values(), ids=SYNTHETIC)
def test_synthetic_features_are_one_contiguous_float32_array(make):
    data = make()
    assert data.features.dtype == np.float32
    assert data.features.flags.c_contiguous


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sine_sqrt_regression(1), "n_samples is 1; expected 2 or more"),
        (lambda: sine_sqrt_regression(noise=-1.0), "noise is -1.0"),
        (lambda: sine_sqrt_regression(low=3.0, high=3.0), "expected low below high"),
        (lambda: linear_clusters(n_classes=1), "n_classes is 1; expected 2 or more"),
        (lambda: polar_clusters(0), "n_per_class is 0; expected 1 or more"),
        (lambda: polar_clusters(sigma=float("nan")), "sigma is nan"),
        (lambda: two_cluster_classification(1), "n_train is 1; expected 2 or more"),
    ],
)
def test_a_size_that_makes_no_set_is_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_size_that_is_no_whole_number_is_a_type_error():
    with pytest.raises(TypeError, match=r"n_samples is 10\.5; expected a whole number"):
        sine_sqrt_regression(10.5)  # type: ignore[arg-type]
