"""``gpumlp predict``: what a trained network says of new data, written to a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .evaluate import delimiter_of

if TYPE_CHECKING:
    from ..model import Model

FORMATS = (".csv", ".parquet", ".npy")


def add_parser(subparsers: Any) -> None:
    """Add the command to ``parser.add_subparsers()``."""
    parser = subparsers.add_parser(
        "predict",
        help="write predictions for data to a file",
        description="Write the class and the probability of each class, or values in the units of the target.",
    )
    parser.add_argument("folder", metavar="RUN", help="a run folder, or its model.safetensors")
    parser.add_argument(
        "data", metavar="DATA", help="a .csv, .parquet, .npy or .npz file; a target in it is ignored"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="a .csv, .parquet or .npy file; an old one is replaced"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it; return the exit code."""
    from ..data import read_features
    from ..run import open_run

    out = Path(args.out)
    check_output(out, Path(args.data))
    model, config = open_run(args.folder, args.device)
    delimiter = delimiter_of(config)
    dataset = read_features(
        args.data, target=model.target_names, delimiter=delimiter, preprocessor=model.preprocessor
    )
    columns = prediction_columns(model, dataset)
    write_columns(out, columns)
    print(f"{len(next(iter(columns.values())))} predictions in {out}: {', '.join(columns)}")
    return 0


def check_output(out: Path, data: Path) -> None:
    """Raise a ValueError unless predictions can be written to `out`."""
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out is {str(out)!r}; expected a file that ends in {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise ValueError(f"--out is {str(out)!r}: there is no folder {str(out.parent)!r}; create it first")
    if out.is_dir():
        raise ValueError(f"--out is {str(out)!r}, a folder; give the name of a file")
    if out.exists() and data.exists() and out.samefile(data):
        raise ValueError(f"--out is {str(out)!r}, the data themselves; give another file")


def prediction_columns(model: Model, data: Any) -> dict[str, np.ndarray]:
    """Return predictions by column, (n,) each: the class and ``probability_CLASS``, or values by target.

    Args:
        model: trained.
        data: as `Model.predict` takes them.
    """
    out = model.predict(data)
    if not model.is_classifier:
        names = model.target_names or [f"y{j}" for j in range(out.shape[1])]
        return dict(zip(names, out.T, strict=True))
    classes = model.classes or [str(k) for k in range(model.n_classes)]
    codes = model.codes(out)
    probabilities = np.column_stack([1 - out[:, 0], out[:, 0]]) if out.shape[1] == 1 else out
    columns = {f"probability_{name}": probabilities[:, k] for k, name in enumerate(classes)}
    target = (model.target_names or ["class"])[0]
    return {target: np.array(classes)[codes], **columns}


def write_columns(out: Path, columns: dict[str, np.ndarray]) -> None:
    """Write columns to a CSV, Parquet or NPY file, which appears whole.

    An NPY file holds the values (n, k) where all columns are numbers, else one record a row, with the names of
    the columns as its fields; neither needs pickle.
    """
    from ..files import open_whole

    with open_whole(out) as stream:
        if out.suffix.lower() == ".npy":
            np.save(stream, _array(columns), allow_pickle=False)
            return
        import pyarrow as pa

        table = pa.table({name: np.ascontiguousarray(values) for name, values in columns.items()})
        if out.suffix.lower() == ".csv":
            from pyarrow import csv

            csv.write_csv(table, stream, csv.WriteOptions(quoting_style="needed"))
        else:
            import pyarrow.parquet as pq

            pq.write_table(table, stream)


def _array(columns: dict[str, np.ndarray]) -> np.ndarray:
    if all(values.dtype.kind == "f" for values in columns.values()):
        return np.column_stack(list(columns.values()))
    n = len(next(iter(columns.values())))
    records = np.empty(n, dtype=[(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        records[name] = values
    return records
