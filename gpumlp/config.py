"""The TOML config of a training: its keys, defaults and checks, ``--set key=value``, and the shipped configs.

A config has a ``name`` and the sections ``[data]``, ``[network]``, ``[training]`` and ``[optimizer]``.
`complete_config` checks all of it and writes out each default; what is left None is taken from the data when they are
read. Losses, optimizers, schedules, layers, activations and initializers stand in it by name, or as tables of a name
and settings.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from . import config_values as v
from .backend import PRECISIONS
from .callbacks import EarlyStopping
from .initializers import INITIALIZERS, get_initializer
from .layers import ACTIVATIONS, LAYERS, get_activation, layer_from_dict
from .loop import Every
from .losses import LOSSES, get_loss
from .metrics import get_metric
from .optimizers import OPTIMIZERS, get_optimizer
from .registry import call_with, nearest
from .schedules import SCHEDULES, get_schedule

Config = dict[str, Any]


# --- sections that are tables of a name and settings --------------------------------------------------------------


def _initializer(key: str, given: Any) -> Any:
    return v.named(key, given, "initializer", INITIALIZERS, get_initializer)


def _activation(key: str, given: Any) -> Any:
    return v.named(key, given, "activation", ACTIVATIONS, get_activation)


def _loss(key: str, given: Any) -> Any:
    return v.named(key, given, "loss", LOSSES, get_loss)


def _rate(key: str, given: Any) -> Any:
    return v.named(key, given, "schedule", SCHEDULES, get_schedule)


def _optimizer(key: str, given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        given = dict({"name": "adam"}, **given)
        if "lr" in given:
            given["lr"] = _rate(f"{key}.lr", given["lr"])
    settings: Config = v.named(key, given, "optimizer", OPTIMIZERS, get_optimizer)
    if settings["lr"]["name"] == "constant":
        settings["lr"] = settings["lr"]["lr"]
    return settings


_LAYER_PARTS: dict[str, Callable[[str, Any], Any]] = {
    "weight_init": _initializer,
    "bias_init": _initializer,
}
# what the layer before, or the data, decide where it is left out
WIDTHS = ("in_features", "out_features", "normalized_features", "num_features")


def _layers(key: str, given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        raise ValueError(f"{key} is {given!r}; expected tables [[{key}]], one for each layer")
    return [_layer(f"{key}.{i}", layer) for i, layer in enumerate(given)]


def _layer(key: str, given: Any) -> dict[str, Any]:
    """Check a layer's table with stand-ins for the widths that it leaves out; return it with its defaults."""
    settings = {"name": given} if isinstance(given, str) else v.table(key, given)
    trainable = v.flag(f"{key}.trainable", settings.pop("trainable", True))
    for part, check in _LAYER_PARTS.items():
        if part in settings:
            settings[part] = check(f"{key}.{part}", settings[part])
    factory = v.known_factory(key, settings, "layer", LAYERS)
    takes = inspect.signature(factory).parameters
    left_out = [width for width in WIDTHS if width in takes and width not in settings]
    full = v.named(key, {**settings, **dict.fromkeys(left_out, 1)}, "layer", LAYERS, layer_from_dict)
    full = {"name": full} if isinstance(full, str) else full
    kept = {name: value for name, value in full.items() if name not in left_out}
    return kept if trainable else {**kept, "trainable": False}


def _early_stopping(key: str, given: Any) -> dict[str, Any] | None:
    if isinstance(given, bool):
        given = {} if given else None
    if given is None:
        return None
    settings = v.table(key, given)
    parameters = inspect.signature(EarlyStopping).parameters
    v.check_settings(key, settings, parameters)
    with v.at(key):
        call_with("early stopping", EarlyStopping, settings)
    return {name: settings.get(name, p.default) for name, p in parameters.items()}


def _metrics(key: str, given: Any) -> list[str]:
    with v.at(key):
        return [get_metric(name).name for name in v.texts(key, given)]


def _every(key: str, given: Any) -> int | str:
    with v.at(key):
        Every.parse(given)
    return given


# --- the schema: key -> (check, default); a default of None is left open --------------------------------------------

