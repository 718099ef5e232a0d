"""``gpumlp train``: from a config, a shipped config, a data set or a data file to a finished run folder."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import note, score_table

if TYPE_CHECKING:
    from ..config import Config
    from ..experiment import Experiment, Scored
    from ..report import RunReport
    from ..run import RunFolder


def add_parser(subparsers: Any) -> None:
    """Add the command to ``parser.add_subparsers()``."""
    parser = subparsers.add_parser(
        "train",
        help="train a network and write a run folder",
        description="Train a network as a config says, or on a data file with sound defaults, and write a run folder: "
        "config.toml, model.safetensors, history.csv, report.html and, when all is done, metrics.json.",
        epilog="train runs/NAME/config.toml trains anew as that run did, to the same weights",
    )
    parser.add_argument(
        "config",
        nargs="?",
        help="a config (.toml), a shipped one (demo, mnist), a data set (iris, digits, ...) or a data file "
        "(.csv, .parquet, .npy, .npz)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, for example --set training.epochs=20; may be given several times",
    )
    parser.add_argument(
        "--target", action="append", metavar="COLUMN", help="column of a data file to predict"
    )
    parser.add_argument("--device", help="auto, cpu, gpu or gpu:N")
    parser.add_argument("--threads", type=int, help="that share each step on the CPU (default: by size)")
    parser.add_argument("--out", metavar="DIR", help="the new run folder (default: runs/NAME-DATE-TIME)")
    parser.add_argument("--data-dir", metavar="DIR", help="where the files of MNIST are")
    parser.add_argument("--resume", metavar="DIR", help="go on with the unfinished run in DIR")
    parser.add_argument("--quiet", action="store_true", help="print the run folder only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it; return the exit code."""
    from ..config import complete_config
    from ..run import RunFolder, new_folder

    if args.resume is not None:
        folder = RunFolder(args.resume)
        _refuse_settings(args)
        folder.check_unfinished()
        config = folder.read_config()
    else:
        config = complete_config(given_config(args))
        folder = RunFolder(args.out if args.out is not None else new_folder(config["name"]))
        folder.check_new()
    return train(config, folder, resume=args.resume is not None, quiet=args.quiet)


def _refuse_settings(args: argparse.Namespace) -> None:
    given = [
        ("CONFIG", args.config),
        ("--set", args.set),
        ("--target", args.target),
        ("--device", args.device),
        ("--threads", args.threads),
    ]
    for name, value in [*given, ("--out", args.out), ("--data-dir", args.data_dir)]:
        if value:
            raise ValueError(f"--resume goes on with the run as it began; leave {name} out")


def given_config(args: argparse.Namespace) -> Config:
    """Return the config that the arguments ask for, with their changes, unchecked."""
    from ..config import apply_settings, from_folder

    config = _read(args.config)
    changes: Config = {}
    apply_settings(config, args.set)
    # what the command line says goes before what stands in the config; its paths start from here
    apply_settings(
        changes,
        [
            setting
            for setting in args.set
            if setting.partition("=")[0].strip() in ("data.source", "data.test_source", "data.data_dir")
        ],
    )
    for section, key, value in (
        ("data", "target", args.target if args.target is None or len(args.target) > 1 else args.target[0]),
        ("data", "data_dir", args.data_dir),
        ("training", "device", args.device),
        ("training", "threads", args.threads),
    ):
        if value is not None:
            changes.setdefault(section, {})[key] = value
    from_folder(changes, Path())
    for section, values in changes.items():
        if isinstance(config.setdefault(section, {}), dict):
            config[section] |= values
    return config


def _read(given: str | None) -> Config:
    """Return the unchecked config that the first argument asks for."""
    from ..config import from_folder, read_config, shipped_config, shipped_configs
    from ..data import EXTENSIONS, dataset_name, dataset_names
    from ..registry import nearest

    if given is None:
        raise ValueError("train needs a config or a data file, for example: gpumlp train demo")
    path = Path(given)
    is_set = dataset_name(given) is not None
    if path.suffix.lower() == ".toml":
        return read_config(path)
    if given in shipped_configs():
        return shipped_config(given)
    if not is_set and path.suffix.lower() not in EXTENSIONS:
        if len(path.parts) > 1 or path.suffix:
            raise ValueError(
                f"{given} is no config and no data file; expected one that ends in .toml, {', '.join(EXTENSIONS)}"
            )
        known = [*dict.fromkeys([*shipped_configs(), *dataset_names()])]
        known.remove("table")  # wants a file beside it
        raise ValueError(
            f"unknown config {given!r}{nearest(given, known)} (or the path of a .toml or data file)"
        )
    config = shipped_config("table")
    config["name"] = given if is_set else "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem)
    config["data"] = {"source": given}
    from_folder(config, Path())
    return config


def train(config: Config, folder: RunFolder, resume: bool = False, quiet: bool = False) -> int:
    """Train by a complete config into a folder, and say what came out.

    Returns:
        0, 1 where the loss became non-finite, or 130 where Ctrl-C was pressed.
    """
    from ..experiment import set_up
    from ..failure import NonFiniteLossError
    from ..run import Checkpoints, Opening

    experiment: Experiment | None = None
    fingerprint = ""
    went_on = False

    def begin() -> None:  # all else was checked by now
        assert experiment is not None
        experiment.check_early_stopping()
        if not resume:
            folder.create(experiment.config)
        if not quiet:
            _describe(experiment)
            if resume:
                done = len(experiment.trainer.history)
                note(f"going on after epoch {done}" if went_on else "no checkpoint yet: beginning anew")

    def save() -> None:
        assert experiment is not None
        folder.save_checkpoint(experiment.trainer, experiment.config, fingerprint)

    try:
        experiment = set_up(config, [Opening(begin, save)])
        experiment.trainer.callbacks.append(Checkpoints(save))
        fingerprint = experiment.fingerprint()
        went_on = resume and folder.load_checkpoint(experiment.trainer, experiment.config, fingerprint)
        try:
            experiment.fit(progress=not quiet)
        except (ValueError, TypeError, OSError):
            folder.discard()
            raise
        parts = _write(experiment, folder)
    except KeyboardInterrupt:
        note(_interrupted(experiment, folder))
        return 130
    except NonFiniteLossError as error:
        note(
            f"error: {error}. {folder} keeps the config and the last good state (checkpoint.safetensors); "
            "train into another folder, and remove this one"
        )
        return 1
    if quiet:
        print(folder)
    else:
        _print_results(experiment, folder, parts)
    return 0


