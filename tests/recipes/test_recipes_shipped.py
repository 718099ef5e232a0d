"""Every shipped recipe: its settings are configs, its rules can fail, and it has a part for all that a report did."""

from collections.abc import Iterator
from typing import Any

import pytest

from gpumlp.recipes import RECIPES, Claim, Recipe, Rule, load_recipe

# what each report did, by the part that does it
ROWS = {
    "sdm274": [
        "data", "full-batch-deep", "full-batch", "minibatch", "one-sample", "times", "folds", "folds-slow",
        "folds-one-layer", "folds-one-layer-long", "folds-wide", "folds-deep", "overflow", "simple", "load", "classes",
        "class-splits", "tumours", "tumours-shorter", "tumours-slow",
    ],
    "tnm112": ["batch-size", "activations", "deep-momentum", "deep-adam", "keras-weights", "hand-weights"],
    "upf": ["data", "cross-entropy", "squared-error", "momentum", "momentum-plain", "nine-curves"],
    "ee6132": [
        "baseline", "learning-rates", "activations", "after-2000-steps", "inactive-neurons", "l2", "noise",
        "hog-networks", "svm", "knn", "summary",
    ],
    "mlpnn": ["mixed-activations", "cross-entropy", "kl-divergence", "faults"],
}  # fmt: skip


def claims(recipe: Recipe) -> Iterator[tuple[str, Claim]]:
    for part in recipe.parts:
        for claim in part.claims:
            yield f"{recipe.name}.{part.id}: {claim.what}", claim


@pytest.mark.parametrize("name", RECIPES)
def test_the_settings_of_every_part_are_a_config(name):
    recipe = load_recipe(name)
    for part in recipe.parts:
        for quick in (False, True):
            config = recipe.config(part, quick)
            assert not config or config["name"] == part.id


@pytest.mark.parametrize("name", RECIPES)
def test_the_functions_that_a_recipe_names_are_there(name):
    recipe = load_recipe(name)
    for part in recipe.parts:
        named = [part.options.get(key) for key in ("function", "after")]
        named += [figure.get("python") for figure in part.figures if isinstance(figure, dict)]
        for function in filter(None, named):
            assert callable(recipe.function(function))


@pytest.mark.parametrize("name", RECIPES)
def test_quick_shortens_and_keeps_every_part(name):
    recipe = load_recipe(name)
    assert sum(part.quick_seconds for part in recipe.parts) <= 120
    for part in recipe.parts:
        full, quick = recipe.config(part), recipe.config(part, quick=True)
        if full:
            assert quick["training"]["epochs"] <= full["training"]["epochs"]


def wrong_figures(rule: Rule, claim: Claim) -> list[Any]:
    """Clearly wrong figures: half or double the published one, or as far from what the rule names."""
    if rule.form == "order":
        steps = [3.0, 2.0, 1.0] if rule.spec["order"] == "increasing" else [1.0, 2.0, 3.0]
        return [steps]
    if rule.form == "interval":
        low, high = rule.spec["interval"]
        spread = max(high - low, 0.5 * max(abs(low), abs(high)))
        return [low - spread, high + spread]
    if rule.form == "within":
        wrong = {"higher": [claim.published / 2], "lower": [claim.published * 2]}
        return wrong.get(rule.spec.get("better", ""), [claim.published / 2, claim.published * 2])
    edge = rule.spec[rule.form] * (claim.published if rule.needs_published else 1.0)
    away = max(abs(edge) / 2, 0.5)
    return [edge - away if "least" in rule.form else edge + away]


@pytest.mark.parametrize("name", RECIPES)
def test_no_rule_passes_a_clearly_wrong_figure(name):
    for where, claim in claims(load_recipe(name)):
        if claim.rule is not None:
            for wrong in wrong_figures(claim.rule, claim):
                assert not claim.rule.judge(wrong, claim.published).holds, where


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_figure_passes_its_own_rule_unless_it_is_asked_for_more(name):
    for where, claim in claims(load_recipe(name)):
        published = claim.published
        if claim.rule is None or claim.fault or isinstance(published, str | None):
            continue
        is_pace = "factor" in claim.rule.form or (claim.unit == "s" and claim.rule.form == "at_most")
        if not is_pace:  # we ask for more than the published pace
            assert claim.rule.judge(published, published).holds, where


@pytest.mark.parametrize("name", RECIPES)
def test_accuracies_are_held_to_half_a_point(name):
    for where, claim in claims(load_recipe(name)):
        if "accuracy" in claim.what and claim.rule is not None and claim.rule.form == "within":
            whole = 1.0 if claim.published <= 1 else 100.0
            assert claim.rule.spec["within"] <= 0.005 * whole, where


@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_the_report_is_a_part(name):
    ids = [part.id for part in load_recipe(name).parts]
    assert set(ROWS[name]) <= set(ids)
    assert all(part.claims or part.figures or part.kind == "python" for part in load_recipe(name).parts)
