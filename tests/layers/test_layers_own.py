"""Layers that a user writes: array code in ``self.xp``, or calls of the catalogue."""

import numpy as np
import pytest

import gpumlp as gm
from tests.networks import Scale

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(9, 3)), RNG.normal(size=(9, 2))


class Doubled(gm.Layer):
    """y = [x, x^2]: another width, and no parameter."""

    def build(self, in_features):
        return 2 * in_features

    def forward(self, x):
        self.x = x
        return self.xp.concatenate([x, x * x], axis=1)

    def backward(self, dy):
        n = self.in_features
        return dy[:, :n] + 2 * self.x * dy[:, n:]


class OnlyInTraining(gm.Layer):
    """y = 2 x in training, x in inference."""

    def forward(self, x):
        return x * 2 if self.training else x

    def backward(self, dy):
        return dy * 2


class Emitted(gm.Layer):
    """A layer of a user's own that writes calls of the catalogue."""

    def emit_forward(self, b, x):
        y = b.buffer("y", *x.shape)
        b.call("tanh", x, y)
        return y

    def emit_backward(self, b, x, y, dy, need_dx):
        dx = b.buffer("dx", *x.shape)
        b.call("tanh_grad", y, dy, dx)
        return dx


def make(*own, dtype="float64", device="cpu", seed=1):
    return gm.Sequential(gm.Linear(3, 4), gm.Tanh(), *own, dtype=dtype, device=device, seed=seed)


OWN = [(Scale,), (Doubled,), (Scale, Doubled, Scale), (Emitted,)]


@pytest.mark.parametrize("own", OWN, ids=lambda own: "-".join(c.__name__ for c in own))
def test_a_layer_of_ones_own_has_the_gradients_of_its_forward(
    own, training_step, central_differences, assert_close
):
    body = make(*(cls() for cls in own))
    network = (
        gm.Sequential(*make(*(cls() for cls in own)).copy().to_layers(), dtype="float64") if False else body
    )
    width = network.out_features
    y = RNG.normal(size=(9, width))
    step = training_step(network, "mse", X, y)
    gradients = step.gradients()
    for name, gradient in gradients.items():
        assert gradient.any()
        assert_close(gradient, central_differences(step.loss, network.parameters[name]), 1e-7)


@pytest.mark.parametrize("cls", [Scale, Doubled, Emitted])
def test_a_layer_of_ones_own_works_alone(cls, central_differences, assert_close, backend):
    layer, x = cls(), backend.asarray(X.copy())
    y = np.array(backend.to_host(layer.forward(x)))
    dy = RNG.normal(size=y.shape)
    dx = np.array(backend.to_host(layer.backward(backend.asarray(dy))))
    if backend.is_gpu:
        return

    def value():
        return float((layer.forward(x) * dy).sum())

    gradients = {k: np.array(v) for k, v in layer.grads.items()}
    assert_close(dx, central_differences(value, x), 1e-7)
    for name, gradient in gradients.items():
        assert_close(gradient, central_differences(value, getattr(layer, name)), 1e-7)


def test_a_layer_alone_and_in_a_network_give_the_same():
    alone, inside = Scale(), Scale()
    network = gm.Sequential(inside, in_features=3, dtype="float64", device="cpu")
    inside.scale = alone_scale = np.array([1.0, -2.0, 0.5])
    alone.forward(X)
    alone.scale = alone_scale
    np.testing.assert_array_equal(alone.forward(X), network.forward(X))
    dy = RNG.normal(size=X.shape)
    np.testing.assert_array_equal(alone.backward(dy), network.backward(dy))
    np.testing.assert_array_equal(alone.grads["scale"], network.gradients["0.scale"])


def test_a_network_with_a_layer_of_ones_own_trains_on_the_eager_executor(backend, dtype):
    network = gm.Sequential(gm.Linear(3, 8), gm.Tanh(), Scale(), gm.Linear(8, 2), dtype=dtype, device=backend)
    before = network.state_dict()
    trainer = gm.Trainer(network, loss="mse", optimizer=gm.SGD(lr=0.1))
    history = trainer.fit(X, Y, epochs=40, batch_size=4, progress=False)
    assert trainer.trained_on == "eager"
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert (network.state_dict()["2.scale"] != before["2.scale"]).all()


