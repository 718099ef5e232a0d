"""docs/reproduce.md against the code: its recipe loads, and every kind, option, rule, figure and verdict is named."""

import re
from pathlib import Path

import pytest

from gpumlp.recipes import load_recipe
from gpumlp.recipes.figures import FIGURES
from gpumlp.recipes.kinds import OPTIONS
from gpumlp.recipes.recipe import KINDS
from gpumlp.recipes.results import VERDICTS
from gpumlp.recipes.rules import AGGREGATES, FORMS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        *KINDS,
        *FORMS,
        *AGGREGATES,
        *VERDICTS,
        *FIGURES,
        *sorted({o for k in OPTIONS.values() for o in k or ()}),
    ],
)
def test_every_name_stands_on_the_page(name):
    assert re.search(rf"\b{re.escape(name)}(?!\w)", PAGE)


def test_the_recipe_of_the_page_is_one(tmp_path):
    (block,) = re.findall(r"^```toml recipe\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe.toml").write_text(block, encoding="utf-8")
    recipe = load_recipe(tmp_path)
    part = recipe.part("widths")
    assert recipe.config(part)["training"]["epochs"] == 100
    assert recipe.config(part, quick=True)["training"]["epochs"] == 10
    assert part.claims[0].rule is not None
