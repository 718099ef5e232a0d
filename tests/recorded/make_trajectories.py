"""Trajectories of torch.optim on a small net, and how the recorded ones were made.

    python tests/recorded/make_trajectories.py

writes ``trajectories.npz`` beside this file, in an environment with NumPy and PyTorch. The recorded file is of
PyTorch 2.13.0 (CPU); its entry ``torch_version`` says so too. Each trajectory is float64 (STEPS, 66): after each
step the tensors 0.weight (5, 7), 0.bias (7,), 2.weight (7, 3), 2.bias (3,), flattened one behind the other, with
weights as (in, out). `tests/test_optimizers.py` holds gpumlp to it, with the same names of cases, and calls
`trajectory` where PyTorch is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

STEPS = 20
ROWS, BATCH = 21, 8  # three steps an epoch, the last one of 5 rows
DECAY = 0.05
CLIP_NORM, CLIP_VALUE = 0.35, 0.08
FALL = 0.93  # of the rate from step to step, where it changes

# case: (class of torch.optim, its settings)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.4}),
    "momentum": ("SGD", {"lr": 0.2, "momentum": 0.9}),
    "dampening": ("SGD", {"lr": 0.4, "momentum": 0.8, "dampening": 0.3}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {"lr": 0.2, "lr_decay": 0.05, "eps": 1e-6}),
    "adagrad_accumulator": ("Adagrad", {"lr": 0.2, "initial_accumulator_value": 0.3}),
    "rmsprop": ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-5}),
    "rmsprop_centered": ("RMSprop", {"lr": 0.02, "alpha": 0.95, "centered": True}),
    "rmsprop_momentum": ("RMSprop", {"lr": 0.01, "momentum": 0.7, "centered": True}),
    "adam": ("Adam", {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-4}),
    "adamw": ("AdamW", {"lr": 0.03, "betas": (0.9, 0.99)}),
}
# weight_decay on weights, or on biases too; gradients clipped by norm, by value, or by value and then by norm;
# a rate that falls with each step
VARIANTS = ("", "decay", "decay_bias", "clip_norm", "clip_value", "clip_both", "falling")

RECORDED = (
    *((case, "") for case in CASES),
    ("momentum", "decay_bias"),
    ("momentum", "falling"),
    ("adam", "decay"),
    ("adamw", "decay"),
    ("nesterov", "clip_norm"),
    ("rmsprop", "clip_value"),
    ("adam", "clip_both"),
)


def problem() -> dict[str, np.ndarray]:
    """The rows X (21, 5), the targets y (21, 3), and the tensors that the net starts from."""
    rng = np.random.default_rng(20130)
    return {
        "X": rng.normal(size=(ROWS, 5)),
        "y": rng.normal(size=(ROWS, 3)),
        "0.weight": rng.normal(size=(5, 7)) * 0.5,
        "0.bias": rng.normal(size=7) * 0.5,
        "2.weight": rng.normal(size=(7, 3)) * 0.5,
        "2.bias": rng.normal(size=3) * 0.5,
    }


def trajectory(case: str, variant: str) -> np.ndarray:
    """The tensors after each step of torch.optim, float64 (STEPS, 66)."""
    import torch

    given = {name: torch.tensor(value) for name, value in problem().items()}
    parameters = {
        name: (value.T.clone() if name.endswith("weight") else value.clone()).requires_grad_()
        for name, value in given.items()
        if "." in name
    }
    name, settings = CASES[case]
    decay = DECAY if variant in ("decay", "decay_bias") else 0.0
    groups = [
        {"params": [p for n, p in parameters.items() if "weight" in n], "weight_decay": decay},
        {
            "params": [p for n, p in parameters.items() if "bias" in n],
            "weight_decay": decay if variant == "decay_bias" else 0.0,
        },
    ]
    optimizer = getattr(torch.optim, name)(groups, **settings)
    after = []
    for step in range(STEPS):
        start = step % 3 * BATCH
        x, y = given["X"][start : start + BATCH], given["y"][start : start + BATCH]
        hidden = torch.tanh(torch.nn.functional.linear(x, parameters["0.weight"], parameters["0.bias"]))
        output = torch.nn.functional.linear(hidden, parameters["2.weight"], parameters["2.bias"])
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(output, y).backward()
        if variant in ("clip_value", "clip_both"):
            torch.nn.utils.clip_grad_value_(parameters.values(), CLIP_VALUE)
        if variant in ("clip_norm", "clip_both"):
            torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP_NORM)
        if variant == "falling":
            for group in optimizer.param_groups:
                group["lr"] = settings["lr"] * FALL**step
        optimizer.step()
        tensors = [p.detach().numpy().T.ravel() for p in parameters.values()]
        after.append(np.concatenate(tensors))
    return np.array(after)


def main() -> None:
    import torch

    arrays: dict[str, Any] = {f"{case}-{variant}": trajectory(case, variant) for case, variant in RECORDED}
    path = Path(__file__).with_name("trajectories.npz")
    np.savez_compressed(path, **{"torch_version": np.array(torch.__version__), **problem(), **arrays})
    print(
        f"{path.name}: {len(arrays)} trajectories of PyTorch {torch.__version__}, {path.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    main()