def test_it_trains_like_the_same_network_of_shipped_layers():
    class OwnTanh(gm.Layer):
        def forward(self, x):
            self.y = self.xp.tanh(x)
            return self.y

        def backward(self, dy):
            return dy * (1 - self.y * self.y)

    states = []
    for activation in (gm.Tanh(), OwnTanh()):
        network = gm.Sequential(gm.Linear(3, 5), activation, gm.Linear(5, 2), dtype="float64", device="cpu")
        gm.Trainer(network, loss="mse", seed=3).fit(X, Y, epochs=5, batch_size=4, progress=False)
        states.append(network.state_dict())
    for name, expected in states[0].items():
        np.testing.assert_allclose(states[1][name], expected, rtol=1e-12)


def test_training_is_known_within_forward():
    network = gm.Sequential(OnlyInTraining(), in_features=3, dtype="float64", device="cpu")
    np.testing.assert_array_equal(network.forward(X), 2 * X)
    np.testing.assert_array_equal(network.forward(X, training=False), X)
    np.testing.assert_array_equal(network.predict(X), X)
    np.testing.assert_array_equal(network.forward(X), 2 * X)


def test_inference_keeps_nothing_of_a_layer_of_ones_own():
    network = make(Scale())
    network.predict(X)
    network.forward(X, training=False)
    assert not hasattr(network[2], "x")


def test_inference_between_forward_and_backward_leaves_what_training_kept():
    network, dy = make(Scale()), RNG.normal(size=(9, 4))
    network.forward(X)
    expected = network.backward(dy)
    network.forward(X)
    network.predict(X[:2] + 5)
    np.testing.assert_array_equal(network.backward(dy), expected)


def test_a_frozen_layer_of_ones_own_keeps_its_parameters_and_has_no_gradient(training_step):
    network = gm.Sequential(gm.Linear(3, 4), Scale().freeze(), gm.Linear(4, 2), dtype="float64", device="cpu")
    before = network.state_dict()
    step = training_step(network, "mse", X, Y)
    gradients = step.gradients()
    assert gradients["0.weight"].any()
    assert not gradients["1.scale"].any()  # it would count in the norm that clips
    step.rates[...] = 0.1
    step.run(3)
    np.testing.assert_array_equal(network[1].scale, before["1.scale"])


def test_a_forward_of_another_width_than_build_says_is_refused():
    class Wrong(gm.Layer):
        def forward(self, x):
            return x[:, :1]

    with pytest.raises(
        ValueError, match=r"forward of Wrong\(\) gave shape \(9, 1\); expected \(9, 3\): build"
    ):
        gm.Sequential(Wrong(), in_features=3).forward(X)


@pytest.mark.parametrize("broken", ["forward", "backward"])
def test_a_layer_that_gives_nothing_is_named(broken):
    class Wrong(gm.Layer):
        def forward(self, x):
            return None if broken == "forward" else x

        def backward(self, dy):
            return None

    network = gm.Sequential(Wrong(), in_features=3)
    with pytest.raises(ValueError, match=rf"{broken} of Wrong\(\) gave None; expected .*\(9, 3\)"):
        network.backward(network.forward(X))


def test_a_backward_of_another_shape_than_the_input_is_refused():
    class Wrong(gm.Layer):
        def forward(self, x):
            return x

        def backward(self, dy):
            return dy[:1]

    network = gm.Sequential(Wrong(), in_features=3)
    network.forward(X)
    with pytest.raises(ValueError, match=r"backward of Wrong\(\) gave shape \(1, 3\); expected .*\(9, 3\)"):
        network.backward(X)


def test_a_file_cannot_describe_a_layer_of_ones_own():
    with pytest.raises(ValueError, match="Scale is a layer of your own, which a file cannot describe"):
        make(Scale()).to_dict()


def test_a_network_with_a_layer_of_ones_own_is_copied_with_its_values():
    network = make(Scale())
    network[2].scale = [1, 2, 3, 4]
    twin = network.copy()
    np.testing.assert_array_equal(twin[2].scale, [1, 2, 3, 4])
    np.testing.assert_array_equal(twin.predict(X), network.predict(X))
    twin[2].scale = [0, 0, 0, 0]
    np.testing.assert_array_equal(network[2].scale, [1, 2, 3, 4])


def test_the_array_module_is_that_of_the_device(backend):
    layer = Scale()
    gm.Sequential(layer, in_features=2, device=backend)
    assert layer.xp is backend.xp
