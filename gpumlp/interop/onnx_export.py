"""ONNX: a dense network, or a model with its probabilities, written to a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .._version import __version__
from ..files import write_whole
from ..layers import (
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
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from ..network import Sequential
from .values import need_library, no_twin

INSTALL = "'gpumlp[interop]'"
OPSET = 20
"""The first operator set with Gelu (Mish came in 18, LayerNormalization in 17); onnxruntime reads it since 1.17."""
IR_VERSION = 9
"""The version of the file format that goes with operator set 20."""

LIMIT = 2**31 - 2**20
"""Bytes of values: a message of protobuf holds 2 GB, and the nodes need some of them."""


def export_onnx(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a network to an ONNX file, for prediction, with any number of rows.

    The graph has one input ``x``, (rows, in_features), and one output ``y``, (rows, out_features), in operator set 20;
    dropout and noise are left out. The outputs of a `Model` or a `Trainer` are what its `predict` gives: probabilities
    where it is a classifier, and values in the units of the target.

    Args:
        model: a network, a `Model` or a `Trainer`.
        path: the file, by custom ``*.onnx``; it appears whole or not at all.

    Raises:
        TypeError: something else.
        ValueError: a layer that ONNX does not have, a model whose preprocessor turns tables into rows of numbers, or
            more than 2 GB; the folder is missing.
        ModuleNotFoundError: onnx is not installed.
    """
    network = model if isinstance(model, Sequential) else getattr(model, "network", None)
    if not isinstance(network, Sequential):
        raise TypeError(
            f"model is a {type(model).__name__}; expected a gm.Sequential, gm.Model or gm.Trainer"
        )
    if getattr(model, "preprocessor", None) is not None:
        raise ValueError(
            "the model has a preprocessor, which ONNX cannot hold; export gm.Model(model.network, model.loss, "
            "model.classes, target_scaler=model.target_scaler) and feed it what model.inputs(X) gives"
        )
    size = sum(value.nbytes for value in network.state_dict().values())
    if size > LIMIT:
        raise ValueError(
            f"the network takes {size:,} bytes; an ONNX file holds 2 GB (save_safetensors: any number)"
        )
    onnx = need_library("onnx", INSTALL)
    writer = _Writer(onnx, network.dtype)
    for layer in network.layers:
        writer.layer(layer)
    if network is not model:
        writer.meaning(model)
    proto = writer.finish(network.in_features, network.out_features)
    onnx.checker.check_model(proto, full_check=True)
    write_whole(path, proto.SerializeToString())


class _Writer:
    """Collects nodes and initializers, each node on the output of the one before."""

    def __init__(self, onnx: Any, dtype: str) -> None:
        self._onnx, self._dtype = onnx, np.dtype(dtype)
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self.at = "x"

    def layer(self, layer: Layer) -> None:
        """Write a layer.

        Raises:
            ValueError: ONNX has none such.
        """
        if isinstance(layer, Dropout | GaussianNoise | Identity):
            return
        if type(layer) not in _LAYERS:
            raise no_twin(layer, "the operators of ONNX that gpumlp writes")
        _LAYERS[type(layer)](self, layer)

    def meaning(self, model: Any) -> None:
        """Write what a model makes of the network's outputs: probabilities, or the units of the target."""
        if model.loss.output_activation in ("softmax", "sigmoid"):
            self.layer(Softmax() if model.loss.output_activation == "softmax" else Sigmoid())
        scaler = getattr(model, "target_scaler", None)
        if scaler is not None:
            self.node("Mul", self.at, self.array("target.std", scaler.std))
            self.node("Add", self.at, self.array("target.mean", scaler.mean))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and go on from its output."""
        self.at = f"h{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(op, list(inputs), [self.at], **attributes))
        return self.at

    def array(self, name: str, value: Any) -> str:
        """Add an initializer and return its name."""
        array = np.ascontiguousarray(value, dtype=self._dtype)
        self._initializers.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def values(self, layer: Layer) -> dict[str, str]:
        """Add the values of a layer; return their names in the graph."""
        return {name: self.array(f"{layer.key}.{name}", value) for name, value in layer.values().items()}

    def finish(self, in_features: int, out_features: int) -> Any:
        """Return the model as a message of ONNX."""
        helper = self._onnx.helper
        if not self._nodes:
            self.node("Identity", self.at)
        self._nodes[-1].output[0] = "y"
        kind = helper.np_dtype_to_tensor_dtype(self._dtype)
        graph = helper.make_graph(
            self._nodes,
            "gpumlp",
            [helper.make_tensor_value_info("x", kind, ["rows", in_features])],
            [helper.make_tensor_value_info("y", kind, ["rows", out_features])],
            self._initializers,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="gpumlp",
            producer_version=__version__,
        )


def _linear(w: _Writer, layer: Linear) -> None:
    names = w.values(layer)
    w.node("Gemm" if layer.has_bias else "MatMul", w.at, *names.values())


def _normalised(w: _Writer, layer: Any) -> dict[str, str]:
    """The values of a normalisation; ONNX has no one without scale and shift."""
    names = w.values(layer)
    if not layer.affine:
        names["weight"] = w.array(f"{layer.key}.weight", np.ones(layer.in_features))
        names["bias"] = w.array(f"{layer.key}.bias", np.zeros(layer.in_features))
    return names


def _batch_norm(w: _Writer, layer: BatchNorm1d) -> None:
    names = _normalised(w, layer)
    operands = [names[name] for name in ("weight", "bias", "running_mean", "running_var")]
    momentum = round(1 - layer.momentum, 12)
    w.node("BatchNormalization", w.at, *operands, epsilon=layer.eps, momentum=momentum)


def _layer_norm(w: _Writer, layer: LayerNorm) -> None:
    names = _normalised(w, layer)
    w.node("LayerNormalization", w.at, names["weight"], names["bias"], axis=-1, epsilon=layer.eps)


def _silu(w: _Writer, layer: SiLU) -> None:
    x = w.at
    w.node("Mul", x, w.node("Sigmoid", x))


def _softplus(w: _Writer, layer: Softplus) -> None:
    if layer.beta == 1:
        w.node("Softplus", w.at)
        return
    beta = w.array(f"{layer.key}.beta", layer.beta)
    w.node("Mul", w.at, beta)
    w.node("Softplus", w.at)
    w.node("Div", w.at, beta)


def _op(name: str, attributes: Callable[[Any], dict[str, Any]] = lambda layer: {}) -> Callable[..., None]:
    def write(w: _Writer, layer: Layer) -> None:
        w.node(name, w.at, **attributes(layer))

    return write


_LAYERS: dict[type[Layer], Callable[..., None]] = {
    Linear: _linear,
    BatchNorm1d: _batch_norm,
    LayerNorm: _layer_norm,
    SiLU: _silu,
    Softplus: _softplus,
    ReLU: _op("Relu"),
    LeakyReLU: _op("LeakyRelu", lambda layer: {"alpha": layer.negative_slope}),
    ELU: _op("Elu", lambda layer: {"alpha": layer.alpha}),
    # the standard's defaults are these constants, rounded to float32
    SELU: _op("Selu"),
    GELU: _op("Gelu", lambda layer: {"approximate": layer.approximate}),
    Mish: _op("Mish"),
    Sigmoid: _op("Sigmoid"),
    Tanh: _op("Tanh"),
    Softmax: _op("Softmax", lambda layer: {"axis": -1}),
}
