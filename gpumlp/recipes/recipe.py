"""Recipes: a report's parts, their settings in the form of `gpumlp train`, and the claims with their rules.

A recipe is a folder with ``recipe.toml``, and, where TOML cannot say all, ``parts.py`` with functions for parts of kind
"python" and for figures.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import SCHEMA, Config, complete_config, from_folder
from ..config_values import at, is_number
from ..registry import nearest
from .rules import AGGREGATES, Rule

RECIPES = ("sdm274", "tnm112", "upf", "ee6132", "mlpnn")
"""The shipped recipes, in the order of `gpumlp reproduce`."""

KINDS = ("train", "compare", "seeds", "sweep", "cross_validate", "python")

_SETTINGS = (*SCHEMA, "optimizer")
_RECIPE_KEYS = ("title", "source", "version", "settings", "quick", "parts")
_PART_KEYS = (
    "id", "title", "text", "kind", "base", "settings", "options", "figures", "quick", "seconds", "quick_seconds",
    "needs", "claims",
)  # fmt: skip
_CLAIM_KEYS = ("what", "value", "values", "of", "published", "unit", "rule", "quick", "fault", "note")


@dataclass(frozen=True)
class Claim:
    """One published figure, where ours is found, and the rule that compares them.

    Attributes:
        what: in words: "test accuracy".
        keys: of the part's values, or "PART:key" of another part's, one figure each.
        of: how a figure that is a list becomes one number; None takes it as it is.
        published: number, numbers or text; None where nothing was published.
        unit: of both.
        rule: None shows both figures and judges nothing.
        judged_quick: whether a quick run can show it.
        fault: why it cannot hold, where the report's own code is at fault; "" elsewhere.
        note: one sentence to the reader.
    """

    what: str
    keys: tuple[str, ...]
    of: str | None = None
    published: Any = None
    unit: str = ""
    rule: Rule | None = None
    judged_quick: bool = False
    fault: str = ""
    note: str = ""

    @classmethod
    def from_dict(cls, key: str, given: Mapping[str, Any]) -> Claim:
        """Return the claim that a table says.

        Raises:
            ValueError: keys or values that are none of a claim.
        """
        _known_keys(key, given, _CLAIM_KEYS)
        keys = given.get("values", [given["value"]] if "value" in given else [])
        if not keys or ("value" in given) == ("values" in given):
            raise ValueError(f"{key} needs value or values: where ours stands among the part's values")
        of = given.get("of")
        if of is not None and of not in AGGREGATES:
            raise ValueError(f"{key}.of is {of!r}{nearest(of, AGGREGATES)}")
        with at(f"{key}.rule"):
            rule = Rule(given["rule"]) if "rule" in given else None
            if rule is not None and rule.needs_published and not is_number(given.get("published")):
                raise ValueError(f"{rule.form} compares with a published number; give published")
        return cls(
            _text(key, given, "what"), tuple(keys), of, given.get("published"), given.get("unit", ""), rule,
            given.get("quick", False), given.get("fault", ""), given.get("note", ""),
        )  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One thing that a report did.

    Attributes:
        id: names its files; letters, digits and hyphens.
        title: a line.
        text: what was done, for the page.
        kind: one of `KINDS`.
        settings: config of `gpumlp train`, not complete; paths from the recipe's folder. {} for a part of kind
            "python" that trains nothing, or makes its configs itself.
        options: of the kind.
        figures: names of what to draw, and settings of it.
        quick: overrides for a quick run: sections of the config, and "options".
        seconds, quick_seconds: about, on two cores.
        needs: ids of parts whose outcomes it reads.
        claims: published figures.
    """

    id: str
    title: str
    kind: str
    text: str = ""
    settings: Config = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[Any] = ()
    quick: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 10.0
    quick_seconds: float = 2.0
    needs: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def uses_functions(self) -> bool:
        """Whether functions of ``parts.py`` take part in it."""
        drawn = any(isinstance(figure, Mapping) and "python" in figure for figure in self.figures)
        return self.kind == "python" or "after" in self.options or drawn

    def raw_config(self, quick: bool) -> Config:
        """Return the settings as the recipe gives them, quick overrides put in."""
        changes = {k: v for k, v in self.quick.items() if k != "options"} if quick else {}
        return {"name": self.id, **merged(self.settings, changes)} if self.settings else {}

    def options_for(self, quick: bool) -> dict[str, Any]:
        """Return the options, quick overrides put in."""
        return merged(self.options, self.quick.get("options", {}) if quick else {})


