"""CSV and Parquet files read as tables by pyarrow, with its errors in one clear line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpumlp.data.columns import refuse_duplicates

if TYPE_CHECKING:
    import pyarrow as pa


def read_csv(path: Path, delimiter: str = ",", text_columns: Sequence[str] = ()) -> pa.Table:
    """Return a CSV file with a header row as a table; empty fields, NA, NaN and null are missing values.

    Args:
        path: the file, in UTF-8.
        delimiter: the character between fields.
        text_columns: columns to take as text whatever they look like.

    Raises:
        ValueError: an empty file, a header only, a row of another length, two columns of one name, no UTF-8,
            another delimiter.
    """
    import pyarrow as pa
    import pyarrow.types as t

    if len(delimiter) != 1:
        raise ValueError(f"delimiter is {delimiter!r}; expected one character such as ',' or ';'")
    _refuse_utf16(path)
    types = dict.fromkeys(text_columns, pa.string())
    try:
        try:
            table = _parse(path, delimiter, types, threads=True)
        except pa.ArrowInvalid:
            # only one thread alone knows the number of the row
            table = _parse(path, delimiter, types, threads=False)
        names = list(table.column_names)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 (its header row); save it as UTF-8") from None
    except pa.ArrowInvalid as error:
        raise ValueError(_csv_line(path, str(error), delimiter)) from None
    for name in names:
        if t.is_binary(table.schema.field(names.index(name)).type):
            raise ValueError(f"{path} is not UTF-8 (column {name!r}); save it as UTF-8")
    if not table.num_rows:
        raise ValueError(f"{path} has a header and no rows below it; expected one row for each sample")
    refuse_duplicates(names, str(path))
    others = [sign for sign in ";\t" if len(names) == 1 and sign in names[0]]
    if others:
        raise ValueError(
            f"{path} has one column only, {names[0]!r}; give delimiter={others[0]!r} if that is it"
        )
    return table


def _parse(path: Path, delimiter: str, types: dict[str, pa.DataType], *, threads: bool) -> pa.Table:
    from pyarrow import csv

    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(use_threads=threads),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=True),
    )


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{path} is in UTF-16; save it as UTF-8")


def _csv_line(path: Path, message: str, delimiter: str) -> str:
    if "Empty CSV" in message:
        return f"{path} is empty; expected a header row and one row for each sample"
    found = re.search(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)", message)
    if found:
        row, expected, got = found.groups()
        where = f"row {row}" if row else "a row"
        return (
            f"{path} is ragged: {where} (the header is row 1) has {got} fields where the header has "
            f"{expected}; "
            f"mend the row, or give the delimiter if it is not {delimiter!r}"
        )
    if "UTF8" in message:
        return f"{path} is not UTF-8; save it as UTF-8"
    return f"{path} cannot be read as CSV: {' '.join(message.split())}"


def read_parquet(path: Path) -> pa.Table:
    """Return a Parquet file as a table, without the row index that pandas writes beside the columns.

    Raises:
        ValueError: a file that is not Parquet or is damaged, no rows, two columns of one name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from None
    if not table.num_rows:
        raise ValueError(f"{path} has no rows; expected one row for each sample")
    refuse_duplicates(list(table.column_names), str(path))
    return table.select([name for name in table.column_names if not name.startswith("__index_level_")])
