"""The cache of compiled kernels: found again by another process, never stale, and somewhere else where it must.

Each test copies the package, so that it may edit it, and asks what a new process compiles and what it loads. Kernels
that take long to compile are left alone.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import gpumlp
from gpumlp.kernels import cpu
from gpumlp.kernels.cpu import cache, loading, mathlib

# A kernel, whether it was compiled, where it is kept, and what relu makes of (-1, 2).
PROBE = """
import json, sys
import numpy as np
import gpumlp
from gpumlp.kernels import cpu
from gpumlp.kernels.cpu import cache
from gpumlp.kernels.cpu.loading import function_at
from gpumlp.kernels.layout import ROW_WIDTH
said = []
address = cpu.address("relu", "float32", lambda: said.append("compiling"))
x, y, scalars = np.array([-1, 2], "float32"), np.zeros(2, "float32"), np.zeros(8)
row, ctx = np.zeros(ROW_WIDTH, np.int64), np.zeros(16, np.int64)
ctx[1], row[2] = 1, scalars.ctypes.data
row[4:8], row[8:12] = (x.ctypes.data, 1, 2, 2), (y.ctypes.data, 1, 2, 2)
function_at(address)(row.ctypes.data, ctx.ctypes.data, 0)
where = [str(f) for f in cache.folders() if (f / cache.file_name("relu", "float32")).exists()]
print(json.dumps({"compiled": len(said), "where": where[0] if where else None, "stamp": cache.stamp(),
                  "y": y.tolist(), "package": gpumlp.__file__,
                  "heavy": [m for m in ("numba", "llvmlite") if m in sys.modules]}))
"""


def copy_package(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    copy = folder / "site" / "gpumlp"
    shutil.copytree(Path(gpumlp.__file__).parent, copy, ignore=ignored)
    shutil.copytree(Path(cpu.__file__).parents[1], copy / "kernels", ignore=ignored, dirs_exist_ok=True)
    return copy


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the package, without anything compiled."""
    return copy_package(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, dict]:
    """A copy of the package, not to be edited, and what the first process found that used it."""
    package = copy_package(tmp_path_factory.mktemp("first"))
    return package, probe(package)


def probe(package: Path, **environment: str) -> dict:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    env |= {
        "PYTHONPATH": str(package.parent),
        "XDG_CACHE_HOME": str(package.parents[1] / "user"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    result = subprocess.run(
        [sys.executable, "-c", PROBE],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
        cwd=package.parent,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert Path(found["package"]).parent == package
    return found


def test_a_second_process_loads_what_the_first_compiled(first):
    package, found = first
    second = probe(package)
    assert (found["compiled"], second["compiled"]) == (1, 0)
    assert found["y"] == second["y"] == [0, 2]
    assert Path(found["where"]).is_relative_to(package)
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        assert second["heavy"] == []


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where this process keeps kernels meanwhile."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return tmp_path / "gpumlp"


@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_a_damaged_file_is_compiled_anew(folder, monkeypatch, how):
    whole, relu = b"machine code" * 9, ("relu", "float32")
    path = cache.write(*relu, whole)
    assert path is not None
    assert cache.read(*relu) == whole
    kept = path.read_bytes()
    damaged = kept[:50] + bytes([kept[50] ^ 1]) + kept[51:]
    path.write_bytes({"cut": kept[:-4], "changed": damaged, "empty": b""}[how])
    assert cache.read(*relu) is None
    # and so a process compiles it, and puts another in its place
    monkeypatch.setattr(cpu, "_LOADED", {})
    said: list[str] = []
    assert cpu.address(*relu, lambda: said.append("compiling")) != 0
    assert said == ["compiling"]
    monkeypatch.setattr(cpu, "_LOADED", {})
    assert cpu.address(*relu, lambda: said.append("compiling")) != 0
    assert said == ["compiling"]
    assert list(folder.iterdir()) == [path]


def test_files_are_put_in_place_whole_whoever_writes_at_once(folder):
    codes = [bytes([i]) * 100_000 for i in range(8)]

    def write_and_read(code: bytes) -> bytes | None:
        cache.write("relu", "float32", code)
        return cache.read("relu", "float32")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write_and_read, codes * 5))
    assert set(found) <= set(codes)
    assert [path.suffix for path in folder.iterdir()] == [".o"]


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert cache.write("relu", "float32", b"code") is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("edited", ["activations.py", "intrinsics.py", "../layout.py"])
def test_an_edit_of_any_file_is_seen(package, first, edited):
    unedited, found = first
    kept = Path("kernels", "cpu", "__pycache__")
    shutil.copytree(unedited / kept, package / kept)
    path = package / "kernels" / "cpu" / edited
    text = path.read_text()
    if edited == "activations.py":  # another relu
        text = text.replace("return T(0) if x < T(0) else x", "return T(5) if x < T(0) else x")
    elif edited == "intrinsics.py":  # what relu is made of, in a file that Numba does not look at
        text = text.replace(
            "    start = row[OPERANDS + OPERAND_WIDTH * k] +",
            "    start = row[OPERANDS + OPERAND_WIDTH * k] + itemsize(like) * 0 +",
        )
    else:  # a constant that is compiled in, outside of the folder
        text = text.replace("TALL_ROWS, TALL_RATIO = 1024, 4", "TALL_ROWS, TALL_RATIO = 512, 4")
    assert text != path.read_text()
    path.write_text(text)
    after = probe(package)
    assert after["compiled"] == 1
    assert after["stamp"] != found["stamp"]
    assert after["y"] == ([5, 2] if edited == "activations.py" else [0, 2])


def test_the_stamp_is_of_all_sources_of_the_folder(package):
    """By hand over the copied files: each of them changes it, and so does a new one."""
    folder = package / "kernels" / "cpu"
    code = (folder / "cache.py").read_text()

    def stamp() -> str:
        names: dict = {"__file__": str(folder / "cache.py"), "__package__": cpu.__name__}
        exec(compile(code, names["__file__"], "exec"), names)
        return names["stamp"]()

    seen = {stamp()}
    assert seen == {cache.stamp()}
    for path in sorted(folder.glob("*.py")):
        path.write_text(path.read_text() + "\n")
        seen.add(stamp())
    (folder / "another.py").write_text("x = 1\n")
    seen.add(stamp())
    assert len(seen) == 2 + len(list(folder.glob("*.py"))) - 1


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (cache, "version", lambda name: "99.0"),
        (cache, "identity", lambda: "another processor"),
        (cache.sys, "version_info", (3, 99, 0)),
    ],
)
def test_another_compiler_processor_or_python_asks_for_another_file(monkeypatch, module, name, value):
    before = cache.file_name("relu", "float32")
    cache._origin.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        other = cache.file_name("relu", "float32")
    cache._origin.cache_clear()
    assert other != before == cache.file_name("relu", "float32")


