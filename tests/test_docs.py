"""README and docs against the code: keys, names and defaults, links, blocks of TOML, commands."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpumlp.cli import make_parser
from gpumlp.commands.sweep import split_settings
from gpumlp.config import KEYS, SCHEMA, apply_settings, complete_config, shipped_configs
from gpumlp.data import EXTENSIONS, SYNTHETIC, dataset_names
from gpumlp.initializers import INITIALIZERS
from gpumlp.layers import LAYERS
from gpumlp.losses import LOSSES
from gpumlp.metrics import METRICS
from gpumlp.optimizers import OPTIMIZERS
from gpumlp.schedules import SCHEDULES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES: dict[str, Mapping[str, Callable[..., Any]]] = {
    "losses": LOSSES,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "initializers": INITIALIZERS,
    "layers": LAYERS,
}
NAMES = [(kind, name) for kind, known in TABLES.items() for name in known]
# second names of what has a row under its first
OTHER_NAMES = {
    *("zeros", "ones", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"),
    "invscaling",
}


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands below a heading, down to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = text(page).partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def code(page: str, heading: str) -> set[str]:
    """All that stands in backticks below a heading."""
    return set(re.findall(r"`([^`\n]+)`", section(page, heading)))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def commands() -> list[tuple[str, str]]:
    """Every line of a shell block that runs gpumlp, without its comment: (page, line)."""
    found = []
    for page in PAGES:
        for block in blocks(page, "(?:sh|console)"):
            for line in block.splitlines():
                line = line.removeprefix("$ ")
                if line.startswith("gpumlp "):
                    found.append((page.name, line))
    return found


# --- configs.md ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMA)
def test_every_key_of_a_section_is_described_in_it(name):
    described = code("docs/configs.md", f"### `[{name}]`")
    assert not set(SCHEMA[name]) - described


def test_every_section_is_described():
    assert not {key for key in KEYS if f"`[{key}]`" not in text("docs/configs.md")} - {"name"}


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_every_name_and_its_settings_are_described(kind, name):
    described = code("docs/configs.md", f"### {kind.capitalize()}")
    assert name in described
    settings = set(inspect.signature(TABLES[kind][name]).parameters)
    assert not settings - described


def test_every_metric_and_every_shipped_config_is_named():
    assert not set(METRICS) - code("docs/configs.md", "### Metrics")
    assert not {name for name in shipped_configs() if f"`{name}`" not in text("docs/configs.md")}


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the tables below a heading."""
    lines = section(page, heading).splitlines()
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| `")]


def numbers(row: list[str]) -> dict[str, float]:
    """The settings that are given with a number: `` `rate` = 0.5 ``."""
    found = re.findall(r"`(\w+)` = (-?\d[\d.]*(?:e-?\d+)?)", " ".join(row))
    return {name: float(value) for name, value in found}


@pytest.mark.parametrize("name", SCHEMA)
def test_the_default_beside_a_key_is_that_of_the_code(name):
    checked = 0
    for key, default, _ in rows("docs/configs.md", f"### `[{name}]`"):
        literal = re.fullmatch(r" `([^`]+)` ", default)
        if literal is not None:
            assert SCHEMA[name][key.strip(" `")][1] in (None, tomllib.loads(f"v = {literal[1]}")["v"]), key
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_the_defaults_beside_a_name_are_those_of_the_code(kind, name):
    found = [row for row in rows("docs/configs.md", f"### {kind.capitalize()}") if f"`{name}`" in row[0]]
    parameters = inspect.signature(TABLES[kind][name]).parameters
    for setting, value in numbers(found[0]).items() if found else ():
        assert parameters[setting].default == pytest.approx(value, rel=1e-12), setting
    if name not in OTHER_NAMES:
        assert len(found) == 1
        numeric = {k for k, p in parameters.items() if type(p.default) in (int, float)}
        shared = {"weight_decay"} if kind == "optimizers" else set()
        assert not numeric - shared - set(numbers(found[0]))


def test_the_defaults_that_all_optimizers_share_are_those_of_the_code():
    shared = section("docs/configs.md", "### Optimizers").partition("| name")[0]
    for setting, value in numbers([shared]).items():
        assert inspect.signature(OPTIMIZERS["sgd"]).parameters[setting].default == value


# --- data.md ------------------------------------------------------------------------------------------------------


def test_every_data_set_and_every_ending_of_a_file_is_named():
    assert not set(dataset_names()) - code("docs/data.md", "## Data sets by name")
    assert not set(EXTENSIONS) - code("docs/data.md", "## Files")


@pytest.mark.parametrize("name", SYNTHETIC)
def test_the_arguments_of_a_synthetic_set_stand_beside_it_with_their_defaults(name):
    table = rows("docs/data.md", "### Synthetic sets")
    at = next(i for i, row in enumerate(table) if row[0] == f" `{name}` ")
    row = table[at - 1] if table[at][2] == " the same " else table[at]
    defaults = {k: p.default for k, p in inspect.signature(SYNTHETIC[name]).parameters.items()}
    assert numbers(row) == defaults


def test_every_text_that_csv_reads_as_missing_is_named():
    from pyarrow import csv

    named = code("docs/data.md", "### Missing values")
    assert not {text for text in csv.ConvertOptions().null_values if text} - named


# --- all pages ----------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The names that a heading gets on GitHub."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        if (
            not target.is_relative_to(ROOT)
            or not target.exists()
            or (anchor and anchor not in anchors(target))
        ):
            wrong.append(link)
    assert not wrong


TOML_BLOCKS = [(page.name, block) for page in PAGES for block in blocks(page, "toml")]


@pytest.mark.parametrize(("page", "block"), TOML_BLOCKS)
def test_every_toml_block_is_a_config_that_passes(page, block):
    config = complete_config(tomllib.loads(block))
    assert config["data"]["source"]


def test_the_pages_have_blocks_and_commands_to_check():
    assert len(TOML_BLOCKS) >= 3
    assert len(commands()) >= 20
    named = {line.split()[1] for _, line in commands()}
    assert named == {"train", "evaluate", "predict", "bench", "info", "reproduce", "sweep"}


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_one_that_the_parser_takes(page, line, capsys):
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    args = make_parser().parse_args(words)
    assert callable(args.run), capsys.readouterr().err
    if words[0] == "sweep":  # each of the values of a setting is one of a config
        single, points = split_settings(args.set)
        args.set = [
            *single,
            *(f"{key}={json.dumps(value)}" for key, values in points.items() for value in values),
        ]
    for setting in getattr(args, "set", []):
        config = {"data": {"source": "iris"}, "network": {"layers": [{"name": "linear"}]}}
        if ".layers." not in setting:
            config["network"] = {}
        apply_settings(config, [setting])
        if "hiden" in setting:  # the page shows this mistake, and what becomes of it
            with pytest.raises(ValueError, match="did you mean 'hidden'"):
                complete_config(config)
        else:
            complete_config(config)


# --- the API ------------------------------------------------------------------------------------------------------


def test_every_module_that_is_imported_by_others_has_a_page_of_the_api():
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    found = set(build.modules())
    for folder, package in ((ROOT / "gpumlp", "gpumlp"), (ROOT / "kernels", "gpumlp.kernels")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            assert name in found or name.startswith(build.WITHOUT_A_PAGE), name
