"""Clipping, checks, and each update rule once by its formula; whole trajectories are tested with the optimizers."""

import numpy as np
import pytest

from gpumlp.kernels import BAD_STEP, CATALOGUE, SLOT, STEP, UPDATE
from gpumlp.kernels.reference import kernel
from gpumlp.program import new_control

P, G = np.array([1.0, -2.0, 0.5]), np.array([0.5, 0.25, -1.0])
LR, DECAY = 0.1, 0.01
GD = G + DECAY * P  # the gradient with L2 decay


def updated(name, backend, update=0, slots=(), **scalars):
    """Run an update rule once, with the rate in slot 2; return parameters and slots."""
    control = new_control(0)
    control[[UPDATE, SLOT]] = update, 2
    rates = np.array([9.0, 9.0, LR, 9.0])
    arrays = [None if v is None else backend.asarray(np.array(v, dtype=float)) for v in (G, P.copy(), *slots)]
    kernel(name)(backend.xp, control, rates, *arrays, weight_decay=DECAY, **scalars)
    return [None if a is None else np.array(backend.to_host(a)) for a in arrays[1:]]


V = np.array([0.2, -0.1, 0.4])
S = np.array([0.3, 0.1, 0.6])
A = np.array([0.1, 0.2, -0.3])


def test_sgd(backend):
    np.testing.assert_allclose(updated("sgd", backend)[0], P - LR * GD, rtol=1e-15)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("update", [0, 3])
