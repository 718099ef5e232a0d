"""scikit-learn's bundled sets."""

import numpy as np
import pytest
from sklearn import datasets

from gpumlp.data import BUNDLED, load_bundled

# rows, features, classes or targets: from scikit-learn's own description of each set
SIZES = {
    "iris": (150, 4, 3),
    "wine": (178, 13, 3),
    "breast_cancer": (569, 30, 2),
    "digits": (1797, 64, 10),
    "diabetes": (442, 10, 1),
    "linnerud": (20, 3, 3),
}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_set_has_its_known_size_and_scikit_learns_values(name):
    data = load_bundled(name)
    rows, features, wide = SIZES[name]
    assert data.features.shape == (rows, features)
    assert data.features.dtype == np.float32
    assert data.features.flags.c_contiguous
    bunch = getattr(datasets, f"load_{name}")(**({"scaled": False} if name == "diabetes" else {}))
    np.testing.assert_allclose(data.features, bunch.data, rtol=1e-6)
    np.testing.assert_allclose(data.y, bunch.target, rtol=1e-6)
    assert data.feature_names == list(bunch.feature_names)
    if data.task == "classification":
        assert data.classes == [str(c) for c in bunch.target_names]
        assert len(data.classes) == wide
        assert data.y.dtype == np.int64
    else:
        assert len(data.target_names) == wide
        assert data.y.dtype == np.float32


def test_linnerud_has_three_named_targets():
    data = load_bundled("linnerud")
    assert data.target_names == ["Weight", "Waist", "Pulse"]
    assert data.y.shape == (20, 3)


def test_an_unknown_bundled_set_is_one_line_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown bundled data set 'irirs'; did you mean 'iris'"):
        load_bundled("irirs")
