"""The peers on a GPU: data, batches and updates stay there, and a step costs as few launches as each library knows."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .contract import Problem, Weights
from .gpumlp_peer import Gpumlp
from .jax_peer import Jax
from .torch_peers import TorchCompile, TorchEager, _Torch, loss_function

Tensor = Any


class GpumlpGpu(Gpumlp):
    """`Trainer.fit` and `fit_many` on the first GPU."""

    about = "Trainer.fit with its defaults on the GPU; fit_many for a sweep"
    device = "gpu"


class JaxGpu(Jax):
    """The same epoch as on the CPU, compiled for the GPU; XLA times there the ways that it has for a product."""

    device = "cuda"
    prepares_alone = True

    @classmethod
    def environment(cls, threads: int) -> dict[str, str]:
        # others need the memory too
        return {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class TorchEagerGpu(TorchEager):
    """The same as on the CPU, TF32 where it is asked for, bf16 by autocast."""

    device = "cuda"

    def prepare(self, problem: Problem) -> None:
        import torch

        torch.set_float32_matmul_precision("high" if problem.precision == "tf32" else "highest")
        super().prepare(problem)


class _Captured(_Torch):
    """Whole steps as CUDA graphs: one for each size of batch; the rows of a batch are found on the GPU."""

    device = "cuda"
    optimizers = ("sgd", "adam")

    def prepare(self, problem: Problem) -> None:
        import torch

        torch.set_float32_matmul_precision("high" if problem.precision == "tf32" else "highest")
        super().prepare(problem)
        w = problem.workload
        self._order = torch.arange(w.rows, device=self.device)
        self._offset = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._total = torch.zeros((), device=self.device)
        short = w.rows % w.step_rows
        self._full, self._counts = w.rows // w.step_rows, [w.step_rows, *([short] if short else [])]
        self._graphs = self._captured()

    def state(self) -> list[Tensor]:
        """All tensors that a step changes."""
        raise NotImplementedError

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """Do one step on a batch; return its mean loss."""
        raise NotImplementedError

    def _one(self, rows: int) -> None:
        """The work of a step: what is captured."""
        x, y = self.X, self.y
        if not self.problem.is_full_batch:
            index = self._order.index_select(0, self._offset + self._places[:rows])
            x, y = x.index_select(0, index), y.index_select(0, index)
            self._offset.add_(rows)
        self._total.add_(self.learn(x, y), alpha=rows)

    def _captured(self) -> dict[int, Callable[[], Any]]:
        """Return what replays a step, for each size of batch; the state is as it was before."""
        import torch

        self._places = torch.arange(self.problem.workload.step_rows, device=self.device)
        saved = [tensor.detach().clone() for tensor in self.state()]
        found: dict[int, Callable[[], Any]] = {}
        side = torch.cuda.Stream()
        for rows in self._counts:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._offset.zero_()
                    self._one(rows)
            torch.cuda.current_stream().wait_stream(side)
            self._offset.zero_()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._one(rows)
            found[rows] = graph.replay
        with torch.no_grad():
            # what the optimizer made on the way began with zeros
            for tensor in self.state()[len(saved) :]:
                tensor.zero_()
            for tensor, value in zip(self.state(), saved, strict=False):
                tensor.copy_(value)
        return found

    def train(self, epochs: int) -> float:
        replay, rest = self._graphs[self._counts[0]], self._counts[1:]
        for _ in range(epochs):
            if self.problem.shuffles:
                self._order.copy_(self.order())
            self._offset.zero_()
            self._total.zero_()
            for _ in range(self._full):
                replay()
            for rows in rest:
                self._graphs[rows]()
        return float(self._total.mean()) / self.problem.workload.rows


class TorchGraph(_Captured, TorchEager):
    """The eager step captured as it is."""

    name = "torch.graph"
    about = "PyTorch, a whole step (batch, forward, backward, fused optimizer) in one torch.cuda.graph"
    device = "cuda"

    def make_optimizer(self, parameters: Any, lr: float) -> Any:
        import torch

        if self.problem.workload.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=lr, fused=True, capturable=True)
        return torch.optim.SGD(parameters, lr=lr, fused=True)

    def state(self) -> list[Tensor]:
        slots = [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if hasattr(value, "zero_")
        ]
        return [*self.network.parameters(), *slots]

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self.rounding():
            loss = self.loss(self.network(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class TorchCompileGpu(_Captured):
    """Forward, backward and update compiled as one graph of kernels, captured with the batch; a sweep by vmap."""

    name = "torch.compile"
    about = (
        "PyTorch, a whole step compiled (fullgraph, static shapes), in one torch.cuda.graph; a sweep by vmap"
    )
    sweeps = True

    @classmethod
    def available(cls) -> str | None:
        return TorchCompile.available()

    @classmethod
    def environment(cls, threads: int) -> dict[str, str]:
        # by itself each process starts one for each CPU that imports PyTorch and compiles; many of them prepare at once
        return super().environment(threads) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}

    def take_weights(self) -> None:
        import torch

        n = len(self.problem.lrs)
        lead = (n,) if self.problem.is_sweep else ()
        arrays = [a for weight, bias in self.problem.weights for a in (weight.T, bias)]
        self.parameters = [
            torch.from_numpy(np.array(np.broadcast_to(a, lead + a.shape))).to(self.device) for a in arrays
        ]
        is_adam = self.problem.workload.optimizer == "adam"
        self.slots = [torch.zeros_like(p) for p in self.parameters * 2] if is_adam else []
        self.t = torch.zeros((), device=self.device)
        self.lrs = torch.tensor(self.problem.lrs, device=self.device)
        torch.compiler.reset()  # the graphs of the last problem
        self._learn = torch.compile(_step(self.problem), fullgraph=True, dynamic=False)

    def state(self) -> list[Tensor]:
        return [*self.parameters, *self.slots, self.t]

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        return self._learn(self.parameters, self.slots, self.t, self.lrs, x, y)

    def _captured(self) -> dict[int, Callable[[], Any]]:
        saved = [tensor.clone() for tensor in self.state()]
        try:
            return super()._captured()
        except RuntimeError as error:  # without the graph it is what torch.compile gives by itself
            print(f"not captured: {error}", file=sys.stderr)
            for tensor, value in zip(self.state(), saved, strict=True):
                tensor.copy_(value)
            return {rows: functools.partial(self._one, rows) for rows in self._counts}

    def weights(self) -> Sequence[Weights]:
        arrays = [parameter.cpu().numpy() for parameter in self.parameters]
        pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
        if not self.problem.is_sweep:
            return [[(weight.T, bias) for weight, bias in pairs]]
        return [[(weight[i].T, bias[i]) for weight, bias in pairs] for i in range(len(self.problem.lrs))]


def _step(problem: Problem) -> Callable[..., Tensor]:
    """Return one step on flat lists of parameters and slots, changed in place; it returns the loss, of each network."""
    import torch
    from torch.nn import functional as F

    hidden = {"relu": torch.relu, "tanh": torch.tanh}[problem.workload.activation]
    loss = loss_function(problem.workload.loss)
    half = problem.precision == "bf16"

    def value(parameters: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        if half:  # the usual mixed precision: master weights stay as they are
            x, parameters = x.bfloat16(), [p.bfloat16() for p in parameters]
        for i in range(0, len(parameters) - 2, 2):
            x = hidden(F.linear(x, parameters[i], parameters[i + 1]))
        return loss(F.linear(x, *parameters[-2:]).float(), y)

    gradients = torch.func.grad_and_value(value)
    if problem.is_sweep:
        gradients = torch.func.vmap(gradients, in_dims=(0, None, None))

    def step(
        parameters: list[Tensor], slots: list[Tensor], t: Tensor, lrs: Tensor, x: Tensor, y: Tensor
    ) -> Tensor:
        found, mean = gradients(parameters, x, y)
        if not slots:
            for p, g in zip(parameters, found, strict=True):
                p.sub_(lrs.reshape(-1, *[1] * (p.ndim - 1)) * g if problem.is_sweep else lrs[0] * g)
            return mean.mean()
        t.add_(1)
        first, second = slots[: len(parameters)], slots[len(parameters) :]
        a, b = 1 - 0.9**t, 1 - 0.999**t
        for p, g, m, v in zip(parameters, found, first, second, strict=True):
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            p.sub_(lrs[0] * (m / a) / ((v / b).sqrt() + 1e-8))
        return mean

    return step
