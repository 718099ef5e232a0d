"""Imports run one way, as the design says, and ``import gpumlp`` loads NumPy and nothing heavier."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import gpumlp
import gpumlp.kernels

HEAVY = (
    *("numba", "llvmlite", "cupy", "cupyx", "nvmath", "torch", "sklearn", "scipy", "matplotlib", "pyarrow"),
    *("pandas", "jinja2", "markupsafe", "safetensors", "tqdm", "threadpoolctl", "tomli_w", "joblib", "h5py"),
    *("skimage", "onnx", "keras", "jax", "cuda"),
)

# From the bottom to the top. A module may import modules of its own line and of those above it here, no other;
# a name stands for a package and all that is in it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("gpumlp._version",),
    ("gpumlp.kernels",),
    ("gpumlp.backend", "gpumlp.cpus"),
    ("gpumlp.arena",),
    ("gpumlp.program",),
    ("gpumlp.executors",),
    # what knows nothing of networks: names, checks, files, numbers
    (
        "gpumlp.registry",
        "gpumlp.settings",
        "gpumlp.checks",
        "gpumlp.interchange",
        "gpumlp.mistakes",
        "gpumlp.files",
        "gpumlp.history",
        "gpumlp.progress",
    ),
    (
        "gpumlp.initializers",
        "gpumlp.schedules",
        "gpumlp.predictions",
        "gpumlp.metrics",
        "gpumlp.splits",
        "gpumlp.rows",
        "gpumlp.checkpoint",
    ),
    ("gpumlp.data",),
    ("gpumlp.chain", "gpumlp.layers", "gpumlp.losses", "gpumlp.optimizers"),
    ("gpumlp.network", "gpumlp.inference", "gpumlp.model", "gpumlp.step", "gpumlp.failure"),
    (
        *("gpumlp.trainer", "gpumlp.intake", "gpumlp.loop", "gpumlp.feed"),
        *("gpumlp.callbacks", "gpumlp.activity", "gpumlp.probe"),
    ),
    ("gpumlp.many",),
    ("gpumlp.validation", "gpumlp.baselines"),
    ("gpumlp",),
    ("gpumlp.report", "gpumlp.machine", "gpumlp.workloads"),
    ("gpumlp.config_values", "gpumlp.config", "gpumlp.run", "gpumlp.experiment"),
    ("gpumlp.sweep", "gpumlp.sweep_results"),
    ("gpumlp.recipes", "gpumlp.interop"),
    ("gpumlp.commands", "gpumlp.cli"),
)
# These know only what is named here: each could be taken out of the library and used by itself.
ALONE = {
    "gpumlp.kernels": set(),
    "gpumlp.backend": {"gpumlp.kernels"},
    "gpumlp.cpus": set(),
    "gpumlp.registry": set(),
    "gpumlp.settings": set(),
    "gpumlp.files": set(),
    "gpumlp.history": set(),
    "gpumlp.progress": set(),
    "gpumlp.checks": {"gpumlp.backend", "gpumlp.interchange"},
    "gpumlp.interchange": {"gpumlp.backend"},
    "gpumlp.arena": {"gpumlp.backend"},
    "gpumlp.initializers": {"gpumlp.registry", "gpumlp.settings"},
    "gpumlp.schedules": {"gpumlp.registry", "gpumlp.settings"},
    "gpumlp.predictions": set(),
    "gpumlp.rows": set(),
    "gpumlp.metrics": {"gpumlp.predictions", "gpumlp.registry"},
    "gpumlp.data": {"gpumlp.registry", "gpumlp.files", "gpumlp.checks"},
    "gpumlp.report": set(),
}  # type: dict[str, set[str]]


class Import(NamedTuple):
    module: str
    imported: str
    within_function: bool
    line: int


def _sources() -> dict[str, Path]:
    found = {}
    for package in (gpumlp, gpumlp.kernels):
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            if package is gpumlp and "kernels" in path.relative_to(root).parts:
                continue  # in a wheel the kernels lie in the package, here beside it
            parts = (package.__name__, *path.relative_to(root).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = _sources()


def _resolve(module: str, path: Path, node: ast.ImportFrom) -> Iterator[str]:
    """The modules that a ``from`` import names: ``from . import x`` may mean the module x."""
    base = node.module or ""
    if node.level:
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        package = package[: len(package) - (node.level - 1)]
        base = ".".join([*package, *([node.module] if node.module else [])])
    for alias in node.names:
        full = f"{base}.{alias.name}"
        yield full if full in SOURCES else base


def _imports(module: str, path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, within: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from walk(other, within)
            elif isinstance(child, ast.ImportFrom):
                for name in _resolve(module, path, child):
                    yield Import(module, name, within, child.lineno)
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, within, child.lineno)
            else:
                inner = within or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


@functools.cache
def all_imports() -> list[Import]:
    """Read when a test asks for them: every process that collects the tests would read all sources."""
    return [found for module, path in SOURCES.items() for found in _imports(module, path)]


def inside(module: str, package: str) -> bool:
    return module == package or (package != "gpumlp" and module.startswith(f"{package}."))


def place(module: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if any(inside(module, n) for n in names)), None)


def test_the_reader_of_imports_reads_this_package():
    """The rules below hold nothing if nothing is read."""
    pairs = {(i.module, i.imported) for i in all_imports()}
    assert len(pairs) > 150
    assert ("gpumlp.program", "gpumlp.kernels") in pairs
    assert ("gpumlp.kernels.reference.losses", "gpumlp.kernels.reference.activations") in pairs
    assert ("gpumlp.layers.base", "gpumlp.chain") in pairs  # within a function
    assert ("gpumlp.chain", "gpumlp.layers") not in pairs  # for type checking only
    assert any(i.within_function for i in all_imports())


@pytest.mark.parametrize("module", SOURCES)
def test_every_module_has_a_place_in_the_order(module):
    assert place(module) is not None, f"give {module} a place in LAYERS of {Path(__file__).name}"


def test_imports_run_one_way():
    wrong = []
    for i in all_imports():
        if not i.imported.startswith("gpumlp"):
            continue
        own, other = place(i.module), place(i.imported)
        assert other is not None
        if own is not None and other > own:
            wrong.append(f"{i.module}:{i.line} imports {i.imported}")
    assert not wrong, "imports against the order of LAYERS: " + "; ".join(wrong)


@pytest.mark.parametrize("package", ALONE)
def test_what_stands_alone_knows_nothing_of_the_rest(package):
    allowed = {package, *ALONE[package]}
    wrong = [
        f"{i.module}:{i.line} imports {i.imported}"
        for i in all_imports()
        if inside(i.module, package)
        and i.imported.startswith("gpumlp")
        and not any(inside(i.imported, name) for name in allowed)
    ]
    assert not wrong, "; ".join(wrong)


def test_heavy_modules_are_imported_within_functions():
    """The kernels of Numba are such modules themselves: what uses them imports them within functions."""
    heavy_packages = ("gpumlp.kernels.cpu",)
    wrong = []
    for i in all_imports():
        at_home = any(inside(i.module, p) for p in heavy_packages)
        if i.within_function or at_home:
            continue
        if i.imported.split(".")[0] in HEAVY or any(inside(i.imported, p) for p in heavy_packages):
            wrong.append(f"{i.module}:{i.line} imports {i.imported}")
    assert not wrong, "import within the function that needs it: " + "; ".join(wrong)


def test_cupy_is_imported_by_the_backend_and_the_kernels_of_the_gpu_alone():
    """In any spelling: a reference kernel may take CuPy's twin of scipy.special, which is `cupyx`."""
    allowed = {
        *("gpumlp.backend", "gpumlp.interchange"),
        *("gpumlp.kernels.cuda.cupy_device", "gpumlp.kernels.reference.activations"),
    }
    found = set()
    for module, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
                names = [ast.unparse(a).strip("'\"") for a in node.args]
                found |= {module for name in names if name.split(".")[0] in ("cupy", "cupyx")}
    found |= {i.module for i in all_imports() if i.imported.split(".")[0] in ("cupy", "cupyx")}
    assert found <= allowed


def test_import_gpumlp_loads_numpy_and_nothing_heavier():
    code = (
        "import sys, gpumlp, gpumlp.data, gpumlp.kernels.reference, gpumlp.executors\n"
        "print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert {"numpy", "gpumlp"} <= loaded
    assert not loaded & set(HEAVY)


def test_a_network_is_made_and_run_without_the_heavy_ones():
    """NumPy alone runs the eager executor; only the error function of gelu is SciPy's."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
import numpy as np, gpumlp as gm
network = gm.mlp([3, 4, 2], activation="tanh", dropout=0.1, device="cpu")
trainer = gm.Trainer(network, loss="mse", seed=0)
x = np.random.default_rng(0).normal(size=(20, 3))
history = trainer.fit(x, x[:, :2], epochs=2, batch_size=5, progress=False)
assert np.isfinite(history["loss"]).all() and network.predict(x).shape == (20, 2)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_every_public_name_is_there():
    missing = [name for name in gpumlp.__all__ if not hasattr(gpumlp, name)]
    assert not missing
    assert len(set(gpumlp.__all__)) == len(gpumlp.__all__)