SCHEMA: dict[str, dict[str, tuple[Callable[[str, Any], Any], Any]]] = {
    "data": {
        "source": (v.text, v.REQUIRED),
        "test_source": (v.text, None),
        "target": (v.target, None),
        "task": (v.choice("classification", "regression"), None),
        "drop": (v.texts, []),
        "delimiter": (v.text, ","),
        "data_dir": (v.text, None),
        "settings": (v.table, {}),
        "test_size": (v.number(0), None),
        "seed": (v.whole(0, 2**32 - 1), 0),
        "stratify": (v.flag, True),
        "standardize": (v.flag, None),
        "standardize_target": (v.flag, None),
        "missing": (v.missing, "refuse"),
        "unknown": (v.choice("error", "ignore"), "error"),
        "scale": (v.number(0, above=True), 1.0),
    },
    "network": {
        "hidden": (v.widths, None),
        "layers": (_layers, None),
        "activation": (_activation, "relu"),
        "output_activation": (_activation, None),
        "dropout": (v.number(0, 1), 0.0),
        "weight_init": (_initializer, "glorot_uniform"),
        "bias_init": (_initializer, "zeros"),
    },
    "training": {
        "loss": (_loss, None),
        "epochs": (v.whole(1), 100),
        "batch_size": (v.batch_size, 32),
        "validation_split": (v.number(0, 1), 0.0),
        "validate_every": (_every, 1),
        "shuffle": (v.flag, True),
        "seed": (v.whole(0, 2**32 - 1), 0),
        "dtype": (v.choice("float32", "float64"), "float32"),
        "device": (v.text, "auto"),
        "threads": (v.whole(1), None),
        "precision": (v.choice(*PRECISIONS), "float32"),
        "metrics": (_metrics, None),
        "train_metrics": (v.flag, False),
        "early_stopping": (_early_stopping, None),
    },
}
KEYS = ("name", *SCHEMA, "optimizer")


def complete_config(given: Mapping[str, Any]) -> Config:
    """Return a config with every key checked and every default written out.

    Raises:
        ValueError: an unknown key or value, with its dotted key and the nearest valid one; a source or layers that
            are missing; settings that do not go together.
        TypeError: a value of another type.
    """
    unknown = next((key for key in given if key not in KEYS), None)
    if unknown is not None:
        raise ValueError(f"unknown key {unknown!r} in the config{nearest(unknown, KEYS)}")
    config: Config = {"name": v.name("name", given.get("name", "run"))}
    for section, keys in SCHEMA.items():
        config[section] = _section(section, v.table(section, given.get(section, {})), keys)
    config["optimizer"] = _optimizer("optimizer", given.get("optimizer", {}))
    _check_network(config["network"], given.get("network", {}))
    _check_early_stopping(config["training"])
    return config


def _section(
    section: str, given: Config, keys: Mapping[str, tuple[Callable[[str, Any], Any], Any]]
) -> Config:
    for key in given:
        if key not in keys:
            raise ValueError(f"unknown key {section}.{key}{nearest(key, keys)}")
    values = {}
    for key, (check, default) in keys.items():
        if key not in given:
            if default is v.REQUIRED:
                raise ValueError(
                    f"{section}.{key} is missing; name a data set or a file, for example --set {section}.{key}=iris"
                )
            values[key] = check(f"{section}.{key}", default) if default is not None else None
        else:
            values[key] = check(f"{section}.{key}", given[key])
    return values


def _check_network(network: Config, given: Mapping[str, Any]) -> None:
    if network["layers"] is None:
        network["hidden"] = [] if network["hidden"] is None else network["hidden"]
        return
    other = next((key for key in given if key != "layers"), None)
    if other is not None:
        raise ValueError(f"network.{other} stands beside network.layers; the layers say it all: leave it out")
    for key in network:
        if key != "layers":
            network[key] = None


def _check_early_stopping(training: Config) -> None:
    stopping = training["early_stopping"]
    if stopping and stopping["monitor"].startswith("val_") and not training["validation_split"]:
        raise ValueError(
            f"training.early_stopping monitors {stopping['monitor']!r}, and nothing is kept for validation; "
            "set training.validation_split, for example to 0.1"
        )


# --- reading ------------------------------------------------------------------------------------------------------


