"""A working folder with a table, and runs that were trained on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpumlp import cli
from tests.commands.people import QUICK, table


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of classification, `groups`, and one of regression, `spend`."""
    folder = tmp_path_factory.mktemp("cli")
    table(folder)
    for out, target, other in (("groups", "group", "spend"), ("spend", "spend", "group")):
        arguments = [
            "train",
            str(folder / "people.csv"),
            "--target",
            target,
            "--out",
            str(folder / out),
            "--quiet",
        ]
        assert cli.main([*arguments, *QUICK, "--set", f"data.drop=['{other}']"]) == 0
    return folder
