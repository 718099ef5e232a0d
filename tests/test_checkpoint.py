"""gpumlp.checkpoint: the model file comes back bit for bit, or is refused in one line."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save, save_file

from gpumlp.checkpoint import FORMAT_VERSION, load_tensors, save_tensors

TENSORS = {
    "0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "0.bias": np.array([np.nan, -0.0, np.inf]),
    "step": np.array(7),
    "none": np.zeros((0, 3), dtype=np.float32),
}
METADATA = {"classes": ["a", "b"], "config": {"lr": 0.1, "best": float("inf")}, "note": "é"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_tensors(path, TENSORS, METADATA)
    return path


def assert_same_tensors(loaded, expected):
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()


def header_of(data: bytes) -> dict:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length])


def with_header(data: bytes, header: dict) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def with_metadata(data: bytes, **entries: str | None) -> bytes:
    header = header_of(data)
    kept = {**header["__metadata__"], **entries}
    header["__metadata__"] = {key: text for key, text in kept.items() if text is not None}
    return with_header(data, header)


def test_tensors_and_metadata_come_back(model):
    tensors, metadata = load_tensors(model)
    assert_same_tensors(tensors, TENSORS)
    assert metadata == METADATA
    assert all(array.flags.writeable for array in tensors.values())


arrays = st.sampled_from([np.float32, np.float64, np.int64]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), elements={}
    )
)


free_names = st.text(st.characters(codec="utf-8"), max_size=8).filter(
    lambda name: name not in ("__metadata__", "format", "format_version", "checksum")
)


@given(
    st.dictionaries(free_names, arrays, max_size=4),
    st.dictionaries(free_names, st.integers() | st.text(max_size=5)),
)
@settings(max_examples=60, deadline=None)
@example({"w": np.zeros((), np.float32)}, {})
@example({}, {})
def test_any_tensors_round_trip_bit_for_bit(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_tensors(path, tensors, metadata)
    loaded, back = load_tensors(path)
    assert_same_tensors(loaded, tensors)
    assert back == metadata


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "uint64", "float16"])
def test_other_dtypes_round_trip_too(tmp_path, dtype):
    expected = {"x": np.arange(4).astype(dtype)}
    save_tensors(tmp_path / "m", expected, {})
    assert_same_tensors(load_tensors(tmp_path / "m")[0], expected)


def test_strided_and_big_endian_arrays_are_saved_by_value(tmp_path):
    base = np.arange(12, dtype=np.float64).reshape(3, 4)
    save_tensors(tmp_path / "m", {"t": base.T, "s": base[:, ::2], "b": base.astype(">f8")}, {})
    loaded, _ = load_tensors(tmp_path / "m")
    assert np.array_equal(loaded["t"], base.T)
    assert np.array_equal(loaded["s"], base[:, ::2])
    assert np.array_equal(loaded["b"], base)
    assert loaded["b"].dtype == np.float64


def test_the_same_model_gives_the_same_bytes(tmp_path):
    metadata = {f"key {i}": i for i in range(20)}
    for name in "ab":
        save_tensors(tmp_path / name, TENSORS, metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_safetensors_readers_read_the_tensors(model):
    assert_same_tensors(load_file(model), TENSORS)
    assert header_of(model.read_bytes())["__metadata__"]["format"] == "gpumlp"


@pytest.mark.parametrize("n", range(8))
def test_tensors_start_at_a_multiple_of_8_bytes_whatever_the_metadata(tmp_path, n):
    save_tensors(tmp_path / "m", TENSORS, {"k": "x" * n})
    (length,) = struct.unpack_from("<Q", (tmp_path / "m").read_bytes())
    assert length % 8 == 0


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({"w": [1.0]}, {}, TypeError, "tensor 'w' is a list; expected a NumPy array"),
        ({"w": np.array(["a"])}, {}, TypeError, "tensor 'w' has dtype <U1; expected"),
        ({"w": np.array([None])}, {}, TypeError, "tensor 'w' has dtype object; expected"),
        ({1: np.zeros(1)}, {}, TypeError, "tensor name 1 is a int; expected text"),
        ({"__metadata__": np.zeros(1)}, {}, ValueError, "'__metadata__' is kept for the file format"),
        ({}, {"format": 1}, ValueError, "'format' is kept for the file format"),
        ({}, {"a": {1, 2}}, TypeError, "metadata 'a' cannot be written as JSON"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_is_written(tmp_path, tensors, metadata, error, message):
    with pytest.raises(error, match=message):
        save_tensors(tmp_path / "m", tensors, metadata)
    assert list(tmp_path.iterdir()) == []


FOREIGN = {
    "pickle": pickle.dumps({"weight": list(range(100))}),
    "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(50),
    "text": b"sepal,petal\n1,2\n3,4\n",
    "npz": b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + bytes(50),
    "json": b'{"weight": [1, 2, 3]}',
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused(tmp_path, kind):
    (tmp_path / "m").write_bytes(FOREIGN[kind])
    with pytest.raises(
        ValueError, match=r"^'.*m' is not a safetensors file; expected a model that gpumlp saved"
    ):
        load_tensors(tmp_path / "m")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^no model file '.*m'; expected a file that gpumlp saved"):
        load_tensors(tmp_path / "m")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^'.*' is a folder; give the model file in it"):
        load_tensors(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "m").touch()
    with pytest.raises(ValueError, match=r"^model file '.*m' is empty"):
        load_tensors(tmp_path / "m")


@pytest.mark.parametrize("kept", [3, 8, 9, 100, -1])
def test_a_truncated_file_is_refused(model, kept):
    model.write_bytes(model.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"^model file '.*' is truncated"):
        load_tensors(model)


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    save_file({"w": np.zeros(2)}, tmp_path / "plain")
    save_file({"w": np.zeros(2)}, tmp_path / "torch", metadata={"format": "pt"})
    for name in ("plain", "torch"):
        with pytest.raises(ValueError, match="is a safetensors file, but not one that gpumlp saved"):
            load_tensors(tmp_path / name)


def test_a_newer_format_version_is_refused(model):
    model.write_bytes(with_metadata(model.read_bytes(), format_version=str(FORMAT_VERSION + 1)))
    with pytest.raises(ValueError, match=f"has format version {FORMAT_VERSION + 1}, this gpumlp reads up to"):
        load_tensors(model)


@pytest.mark.parametrize("version", [None, "", "x", "0", "-1", "1.0", "²", "9" * 5000])
def test_a_format_version_that_is_no_version_is_refused(model, version):
    model.write_bytes(with_metadata(model.read_bytes(), format_version=version))
    with pytest.raises(ValueError, match="format_version is"):
        load_tensors(model)


@pytest.mark.parametrize("text", ["", "{", "nul", "[1", "[" * 100_000])
def test_broken_json_in_the_metadata_is_refused_by_name(model, text):
    model.write_bytes(with_metadata(model.read_bytes(), classes=text))
    with pytest.raises(ValueError, match="is damaged: its metadata 'classes' is not JSON"):
        load_tensors(model)


def test_a_changed_value_is_noticed(model):
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: its checksum does not fit"):
        load_tensors(model)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F4", "C64", "U64", "nonsense"])
def test_a_tensor_of_another_dtype_is_refused(tmp_path, dtype):
    data = save({"w": np.zeros(2)}, metadata={"format": "gpumlp", "format_version": "1", "checksum": ""})
    header = header_of(data)
    header["w"]["dtype"] = dtype
    header["w"]["shape"] = [{"BF16": 8, "F8_E4M3": 16, "F4": 32}.get(dtype, 2)]
    (tmp_path / "m").write_bytes(with_header(data, header))
    with pytest.raises(ValueError, match="damaged"):
        load_tensors(tmp_path / "m")


def load_or_refuse(path: Path) -> None:
    """Load equal tensors and metadata, or raise one line of ValueError; any other outcome fails the test."""
    refusal: ValueError | None = None
    try:
        tensors, metadata = load_tensors(path)
    except ValueError as error:
        refusal = error
    if refusal is not None:
        assert type(refusal) is ValueError
        assert "\n" not in str(refusal)
        assert refusal.__suppress_context__ or refusal.__context__ is None
    else:
        assert_same_tensors(tensors, TENSORS)
        assert metadata == METADATA


def test_truncation_at_any_byte_is_refused(model):
    data = model.read_bytes()
    for kept in range(len(data)):
        model.write_bytes(data[:kept])
        with pytest.raises(ValueError, match=r"^model file .* is (empty|truncated)"):
            load_tensors(model)


fixture_is_rewritten = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fixture_is_rewritten
@given(data=st.data())
def test_flipped_bytes_in_the_header_give_a_refusal_or_an_equal_load(model, data):
    save_tensors(model, TENSORS, METADATA)
    content = bytearray(model.read_bytes())
    end = 8 + struct.unpack_from("<Q", content)[0]
    for position in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    model.write_bytes(content)
    load_or_refuse(model)


def test_any_single_character_of_the_header_may_change(model):
    # by a digit, a letter and a space: shapes, dtypes and names that still parse are the dangerous ones
    content = model.read_bytes()
    for position in range(8 + struct.unpack_from("<Q", content)[0]):
        for byte in (b"3", b"I", b" "):
            model.write_bytes(content[:position] + byte + content[position + 1 :])
            load_or_refuse(model)


@fixture_is_rewritten
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused(model, content):
    model.write_bytes(content)
    with pytest.raises(ValueError):
        load_tensors(model)
