"""The tutorial: its Python runs and prints what stands below it, its commands name parts, its pictures can be made."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from gpumlp.cli import make_parser
from gpumlp.recipes import RECIPES, load_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```(?:\n```text\n(.*?)^```)?", PAGE, re.MULTILINE | re.DOTALL)
REPRODUCE = re.findall(r"^gpumlp (reproduce \w+ [^#\n]*--only [^#\n]*)", PAGE, re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
PICTURES = ROOT / "docs" / "pictures"


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> list[str | None]:
    """What each block prints, run one after the other; None for one whose library is not installed."""
    found: list[str | None] = []
    names: dict[str, object] = {"__name__": "tutorial"}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        warnings.simplefilter("error")
        for i, (code, _) in enumerate(BLOCKS, start=1):
            if "load_keras" in code and importlib.util.find_spec("h5py") is None:
                found.append(None)
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(code, f"tutorial.md, block {i}", "exec"), names)
            found.append(out.getvalue())
    return found


def test_nearly_every_block_has_its_output_below():
    assert len(BLOCKS) == PAGE.count("```python") >= 12
    # speeds differ from machine to machine, and so does what a block on them prints
    assert [bool(expected) for _, expected in BLOCKS].count(False) == 1


@pytest.mark.parametrize("i", [i for i, (_, expected) in enumerate(BLOCKS) if expected])
def test_a_block_prints_what_stands_below_it(printed, i):
    said, expected = printed[i], BLOCKS[i][1]
    if said is None:
        pytest.skip("h5py is not installed")
    if "not finite" in expected:  # in which batch and layer is a matter of rounding
        said, expected = (re.sub(r"epoch.* is not finite", "", text) for text in (said, expected))
    assert NUMBER.sub("#", said).split() == NUMBER.sub("#", expected).split()
    ours, theirs = ([float(number) for number in NUMBER.findall(text)] for text in (said, expected))
    # sums in another order end a little elsewhere
    assert ours == pytest.approx(theirs, rel=0.15, abs=0.06)


@pytest.mark.parametrize("line", REPRODUCE)
def test_a_command_names_a_report_and_parts_that_are_there(line):
    args = make_parser().parse_args(line.split())
    recipe = load_recipe(args.report)
    assert args.only
    assert all(recipe.part(part).id == part for part in args.only)


def test_every_report_is_gone_through():
    assert {line.split()[1] for line in REPRODUCE} == set(RECIPES)


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_every_picture_is_made_by_the_script_shown_on_a_page_and_small(script):
    files = {path.name: path for path in PICTURES.iterdir()}
    assert set(files) == set(script.PICTURES)
    assert all(path.stat().st_size < 60_000 for path in files.values())
    shown = set(re.findall(r"!\[[^\]]{40,}\]\(pictures/([^)]+)\)", PAGE))
    assert shown == set(files)


def test_the_readme_shows_two_pictures_with_alternative_text():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(set(re.findall(r"!\[[^\]]{40,}\]\(docs/pictures/([^)]+)\)", readme))) == 2


@pytest.mark.parametrize("name", sorted(path.name for path in PICTURES.iterdir()))
def test_a_picture_has_an_opaque_background(name):
    path = PICTURES / name
    if path.suffix == ".svg":
        background = re.search(r'<g id="patch_1">\s*<path [^>]*style="([^"]*)"', path.read_text("utf-8"))
        assert background is not None
        assert "fill: #ffffff" in background[1]
        return
    image = pytest.importorskip("PIL.Image").open(path)
    with image:
        assert "transparency" not in image.info
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_drawn_anew_from_its_part(script, tmp_path):
    path = script.draw("momentum.svg", tmp_path)
    text = path.read_text("utf-8")
    assert text.count('<g id="line2d_') >= 5
    assert "dc:date" not in text


def test_a_caption_that_no_figure_has_is_one_clear_error(script, tmp_path, monkeypatch):
    other = script.Picture("upf", "momentum-plain", "Nothing")
    monkeypatch.setitem(script.PICTURES, "other.svg", other)
    with pytest.raises(ValueError, match="no figure begins with 'Nothing'; there are: Cost by epoch"):
        script.draw("other.svg", tmp_path)
