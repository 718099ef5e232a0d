"""The Python of the README does what it says, without a warning."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpumlp as gm

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory) -> dict[str, Any]:
    """What is there once all blocks have run, one after the other."""
    found: dict[str, Any] = {"__name__": "readme"}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(tmp_path_factory.mktemp("readme"))
        warnings.simplefilter("error")
        for i, block in enumerate(BLOCKS):
            exec(compile(block, f"README.md, block {i + 1}", "exec"), found)
    return found


def test_all_blocks_run_in_order(namespace):
    assert len(BLOCKS) >= 2
    assert namespace["history"]["loss"][-1] < namespace["history"]["loss"][0]
    assert namespace["trainer"].evaluate(namespace["data"].X_test, namespace["data"].y_test)["accuracy"] > 0.8
    assert len(namespace["folds"].scores) == 5


def test_the_layer_of_ones_own_learns(namespace):
    layer = next(layer for layer in namespace["network"].layers if type(layer).__name__ == "Scale")
    assert isinstance(layer, gm.Layer)
    assert layer.scale.shape == (16,)
    # each of its numbers began as 1
    assert (np.abs(layer.scale - 1) > 1e-4).all()


def test_the_gradients_of_the_layer_of_ones_own_are_right(namespace, central_differences, assert_close):
    scale = namespace["Scale"]()
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    scale.forward(x)
    scale.scale = rng.normal(size=3)
    scale.forward(x)
    dx = scale.backward(dy)
    assert_close(dx, central_differences(lambda: (scale.forward(x) * dy).sum(), x), 1e-7)
    gradient = scale.grads["scale"].copy()
    assert_close(gradient, central_differences(lambda: (scale.forward(x) * dy).sum(), scale.scale), 1e-7)
