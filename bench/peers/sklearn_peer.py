"""scikit-learn's MLPRegressor and MLPClassifier, plain SGD; a sweep under joblib."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .contract import Peer, Problem, Weights, not_installed


def fit(estimator: Any, X: np.ndarray, y: np.ndarray, epochs: int) -> tuple[Any, float]:
    """Train an estimator for whole epochs; return it and the CPU seconds of the process that did it."""
    from sklearn.exceptions import ConvergenceWarning

    cpu = time.process_time()
    estimator.set_params(max_iter=epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said whenever max_iter ends the training
        estimator.fit(X, y)
    return estimator, time.process_time() - cpu


class ScikitLearn(Peer):
    """`fit` with warm_start, all epochs of a round in one call: its loop then runs without checks of the data between.

    Its squared error is halved, and so its rate is doubled and its loss as well.
    """

    name = "scikit-learn"
    about = "MLPRegressor / MLPClassifier, solver sgd, warm_start; a sweep as joblib processes"
    library = "scikit-learn"
    losses = {"softmax_mse": "cross_entropy"}  # noqa: RUF012

    @classmethod
    def available(cls) -> str | None:
        return not_installed("sklearn", "joblib")

    def prepare(self, problem: Problem) -> None:
        self.problem = problem
        self.scale = 2.0 if problem.workload.loss == "mse" else 1.0
        self.estimators = [self._estimator(lr) for lr in problem.lrs]
        self.cpu_seconds = 0.0

    def _estimator(self, lr: float) -> Any:
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        p, w = self.problem, self.problem.workload
        make = MLPRegressor if w.loss == "mse" else MLPClassifier
        estimator = make(
            hidden_layer_sizes=w.sizes[1:-1],
            activation=w.activation,
            solver="sgd",
            learning_rate_init=self.scale * lr,
            momentum=0.0,
            nesterovs_momentum=False,
            alpha=0.0,
            batch_size=w.step_rows,
            shuffle=p.shuffles,
            random_state=p.seed,
            warm_start=True,
            tol=0.0,
            n_iter_no_change=10**9,
        )
        # one epoch makes the arrays, which then take the weights that everybody starts from
        fit(estimator, p.X, p.y, 1)
        for own, (weight, bias) in zip(
            zip(estimator.coefs_, estimator.intercepts_, strict=True), p.weights, strict=True
        ):
            own[0][...], own[1][...] = weight, bias
        return estimator

    def train(self, epochs: int) -> float:
        p = self.problem
        if len(self.estimators) == 1:
            done = [fit(self.estimators[0], p.X, p.y, epochs)]
        else:
            from joblib import parallel_config
            from sklearn.utils.parallel import Parallel, delayed  # joblib's, with scikit-learn's settings

            jobs = (delayed(fit)(estimator, p.X, p.y, epochs) for estimator in self.estimators)
            # one BLAS thread in each process: else it takes what OMP_NUM_THREADS gives this one
            with parallel_config("loky", inner_max_num_threads=1):
                done = Parallel(n_jobs=self.threads)(jobs)
        self.estimators = [estimator for estimator, _ in done]
        self.cpu_seconds = sum(seconds for _, seconds in done)
        return self.scale * float(np.mean([estimator.loss_ for estimator in self.estimators]))

    def timed(self, epochs: int) -> tuple[float, int, float, float]:
        loss, epochs, seconds, cpu_seconds = super().timed(epochs)
        # the processes of joblib have clocks of their own
        return loss, epochs, seconds, max(cpu_seconds, self.cpu_seconds)

    def weights(self) -> Sequence[Weights]:
        return [list(zip(e.coefs_, e.intercepts_, strict=True)) for e in self.estimators]
