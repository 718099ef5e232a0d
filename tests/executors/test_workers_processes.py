"""Workers where processes meet: children, test runners, and Ctrl-C."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.executors import small_trainings
from tests.executors.small_trainings import fit, weights

COMMON = Path(small_trainings.__file__).read_text(encoding="utf-8")


def script(tmp_path, text, name="script.py", args=(), timeout=120):
    path = tmp_path / name
    path.write_text(COMMON + textwrap.dedent(text), encoding="utf-8")
    return subprocess.run(
        [sys.executable, *args, str(path)], capture_output=True, text=True, timeout=timeout, cwd=tmp_path
    )


def test_children_of_fork_and_of_spawn_train_with_the_bits_of_their_parent(tmp_path):
    methods = ["spawn", *(["fork"] if hasattr(os, "fork") else [])]
    result = script(
        tmp_path,
        f"""
        import multiprocessing, warnings
        if __name__ == "__main__":
            # Python 3.12 warns of any thread at a fork; libraries of NumPy and SciPy have some
            warnings.simplefilter("ignore", DeprecationWarning)
            wanted = bits(3, 2)
            for method in {methods}:
                with multiprocessing.get_context(method).Pool(2) as pool:
                    found = pool.starmap(bits, [(3, 1), (3, 2), (3, 3)])
                assert found == [wanted] * 3, method
            assert bits(3, 2) == wanted
            print("all equal")
        """,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "all equal\n"


def test_trainings_run_under_xdist(tmp_path):
    """Two worker processes, each with threads of its own."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    np.save(tmp_path / "wanted.npy", weights(fit(3, 2)))
    result = script(
        tmp_path,
        """
        import pytest
        @pytest.mark.parametrize("threads", [1, 2, 3, 4])
        def test_fit(threads):
            np.testing.assert_array_equal(weights(fit(3, threads)), np.load("wanted.npy"))
        """,
        "test_under_xdist.py",
        ("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 passed" in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(
    ("threads", "hidden", "batch", "seconds"), [(1, [64, 64], 4, 1), (2, [256, 256], 64, 1)]
)
def test_ctrl_c_ends_a_long_epoch_and_keeps_what_was_trained(tmp_path, threads, hidden, batch, seconds):
    """After the block at hand, of 0.1 s at most; the rest is for a machine where others hold the processors."""
    result = script(
        tmp_path,
        f"""
        import os, signal, threading, time
        fit(0, {threads})  # compiled code is loaded
        X = np.random.default_rng(0).normal(size=(2_000_000, 8)).astype(np.float32)
        sent = []
        def press():
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)
        network = gm.mlp([8, *{hidden}, 1], device="cpu", seed=1)
        before = network.state_dict()
        before = {{k: np.array(v) for k, v in before.items()}}
        trainer = gm.Trainer(network, loss="mse", threads={threads})
        y = X[:, :1].copy()
        timer = threading.Timer(1.0, press)
        timer.start()
        try:
            trainer.fit(X, y, epochs=1000, batch_size={batch}, progress=False)
        except KeyboardInterrupt:
            took = time.perf_counter() - sent[0]
        assert took < {seconds}, took
        after = network.state_dict()
        assert any((np.array(after[k]) != before[k]).any() for k in before)
        assert all(np.isfinite(np.array(v)).all() for v in after.values())
        history = trainer.history
        assert history.stopped == "interrupted"
        steps = history.steps
        assert 0 < steps < 2_000_000 // {batch}, steps  # within the first epoch
        print("stopped after", steps)
        """,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("stopped after")
