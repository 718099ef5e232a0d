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
from numba import cfunc

import gpumlp
from gpumlp.kernels import cpu

# A kernel, how many cached functions were hits and misses, and what relu makes of (-1, 2).
PROBE = """
import ctypes, json, sys
import numpy as np
import gpumlp
from gpumlp.kernels import cpu
from gpumlp.kernels.layout import ROW_WIDTH
address = cpu.address("relu", "float32")
(made,) = cpu._COMPILED.values()
x, y, scalars = np.array([-1, 2], "float32"), np.zeros(2, "float32"), np.zeros(8)
row, ctx = np.zeros(ROW_WIDTH, np.int64), np.zeros(16, np.int64)
ctx[1], row[2] = 1, scalars.ctypes.data
row[4:8], row[8:12] = (x.ctypes.data, 1, 2, 2), (y.ctypes.data, 1, 2, 2)
ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(address)(row.ctypes.data, ctx.ctypes.data, 0)
print(json.dumps({"hits": made.cache_hits, "where": made._cache.cache_path, "stamp": cpu.stamp(), "y": y.tolist(),
                  "package": gpumlp.__file__}))
"""


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the package, without anything compiled."""
    ignored = shutil.ignore_patterns("__pycache__")
    copy = tmp_path / "site" / "gpumlp"
    shutil.copytree(Path(gpumlp.__file__).parent, copy, ignore=ignored)
    shutil.copytree(Path(cpu.__file__).parents[1], copy / "kernels", ignore=ignored, dirs_exist_ok=True)
    return copy


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


def test_a_second_process_loads_what_the_first_compiled(package):
    first, second = probe(package), probe(package)
    assert (first["hits"], second["hits"]) == (0, 1)
    assert first["y"] == second["y"] == [0, 2]
    assert Path(first["where"]).is_relative_to(package)


@pytest.mark.parametrize("edited", ["activations.py", "intrinsics.py", "../layout.py"])
def test_an_edit_of_any_file_is_seen(package, edited):
    first = probe(package)
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
        text = text.replace("LONG, NARROW = 1024, 4", "LONG, NARROW = 512, 4")
    assert text != path.read_text()
    path.write_text(text)
    after = probe(package)
    assert after["hits"] == 0
    assert after["stamp"] != first["stamp"]
    assert after["y"] == ([5, 2] if edited == "activations.py" else [0, 2])


def test_the_stamp_is_of_all_sources_of_the_folder(package):
    """By hand over the copied files: each of them changes it, and so does a new one."""
    folder = package / "kernels" / "cpu"
    code = (folder / "__init__.py").read_text()

    def stamp() -> str:
        names: dict = {"__file__": str(folder / "__init__.py"), "__name__": "copied"}
        exec(compile(code, names["__file__"], "exec"), names)
        return names["stamp"]()

    seen = {stamp()}
    assert seen == {cpu.stamp()}
    for path in sorted(folder.glob("*.py")):
        path.write_text(path.read_text() + "\n")
        seen.add(stamp())
    (folder / "another.py").write_text("x = 1\n")
    seen.add(stamp())
    assert len(seen) == 2 + len(list(folder.glob("*.py"))) - 1


def test_where_the_installation_takes_no_files_a_folder_of_the_user_does(package):
    """A file stands where the cache's folder would be made: root too cannot write into that."""
    (package / "kernels" / "cpu" / "__pycache__").write_text("")
    first, second = probe(package), probe(package)
    assert (first["hits"], second["hits"]) == (0, 1)
    assert first["y"] == [0, 2]
    assert Path(first["where"]).is_relative_to(package.parents[1] / "user")


def test_a_folder_that_the_user_names_is_taken(package, tmp_path):
    named = tmp_path / "named"
    first, second = (probe(package, NUMBA_CACHE_DIR=str(named)) for _ in range(2))
    assert (first["hits"], second["hits"]) == (0, 1)
    assert Path(first["where"]).is_relative_to(named)
    assert not (package / "kernels" / "cpu" / "__pycache__").exists()


def test_specialised_functions_have_names_of_their_own_and_keep_the_original():
    def f(x):
        return T * x  # type: ignore[name-defined]  # noqa: F821

    two, three = (cpu.specialise(f, {"T": n}, f"times_{n}") for n in (2, 3))
    assert (two(5), three(5)) == (10, 15)
    assert two.__qualname__ == f"times_2_{cpu.stamp()}"
    assert "T" not in f.__globals__


def test_an_address_is_made_once_and_stays():
    assert cpu.address("relu", "float32") == cpu.address("relu", "float32")
    assert cpu.address("relu", "float32") != cpu.address("relu", "float64")
    assert cpu.address("relu", "float32") != cpu.address("relu_grad", "float32")


def test_threads_that_ask_together_get_one_address(monkeypatch):
    """The address that one of them has handed out must not be that of a function that another then replaces."""
    made: list[int] = []

    def slow(*args, **settings):
        def compile_(function):
            time.sleep(0.1)  # for the others to come this far
            function = cfunc(*args, **settings)(function)
            made.append(function.address)
            return function

        return compile_

    monkeypatch.setattr("numba.cfunc", slow)
    monkeypatch.setattr(cpu, "_COMPILED", {})
    with ThreadPoolExecutor(3) as pool:
        found = set(pool.map(lambda _: cpu.address("copy", "float32"), range(3)))
    assert found == {function.address for function in cpu._COMPILED.values()}
    assert len(found) == 1
    assert found <= set(made)
