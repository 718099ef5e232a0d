"""bench/gpu_check on the stand-in for a GPU: what it runs, writes and survives; no GPU needs to be there."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest

from gpumlp.kernels.cuda import OPERATIONS
from gpumlp.workloads import WORKLOADS
from tests.bench_gpu_check.sections import module

# --- all of it -----------------------------------------------------------------------------------------------------


def test_every_section_runs_on_the_stand_in_and_writes_what_it_found(tmp_path, capsys):
    path = tmp_path / "found.json"
    sections = "products,kernels,peers"
    arguments = ["--device", "host", "--only", sections, "--seconds", "120", "--out", str(path)]
    assert module("command").main(arguments) == 0
    result = json.loads(path.read_text())
    assert result["finished"]
    assert result["versions"]["numpy"] == np.__version__
    assert result["gpu"] == {"name": "stand-in for a GPU"}
    assert "commit" in result
    assert result["summary"]["failed"] == []
    found = result["sections"]
    assert {name: entry["status"] for name, entry in found.items()} == dict.fromkeys(
        ["products", "kernels", "peers"], "passed"
    )
    checks = {record["check"]: record for record in found["kernels"]["checks"]}
    assert checks["every operation is checked"]["values"] == {"operations": len(OPERATIONS)}
    assert 0 < checks["tanh float32"]["values"]["error"] <= 1e-5
    products = {record["check"]: record["values"] for record in found["products"]["checks"]}
    assert 1e-4 < products["matmul tf32"]["error"] <= 1e-3
    assert 1e-3 < products["product_bias_relu bf16"]["error"] <= 1e-2
    text = capsys.readouterr().out
    assert "kernels    passed" in text
    assert f"{len(checks) + len(products)} passed" in text
    raced = {record["check"]: record["values"] for record in found["peers"]["checks"]}
    assert set(raced) == {"small, float32", "sweep, float32", "mlpnn, float32"}
    for values in raced.values():
        assert {"gpumlp", "numpy-float32"} <= {entry["peer"] for entry in values["peers"]}


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("steps", ["all kinds of layers; graph, tf32", "relu, mse; resident, float32"]),
        (
            "trainings",
            [
                "small to the same score; graph, bf16",
            ],
        ),
        ("narrow", ["bias_relu_narrow bf16", "narrow_tanh_grad_sums float64"]),
        (
            "repeats",
            [
                "twice the same bits; all kinds of layers; resident, float32",
                "a lost loss keeps the last good weights; graph",
                "many networks at once",
                "threads of a user do not disturb each other; resident",
                "data that do not fit are streamed",
                "too little memory is a clear error",
            ],
        ),
        (
            "behaviour",
            [
                "Ctrl-C is answered; graph",
                "launches are short",
                "no memory is left behind by many fits; graph",
            ],
        ),
        (
            "targets",
            ["limit: bf16", "small, graph", "wide, bf16", "sweep"],
        ),
        (
            "changes",
            [
                *("small, float32, graph without chains", "mlpnn, tf32, graph without narrow products"),
                *("small, float32, resident with 256 threads", "clf, float32"),
            ],
        ),
    ],
)
def test_checks_of_a_section_pass_on_the_stand_in(context, section, names):
    perform = module("checks").perform
    known = {check.name: check for check in module("sections").SECTIONS[section].checks(context)}
    for name in names:
        record = perform(known[name])
        expected = "measured" if section in ("targets", "changes") else "passed"
        assert record["status"] == expected, record.get("traceback") or record.get("message")
        assert record["values"]


def test_every_target_is_measured(context):
    targets = module("targets")
    assert set(targets.TARGETS) <= {check.name for check in targets.checks(context)}


@pytest.mark.parametrize("one", ["Row", "Sweep"])
def test_a_target_that_is_ready_is_only_timed(context, one, monkeypatch):
    settings = ("small", "float32") if one == "Row" else ()
    target = getattr(module("targets"), one)(context, *settings)
    target.get_ready()
    drawn = []
    monkeypatch.setattr(type(WORKLOADS["small"]), "trainer", lambda *given: drawn.append(given))
    assert target.measure()["steps/s"] > 0
    assert drawn == []


def test_a_target_that_cannot_get_ready_is_an_error_when_it_is_measured(context, monkeypatch):
    targets = module("targets")
    context.called.clear()
    monkeypatch.setattr(targets, "Session", None)
    monkeypatch.setattr(targets.Sweep, "get_ready", lambda self: None)
    known = {check.name: check for check in targets.checks(context)}
    record = module("checks").perform(known["small, resident"])
    assert record["status"] == "error"
    assert "not callable" in record["message"]


# --- that checks can fail --------------------------------------------------------------------------------------------


def test_a_kernel_that_is_wrong_is_found(context, monkeypatch):
    kernels = module("kernels")
    true = kernels.reference
    monkeypatch.setattr(
        kernels, "reference", lambda name, *rest: {k: v * 1.001 for k, v in true(name, *rest).items()}
    )
    record = module("checks").perform(next(c for c in kernels.checks(context) if c.name == "sigmoid float32"))
    assert record["status"] == "failed"
    assert "y: relative error 0.000999" in record["message"]


def test_a_product_that_is_rounded_too_much_is_found(context, monkeypatch):
    products = module("products")
    multiply = products.multiply
    monkeypatch.setattr(
        products, "multiply", lambda c, kind, values: multiply(c, replace(kind, precision="bf16"), values)
    )
    (check,) = (c for c in products.checks(context) if c.name == "matmul float32")
    record = module("checks").perform(check)
    assert record["status"] == "failed"
    assert "c is 0.00" in record["message"]


def test_a_nan_that_is_lost_is_found(context, monkeypatch):
    products = module("products")
    multiply = products.multiply
    monkeypatch.setattr(
        products,
        "multiply",
        lambda *given: {k: np.nan_to_num(v) for k, v in multiply(*given).items()},
    )
    (check,) = (c for c in products.checks(context) if c.name == "NaN through product_bias float32")
    assert module("checks").perform(check)["status"] == "failed"


def test_other_bits_are_found():
    with pytest.raises(module("checks").Failed, match="the bits of b differ"):
        module("repeats").same({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3"})


def test_a_step_that_goes_astray_is_found(context, monkeypatch):
    steps = module("steps")
    step = steps.Steps.step

    def astray(self):
        loss = step(self)
        if self.network.backend.is_gpu:
            self.network.parameters.memory.view(np.float32)[:] *= np.float32(1.01)
        return loss

    monkeypatch.setattr(steps.Steps, "step", astray)
    (check,) = (c for c in steps.checks(context) if c.name == "tanh, cross-entropy; graph, float32")
    record = module("checks").perform(check)
    assert record["status"] == "failed"
    assert "update is" in record["message"]


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "product"], "unknown section 'product'; did you mean 'products'"),
        (["--seconds", "0"], "seconds is 0.0"),
        (["--out", "no/such/folder/a.json"], "there is no folder"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert module("command").main(["--device", "host", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_machine_without_a_gpu_is_told_in_the_result(tmp_path, capsys):
    try:
        importlib.import_module("cupy").cuda.runtime.getDeviceCount()
    except Exception:
        pass
    else:
        pytest.skip("there is a GPU")
    path = tmp_path / "found.json"
    assert module("command").main(["--only", "products", "--out", str(path)]) == 1
    entry = json.loads(path.read_text())["sections"]["products"]
    assert entry["status"] == "error"
    assert "device 'gpu' was asked for" in entry["failure"]
