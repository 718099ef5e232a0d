"""scikit-learn's MLPClassifier and MLPRegressor, both ways, always with the real library."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpumlp as gm
from gpumlp.interop import from_sklearn, to_sklearn


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(3).normal(size=(120, 3))


def labels(X, classes):
    """Labels in as many groups as there are classes, by the first two features."""
    codes = np.digitize(X[:, 0] + X[:, 1], np.linspace(-1, 1, len(classes) - 1))
    return np.array(classes)[codes]


def fitted(estimator, X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(X, y)


def classifier(X, classes, activation="relu", hidden=(7, 4)):
    estimator = MLPClassifier(
        hidden, activation=activation, learning_rate_init=0.02, max_iter=10, random_state=0
    )
    return fitted(estimator, X, labels(X, classes))


CLASSES = {
    "two numbers": [0, 1],
    "two names": ["no", "yes"],
    "two odd numbers": [-3, 5],
    "booleans": [False, True],
    "three numbers": [0, 1, 2],
    "three names": ["a", "b", "c"],
    "four numbers of their own": [2, 3, 5, 7],
}


def expected_probabilities(estimator, X):
    """As gpumlp gives them: of two classes the second alone."""
    found = estimator.predict_proba(X)
    return found[:, 1:] if found.shape[1] == 2 else found


@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_a_classifier_becomes_a_model_with_its_probabilities_and_labels(classes, X, assert_equal_outputs):
    estimator = classifier(X, classes)
    model = from_sklearn(estimator, device="cpu")
    assert model.network.dtype == "float64"
    assert_equal_outputs(model.predict(X), expected_probabilities(estimator, X), 1e-12)
    predicted = model.predict_classes(X)
    np.testing.assert_array_equal(predicted, estimator.predict(X))
    assert predicted.dtype.kind == estimator.predict(X).dtype.kind
    assert len(set(predicted.tolist())) > 1
    assert model.classes == (None if classes in ([0, 1], [0, 1, 2]) and classes[0] is not False else classes)


@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_a_classifier_comes_back_and_goes_on_learning(classes, X):
    estimator = classifier(X, classes)
    back = to_sklearn(from_sklearn(estimator, device="cpu"))
    np.testing.assert_allclose(back.predict_proba(X), estimator.predict_proba(X), rtol=1e-12)
    np.testing.assert_array_equal(back.predict(X), estimator.predict(X))
    np.testing.assert_array_equal(back.classes_, estimator.classes_)
    assert back.score(X, labels(X, classes)) == estimator.score(X, labels(X, classes))
    before = back.score(X, labels(X, classes))
    back.set_params(learning_rate_init=0.02)
    for _ in range(60):
        back.partial_fit(X, labels(X, classes))
    assert back.score(X, labels(X, classes)) > max(before, 0.75)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 4, 6)])
def test_every_activation_and_depth_of_a_regressor_goes_both_ways(
    activation, hidden, X, assert_equal_outputs
):
    y = np.column_stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]])
    estimator = fitted(
        MLPRegressor(hidden_layer_sizes=hidden, activation=activation, max_iter=15, random_state=1), X, y
    )
    model = from_sklearn(estimator, device="cpu")
    assert_equal_outputs(model.predict(X), estimator.predict(X), 1e-12)
    back = to_sklearn(model)
    np.testing.assert_allclose(back.predict(X), estimator.predict(X), rtol=1e-10, atol=1e-12)
    assert back.hidden_layer_sizes == hidden
    if hidden:
        assert back.activation == activation


def test_a_regressor_of_one_output_and_float32_stays_in_it(X, assert_equal_outputs):
    x = X.astype(np.float32)
    estimator = fitted(
        MLPRegressor(hidden_layer_sizes=(7, 4), max_iter=15, random_state=1), x, np.sin(x[:, 0])
    )
    model = from_sklearn(estimator, device="cpu")
    assert model.network.dtype == "float32"
    assert_equal_outputs(model.predict(x), estimator.predict(x)[:, None])
    assert_equal_outputs(to_sklearn(model).predict(x), estimator.predict(x))
    assert from_sklearn(estimator, device="cpu", dtype="float64").network.dtype == "float64"


def test_several_yes_or_no_questions_stay_apart(X, assert_equal_outputs):
    y = np.column_stack([X[:, 0] > 0, X[:, 1] > 0.3, X[:, 2] > 0]).astype(int)
    estimator = fitted(MLPClassifier((9,), max_iter=30, random_state=1), X, y)
    model = from_sklearn(estimator, device="cpu")
    assert isinstance(model.loss, gm.BinaryCrossEntropy)
    assert_equal_outputs(model.predict(X), estimator.predict_proba(X), 1e-12)
    np.testing.assert_array_equal(model.predict_classes(X), estimator.predict(X))
    back = to_sklearn(model)
    np.testing.assert_array_equal(back.predict(X), estimator.predict(X))


@pytest.mark.parametrize("loss", ["cross_entropy", "softmax_mse", "kl_div"])
@pytest.mark.parametrize("outputs", [2, 3])
def test_a_trained_classifier_gives_equal_probabilities_in_scikit_learn(loss, outputs, X):
    y = labels(X, ["a", "b", "c"][:outputs])
    network = gm.mlp([3, 8, 5, outputs], activation="tanh", dropout=0.2, device="cpu", dtype="float64")
    trainer = gm.Trainer(network, loss=loss, optimizer="adam", seed=1)
    trainer.fit(X, y, epochs=5, progress=False)
    estimator = to_sklearn(trainer)
    np.testing.assert_allclose(estimator.predict_proba(X), trainer.predict(X), rtol=1e-10)
    np.testing.assert_array_equal(estimator.predict(X), trainer.predict_classes(X))
    assert isinstance(estimator, MLPClassifier)
    assert estimator.out_activation_ == ("logistic" if outputs == 2 else "softmax")


def test_a_network_that_makes_probabilities_itself_is_taken(X, randomized):
    network = randomized(gm.mlp([3, 6, 1], output_activation="sigmoid", device="cpu", dtype="float64"))
    model = gm.Model(network, gm.BinaryCrossEntropy(from_logits=False))
    estimator = to_sklearn(model)
    np.testing.assert_allclose(estimator.predict_proba(X)[:, 1:], model.predict(X), rtol=1e-10)
    no_sigmoid = gm.Model(gm.mlp([3, 6, 1], device="cpu"), gm.BinaryCrossEntropy(from_logits=False))
    with pytest.raises(ValueError, match="expected Sigmoid as the last layer"):
        to_sklearn(no_sigmoid)


def test_a_layer_without_a_bias_gets_one_of_zeros(X, randomized):
    layers = [gm.Linear(3, 5, bias=False), gm.Tanh(), gm.GaussianNoise(0.1), gm.Linear(5, 2)]
    network = randomized(gm.Sequential(*layers, device="cpu", dtype="float64"))
    estimator = to_sklearn(gm.Model(network, gm.MSE()))
    np.testing.assert_array_equal(estimator.intercepts_[0], np.zeros(5))
    np.testing.assert_allclose(estimator.predict(X), network.predict(X), rtol=1e-10, atol=1e-12)


def model(*layers, loss=None, **settings):
    return gm.Model(gm.Sequential(*layers, device="cpu"), loss or gm.MSE(), **settings)


REFUSED = {
    "batch norm": (
        lambda: model(gm.Linear(3, 4), gm.BatchNorm1d(4), gm.Linear(4, 1)),
        "layer 1, BatchNorm1d",
    ),
    "gelu": (
        lambda: model(gm.Linear(3, 4), gm.GELU(), gm.Linear(4, 1)),
        "layer 1, GELU.* has no like in scikit",
    ),
    "two behind one": (
        lambda: model(gm.Linear(3, 4), gm.ReLU(), gm.Tanh(), gm.Linear(4, 1)),
        "layer 2, Tanh",
    ),
    "mixed": (
        lambda: model(gm.Linear(3, 4), gm.ReLU(), gm.Linear(4, 4), gm.Tanh(), gm.Linear(4, 1)),
        "the activations relu, tanh; scikit-learn has one for all",
    ),
    "an end": (lambda: model(gm.Linear(3, 4), gm.ReLU()), "ends in an activation"),
    "classes": (
        lambda: model(gm.Linear(3, 3), loss=gm.CrossEntropy(), classes=["a", "b"]),
        "has 2 classes; its network tells 3 apart",
    ),
    "unsorted classes": (
        lambda: model(gm.Linear(3, 2), loss=gm.CrossEntropy(), classes=["b", "a"]),
        "not in sorted order",
    ),
    "a target scaler": (
        lambda: model(gm.Linear(3, 1), target_scaler=gm.data.TargetScaler()),
        "has a target_scaler",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_scikit_learn_has_not_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        to_sklearn(make())


def test_other_estimators_are_refused_with_what_to_give(X):
    pipeline = make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(4,)))
    with pytest.raises(TypeError, match=r"is a Pipeline; .*\(pipeline\[-1\]\)"):
        from_sklearn(pipeline)
    with pytest.raises(ValueError, match="is not fitted; call fit first"):
        from_sklearn(MLPClassifier())
    with pytest.raises(TypeError, match=r"expected a gm\.Trainer or a gm\.Model"):
        to_sklearn(gm.mlp([3, 1], device="cpu"))


def test_a_poisson_regressor_is_refused(X):
    estimator = fitted(MLPRegressor(hidden_layer_sizes=(4,), max_iter=2), X, X[:, 0])
    estimator.out_activation_ = "exp"  # as loss="poisson" sets it, from scikit-learn 1.7 on
    with pytest.raises(ValueError, match="no Poisson loss"):
        from_sklearn(estimator)


def test_a_model_from_scikit_learn_is_saved_and_loaded_with_its_labels(X, tmp_path):
    estimator = classifier(X, ["a", "b", "c"])
    from_sklearn(estimator, device="cpu").save(tmp_path / "m.safetensors")
    again = gm.load_model(tmp_path / "m.safetensors", device="cpu")
    np.testing.assert_array_equal(again.predict_classes(X), estimator.predict(X))
