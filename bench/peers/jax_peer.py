"""JAX: an epoch is one compiled call; a sweep is its vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .contract import Peer, Problem, Weights, not_installed

Array = Any


class Jax(Peer):
    """`lax.scan` over the full batches and one step more on the rest, shuffled inside, parameters donated."""

    name = "jax"
    about = (
        "JAX, an epoch in one jitted scan, the short last batch included, donated buffers; a sweep by vmap"
    )
    library = "jax"

    @classmethod
    def available(cls) -> str | None:
        return not_installed("jax")

    @classmethod
    def environment(cls, threads: int) -> dict[str, str]:
        # XLA sizes its pools by NPROC, and has no setting of its own
        variables = {"JAX_PLATFORMS": "cpu", "NPROC": str(threads)}
        if threads == 1:
            variables["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        return super().environment(threads) | variables

    def prepare(self, problem: Problem) -> None:
        import jax
        import jax.numpy as jnp

        self.problem = problem
        n = len(problem.lrs)
        self.X = jnp.asarray(problem.X)
        self.y = jnp.asarray(problem.y, jnp.float32 if problem.workload.loss == "mse" else jnp.int32)
        stacked = (n,) if problem.is_sweep else ()
        self.parameters = [
            (
                jnp.array(np.broadcast_to(w, stacked + w.shape)),
                jnp.array(np.broadcast_to(b, stacked + b.shape)),
            )
            for w, b in problem.weights
        ]
        self.lr = jnp.asarray(problem.lrs if problem.is_sweep else problem.lrs[0], jnp.float32)
        self.key = jax.random.key(problem.seed)
        epoch = _epoch_function(problem)
        if problem.is_sweep:  # each network its rate; the order of the rows is shared
            epoch = jax.vmap(epoch, in_axes=(0, 0, None, None, None))
        self.epoch = jax.jit(epoch, donate_argnums=0)

    def train(self, epochs: int) -> float:
        import jax

        loss: Array = None
        for _ in range(epochs):
            self.key, key = jax.random.split(self.key) if self.problem.shuffles else (self.key, self.key)
            self.parameters, loss = self.epoch(self.parameters, self.lr, key, self.X, self.y)
        return float(np.mean(loss))  # waits until all is done

    def weights(self) -> Sequence[Weights]:
        layers = [(np.asarray(w), np.asarray(b)) for w, b in self.parameters]
        if not self.problem.is_sweep:
            return [layers]
        return [[(w[i], b[i]) for w, b in layers] for i in range(len(self.problem.lrs))]


def loss_function(name: str) -> Callable[[Array, Array], Array]:
    """Return a loss of outputs and targets (values, or labels), a mean over the batch."""
    import jax
    import jax.numpy as jnp

    def cross_entropy(z: Array, labels: Array) -> Array:
        picked = jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], axis=1)
        return -jnp.mean(picked)

    return {
        "mse": lambda out, t: jnp.mean((out[:, 0] - t) ** 2),
        "binary_cross_entropy": lambda z, t: jnp.mean(jax.nn.softplus(z[:, 0]) - t * z[:, 0]),
        "cross_entropy": cross_entropy,
        "softmax_mse": lambda z, t: jnp.mean((jax.nn.softmax(z) - jax.nn.one_hot(t, z.shape[1])) ** 2),
    }[name]


def _epoch_function(problem: Problem) -> Callable[..., tuple[Any, Array]]:
    """Return ``epoch(parameters, lr, key, X, y) -> (parameters, mean loss)``."""
    import jax
    import jax.numpy as jnp

    workload = problem.workload
    n, size = workload.rows, workload.step_rows
    full = n // size
    hidden = {"relu": jax.nn.relu, "tanh": jnp.tanh}[workload.activation]
    loss = loss_function(workload.loss)

    def value(parameters: Any, x: Array, y: Array) -> Array:
        for weight, bias in parameters[:-1]:
            x = hidden(x @ weight + bias)
        weight, bias = parameters[-1]
        return loss(x @ weight + bias, y)

    def step(parameters: Any, lr: Array, x: Array, y: Array) -> tuple[Any, Array]:
        mean, gradients = jax.value_and_grad(value)(parameters, x, y)
        return jax.tree.map(lambda p, g: p - lr * g, parameters, gradients), mean * len(x)

    def epoch(parameters: Any, lr: Array, key: Array, X: Array, y: Array) -> tuple[Any, Array]:
        if problem.is_full_batch:
            parameters, total = step(parameters, lr, X, y)
            return parameters, total / n
        order = jax.random.permutation(key, n) if problem.shuffles else jnp.arange(n)
        parameters, losses = jax.lax.scan(
            lambda carry, rows: step(carry, lr, X[rows], y[rows]),
            parameters,
            order[: full * size].reshape(full, size),
        )
        total = losses.sum()
        if n % size:
            rows = order[full * size :]
            parameters, last = step(parameters, lr, X[rows], y[rows])
            total += last
        return parameters, total / n

    return epoch
