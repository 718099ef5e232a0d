"""The workloads in gpumlp, PyTorch and JAX on the GPU, in turn; each library in processes of its own, checked first."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from bench.peers.contract import Peer
from bench.peers.registry import GPU_PEERS, PEERS, Contest

from .checks import Check, Context
from .race import Race
from .targets import workload_of

ORDER = (
    *(("small", "float32"), ("sweep", "float32"), ("ee6132", "float32")),
    *(("mlpnn", "float32"), ("mlpnn", "tf32"), ("mlpnn", "bf16"), ("wide", "bf16")),
    *(("clf", "float32"), ("polar", "float32"), ("deepwide", "float32")),
    *(("wide", "tf32"), ("ee6132", "tf32"), ("ee6132", "bf16"), ("wide", "float32")),
)
"""What has a target first, since time may not be enough for all."""

ON_HOST = ("small", "sweep", "mlpnn")
HOST_PEERS: Mapping[str, type[Peer]] = {
    name: PEERS[name] for name in ("gpumlp", "numpy-float32", "torch.compile", "jax")
}
"""Those on the CPU that are held against each other on the stand-in, to test the checks."""

READY_BYTES = 14e9
"""Memory of the GPU for each workload whose peers are ready at the same time: more than most need, and half of what the
largest does."""


def checks(context: Context) -> list[Check]:
    """One workload in one precision at a time; the peers get ready before this returns, as far as they are let."""
    contests = {
        f"{name}, {precision}": (contest_of(context, name), precision)
        for name, precision in ORDER
        if not context.is_host or (name in ON_HOST and precision == "float32")
    }
    contests = {name: contest for name, contest in contests.items() if name not in context.left_out}
    race = Race(
        context,
        context.either(GPU_PEERS, HOST_PEERS),
        contests,
        seconds=context.either(0.5, 0.05),
    )
    _, total = context.gpu.memory()
    early = list(contests)[: max(1, int(total / READY_BYTES))]
    race.get_ready(early, lambda: not context.called.is_set() and context.seconds_left > 0)
    return [Check(name, functools.partial(race.run, name), limit=400, measures=True) for name in contests]


def contest_of(context: Context, name: str) -> Contest:
    """Return a workload with its rates."""
    workload = workload_of(context, name)
    return Contest(name, replace(workload, networks=1), workload.rates)
