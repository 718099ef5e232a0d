"""The layers of a Keras model in the order of the data, out of its configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .keras_files import numbered
from .keras_layers import snake_case

MODELS = ("Sequential", "Functional")


@dataclass
class Entry:
    """A layer of a Keras model: what its configuration says, and where it stands."""

    class_name: str
    config: Mapping[str, Any]
    names: tuple[str, ...]
    """Keras's names of the models around it and of the layer."""
    group: str
    """Its group in a weight file, below ``layers``."""

    @property
    def where(self) -> str:
        """What a message calls it."""
        return f"{'.'.join(self.names)!r} ({self.class_name})"


def input_width(entries: Sequence[Entry]) -> int | None:
    """How many features the model takes, where it says so.

    Raises:
        ValueError: rows of more than one axis that are not flattened first.
    """
    if not entries or entries[0].class_name != "InputLayer":
        return None
    config = entries[0].config
    shape = config.get("batch_shape", config.get("batch_input_shape")) or [None, None]
    if len(shape) != 2 and not (len(entries) > 1 and entries[1].class_name == "Flatten"):
        raise ValueError(
            f"the model takes rows of shape {tuple(shape[1:])}; expected (features,), or a Flatten first"
        )
    return None if None in shape[1:] else int(np.prod(shape[1:]))


def chain_of_layers(
    model: Mapping[str, Any], names: tuple[str, ...] = (), group: str = ""
) -> Iterator[Entry]:
    """The layers of a model in order; those of models within it in their place.

    Args:
        model: its configuration, as `to_json` and a ``.keras`` archive have it.
        names, group: of the model itself, where it stands in another one.

    Raises:
        ValueError: a model of a user's own class, or whose layers do not stand in a chain.
    """
    counts: Counter[str] = Counter()
    for spec in _chain(model):
        class_name, config = spec["class_name"], spec["config"]
        kind = snake_case(class_name)
        place = group + numbered(kind, counts[kind])
        counts[kind] += 1
        inner = (*names, config["name"])
        if class_name in MODELS:
            yield from chain_of_layers(spec, inner, f"{place}/layers/")
        else:
            yield Entry(class_name, config, inner, place)


def _chain(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layers of one model in the order of the data.

    Raises:
        ValueError: a model of a user's own class, or whose layers do not stand in a chain.
    """
    class_name, config = model["class_name"], model["config"]
    if class_name not in MODELS:
        raise ValueError(
            f"the model is a {class_name}; expected a Sequential or functional one (of a class of your own: make the "
            "network in gpumlp and move the values of its layers)"
        )
    layers = config["layers"]
    if class_name == "Sequential":
        return layers
    no_chain = ValueError(
        f"the layers of {config['name']!r} do not stand in a chain; expected each to take the output of the one before"
    )
    following: dict[str, Mapping[str, Any]] = {}
    starts = [spec for spec in layers if not spec["inbound_nodes"]]
    for spec in layers:
        sources = list(_sources(spec["inbound_nodes"]))
        if spec["inbound_nodes"] and (
            len(spec["inbound_nodes"]) > 1 or len(sources) != 1 or sources[0] in following
        ):
            raise no_chain
        following |= dict.fromkeys(sources, spec)
    chain = starts[:1]
    while chain and chain[-1]["config"]["name"] in following:
        chain.append(following.pop(chain[-1]["config"]["name"]))
    outputs = config["output_layers"]
    outputs = outputs if outputs and isinstance(outputs[0], list) else [outputs]
    if len(chain) != len(layers) or [output[0] for output in outputs] != [chain[-1]["config"]["name"]]:
        raise no_chain
    return chain


def _sources(node: Any) -> Iterator[str]:
    """The names of the layers whose outputs a layer takes."""
    if isinstance(node, Mapping) and node.get("class_name") == "__keras_tensor__":
        yield node["config"]["keras_history"][0]
    elif isinstance(node, Mapping | list):
        for inner in node.values() if isinstance(node, Mapping) else node:
            yield from _sources(inner)