@dataclass(frozen=True)
class Recipe:
    """A report as it is reproduced.

    Attributes:
        name: of the report.
        title: a line.
        source: what the report is, in our words; paragraphs.
        version: part of what decides whether a kept outcome is still good.
        parts: in their order.
        folder: of its files.
    """

    name: str
    title: str
    source: str
    version: int
    parts: tuple[Part, ...]
    folder: Path

    @property
    def packages(self) -> tuple[str, ...]:
        """Names of the packages whose errors are messages to the user."""
        return "gpumlp", "kernels", _module_name(self.folder)

    def part(self, id: str) -> Part:
        """Return a part by its id.

        Raises:
            ValueError: no such part.
        """
        found = next((part for part in self.parts if part.id == id), None)
        if found is None:
            raise ValueError(f"{self.name} has no part {id!r}{nearest(id, [part.id for part in self.parts])}")
        return found

    def config(
        self, part: Part, quick: bool = False, device: str | None = None, data_dir: str | None = None
    ) -> Config:
        """Return a part's complete config, or {} where it has none.

        Raises:
            ValueError, TypeError: settings that are none.
        """
        config = copy.deepcopy(part.raw_config(quick))
        if not config:
            return config
        return self.complete(config, f"{self.name}.{part.id}", device, data_dir)

    def complete(
        self, config: Config, key: str = "", device: str | None = None, data_dir: str | None = None
    ) -> Config:
        """Return a config complete, its paths from the recipe's folder, the device and folder of MNIST put in."""
        config = copy.deepcopy(config)
        from_folder(config, self.folder)
        if device is not None:
            config.setdefault("training", {})["device"] = device
        if data_dir is not None and config.get("data", {}).get("source") == "mnist":
            config["data"]["data_dir"] = data_dir
        with at(key or self.name):
            return complete_config(config)

    def key(self, part: Part, quick: bool, device: str) -> str:
        """Return the hash of all that decides what a part gives.

        That is its settings and options, the version, ``parts.py`` where it uses it, and the same of what it needs.
        """
        said = {
            "version": self.version,
            "kind": part.kind,
            "settings": part.raw_config(quick),
            "options": part.options_for(quick),
            "figures": list(part.figures),
            "quick": quick,
            "device": device,
            "functions": self._functions_hash() if part.uses_functions else "",
            "needs": [self.key(self.part(id), quick, device) for id in part.needs],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    def _functions_hash(self) -> str:
        path = self.folder / "parts.py"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""

    def function(self, name: str) -> Any:
        """Return a function of the recipe's ``parts.py``.

        Raises:
            ValueError: no such function.
        """
        if self.name in RECIPES and self.folder == _shipped_folder(self.name):
            module = importlib.import_module(f"gpumlp.recipes.{self.name}.parts")
        else:
            module = _module_of(self.folder / "parts.py")
        if not callable(getattr(module, name, None)):
            raise ValueError(f"{self.name}: parts.py has no function {name!r}; add it, or name another one")
        return getattr(module, name)


def load_recipe(name: str | Path) -> Recipe:
    """Return a shipped recipe by its name, or one from a folder with a ``recipe.toml``.

    Raises:
        ValueError: no such recipe, or one that says what no recipe can.
    """
    if str(name) in RECIPES:
        folder = _shipped_folder(str(name))
    elif (Path(name) / "recipe.toml").is_file():
        folder = Path(name).absolute()
    else:
        raise ValueError(
            f"unknown report {str(name)!r}{nearest(name, RECIPES)} (or a folder with a recipe.toml)"
        )
    path = folder / "recipe.toml"
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, FileNotFoundError) as error:
        raise ValueError(f"{path} is not a recipe: {error}") from None
    with at(folder.name):
        return _recipe(given, folder)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of both, a key of `above` before the same key of `below`."""
    result = copy.deepcopy(dict(below))
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both and old is not None else copy.deepcopy(value)
    return result


# --- reading ------------------------------------------------------------------------------------------------------


def _recipe(given: Mapping[str, Any], folder: Path) -> Recipe:
    _known_keys("", given, _RECIPE_KEYS)
    bases = given.get("settings", {})
    parts: list[Part] = []
    for i, table in enumerate(given.get("parts", [])):
        part = _part(f"parts.{i}", table, bases, given.get("quick", {}))
        if part.id in {other.id for other in parts}:
            raise ValueError(f"parts.{i}.id is {part.id!r}, as that of another part; give each its own")
        unknown = [id for id in part.needs if id not in {other.id for other in parts}]
        if unknown:
            raise ValueError(f"parts.{i}.needs has {unknown[0]!r}, which is no part above it")
        parts.append(part)
    if not parts:
        raise ValueError("a recipe has at least one part; add [[parts]]")
    return Recipe(
        folder.name, _text("", given, "title"), _text("", given, "source"), given.get("version", 1), tuple(parts),
        folder,
    )  # fmt: skip


def _part(key: str, given: Mapping[str, Any], bases: Mapping[str, Any], quick: Mapping[str, Any]) -> Part:
    _known_keys(key, given, _PART_KEYS)
    id = _text(key, given, "id")
    if not id.replace("-", "").isalnum() or not id.isascii():
        raise ValueError(f"{key}.id is {id!r}; expected letters, digits and hyphens")
    kind = given.get("kind", "train")
    if kind not in KINDS:
        raise ValueError(f"{key}.kind is {kind!r}{nearest(kind, KINDS)}")
    settings: Config = {}
    for base in given.get("base", []) if isinstance(given.get("base", []), list) else [given["base"]]:
        if base not in bases:
            raise ValueError(f"{key}.base is {base!r}{nearest(base, bases)}")
        settings = merged(settings, bases[base])
    settings = merged(settings, given.get("settings", {}))
    if not settings and kind != "python":
        raise ValueError(f"{key} has no settings; a part of kind {kind} needs them, its own or a base")
    own = merged(quick, given.get("quick", {}))
    _known_keys(f"{key}.quick", own, (*_SETTINGS, "options"))
    if not settings:
        own = {k: v for k, v in own.items() if k == "options"}
    claims = [Claim.from_dict(f"{key}.claims.{i}", c) for i, c in enumerate(given.get("claims", []))]
    return Part(
        id, _text(key, given, "title"), kind, given.get("text", ""), settings, given.get("options", {}),
        tuple(given.get("figures", ())), own, float(given.get("seconds", 10.0)),
        float(given.get("quick_seconds", 2.0)), tuple(given.get("needs", ())), tuple(claims),
    )  # fmt: skip


def _known_keys(key: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = next((k for k in given if k not in known), None)
    if unknown is not None:
        raise ValueError(f"unknown key {f'{key}.{unknown}'.lstrip('.')}{nearest(unknown, known)}")


def _text(key: str, given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{f'{key}.{name}'.lstrip('.')} is {value!r}; expected text")
    return value


def _shipped_folder(name: str) -> Path:
    return Path(__file__).parent / name


def _module_name(folder: Path) -> str:
    return "gpumlp_recipe_" + "".join(c if c.isalnum() else "_" for c in folder.name)


def _module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(_module_name(path.parent), path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"there is no {path}; a part of kind python needs it")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
