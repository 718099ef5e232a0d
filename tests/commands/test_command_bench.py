"""gpumlp bench: what it measures, prints, writes and refuses."""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpumlp import backend as backends
from gpumlp.backend import Backend, get_backend
from gpumlp.commands import bench, bench_peak, bench_rounds
from gpumlp.commands.bench_rounds import Place, Round, Session, Stopwatch
from gpumlp.commands.bench_sizes import pays
from gpumlp.commands.bench_text import number
from gpumlp.kernels.cuda.host import compiler
from gpumlp.kernels.cuda.host_device import HostDevice
from gpumlp.machine import executor_name
from gpumlp.workloads import WORKLOADS, TrainingData

EXECUTOR = executor_name(get_backend("cpu"))
REDUCED = {name: workload.reduced(min(workload.rows, 128)) for name, workload in WORKLOADS.items()}


@pytest.fixture(autouse=True)
def reduced(monkeypatch):
    """The workloads on a few rows; no folder with MNIST."""
    monkeypatch.delenv("GPUMLP_DATA", raising=False)
    monkeypatch.setattr(bench, "WORKLOADS", REDUCED)


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    quick = ["--seconds", "0.02", "--rounds", "2", "--widths", "16,32", "--batches", "8,16"]
    return parser.parse_args(["bench", "--device", "cpu", *quick, *given])


def run(*given: str) -> int:
    args = arguments(*given)
    return args.run(args)


def test_a_run_prints_a_row_for_each_workload_and_what_it_ran_on(capsys):
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.split()[0] in WORKLOADS]
    assert [row.split()[:4] for row in rows] == [[name, "cpu", EXECUTOR, "float32"] for name in WORKLOADS]
    assert ["epoch" in row for row in rows] == [w.it == "epoch" for w in WORKLOADS.values()]
    assert any(line.startswith("peak:") for line in lines)
    assert any(line.startswith("machine:") for line in lines)
    (data,) = (line for line in lines if line.startswith("data:"))
    assert "ee6132, mlpnn: synthetic" in data


