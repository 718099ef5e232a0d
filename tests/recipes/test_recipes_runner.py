"""Parts are run once, kept, gone on with, and judged; what is kept is read again as it was."""

import json

import numpy as np
import pytest

from gpumlp.recipes import Runner, read_results
from gpumlp.recipes.results import FAILS, FAULT, HOLDS, MISSING, QUICK, SHOWN, figure_text

VALUES = {"test.accuracy", "train.loss", "epochs", "steps", "it_per_second"}


def run_all(runner):
    for part in runner.pending():
        assert not runner.run(part).error
    return runner.results()


def test_every_claim_gets_its_verdict(done):
    results = done.results()
    verdicts = {v.claim.what: v for found in results.verdicts.values() for v in found}
    assert {what: v.verdict for what, v in verdicts.items()} == {
        "accuracy": HOLDS, "loss": FAULT, "epochs": HOLDS, "f1": SHOWN, "loss by rate": HOLDS, "steps": SHOWN,
    }  # fmt: skip
    assert verdicts["loss"].holds is False
    assert verdicts["steps"].reproduced == [24, 24]
    assert results.is_complete
    assert results.holds


def test_results_json_has_figures_rules_times_and_settings(done):
    found = read_results(done.folder)
    assert found["report"] == "tiny"
    assert found["complete"]
    assert found["claims"] == {HOLDS: 3, FAULT: 1, SHOWN: 2}
    one, rates, both = found["parts"]
    assert set(one["values"]) >= VALUES
    assert one["settings"]["training"]["epochs"] == 6
    assert one["seconds"] > 0
    assert one["cpu_load"] == pytest.approx(one["cpu_seconds"] / one["seconds"])
    assert one["it_per_second"] > 0
    assert one["device"].startswith("cpu")
    assert one["executor"]
    assert one["seeds"] == [0]
    claim = one["claims"][1]
    assert claim["rule"] == "at least 8"
    assert claim["published"] == 9.0
    assert claim["fault"] == "It counts wrongly."
    assert isinstance(claim["reproduced"], float)
    assert rates["values"]["train.loss"] == [
        rates["values"]["lr=0.5.train.loss"],
        rates["values"]["lr=0.01.train.loss"],
    ]
    assert both["notes"] == ["Read from both."]


def test_a_second_run_finds_everything_done(done, write_recipe, tmp_path):
    assert done.pending() == []
    again = Runner(write_recipe(), tmp_path / "out")
    assert again.results().to_dict() == read_results(done.folder)
    np.testing.assert_array_equal(
        again.records["sum"].outcome.arrays["loss"], done.records["one"].outcome.arrays["loss"]
    )
    assert (tmp_path / "tiny" / "log.txt").read_text() == "both\n"


