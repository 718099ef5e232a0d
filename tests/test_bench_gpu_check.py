"""bench/gpu_check on the stand-in for a GPU: what it runs, writes and survives; no GPU needs to be there."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpumlp.kernels.cuda import OPERATIONS
from gpumlp.kernels.cuda.host import compiler
from gpumlp.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """The root of the checkout, where `bench` is found; a compiler, for the stand-in's kernels."""
    try:
        compiler()
    except RuntimeError as error:
        pytest.skip(str(error))
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("GPUMLP_DATA", raising=False)


def module(name: str):
    return importlib.import_module(f"bench.gpu_check.{name}")


@pytest.fixture
def context(monkeypatch):
    from gpumlp import backend

    monkeypatch.setattr(backend, "_REGISTERED", {})
    return module("checks").Context("host", time.monotonic() + 600)


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
    assert {name: entry["status"] for name, entry in found.items()} == {
        **dict.fromkeys(["products", "kernels"], "passed"),
        "peers": "skipped",
    }
    checks = {record["check"]: record for record in found["kernels"]["checks"]}
    assert checks["every operation is checked"]["values"] == {"operations": len(OPERATIONS)}
    assert 0 < checks["tanh float32"]["values"]["error"] <= 1e-5
    products = {record["check"]: record["values"] for record in found["products"]["checks"]}
    assert 1e-4 < products["matmul tf32"]["error"] <= 1e-3
    assert 1e-3 < products["product_bias_relu bf16"]["error"] <= 1e-2
    text = capsys.readouterr().out
    assert "kernels    passed" in text
    assert f"{len(checks) + len(products)} passed" in text


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("steps", ["all kinds of layers; graph, tf32", "relu, mse; resident, float32"]),
        (
            "trainings",
            [
                "small to the same score; graph, bf16",
                "twice the same bits; all kinds of layers; resident, float32",
                "a lost loss keeps the last good weights; graph",
                "many networks at once",
            ],
        ),
        (
            "behaviour",
            [
                "Ctrl-C is answered; graph",
                "threads of a user do not disturb each other; resident",
                "launches are short",
                "data that do not fit are streamed",
                "too little memory is a clear error",
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
    trainings = module("trainings")
    with pytest.raises(module("checks").Failed, match="the bits of b differ"):
        trainings._same({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3"})


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


# --- that one failure hides no other ---------------------------------------------------------------------------------


FAULTY = """
import os, time
from bench.gpu_check.checks import Check, Failed, Skipped

def checks(context):
    def hang():
        time.sleep(60)
    def die():
        os._exit(9)
    def fail():
        raise Failed("it is 2", {"found": 2})
    def skip():
        raise Skipped("not here")
    def lose():
        context.is_alive = lambda: False
        raise RuntimeError("an illegal access")
    named = {"one": lambda: {"x": 1}, "hang": hang, "die": die, "fail": fail, "skip": skip, "lose": lose}
    return [Check(name, run, limit=0.5) for name, run in named.items()] + [Check("last", lambda: {"x": 2})]
"""


def run_faulty(tmp_path, monkeypatch, text: str):
    driver, sections = module("driver"), module("sections")
    package = tmp_path / "parts"
    package.mkdir()
    (package / "faulty.py").write_text(text)
    # the processes find the module where this one's package lies
    (package / "sitecustomize.py").write_text(
        "import bench.gpu_check, bench.gpu_check.sections as s\n"
        f"bench.gpu_check.__path__.append({str(package)!r})\n"
        "s.SECTIONS['faulty'] = s.Section('faulty', 'what goes wrong', 60)\n"
    )
    path = tmp_path / "found.json"
    environment = {"PYTHONPATH": f"{package}:{ROOT}"}
    run = driver.Run("host", 60, path, lambda text: None, environment)
    result = run.run([sections.Section("faulty", "what goes wrong", 60)])
    return result, json.loads(path.read_text())


def test_checks_that_hang_die_or_lose_the_device_leave_the_others_alone(tmp_path, monkeypatch):
    result, written = run_faulty(tmp_path, monkeypatch, FAULTY)
    found = {r["check"]: (r["status"], r.get("message")) for r in written["sections"]["faulty"]["checks"]}
    assert found == {
        "one": ("passed", None),
        "hang": ("error", "no end within 0 s"),
        "die": ("error", "its process ended with code 9"),
        "fail": ("failed", "it is 2"),
        "skip": ("skipped", "not here"),
        "lose": ("error", "RuntimeError: an illegal access"),
        "last": ("passed", None),
    }
    assert set(result["summary"]["failed"]) == {f"faulty: {n}" for n in ("hang", "die", "fail", "lose")}
    report = module("report").text({**result, "gpu": {"name": "none"}})
    assert "FAILED faulty: fail: it is 2" in report
    assert "raise RuntimeError" in report


def test_a_section_that_cannot_begin_is_an_error_with_its_traceback(tmp_path, monkeypatch):
    _, written = run_faulty(tmp_path, monkeypatch, "raise ImportError('no such library')")
    entry = written["sections"]["faulty"]
    assert (entry["status"], entry["failure"]) == ("error", "ImportError: no such library")
    assert "faulty.py" in entry["traceback"]
    assert written["summary"]["failed"] == ["faulty"]


def test_what_was_found_until_it_is_stopped_is_in_the_file(tmp_path):
    path = tmp_path / "found.json"
    command = [sys.executable, "-m", "bench.gpu_check", "--device", "host", "--out", str(path)]
    process = subprocess.Popen(
        [*command, "--only", "products,trainings"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        end = time.monotonic() + 60
        while not (
            path.exists() and len(json.loads(path.read_text())["sections"]["trainings"]["checks"]) > 2
        ):
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert b"interrupted; what was found until now is in" in errors
    result = json.loads(path.read_text())
    assert not result["finished"]
    assert result["sections"]["products"]["status"] == "passed"
    assert result["summary"]["counts"]["passed"] > 50


# --- peers -----------------------------------------------------------------------------------------------------------


def test_peers_are_checked_and_timed_in_turn_and_those_that_fail_are_named(context):
    peers, loop = module("peers"), importlib.import_module("bench.peers.numpy_loop")
    registry = importlib.import_module("bench.peers.registry")
    known = {peer.name: peer for peer in (loop.NumpyFloat32, registry.ScikitLearn)}
    race = peers.Race(context, known, rounds=2, seconds=0.05)
    try:
        workload = WORKLOADS["polar"].reduced(64)
        values = race.run(registry.Contest("polar", workload, (workload.lr,)), "float32")
    finally:
        race.close()
    (entry,) = (e for e in values["peers"] if e["peer"] == "numpy-float32")
    assert len(entry["rounds"]) == 2
    assert entry["check"]["move_error"] < 1e-3
    assert entry["steps_per_second"]["min"] > 0
    assert values["over_best_peer"] is None  # gpumlp did not take part
    assert {e["peer"] for e in values["peers"]} | set(values["left_out"]) == set(known)


def test_ours_is_held_against_the_best_other():
    entries = [
        {"peer": name, "steps_per_second": {"median": rate}}
        for name, rate in (("gpumlp", 30.0), ("jax", 20.0), ("torch", 10.0))
    ]
    values = module("peers").judged(entries)
    assert (values["best_peer"], values["over_best_peer"]) == ("jax", 1.5)


def test_all_workloads_are_raced_in_float32():
    named = {name for name, precision in module("peers").ORDER if precision == "float32"}
    assert named == {*WORKLOADS, "sweep", "wide"}


def test_adam_of_the_reference_moves_every_weight_by_the_rate_in_its_first_step():
    loop = importlib.import_module("bench.peers.numpy_loop")
    network = [(np.array([[2.0]]), np.array([0.5]))]
    _, moved = loop.Adam().step(network, np.array([[3.0]]), np.array([0.0]), 0.1, "mse", "relu")
    np.testing.assert_allclose([moved[0][0][0, 0], moved[0][1][0]], [1.9, 0.4], rtol=1e-6)


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
