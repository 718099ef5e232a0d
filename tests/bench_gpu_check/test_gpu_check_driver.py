"""The processes of bench/gpu_check: one failure hides no other, and what gets ready comes to rest."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench_gpu_check.sections import ROOT, module

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
        [*command, "--only", "products,targets"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        end = time.monotonic() + 60
        while not (path.exists() and len(json.loads(path.read_text())["sections"]["targets"]["checks"]) > 2):
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
