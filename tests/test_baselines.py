"""gpumlp.baselines: scikit-learn's learners, scored as networks are."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from gpumlp.baselines import BASELINES, baseline_table, fit_baseline
from gpumlp.metrics import classification_scores

IRIS_X, IRIS_Y = load_iris(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(150)
X, Y = StandardScaler().fit_transform(IRIS_X)[ORDER], IRIS_Y[ORDER]
TRAIN, TEST = (X[:100], Y[:100]), (X[100:], Y[100:])


@pytest.mark.parametrize("workers", [1, 3])
def test_the_svm_and_the_neighbours_are_those_of_scikit_learn(workers):
    for name, theirs in (("svm", SVC(C=2.0)), ("knn", KNeighborsClassifier(7))):
        settings = {"C": 2.0} if name == "svm" else {"n_neighbors": 7}
        found = fit_baseline(name, *TRAIN, TEST, workers=workers, **settings)
        theirs.fit(*TRAIN)
        for part, (x, y) in (("train", TRAIN), ("test", TEST)):
            predicted = theirs.predict(x)
            assert found.scores[part]["accuracy"] == accuracy_score(y, predicted)
            assert found.scores[part]["f1_weighted"] == pytest.approx(
                f1_score(y, predicted, average="weighted")
            )
        assert found.rows == 100
        assert found.settings == settings


def test_scores_have_the_names_that_networks_have():
    found = fit_baseline("knn", *TRAIN, TEST)
    by_class = set(classification_scores(Y[:100], np.full((100, 3), 1 / 3), 3)) - {"log_loss", "roc_auc"}
    assert set(found.scores["train"]) == by_class
    two = Y[:100] != 2
    binary = fit_baseline("logistic_regression", TRAIN[0][two], TRAIN[1][two])
    assert {"precision", "recall", "f1"} <= set(binary.scores["train"])
    assert set(binary.scores) == {"train"}


def test_a_subset_has_every_class_in_its_share_and_is_drawn_by_the_seed():
    found = fit_baseline("svm", *TRAIN, TEST, subset=30, seed=4)
    assert found.rows == 30
    assert found.scores == fit_baseline("svm", *TRAIN, TEST, subset=30, seed=4).scores
    neighbours = fit_baseline("knn", *TRAIN, subset=30).estimator
    drawn = np.bincount(neighbours.classes_[neighbours._y])
    np.testing.assert_allclose(drawn, np.bincount(TRAIN[1]) * 0.3, atol=1)
    assert fit_baseline("svm", *TRAIN, subset=500).rows == 100


def test_classes_may_have_names():
    names = np.array(["a", "b", "c"])
    found = fit_baseline("svm", X[:100], names[Y[:100]], (X[100:], names[Y[100:]]))
    assert found.scores["test"]["accuracy"] == fit_baseline("svm", *TRAIN, TEST).scores["test"]["accuracy"]


@pytest.mark.parametrize("name", [name for name, (_, classes) in BASELINES.items() if not classes])
def test_regressions_have_the_scores_of_values(name):
    x, y = load_diabetes(return_X_y=True)
    found = fit_baseline(name, x[:300], y[:300, None], (x[300:], y[300:]))
    assert set(found.scores["test"]) == {"mse", "rmse", "mae", "r2"}
    expected = mean_squared_error(y[300:], found.estimator.predict(x[300:]))
    assert found.scores["test"]["mse"] == pytest.approx(expected)


def test_times_are_measured_and_all_but_the_estimator_is_plain():
    found = fit_baseline("svm", *TRAIN, TEST)
    assert 0 < found.fit_seconds < 60
    assert 0 < found.predict_seconds < 60
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["scores"] == found.scores
    assert "estimator" not in plain


def test_the_table_has_a_row_a_learner():
    table = baseline_table([fit_baseline(name, *TRAIN, TEST) for name in ("svm", "knn")])
    head, svm, knn = table.splitlines()
    assert head.split()[:2] == ["train.accuracy", "test.accuracy"]
    assert [svm.split()[0], knn.split()[0]] == ["svm", "knn"]
    assert float(knn.split()[2]) == pytest.approx(
        fit_baseline("knn", *TRAIN, TEST).scores["test"]["accuracy"], abs=1e-5
    )


@pytest.mark.parametrize(
    ("name", "data", "settings", "message"),
    [
        ("svn", TRAIN, {}, "unknown baseline 'svn'; did you mean 'svm'"),
        ("knn", TRAIN, {"n_neighbours": 3}, "unknown setting 'n_neighbours' of baseline 'knn'; did you mean"),
        ("svm", (X[:100], Y[:99]), {}, "X has 100 rows and y has 99"),
        ("svm", (X[:100], Y[:100] * 0), {}, "y has one class only, 0"),
        ("svm", (X[:100], Y[:100] + 0.5), {}, "y has fractions"),
        ("svm", (X[:100], np.eye(3)[Y[:100]]), {}, r"y has shape \(100, 3\); expected class codes"),
        ("svm", TRAIN, {"test": (X[:, :3], Y)}, "test rows have 3 features and the training rows 4"),
        ("svm", TRAIN, {"subset": 0}, "subset is 0"),
        ("svm", TRAIN, {"workers": 0}, "workers is 0"),
    ],
)
def test_a_mistake_is_one_clear_line(name, data, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_baseline(name, *data, **settings)