def _interrupted(experiment: Experiment | None, folder: RunFolder) -> str:
    if folder.is_finished:
        return f"interrupted as the run was finished: {folder} is complete"
    if not folder.is_unfinished:
        return "interrupted before the training began; nothing was written"
    where = "interrupted"
    if experiment is not None:
        where += (
            f" after epoch {len(experiment.trainer.history)} of {experiment.config['training']['epochs']}"
        )
    return f"{where}; go on with: gpumlp train --resume {folder}, or remove that folder"


def _describe(experiment: Experiment) -> None:
    trainer = experiment.trainer
    print(f"data      {_data_line(experiment)}", file=sys.stderr)
    settings = experiment.config["training"]
    split = settings["validation_split"]
    held = f", {split:.0%} of the training rows for validation" if split else ""
    size = settings["batch_size"]
    batches = "full batch" if size == "full" else f"batches of {size}"
    print(f"training  {trainer.loss!r}", file=sys.stderr)
    print(f"          {_optimizer_line(experiment)}", file=sys.stderr)
    print(f"          at most {settings['epochs']} epochs, {batches}{held}", file=sys.stderr)
    print(f"\n{trainer.network.summary()}\n", file=sys.stderr)


def _data_line(experiment: Experiment) -> str:
    p = experiment.prepared
    what = (
        f"{len(p.classes)} classes" if p.classes is not None else f"regression of {', '.join(p.target_names)}"
    )
    rows = f"{len(p.X)} rows ({p.n_train} training, {len(p.test_rows)} test)"
    return f"{p.name}: {rows}, {p.X.shape[1]} features, {what}"


def _optimizer_line(experiment: Experiment) -> str:
    # a constant rate is shown as the number that it was given as
    return re.sub(r"ConstantRate\(lr=([^()]*)\)", r"\1", repr(experiment.trainer.optimizer))


def _write(experiment: Experiment, folder: RunFolder) -> dict[str, Scored]:
    """Score both parts, write all files, and return the scores by part."""
    from ..report import render_report

    parts = experiment.scores()
    scores = {part: parts[part].scores if part in parts else {} for part in ("train", "test")}
    page = render_report(_report(experiment, parts))
    folder.finish(experiment.model(), experiment.trainer.history, scores, page)
    return parts


def _report(experiment: Experiment, parts: dict[str, Scored]) -> RunReport:
    """Return the record of the run for its report."""
    from .._version import __version__
    from ..config import config_toml
    from ..layers import Linear
    from ..metrics import confusion_matrix, per_class_scores
    from ..report import RunReport

    p, trainer, history = experiment.prepared, experiment.trainer, experiment.trainer.history
    network = trainer.network
    outputs = [layer.out_features for layer in network.layers if isinstance(layer, Linear)]
    summary = {
        "data": _data_line(experiment),
        "loss": repr(trainer.loss) + (", on the standardised target" if p.target_scaler is not None else ""),
        "optimizer": _optimizer_line(experiment),
        "epochs": f"{len(history)} of {experiment.config['training']['epochs']}"
        + (f" ({history.stopped})" if history.stopped else ""),
        "device": network.backend.describe(),
        "executor": str(trainer.trained_on),
        "precision": network.dtype if trainer.precision == "float32" else trainer.precision,
        "training time": f"{history.train_seconds:.3g} s",
        "speed": f"{history.it_per_second:.4g} epochs/s, {history.steps_per_second:.4g} steps/s, "
        f"{history.samples_per_second:.4g} samples/s",
        "gpumlp": __version__,
    }
    report = RunReport(
        title=f"{experiment.config['name']}: {'-'.join(map(str, [network.in_features, *outputs]))}",
        summary=summary,
        layers=[(text, shape, count) for text, shape, count, _ in network.layer_table()],
        history=history.epochs,
        scores={part: scored.scores for part, scored in parts.items()},
        settings=config_toml(experiment.config),
    )
    shown = parts.get("test")
    if shown is None:
        return report
    if p.classes is not None:
        k = len(p.classes)
        report.confusion = confusion_matrix(shown.true, shown.predicted, k)
        report.classes = p.classes
        report.per_class = per_class_scores(shown.true, shown.predicted, k)
    else:
        report.true, report.predicted, report.target_names = shown.true, shown.predicted, p.target_names
    return report


def _print_results(experiment: Experiment, folder: RunFolder, parts: dict[str, Scored]) -> None:
    history = experiment.trainer.history
    how = f" ({history.stopped})" if history.stopped else ""
    epochs = f"{len(history)} epoch{'s' if len(history) != 1 else ''}"
    speed = f"{history.train_seconds:.3g} s, {history.it_per_second:.4g} it/s"
    print(f"{epochs} in {speed}{how}\n", file=sys.stderr)
    print(score_table({part: scored.scores for part, scored in parts.items()}))
    print(f"\nrun folder  {folder}")
    print(f"report      {folder.report}")
