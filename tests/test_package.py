"""A wheel is built and looked into: it holds the whole package and nothing else, and works where it is unpacked."""

from __future__ import annotations

import configparser
import email
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import gpumlp
from gpumlp.kernels.cpu import cache

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# where the files of each source folder go in the wheel
SOURCES = {"gpumlp": "gpumlp", "kernels": "gpumlp/kernels"}


def source_files() -> dict[str, Path]:
    """Every file of the package, by its place in the wheel."""
    found = {}
    for folder, place in SOURCES.items():
        for path in (ROOT / folder).rglob("*"):
            inner = path.relative_to(ROOT / folder)
            hidden = any(part.startswith((".", "__pycache__")) for part in inner.parts)
            if path.is_file() and not hidden:
                found[f"{place}/{inner.as_posix()}"] = path
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built in a copy, with what is installed: nothing is fetched."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for entry in (*SOURCES, "tests", "bench", "docs"):
        shutil.copytree(ROOT / entry, copy / entry, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for entry in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / entry, copy)
    for folder in SOURCES:  # as they lie in a tree that was used
        (copy / folder / "__pycache__").mkdir()
        (copy / folder / "__pycache__" / "old.cpython-311.pyc").write_bytes(b"")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def names(wheel) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def read(wheel: Path, end: str) -> str:
    """The text of the one file of the wheel whose name ends so."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(end))
        return archive.read(name).decode("utf-8")


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    return email.message_from_string(read(wheel, ".dist-info/METADATA"))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


# --- what is in it ------------------------------------------------------------------------------------------------


def test_every_folder_of_the_package_is_named_in_pyproject():
    """setuptools takes only the packages that are named: one that is forgotten is missing in the wheel alone."""
    folders = {name.rpartition("/")[0].replace("/", ".") for name in source_files()}
    assert folders == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_the_wheel_is_for_every_platform(wheel):
    assert wheel.name == f"gpumlp-{gpumlp.__version__}-py3-none-any.whl"


def test_the_wheel_holds_every_file_of_the_package_and_no_other(names):
    files = {name for name in names if ".dist-info/" not in name}
    assert files == set(source_files())
    assert len(names) == len(set(names))


def test_the_files_that_are_no_modules_are_there(names):
    configs = {f"gpumlp/configs/{path.name}" for path in (ROOT / "gpumlp/configs").glob("*.toml")}
    assert configs >= {"gpumlp/configs/demo.toml", "gpumlp/configs/mnist.toml", "gpumlp/configs/table.toml"}
    report = {"gpumlp/report/report.html.jinja", "gpumlp/report/report.css"}
    assert {*configs, *report, "gpumlp/py.typed", "gpumlp/kernels/__init__.py"} <= set(names)


def test_tests_benchmarks_docs_and_caches_stay_outside(names):
    top = {name.split("/")[0] for name in names}
    assert top == {"gpumlp", f"gpumlp-{gpumlp.__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


# --- what it says of itself ---------------------------------------------------------------------------------------


def test_the_metadata_have_name_version_python_and_licence(metadata, wheel):
    assert (metadata["Name"], metadata["Version"]) == ("gpumlp", gpumlp.__version__)
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(">=3.11")
    assert metadata["License-Expression"] == "MIT"
    assert read(wheel, ".dist-info/licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def required(metadata: Message, extra: str = "") -> set[str]:
    """Names of what is required with an extra, beyond what is required without."""
    found = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    return {
        r.name
        for r in found
        if (r.marker is not None and r.marker.evaluate({"extra": extra})) or not (extra or r.marker)
    }


def test_the_metadata_name_the_dependencies(metadata):
    assert required(metadata) == {
        *("numpy", "scipy", "numba", "scikit-learn", "tqdm", "safetensors"),
        *("pyarrow", "matplotlib", "jinja2", "tomli-w"),
    }


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("cuda12", {"cupy-cuda12x", "nvmath-python"}),
        ("cuda13", {"cupy-cuda13x", "nvmath-python"}),
        ("report", {"matplotlib", "jinja2"}),
        ("interop", {"h5py", "onnx"}),
        ("recipes", {"scikit-image", "h5py"}),
    ],
)
def test_the_metadata_name_the_extras(metadata, extra, expected):
    assert extra in metadata.get_all("Provides-Extra", [])
    assert required(metadata, extra) == expected


def test_there_are_no_other_extras(metadata):
    """Groups for development are not for users."""
    assert set(metadata.get_all("Provides-Extra", [])) == {"cuda12", "cuda13", "report", "interop", "recipes"}


def test_the_command_is_an_entry_point(wheel):
    entries = configparser.ConfigParser()
    entries.read_string(read(wheel, ".dist-info/entry_points.txt"))
    assert dict(entries["console_scripts"]) == {"gpumlp": "gpumlp.cli:main"}


# --- that it works ------------------------------------------------------------------------------------------------


def python(unpacked: Path, cwd: Path, *arguments: str, **variables: str) -> str:
    """Run Python with the unpacked wheel before all else, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked), **variables}
    command = [sys.executable, "-P", "-W", "error", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_and_its_kernels_come_from_the_wheel(unpacked, tmp_path):
    code = "import gpumlp, gpumlp.kernels\nprint(gpumlp.__file__, gpumlp.kernels.__file__, sep='\\n')"
    expected = [unpacked / "gpumlp" / "__init__.py", unpacked / "gpumlp" / "kernels" / "__init__.py"]
    assert [Path(line) for line in python(unpacked, tmp_path, "-c", code).splitlines()] == expected


def test_the_command_says_its_version(unpacked, tmp_path):
    assert python(unpacked, tmp_path, "-m", "gpumlp.cli", "--version") == f"gpumlp {gpumlp.__version__}\n"


def test_a_network_is_trained_to_its_report_from_the_wheel(unpacked, tmp_path):
    """With a shipped config, the template of the report and its style, and a kernel that is compiled there.

    Other kernels are those that were compiled before from the same sources, as the names of their files say.
    """
    kernels, compiled = tmp_path / "kernels" / "gpumlp", cache.file_name("add_bias", "float32")
    kernels.mkdir(parents=True)
    for folder in cache.folders():
        for path in folder.glob(f"*{cache.file_name('', 'float32')}"):
            if path.name != compiled:
                shutil.copy(path, kernels)
    settings = ["--set", "training.epochs=2", "--set", "network.hidden=[4]", "--device", "cpu"]
    command = ["train", "demo", "--quiet", "--out", "run", *settings]
    python(unpacked, tmp_path, "-m", "gpumlp.cli", *command, NUMBA_CACHE_DIR=str(kernels.parent))
    assert (kernels / compiled).exists()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["accuracy"] > 0
    assert "<style>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
