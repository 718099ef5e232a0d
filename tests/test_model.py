"""gpumlp.model: a trained network with the meaning of its inputs and outputs, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

import gpumlp as gm
from gpumlp.checkpoint import load_tensors, save_tensors
from gpumlp.data import Preprocessor, TargetScaler
from gpumlp.losses import LOSSES, get_loss

RNG = np.random.default_rng(4)
X = RNG.normal(2.0, 3.0, size=(60, 4)).astype(np.float32)
LABELS = (X[:, 0] - X[:, 1] > 0).astype(int) + (X[:, 2] > 4)
NAMES = ["ant", "bée", "cat"]
Y = (100 + 20 * X[:, 0]).astype(np.float32)


def every_layer() -> gm.Sequential:
    layers = [
        gm.Linear(4, 6, weight_init={"name": "he_normal"}, bias_init=0.1), gm.BatchNorm1d(6, momentum=0.2), gm.ReLU(),
        gm.Linear(6, 6, bias=False).freeze(), gm.LeakyReLU(0.2), gm.Dropout(0.2), gm.GaussianNoise(0.1), gm.ELU(0.5),
        gm.SELU(), gm.GELU(), gm.SiLU(), gm.Mish(), gm.Softplus(2.0), gm.LayerNorm(6, affine=False), gm.Tanh(),
        gm.BatchNorm1d(6, affine=False).freeze(), gm.PerUnit(["relu", "tanh", "sigmoid"] * 2), gm.Sigmoid(),
        gm.Identity(), gm.Linear(6, 3),
    ]  # fmt: skip
    return gm.Sequential(*layers, seed=3, device="cpu")


def trained(network: gm.Sequential | None = None, y: Any = None, loss: Any = "cross_entropy") -> gm.Trainer:
    trainer = gm.Trainer(every_layer() if network is None else network, loss=loss, optimizer=gm.Adam(0.01))
    trainer.fit(X, np.array(NAMES)[LABELS] if y is None else y, epochs=3, batch_size=16, progress=False)
    return trainer


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loaded_model_predicts_the_same_bits(tmp_path, dtype):
    trainer = trained(every_layer().to(dtype=dtype))
    path = tmp_path / "model.safetensors"
    trainer.save(path)
    model = gm.load_model(path, device="cpu")
    np.testing.assert_array_equal(model.predict(X), trainer.predict(X))
    assert model.predict(X).dtype == dtype
    np.testing.assert_array_equal(model.predict_classes(X), trainer.predict_classes(X))
    assert set(model.predict_classes(X)) <= set(NAMES)
    assert model.classes == NAMES
    assert model.is_classifier
    assert model.n_classes == 3


def test_a_loaded_network_has_the_same_layers_values_and_flags(tmp_path):
    trainer = trained()
    trainer.save(tmp_path / "model")
    network = gm.load_model(tmp_path / "model").network
    assert repr(network) == repr(trainer.network)
    assert network.to_dict() == trainer.network.to_dict()
    assert [layer.trainable for layer in network.layers] == [
        layer.trainable for layer in trainer.network.layers
    ]
    assert sum(not layer.trainable for layer in network.layers) == 2
    values = network.state_dict()
    for name, value in trainer.network.state_dict().items():
        np.testing.assert_array_equal(values[name], value)
        assert values[name].dtype == value.dtype


def test_a_loaded_network_trains_on_with_its_frozen_layers(tmp_path):
    trainer = trained()
    trainer.save(tmp_path / "model")
    model = gm.load_model(tmp_path / "model")
    before = model.network.state_dict()
    gm.Trainer(model.network, loss=model.loss).fit(X, LABELS, epochs=1, progress=False)
    after = model.network.state_dict()
    still = {name for name in before if (before[name] == after[name]).all()}
    assert still == {"3.weight", "15.running_mean", "15.running_var"}
    assert (model.predict(X) != trainer.predict(X)).any()  # a model sees its network as it is


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_comes_back_with_the_model(tmp_path, name):
    settings: dict[str, Any] = {"reduction": "sum"}
    if get_loss(name).is_classification:
        settings["class_weight"] = [1.0, 2.0, 3.0]
    if name == "cross_entropy":
        settings["label_smoothing"] = 0.1
    loss = get_loss({"name": name, **settings})
    gm.Model(every_layer(), loss).save(tmp_path / "model")
    loaded = gm.load_model(tmp_path / "model").loss
    assert type(loaded) is type(loss)
    assert loaded.to_dict() == loss.to_dict()


# ---- tables in, units out ----


def test_a_preprocessor_turns_tables_into_inputs_by_name_after_loading_too(tmp_path):
    colours = np.array(["red", "green", "blue"])[np.arange(60) % 3]
    table = pa.table({"a": X[:, 0], "colour": colours, "b": X[:, 1]})
    prep = Preprocessor().fit(table)
    inputs = prep.transform(table)
    assert inputs.shape == (60, 5)
    network = gm.mlp((5, 6, 3), device="cpu")
    trainer = gm.Trainer(network, loss="cross_entropy")
    trainer.fit(inputs, LABELS, epochs=2, progress=False)
    model = gm.Model(network, trainer.loss, NAMES, preprocessor=prep, target_names=["animal"])
    np.testing.assert_array_equal(model.predict(table), trainer.predict(inputs))
    model.save(tmp_path / "model")
    loaded = gm.load_model(tmp_path / "model", device="cpu")
    turned = pa.table({"b": X[:, 1], "extra": X[:, 2], "colour": colours, "a": X[:, 0]})
    np.testing.assert_array_equal(loaded.predict(turned), trainer.predict(inputs))
    np.testing.assert_array_equal(
        loaded.predict_classes(turned), np.array(NAMES)[trainer.predict_classes(inputs)]
    )
    assert loaded.target_names == ["animal"]
    with pytest.raises(ValueError, match="colour") as error:
        loaded.predict(turned.drop_columns(["colour"]))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="array") as error:
        loaded.predict(X)
    assert "\n" not in str(error.value)


def test_a_preprocessor_of_arrays_refuses_another_number_of_features(tmp_path):
    prep = Preprocessor().fit(X)
    model = gm.Model(gm.mlp((4, 3), device="cpu"), get_loss("cross_entropy"), preprocessor=prep)
    model.save(tmp_path / "model")
    loaded = gm.load_model(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    np.testing.assert_array_equal(
        loaded.predict(X), gm.Trainer(model.network, loss="cross_entropy").predict(prep.transform(X))
    )
    with pytest.raises(ValueError, match="the array has 3 features; the model was trained on 4"):
        loaded.predict(X[:, :3])


def test_predictions_are_in_the_units_of_the_target_after_loading_too(tmp_path):
    scaler = TargetScaler.fit(Y)
    network = gm.mlp((4, 1), device="cpu")
    inputs = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    trainer = gm.Trainer(network, loss="mse", optimizer=gm.Adam(0.05))
    trainer.fit(inputs, scaler.transform(Y), epochs=200, batch_size=None, progress=False)
    model = gm.Model(network, trainer.loss, target_scaler=scaler, target_names=["price"])
    np.testing.assert_allclose(model.predict(inputs)[:, 0], Y, atol=1.0)
    np.testing.assert_array_equal(model.predict(inputs), scaler.inverse(trainer.predict(inputs)))
    model.save(tmp_path / "model")
    loaded = gm.load_model(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(inputs), model.predict(inputs))
    assert not loaded.is_classifier
    with pytest.raises(ValueError, match="there are no classes; use predict"):
        loaded.predict_classes(inputs)


# ---- what a file cannot hold ----


class Doubling(gm.Layer):
    def forward(self, x):
        return 2 * x

    def backward(self, dy):
        return 2 * dy


def test_a_layer_of_ones_own_is_refused_in_one_line_and_nothing_is_written(tmp_path):
    trainer = trained(gm.Sequential(gm.Linear(4, 3), Doubling(), device="cpu"))
    path = tmp_path / "model.safetensors"
    with pytest.raises(
        ValueError, match="Doubling is a layer of your own, which a file cannot describe"
    ) as error:
        trainer.save(path)
    assert "\n" not in str(error.value)
    assert "state_dict()" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_an_old_file_whole(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"old")
    trained().save(path)
    assert gm.load_model(path).classes == NAMES
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    trained(gm.mlp((4, 5, 3), device="cpu")).save(path)
    return path


def changed(path: Path, change: Any) -> None:
    """Write the file anew, checksum and all, with other contents."""
    tensors, metadata = load_tensors(path)
    change(tensors, metadata)
    save_tensors(path, tensors, metadata)


def set_layer(field: str, value: Any) -> Any:
    return lambda tensors, metadata: metadata["network"]["layers"][0].update({field: value})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


FOREIGN = {
    "missing": (lambda path: path.unlink(), "no model file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated or damaged"),
    "cut in its header": (lambda path: path.write_bytes(path.read_bytes()[:40]), "truncated"),
    "text": (lambda path: path.write_text("epoch,loss\n1,2\n3,4\n"), "not a safetensors file"),
    "pickle": (lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(50)), "not a safetensors file"),
    "another program's": (lambda path: save_file({"w": X}, path), "not one that gpumlp saved"),
    "a changed byte": (
        lambda path: flip(path),
        "checksum does not fit",
    ),
    "another kind": (lambda path: changed(path, lambda t, m: m.update(kind="state")), "a gpumlp file, but not a model"),
    "no kind": (lambda path: changed(path, lambda t, m: m.pop("kind")), "a gpumlp file, but not a model"),
    "a tensor too few": (lambda path: changed(path, lambda t, m: t.pop("0.bias")), "missing ['0.bias']"),
    "a tensor too many": (lambda path: changed(path, lambda t, m: t.update(x=X)), "unknown ['x']"),
    "another shape": (lambda path: changed(path, lambda t, m: t.update({"0.bias": X})), "0.bias of shape (60, 4)"),
    "an unknown layer": (lambda path: changed(path, set_layer("name", "linar")), "unknown layer 'linar'"),
    "an unknown setting": (lambda path: changed(path, set_layer("color", 1)), "unknown setting 'color'"),
    "no network": (lambda path: changed(path, lambda t, m: m.pop("network")), "network"),
    "a network of text": (lambda path: changed(path, lambda t, m: m.update(network="mlp")), "does not describe"),
    "an unknown loss": (lambda path: changed(path, lambda t, m: m.update(loss={"name": "l2"})), "unknown loss 'l2'"),
    "a damaged scaler": (
        lambda path: changed(path, lambda t, m: m.update(target_scaler={"mean": 1})), "not a target scaler",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", FOREIGN)
def test_a_file_that_is_no_model_is_refused_in_one_line_that_names_it(saved, damage):
    damaging, message = FOREIGN[damage]
    damaging(saved)
    with pytest.raises(ValueError) as error:
        gm.load_model(saved)
    assert message in str(error.value)
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder; give the model file in it"):
        gm.load_model(tmp_path)


def test_a_device_that_is_not_there_is_not_blamed_on_the_file(tmp_path):
    trainer = gm.Trainer(gm.mlp((2, 3), device="cpu"), loss="cross_entropy")
    trainer.fit(np.eye(2).repeat(4, 0), np.arange(8) % 3, epochs=1, batch_size=None, progress=False)
    trainer.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"^unknown device 'tpu'"):
        gm.load_model(tmp_path / "model.safetensors", device="tpu")
