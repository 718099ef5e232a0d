"""Keras 3: recorded files without Keras, live models where it is installed."""

import io
import json
import zipfile

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.interop import (
    from_keras,
    load_keras_weights,
    save_keras,
    save_keras_weights,
    to_keras,
    without_output_activation,
)
from gpumlp.interop.keras_layers import ACTIVATIONS

# Keras itself converts its variables in the way of NumPy 1
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
h5py = pytest.importorskip("h5py", reason="h5py is not installed")


@pytest.fixture(scope="module")
def keras(maker):
    """Keras with the backend that the maker of the recorded files chose, where it is installed."""
    pytest.importorskip("jax", reason="JAX, on which Keras runs here, is not installed")
    return pytest.importorskip("keras", reason="Keras is not installed; recorded files stand in for it")


def twin_layers() -> list[gm.Layer]:
    """What the recorded model of Keras is in gpumlp."""
    return [
        *(gm.Linear(3, 7), gm.GELU(), gm.BatchNorm1d(7, eps=1e-3, momentum=0.2)),
        *(gm.Linear(7, 5, bias=False), gm.LeakyReLU(0.05), gm.Dropout(0.3), gm.LayerNorm(5, eps=1e-3)),
        *(gm.Linear(5, 6), gm.SiLU(), gm.GaussianNoise(0.2), gm.Linear(6, 4), gm.Mish()),
        *(gm.Linear(4, 9), gm.ELU(0.7), gm.SELU()),
        *(gm.BatchNorm1d(9, eps=1e-3, momentum=0.01, affine=False), gm.Linear(9, 2), gm.Softmax()),
    ]


def clusters_network(last: bool = True) -> gm.Sequential:
    """The classifier of the recorded clusters, with or without its final softmax."""
    layers = [gm.Linear(2, 8), gm.ReLU(), gm.Linear(8, 6), gm.Sigmoid(), gm.Linear(6, 5), gm.Linear(5, 2)]
    return gm.Sequential(*layers, *([gm.Softmax()] if last else []), device="cpu")


def settings(network: gm.Sequential) -> list[dict]:
    """The layers with their settings, without the initializers."""
    return [
        {key: value for key, value in layer.to_dict().items() if not key.endswith("_init")}
        for layer in network.layers
    ]


# --- files of Keras, read without it -------------------------------------------------------------------------------


def test_an_archive_gives_the_recorded_layers_and_outputs(recorded, recorded_files, assert_equal_outputs):
    network = from_keras(recorded_files / "keras_dense.keras", device="cpu")
    assert settings(network) == settings(gm.Sequential(*twin_layers(), device="cpu"))
    assert_equal_outputs(network.predict(recorded["x"]), recorded["keras_y"])


def test_a_weight_file_gives_the_recorded_outputs(recorded, recorded_files, assert_equal_outputs):
    network = gm.Sequential(*twin_layers(), device="cpu")
    load_keras_weights(network, recorded_files / "keras_dense.weights.h5")
    assert_equal_outputs(network.predict(recorded["x"]), recorded["keras_y"])


def test_weights_in_bfloat16_are_read_to_the_bit(recorded, recorded_files):
    network = gm.Sequential(gm.Linear(3, 4), gm.Linear(4, 2), device="cpu")
    load_keras_weights(network, recorded_files / "keras_bfloat16.weights.h5")
    assert np.abs(recorded["keras_bfloat16_0"]).max() > 0.1
    names = ("0.weight", "0.bias", "1.weight", "1.bias")
    for i, name in enumerate(names):
        np.testing.assert_array_equal(network.state_dict()[name], recorded[f"keras_bfloat16_{i}"])


def test_losses_and_accuracies_equal_keras_to_four_decimals_as_recorded(recorded, recorded_files):
    """Report tnm112, task 2: weights that Keras trained, with linear, sigmoid, relu and softmax layers.

    The figures of Keras are what its own `evaluate` gave: squared error on softmax outputs, and accuracy.
    """
    assert_scores_of_keras(
        lambda network: load_keras_weights(network, recorded_files / "keras_clusters.weights.h5"), recorded
    )