def test_json_has_the_numbers_beside_what_they_were_measured_on(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert run("--json", str(path), "--workload", "small", "--workload", "ee6132,mlpnn") == 0
    result = json.loads(path.read_text())
    assert result["versions"]["numpy"] == np.__version__
    assert result["machine"]["cpu"]
    assert result["machine"]["cpus"]["usable"] >= 1
    assert {"memory_bytes", "blas", "gpus"} <= set(result["machine"])
    assert "commit" in result
    assert result["settings"] == {
        "seconds": 0.02,
        "rounds": 2,
        "devices": ["cpu"],
        "precisions": ["float32"],
        "dtype": "float32",
    }
    assert [r["workload"] for r in result["results"]] == ["small", "ee6132", "mlpnn"]
    for r in result["results"]:
        workload = REDUCED[r["workload"]]
        assert r["sizes"] == list(workload.sizes)
        assert (r["rows"], r["batch_size"], r["dtype"]) == (workload.rows, workload.step_rows, "float32")
        assert r["optimizer"] == {"name": "sgd", "lr": workload.lr}
        assert (r["device"], r["executor"], r["it"]) == ("cpu", EXECUTOR, workload.it)
        its, steps, samples = (r[f"{key}_per_second"] for key in ("it", "steps", "samples"))
        for spread in (its, steps, samples):
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        per_it = 1 if workload.it == "step" else workload.steps
        assert its["median"] * per_it == pytest.approx(steps["median"])
        assert r["gflops"] == pytest.approx(samples["median"] * workload.flops_per_sample / 1e9)
        assert r["share_of_peak"] == pytest.approx(r["gflops"] / result["peaks"][0]["gflops"])
        assert r["cpu_seconds_per_second"] > 0
        assert len(r["rounds"]) == 2
        rates = [part["steps"] / part["seconds"] for part in r["rounds"]]
        assert (min(rates), max(rates)) == pytest.approx((steps["min"], steps["max"]))
        assert math.isfinite(r["losses"]["end"])
        assert r["losses"]["checked"] < r["losses"]["start"]


def test_rounds_of_the_workloads_take_turns(monkeypatch):
    order = []
    measure_round = Session.measure_round

    def noted(session):
        order.append(session.workload.name)
        measure_round(session)

    monkeypatch.setattr(Session, "measure_round", noted)
    assert run("--workload", "small,clf", "--rounds", "3") == 0
    assert order == ["small", "clf"] * 3


def test_workloads_of_one_data_set_share_its_memory(monkeypatch):
    sets = []
    start = Session.__init__

    def noted(session, workload, data, *place):
        sets.append(data)
        start(session, workload, data, *place)

    monkeypatch.setattr(Session, "__init__", noted)
    assert run("--workload", "ee6132,mlpnn", "--rounds", "1") == 0
    assert sets[0] is sets[1]


# --- the check before the time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "message"),
    [(0.0, "the loss went from .* to .* in the warm-up"), (1e30, "epoch")],
    ids=["a loss that stays", "a loss that overflows"],
)
def test_a_training_that_fails_is_not_timed(tmp_path, monkeypatch, capsys, lr, message):
    monkeypatch.setattr(bench, "WORKLOADS", {"small": replace(REDUCED["small"], lr=lr)})
    monkeypatch.setattr(Session, "measure_round", lambda self: pytest.fail("a failed training was timed"))
    path = tmp_path / "bench.json"
    assert run("--json", str(path)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert not path.exists()


# --- the stopwatch -------------------------------------------------------------------------------------------------


def timed(leave_out: bool, epochs: int, batch_size: int | None) -> tuple[Round, int]:
    stopwatch = Stopwatch()
    stopwatch.leave_out_first_epoch = leave_out
    workload = REDUCED["small"]
    data = workload.load()
    trainer = workload.trainer("cpu", callbacks=[stopwatch])
    trainer.fit(data.X, data.y, epochs=epochs, batch_size=batch_size, progress=False)
    assert trainer.history.steps == epochs * (1 if batch_size is None else -(-128 // batch_size))
    return stopwatch.measured, trainer.history.steps


@pytest.mark.parametrize("batch_size", [None, 50])
def test_the_stopwatch_counts_what_it_times(batch_size):
    measured, steps = timed(False, 6, batch_size)
    assert measured.steps == steps
    assert measured.samples == 6 * 128
    assert measured.seconds > 0
    assert measured.cpu_seconds >= 0


@pytest.mark.parametrize("batch_size", [None, 50])
def test_the_stopwatch_leaves_out_the_first_epoch_when_told(batch_size):
    measured, steps = timed(True, 6, batch_size)
    assert 0 < measured.steps <= steps * 5 / 6
    assert 0 < measured.samples <= 5 * 128


def test_the_stopwatch_times_all_of_a_training_that_is_one_block():
    measured, steps = timed(True, 1, None)
    assert measured.steps == steps == 1
    assert measured.samples == 128


def test_the_length_of_a_round_is_set_by_the_warm_up():
    workload = REDUCED["small"]
    session = Session(workload, workload.load(), "cpu")
    session.warm_up(0.2)
    session.measure_round()
    # a busy machine is slower or faster by some factor, not by a hundred
    assert 0.002 < session.rounds[0].seconds < 20
    assert session.epochs > 1


def test_a_session_trains_at_least_an_epoch_a_round():
    workload = REDUCED["mlpnn"]
    data = workload.load()
    session = Session(workload, TrainingData(data.X, data.y, "rows"), "cpu")
    session.warm_up(1e-6)
    session.measure_round()
    assert session.epochs == 1
    assert session.rounds[0].steps == 1


# --- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, list(WORKLOADS)),
        (["small,clf"], ["small", "clf"]),
        (["clf", "small", "clf"], ["clf", "small"]),
        ([" Small , EE6132"], ["small", "ee6132"]),
    ],
)
def test_workloads_are_chosen_by_name_each_once(given, expected):
    assert [w.name for w in bench.chosen_workloads(given)] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--workload", "smal"], "unknown workload 'smal'; did you mean 'small'"),
        (["--workload", "small,xyz"], "unknown workload 'xyz'; expected one of clf, deepwide"),
        (["--workload", ""], "unknown workload ''"),
        (["--rounds", "0"], "rounds is 0; expected a whole number of at least 1"),
        (["--seconds", "0"], "seconds is 0.0; expected a number greater than 0"),
        (["--seconds", "nan"], "seconds is nan"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "cpu,tpu"], "unknown device 'tpu'"),
        (["--precision", "tf32"], "precision 'tf32' needs a GPU"),
        (["--precision", "fp8"], "precision is 'fp8'; expected one of 'float32', 'tf32', 'bf16'"),
        (["--widths", "32,x"], "widths is '32,x'; expected whole numbers with commas"),
        (["--batches", "0"], "batches is '0'; expected whole numbers"),
        (["--plot", "a.pdf"], "expected a name that ends with .html or .png"),
        (["--plot", "a.png", "--grid-seconds", "0"], "grid-seconds is 0.0; expected a number greater than 0"),
        (["--json", "no/such/folder/a.json"], "there is no folder 'no/such/folder'; create it first"),
        (["--json", "."], "it is a folder; give the name of a file"),
        (["--workload", "ee6132", "--data-dir", "."], "there are no MNIST files in '.'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_measured(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Session, "warm_up", lambda self, seconds: pytest.fail("it measured"))
    with pytest.raises(ValueError) as caught:
        run(*given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["gpu", "cpu,gpu"])
def test_a_gpu_that_is_not_there_is_an_error(no_gpu, device):
    with pytest.raises(ValueError, match="CuPy does not import"):
        run("--device", device)


def test_the_help_names_every_workload(capsys):
    with pytest.raises(SystemExit):
        arguments("--help")
    text = capsys.readouterr().out
    assert all(name in text for name in WORKLOADS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9834, "0.983"),
        (41.66, "41.7"),
        (1281.2, "1,281"),
        (358679.4, "358,679"),
        (0.00123, "0.00123"),
        (0.0, "0"),
        (math.nan, "nan"),
    ],
)
def test_numbers_have_three_digits_or_all_before_the_point(value, text):
    assert number(value) == text