def test_an_interrupted_run_goes_on_with_the_part_that_was_not_done(write_recipe, tmp_path, monkeypatch):
    from gpumlp.trainer import Trainer

    runner = Runner(write_recipe(), tmp_path / "out")
    runner.run(runner.recipe.part("one"))
    monkeypatch.setattr(Trainer, "fit", lambda *args, **settings: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        runner.run(runner.recipe.part("rates"))
    monkeypatch.undo()
    again = Runner(write_recipe(), tmp_path / "out")
    assert [part.id for part in again.pending()] == ["rates", "sum"]
    partly = again.write()
    assert not partly.is_complete
    assert partly.counts[MISSING] == 2
    assert run_all(again).is_complete


def test_a_changed_setting_reruns_its_part_and_those_that_need_it(done, write_recipe, tmp_path):
    assert [p.id for p in Runner(write_recipe(other=0.02), tmp_path / "out").pending()] == ["rates", "sum"]
    assert len(Runner(write_recipe(version=2), tmp_path / "out").pending()) == 3
    runner = Runner(write_recipe(), tmp_path / "out")
    runner.forget(["one"])
    assert [part.id for part in runner.pending()] == ["one"]


def test_only_names_a_part_and_brings_what_it_needs(write_recipe, tmp_path):
    runner = Runner(write_recipe(), tmp_path / "out")
    assert [part.id for part in runner.pending(["rates"])] == ["rates"]
    assert [part.id for part in runner.pending(["sum"])] == ["one", "rates", "sum"]
    with pytest.raises(ValueError, match="no part 'sun'"):
        runner.pending(["sun"])


def test_a_quick_run_stands_beside_the_full_one_and_judges_only_what_it_can(done, write_recipe, tmp_path):
    quick = Runner(write_recipe(), tmp_path / "out", quick=True)
    assert len(quick.pending()) == 3
    results = run_all(quick)
    assert results.counts == {HOLDS: 1, QUICK: 3, SHOWN: 2}
    assert quick.folder == tmp_path / "out" / "quick" / "tiny"
    assert Runner(write_recipe(), tmp_path / "out").pending() == []


def test_a_damaged_record_is_run_anew(done, write_recipe, tmp_path):
    (done.folder / "parts" / "one.json").write_text("{", encoding="utf-8")
    arrays = done.folder / "parts" / "sum.npz"
    for damaged in (arrays.read_bytes()[:-30], b"PK\x03\x04", b"", None):
        arrays.unlink()
        if damaged is not None:
            arrays.write_bytes(damaged)
        assert [part.id for part in Runner(write_recipe(), tmp_path / "out").pending()] == ["one", "sum"]


def test_a_part_that_cannot_run_says_why_and_the_others_go_on(write_recipe, recipe_text, tmp_path):
    text = recipe_text.replace('"optimizer.lr" = [0.5, {other}]', '"optimizer.rate" = [0.5]')
    runner = Runner(write_recipe(text=text), tmp_path / "out")
    records = {part.id: runner.run(part) for part in runner.pending()}
    assert "optimizer.rate" in records["rates"].error
    assert "needs rates" in records["sum"].error
    assert not records["one"].error
    results = runner.write()
    assert not results.holds
    assert [p["status"] for p in results.to_dict()["parts"]] == ["done", "error", "error"]
    assert Runner(runner.recipe, tmp_path / "out").pending() == [
        runner.recipe.part("rates"),
        runner.recipe.part("sum"),
    ]


def test_a_claim_that_fails_makes_the_report_fail(write_recipe, recipe_text, tmp_path):
    text = recipe_text.replace("rule = {{ at_least = 0.1 }}", "rule = {{ at_least = 1.1 }}")
    runner = Runner(write_recipe(text=text), tmp_path / "out")
    results = run_all(runner)
    assert results.counts[FAILS] == 1
    assert not results.holds


def test_a_claim_about_a_value_that_is_not_there_is_a_mistake(write_recipe, recipe_text, tmp_path):
    runner = Runner(write_recipe(text=recipe_text.replace("test.f1", "test.f2")), tmp_path / "out")
    runner.run(runner.recipe.part("one"))
    with pytest.raises(ValueError, match=r"looks for 'test\.f2'"):
        runner.results()


def test_progress_rises_to_one(write_recipe, tmp_path):
    shares: list[float] = []
    runner = Runner(write_recipe(), tmp_path / "out")
    runner.run(runner.recipe.part("rates"), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_results_are_not_read_from_elsewhere(tmp_path):
    with pytest.raises(ValueError, match="run gpumlp reproduce first"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.97, "0.97"), (0.123456, "0.1235"), (3, "3"), (12345.6, "12346"), ([1, 0.5], "1, 0.5"), ("good", "good"),
     (float("nan"), "–"), (None, "–"), (1e-9, "1e-09")],
)  # fmt: skip
def test_figures_are_shown_to_four_digits(value, text):
    assert figure_text(value) == text
    assert figure_text(0.5, "s") == "0.5\N{NO-BREAK SPACE}s"


def test_folds_and_seeds_give_lists_of_scores(write_recipe, recipe_text, tmp_path):
    sweep = 'kind = "sweep"\nbase = "base"\noptions = {{ grid = {{ "optimizer.lr" = [0.5, {other}] }} }}'
    assert sweep in recipe_text
    folds = 'kind = "cross_validate"\nbase = "base"\noptions = {{ k = 3, repeats = 2 }}'
    claims = recipe_text.index("claims", recipe_text.index("Two rates"))
    text = recipe_text.replace(recipe_text[claims : recipe_text.index("[[parts]]", claims)], "\n")
    runner = Runner(write_recipe(text=text.replace(sweep, folds)), tmp_path / "out")
    values = runner.run(runner.recipe.part("rates")).values
    assert len(values["folds.accuracy"]) == 3
    assert values["mean.accuracy"] == pytest.approx(np.mean(values["folds.accuracy"]))
    assert values["repeats.loss"][0] == values["mean.loss"] != values["repeats.loss"][1]
    seeds = 'kind = "seeds"\nbase = "base"\noptions = {{ seeds = 3, own_data = true }}'
    runner = Runner(write_recipe(text=text.replace(sweep, seeds)), tmp_path / "out")
    record = runner.run(runner.recipe.part("rates"))
    assert record.outcome.seeds == [0, 1, 2]
    assert len(set(record.values["train.loss"])) == 3
    alone = runner.recipe.part("rates")
    config = runner.recipe.complete(
        {**alone.raw_config(False), "training": {**alone.settings["training"], "seed": 2},
         "data": {**alone.settings["data"], "settings": {"n_train": 40, "n_test": 20, "seed": 2}}}
    )  # fmt: skip
    from gpumlp.recipes.training import fit

    assert fit({"x": config})["x"].scores["test"].scores["loss"] == pytest.approx(
        record.values["seed 2.test.loss"]
    )


def test_the_json_of_a_part_holds_its_figures_as_svg(done):
    kept = json.loads((done.folder / "parts" / "one.json").read_text(encoding="utf-8"))
    assert len(kept["pictures"]) == 1
    for picture in kept["pictures"]:
        assert picture["svg"].startswith("<svg")
        assert picture["alternative"]
