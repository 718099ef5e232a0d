import numpy as np
import pytest

import gpumlp as gm
from gpumlp.executors import EagerExecutor
from gpumlp.program import Builder, Memory, Operand, new_control


def test_execute_runs_a_part_of_a_program():
    b = Builder(2, "float64", training=True)
    x, y, z = (b.buffer(n, 2, 3, keep=True) for n in "xyz")
    b.call("relu", x, y)
    b.call("copy", y, z)
    program = b.finish()
    executor = EagerExecutor(gm.get_backend("cpu"), Memory({}))
    executor.prepare(program)
    executor.view(program, x)[...] = [[1, -1, 2], [3, -3, 0]]
    executor.execute(program, 0, 1)
    np.testing.assert_array_equal(executor.view(program, y), [[1, 0, 2], [3, 0, 0]])
    assert not executor.view(program, z).any()
    executor.execute(program, 1)
    np.testing.assert_array_equal(executor.view(program, z), [[1, 0, 2], [3, 0, 0]])


def test_programs_that_are_prepared_together_share_their_memory():
    programs = []
    for rows in (8, 3):
        b = Builder(rows, "float64", training=True)
        b.call("relu", b.buffer("x", rows, 4), b.buffer("y", rows, 4, keep=True))
        programs.append(b.finish())
    executor = EagerExecutor(gm.get_backend("cpu"), Memory({}))
    executor.prepare(*programs)
    first, second = (executor.linked(p).activations for p in programs)
    assert first.memory is second.memory


def test_a_call_that_does_not_fit_the_memory_is_refused_when_prepared():
    b = Builder(2, "float64", training=True)
    b.call("relu", Operand("X", "", (2, 4), "float64"), b.buffer("y", 2, 4))
    executor = EagerExecutor(gm.get_backend("cpu"), Memory({}, {"X": np.ones((2, 3))}))
    with pytest.raises(ValueError, match=r"operand X\[\]\[2, 4\]"):
        executor.prepare(b.finish())


def test_numerical_trouble_is_left_to_the_loss_and_warns_of_nothing():
    b = Builder(1, "float32", training=True)
    x, y = b.buffer("x", 1, 2, keep=True), b.buffer("y", 1, 2, keep=True)
    b.call("matmul", x, Operand("W", "", (2, 2), "float32"), y, transpose_a=False, transpose_b=False)
    program = b.finish()
    memory = Memory({}, {"W": np.full((2, 2), 1e38, "float32"), "control": new_control(0)})
    executor = EagerExecutor(gm.get_backend("cpu"), memory)
    executor.prepare(program)
    executor.view(program, x)[...] = 1e38
    executor.execute(program)  # warnings are errors here
    assert np.isinf(executor.view(program, y)).all()


def test_training_on_a_gpu_follows_the_cpu(backend, training_step, assert_close):
    if not backend.is_gpu:
        pytest.skip("the CPU is what is compared with")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 3)), rng.integers(0, 3, 11)
    steps = []
    for device in ("cpu", backend):
        # no bias where its gradient is 0: Adam would make steps of what is left by rounding
        layers = (
            gm.Linear(3, 6, bias=False),
            gm.BatchNorm1d(6),
            gm.GELU(),
            gm.Dropout(0.3),
            gm.GaussianNoise(0.1),
        )
        network = gm.Sequential(*layers, gm.Linear(6, 3), dtype="float64", seed=2, device=device)
        settings = {"optimizer": gm.Adam(0.05), "batch_rows": 4, "shuffle": True, "executor": EagerExecutor}
        steps.append(training_step(network, "cross_entropy", x, y, **settings))
        steps[-1].rates[...] = 0.05
    for _ in range(4):
        for step in steps:
            assert step.run(1) == 1
        for name, expected in steps[0].network.state_dict().items():
            assert_close(steps[1].network.state_dict()[name], expected, 1e-9)


def test_steps_are_done_when_a_run_returns(stand_in, training_step, monkeypatch):
    network = gm.mlp((3, 4, 2), device=stand_in())
    step = training_step(network, "mse", np.ones((6, 3)), np.ones((6, 2)), executor=EagerExecutor)
    waited: list[np.ndarray] = []
    monkeypatch.setattr(network.backend.device, "synchronize", lambda: waited.append(step.control.copy()))
    step.run(3)
    np.testing.assert_array_equal(waited[-1], step.control)