# --- devices beside each other -------------------------------------------------------------------------------------


@pytest.fixture
def host(monkeypatch) -> Backend:
    """A stand-in for a GPU, under the name "host"."""
    try:
        compiler()
    except RuntimeError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(backends, "_REGISTERED", {})
    stand_in = Backend("host", np, HostDevice())
    backends.register_backend(stand_in)
    monkeypatch.setitem(bench_peak.PEAK_SIDE, False, 128)
    return stand_in


def test_two_devices_stand_in_one_table_with_their_speed_up_and_what_pays(host, tmp_path, capsys):
    path = tmp_path / "bench.json"
    given = ["--device", "cpu,host", "--precision", "float32,bf16", "--workload", "small,polar"]
    assert run(*given, "--grid-seconds", "1", "--json", str(path)) == 0
    text = capsys.readouterr().out
    result = json.loads(path.read_text())
    rows = [(r["workload"], r["device"], r["executor"], r["precision"]) for r in result["results"]]
    assert rows == [
        *(("small", "cpu", EXECUTOR, "float32"), ("small", "host", "resident", "float32")),
        *(("polar", "cpu", EXECUTOR, "float32"), ("polar", "host", "graph", "float32")),
        ("polar", "host", "graph", "bf16"),
    ]
    assert [(p["device"], p["precision"]) for p in result["peaks"]] == [
        *(("cpu", "float32"), ("host", "float32"), ("host", "bf16"))
    ]
    for r in result["results"]:
        (peak,) = (
            p for p in result["peaks"] if (p["device"], p["precision"]) == (r["device"], r["precision"])
        )
        assert r["share_of_peak"] == pytest.approx(r["gflops"] / peak["gflops"])
        first = next(o for o in result["results"] if o["workload"] == r["workload"])
        ratio = r["it_per_second"]["median"] / first["it_per_second"]["median"]
        assert r["speed_up"] == (None if r is first else pytest.approx(ratio))
        assert abs(r["losses"]["agreed"] - first["losses"]["agreed"]) <= 0.05 * first["losses"]["agreed"]
    assert set(result["fastest"]) == {"small", "polar"}
    assert "TFLOP/s" in text
    assert "what pays: " in text
    assert "host is faster than cpu on W-W-W-10 from: batch 8: " in text
    assert {(p["width"], p["batch"]) for p in result["sizes"]["points"] + result["sizes"]["left_out"]} == {
        *((16, 8), (16, 16), (32, 8), (32, 16))
    }


def test_devices_that_come_to_another_loss_are_not_timed(host, monkeypatch, capsys):
    fit = Session._fit

    def astray(session, *args):
        done = fit(session, *args)
        if session.place.backend is host:
            session.trainer.network.parameters.memory[...] = 0
        return done

    monkeypatch.setattr(Session, "_fit", astray)
    monkeypatch.setattr(Session, "measure_round", lambda self: pytest.fail("a wrong training was timed"))
    assert run("--device", "cpu,host", "--workload", "clf") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search("'clf': after 2 epochs from the same seed the loss is .* on host and .* on cpu", error)


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_the_plot_is_a_picture_or_a_page_that_loads_nothing(host, tmp_path, suffix):
    path = tmp_path / f"sizes{suffix}"
    given = ["--workload", "small", "--device", "cpu,host", "--grid-seconds", "1", "--plot", str(path)]
    assert run(*given) == 0
    data = path.read_bytes()
    if suffix == ".png":
        assert data.startswith(b"\x89PNG")
        return
    page = data.decode()
    assert 'aria-label="Steps a second over the width of the layers' in page
    assert "<td>host</td>" in page
    assert not re.findall(r"(?:src|href)=[\"'](?!#)", page)


