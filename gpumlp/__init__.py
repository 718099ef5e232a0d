"""gpumlp: dense networks, trained at the machine's speed on a GPU through CuPy or on the CPU.

>>> import gpumlp as gm
>>> network = gm.Sequential(gm.Linear(4, 32), gm.ReLU(), gm.Linear(32, 3))
>>> trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(lr=0.1, momentum=0.9), seed=1)
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import initializers, layers, losses, metrics, optimizers, schedules
from ._version import __version__
from .backend import Backend, get_backend
from .callbacks import Callback, CSVLog, EarlyStopping, ModelCheckpoint
from .failure import NonFiniteLossError
from .history import History
from .layers import (
    ELU,
    GELU,
    SELU,
    BatchNorm1d,
    Dropout,
    GaussianNoise,
    Identity,
    Layer,
    LayerNorm,
    LeakyReLU,
    Linear,
    Mish,
    PerUnit,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from .losses import MAE, MSE, BinaryCrossEntropy, CrossEntropy, Huber, KLDivergence, SoftmaxMSE
from .many import fit_many, make_trainers
from .model import Model, load_model
from .network import Sequential, mlp
from .optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from .schedules import (
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    OneCycle,
    ReduceOnPlateau,
    StepDecay,
)
from .trainer import Trainer
from .validation import CrossValidation, cross_validate

if TYPE_CHECKING:
    from . import data, interop
    from .activity import ActivationStatistics

__all__ = [
    "ELU",
    "GELU",
    "MAE",
    "MSE",
    "SELU",
    "SGD",
    "ActivationStatistics",
    "Adagrad",
    "Adam",
    "AdamW",
    "Backend",
    "BatchNorm1d",
    "BinaryCrossEntropy",
    "CSVLog",
    "Callback",
    "CosineDecay",
    "CrossEntropy",
    "CrossValidation",
    "Dropout",
    "EarlyStopping",
    "ExponentialDecay",
    "GaussianNoise",
    "History",
    "Huber",
    "Identity",
    "InverseScaling",
    "KLDivergence",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "Mish",
    "Model",
    "ModelCheckpoint",
    "NonFiniteLossError",
    "OneCycle",
    "PerUnit",
    "RMSprop",
    "ReLU",
    "ReduceOnPlateau",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SoftmaxMSE",
    "Softplus",
    "StepDecay",
    "Tanh",
    "Trainer",
    "__version__",
    "cross_validate",
    "data",
    "fit_many",
    "get_backend",
    "initializers",
    "interop",
    "layers",
    "load_model",
    "losses",
    "make_trainers",
    "metrics",
    "mlp",
    "optimizers",
    "schedules",
]


def __getattr__(name: str) -> Any:
    """Load what most trainings do without when it is first asked for."""
    if name in ("data", "interop"):
        return importlib.import_module(f"gpumlp.{name}")
    if name == "ActivationStatistics":
        return importlib.import_module("gpumlp.activity").ActivationStatistics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
