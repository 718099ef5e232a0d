"""The five course reports, each reproduced by one command: recipes in TOML, what they give, and the page that shows it.

A recipe is read (`recipe`), its parts are run and kept (`runner`, `kinds`), its claims judged by their rules
(`rules`), and all of it written down (`results`, `page`).
"""

from __future__ import annotations

from gpumlp.recipes.context import Context, Outcome, Trained
from gpumlp.recipes.recipe import RECIPES, Claim, Part, Recipe, load_recipe
from gpumlp.recipes.results import read_results
from gpumlp.recipes.rules import Judgement, Rule
from gpumlp.recipes.runner import Runner

__all__ = [
    "RECIPES",
    "Claim",
    "Context",
    "Judgement",
    "Outcome",
    "Part",
    "Recipe",
    "Rule",
    "Runner",
    "Trained",
    "load_recipe",
    "read_results",
]
