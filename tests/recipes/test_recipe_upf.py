"""Report upf: its files are what the generator draws, and a quick run goes through from end to end."""

import numpy as np
import pytest

from gpumlp.recipes import load_recipe
from gpumlp.recipes.upf.parts import write_files


@pytest.fixture(scope="module")
def results(quick_run):
    return quick_run("upf")


def test_the_files_are_those_of_the_generator(tmp_path):
    write_files(tmp_path)
    folder = load_recipe("upf").folder
    for name in ("train.csv", "test.csv"):
        ours, shipped = (np.loadtxt(at / name, delimiter=",", skiprows=1) for at in (tmp_path, folder))
        # the last digit may round the other way elsewhere
        np.testing.assert_allclose(ours, shipped, atol=2e-4)


def test_a_quick_run_goes_through_and_holds(results):
    assert results.is_complete
    assert results.holds
    assert results.counts["holds"] >= 6


def test_momentum_with_the_factor_delays_and_without_it_speeds_up(results):
    with_factor = results.records["momentum"].values["after_50"]
    without = results.records["momentum-plain"].values["after_50_up_to_0.95"]
    assert with_factor == sorted(with_factor)
    assert without == sorted(without, reverse=True)


def test_every_figure_of_the_report_is_drawn(results):
    drawn = {part: len(record.pictures) for part, record in results.records.items()}
    assert drawn == {
        "data": 1, "cross-entropy": 3, "squared-error": 2, "momentum": 1, "momentum-plain": 1, "nine-curves": 1,
    }  # fmt: skip
