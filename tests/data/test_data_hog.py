"""gpumlp.data.hog: histograms of oriented gradients, many images at once."""

import builtins

import numpy as np
import pytest

from gpumlp.data import hog as module
from gpumlp.data.hog import hog_features

skimage = pytest.importorskip("skimage.feature")
RNG = np.random.default_rng(0)
IMAGES = RNG.random((12, 28, 28)).astype(np.float32)


def test_each_image_has_the_features_of_scikit_image():
    found = hog_features(IMAGES)
    assert found.dtype == np.float32
    assert found.shape == (12, 576)
    for image, features in zip(IMAGES, found, strict=True):
        expected = skimage.hog(
            image, orientations=9, pixels_per_cell=(5, 5), cells_per_block=(2, 2), block_norm="L2-Hys"
        )
        np.testing.assert_array_equal(features, expected.astype(np.float32))


def test_the_features_tell_the_direction_of_an_edge():
    """An edge from left to right has its gradient at 0 degrees: the first orientation of every block."""
    image = np.zeros((1, 10, 10))
    image[0, :, 5:] = 1
    histograms = hog_features(image, orientations=4).reshape(-1, 4)
    assert (histograms.argmax(axis=1) == 0).all()
    turned = hog_features(image.transpose(0, 2, 1), orientations=4).reshape(-1, 4)
    assert (turned.argmax(axis=1) == 2).all()


def test_flat_images_are_taken_as_square_or_as_told():
    np.testing.assert_array_equal(hog_features(IMAGES.reshape(12, -1)), hog_features(IMAGES))
    wide = IMAGES.reshape(12, 14, 56)
    np.testing.assert_array_equal(
        hog_features(wide.reshape(12, -1), shape=(14, 56), pixels_per_cell=(7, 8)),
        hog_features(wide, pixels_per_cell=(7, 8)),
    )


def test_several_processes_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(module, "FEWEST_PER_WORKER", 3)
    images = np.tile(IMAGES, (3, 1, 1))
    np.testing.assert_array_equal(hog_features(images, workers=2), hog_features(images, workers=1))


def test_the_cache_is_read_only_for_the_same_images_and_settings(tmp_path, monkeypatch):
    computed = []
    compute = module._compute

    def noted(*arguments):
        computed.append(1)
        return compute(*arguments)

    monkeypatch.setattr(module, "_compute", noted)
    path = tmp_path / "hog.npy"
    first = hog_features(IMAGES, cache=path)
    np.testing.assert_array_equal(hog_features(IMAGES, cache=path), first)
    np.testing.assert_array_equal(np.load(path), first)
    assert len(computed) == 1
    assert hog_features(IMAGES, orientations=4, cache=path).shape == (12, 256)
    assert len(computed) == 2
    other = IMAGES.copy()
    other[3, 4, 5] += 1
    hog_features(other, orientations=4, cache=path)
    assert len(computed) == 3


@pytest.mark.parametrize("damage", [b"", b"no array", b"\x93NUMPY"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    path = tmp_path / "hog.npy"
    first = hog_features(IMAGES, cache=path)
    path.write_bytes(damage)
    np.testing.assert_array_equal(hog_features(IMAGES, cache=path), first)
    np.testing.assert_array_equal(np.load(path), first)


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (np.zeros((2, 50)), {}, r"50 pixels each; expected a square; give shape=\(height, width\)"),
        (np.zeros((2, 50)), {"shape": (5, 9)}, "50 pixels each; expected 5 x 9"),
        (IMAGES, {"shape": (5, 9)}, r"shape \(12, 28, 28\); shape says \(5, 9\)"),
        (np.zeros(50), {}, r"shape \(50,\); expected \(n, height, width\)"),
        (np.zeros((0, 5, 5)), {}, r"shape \(0, 5, 5\)"),
        (np.zeros((2, 9, 9)), {}, "images of 9 x 9 are smaller than a block of 10 x 10"),
        (np.full((2, 28, 28), np.nan), {}, "images has nan in row 0"),
        (np.array([["a"]]), {}, "expected numbers"),
        (IMAGES, {"orientations": 0}, "orientations is 0"),
        (IMAGES, {"pixels_per_cell": 2.5}, "pixels_per_cell is 2.5"),
        (IMAGES, {"workers": 0}, "workers is 0"),
        (IMAGES, {"cache": "nowhere/hog.npy"}, "there is no folder nowhere"),
    ],
)
def test_a_mistake_is_one_clear_line(images, settings, message):
    with pytest.raises(ValueError, match=message):
        hog_features(images, **settings)


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **settings):
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        hog_features(IMAGES)
