"""What tests of networks have in common: a layer of a user's own, and a network of several kinds of layers."""

import numpy as np

import gpumlp as gm
from gpumlp.initializers import Constant


class Scale(gm.Layer):
    """y = x scale: what the README shows, in about ten lines; at the top of a module, so that pickle finds it."""

    def build(self, in_features):
        self.add_parameter("scale", (in_features,), Constant(1.5))
        return in_features

    def forward(self, x):
        self.x = x
        return x * self.scale

    def backward(self, dy):
        self.grads["scale"][...] = (dy * self.x).sum(axis=0)
        return dy * self.scale


def make(dtype="float32", device="cpu", seed=0, own=False):
    """A network whose parameters and running statistics are all drawn; with a layer of a user's own if asked."""
    layers = [gm.Linear(3, 5), gm.BatchNorm1d(5), gm.GELU(), gm.Dropout(0.3), gm.Linear(5, 2)]
    if own:
        layers.insert(3, Scale())
    network = gm.Sequential(*layers, dtype=dtype, device=device, seed=seed)
    rng = np.random.default_rng(seed)
    for arena in (network.parameters, network.state):
        for _, view in arena.items():
            view[...] = network.backend.asarray(rng.uniform(0.2, 1, view.shape), dtype=dtype)
    return network