def shipped_configs() -> list[str]:
    """Return the names of the configs that come with gpumlp."""
    folder = resources.files("gpumlp") / "configs"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def shipped_config(name: str) -> Config:
    """Return a shipped config by its name, as it stands in its file."""
    text = (resources.files("gpumlp") / "configs" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def read_config(path: str | Path) -> Config:
    """Return a config file as it stands, unchecked; its paths are taken from the file's folder.

    Raises:
        ValueError: no such file, no UTF-8, or no TOML; the message has the line.
    """
    path = Path(path)
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"there is no config file {path}; check the path") from None
    except IsADirectoryError:
        raise ValueError(
            f"{path} is a folder; expected a config file, such as {path / 'config.toml'}"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}; mend that line") from None
    if not config:
        raise ValueError(
            f"{path} is empty; expected [data] with a source, [network], [training], [optimizer]"
        )
    config.setdefault("name", re.sub(r"[^\w.-]", "-", path.stem))
    from_folder(config, path.parent)
    return config


def from_folder(config: Config, folder: Path) -> None:
    """Make the paths of the data, where they are relative ones, start from `folder`."""
    from .data import dataset_name

    data = config.get("data")
    if not isinstance(data, dict):
        return
    for key in ("source", "test_source", "data_dir"):
        value = data.get(key)
        if not isinstance(value, str) or not value or not _is_path(key, value):
            continue
        if key == "data_dir" or dataset_name(value) is None:
            data[key] = str((folder / Path(value).expanduser()).absolute())


def _is_path(key: str, value: str) -> bool:
    path = Path(value)
    return key == "data_dir" or path.suffix != "" or len(path.parts) > 1 or value.startswith("~")


def apply_settings(config: Config, settings: Iterable[str]) -> None:
    """Put ``key=value`` settings into a config, in place: dotted keys, values as TOML, a bare word as text.

    Raises:
        ValueError: a setting without ``=``, a value that is no TOML, or a key below one that is no table.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ValueError(
                f"--set got {setting!r}; expected key=value, for example --set optimizer.lr=0.05"
            )
        put_setting(config, key, setting_value(key, text.strip()))


def put_setting(config: Config, key: str, value: Any) -> None:
    """Put a value into a config, in place, under a dotted key, such as ``"optimizer.lr"``.

    Raises:
        ValueError: a key below one that is no table.
    """
    if key == "network.layers":  # they say all of a network, and so take the place of what was there
        config["network"] = {}
    _put(config, key.split("."), value, key)


def setting_value(key: str, text: str) -> Any:
    """Return the value of a setting from the text behind its ``=``: TOML, or a bare word as text.

    Raises:
        ValueError: a text that begins as TOML and is none, or nothing at all.
    """
    try:
        parsed = tomllib.loads(f"value = {text}")
        if list(parsed) == ["value"]:
            return parsed["value"]
    except tomllib.TOMLDecodeError as error:
        if not text or text[0] in "[{\"'":
            raise ValueError(
                f"--set {key}: {text!r} is not a value ({error}); expected one such as 0.05, [64, 64] or relu"
            ) from None
    return text


def _put(config: Config, parts: Sequence[str], value: Any, key: str) -> None:
    table: Any = config
    for i, part in enumerate(parts[:-1]):
        below = _get(table, part, key)
        # a name alone is a table with that name
        if below is None or isinstance(below, str):
            below = {} if below is None else {"name": below}
            _set(table, part, below, key)
        if not isinstance(below, dict | list):
            raise ValueError(
                f"--set {key}: {'.'.join(parts[: i + 1])} is {below!r}, not a table; set it as a whole"
            )
        table = below
    _set(table, parts[-1], value, key)


def _get(table: Any, part: str, key: str) -> Any:
    return table.get(part) if isinstance(table, dict) else table[_index(table, part, key)]


def _set(table: Any, part: str, value: Any, key: str) -> None:
    if isinstance(table, dict):
        table[part] = value
    else:
        table[_index(table, part, key)] = value


def _index(values: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(values):
        raise ValueError(f"--set {key}: expected a number from 0 to {len(values) - 1} in place of {part!r}")
    return int(part)


# --- writing ------------------------------------------------------------------------------------------------------


def config_toml(config: Mapping[str, Any]) -> str:
    """Return a config as TOML; what is None is left out."""
    import tomli_w

    return tomli_w.dumps(without_none(config))


def without_none(value: Any) -> Any:
    """Return a config, or a part of one, without what is None: as it may be completed again."""
    if isinstance(value, Mapping):
        return {str(k): without_none(item) for k, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_none(item) for item in value]
    return value
