"""Recipes are read, checked, and turned into configs of `gpumlp train`."""

import pytest

from gpumlp.recipes import load_recipe
from gpumlp.recipes.recipe import merged


def test_parts_merge_the_base_their_own_and_the_quick_settings(write_recipe):
    recipe = write_recipe()
    part = recipe.part("one")
    assert recipe.config(part)["training"]["epochs"] == 6
    assert recipe.config(part, quick=True)["training"]["epochs"] == 2
    assert recipe.config(part)["network"]["hidden"] == [3]
    assert recipe.config(part, device="cpu")["training"]["device"] == "cpu"
    assert recipe.config(recipe.part("sum")) == {}


def test_the_key_follows_the_settings_the_version_and_what_a_part_needs(write_recipe):
    def keys(recipe, quick=False, device="cpu"):
        return {part.id: recipe.key(part, quick, device) for part in recipe.parts}

    first = keys(write_recipe())
    assert keys(write_recipe()) == first
    changed = keys(write_recipe(other=0.02))
    assert changed["one"] == first["one"]
    assert changed["rates"] != first["rates"]
    assert changed["sum"] != first["sum"]
    assert not set(keys(write_recipe(version=2)).values()) & set(first.values())
    assert not set(keys(write_recipe(), quick=True).values()) & set(first.values())
    assert not set(keys(write_recipe(), device="gpu:0").values()) & set(first.values())


def test_the_key_of_a_part_follows_the_functions_that_it_uses(write_recipe):
    recipe = write_recipe()
    before = {part.id: recipe.key(part, False, "cpu") for part in recipe.parts}
    with (recipe.folder / "parts.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    after = {part.id: recipe.key(part, False, "cpu") for part in recipe.parts}
    assert [id for id in before if before[id] != after[id]] == ["sum"]


def test_merged_tables_leave_the_given_ones_alone():
    below, above = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}}
    assert merged(below, above) == {"a": {"x": 1, "y": 3}, "b": 1}
    assert below == {"a": {"x": 1, "y": 2}, "b": 1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "A tiny report"', "", "title is None; expected text"),
        ("version = {version}", "verson = 1", "did you mean 'version'"),
        ('kind = "sweep"', 'kind = "swep"', "parts.1.kind is 'swep'; did you mean 'sweep'"),
        ('id = "rates"', 'id = "one"', "as that of another part"),
        ('id = "rates"', 'id = "ra tes"', "letters, digits and hyphens"),
        ('needs = ["one", "rates"]', 'needs = ["tow"]', "no part above it"),
        ('value = "test.accuracy"', 'key = "test.accuracy"', "unknown key parts.0.claims.0.key"),
        ('value = "test.accuracy", ', "", "needs value or values"),
        ("rule = {{ at_least = 0.1 }}", "rule = {{ at_last = 0.1 }}", "parts.0.claims.0.rule: unknown rule"),
        ("published = 0.5, rule = {{ at_least = 0.1 }}", "rule = {{ within = 0.1 }}", "give published"),
        ('base = "base"\nfigures', 'base = "bse"\nfigures', "did you mean 'base'"),
        ("training.epochs = 2", "trainin.epochs = 2", "unknown key parts.0.quick.trainin"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(write_recipe, recipe_text, old, new, message):
    assert old in recipe_text
    with pytest.raises(ValueError, match=message):
        write_recipe(text=recipe_text.replace(old, new, 1))


def test_unknown_reports_parts_and_functions_are_named(write_recipe, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'upf'"):
        load_recipe("ufp")
    recipe = write_recipe()
    with pytest.raises(ValueError, match="did you mean 'rates'"):
        recipe.part("rate")
    with pytest.raises(ValueError, match="has no function 'neither'"):
        recipe.function("neither")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.toml").write_text("title = ", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a recipe"):
        load_recipe(tmp_path / "broken")
