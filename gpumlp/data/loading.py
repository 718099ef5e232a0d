"""One entry for every data set: by name, or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpumlp.data.bundled import BUNDLED, load_bundled
from gpumlp.data.dataset import Dataset
from gpumlp.data.files import Target, load_file
from gpumlp.data.mnist import load_mnist
from gpumlp.data.synthetic import SYNTHETIC
from gpumlp.registry import call_with, nearest


def dataset_names() -> list[str]:
    """Return the names that `load` knows: bundled and synthetic sets, and mnist."""
    return sorted([*BUNDLED, *SYNTHETIC, "mnist"])


def dataset_name(given: object) -> str | None:
    """Return the name of the set that is meant, forgiving case, hyphens and spaces, or None where it is none."""
    name = str(given).strip().lower().replace("-", "_").replace(" ", "_")
    return name if name in dataset_names() else None


def load(
    name_or_path: str | Path,
    *,
    target: Target | None = None,
    task: str | None = None,
    data_dir: str | Path | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Dataset:
    """Return a data set by name, or from a CSV, Parquet, NPY or NPZ file.

    Args:
        name_or_path: one of `dataset_names`, or a path (whatever has a folder or an ending).
        target: of a file, as in `load_file`; a set with a name has its own.
        task: of a file, as in `load_file`.
        data_dir: where MNIST is looked for, as in `load_mnist`; other sets take no notice of it.
        seed: of a synthetic set; None for the set's own.
        **settings: what else the set's function or `load_file` takes.

    Raises:
        ValueError: an unknown name or setting (with the nearest valid one), and what the loaders refuse.
    """
    name = None if isinstance(name_or_path, Path) else dataset_name(name_or_path)
    if name is None:
        if not _looks_like_a_path(name_or_path):
            raise ValueError(
                f"unknown data set {str(name_or_path)!r}{nearest(str(name_or_path).lower(), dataset_names())} "
                "(or a path that ends in .csv, .parquet, .npy or .npz)"
            )
        return call_with(
            "a data file", load_file, {"path": name_or_path, "target": target, "task": task, **settings}
        )
    for key, value in (("target", target), ("task", task)):
        if value is not None:
            raise ValueError(
                f"{key} is given as {value!r}, but the data set {name!r} has its own; leave it out"
            )
    if name in SYNTHETIC:
        own_seed = {} if seed is None else {"seed": seed}
        return call_with(f"data set {name!r}", SYNTHETIC[name], {**settings, **own_seed})
    if settings:
        raise ValueError(f"unknown setting {next(iter(settings))!r} of data set {name!r}; it takes none")
    return load_mnist(data_dir) if name == "mnist" else load_bundled(name)


def _looks_like_a_path(given: str | Path) -> bool:
    path = Path(given)
    return isinstance(given, Path) or path.suffix != "" or len(path.parts) > 1 or path.exists()
