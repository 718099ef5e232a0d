"""``gpumlp evaluate``: the scores of a trained network on data with a target."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import note, score_table

if TYPE_CHECKING:
    from ..config import Config
    from ..data import Dataset
    from ..model import Model


def add_parser(subparsers: Any) -> None:
    """Add the command to ``parser.add_subparsers()``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a trained network on data with a target",
        description="Print the loss and all scores that apply, in the units of the target.",
    )
    parser.add_argument("folder", metavar="RUN", help="a run folder, or its model.safetensors")
    parser.add_argument(
        "data", metavar="DATA", help="a .csv, .parquet, .npy or .npz file, or the name of a data set"
    )
    parser.add_argument(
        "--target",
        action="append",
        metavar="COLUMN",
        help="the target column (default: the name it had in training)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where the files of MNIST are (default: as in training)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it; return the exit code."""
    from ..experiment import score
    from ..run import open_run

    model, config = open_run(args.folder, args.device)
    dataset = _dataset(model, config, args)
    scored = score(model, model.inputs(dataset), dataset.y)
    print(score_table({dataset.name: scored.scores}))
    return 0


def _dataset(model: Model, config: Config | None, args: argparse.Namespace) -> Dataset:
    from ..data import dataset_name, load, load_file

    name = dataset_name(args.data)
    if name is None:
        target = target_of(model, config, args.data) if args.target is None else args.target
        return load_file(
            args.data,
            target=target,
            task=None if model.classes is not None else "regression",
            drop=_dropped(config, args.data),
            delimiter=delimiter_of(config),
            classes=model.classes,
            preprocessor=model.preprocessor,
        )
    trained_on: Config = {} if config is None else config["data"]
    if trained_on and dataset_name(trained_on["source"]) != name:
        trained_on = {}
    data_dir = args.data_dir or trained_on.get("data_dir")
    dataset = load(name, data_dir=data_dir, **trained_on.get("settings", {}))
    if dataset.classes != model.classes:
        raise ValueError(
            f"the data set {name} has the classes {dataset.classes or 'of no classification'}, and the model "
            f"{model.classes or 'is one of regression'}; give data of the kind that it was trained on"
        )
    if trained_on:
        note(
            f"note: the run was trained on rows of {name} too; its scores on the others are in its metrics.json"
        )
    return dataset


def target_of(model: Model, config: Config | None, path: str) -> Any:
    """Return the target to look for in a file: the one of training, by its name."""
    if Path(path).suffix.lower() != ".npz":
        return model.target_names
    # the arrays of an NPZ file have names of their own
    trained_on = "" if config is None else config["data"]["source"]
    return config["data"]["target"] if config is not None and trained_on.lower().endswith(".npz") else None


def delimiter_of(config: Config | None) -> str:
    """Return what stood between the fields of the CSV file of the training."""
    return "," if config is None else str(config["data"]["delimiter"])


def _dropped(config: Config | None, path: str) -> list[str]:
    """The columns of an array that training left out; a table's columns are taken by name."""
    is_array = Path(path).suffix.lower() in (".npy", ".npz")
    return list(config["data"]["drop"]) if config is not None and is_array else []
