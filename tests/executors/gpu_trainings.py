"""Trainings on a GPU's stand-in, and on the CPU, to be compared."""

import numpy as np

import gpumlp as gm

RNG = np.random.default_rng(2)
X = RNG.normal(size=(70, 5)).astype(np.float32)
LABELS = RNG.integers(0, 3, 70)
VALUES = np.stack([X[:, 0] * X[:, 1], np.sin(X[:, 2])], axis=1)
WEIGHT = RNG.uniform(0.1, 2, 70)


def train(device, layers=None, loss="cross_entropy", y=LABELS, optimizer=None, epochs=3, **settings):
    outputs = 2 if loss == "mse" else 3
    made = layers() if layers else [gm.Linear(5, 16), gm.ReLU(), gm.Dropout(0.2), gm.Linear(16, outputs)]
    trainer = gm.Trainer(
        gm.Sequential(*made, device=device, seed=1),
        loss=loss,
        optimizer=optimizer or gm.Adam(1e-2),
        seed=5,
        precision=settings.pop("precision", "float32"),
    )
    fit = {"batch_size": 16, "progress": False, **settings}
    history = trainer.fit(X, y, epochs=epochs, **fit)
    return trainer, history


def assert_same_training(one, other, assert_close, tolerance=1e-5):
    (trainer, history), (true, expected) = one, other
    for name, value in true.network.state_dict().items():
        assert_close(trainer.network.state_dict()[name], value, tolerance)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=tolerance)
