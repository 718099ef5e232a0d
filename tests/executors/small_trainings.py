"""Small trainings by one or several workers; also the first lines of scripts that run in processes of their own."""

import numpy as np

import gpumlp as gm

X = np.random.default_rng(0).normal(size=(90, 8)).astype(np.float32)
Y = (X[:, :1] * X[:, 1:2]).astype(np.float32)


def fit(seed, threads, epochs=8, **settings):
    network = gm.Sequential(
        *(gm.Linear(8, 40), gm.BatchNorm1d(40), gm.ReLU(), gm.Dropout(0.2), gm.Linear(40, 1)), device="cpu"
    )
    trainer = gm.Trainer(network, loss="mse", optimizer="adam", seed=seed, threads=threads)
    trainer.fit(X, Y, epochs=epochs, batch_size=32, progress=False, **settings)
    return trainer


def weights(trainer):
    return np.concatenate([np.ravel(v) for v in trainer.network.state_dict().values()])


def bits(seed, threads):
    return weights(fit(seed, threads)).tobytes().hex()