def test_settings_of_numba_ask_for_another_file(monkeypatch):
    before = cache.file_name("relu", "float32")
    cache._origin.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_CPU_FEATURES", "+sse2")
        other = cache.file_name("relu", "float32")
    cache._origin.cache_clear()
    assert other != before


def test_where_the_installation_takes_no_files_a_folder_of_the_user_does(package):
    """A file stands where the cache's folder would be made: root too cannot write into that."""
    (package / "kernels" / "cpu" / "__pycache__").write_text("")
    first, second = probe(package), probe(package)
    assert (first["compiled"], second["compiled"]) == (1, 0)
    assert first["y"] == [0, 2]
    assert Path(first["where"]).is_relative_to(package.parents[1] / "user")


def test_a_folder_that_the_user_names_is_taken(package, tmp_path):
    named = tmp_path / "named"
    first, second = (probe(package, NUMBA_CACHE_DIR=str(named)) for _ in range(2))
    assert (first["compiled"], second["compiled"]) == (1, 0)
    assert Path(first["where"]).is_relative_to(named)
    assert not (package / "kernels" / "cpu" / "__pycache__").exists()


def test_where_no_folder_takes_files_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert cache.write("relu", "float32", b"code") is None
    assert cache.read("relu", "float32") is None


def test_specialised_functions_have_names_of_their_own_and_keep_the_original():
    def f(x):
        return T * x  # type: ignore[name-defined]  # noqa: F821

    two, three = (mathlib.specialise(f, {"T": n}, f"times_{n}") for n in (2, 3))
    assert (two(5), three(5)) == (10, 15)
    assert two.__qualname__ == "times_2"
    assert "T" not in f.__globals__


def test_an_address_is_made_once_and_stays():
    assert cpu.address("relu", "float32") == cpu.address("relu", "float32")
    assert cpu.address("relu", "float32") != cpu.address("relu", "float64")
    assert cpu.address("relu", "float32") != cpu.address("relu_grad", "float32")


def test_threads_that_ask_together_get_one_address(monkeypatch):
    """The address that one of them has handed out must not be that of a function that another then replaces."""
    made: list[int] = []

    def slow(code: bytes, symbol: str) -> int:
        time.sleep(0.1)  # for the others to come this far
        made.append(loading.load(code, symbol))
        return made[-1]

    monkeypatch.setattr(cpu, "load", slow)
    monkeypatch.setattr(cpu, "_LOADED", {})
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(lambda _: cpu.address("copy", "float32"), range(3)))
    assert found == set(made)
    assert len(made) == 1


def test_a_first_fit_that_finds_its_kernels_loads_no_compiler_and_takes_little_memory(tmp_path):
    """30 MB beyond parameters, gradients and activations, here some 0.1 MB, is what was asked of `fit`."""
    script = tmp_path / "fit.py"
    script.write_text("""
import sys
from pathlib import Path
import numpy as np
import gpumlp as gm

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

x = np.zeros((64, 8), np.float32)
trainer = gm.Trainer(gm.mlp([8, 40, 1], device="cpu"), loss="mse", threads=2)
before = resident()
trainer.fit(x, x[:, :1], epochs=3, batch_size=20, progress=False)
print("numba" in sys.modules, "llvmlite" in sys.modules, resident() - before)
""")

    def run() -> list[str]:
        result = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.split()

    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("elsewhere LLVM loads the kernels")
    run()
    numba, llvmlite, added = run()
    assert (numba, llvmlite) == ("False", "False")
    assert float(added) < 30
