"""The Python of docs/interop.md prints what stands below it, where its libraries are installed."""

import importlib.util
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```\n^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
OPTIONAL = ("torch", "keras", "jax", "h5py", "onnx")


def needed(code: str) -> list[str]:
    """The libraries of a block that need not be there: those that it imports or names, and what files need."""
    found = [
        name for name in OPTIONAL if re.search(rf"^(?:import|from) {name}\b|\"{name}\"", code, re.MULTILINE)
    ]
    return [*found, *(["h5py"] if "save_keras" in code else [])]


def test_every_block_has_its_output_below():
    assert len(BLOCKS) == PAGE.count("```python") == PAGE.count("```text") == 6


# of Keras, which converts its variables in the way of NumPy 1
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(("code", "expected"), BLOCKS, ids=[f"block {i + 1}" for i in range(len(BLOCKS))])
def test_a_block_prints_what_stands_below_it(code, expected, tmp_path, monkeypatch, capsys):
    for name in needed(code):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/interop.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == expected


def test_every_public_name_is_on_the_page():
    from gpumlp import interop

    assert not {name for name in interop.__all__ if f"`{name}" not in PAGE}
    assert all(hasattr(interop, name) for name in interop.__all__)
