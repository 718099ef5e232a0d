"""MNIST: the IDX parser on small files, OpenML by a stand-in, and the real files where they are."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest

from gpumlp.data import load_mnist, prepare
from gpumlp.data.mnist import IMAGES, LABELS


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        IMAGES[0]: rng.integers(0, 256, (12, 4, 3), np.uint8),
        LABELS[0]: rng.integers(0, 10, 12).astype(np.uint8),
        IMAGES[1]: rng.integers(0, 256, (5, 4, 3), np.uint8),
        LABELS[1]: rng.integers(0, 10, 5).astype(np.uint8),
    }


def write(folder: Path, arrays: dict[str, np.ndarray], suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        data = idx(array)
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return folder


@pytest.fixture(autouse=True)
def _no_other_source(monkeypatch):
    monkeypatch.delenv("GPUMLP_DATA", raising=False)

    def unreachable(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_four_files_give_scaled_pixels_with_the_training_rows_first(tmp_path, arrays, suffix):
    data = load_mnist(write(tmp_path, arrays, suffix))
    pixels = np.concatenate([arrays[name].reshape(-1, 12) for name in IMAGES])
    np.testing.assert_array_equal(data.features, pixels.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.y, np.concatenate([arrays[name] for name in LABELS]))
    assert data.features.dtype == np.float32
    assert data.n_train == 12
    assert data.classes == list("0123456789")


def test_a_subfolder_called_mnist_is_looked_into(tmp_path, arrays):
    write(tmp_path / "mnist", arrays)
    assert load_mnist(tmp_path).n_samples == 17


def test_the_environment_variable_names_the_folder_where_none_is_given(tmp_path, arrays, monkeypatch):
    monkeypatch.setenv("GPUMLP_DATA", str(write(tmp_path / "mnist", arrays).parent))
    assert load_mnist().n_samples == 17


def test_the_folder_given_comes_before_the_environment_variable(tmp_path, arrays, monkeypatch):
    monkeypatch.setenv("GPUMLP_DATA", str(tmp_path / "nowhere"))
    assert load_mnist(write(tmp_path / "here", arrays)).n_samples == 17


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        load_mnist(tmp_path / "nowhere")


def test_a_folder_with_three_of_the_four_files_says_which_is_lacking(tmp_path, arrays):
    del arrays[LABELS[1]]
    with pytest.raises(ValueError, match=f"lacks {LABELS[1]}"):
        load_mnist(write(tmp_path, arrays))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", [*IMAGES, *LABELS])
def test_a_file_that_is_cut_short_is_named(tmp_path, arrays, name, suffix):
    path = write(tmp_path, arrays, suffix) / f"{name}{suffix}"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=f"{name}{suffix} is (cut short|damaged)"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("name", [*IMAGES, *LABELS])
def test_a_file_with_another_magic_number_is_named(tmp_path, arrays, name):
    path = write(tmp_path, arrays) / name
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])
    with pytest.raises(ValueError, match=f"{name} begins with 0x00000d03; expected 0x0000080[13]"):
        load_mnist(tmp_path)


def test_an_empty_file_is_cut_short(tmp_path, arrays):
    (write(tmp_path, arrays) / IMAGES[0]).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{IMAGES[0]} is cut short"):
        load_mnist(tmp_path)


@pytest.mark.parametrize("name", [*IMAGES, *LABELS])
def test_bytes_after_the_last_row_are_refused(tmp_path, arrays, name):
    path = write(tmp_path, arrays) / name
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(ValueError, match=f"{name} goes on after the last"):
        load_mnist(tmp_path)


def test_a_gz_file_that_is_none_is_named(tmp_path, arrays):
    (write(tmp_path, arrays, ".gz") / f"{IMAGES[0]}.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=f"{IMAGES[0]}.gz is damaged"):
        load_mnist(tmp_path)


def test_images_and_labels_of_different_number_are_refused(tmp_path, arrays):
    arrays[LABELS[0]] = arrays[LABELS[0]][:-1]
    with pytest.raises(ValueError, match=r"has 12 images and .* 11 labels"):
        load_mnist(write(tmp_path, arrays))


def test_training_and_test_images_of_different_size_are_refused(tmp_path, arrays):
    arrays[IMAGES[1]] = arrays[IMAGES[1]][:, :, :2].copy()
    with pytest.raises(ValueError, match="has images of 4 x 2"):
        load_mnist(write(tmp_path, arrays))


def test_a_label_above_nine_is_refused(tmp_path, arrays):
    arrays[LABELS[1]][2] = 11
    with pytest.raises(ValueError, match="holds the label 11; expected digits 0 to 9"):
        load_mnist(write(tmp_path, arrays))


def test_a_damaged_header_does_not_claim_the_memory(tmp_path, arrays):
    path = write(tmp_path, arrays) / IMAGES[0]
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="says that it is 12 x 4294967295 x 3"):
        load_mnist(tmp_path)


def test_without_files_and_network_one_line_names_the_files_and_the_places(tmp_path):
    with pytest.raises(ValueError, match="OpenML gave no copy") as caught:
        load_mnist(tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    for part in (*IMAGES, *LABELS, str(tmp_path), str(tmp_path / "mnist"), "GPUMLP_DATA", "Name or service"):
        assert part in line


def test_openmls_copy_gives_the_same_bits_as_the_files(monkeypatch):
    pixels = np.arange(256.0)[::-1].repeat(3).reshape(256, 3)
    answer = SimpleNamespace(data=np.tile(pixels, (250, 1)), target=np.array(["7", "2"] * 32000))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *args, **kwargs: answer)
    data = load_mnist()
    assert data.n_train == 60000
    np.testing.assert_array_equal(data.y[:2], [7, 2])
    expected = pixels.astype(np.uint8) / np.float32(255)
    np.testing.assert_array_equal(data.features, np.tile(expected, (250, 1)))
    assert data.features.dtype == np.float32


def test_loading_and_splitting_keep_one_copy_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        IMAGES[0]: rng.integers(0, 256, (20_000, 16, 16), np.uint8),
        LABELS[0]: rng.integers(0, 10, 20_000).astype(np.uint8),
        IMAGES[1]: rng.integers(0, 256, (4_000, 16, 16), np.uint8),
        LABELS[1]: rng.integers(0, 10, 4_000).astype(np.uint8),
    }
    folder = write(tmp_path, arrays)
    tracemalloc.start()
    try:
        data = load_mnist(folder)
        prepared = prepare(data, standardize=False)
        standardised = prepare(data, standardize=True, copy=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.shares_memory(prepared.X, data.features)
    assert np.shares_memory(standardised.X, data.features)
    assert peak < 1.3 * 24_000 * 256 * 4


def real_folder() -> Path | None:
    roots = [Path(os.environ["GPUMLP_DATA"])] if os.environ.get("GPUMLP_DATA") else []
    roots.append(Path(__file__).parents[2].parent / "shared" / "data")
    places = [place for root in roots for place in (root, root / "mnist")]
    return next((p for p in places if any((p / f"{IMAGES[0]}{s}").is_file() for s in ("", ".gz"))), None)


REAL = real_folder()


@pytest.mark.skipif(REAL is None, reason="the MNIST files are not here; name their folder in GPUMLP_DATA")
def test_the_real_files_have_the_known_counts_and_pixel_statistics():
    data = load_mnist(REAL)
    assert data.features.shape == (70_000, 784)
    assert data.n_train == 60_000
    # the commonly given counts of the training labels, and mean and deviation of the training pixels
    known = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(data.y[:60_000]), known)
    assert data.features[:60_000].mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert data.features[:60_000].std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)
