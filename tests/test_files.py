"""gpumlp.files: a file appears whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumlp import files


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("data", "expected"), [(b"\x00\xff", b"\x00\xff"), ("naïve\n", "naïve\n".encode()), ("", b"")]
)
def test_write_whole_writes_the_bytes_and_leaves_nothing_else(tmp_path, data, expected):
    files.write_whole(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == expected
    assert names(tmp_path) == ["a"]


def test_write_whole_replaces_an_old_file(tmp_path):
    (tmp_path / "a").write_text("a long old text")
    files.write_whole(str(tmp_path / "a"), "new")
    assert (tmp_path / "a").read_text() == "new"


def test_the_final_name_appears_only_when_the_block_has_ended(tmp_path):
    with files.open_whole(tmp_path / "a") as stream:
        stream.write(b"x" * 100_000)
        stream.flush()
        assert not (tmp_path / "a").exists()
        (temporary,) = names(tmp_path)
        assert temporary.startswith(".a.")
        assert temporary.endswith(files.TEMPORARY_SUFFIX)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").stat().st_size == 100_000


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("opener", [files.open_whole, files.open_whole_text])
def test_an_exception_in_the_middle_keeps_the_old_file_and_no_temporary(tmp_path, opener, error):
    (tmp_path / "a").write_text("old")

    def write_half():
        with opener(tmp_path / "a") as stream:
            stream.write("half" if opener is files.open_whole_text else b"half")
            stream.flush()
            raise error

    with pytest.raises(error):
        write_half()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_sync_or_rename_keeps_the_old_file_and_no_temporary(tmp_path, monkeypatch, step):
    (tmp_path / "a").write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_the_data_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def record_replace(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    files.write_whole(tmp_path / "a", "new")
    assert events == (["file", "rename", "folder"] if os.name == "posix" else ["file", "rename"])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_process_leaves_no_file_of_the_final_name(tmp_path):
    script = (
        "import sys, time\n"
        "from gpumlp.files import open_whole\n"
        "with open_whole(sys.argv[1]) as stream:\n"
        "    stream.write(b'half')\n"
        "    stream.flush()\n"
        "    print('in the middle', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.kill()
        assert process.wait(timeout=30) == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".model.")
    assert left.endswith(files.TEMPORARY_SUFFIX)


def test_a_library_that_wants_a_path_writes_through_aside(tmp_path):
    with files.aside(tmp_path / "x.npy") as temporary, open(temporary, "wb") as stream:
        np.save(stream, np.arange(3))
    assert np.load(tmp_path / "x.npy").tolist() == [0, 1, 2]
    assert names(tmp_path) == ["x.npy"]


def test_a_stream_that_the_writer_closes_itself_is_fine(tmp_path):
    with files.open_whole(tmp_path / "a") as stream:
        stream.write(b"all")
        stream.close()
    assert (tmp_path / "a").read_bytes() == b"all"


def test_text_streams_keep_the_line_ends_that_they_are_given(tmp_path):
    with files.open_whole_text(tmp_path / "a.csv") as stream:
        csv.writer(stream, lineterminator="\n").writerows([["é", 1], ["b", 2]])
    assert (tmp_path / "a.csv").read_bytes() == "é,1\nb,2\n".encode()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_file_has_the_mode_of_an_ordinary_new_file(tmp_path):
    files.write_whole(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need rights on Windows")
def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_long_file_name_still_has_room_for_its_temporary_name(tmp_path):
    files.write_whole(tmp_path / ("n" * 255), "x")
    assert names(tmp_path) == ["n" * 255]


def test_a_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"^cannot write '.*model': there is no folder '.*run'; create it first$"
    ):
        files.write_whole(tmp_path / "run" / "model", b"")


def test_a_folder_in_the_place_of_the_file_is_one_clear_line(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"^cannot write '.*a': it is a folder; give the name of a file$"):
        files.write_whole(tmp_path / "a", b"")
    assert names(tmp_path) == ["a"]


def test_write_json_takes_numpy_values_and_writes_strict_json(tmp_path):
    value = {
        "test": {"accuracy": np.float32(0.5), "n": np.int64(3), "auc": float("nan"), "loss": np.inf},
        "counts": np.eye(2, dtype=np.int64),
        "names": ("å", None, True),
    }
    files.write_json(tmp_path / "m.json", value)

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == {
        "test": {"accuracy": 0.5, "n": 3, "auc": None, "loss": None},
        "counts": [[1, 0], [0, 1]],
        "names": ["å", None, True],
    }
    assert text.endswith("}\n")


def test_write_json_of_what_json_cannot_hold_writes_nothing(tmp_path):
    with pytest.raises(TypeError, match="cannot write a set as JSON"):
        files.write_json(tmp_path / "m.json", {"a": {1}})
    assert names(tmp_path) == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(json_values)
def test_json_values_come_back_equal(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
