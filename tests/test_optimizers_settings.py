"""gpumlp.optimizers: names, defaults, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

import gpumlp as gm
from gpumlp.optimizers import OPTIMIZERS, get_optimizer

# torch.optim's, but for the rate of SGD, which is 0.001 there
DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "form": "pytorch"},
    "adagrad": {"lr": 0.01, "lr_decay": 0.0, "initial_accumulator": 0.0, "eps": 1e-10},
    "rmsprop": {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False},
    "adam": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "adamw": {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_not_given_is_as_in_pytorch(name):
    expected = {"weight_decay": 0.0, "decay_bias": False, **DEFAULTS[name]}
    rate = {"name": "constant", "lr": expected.pop("lr")}
    assert get_optimizer(name).to_dict() == {"name": name, "lr": rate, **expected}


def test_a_schedule_goes_with_the_optimizer():
    optimizer = gm.Adam(lr={"name": "cosine", "lr": 0.1, "warmup": 2})
    assert optimizer.schedule == gm.CosineDecay(0.1, warmup=2)
    assert get_optimizer(optimizer.to_dict()).schedule == optimizer.schedule


def test_optimizers_are_found_by_name_object_class_and_table():
    for name, cls in OPTIMIZERS.items():
        assert type(get_optimizer(name)) is cls
        by_class: Any = cls
        assert type(get_optimizer(by_class)) is cls
    made = gm.SGD(0.3)
    assert get_optimizer(made) is made
    assert get_optimizer({"name": "sgd", "lr": 0.3, "momentum": 0.5}).to_dict()["momentum"] == 0.5


NUMBERS_FROM_0 = {
    gm.SGD: ["weight_decay", "dampening"],
    gm.Adagrad: ["lr_decay", "initial_accumulator", "eps"],
    gm.RMSprop: ["eps"],
    gm.Adam: ["eps", "weight_decay"],
    gm.AdamW: ["eps", "weight_decay"],
}
SHARES = {gm.SGD: ["momentum"], gm.RMSprop: ["alpha", "momentum"], gm.Adam: ["beta1", "beta2"]}


@pytest.mark.parametrize(
    ("cls", "setting", "value"),
    [
        *((cls, "lr", v) for cls in OPTIMIZERS.values() for v in (-0.1, math.nan, math.inf)),
        *(
            (c, s, v)
            for c, names in NUMBERS_FROM_0.items()
            for s in names
            for v in (-1.0, math.nan, math.inf)
        ),
        *((c, s, v) for c, names in SHARES.items() for s in names for v in (-0.1, 1.0, math.nan)),
        *(
            (c, s, v)
            for c in OPTIMIZERS.values()
            for s in ("clip_norm", "clip_value")
            for v in (0, -1, math.nan)
        ),
        (gm.SGD, "form", "tensorflow"),
    ],
)
def test_a_constant_outside_its_range_is_refused_in_one_line(cls, setting, value):
    with pytest.raises(ValueError) as error:
        cls(**{setting: value})
    assert "\n" not in str(error.value)
    assert setting in str(error.value)
    assert str(value) in str(error.value) or repr(value) in str(error.value)
    assert "expected" in str(error.value)


@pytest.mark.parametrize(
    ("cls", "setting"),
    [(gm.SGD, "momentum"), (gm.Adam, "eps"), (gm.RMSprop, "clip_norm"), (gm.AdamW, "weight_decay")],
)
@pytest.mark.parametrize("value", ["much", [0.5], True])
def test_a_constant_that_is_no_number_is_a_type_error_of_one_line(cls, setting, value):
    with pytest.raises(TypeError, match=rf"^{setting} is .*; expected a .*number[^\n]*$"):
        cls(**{setting: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        {"nesterov": True, "momentum": 0.9, "form": "average"},
        {"dampening": 0.5, "momentum": 0.9, "form": "keras"},
    ],
)
def test_settings_of_sgd_that_exclude_each_other_are_refused(settings):
    with pytest.raises(ValueError, match=r"nesterov|dampening") as error:
        gm.SGD(0.1, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("adm", ValueError, "unknown optimizer 'adm'; did you mean 'adam'"),
        ({"name": "sgd", "momentun": 0.9}, ValueError, "unknown setting 'momentun'.*did you mean 'momentum'"),
        ({"lr": 0.9}, ValueError, "needs a name"),
        (0.1, TypeError, "optimizer is a float; expected a"),
    ],
)
def test_an_unknown_optimizer_or_setting_names_the_nearest_one(spec, kind, message):
    with pytest.raises(kind, match=message) as error:
        get_optimizer(spec)
    assert "\n" not in str(error.value)
