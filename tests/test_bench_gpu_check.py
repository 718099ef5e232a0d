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
    context = module("checks").Context("host", time.monotonic() + 600)
    context.called.set()  # nothing gets ready before it is asked for
    return context


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


def run_made_up(tmp_path, texts, sections):
    """Run sections whose modules have these texts; return what was found."""
    package = tmp_path / "parts"
    package.mkdir()
    # the processes find the modules where this one's package lies
    lines = [
        "import bench.gpu_check, bench.gpu_check.sections as s",
        f"bench.gpu_check.__path__.append({str(package)!r})",
    ]
    for name, text in texts.items():
        (package / f"{name}.py").write_text(text)
        lines.append(f"s.SECTIONS[{name!r}] = s.Section({name!r}, 'made up', 60)")
    (package / "sitecustomize.py").write_text("\n".join(lines))
    environment = {"PYTHONPATH": f"{package}:{ROOT}"}
    run = module("driver").Run("host", 60, tmp_path / "found.json", lambda text: None, environment)
    return run.run(sections)


def run_faulty(tmp_path, text: str):
    section = module("sections").Section("faulty", "what goes wrong", 60)
    result = run_made_up(tmp_path, {"faulty": text}, [section])
    return result, json.loads((tmp_path / "found.json").read_text())


def test_checks_that_hang_die_or_lose_the_device_leave_the_others_alone(tmp_path, monkeypatch):
    result, written = run_faulty(tmp_path, FAULTY)
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
    _, written = run_faulty(tmp_path, "raise ImportError('no such library')")
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


@pytest.fixture
def new_race(context):
    """Makes a race of NumPy and scikit-learn in small workloads, which ends with the test."""
    registry = importlib.import_module("bench.peers.registry")
    races = []

    def make(*names: str, rounds: int = 2):
        known = {name: registry.PEERS[name] for name in ("numpy-float32", "scikit-learn")}
        contests = {}
        for name in names:
            workload = WORKLOADS[name].reduced(64)
            contests[name] = registry.Contest(name, workload, (workload.lr,)), "float32"
        races.append(module("race").Race(context, known, contests, rounds=rounds, seconds=0.02))
        return races[-1]

    yield make
    for race in races:
        race.close()


def test_peers_are_checked_and_timed_in_turn_and_those_that_fail_are_named(new_race):
    race = new_race("polar")
    values = race.run("polar")
    (entry,) = (e for e in values["peers"] if e["peer"] == "numpy-float32")
    assert len(entry["rounds"]) >= 2
    assert entry["check"]["move_error"] < 1e-3
    assert entry["steps_per_second"]["min"] > 0
    assert values["over_best_peer"] is None  # gpumlp did not take part
    assert {e["peer"] for e in values["peers"]} | set(values["left_out"]) == {"numpy-float32", "scikit-learn"}
    assert not race.starts["polar"].folder.exists()


def test_peers_that_are_ready_are_only_timed_and_the_others_get_ready_at_their_turn(new_race, monkeypatch):
    race, worker = new_race("small", "clf"), importlib.import_module("bench.peers.worker")
    started = []
    start = worker.Worker.__init__

    def noted(self, *settings):
        started.append(settings)
        start(self, *settings)

    monkeypatch.setattr(worker.Worker, "__init__", noted)
    race.get_ready(["small"])
    race.get_ready(["clf"], lambda: False)
    assert set(race.starts["small"].entries) | set(race.starts["small"].left_out) == {
        p.name for p in race.peers
    }
    assert race.starts["clf"].entries == {}
    n_ready = len(started)
    assert race.run("small")["peers"]
    assert len(started) == n_ready
    assert race.run("clf")["peers"]
    assert len(started) == 2 * n_ready


def test_a_peer_that_must_be_alone_prepares_when_its_workload_is_timed(new_race, monkeypatch):
    race = new_race("small")
    alone = race.peers[0]
    monkeypatch.setattr(alone, "prepares_alone", True)
    asked = []
    worker = importlib.import_module("bench.peers.worker").Worker
    ask = worker.ask

    def noted(self, do, *rest, **settings):
        asked.append((self.peer.name, do))
        return ask(self, do, *rest, **settings)

    monkeypatch.setattr(worker, "ask", noted)
    race.get_ready(["small"])
    assert (alone.name, "check") in asked
    assert (alone.name, "prepare") not in asked
    del asked[:]
    assert alone.name in {entry["peer"] for entry in race.run("small")["peers"]}
    assert [do for name, do in asked if name == alone.name][:2] == ["prepare", "run"]


def test_a_peer_that_is_called_between_check_and_preparing_prepares_later(new_race):
    race = new_race("small")
    start, peer = race.starts["small"], race.peers[0]
    start.enter(peer, 1, 60, lambda: False)
    assert start.unprepared == set(start.entries) == {peer.name}
    assert peer.name in {entry["peer"] for entry in race.run("small")["peers"]}


def test_a_peer_that_fails_in_one_workload_is_left_out_of_that_one_alone(new_race, monkeypatch):
    race, judge = new_race("small", "clf"), module("race").Judge
    make = judge.__init__

    def only_clf(self, contest, *rest):
        if contest.name == "small":
            raise MemoryError("too large")
        make(self, contest, *rest)

    monkeypatch.setattr(judge, "__init__", only_clf)
    race.get_ready(["small", "clf"])
    with pytest.raises(module("checks").Failed, match="no library could be timed") as failure:
        race.run("small")
    assert set(failure.value.values["left_out"].values()) == {"MemoryError: too large"}
    assert race.run("clf")["peers"]


def test_workloads_are_left_out_when_the_time_is_over(context, new_race):
    race = new_race("small")
    context.end = time.monotonic() + module("race").LEAST_UNREADY - 1
    with pytest.raises(module("checks").Skipped, match="no time was left"):
        race.run("small")


