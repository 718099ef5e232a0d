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

    optimizers = ("sgd", "adam")

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
        parameters = [
            (
                jnp.array(np.broadcast_to(w, stacked + w.shape)),
                jnp.array(np.broadcast_to(b, stacked + b.shape)),
            )
            for w, b in problem.weights
        ]
        self.state = (parameters, _slots(problem, parameters))
        self.lr = jnp.asarray(problem.lrs if problem.is_sweep else problem.lrs[0], jnp.float32)
        self.key = jax.random.key(problem.seed)
        epoch = _epoch_function(problem)
        if problem.is_sweep:  # each network its rate; the order of the rows is shared
            epoch = jax.vmap(epoch, in_axes=(0, 0, None, None, None))
        jitted = jax.jit(epoch, donate_argnums=0)

        def run(*arguments: Any) -> Any:
            with jax.default_matmul_precision(MATMUL[problem.precision]):
                return jitted(*arguments)

        self.epoch = run

    def train(self, epochs: int) -> float:
        import jax

        loss: Array = None
        for _ in range(epochs):
            self.key, key = jax.random.split(self.key) if self.problem.shuffles else (self.key, self.key)
            self.state, loss = self.epoch(self.state, self.lr, key, self.X, self.y)
        return float(np.mean(loss))  # waits until all is done

    def weights(self) -> Sequence[Weights]:
        layers = [(np.asarray(w), np.asarray(b)) for w, b in self.state[0]]
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


MATMUL = {"float32": "highest", "tf32": "tensorfloat32", "bf16": "default"}
"""JAX's names of the precisions; its default on a GPU is TF32, and in bf16 the operands are cast before."""


def _slots(problem: Problem, parameters: Any) -> Any:
    """Return what the optimizer keeps: nothing, or the moments and the number of steps."""
    import jax
    import jax.numpy as jnp

    if problem.workload.optimizer == "sgd":
        return ()
    return (*(jax.tree.map(jnp.zeros_like, parameters) for _ in range(2)), jnp.zeros((), jnp.float32))


def _update(parameters: Any, slots: Any, gradients: Any, lr: Array) -> tuple[Any, Any]:
    """Return parameters and slots after one step of SGD, or of Adam where there are slots."""
    import jax
    import jax.numpy as jnp

    if not slots:
        return jax.tree.map(lambda p, g: p - lr * g, parameters, gradients), slots
    first, second, t = slots
    t = t + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
    a, b = 1 - 0.9**t, 1 - 0.999**t

    def moved(p: Array, m: Array, v: Array) -> Array:
        return p - lr * (m / a) / (jnp.sqrt(v / b) + 1e-8)

    return jax.tree.map(moved, parameters, first, second), (first, second, t)


def _epoch_function(problem: Problem) -> Callable[..., tuple[Any, Array]]:
    """Return ``epoch(state, lr, key, X, y) -> (state, mean loss)``; a state is parameters and slots."""
    import jax
    import jax.numpy as jnp

    workload = problem.workload
    n, size = workload.rows, workload.step_rows
    full = n // size
    hidden = {"relu": jax.nn.relu, "tanh": jnp.tanh}[workload.activation]
    loss = loss_function(workload.loss)

    def value(parameters: Any, x: Array, y: Array) -> Array:
        if problem.precision == "bf16":  # the usual mixed precision: master weights stay as they are
            x, parameters = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (x, parameters))
        for weight, bias in parameters[:-1]:
            x = hidden(x @ weight + bias)
        weight, bias = parameters[-1]
        return loss((x @ weight + bias).astype(jnp.float32), y)

    def step(state: Any, lr: Array, x: Array, y: Array) -> tuple[Any, Array]:
        parameters, slots = state
        mean, gradients = jax.value_and_grad(value)(parameters, x, y)
        return _update(parameters, slots, gradients, lr), mean * len(x)

    def epoch(state: Any, lr: Array, key: Array, X: Array, y: Array) -> tuple[Any, Array]:
        if problem.is_full_batch:
            state, total = step(state, lr, X, y)
            return state, total / n
        order = jax.random.permutation(key, n) if problem.shuffles else jnp.arange(n)
        state, losses = jax.lax.scan(
            lambda carry, rows: step(carry, lr, X[rows], y[rows]),
            state,
            order[: full * size].reshape(full, size),
        )
        total = losses.sum()
        if n % size:
            rows = order[full * size :]
            state, last = step(state, lr, X[rows], y[rows])
            total += last
        return state, total / n

    return epoch
