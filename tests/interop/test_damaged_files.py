"""Files that are cut short or damaged: one line, and the network stays as it was."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.interop import from_keras, import_onnx, load_keras_weights, load_safetensors

pytest.importorskip("h5py", reason="h5py is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")


def network() -> gm.Sequential:
    """The layers of Keras's recorded classifier."""
    layers = [gm.Linear(2, 8), gm.ReLU(), gm.Linear(8, 6), gm.Sigmoid(), gm.Linear(6, 5), gm.Linear(5, 2)]
    return gm.Sequential(*layers, device="cpu")


READERS: dict[str, Callable[[Path], object]] = {
    "keras_clusters.weights.h5": lambda path: load_keras_weights(network(), path),
    "keras_dense.keras": from_keras,
    "torch_dense.safetensors": lambda path: load_safetensors(network(), path),
    "torch_opset20.onnx": import_onnx,
}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_cut_short_is_refused_in_one_line(name, share, recorded_files, tmp_path):
    whole = (recorded_files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError) as caught:
        READERS[name](path)
    assert "\n" not in str(caught.value)


CONFIGS = {
    "nothing": {},
    "a list": [],
    "no layers": {"class_name": "Sequential", "config": {}},
    "a layer that is text": {"class_name": "Sequential", "config": {"layers": ["dense"]}},
    "no name": {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {}}]}},
    "a class of ones own": {"class_name": "MyModel", "config": {}},
    "an empty model": {"class_name": "Sequential", "config": {"layers": []}},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_of_another_form_is_refused(config, recorded_files, tmp_path):
    with (
        zipfile.ZipFile(recorded_files / "keras_dense.keras") as source,
        zipfile.ZipFile(tmp_path / "m.keras", "w") as archive,
    ):
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", source.read("model.weights.h5"))
    message = "not in the form of Keras 3|the model is a MyModel; expected|the model has no layers"
    with pytest.raises(ValueError, match=message):
        from_keras(tmp_path / "m.keras")


def test_a_dataset_in_place_of_a_group_is_refused(tmp_path):
    import h5py

    for place in ("layers", "layers/dense", "layers/dense/vars"):
        with h5py.File(tmp_path / "m.weights.h5", "w") as file:
            file[place] = np.ones(3)
        with pytest.raises(ValueError, match=r"damaged, or laid out in another way|has 0 variables"):
            load_keras_weights(network(), tmp_path / "m.weights.h5")
