"""ONNX: a dense network read from a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Backend
from ..layers import BatchNorm1d, LayerNorm, Linear, Softmax
from ..network import Sequential
from .onnx_patterns import ELEMENTWISE, X, activation_of, apply
from .values import Step, make_network, need_library

INSTALL = "'gpumlp[interop]'"
OPERATORS = (
    *(
        "Gemm",
        "MatMul and Add",
        "BatchNormalization",
        "LayerNormalization",
        "Relu",
        "LeakyRelu",
        "Elu",
        "Selu",
    ),
    *("Gelu", "Mish", "Softplus", "Sigmoid", "Tanh", "Softmax", "Dropout", "Identity", "Flatten"),
)


def import_onnx(
    path: str | os.PathLike[str], device: str | Backend = "auto", dtype: Any = None
) -> Sequential:
    """Return the network of an ONNX file whose nodes stand in a chain.

    Understood are Gemm, MatMul with Add, BatchNormalization, LayerNormalization, Softmax, the activations (also where
    they are written out in several nodes, as SiLU always is before operator set 24), and Dropout, Identity and Flatten,
    which do nothing to rows of features in prediction.

    Args:
        path: of the file; weights are initializers or constants of the graph.
        device: of the network; see `get_backend`.
        dtype: "float32" or "float64"; None for float64 where the weights are so, else float32.

    Raises:
        ValueError: a missing or damaged file, more than one input or output, an operator that gpumlp does not have.
        ModuleNotFoundError: onnx is not installed.
    """
    onnx = need_library("onnx", INSTALL)
    name = os.fspath(path)
    try:
        model = onnx.load(name)
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise ValueError(f"no file {name!r}; expected an ONNX model") from None
    except Exception as error:  # protobuf and the checker have no common base
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name!r} is no ONNX model, or a damaged one ({reason})") from None
    graph = _Graph(onnx, model.graph, name)
    return make_network(graph.steps(), device, dtype, graph.in_features)


class _Graph:
    """The nodes of a graph, walked from its one input to its one output."""

    def __init__(self, onnx: Any, graph: Any, name: str) -> None:
        self._onnx, self._name = onnx, name
        self._constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        self._nodes = [node for node in graph.node if not self._is_constant(node)]
        inputs = [given for given in graph.input if given.name not in self._constants]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ValueError(
                f"{name!r} has {len(inputs)} inputs and {len(graph.output)} outputs; expected one of each"
            )
        self._output = graph.output[0].name
        self._at = inputs[0].name
        shape = inputs[0].type.tensor_type.shape.dim
        if len(shape) not in (0, 2) and not (self._nodes and self._nodes[0].op_type == "Flatten"):
            raise ValueError(f"{name!r} takes an input of {len(shape)} axes; expected (rows, features)")
        self.in_features = shape[1].dim_value or None if len(shape) == 2 else None

    def _is_constant(self, node: Any) -> bool:
        """Keep the value of a Constant, or of an Identity of one, as an initializer."""
        if node.op_type == "Constant":
            attributes = self._attributes(node)
            key = next(iter(attributes), "")
            if key not in ("value", "value_float", "value_floats"):
                raise self._unknown(node, f"a constant {key!r}")
            value = attributes[key]
            array = self._onnx.numpy_helper.to_array(value) if key == "value" else np.array(value, np.float32)
            self._constants[node.output[0]] = array
        elif node.op_type == "Identity" and node.input[0] in self._constants:
            self._constants[node.output[0]] = self._constants[node.input[0]]
        else:
            return False
        return True

    def _attributes(self, node: Any) -> dict[str, Any]:
        return {a.name: self._plain(self._onnx.helper.get_attribute_value(a)) for a in node.attribute}

    @staticmethod
    def _plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode()
        # kept in float32: the shortest number that gives it, 0.01 and not 0.009999999776
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def _unknown(self, node: Any, what: str = "") -> ValueError:
        return ValueError(
            f"node {node.name or node.output[0]!r} of {self._name!r} is {what or node.op_type}, which gpumlp cannot "
            f"take in; expected a chain of {', '.join(OPERATORS)}"
        )

    def steps(self) -> list[Step]:
        """The layers, in order.

        Raises:
            ValueError: nodes that do not stand in a chain, or one that gpumlp does not have.
        """
        steps: list[Step] = []
        nodes = list(self._nodes)
        while nodes:
            node, *_ = nodes
            if node.domain not in ("", "ai.onnx"):
                raise self._unknown(node, f"{node.op_type} of {node.domain}")
            used = self._take(nodes, steps)
            nodes = nodes[used:]
        if self._at != self._output or not steps:
            raise ValueError(f"{self._name!r} does not lead from its input to its output {self._output!r}")
        return steps

    def _take(self, nodes: Sequence[Any], steps: list[Step]) -> int:
        """Turn the first nodes into a step; return how many there were."""
        node = nodes[0]
        handler = _HANDLERS.get(node.op_type)
        if handler is None:
            return self._activation(nodes, steps)
        if node.input[0] != self._at or any(node.input[0] in n.input for n in nodes[1:]):
            raise ValueError(
                f"node {node.name or node.output[0]!r} of {self._name!r} does not stand in a chain; expected each to "
                "take the output of the one before"
            )
        used = handler(self, node, nodes[1:], steps)
        self._at = nodes[used - 1].output[0]
        return used

    def _constant(self, node: Any, i: int) -> np.ndarray:
        """The i-th operand, which must be known."""
        if i >= len(node.input) or node.input[i] not in self._constants:
            raise self._unknown(node, f"{node.op_type} with an operand {i} that is not an initializer")
        return self._constants[node.input[i]]

    def _source(self, node: Any) -> str:
        return f"node {node.name or node.output[0]!r} ({node.op_type})"

    def _gemm(self, node: Any, rest: Sequence[Any], steps: list[Step]) -> int:
        attributes = self._attributes(node)
        if attributes.get("transA"):
            raise self._unknown(node, "Gemm with transA")
        weight = self._constant(node, 1) * self._factor(attributes, "alpha", self._constant(node, 1))
        weight = weight.T if attributes.get("transB") else weight
        bias = None
        if len(node.input) > 2 and node.input[2]:
            given = self._constant(node, 2)
            bias = given * self._factor(attributes, "beta", given)
        steps.append(self._linear(node, weight, bias))
        return 1

    @staticmethod
    def _factor(attributes: dict[str, Any], key: str, array: np.ndarray) -> np.ndarray:
        return np.asarray(attributes.get(key, 1.0), array.dtype)

    def _linear(self, node: Any, weight: np.ndarray, bias: np.ndarray | None) -> Step:
        if weight.ndim != 2:
            raise self._unknown(node, f"{node.op_type} with weights of shape {weight.shape}")
        values = {"weight": weight}
        if bias is not None:
            if bias.size not in (1, weight.shape[1]) or bias.shape[:-1] not in ((), (1,)):
                raise self._unknown(node, f"{node.op_type} with a bias of shape {bias.shape}")
            values["bias"] = np.broadcast_to(bias.reshape(-1), weight.shape[1:])
        return Step(
            Linear(weight.shape[0], weight.shape[1], bias=bias is not None), values, self._source(node)
        )

    def _matmul(self, node: Any, rest: Sequence[Any], steps: list[Step]) -> int:
        weight = self._constant(node, 1)
        follower = rest[0] if rest and rest[0].op_type == "Add" and node.output[0] in rest[0].input else None
        bias = None
        if follower is not None:
            operands = [name for name in follower.input if name != node.output[0]]
            if len(operands) != 1 or operands[0] not in self._constants:
                raise self._unknown(follower, "Add of something that is not an initializer")
            bias = self._constants[operands[0]]
            self._once(node.output[0], rest[1:])
        steps.append(self._linear(node, weight, bias))
        return 2 if follower is not None else 1

    def _once(self, name: str, rest: Sequence[Any]) -> None:
        if any(name in node.input for node in rest) or name == self._output:
            raise ValueError(f"{name!r} of {self._name!r} is used twice; expected a chain of nodes")

    def _batch_norm(self, node: Any, rest: Sequence[Any], steps: list[Step]) -> int:
        attributes = self._attributes(node)
        if attributes.get("training_mode"):
            raise self._unknown(node, "BatchNormalization in training mode")
        names = ("weight", "bias", "running_mean", "running_var")
        values = {name: self._constant(node, i + 1) for i, name in enumerate(names)}
        # ONNX's momentum is the share that the running statistics keep
        momentum = round(1 - attributes.get("momentum", 0.9), 12)
        layer = BatchNorm1d(len(values["weight"]), attributes.get("epsilon", 1e-5), momentum)
        steps.append(Step(layer, values, self._source(node)))
        return 1

    def _layer_norm(self, node: Any, rest: Sequence[Any], steps: list[Step]) -> int:
        attributes = self._attributes(node)
        if attributes.get("axis", -1) not in (-1, 1):
            raise self._unknown(node, f"LayerNormalization over axis {attributes['axis']}")
        weight = self._constant(node, 1)
        bias = self._constant(node, 2) if len(node.input) > 2 and node.input[2] else np.zeros_like(weight)
        layer = LayerNorm(weight.size, attributes.get("epsilon", 1e-5))
        steps.append(Step(layer, {"weight": weight, "bias": bias}, self._source(node)))
        return 1

    def _softmax(self, node: Any, rest: Sequence[Any], steps: list[Step]) -> int:
        if self._attributes(node).get("axis", -1) not in (-1, 1):
            raise self._unknown(node, "Softmax over the rows")
        steps.append(Step(Softmax(), source=self._source(node)))
        return 1

    def _nothing(self, node: Any, rest: Sequence[Any], steps: list[Step]) -> int:
        if node.op_type == "Flatten" and self._attributes(node).get("axis", 1) != 1:
            raise self._unknown(node, "Flatten over the rows")
        if node.op_type == "Dropout" and len(node.input) > 2 and self._constant(node, 2).any():
            raise self._unknown(node, "Dropout in training mode")
        return 1

    def _activation(self, nodes: Sequence[Any], steps: list[Step]) -> int:
        """An activation in one node or several: the shortest run of nodes that has a known formula."""
        formulas = {self._at: X}
        for i, node in enumerate(nodes):
            if node.op_type not in ELEMENTWISE:
                break
            operands = [self._operand(name, formulas) for name in node.input]
            if any(operand is None for operand in operands):
                break
            formula = apply(node.op_type, operands, self._attributes(node))
            if formula is None:
                break
            formulas[node.output[0]] = formula
            later = {name for rest in nodes[i + 1 :] for name in rest.input} | {self._output}
            if later & (set(formulas) - {node.output[0]}) or isinstance(formula, float):
                continue
            layer = activation_of(formula)
            if layer is not None:
                steps.append(Step(layer, source=self._source(node)))
                self._at = node.output[0]
                return i + 1
        raise self._unknown(nodes[0])

    def _operand(self, name: str, formulas: dict[str, Any]) -> Any:
        constant = self._constants.get(name)
        if constant is not None:
            scalar = constant.size == 1 and constant.dtype.kind in "fiu"
            return float(str(constant.reshape(())[()])) if scalar else None
        return formulas.get(name)


_HANDLERS = {
    "Gemm": _Graph._gemm,
    "MatMul": _Graph._matmul,
    "BatchNormalization": _Graph._batch_norm,
    "LayerNormalization": _Graph._layer_norm,
    "Softmax": _Graph._softmax,
    "Dropout": _Graph._nothing,
    "Identity": _Graph._nothing,
    "Flatten": _Graph._nothing,
}
