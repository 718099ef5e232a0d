"""``gpumlp reproduce`` as a user meets it: the list, one part, a part's config, mistakes, interruption."""

import re

import pytest

from gpumlp.cli import main
from gpumlp.config import complete_config, read_config


def test_without_a_name_it_lists_the_reports(tmp_path, capsys):
    assert main(["reproduce", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^upf +A small network.*; 6 parts; no results yet$", out, re.MULTILINE)
    assert "sdm274" in out


def test_one_part_writes_results_page_and_index_and_is_not_run_again(tmp_path, capsys):
    command = ["reproduce", "upf", "--quick", "--device", "cpu", "--only", "data", "--out", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "upf: 2 holds" in said.out
    assert "[1/1] upf data" in said.err
    folder = tmp_path / "quick" / "upf"
    assert {path.name for path in folder.iterdir()} == {"parts", "results.json", "report.html"}
    assert (tmp_path / "quick" / "index.html").is_file()
    assert main(command) == 0
    assert "[1/1]" not in capsys.readouterr().err
    assert main([*command, "--fresh"]) == 0
    assert "[1/1]" in capsys.readouterr().err
    main(["reproduce", "--quick", "--out", str(tmp_path)])
    assert f"results in {folder / 'report.html'}" in capsys.readouterr().out


def test_a_shown_part_is_a_config_that_trains(tmp_path, capsys):
    assert main(["reproduce", "upf", "--show", "cross-entropy"]) == 0
    path = tmp_path / "part.toml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    config = complete_config(read_config(path))
    assert config["network"]["hidden"] == [3]
    assert config["data"]["test_source"].endswith("test.csv")
    changes = ["--set", "training.epochs=3", "--device", "cpu", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["train", str(path), *changes]) == 0
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_what_a_part_does_beyond_one_training_stands_in_comments(capsys):
    assert main(["reproduce", "upf", "--show", "momentum"]) == 0
    assert '# "optimizer.momentum" = [' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ufp"], "unknown report 'ufp'; did you mean 'upf'"),
        (["upf", "--only", "dat"], "upf has no part 'dat'; did you mean 'data'"),
        (["upf", "--show", "dat"], "upf has no part 'dat'; did you mean 'data'"),
        (["--only", "data"], "--only goes with a report"),
        (["all", "--only", "data"], "--only and --show go with one report"),
        (["upf", "--device", "tpu"], "tpu"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, capsys):
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_interrupted_it_keeps_what_is_done_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from gpumlp.recipes import Runner

    run = Runner.run

    def interrupted(self, part, advance):
        if part.id == "cross-entropy":
            raise KeyboardInterrupt
        return run(self, part, advance)

    monkeypatch.setattr(Runner, "run", interrupted)
    command = ["reproduce", "upf", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert main(command) == 130
    assert "interrupted in upf cross-entropy; 1 of 6 parts are done" in capsys.readouterr().err
    assert (tmp_path / "quick" / "upf" / "parts" / "data.json").is_file()
    assert "Not every part was run" in (tmp_path / "quick" / "upf" / "report.html").read_text(
        encoding="utf-8"
    )


def test_the_bar_tells_the_part_and_the_time_left(monkeypatch):
    from gpumlp.commands.reproduce import _Bar
    from gpumlp.recipes import Part

    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    parts = [Part(id, id, "train", seconds=10.0) for id in ("a", "b")]
    bar = _Bar(parts, quick=False)
    assert bar.seconds_left() == 20.0
    bar.begin("a", parts[0])
    clock[0] = 10.0
    bar.advance(0.5)
    assert bar.seconds_left() == pytest.approx(15.0 * 2)  # half of a took all of its time
    bar.end(20.0)
    assert bar.seconds_left() == pytest.approx(10.0 * 2)
