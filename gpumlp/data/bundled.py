"""The real data sets that come with scikit-learn, by name."""

from __future__ import annotations

import numpy as np

from gpumlp.data.dataset import Dataset
from gpumlp.registry import look_up

# name -> (scikit-learn's loader, name of the target where there is only one, classification?)
BUNDLED: dict[str, tuple[str, str, bool]] = {
    "iris": ("load_iris", "species", True),
    "wine": ("load_wine", "cultivar", True),
    "breast_cancer": ("load_breast_cancer", "diagnosis", True),
    "digits": ("load_digits", "digit", True),
    "diabetes": ("load_diabetes", "progression", False),
    "linnerud": ("load_linnerud", "", False),
}


def load_bundled(name: str) -> Dataset:
    """Return one of scikit-learn's bundled sets: iris, wine, breast_cancer, digits, diabetes or linnerud.

    Features are float32 (n, f) as scikit-learn gives them, codes of classes are scikit-learn's. Diabetes
    comes in its original units.

    Raises:
        ValueError: another name.
    """
    from sklearn import datasets

    loader, target, is_classification = look_up("bundled data set", name, BUNDLED)
    settings = {"scaled": False} if loader == "load_diabetes" else {}
    bunch = getattr(datasets, loader)(**settings)
    names = [str(feature) for feature in bunch.feature_names]
    return Dataset(
        loader.removeprefix("load_"),
        np.ascontiguousarray(bunch.data, np.float32),
        bunch.target,
        names,
        [target] if target else [str(part) for part in bunch.target_names],
        [str(label) for label in bunch.target_names] if is_classification else None,
    )