@pytest.mark.parametrize(
    ("rates", "goes_on"), [([100, 100.5], False), ([100, 103], True), ([100, 103, 103.5], False)]
)
def test_rounds_are_repeated_until_two_agree(rates, goes_on):
    assert module("targets").differ(rates, 0.01) == goes_on


def test_ours_is_held_against_the_best_other():
    entries = [
        {"peer": name, "steps_per_second": {"median": rate}}
        for name, rate in (("gpumlp", 30.0), ("jax", 20.0), ("torch", 10.0))
    ]
    values = module("race").judged(entries)
    assert (values["best_peer"], values["over_best_peer"]) == ("jax", 1.5)


def test_all_workloads_are_raced_in_float32():
    named = {name for name, precision in module("peers").ORDER if precision == "float32"}
    assert named == {*WORKLOADS, "sweep", "wide"}


def test_adam_of_the_reference_moves_every_weight_by_the_rate_in_its_first_step():
    loop = importlib.import_module("bench.peers.numpy_loop")
    network = [(np.array([[2.0]]), np.array([0.5]))]
    _, moved = loop.Adam().step(network, np.array([[3.0]]), np.array([0.0]), 0.1, "mse", "relu")
    np.testing.assert_allclose([moved[0][0][0, 0], moved[0][1][0]], [1.9, 0.4], rtol=1e-6)


# --- processes -------------------------------------------------------------------------------------------------------


def test_no_two_checks_of_a_section_have_the_same_name(context):
    for section in module("sections").SECTIONS.values():
        names = [check.name for check in section.checks(context)]
        assert len(set(names)) == len(names)


SHARED = """
import os, time
from bench.gpu_check.checks import Check

def checks(context):
    def die():
        open(os.path.join(context.folder, "left behind"), "w").close()
        os._exit(9)
    values = {"threads": os.environ["OPENBLAS_NUM_THREADS"], "folder": context.folder}
    named = {str(i): lambda: values for i in range(7)}
    return [Check(name, die if name == "4" else run) for name, run in named.items()]
"""


def test_processes_that_share_a_section_make_each_check_once(tmp_path, monkeypatch):
    driver = module("driver")
    monkeypatch.setattr(driver.Run, "_parts", lambda self, section, cpus: 3)
    monkeypatch.setattr(driver, "cpu_counts", lambda: {"usable": 16})
    _, written = run_faulty(tmp_path, SHARED)
    entry = written["sections"]["faulty"]
    assert sorted(record["check"] for record in entry["checks"]) == list("0123456")
    assert {r["check"]: r["status"] for r in entry["checks"]} == {
        **dict.fromkeys("012356", "passed"),
        "4": "error",
    }
    assert entry["status"] == "failed"
    # three side by side leave as many CPUs as two more would take
    assert {r["values"]["threads"] for r in entry["checks"] if "values" in r} == {"3"}
    (folder,) = {r["values"]["folder"] for r in entry["checks"] if "values" in r}
    assert not Path(folder).exists()


EARLY = """
import time
from bench.gpu_check.checks import Check

def checks(context):
    called = context.called.wait(context.seconds_left)
    ready = time.monotonic()
    return [Check("early", lambda: {"called": called, "ready": ready, "begun": time.monotonic(),
                                    "left": context.seconds_left})]
"""


@pytest.mark.parametrize("together", [True, False])
def test_a_section_that_gets_ready_early_comes_to_rest_before_any_that_is_alone(
    tmp_path, monkeypatch, together
):
    section = module("sections").Section
    slow = "import time\nfrom bench.gpu_check.checks import Check\n" + (
        "def checks(context):\n    return [Check('slow', lambda: time.sleep(0.5) or {'end': time.monotonic()})]\n"
    )
    sections = [section("first", "alone", 60, alone=True), section("early", "early", 30, alone=True, early=2)]
    if together:
        sections.insert(0, section("beside", "together", 60))
    result = run_made_up(tmp_path, {"first": slow, "early": EARLY, "beside": slow}, sections)
    found = {name: entry["checks"][0]["values"] for name, entry in result["sections"].items()}
    early = found["early"]
    assert early["called"] == together  # without others it takes the time that it was given
    assert early["ready"] < found["first"]["end"] < early["begun"]
    assert 2 < early["left"] <= 30
    assert "seconds waited for" in result["sections"]["early"]


def test_a_section_that_does_not_come_to_rest_is_ended_and_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(module("driver"), "REST_LIMIT", 0.0)
    text = EARLY.replace("called =", "called = time.sleep(max(0, context.seconds_left)) or")
    section = module("sections").Section
    sections = [section("beside", "together", 60), section("early", "early", 60, alone=True, early=30)]
    beside = EARLY.replace("context.called.wait(context.seconds_left)", "None")
    result = run_made_up(tmp_path, {"early": text, "beside": beside}, sections)
    statuses = [(r["check"], r["status"]) for r in result["sections"]["early"]["checks"]]
    assert statuses == [("(begin)", "error"), ("early", "passed")]
    assert "did not come to rest" in result["sections"]["early"]["checks"][0]["message"]


def test_a_section_that_dies_while_it_gets_ready_begins_anew_without(tmp_path):
    text = EARLY.replace(
        "    called =", "    import os\n    if context.seconds_left > 0: os._exit(9)\n    called ="
    )
    section = module("sections").Section("early", "early", 60, alone=True, early=5)
    result = run_made_up(tmp_path, {"early": text}, [section])
    statuses = [(r["check"], r["status"]) for r in result["sections"]["early"]["checks"]]
    assert statuses == [("(begin)", "error"), ("early", "passed")]


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
