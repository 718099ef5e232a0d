"""Data files: CSV, Parquet, NPY and NPZ to a `Dataset`, with the target by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpumlp.data.arrays import NpzFile, map_npy, two_dimensions
from gpumlp.data.columns import as_column, listing, name_hint
from gpumlp.data.dataset import Dataset, float32_matrix
from gpumlp.data.tables import read_csv, read_parquet
from gpumlp.data.targets import check_task, detect_task, encode_classes, encode_labels, quantities
from gpumlp.registry import nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from gpumlp.data.features import Preprocessor

EXTENSIONS = (".csv", ".parquet", ".npy", ".npz")

Target = str | int | Sequence[str | int]


def load_file(
    path: str | Path,
    *,
    target: Target | None = None,
    task: str | None = None,
    drop: Sequence[str] = (),
    delimiter: str = ",",
    classes: Sequence[str] | None = None,
    preprocessor: Preprocessor | None = None,
) -> Dataset:
    """Return a CSV, Parquet, NPY or NPZ file as a data set with its target.

    The columns of an NPY file are x0, x1, ...; an NPZ file holds X and y, or one array like an NPY file.
    Text, boolean and dictionary targets are classes; so is a whole-number column with at most 20 different
    values and two rows or more for each on average. Every other number, and all floating point, is a quantity
    for regression.

    Args:
        path: the file.
        target: name of the target column, or its index (-1 is the last); several for regression. An NPZ file
            with X and y needs none: it is "y", or the name of another of its arrays.
        task: "classification" or "regression", where the rule above is not what is wanted.
        drop: columns to leave out.
        delimiter: the character between the fields of a CSV file.
        classes: to evaluate a model of classification: its class names, whose codes the labels then get.
        preprocessor: to evaluate a model: its preprocessor, so that a column of text is read as text.

    Raises:
        ValueError: a file that is missing, empty, damaged or of unknown kind; a target that is not there, has
            missing values or holds one class only; labels unseen in training (with `classes`).
    """
    task = "classification" if classes is not None else check_task(task)
    path = _existing(path)
    if path.suffix.lower() == ".npz":
        npz = NpzFile(path)
        if _members(npz) is not None:
            return _from_npz(npz, "y" if target is None else target, task, classes, drop)
    if path.suffix.lower() in (".npy", ".npz"):
        array = map_npy(path) if path.suffix.lower() == ".npy" else _only_array(NpzFile(path))
        names = [f"x{j}" for j in range(array.shape[1])]
        targets = _find(target, names, path)
        columns = [as_column(np.array(array[:, names.index(name)])) for name in targets]
        kept = _kept(names, targets, drop, path)
        features = _take_columns(array, [names.index(name) for name in kept])
        return _labelled(path, features, kept, columns, targets, task, classes)
    table = _read_table(path, delimiter, preprocessor)
    targets = _find(target, table.column_names, path)
    kept = _kept(table.column_names, targets, drop, path)
    columns = [table.column(name) for name in targets]
    return _labelled(path, table.select(kept), kept, columns, targets, task, classes)


def read_features(
    path: str | Path,
    *,
    target: Target | None = None,
    delimiter: str = ",",
    preprocessor: Preprocessor | None = None,
) -> Dataset:
    """Return a file as a set without a target, to predict on; the target column may be in it or not.

    Args:
        path: a CSV, Parquet, NPY or NPZ file.
        target: what the model was trained to predict, left out where the file has it. (From an NPY file,
            which has no names, it is left out where the array is wider than the model by just the targets.)
        delimiter: the character between the fields of a CSV file.
        preprocessor: the model's, so that a column of text is read as text, and to know how wide an array
            should be.

    Raises:
        ValueError: a file that is missing, empty, damaged or of unknown kind.
    """
    path = _existing(path)
    wanted = [] if target is None else _as_list(target)
    if path.suffix.lower() not in (".npy", ".npz"):
        table = _read_table(path, delimiter, preprocessor)
        return Dataset(path.stem, table.select([name for name in table.column_names if name not in wanted]))
    if path.suffix.lower() == ".npz":
        npz = NpzFile(path)
        members = _members(npz)
        if members is not None:
            return Dataset(path.stem, npz.matrix(members))
        array: Any = _only_array(npz)
    else:
        array = map_npy(path)
    if (
        preprocessor is not None
        and wanted
        and array.shape[1] == len(preprocessor.feature_names) + len(wanted)
    ):
        names = [f"x{j}" for j in range(array.shape[1])]
        targets = _find(wanted, names, path)
        kept = [name for name in names if name not in targets]
        return Dataset(
            path.stem, _take_columns(array, [names.index(name) for name in kept]), feature_names=kept
        )
    return Dataset(path.stem, array)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() not in EXTENSIONS:
        what = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        hint = nearest(path.suffix.lower(), EXTENSIONS)
        raise ValueError(f"{path} {what}{hint}: CSV, Parquet, NPY and NPZ files can be read")
    if not path.exists():
        beside = sorted(p.name for p in path.parent.glob("*") if p.suffix.lower() in EXTENSIONS)
        hint = name_hint(path.name, beside) if beside else "; check the path"
        raise ValueError(f"there is no file {path}{hint}")
    if not path.is_file():
        raise ValueError(f"{path} is a folder; expected a CSV, Parquet, NPY or NPZ file")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; expected a file with one row for each sample")
    return path


def _read_table(path: Path, delimiter: str, preprocessor: Preprocessor | None) -> pa.Table:
    if path.suffix.lower() == ".parquet":
        return read_parquet(path)
    text_columns: list[str] = []
    if preprocessor is not None:
        kinds = zip(preprocessor.feature_names, preprocessor.kinds, strict=True)
        text_columns = [name for name, kind in kinds if kind == "text"]
    return read_csv(path, delimiter, text_columns)


def _as_list(target: Target) -> list[str | int]:
    return [target] if isinstance(target, str | int) else list(target)


def _find(target: Target | None, names: Sequence[str], path: Path) -> list[str]:
    """Return the target columns by name; a number, or text of one that is no name, is an index."""
    if target is None or target == "" or (not isinstance(target, str | int) and not target):
        raise ValueError(f"{path} needs a target column; name one of {listing(names)}")
    found = [_one_target(wanted, names, path) for wanted in _as_list(target)]
    if len(set(found)) < len(found):
        raise ValueError(f"the target columns {listing(found)} name a column twice; name each once")
    return found


def _one_target(wanted: str | int, names: Sequence[str], path: Path) -> str:
    if wanted in names:
        return str(wanted)
    try:
        index = int(wanted)
    except ValueError:
        raise ValueError(f"{path} has no target column {wanted!r}{name_hint(wanted, names)}") from None
    if not -len(names) <= index < len(names):
        raise ValueError(
            f"{path} has no target column {wanted}; expected a name, or an index of {-len(names)} to "
            f"{len(names) - 1}"
        )
    return names[index]


def _kept(names: Sequence[str], targets: Sequence[str], drop: Sequence[str], path: Path) -> list[str]:
    for name in [drop] if isinstance(drop, str) else drop:
        if name not in names:
            raise ValueError(f"{path} has no column {name!r} to leave out{name_hint(name, names)}")
    kept = [name for name in names if name not in targets and name not in drop]
    if not kept:
        raise ValueError(
            f"{path} has no column left for features beside {listing([*targets, *drop])}; give one at least"
        )
    return kept


def _take_columns(array: Any, columns: list[int]) -> Any:
    """Return the columns as a view where they stand side by side, else as a new float32 matrix."""
    first, last = columns[0], columns[-1]
    if columns == list(range(first, last + 1)):
        return array[:, first : last + 1]
    return float32_matrix(array, columns)


def _labelled(
    path: Path,
    features: Any,
    names: list[str],
    columns: Sequence[pa.ChunkedArray],
    targets: list[str],
    task: str | None,
    classes: Sequence[str] | None,
) -> Dataset:
    if task is None:
        task = detect_task(columns[0], targets[0]) if len(columns) == 1 else "regression"
    if task == "classification" and len(columns) > 1:
        raise ValueError(
            f"classification takes one target column; got {listing(targets)}: name one, or ask for regression"
        )
    y: Any
    if task == "regression":
        y, found = quantities(columns, targets), None
    elif classes is not None:
        y, found = encode_labels(columns[0], classes, targets[0]), list(classes)
    else:
        y, found = encode_classes(columns[0], targets[0])
    return Dataset(path.stem, features, y, names, targets, found)


def _members(npz: NpzFile) -> str | None:
    """Return the name of the array of features where the file has one called X (or x), else None."""
    return next((name for name in ("X", "x") if name in npz.names), None)


def _only_array(npz: NpzFile) -> Any:
    if len(npz.names) > 1:
        raise ValueError(f"{npz.path} holds the arrays {listing(npz.names)}; expected X and y, or one array")
    name = npz.names[0]
    # whole numbers stay what they are, because a target of whole numbers may be one of classes
    return two_dimensions(npz.array(name), f"{npz.path}") if npz.holds_integers(name) else npz.matrix(name)


def _from_npz(
    npz: NpzFile, target: Target, task: str | None, classes: Sequence[str] | None, drop: Sequence[str]
) -> Dataset:
    X_name = _members(npz) or ""
    wanted = _as_list(target)
    others = [name for name in npz.names if name != X_name]
    if len(wanted) != 1 or wanted[0] not in others:
        raise ValueError(
            f"{npz.path} has no target array "
            f"{listing([str(w) for w in wanted])}{name_hint(wanted[0], others) if others else '; it holds no other'}"
        )
    if drop:
        raise ValueError(
            f"{npz.path} holds X and y, whose columns have no names to leave out; drop is for columns of a "
            "table"
        )
    name = str(wanted[0])
    values, X = npz.array(name), npz.matrix(X_name)
    if values.ndim not in (1, 2):
        raise ValueError(
            f"{npz.path}: the target {name!r} has shape {values.shape}; expected (rows,) or (rows, k)"
        )
    if len(values) != len(X):
        raise ValueError(
            f"{npz.path}: {X_name} has {len(X)} rows and {name} has {len(values)}; give one target for each "
            "row"
        )
    columns = (
        [as_column(values)] if values.ndim == 1 else [as_column(np.array(column)) for column in values.T]
    )
    targets = [name] if values.ndim == 1 else [f"{name}{j}" for j in range(len(columns))]
    return _labelled(npz.path, X, [f"x{j}" for j in range(X.shape[1])], columns, targets, task, classes)
