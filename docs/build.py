"""Make the API pages, one for each module, from the docstrings: ``python docs/build.py FOLDER``, or ``make docs``."""

from __future__ import annotations

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import gpumlp
import gpumlp.kernels

WITHOUT_A_PAGE = ("gpumlp._version", "gpumlp.recipes.")
"""Beginnings of the names of modules that nobody imports."""


def modules() -> list[str]:
    """Return the names of all modules that have a page."""
    names = ["gpumlp", "gpumlp.kernels"]
    for package in (gpumlp, gpumlp.kernels):
        names += [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in dict.fromkeys(names) if not name.startswith(WITHOUT_A_PAGE)]


def build(folder: Path) -> None:
    """Write the pages."""
    for name in gpumlp.__all__:  # what is loaded when it is first asked for, too
        vars(gpumlp).setdefault(name, getattr(gpumlp, name))
    pdoc.render.configure(docformat="google", footer_text=f"gpumlp {gpumlp.__version__}", show_source=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The module specification")  # a package brought its modules along
        pdoc.pdoc(*modules(), output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
