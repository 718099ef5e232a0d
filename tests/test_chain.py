"""The chain of layers: its memory, what is drawn into it, and the order of a backward pass."""

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.chain import Chain
from gpumlp.program import Builder


def test_parameters_lie_in_one_arena_weights_first_and_gradients_alike():
    network = gm.mlp([3, 5, 2])
    names = list(network.parameters)
    assert names == ["0.weight", "2.weight", "0.bias", "2.bias"]
    assert network.gradients.segments == network.parameters.segments
    assert set(network.arenas()) == {"parameters", "gradients", "state"}


def test_segments_tell_what_is_trainable_now():
    network = gm.mlp([3, 5, 2])
    network[2].freeze()
    assert {s.name: s.trainable for s in network.segments()} == {
        "0.weight": True,
        "0.bias": True,
        "2.weight": False,
        "2.bias": False,
    }


def test_a_draw_is_keyed_by_seed_layer_and_parameter():
    """The values of a parameter do not depend on the layers behind it, nor two parameters on each other."""
    one, longer = gm.mlp([3, 5], seed=3), gm.mlp([3, 5, 5, 5], seed=3)
    np.testing.assert_array_equal(one.state_dict()["0.weight"], longer.state_dict()["0.weight"])
    state = longer.state_dict()
    assert (state["2.weight"] != state["4.weight"]).all()
    both = gm.Sequential(gm.Linear(4, 4, weight_init="normal", bias_init="normal"))
    assert (both[0].weight[0] != both[0].bias).all()


def test_a_draw_is_that_of_the_initializer_on_numpys_philox():
    layer = gm.Linear(3, 5, weight_init="he_normal")
    gm.Sequential(gm.ReLU(), layer, in_features=3, dtype="float64", seed=7, device="cpu")
    rng = np.random.Generator(np.random.Philox(key=np.array([7, 1 << 16], np.uint64)))
    expected = gm.initializers.get_initializer("he_normal")(rng, (3, 5))
    np.testing.assert_array_equal(layer.weight, expected)


@pytest.mark.parametrize(
    ("need_dx", "frozen", "lowest"), [(True, 0, 0), (False, 0, 0), (False, 1, 2), (True, 1, 0)]
)
def test_the_backward_pass_goes_down_to_the_first_layer_that_learns(need_dx, frozen, lowest):
    network = gm.mlp([3, 4, 4, 2], activation="tanh")
    for i in range(frozen):
        network[i].freeze()
    b = Builder(2, "float32", training=True)
    values = network.emit_forward(b, b.buffer("x", 2, 3))
    b.mark("backward")
    dx = network.emit_backward(b, values, b.buffer("dy", 2, 2), need_dx=need_dx)
    program = b.finish()
    backward = program.calls[program.marks["backward"] :]
    assert min(int(call.layer) for call in backward) == lowest
    assert (dx is not None and dx.shape == (2, 3)) == need_dx


def test_a_network_that_learns_nothing_passes_nothing_on():
    network = gm.Sequential(gm.Linear(3, 2).freeze(), gm.ReLU())
    b = Builder(2, "float32", training=True)
    values = network.emit_forward(b, b.buffer("x", 2, 3))
    before = len(b.finish().calls)
    network.emit_backward(b, values, b.buffer("dy", 2, 2))
    assert len(b.finish().calls) == before


def test_a_pass_is_made_anew_for_another_batch_size_and_kept_for_the_same():
    network = gm.mlp([3, 2], dtype="float64")
    x = np.ones((4, 3))
    network.forward(x)
    kept = network._pass
    network.forward(x * 2)
    assert network._pass is kept
    network.forward(x[:2])
    assert network._pass is not kept


def test_an_empty_chain_is_the_identity():
    chain = Chain([], in_features=3, device="cpu", dtype="float64")
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(chain.forward(x), x)
    np.testing.assert_array_equal(chain.backward(x + 1), x + 1)