def test_one_device_draws_the_grid_when_it_is_asked_to(tmp_path, capsys):
    path = tmp_path / "bench.json"
    given = ["--workload", "small", "--json", str(path), "--grid-seconds", "0.5"]
    assert run(*given) == 0
    assert json.loads(path.read_text())["sizes"] is None
    assert run(*given, "--plot", str(tmp_path / "a.png")) == 0
    assert json.loads(path.read_text())["sizes"]["pays"] == []


def test_a_gpu_pays_from_the_width_after_the_last_where_it_is_slower(host):
    places = [Place(get_backend("cpu")), Place(host)]

    def point(place: str, width: int, rate: float, batch: int = 8) -> dict:
        return {"place": place, "width": width, "batch": batch, "steps_per_second": {"median": rate}}

    points = [point("cpu", w, 10.0) for w in (16, 32, 64, 128)]
    points += [
        point("host", w, rate) for w, rate in ((16, 20.0), (32, 5.0), (64, 11.0), (128, 30.0), (256, 3.0))
    ]
    points += [point("cpu", 16, 10.0, batch=32), point("host", 16, 1.0, batch=32)]
    assert [(p["batch"], p["from_width"]) for p in pays(points, places)] == [(8, 64), (32, None)]
    assert pays(points, places[:1]) == []


def test_a_point_that_would_take_too_long_is_left_out_and_said(tmp_path, capsys):
    path = tmp_path / "bench.json"
    given = ["--workload", "small", "--widths", "16,2048", "--batches", "8,8192", "--grid-seconds", "0.2"]
    assert run(*given, "--plot", str(tmp_path / "a.png"), "--json", str(path)) == 0
    left = [(p["width"], p["batch"]) for p in json.loads(path.read_text())["sizes"]["left_out"]]
    assert (2048, 8192) in left
    assert "left out, for the time they would take" in capsys.readouterr().out


def test_many_networks_at_once_are_a_workload_that_is_run_when_it_is_named(host, monkeypatch, tmp_path):
    sweep = replace(bench.ON_REQUEST["sweep"].reduced(64), networks=3)
    monkeypatch.setattr(bench, "ON_REQUEST", {"sweep": sweep})
    path = tmp_path / "bench.json"
    given = ["--workload", "sweep", "--device", "cpu,host", "--grid-seconds", "0", "--json", str(path)]
    assert run(*given) == 0
    for r in json.loads(path.read_text())["results"]:
        assert (r["workload"], r["networks"], r["it"]) == ("sweep", 3, "network-epoch")
        assert r["it_per_second"]["median"] * sweep.steps == pytest.approx(r["steps_per_second"]["median"])
        assert r["rounds"][0]["steps"] % (3 * sweep.steps) == 0
        assert r["losses"]["checked"] < r["losses"]["start"]


@pytest.mark.parametrize(
    ("gangs", "one_by_one", "seconds"),
    [
        (("first", "second"), False, 6.0),  # one trains from 4 to 8, the other from 6 to 10
        (("first", "second"), True, 4.0),  # from 4 to 6, and from 8 to 10
        (("first", "first"), False, 4.0),  # from 6, when both have begun, to 10
        (("first", None), False, 12.0),  # one trains by itself: all the time
    ],
)
def test_a_sweep_is_timed_while_a_gang_trains(gangs, one_by_one, seconds, monkeypatch):
    times = iter([0.0, 4.0, 6.0, 8.0, 10.0, 12.0])
    monkeypatch.setattr(bench_rounds.time, "perf_counter", lambda: next(times))
    clock = bench_rounds.SweepClock()
    seats = [SimpleNamespace(gang=gang) if gang else None for gang in gangs]
    first, second = (SimpleNamespace(shared=SimpleNamespace(seat=seat)) for seat in seats)
    begin: Any = clock.on_train_begin
    end: Any = clock.on_train_end
    together = ((begin, first), (begin, second), (end, first), (end, second))
    in_turn = ((begin, first), (end, first), (begin, second), (end, second))

    def train():
        for mark, trainer in in_turn if one_by_one else together:
            mark(trainer)
        return "trained"

    assert clock.timed(train) == ("trained", seconds)