def test_momentum_in_the_form_of_pytorch(update, nesterov, backend):
    dampening = 0.0 if nesterov else 0.2
    p, v = updated("momentum", backend, update, [V], momentum=0.9, dampening=dampening, nesterov=nesterov)
    velocity = 0.9 * V + (1 if update == 0 else 1 - dampening) * GD
    np.testing.assert_allclose(v, velocity, rtol=1e-14)
    np.testing.assert_allclose(p, P - LR * (GD + 0.9 * velocity if nesterov else velocity), rtol=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_in_the_form_of_keras(nesterov, backend):
    p, v = updated("momentum_keras", backend, 0, [V], momentum=0.9, nesterov=nesterov)
    velocity = 0.9 * V - LR * GD
    np.testing.assert_allclose(v, velocity, rtol=1e-14)
    np.testing.assert_allclose(p, P + (0.9 * velocity - LR * GD if nesterov else velocity), rtol=1e-14)


def test_momentum_as_a_moving_average(backend):
    p, v = updated("momentum_average", backend, 0, [V], momentum=0.9)
    np.testing.assert_allclose(v, 0.9 * V + 0.1 * GD, rtol=1e-14)
    np.testing.assert_allclose(p, P - LR * (0.9 * V + 0.1 * GD), rtol=1e-14)


def test_adagrad(backend):
    p, s = updated("adagrad", backend, 3, [S], lr_decay=0.5, eps=1e-3)
    np.testing.assert_allclose(s, S + GD**2, rtol=1e-14)
    np.testing.assert_allclose(p, P - LR / 2.5 * GD / (np.sqrt(S + GD**2) + 1e-3), rtol=1e-14)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("with_momentum", [False, True])
def test_rmsprop(centred, with_momentum, backend):
    slots = [S, A if centred else None, V if with_momentum else None]
    p, s, a, v = updated("rmsprop", backend, 0, slots, alpha=0.8, eps=1e-3, momentum=0.9)
    square, average = 0.8 * S + 0.2 * GD**2, 0.8 * A + 0.2 * GD
    np.testing.assert_allclose(s, square, rtol=1e-14)
    step = GD / (np.sqrt(square - average**2 if centred else square) + 1e-3)
    if centred:
        np.testing.assert_allclose(a, average, rtol=1e-13)
    if with_momentum:
        step = 0.9 * V + step
        np.testing.assert_allclose(v, step, rtol=1e-13)
    np.testing.assert_allclose(p, P - LR * step, rtol=1e-13)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_and_adamw(decoupled, backend):
    p, m, s = updated("adam", backend, 3, [A, S], beta1=0.9, beta2=0.99, eps=1e-3, decoupled=decoupled)
    g = G if decoupled else GD
    first, second = 0.9 * A + 0.1 * g, 0.99 * S + 0.01 * g**2
    np.testing.assert_allclose(m, first, rtol=1e-13)
    np.testing.assert_allclose(s, second, rtol=1e-13)
    start = P * (1 - LR * DECAY) if decoupled else P
    step = first / (1 - 0.9**4) / (np.sqrt(second / (1 - 0.99**4)) + 1e-3)
    np.testing.assert_allclose(p, start - LR * step, rtol=1e-13)


def test_every_update_rule_is_tested_here():
    rules = {n for n, spec in CATALOGUE.items() if "parameters" in spec.updates}
    assert rules == {
        *("sgd", "momentum", "momentum_keras", "momentum_average"),
        *("adagrad", "rmsprop", "adam"),
    }


def test_clip_by_value_bounds_each_entry(backend):
    g = backend.asarray(np.array([0.1, -3.0, 5.0]))
    kernel("clip_by_value")(backend.xp, g, limit=0.5)
    np.testing.assert_array_equal(backend.to_host(g), [0.1, -0.5, 0.5])


@pytest.mark.parametrize(("limit", "expected"), [(2.5, [1.5, -2.0]), (5.0, [3.0, -4.0]), (6.0, [3.0, -4.0])])
def test_clip_by_norm_scales_a_gradient_of_norm_5(limit, expected, backend, dtype):
    g = backend.asarray(np.array([3.0, -4.0], dtype))
    kernel("clip_by_norm")(backend.xp, g, limit=limit)
    np.testing.assert_allclose(backend.to_host(g), expected, rtol=1e-6)


def test_clip_by_norm_neither_divides_by_0_nor_overflows_float32(backend):
    for given, expected in (([0.0, 0.0], [0.0, 0.0]), ([3e30, 4e30], [0.6, 0.8])):
        g = backend.asarray(np.array(given, "float32"))
        kernel("clip_by_norm")(backend.xp, g, limit=1.0)
        np.testing.assert_allclose(backend.to_host(g), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_gradients_flags_the_step_at_hand(value, backend):
    control = new_control(0)
    control[STEP] = 12
    sound = backend.asarray(np.array([1.0, 2.0]))
    kernel("check_gradients")(backend.xp, sound, control)
    assert control[BAD_STEP] == -1
    kernel("check_gradients")(backend.xp, backend.asarray(np.array([1.0, value, 2.0])), control)
    assert control[BAD_STEP] == 12
    control[STEP] = 13
    kernel("check_gradients")(backend.xp, backend.asarray(np.array([value])), control)
    assert control[BAD_STEP] == 12  # the first bad step stands


def test_check_gradients_of_a_network_without_parameters(backend):
    control = new_control(0)
    kernel("check_gradients")(backend.xp, backend.asarray(np.empty(0)), control)
    assert control[BAD_STEP] == -1


def test_check_gradients_does_not_take_large_gradients_for_infinite(backend):
    control = new_control(0)
    kernel("check_gradients")(backend.xp, backend.asarray(np.full(100, 3e38, "float32")), control)
    assert control[BAD_STEP] == -1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_loss_flags_the_step_at_hand(value, backend):
    ring, control = np.zeros((4, 2)), new_control(0)
    control[[STEP, SLOT]] = 7, 3
    ring[2, 0] = value  # the loss of another step
    kernel("check_loss")(backend.xp, backend.asarray(ring), control)
    assert control[BAD_STEP] == -1
    ring[3, 0] = value
    kernel("check_loss")(backend.xp, backend.asarray(ring), control)
    assert control[BAD_STEP] == 7
    control[STEP] = 8
    kernel("check_loss")(backend.xp, backend.asarray(ring), control)
    assert control[BAD_STEP] == 7  # the first bad step stands
