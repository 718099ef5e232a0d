"""gpumlp itself, through the door that its users take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .contract import Peer, Problem, Weights


class Gpumlp(Peer):
    """`Trainer.fit`, and `fit_many` for a sweep.

    The clock runs around the loop of epochs, as in ``gpumlp bench``: see `Stopwatch` and `SweepClock` there for what
    it leaves out.
    """

    name = "gpumlp"
    about = "Trainer.fit with its defaults; fit_many for a sweep"
    library = "gpumlp"
    chooses_threads = True
    optimizers = ("sgd", "adam")

    @classmethod
    def unsupported(cls, problem: Problem) -> str | None:
        import gpumlp

        if problem.is_sweep and not hasattr(gpumlp, "fit_many"):
            return "this version of gpumlp has no fit_many"
        return super().unsupported(problem)

    @classmethod
    def environment(cls, threads: int) -> dict[str, str]:
        return {}

    def prepare(self, problem: Problem) -> None:
        from gpumlp.commands.bench_rounds import Stopwatch, SweepClock

        self.problem = problem
        self.stopwatch, self.clock = Stopwatch(), SweepClock()
        # a fit's new memory is first touched in its first epoch, once and not once an epoch
        self.untimed_epochs = int(problem.is_full_batch and not problem.is_sweep)
        self.trainers = [self._trainer(lr) for lr in problem.lrs]

    def _trainer(self, lr: float) -> Any:
        from gpumlp import Linear

        callbacks = [self.clock if self.problem.is_sweep else self.stopwatch]
        trainer = replace(self.problem.workload, lr=lr).trainer(
            self.device, "float32", callbacks=callbacks, precision=self.problem.precision
        )
        places = [i for i, layer in enumerate(trainer.network.layers) if isinstance(layer, Linear)]
        state: dict[str, np.ndarray] = {}
        for i, (weight, bias) in zip(places, self.problem.weights, strict=True):
            state |= {f"{i}.weight": weight, f"{i}.bias": bias}
        trainer.network.load_state_dict(state)
        return trainer

    def train(self, epochs: int) -> float:
        from gpumlp.executors.tailoring import at_once

        with at_once():  # the first training is not timed
            return self._train(epochs)

    def _train(self, epochs: int) -> float:
        p = self.problem
        settings: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": p.workload.batch_size,
            "shuffle": p.shuffles,
            "progress": False,
        }
        if p.is_sweep:
            import gpumlp

            histories = vars(gpumlp)["fit_many"](self.trainers, p.X, p.y, **settings)
        else:
            histories = [self.trainers[0].fit(p.X, p.y, **settings)]
        return float(np.mean([history["loss"][-1] for history in histories]))

    def timed(self, epochs: int) -> tuple[float, int, float, float]:
        if self.problem.is_sweep:
            cpu = time.process_time()
            loss, seconds = self.clock.timed(lambda: self.train(epochs))
            return loss, epochs, seconds, time.process_time() - cpu
        self.stopwatch.leave_out_first_epoch = bool(self.untimed_epochs)
        loss = self.train(epochs + self.untimed_epochs)
        self.stopwatch.leave_out_first_epoch = False
        done = self.stopwatch.measured
        return loss, done.steps // self.problem.workload.steps, done.seconds, done.cpu_seconds

    def weights(self) -> Sequence[Weights]:
        from gpumlp import Linear

        def of(network: Any) -> Weights:
            state = network.state_dict()
            places = [i for i, layer in enumerate(network.layers) if isinstance(layer, Linear)]
            return [(state[f"{i}.weight"], state[f"{i}.bias"]) for i in places]

        return [of(trainer.network) for trainer in self.trainers]
