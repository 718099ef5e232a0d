"""Weights and whole networks from and to PyTorch, Keras 3, scikit-learn, ONNX and safetensors.

Nothing that these libraries pickle is ever read. Each library is imported when one of its functions is called.
"""

from .keras import from_keras, load_keras_weights, save_keras, save_keras_weights, to_keras
from .onnx_export import export_onnx
from .onnx_import import import_onnx
from .pytorch import from_torch, load_torch_state_dict, to_torch, to_torch_state_dict
from .safetensors import load_safetensors, save_safetensors
from .sklearn import from_sklearn, to_sklearn
from .values import without_output_activation

__all__ = [
    "export_onnx",
    "from_keras",
    "from_sklearn",
    "from_torch",
    "import_onnx",
    "load_keras_weights",
    "load_safetensors",
    "load_torch_state_dict",
    "save_keras",
    "save_keras_weights",
    "save_safetensors",
    "to_keras",
    "to_sklearn",
    "to_torch",
    "to_torch_state_dict",
    "without_output_activation",
]