def assert_scores_of_keras(load, recorded, expected=None) -> None:
    expected = recorded["clusters_scores"] if expected is None else expected
    assert 0.9 < expected[1] < 1  # trained, and not to perfection: a wrong weight would show
    assert not np.allclose(expected[0], expected[2], atol=1e-4)
    network = clusters_network(last=False)
    load(network)
    trainer = gm.Trainer(network, loss="softmax_mse")
    scores = [trainer.evaluate(recorded[f"X_{part}"], recorded[f"y_{part}"]) for part in ("train", "test")]
    found = [score[key] for score in scores for key in ("loss", "accuracy")]
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.5e-4)
    assert [f"{value:.4f}" for value in found] == [f"{value:.4f}" for value in expected]


def edited(source, target, edit) -> None:
    """A copy of an archive with another architecture."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name == "config.json":
                config = json.loads(data)
                edit(config["config"]["layers"])
                data = json.dumps(config).encode()
            copy.writestr(name, data)


def renamed_class(i, class_name):
    def edit(layers):
        layers[i]["class_name"] = class_name

    return edit


def changed_setting(i, **new):
    return lambda layers: layers[i]["config"].update(new)


REFUSED = {
    "another layer": (renamed_class(5, "Conv2D"), r"'dropout' \(Conv2D\) is a Conv2D, which gpumlp does not"),
    "an activation": (
        changed_setting(1, activation="hard_sigmoid"),
        r"'inner' \(Dense\) has the activation 'hard_sigmoid'; gpumlp has linear, relu",
    ),
    "a function": (
        changed_setting(1, activation={"class_name": "function", "config": "my>f"}),
        "the activation 'my>f'",
    ),
    "an axis": (changed_setting(2, axis=0), "goes over axis 0; expected the features"),
    "renorm": (changed_setting(2, renorm=True), "has renorm=True"),
    "noise_shape": (changed_setting(5, noise_shape=[1]), "has a noise_shape"),
    "images": (
        changed_setting(0, batch_shape=[None, 2, 3]),
        r"rows of shape \(2, 3\); .* or a Flatten first",
    ),
    "no bias": (changed_setting(1, use_bias=False), "'inner' .* has 2 variables; expected 1, kernel"),
    "another width": (changed_setting(0, batch_shape=[None, 5]), "takes 3 features, but the input has 5"),
}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED)
def test_what_gpumlp_has_not_is_refused_with_its_name(edit, message, recorded_files, tmp_path):
    edited(recorded_files / "keras_dense.keras", tmp_path / "m.keras", edit)
    with pytest.raises(ValueError, match=message) as caught:
        from_keras(tmp_path / "m.keras")
    assert "\n" not in str(caught.value)


def test_a_flatten_first_is_left_out(recorded, recorded_files, tmp_path, assert_equal_outputs):
    def edit(layers):
        layers[0]["config"]["batch_shape"] = [None, 3, 1]
        layers.insert(1, {"class_name": "Flatten", "config": {"name": "flatten"}})

    edited(recorded_files / "keras_dense.keras", tmp_path / "m.keras", edit)
    network = from_keras(tmp_path / "m.keras", device="cpu")
    assert_equal_outputs(network.predict(recorded["x"]), recorded["keras_y"])


def test_a_frozen_layer_stays_frozen(recorded_files, tmp_path):
    edited(recorded_files / "keras_dense.keras", tmp_path / "m.keras", changed_setting(2, trainable=False))
    assert [layer.trainable for layer in from_keras(tmp_path / "m.keras", device="cpu").layers].index(
        False
    ) == 2


def test_missing_damaged_and_other_files_are_told_in_one_line(recorded_files, tmp_path):
    network = gm.mlp([3, 2], device="cpu")
    (tmp_path / "text.keras").write_bytes(b"weights, honestly")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w"):
        pass
    for path, message in [
        (tmp_path / "none.keras", r"no file .*none\.keras'"),
        (tmp_path / "text.keras", "is no .keras archive, or a damaged one"),
        (tmp_path / "empty.keras", "is no .keras archive, or a damaged one"),
        (recorded_files / "keras_dense.weights.h5", "a weight file goes to load_keras_weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_keras(path)
    with pytest.raises(ValueError, match="there is no such file"):
        load_keras_weights(network, tmp_path / "none.weights.h5")
    with pytest.raises(ValueError, match="no HDF5 file, or a damaged one"):
        load_keras_weights(network, tmp_path / "text.keras")
    with pytest.raises(TypeError, match=r"expected a Keras model or the path of a \.keras file"):
        from_keras(network)


def weight_file(path, groups: dict[str, list[np.ndarray]]):
    with h5py.File(path, "w") as file:
        for group, arrays in groups.items():
            for i, array in enumerate(arrays):
                file[f"{group}/vars/{i}"] = array
    return path


W, B = np.ones((3, 2), np.float32), np.zeros(2, np.float32)
BAD = {
    "the older form": ({"model_weights/dense": [W, B]}, "is in Keras's older HDF5 form; save it again"),
    "a model of ones own": ({"dense": [W, B]}, "has no group 'layers'"),
    "a layer too many": ({"layers/dense": [W, B], "layers/dense_1": [B]}, "has 2 Dense; the network has 1"),
    "none": ({"layers/dropout": []}, "has no group 'layers'"),
    "another kind": ({"layers/dense": [W, B], "layers/embedding": [W]}, "has values for 'embedding'"),
    "no bias": ({"layers/dense": [W]}, "'dense' of .* has 1 variables; layer 0, .*, holds weight, bias"),
    "a shape": ({"layers/dense": [W.T, B]}, r"weight of 'dense' .* has shape \(2, 3\); .* takes \(3, 2\)"),
    "nan": ({"layers/dense": [W, B * np.nan]}, "bias of 'dense' .* holds nan"),
    "quantized": ({"layers/dense": [W.astype(np.int8), B]}, "dtype int8; .*quantized"),
    "a model within": (
        {"layers/dense": [W, B], "layers/sequential/layers/dense": [W]},
        "is a model within the model",
    ),
}


@pytest.mark.parametrize(("groups", "message"), BAD.values(), ids=BAD)
def test_a_weight_file_that_does_not_fit_changes_nothing(groups, message, tmp_path):
    network = gm.Sequential(gm.Linear(3, 2), device="cpu")
    before = network.state_dict()
    with pytest.raises(ValueError, match=message):
        load_keras_weights(network, weight_file(tmp_path / "m.weights.h5", groups))
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_the_groups_of_keras_2_are_read(tmp_path):
    groups = {"_layer_checkpoint_dependencies/dense": [W, B + 3]}
    network = gm.Sequential(gm.Linear(3, 2), device="cpu")
    load_keras_weights(network, weight_file(tmp_path / "m.weights.h5", groups))
    np.testing.assert_array_equal(network[0].bias, B + 3)


# --- files for Keras -------------------------------------------------------------------------------------------------


def test_an_archive_and_a_weight_file_come_back_as_they_were(randomized, rows, tmp_path):
    network = randomized(gm.Sequential(*twin_layers(), device="cpu"))
    save_keras(network, tmp_path / "m.keras")
    back = from_keras(tmp_path / "m.keras", device="cpu")
    assert settings(back) == settings(network)
    np.testing.assert_array_equal(back.predict(rows), network.predict(rows))
    save_keras_weights(network, tmp_path / "m.weights.h5")
    other = gm.Sequential(*twin_layers(), device="cpu", seed=9)
    load_keras_weights(other, tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(other.predict(rows), network.predict(rows))


def visited(file) -> dict[str, np.ndarray]:
    found = {}
    file.visititems(lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {}))
    return found


def test_our_weight_file_has_the_datasets_that_keras_wrote(recorded_files, tmp_path):
    network = from_keras(recorded_files / "keras_dense.keras", device="cpu")
    save_keras_weights(network, tmp_path / "m.weights.h5")
    with (
        h5py.File(tmp_path / "m.weights.h5") as ours,
        h5py.File(recorded_files / "keras_dense.weights.h5") as theirs,
    ):
        expected, found = visited(theirs), visited(ours)
    assert set(found) == {name for name in expected if not name.startswith("optimizer")}
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name])


def test_other_endings_and_layers_that_keras_has_not_are_refused(tmp_path):
    network = gm.mlp([3, 2], device="cpu")
    with pytest.raises(ValueError, match=r"only under a name in \.weights\.h5"):
        save_keras_weights(network, tmp_path / "m.h5")
    with pytest.raises(ValueError, match=r"only under a name in \.keras"):
        save_keras(network, tmp_path / "m.h5")
    beta = gm.Sequential(gm.Linear(3, 2), gm.Softplus(2.0), device="cpu")
    with pytest.raises(ValueError, match=r"layer 1, Softplus\(beta=2\.0\), has no like in Keras"):
        save_keras(beta, tmp_path / "m.keras")
    units = gm.Sequential(gm.Linear(3, 2), gm.PerUnit(["relu", "tanh"]), device="cpu")
    with pytest.raises(ValueError, match=r"layer 1, PerUnit.* has no like in Keras"):
        to_keras(units)
    tanh = gm.Sequential(gm.Linear(3, 2), gm.GELU("tanh"), device="cpu")
    with pytest.raises(ValueError, match=r"has no name in Keras that a file can hold; to_keras"):
        save_keras(tanh, tmp_path / "m.keras")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.weights.h5"
    save_keras_weights(gm.mlp([3, 2], device="cpu", seed=1), path)
    before = path.read_bytes()
    monkeypatch.setattr(h5py.Group, "create_dataset", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_keras_weights(gm.mlp([3, 2], device="cpu", seed=2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- live models ----------------------------------------------------------------------------------------------------


def outputs(model, x):
    return np.asarray(model.predict(x, verbose=0))


def test_a_live_model_and_a_network_give_equal_outputs_both_ways(
    keras, maker, recorded, assert_equal_outputs
):
    model = maker.keras_model()
    network = from_keras(model, device="cpu")
    x = recorded["x"]
    assert_equal_outputs(network.predict(x), outputs(model, x))
    assert_equal_outputs(network.predict(x), recorded["keras_y"])
    assert settings(network) == settings(gm.Sequential(*twin_layers(), device="cpu"))
    back = to_keras(network)
    assert_equal_outputs(outputs(back, x), recorded["keras_y"])
    assert settings(from_keras(back, device="cpu")) == settings(network)


def test_every_activation_goes_there_and_back(keras, activation, randomized, rows, assert_equal_outputs):
    network = randomized(gm.Sequential(gm.Linear(3, 5), activation, device="cpu"))
    if getattr(activation, "beta", 1) != 1:
        with pytest.raises(ValueError, match="has no like in Keras, whose softplus has beta 1"):
            to_keras(network)
        return
    model = to_keras(network)
    assert_equal_outputs(outputs(model, rows), network.predict(rows))
    back = from_keras(model, device="cpu")
    assert settings(back) == settings(network)


def test_keras_loads_our_archive_and_our_weights(keras, randomized, rows, tmp_path, assert_equal_outputs):
    network = randomized(gm.Sequential(*twin_layers(), device="cpu"))
    network[3].freeze()
    save_keras(network, tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras")
    assert_equal_outputs(outputs(model, rows), network.predict(rows))
    assert [layer.trainable for layer in model.layers] == [layer.trainable for layer in network.layers]
    other = randomized(gm.Sequential(*twin_layers(), device="cpu"), seed=3)
    save_keras_weights(other, tmp_path / "m.weights.h5")
    model.load_weights(tmp_path / "m.weights.h5")
    assert_equal_outputs(outputs(model, rows), other.predict(rows))


def test_the_weights_of_activations_within_dense_layers_are_the_same(
    keras, maker, randomized, rows, tmp_path, assert_equal_outputs
):
    """Keras's model has fewer layers; its file is laid out by kinds of layer, so that it fits."""
    model = maker.keras_model()
    network = randomized(gm.Sequential(*twin_layers(), device="cpu"))
    save_keras_weights(network, tmp_path / "m.weights.h5")
    model.load_weights(tmp_path / "m.weights.h5")
    assert_equal_outputs(outputs(model, rows), network.predict(rows))


