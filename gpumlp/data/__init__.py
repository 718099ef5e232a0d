"""Data: synthetic and bundled sets, MNIST, files, and the preprocessing that goes with a model."""

from __future__ import annotations

from gpumlp.data.bundled import BUNDLED, load_bundled
from gpumlp.data.dataset import Dataset, Prepared, features_for_prediction, prepare, split_rows
from gpumlp.data.features import Preprocessor
from gpumlp.data.files import EXTENSIONS, load_file, read_features
from gpumlp.data.loading import dataset_name, dataset_names, load
from gpumlp.data.mnist import load_mnist
from gpumlp.data.synthetic import (
    SYNTHETIC,
    linear_clusters,
    polar_clusters,
    sdm274_classification,
    sine_sqrt_regression,
    two_cluster_classification,
)
from gpumlp.data.targets import TargetScaler, encode_labels

__all__ = [
    "BUNDLED",
    "EXTENSIONS",
    "SYNTHETIC",
    "Dataset",
    "Prepared",
    "Preprocessor",
    "TargetScaler",
    "dataset_name",
    "dataset_names",
    "encode_labels",
    "features_for_prediction",
    "linear_clusters",
    "load",
    "load_bundled",
    "load_file",
    "load_mnist",
    "polar_clusters",
    "prepare",
    "read_features",
    "sdm274_classification",
    "sine_sqrt_regression",
    "split_rows",
    "two_cluster_classification",
]
