"""PyTorch: eager, and with a whole step compiled."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .contract import Peer, Problem, Weights, not_installed

Tensor = Any


def loss_function(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss of outputs and targets, as `targets` makes them."""
    from torch.nn import functional as F

    return {
        "mse": F.mse_loss,
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
        "cross_entropy": F.cross_entropy,
        "softmax_mse": lambda z, t: F.mse_loss(F.softmax(z, dim=1), t),
    }[name]


def targets(problem: Problem) -> Tensor:
    """Return y as the loss takes it: a column of float32, labels, or one-hot rows."""
    import torch

    y = torch.from_numpy(problem.y)
    if problem.workload.loss == "cross_entropy":
        return y.long()
    if problem.workload.loss == "softmax_mse":
        return torch.nn.functional.one_hot(y.long(), problem.workload.sizes[-1]).float()
    return y.float()[:, None]


class _Torch(Peer):
    """What both share: data on tensors, batches by index_select, losses summed without leaving the tensors."""

    library = "torch"
    sweeps = False

    @classmethod
    def available(cls) -> str | None:
        return not_installed("torch")

    def prepare(self, problem: Problem) -> None:
        import torch

        torch.set_num_threads(self.threads)
        torch.manual_seed(problem.seed)
        self.problem = problem
        self.X, self.y = torch.from_numpy(problem.X).to(self.device), targets(problem).to(self.device)
        self.take_weights()

    def take_weights(self) -> None:
        """Make the network with its first weights, and whatever runs a step."""
        raise NotImplementedError

    def step(self, rows: Tensor | None, total: Tensor) -> None:
        """Do one step on these rows (None: all), and add their loss times their number."""
        raise NotImplementedError

    def _batches(self) -> Iterator[Tensor | None]:
        p = self.problem
        if p.is_full_batch:
            return iter([None])
        return iter(self.order().split(p.workload.step_rows))

    def order(self) -> Tensor:
        """Return the rows of an epoch in their order."""
        import torch

        rows = self.problem.workload.rows
        make = torch.randperm if self.problem.shuffles else torch.arange
        return make(rows, device=self.device)

    def rounding(self) -> contextlib.AbstractContextManager[Any]:
        """Compute products in the precision of the problem within a block."""
        import torch

        if self.problem.precision != "bf16":
            return contextlib.nullcontext()
        # a cache of casts would outlive a captured graph
        return torch.autocast(self.device, torch.bfloat16, cache_enabled=False)

    def train(self, epochs: int) -> float:
        import torch

        total = torch.zeros((), device=self.device)
        for _ in range(epochs):
            total = torch.zeros((), device=self.device)
            for rows in self._batches():
                self.step(rows, total)
        return float(total) / self.problem.workload.rows


class TorchEager(_Torch):
    """nn.Sequential and torch.optim.SGD."""

    name = "torch"
    about = "PyTorch eager: nn.Sequential, a fused optimizer, index_select batches"
    optimizers = ("sgd", "adam")

    def take_weights(self) -> None:
        import torch
        from torch import nn

        hidden = {"relu": nn.ReLU, "tanh": nn.Tanh}[self.problem.workload.activation]
        layers: list[Any] = []
        for weight, bias in self.problem.weights:
            linear = nn.Linear(*weight.shape)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
                linear.bias.copy_(torch.from_numpy(bias))
            layers += [linear, hidden()]
        self.network = nn.Sequential(*layers[:-1]).to(self.device)
        self.loss = loss_function(self.problem.workload.loss)
        (lr,) = self.problem.lrs
        self.optimizer = self.make_optimizer(self.network.parameters(), lr)

    def make_optimizer(self, parameters: Any, lr: float) -> Any:
        """Return the optimizer of the problem."""
        import torch

        if self.problem.workload.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=lr, fused=True)
        return torch.optim.SGD(parameters, lr=lr, fused=True)

    def step(self, rows: Tensor | None, total: Tensor) -> None:
        x, y = self.X, self.y
        if rows is not None:
            x, y = x.index_select(0, rows), y.index_select(0, rows)
        self.optimizer.zero_grad(set_to_none=True)
        with self.rounding():
            loss = self.loss(self.network(x), y)
        loss.backward()
        self.optimizer.step()
        total.add_(loss.detach(), alpha=len(x))

    def weights(self) -> Sequence[Weights]:
        state = self.network.state_dict()
        names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
        return [[(state[f"{n}.weight"].cpu().numpy().T, state[f"{n}.bias"].cpu().numpy()) for n in names]]


class TorchCompile(_Torch):
    """Batch, forward, backward and update in one graph; guards are checked once and no more."""

    name = "torch.compile"
    about = (
        "PyTorch, one graph a step with batch and update inside (fullgraph, static shapes, guards skipped)"
    )

    @classmethod
    def available(cls) -> str | None:
        import shutil

        if (reason := super().available()) is not None:
            return reason
        return (
            None if shutil.which("g++") or shutil.which("clang++") else "needs a C++ compiler, g++ or clang++"
        )

    def take_weights(self) -> None:
        import torch

        torch.compiler.set_stance("default")
        self.parameters = [
            torch.from_numpy(np.ascontiguousarray(array))
            for weight, bias in self.problem.weights
            for array in (weight.T, bias.copy())
        ]
        w = self.problem.workload
        self._step = _compiled_step(w.sizes, w.activation, w.loss, self.problem.lrs[0], w.rows)
        self._warm = False

    def step(self, rows: Tensor | None, total: Tensor) -> None:
        self._step(self.parameters, self.X, self.y, rows, total)

    def train(self, epochs: int) -> float:
        import torch

        loss = super().train(epochs)
        if not self._warm:  # every shape of batch has been seen
            torch.compiler.set_stance("default", skip_guard_eval_unsafe=True)
            self._warm = True
        return loss

    def weights(self) -> Sequence[Weights]:
        arrays = [parameter.numpy() for parameter in self.parameters]
        return [[(weight.T, bias) for weight, bias in zip(arrays[::2], arrays[1::2], strict=True)]]


@functools.lru_cache(maxsize=1)
def _compiled_step(
    sizes: tuple[int, ...], activation: str, loss_name: str, lr: float, rows: int
) -> Callable[..., None]:
    """Return one step of SGD on a flat list of weights and biases, changed in place.

    What is asked for again is the same function; sizes and rows only say that it is.
    """
    import torch
    from torch.nn import functional as F

    torch.compiler.reset()  # the graphs of the last network
    hidden = {"relu": torch.relu, "tanh": torch.tanh}[activation]
    loss = loss_function(loss_name)

    def value(parameters: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        for i in range(0, len(parameters) - 2, 2):
            x = hidden(F.linear(x, parameters[i], parameters[i + 1]))
        return loss(F.linear(x, *parameters[-2:]), y)

    def step(parameters: list[Tensor], X: Tensor, y: Tensor, rows: Tensor | None, total: Tensor) -> None:
        if rows is not None:
            X, y = X.index_select(0, rows), y.index_select(0, rows)
        gradients, mean = torch.func.grad_and_value(value)(parameters, X, y)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=lr)
        total.add_(mean, alpha=X.shape[0])

    return torch.compile(step, fullgraph=True, dynamic=False)