def test_an_approximate_gelu_survives_keras_and_its_archive(
    keras, randomized, rows, tmp_path, assert_equal_outputs
):
    network = randomized(gm.Sequential(gm.Linear(3, 5), gm.GELU("tanh"), device="cpu"))
    model = to_keras(network)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert_equal_outputs(outputs(again, rows), network.predict(rows))
    assert repr(from_keras(tmp_path / "m.keras", device="cpu")[1]) == "GELU(approximate='tanh')"


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if ">" not in name])
def test_every_activation_by_name_has_the_settings_that_keras_gives_it(
    keras, name, rows, assert_equal_outputs
):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation=name)])
    network = from_keras(model, device="cpu")
    assert_equal_outputs(network.predict(rows), outputs(model, rows))


def test_the_gelu_of_keras_ops_is_the_approximate_one(keras, rows, assert_equal_outputs):
    """A configuration calls both "gelu"."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation=keras.ops.gelu)])
    network = from_keras(model, device="cpu")
    assert repr(network[1]) == "GELU(approximate='tanh')"
    assert_equal_outputs(network.predict(rows), outputs(model, rows))


def functional(keras):
    layers = keras.layers
    start = keras.Input((3,), name="start")
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, activation="relu"), layers.Dense(4)], name="in"
    )
    x = layers.BatchNormalization(name="zuerst")(start)
    x = inner(layers.Dense(6, activation="tanh", name="a")(x))
    return keras.Model(start, layers.Dense(2, activation=layers.LeakyReLU(0.1), name="last")(x))


def test_functional_models_and_models_within_are_taken_apart(keras, rows, tmp_path, assert_equal_outputs):
    model = functional(keras)
    network = from_keras(model, device="cpu")
    kinds = "BatchNorm1d Linear Tanh Linear ReLU Linear Linear LeakyReLU"
    assert [type(layer).__name__ for layer in network.layers] == kinds.split()
    assert_equal_outputs(network.predict(rows), outputs(model, rows))
    model.save(tmp_path / "m.keras")
    again = from_keras(tmp_path / "m.keras", device="cpu")
    np.testing.assert_array_equal(again.predict(rows), network.predict(rows))
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match=r"'sequential' of .* is a model within the model"):
        load_keras_weights(network, tmp_path / "m.weights.h5")


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
def test_live_models_that_are_no_chain_are_refused(keras):
    layers, start = keras.layers, keras.Input((3,))
    one, two = layers.Dense(4)(start), layers.Dense(4)(start)
    fork = keras.Model(start, layers.add([one, two]))
    dense = layers.Dense(3)
    shared = keras.Model(start, dense(dense(start)))
    outs = keras.Model(start, [one, layers.Dense(2)(one)])
    for model in (fork, shared, outs):
        with pytest.raises(ValueError, match="do not stand in a chain"):
            from_keras(model)
    with pytest.raises(ValueError, match=r"has no weights yet; call model\.build"):
        from_keras(keras.Sequential([layers.Dense(3)]))
    own = keras.Sequential([keras.Input((3,)), layers.Dense(3, activation=lambda x: x * x)])
    with pytest.raises(ValueError, match="lambda"):
        from_keras(own)


def test_a_normalisation_with_scale_or_shift_alone_gives_equal_outputs(
    keras, rows, maker, assert_equal_outputs
):
    layers = keras.layers
    for norm in (layers.LayerNormalization, layers.BatchNormalization):
        for setting in ("scale", "center"):
            model = keras.Sequential([keras.Input((3,)), norm(**{setting: False})])
            model.layers[0].set_weights(maker.values_like(model.layers[0].get_weights(), 6))
            network = from_keras(model, device="cpu")
            assert_equal_outputs(network.predict(rows), outputs(model, rows))


def test_losses_and_accuracies_equal_those_of_a_live_keras_model_to_four_decimals(keras, maker, recorded):
    """Report tnm112, task 2, with Keras training now, and the weights moved from the live model."""
    points = {name: recorded[name] for name in ("X_train", "y_train", "X_test", "y_test")}
    model = maker.clusters_model()
    scores = maker.train_on_clusters(model, points)

    def load(network):
        moved = without_output_activation(from_keras(model, device="cpu"))
        network.load_state_dict(moved.state_dict())

    assert_scores_of_keras(load, recorded, scores)


def test_a_stream_of_bytes_is_what_an_archive_holds(recorded_files):
    """The weights in the archive are those of the weight file, so that the two recorded files prove each other."""
    with zipfile.ZipFile(recorded_files / "keras_dense.keras") as archive:
        inner = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(inner) as one, h5py.File(recorded_files / "keras_dense.weights.h5") as two:
        a, b = visited(one), visited(two)
    assert set(a) == set(b)
    assert len(a) == 11 + 4 + 2 + 2  # six Dense, one of them without a bias; three normalisations
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])
