"""bench/peers: what a peer is given and answers, the NumPy loop, and the tables; no peer needs to be installed."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp.commands import bench
from gpumlp.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """The root of the checkout, where `bench` is found."""
    monkeypatch.syspath_prepend(str(ROOT))


def module(name: str):
    return importlib.import_module(f"bench.peers.{name}")


def small_problem(rows: int = 40, loss: str = "mse", lrs: tuple[float, ...] = (0.01,), sizes=(1, 5, 1)):
    contract = module("contract")
    rng = np.random.default_rng(0)
    name = {"mse": "small", "binary_cross_entropy": "clf", "softmax_mse": "polar", "cross_entropy": "ee6132"}[
        loss
    ]
    workload = WORKLOADS[name].reduced(rows)
    X = rng.standard_normal((rows, sizes[0])).astype(np.float32)
    y = rng.random(rows).astype(np.float32) if loss == "mse" else rng.integers(0, max(2, sizes[-1]), rows)
    weights = [
        (rng.standard_normal((a, b)).astype(np.float32), rng.standard_normal(b).astype(np.float32))
        for a, b in pairwise(sizes)
    ]
    return contract.Problem(workload, X, y, weights, lrs, shuffle=False)


# --- the NumPy loop -------------------------------------------------------------------------------------------------


def test_a_step_of_the_numpy_loop_is_the_one_worked_by_hand():
    # x = 2, hidden relu(2 * [1, -1] + [0, 1]) = [2, 0], output 2 * 3 + 0 * 5 + 1 = 7, target 5: loss 4, d = 4
    network = [
        (np.array([[1.0, -1.0]]), np.array([0.0, 1.0])),
        (np.array([[3.0], [5.0]]), np.array([1.0])),
    ]
    step = module("numpy_loop").step
    loss, updated = step(network, np.array([[2.0]]), np.array([5.0]), 0.1, "mse", "relu")
    assert loss == 4.0
    # output: dW = a d = [8, 0], db = 4; hidden: d w = [12, 20], masked [12, 0]; dW = x [12, 0] = [24, 0]
    expected = [([[1 - 2.4, -1.0]], [-1.2, 1.0]), ([[3 - 0.8], [5.0]], [0.6])]
    for (weight, bias), (w, b) in zip(updated, expected, strict=True):
        np.testing.assert_allclose(weight, w, rtol=1e-15)
        np.testing.assert_allclose(bias, b, rtol=1e-15)


@pytest.mark.parametrize("hidden", ["relu", "tanh"])
@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy", "cross_entropy", "softmax_mse"])
def test_the_gradients_of_the_numpy_loop_are_those_of_central_differences(loss, hidden):
    loop = module("numpy_loop")
    k = 3 if loss in ("cross_entropy", "softmax_mse") else 1
    problem = small_problem(6, loss, sizes=(2, 4, k))
    network = [(w.astype(float), b.astype(float)) for w, b in problem.weights]
    y = problem.y.astype(float) if loss == "mse" else problem.y
    x = problem.X.astype(float)
    _, updated = loop.step(network, x, y, 1.0, loss, hidden)
    for layer, new_layer in zip(network, updated, strict=True):
        for array, new in zip(layer, new_layer, strict=True):
            for place in np.ndindex(array.shape):
                old = array[place]
                values = []
                for moved in (old + 1e-6, old - 1e-6):
                    array[place] = moved
                    values.append(loop.step(network, x, y, 0.0, loss, hidden)[0])
                array[place] = old
                assert old - new[place] == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8, rel=1e-6)


def test_the_numpy_loop_takes_the_short_last_batch_too():
    problem = small_problem(40)  # batches of 32 and 8
    loop = module("numpy_loop")
    peer = loop.NumpyFloat64(threads=1)
    peer.prepare(problem)
    loss = peer.train(1)
    network = [(w.astype(float), b.astype(float)) for w, b in problem.weights]
    X, y = problem.X.astype(float), problem.y.astype(float)
    first, network = loop.step(network, X[:32], y[:32], 0.01, "mse", "relu")
    last, network = loop.step(network, X[32:], y[32:], 0.01, "mse", "relu")
    assert loss == pytest.approx((32 * first + 8 * last) / 40, rel=1e-12)
    ((found, *_),) = peer.weights()
    np.testing.assert_array_equal(found[0], network[0][0])


def test_shuffling_changes_the_order_and_a_full_batch_is_never_shuffled():
    loop = module("numpy_loop")
    ordered = small_problem(40)
    shuffled = replace(ordered, shuffle=True)
    ends = []
    for problem in (ordered, shuffled):
        peer = loop.NumpyFloat64(threads=1)
        peer.prepare(problem)
        peer.train(2)
        ends.append(peer.weights()[0][0][0])
    assert shuffled.shuffles
    assert not np.array_equal(*ends)
    full = replace(shuffled, workload=ordered.workload.reduced(20), X=ordered.X[:20], y=ordered.y[:20])
    assert full.is_full_batch
    assert not full.shuffles


def test_a_sweep_trains_each_network_with_its_own_rate():
    loop = module("numpy_loop")
    peer = loop.NumpyFloat64(threads=1)
    peer.prepare(small_problem(40, lrs=(0.01, 0.05)))
    peer.train(2)
    for lr, found in zip((0.01, 0.05), peer.weights(), strict=True):
        alone = loop.NumpyFloat64(threads=1)
        alone.prepare(small_problem(40, lrs=(lr,)))
        alone.train(2)
        np.testing.assert_array_equal(found[0][0], alone.weights()[0][0][0])


# --- the other process ----------------------------------------------------------------------------------------------


def saved_small(folder: Path, rows: int = 64):
    w = WORKLOADS["small"].reduced(rows)
    data = w.load()
    rng = np.random.default_rng(1)
    weights = [
        (rng.normal(0, 0.1, (a, b)).astype(np.float32), np.zeros(b, np.float32)) for a, b in pairwise(w.sizes)
    ]
    problem = module("contract").Problem(w, data.X, data.y, weights, (w.lr,), shuffle=False)
    return problem, problem.save(folder)


def test_a_problem_that_is_saved_is_the_same_when_loaded(tmp_path):
    problem, saved = saved_small(tmp_path / "p")
    loaded = module("contract").Problem.load(json.loads(json.dumps(saved)))
    np.testing.assert_array_equal(loaded.X, problem.X)
    np.testing.assert_array_equal(loaded.y, problem.y)
    assert (loaded.workload, loaded.lrs, loaded.shuffle) == (problem.workload, problem.lrs, problem.shuffle)
    for (w, b), (v, c) in zip(loaded.weights, problem.weights, strict=True):
        np.testing.assert_array_equal(w, v)
        np.testing.assert_array_equal(b, c)


def test_a_worker_process_checks_trains_and_hands_over_its_weights(tmp_path):
    worker, loop = module("worker"), module("numpy_loop")
    problem, saved = saved_small(tmp_path / "p")
    path = tmp_path / "weights.npz"
    with worker.Worker(loop.NumpyFloat32, 1, tmp_path / "log") as process:
        process.ask("check", 60, problem=saved, epochs=2, path=str(path))
        reference = loop.NumpyFloat64(threads=1)
        reference.prepare(problem)
        reference.train(2)
        found = module("judge").compare(module("contract").load_weights(path), reference.weights(), problem)
        assert found["loss_error"] < 1e-5
        assert 0 < found["move_error"] < 1e-4
        process.ask("prepare", 60, problem=saved)
        done = process.ask("run", 60, seconds=0.02, least=3)["measurement"]
        assert done["epochs"] >= 3
        assert done["steps"] == done["epochs"] * problem.workload.steps
        assert done["seconds"] > 0
        assert done["cpu_seconds"] > 0
        assert process.ask("weights", 60, path=str(path))["epochs"] > done["epochs"]
        with pytest.raises(worker.WorkerError, match=r"^jump: unknown command 'jump'; expected one of check"):
            process.ask("jump", 60)
        process.ask("forget", 60)
        with pytest.raises(worker.WorkerError, match="nothing is prepared; send prepare first"):
            process.ask("run", 60, seconds=0.02, least=1)
        assert process.is_alive()
    assert not process.is_alive()


def test_a_worker_that_does_not_answer_in_time_is_ended(tmp_path):
    worker, loop = module("worker"), module("numpy_loop")
    with worker.Worker(loop.NumpyFloat32, 1, tmp_path / "log") as process:
        with pytest.raises(worker.WorkerError, match=r"^no answer within 0 s$"):
            process.ask("forget", 0)
        assert not process.is_alive()
        with pytest.raises(worker.WorkerError, match="the process ended"):
            process.ask("forget", 10)


def test_a_worker_ends_with_the_process_that_started_it_also_while_it_works():
    text = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', "
        "'import os, time; from bench.peers.worker import end_with; end_with(os.getppid());"
        " print(1, flush=True); time.sleep(60)'],"
        " stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    pid, end = int(done.stdout), time.monotonic() + 20

    def is_there() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    while is_there():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_commands_are_answered_line_by_line_whatever_they_are():
    worker, loop = module("worker"), module("numpy_loop")
    commands = io.StringIO('{"do": "forget"}\nnonsense\n[1]\n{"do": "run", "seconds": 1, "least": 1}\n')
    answers = io.StringIO()
    worker.serve(loop.NumpyFloat64(threads=1), commands, answers)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert lines[0] == {"ok": True}
    assert all("error" in line and "\n" not in line["error"] for line in lines[1:])
    assert len(lines) == 4


# --- the judge ------------------------------------------------------------------------------------------------------


def test_the_judge_sees_a_peer_that_leaves_out_the_short_last_batch():
    judge, loop = module("judge"), module("numpy_loop")
    problem = small_problem(40)
    reference, lazy = (loop.NumpyFloat64(threads=1) for _ in range(2))
    reference.prepare(problem)
    reference.train(3)
    lazy.prepare(problem.to_check(32))
    lazy.train(3)
    found = judge.compare(lazy.weights(), reference.weights(), problem)
    assert found["move_error"] > judge.MOVE_TOLERANCE
    same = judge.compare(reference.weights(), reference.weights(), problem)
    assert same["move_error"] == same["loss_error"] == 0


def doubled() -> Any:
    """A peer that trains with twice the rate that it is given."""
    loop: Any = module("numpy_loop")

    class Doubled(loop.NumpyFloat64):
        name = "doubled"

        def prepare(self, problem):
            super().prepare(replace(problem, lrs=(2 * problem.lrs[0],)))

    return Doubled(threads=1)


def test_a_peer_whose_result_is_wrong_is_not_timed(tmp_path):
    contest = module("registry").CONTESTS["small"]
    problem, _ = saved_small(tmp_path / "p")
    judge = module("judge").Judge(contest, problem, tmp_path)
    worker, commands = module("worker"), module("worker").Commands(doubled())

    class InThisProcess:
        peer, threads = type(commands.peer), 1

        def ask(self, do, limit, **arguments):
            return commands.answer({"do": do, **arguments})

    with pytest.raises(worker.WorkerError, match=r"check: after 3 epochs .* not timed"):
        judge.enter(InThisProcess())


def test_one_run_compares_and_writes_json_and_markdown(tmp_path, capsys, monkeypatch):
    registry, command = module("registry"), module("command")
    monkeypatch.delenv("GPUMLP_DATA", raising=False)
    json_file, markdown = tmp_path / "peers.json", tmp_path / "peers.md"
    arguments = ["--workload", "small", "--peers", "numpy_float64,numpy-float32", "--rounds", "2"]
    files = ["--json", str(json_file), "--markdown", str(markdown)]
    assert command.main([*arguments, "--seconds", "0.02", *files]) == 0
    result = json.loads(json_file.read_text())
    (small,) = result["results"]
    assert [entry["peer"] for entry in small["peers"]] == ["numpy-float64", "numpy-float32"]
    assert small["best_peer"] in registry.PEERS
    for entry in small["peers"]:
        assert len(entry["rounds"]) == 2
        assert entry["check"]["loss_error"] <= result["settings"]["loss_tolerance"]
        assert entry["end"]["loss"] > 0
        rates = [part["epochs"] / part["seconds"] for part in entry["rounds"]]
        assert entry["it_per_second"]["min"] == pytest.approx(min(rates))
    assert {"machine", "versions", "commit", "peak", "time"} <= set(result)
    assert markdown.read_text().startswith("| workload | peer |")
    assert "small     numpy-float64" in capsys.readouterr().out


# --- tables ---------------------------------------------------------------------------------------------------------


def made_up(peer: str, rates: list[float], loss_function: str = "softmax_mse"):
    spread = module("comparison").spread
    return {
        "peer": peer,
        "threads": 2,
        "loss_function": loss_function,
        "check": {"loss": 0.12345678},
        "it_per_second": spread(rates),
        "samples_per_second": spread([100 * rate for rate in rates]),
        "cpu_seconds_per_second": 1.5,
        "gflops": 2.0,
        "end": {"loss": 0.5, "epochs": 30},
    }


def made_up_result():
    polar = {
        "workload": "polar",
        "loss": "softmax_mse",
        "it": "epoch",
        "data": "made up",
        "left_out": {"jax": "prepare: no answer within 150 s"},
        "peers": [
            made_up("gpumlp", [290.0, 300.0, 310.0]),
            made_up("numpy-float64", [40.0, 50.0, 60.0]),
            made_up("scikit-learn", [100.0, 120.0, 90.0], "cross_entropy"),
        ],
    }
    return {
        "commit": None,
        "versions": {"gpumlp": "1", "cupy": None},
        "machine": {"cpu": "a processor", "cpus": {"usable": 2}},
        "settings": {
            "rounds": 3,
            "seconds": 1.0,
            "cpus": 2,
            "check_rows": 9,
            "check_epochs": 3,
            "loss_tolerance": 1e-4,
            "move_tolerance": 1e-3,
        },
        "peak": {"gflops": 40.0, "product": [8] * 3, "dtype": "float32"},
        "absent": {"torch": "torch not installed"},
        "results": [module("comparison").judged(polar, 40.0)],
    }


def test_ratios_are_of_medians_and_the_best_peer_is_not_gpumlp_itself():
    (polar,) = made_up_result()["results"]
    assert polar["best_peer"] == "scikit-learn"
    assert polar["over_best_peer"] == pytest.approx(3.0)
    assert polar["over_float64_loop"] == pytest.approx(6.0)
    assert [entry["over_float64_loop"] for entry in polar["peers"]] == pytest.approx([6.0, 1.0, 2.0])
    assert polar["peers"][0]["share_of_peak"] == pytest.approx(0.05)


def test_the_table_shows_every_peer_and_says_below_what_is_missing():
    text = module("table").text(made_up_result())
    lines = text.splitlines()
    (row,) = (line for line in lines if "scikit-learn" in line and "epoch" in line)
    assert row.split()[:6] == ["polar", "scikit-learn", "2", "100", "(90.0", "-"]
    assert "0.12346 *" in row
    assert "* polar, scikit-learn: has no softmax_mse, trains cross_entropy" in lines
    assert "torch left out: torch not installed" in lines
    assert "polar: jax left out: prepare: no answer within 150 s" in lines
    assert any(line.split() == ["polar", "300", "scikit-learn", "100", "3.00", "6.00"] for line in lines)
    assert lines[-1] == "machine: a processor, 2 CPUs; gpumlp 1"


def test_markdown_tables_have_as_many_cells_in_every_row():
    lines = module("table").markdown(made_up_result()).splitlines()
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert tables == [14] * 5 + [7] * 3
    assert all(line.startswith(("|", "- ")) or not line for line in lines)


def test_a_result_without_gpumlp_or_without_peers_still_makes_a_table():
    result = made_up_result()
    (polar,) = result["results"]
    some: list[Any] = [polar["peers"][1:], polar["peers"][:1], []]
    for peers in some:
        result["results"] = [module("comparison").judged({**polar, "peers": peers}, 40.0)]
        assert "x best peer" not in module("table").text(result)


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "smal"], "unknown workload 'smal'; did you mean 'small'?"),
        (["--peers", "jaxx"], "unknown peer 'jaxx'; did you mean 'jax'?"),
        (["--rounds", "0"], "rounds is 0"),
        (["--seconds", "nan"], "seconds is nan; expected a number greater than 0"),
        (["--json", "/nowhere/at/all.json"], "there is no folder '/nowhere/at'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert module("command").main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_peers_that_are_not_installed_are_said_to_be(monkeypatch):
    for name in ("torch", "jax", "sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    peers: dict[str, Any] = module("registry").PEERS
    missing = {name: peer.available() for name, peer in peers.items()}
    assert missing["torch"] == "torch not installed"
    assert missing["jax"] == "jax not installed"
    assert missing["scikit-learn"] == "sklearn not installed"
    assert missing["gpumlp"] is None
    assert missing["numpy-float64"] is None


# --- gpumlp bench --compare -----------------------------------------------------------------------------------------


def bench_arguments(*given: str) -> Any:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", "--compare", *given])


def test_gpumlp_bench_compare_runs_the_same_code(monkeypatch, tmp_path):
    asked: list[dict[str, Any]] = []

    def compare(**given: Any) -> int:
        asked.append(given)
        return 0

    monkeypatch.setattr(module("command"), "compare", compare)
    path = str(tmp_path / "peers.json")
    args = bench_arguments("--workload", "small,sweep", "--rounds", "2", "--seconds", "0.5", "--json", path)
    assert args.run(args) == 0
    (given,) = asked
    assert given == {
        "workloads": ["small,sweep"],
        "rounds": 2,
        "seconds": 0.5,
        "json": path,
        "data_dir": None,
    }


def test_gpumlp_bench_compare_needs_a_checkout_and_the_cpu(monkeypatch, tmp_path):
    args = bench_arguments("--device", "gpu")
    with pytest.raises(ValueError, match=r"the peers run on the CPU.*leave --device out"):
        args.run(args)
    monkeypatch.setattr(bench, "PACKAGE", tmp_path / "gpumlp")
    args = bench_arguments()
    with pytest.raises(ValueError, match=r"--compare needs a checkout of gpumlp"):
        args.run(args)
