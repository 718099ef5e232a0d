"""The command line in a process of its own: Ctrl-C, a kill, how soon it answers and what it imports."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpumlp import cli
from gpumlp.run import RunFolder
from tests.commands.people import names

COMMAND = [sys.executable, "-c", "import sys; from gpumlp.cli import main; sys.exit(main())"]
LONG = ["iris", "--set", "training.epochs=400", "--set", "training.early_stopping=false", "--out"]


def start(*arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    # a shell that runs tests in the background leaves SIGINT ignored to its children
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [*COMMAND[:2], restore + COMMAND[2], *arguments]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def stopped(process: subprocess.Popen[str], signum: int) -> tuple[int, str]:
    """Send a signal after some epochs; return the exit code and what came after on stderr."""
    assert process.stderr is not None
    assert process.stdout is not None
    for line in process.stderr:
        if line.startswith("epoch 20/"):
            process.send_signal(signum)
            break
    rest = process.stderr.read()
    code = process.wait(timeout=60)
    process.stdout.close()
    process.stderr.close()
    return code, rest


def test_ctrl_c_says_how_to_go_on_and_the_resumed_run_has_the_same_bits(here, capsys):
    code, rest = stopped(start("train", *LONG, "part"), signal.SIGINT)
    assert code == 130
    last = rest.splitlines()[-1]
    found = re.fullmatch(
        r"gpumlp: interrupted after epoch (\d+) of 400; go on with: gpumlp train --resume part, or remove that folder",
        last,
    )
    assert found, rest
    assert "Traceback" not in rest
    assert names(here / "part") == {"config.toml", "checkpoint.safetensors"}
    assert cli.main(["predict", "part", "people.csv", "--out", "p.csv"]) == 2
    assert "go on with: gpumlp train --resume part" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "part"]) == 0
    assert f"going on after epoch {found[1]}" in capsys.readouterr().err
    assert cli.main(["train", *LONG, "whole", "--quiet"]) == 0
    assert Path("part/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_ctrl_c_before_the_commands_are_imported_is_one_line():
    """By an importer that presses it when a module that they need is looked for."""
    press = """
import signal, sys
import gpumlp.cli

class Pressing:
    def find_spec(self, name, path=None, target=None):
        if name == "gpumlp.machine":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Pressing())
sys.exit(gpumlp.cli.main(["--version"]))
"""
    done = subprocess.run([sys.executable, "-c", press], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gpumlp: interrupted\n")


def test_a_killed_run_is_named_by_the_next_command_and_can_be_gone_on_with(here, capsys):
    code, _ = stopped(start("train", *LONG, "part"), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "metrics.json" not in names(here / "part")
    assert cli.main(["train", *LONG, "part"]) == 2
    assert "holds an unfinished run; go on with: gpumlp train --resume part" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "part", "--quiet"]) == 0
    assert RunFolder("part").is_finished


def test_a_mistake_of_a_process_is_one_line_and_comes_at_once(here):
    began = time.monotonic()
    done = subprocess.run([*COMMAND, "train", "iris", "--foo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"gpumlp: error: .*--foo.*\n", done.stderr)
    assert time.monotonic() - began < 10


def test_the_command_line_imports_nothing_heavy():
    heavy = "('sklearn', 'scipy', 'pyarrow', 'matplotlib', 'jinja2', 'safetensors', 'cupy', 'tqdm', 'numba')"
    code = (
        f"import gpumlp.cli, sys; gpumlp.cli.make_parser(); print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
