"""gpumlp.config: keys, defaults, --set, and that everything of the library can be reached by name."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumlp.config import (
    SCHEMA,
    apply_settings,
    complete_config,
    config_toml,
    from_folder,
    read_config,
    shipped_config,
    shipped_configs,
)
from gpumlp.experiment import set_up
from gpumlp.initializers import INITIALIZERS
from gpumlp.layers import ACTIVATIONS, LAYERS
from gpumlp.losses import LOSSES
from gpumlp.metrics import METRICS
from gpumlp.optimizers import OPTIMIZERS
from gpumlp.schedules import SCHEDULES

# settings without a default, for things that are asked for by name
SCHEDULE_SETTINGS: dict[str, dict[str, Any]] = {
    "constant": {"lr": 0.1},
    "step": {"lr": 0.1, "every": 2},
    "exponential": {"lr": 0.1, "factor": 0.9, "every": 2},
    "cosine": {"lr": 0.1},
    "one_cycle": {"max_lr": 0.1},
    "inverse_scaling": {"lr": 0.1},
    "invscaling": {"lr": 0.1},
    "reduce_on_plateau": {"lr": 0.1},
}
INITIALIZER_SETTINGS: dict[str, dict[str, Any]] = {"constant": {"value": 0.5}}


def completed(*settings: str, **sections: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"data": {"source": "iris"}, **copy.deepcopy(sections)}
    apply_settings(config, settings)
    return complete_config(config)


def again(config: dict[str, Any]) -> dict[str, Any]:
    return complete_config(tomllib.loads(config_toml(config)))


def test_a_complete_config_is_its_own_completion():
    config = completed("training.loss=huber", "optimizer.lr.name=cosine", "optimizer.lr.lr=0.1")
    assert again(config) == config


def test_every_default_is_written_out():
    config = completed()
    assert set(config) == {"name", "data", "network", "training", "optimizer"}
    for section, keys in SCHEMA.items():
        assert set(config[section]) == set(keys)
    assert config["optimizer"]["beta1"] == 0.9
    assert config["optimizer"]["lr"] == 0.001
    assert config["network"]["weight_init"] == {"name": "glorot_uniform", "gain": 1.0}
    assert config["training"]["epochs"] == 100


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_reached_by_name(name):
    config = completed(optimizer={"name": name, "lr": 0.25})
    assert config["optimizer"]["name"] == name
    assert config["optimizer"]["lr"] == 0.25
    assert again(config) == config


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_reached_by_name(name):
    if name not in SCHEDULE_SETTINGS:
        pytest.fail(f"give schedule {name} the settings that it needs")
    config = completed(optimizer={"name": "sgd", "lr": {"name": name, **SCHEDULE_SETTINGS[name]}})
    assert again(config) == config


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_reached_by_name(name):
    config = completed(training={"loss": name})
    assert config["training"]["loss"]["name"] == name
    assert again(config) == config


@pytest.mark.parametrize("name", INITIALIZERS)
def test_every_initializer_is_reached_by_name(name):
    settings = INITIALIZER_SETTINGS.get(name, {})
    config = completed(network={"weight_init": {"name": name, **settings}, "bias_init": 0.1})
    assert config["network"]["bias_init"] == {"name": "constant", "value": 0.1}
    assert again(config) == config


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_reached_by_name(name):
    assert again(completed(network={"activation": name})) == completed(network={"activation": name})


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_reached_by_name(name):
    assert completed(training={"metrics": [name]})["training"]["metrics"] == [name]


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_reached_by_name_and_takes_its_widths_from_its_place(name):
    layer: dict[str, Any] = {"name": name, "trainable": False}
    if name == "linear":
        layer["out_features"] = 5
    if name == "per_unit":
        layer["units"] = ["relu"] * 5
    first = {"name": "linear", "out_features": 5}
    config = completed(network={"layers": [first, layer, {"name": "linear"}]})
    assert again(config) == config
    network = set_up(config).trainer.network
    assert (network.in_features, network[1].in_features, network.out_features) == (4, 5, 3)
    assert not network[1].trainable


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("training.epochs=3", 3),
        ("training.batch_size=full", "full"),
        ("training.batch_size='full'", "full"),
        ("network.hidden=[10, 10]", [10, 10]),
        ("training.shuffle=false", False),
        ("data.missing=median", "median"),
        ("data.missing=1.5", 1.5),
        ("training.validate_every=200 steps", "200 steps"),
    ],
)
def test_set_reads_values_as_toml_and_bare_words_as_text(setting, value):
    section, key = setting.partition("=")[0].split(".")
    assert completed(setting)[section][key] == value


def test_set_makes_a_table_of_a_name():
    config = completed("training.loss.label_smoothing=0.1", training={"loss": "cross_entropy"})
    assert config["training"]["loss"]["label_smoothing"] == 0.1


def test_set_reaches_into_a_list_of_layers():
    layers = [{"name": "linear", "out_features": 5}, {"name": "linear"}]
    config = completed("network.layers.0.out_features=7", network={"layers": layers})
    assert config["network"]["layers"][0]["out_features"] == 7


def test_set_of_layers_takes_the_place_of_hidden():
    config = completed("network.layers=[{name='linear'}]", network={"hidden": [3]})
    assert config["network"]["hidden"] is None


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=12))
def test_set_takes_any_text_or_says_what_is_wrong(text):
    config: dict[str, Any] = {}
    try:
        apply_settings(config, [f"data.target={text}"])
    except ValueError as error:
        found = str(error)
    else:
        found = f"data.{next(iter(config['data']))}"
    assert "data.target" in found


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trainin.epochs=3", r"unknown key 'trainin' in the config; did you mean 'training'\?"),
        ("training.epoch=3", r"unknown key training.epoch; did you mean 'epochs'\?"),
        ("optimizer.mometum=0.9", "unknown key optimizer.mometum"),
        ("optimizer.lr={name='step', evry=3}", r"unknown key optimizer.lr.evry; did you mean 'every'\?"),
        ("optimizer.name=adm", r"optimizer.name: unknown optimizer 'adm'; did you mean 'adam'\?"),
        ("optimizer.lr=-0.1", "optimizer.lr: lr is -0.1; expected a finite number"),
        ("optimizer.lr=nan", "optimizer.lr: lr is nan"),
        ("optimizer.lr=inf", "optimizer.lr: lr is inf"),
        ("optimizer.beta1=one", "optimizer.beta1 is 'one'; expected a number"),
        ("network.activation=rellu", r"network.activation.name: .* did you mean 'relu'\?"),
        ("network.weight_init={name='normal', sd=1}", "unknown key network.weight_init.sd"),
        ("network.hidden=[3, 0]", "network.hidden.1 is 0"),
        ("network.hidden=64", "network.hidden is 64; expected a list of widths"),
        ("network.dropout=1", "network.dropout is 1; expected a number of at least 0 and below 1"),
        ("network.layers=[{name='liner'}]", r"network.layers.0.name: .* did you mean 'linear'\?"),
        ("training.loss=mean_squared", "training.loss.name: unknown loss"),
        ("training.epochs=0", "training.epochs is 0"),
        ("training.epochs=2.5", "training.epochs is 2.5; expected a whole number"),
        ("training.epochs=true", "training.epochs is True; expected a whole number"),
        ("training.batch_size=0", "training.batch_size is 0"),
        ("training.batch_size=fulll", 'training.batch_size is \'fulll\'; expected .*"full"'),
        ("training.shuffle=maybe", "training.shuffle is 'maybe'; expected true or false"),
        ("training.dtype=float16", "training.dtype is 'float16'; did you mean 'float"),
        ("training.metrics=[\"acuracy\"]", r"training.metrics: .* did you mean 'accuracy'\?"),
        ("training.validate_every=3 stps", "training.validate_every"),
        ("training.early_stopping.patience=0", "training.early_stopping: patience is 0"),
        ("training.early_stopping.patence=2", r"unknown key .*patence; did you mean 'patience'\?"),
        ("training.early_stopping=true", "nothing is kept for validation; set training.validation_split"),
        ("data.missing=men", r"data.missing is 'men'; did you mean 'mean'\?"),
        ("data.task=classify", r"data.task is 'classify'; did you mean 'classification'\?"),
        ("name=a/b", "name is 'a/b'; expected text that can name a folder"),
        ("training=3", "training is 3; expected a table"),
        ("training.epochs", "--set got 'training.epochs'; expected key=value"),
        ("network.hidden=[3", "--set network.hidden: '\\[3' is not a value"),
        ("optimizer.lr.name.x=3", "optimizer.lr"),
    ],
)  # fmt: skip
def test_an_unknown_key_or_value_is_one_line_with_its_dotted_key(setting, said):
    with pytest.raises((ValueError, TypeError), match=said) as raised:
        completed(setting)
    assert "\n" not in str(raised.value)


def test_a_source_is_needed():
    with pytest.raises(ValueError, match=r"data\.source is missing"):
        complete_config({})


def test_settings_beside_layers_are_refused():
    with pytest.raises(ValueError, match=r"network\.dropout stands beside network\.layers"):
        completed(network={"dropout": 0.1, "layers": [{"name": "linear"}]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("[data\n", "is not TOML: .*line 1"),
        ("a = 1\na = 2\n", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, said):
    path = tmp_path / "c.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=said):
        read_config(path)
    with pytest.raises(ValueError, match="there is no config file"):
        read_config(tmp_path / "other.toml")


def test_paths_of_a_config_start_from_its_folder(tmp_path):
    (tmp_path / "c.toml").write_text("[data]\nsource = 'a/b.csv'\ndata_dir = 'mnist'\n")
    data = read_config(tmp_path / "c.toml")["data"]
    assert data == {"source": str(tmp_path / "a/b.csv"), "data_dir": str(tmp_path / "mnist")}


def test_names_of_data_sets_are_no_paths(tmp_path):
    config = {"data": {"source": "breast-cancer"}}
    from_folder(config, Path("/elsewhere"))
    assert config["data"]["source"] == "breast-cancer"


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_are_complete_and_valid(name):
    config = shipped_config(name)
    if name == "table":
        config["data"] = {"source": "iris"}
    assert again(complete_config(config)) == complete_config(config)


def test_the_mnist_config_is_that_of_report_4():
    config = complete_config(shipped_config("mnist"))
    training, network, optimizer = config["training"], config["network"], config["optimizer"]
    assert network["hidden"] == [500, 250, 100]
    assert (network["activation"], network["weight_init"]["name"]) == ("relu", "glorot_uniform")
    assert network["bias_init"] == {"name": "constant", "value": 0.0}
    assert (training["epochs"], training["batch_size"], training["loss"]["name"]) == (15, 64, "cross_entropy")
    assert (optimizer["name"], optimizer["lr"], optimizer["momentum"]) == ("sgd", 0.1, 0.0)
