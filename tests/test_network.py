import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp.inference import BATCH
from tests.networks import make

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 3))


# --- widths and layers ------------------------------------------------------------------------------------------------


def test_widths_that_do_not_chain_name_both_layers():
    with pytest.raises(
        ValueError,
        match=r"^layer 2, Linear\(6, 2\), takes 6 features, but layer 1, ReLU\(\), gives 5; make the widths equal$",
    ):
        gm.Sequential(gm.Linear(3, 5), gm.ReLU(), gm.Linear(6, 2))
    with pytest.raises(
        ValueError, match=r"layer 1, BatchNorm1d\(4\), takes 4 features, but layer 0, Linear\(3, 5\)"
    ):
        gm.Sequential(gm.Linear(3, 5), gm.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"layer 0, Linear\(3, 5\), takes 3 features, but the input has 4"):
        gm.Sequential(gm.Linear(3, 5), in_features=4)


def test_layers_of_a_network_that_failed_can_be_used_in_another():
    first, last = gm.Linear(3, 5), gm.Linear(6, 2)
    first.weight = np.full((3, 5), 0.5)
    with pytest.raises(ValueError, match="make the widths equal"):
        gm.Sequential(first, last)
    assert (last.key, last.forward(np.ones((1, 6))).shape) == ("", (1, 2))
    with pytest.raises(ValueError, match="orthogonal"):  # refused when it is drawn
        gm.Sequential(first, gm.Linear(5, 6, bias_init="orthogonal"), last)
    network = gm.Sequential(first, gm.Linear(5, 6), last, device="cpu")
    np.testing.assert_array_equal(network[0].weight, 0.5)


def test_the_width_of_the_input_is_known_or_given():
    assert gm.Sequential(gm.ReLU(), gm.Linear(3, 2)).in_features == 3
    assert gm.Sequential(gm.ReLU(), in_features=7).out_features == 7
    with pytest.raises(ValueError, match="no layer says how wide the input is; give in_features"):
        gm.Sequential(gm.ReLU(), gm.Tanh())


def test_a_layer_stands_in_one_place_of_one_network():
    layer = gm.Linear(3, 3)
    with pytest.raises(ValueError, match="a layer stands twice in the network"):
        gm.Sequential(layer, gm.ReLU(), layer)
    gm.Sequential(layer)
    with pytest.raises(
        ValueError, match=r"Linear\(3, 3\) is part of another network already; make a new layer"
    ):
        gm.Sequential(layer, gm.ReLU())


def test_what_is_not_a_layer_is_refused():
    with pytest.raises(ValueError, match="layer"):
        gm.Sequential()
    with pytest.raises(TypeError, match=r"is not a layer; expected gm.Linear\(\.\.\.\)"):
        gm.Sequential(gm.Linear(3, 2), gm.ReLU)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'relu' is not a layer"):
        gm.Sequential(gm.Linear(3, 2), "relu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a Sequential stands in a Sequential"):
        gm.Sequential(gm.Sequential(gm.Linear(3, 2)), gm.ReLU())  # type: ignore[arg-type]


def test_layers_may_come_as_a_list():
    network = gm.Sequential([gm.Linear(3, 2), [gm.ReLU(), gm.Linear(2, 1)]])  # type: ignore[list-item]
    assert [type(layer).__name__ for layer in network.layers] == ["Linear", "ReLU", "Linear"]
    assert len(network) == 3
    assert network[0] is network.layers[0]
    assert "1: ReLU()" in repr(network)


@pytest.mark.parametrize(
    ("dtype", "name"), [("float32", "float32"), (np.float64, "float64"), (np.dtype("f4"), "float32")]
)
def test_a_network_computes_in_float32_or_float64(dtype, name):
    network = gm.mlp([2, 1], dtype=dtype)
    assert network.dtype == name
    assert network.forward([[1.0, 2.0]]).dtype == name
    assert network.predict([[1.0, 2.0]]).dtype == name


@pytest.mark.parametrize("dtype", ["float16", "int32", "double precision", complex])
def test_another_type_is_refused(dtype):
    with pytest.raises(ValueError, match='is not supported; expected "float32" or "float64"'):
        gm.mlp([2, 1], dtype=dtype)


def test_mlp_is_the_plain_perceptron_of_its_widths():
    network = gm.mlp(
        [4, 8, 6, 3], activation="tanh", dropout=0.2, output_activation="softmax", weight_init="he_normal"
    )
    shown = ["Linear(4, 8)", "Tanh()", "Dropout(rate=0.2)", "Linear(8, 6)", "Tanh()", "Dropout(rate=0.2)"]
    assert [repr(layer) for layer in network.layers] == [*shown, "Linear(6, 3)", "Softmax()"]
    with pytest.raises(ValueError, match="at least the widths of input and output"):
        gm.mlp([4])


# --- passes ---------------------------------------------------------------------------------------------------------


def test_inputs_of_another_width_are_refused():
    network = make()
    for x in (np.ones((2, 4)), np.ones(3), np.ones((2, 3, 1))):
        with pytest.raises(ValueError, match=r"x has shape .*; expected \(rows, 3\)"):
            network.forward(x)
    with pytest.raises(ValueError, match="X has 4 features; the network takes 3"):
        network.predict(np.ones((2, 4)))


def test_backward_needs_a_forward():
    network = make()
    with pytest.raises(ValueError, match=r"call forward\(x\) first"):
        network.backward(np.ones((11, 2)))
    network.forward(X)
    with pytest.raises(ValueError, match=r"dy has shape \(3, 2\); expected that of the output, \(11, 2\)"):
        network.backward(np.ones((3, 2)))


def test_gradients_of_a_pass_by_hand_agree_with_central_differences(central_differences, assert_close):
    network = gm.mlp([3, 4, 2], activation="tanh", dtype="float64", device="cpu")
    x, dy = X.copy(), RNG.normal(size=(11, 2))
    network.forward(x)
    dx = network.backward(dy)

    def value():
        return float((network.forward(x) * dy).sum())

    gradients = network.gradients.to_host()
    assert_close(dx, central_differences(value, x), 1e-7)
    for name, gradient in gradients.items():
        assert_close(gradient, central_differences(value, network.parameters[name]), 1e-7)


def test_forward_by_layer_chains_to_forward_of_the_network():
    network = make("float64")
    value = X
    for layer in network.layers:
        value = network.forward(value, training=False, layers=[layer])
    np.testing.assert_allclose(value, network.forward(X, training=False), rtol=1e-14)


def test_what_forward_returns_stays_when_it_is_called_again():
    network = make("float64")
    first = network.forward(X, training=False)
    kept = first.copy()
    network.forward(X + 1, training=False)
    np.testing.assert_array_equal(first, kept)
    y = network.forward(X)
    kept = y.copy()
    network.backward(np.ones_like(y))
    network.forward(X * 3)
    np.testing.assert_array_equal(y, kept)


def test_freezing_is_seen_by_the_next_pass():
    network = gm.mlp([3, 4, 2], dtype="float64", activation="tanh")
    network.forward(X)
    network.backward(np.ones((11, 2)))
    before = network.gradients.to_host()
    network.gradients.memory[...] = 0
    network[0].freeze()
    network.forward(X)
    network.backward(np.ones((11, 2)))
    after = network.gradients.to_host()
    assert not after["0.weight"].any()
    np.testing.assert_array_equal(after["2.weight"], before["2.weight"])
    assert network.n_parameters() == 3 * 4 + 4 + 4 * 2 + 2
    assert network.n_parameters(trainable_only=True) == 4 * 2 + 2
    network[0].unfreeze()
    assert network.n_parameters(trainable_only=True) == network.n_parameters()


# --- inference ------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(rows=st.integers(1, 40), batch_size=st.integers(1, 45))
def test_predict_is_equal_batch_by_batch_and_whole(rows, batch_size):
    network, x = make("float64"), np.random.default_rng(rows).normal(size=(rows, 3))
    whole = network.predict(x, batch_size=rows)
    assert whole.shape == (rows, 2)
    np.testing.assert_allclose(network.predict(x, batch_size=batch_size), whole, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(network.predict(x), whole, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(network.forward(x, training=False), whole, rtol=1e-13, atol=1e-15)


def test_predict_of_more_rows_than_its_own_batch():
    network, x = make(), np.random.default_rng(0).normal(size=(2 * BATCH + 5, 3)).astype("float32")
    np.testing.assert_allclose(
        network.predict(x), network.predict(x, batch_size=len(x)), rtol=1e-5, atol=1e-6
    )


def test_predict_is_the_same_twice_and_leaves_the_network_alone():
    network = make()
    before = network.state_dict()
    first = network.predict(X)
    np.testing.assert_array_equal(network.predict(X), first)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_predict_refuses_what_is_not_finite():
    x = X.copy()
    x[4, 1] = np.nan
    with pytest.raises(ValueError, match="X has nan in row 4, column 1"):
        make().predict(x)


def test_predict_with_a_batch_size_that_makes_no_sense_is_refused():
    for batch_size in (0, -5, 2.5):
        with pytest.raises(ValueError, match="batch_size is"):
            make().predict(X, batch_size=batch_size)


def peak_bytes(f):
    gc.collect()
    tracemalloc.start()
    f()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("run", ["predict", "forward"])
def test_inference_takes_no_memory_for_depth_and_training_does(run):
    """2000 rows of 50 float32 are 400 kB; 20 layers would keep 8 MB and more."""
    x = np.ones((2000, 50), "float32")
    peaks = {}
    for depth in (3, 20):
        network = gm.mlp([50] * depth, device="cpu")
        work = {
            "predict": lambda n=network: n.predict(x, batch_size=2000),
            "forward": lambda n=network: n.forward(x, training=False),
        }[run]
        work()  # imports and such things apart
        peaks[depth] = peak_bytes(work)
        training = peak_bytes(lambda n=network: n.forward(x))
    assert peaks[20] < 1.5 * peaks[3]
    assert training > 20 * 400_000


def test_inference_leaves_no_memory_behind():
    network, x = gm.mlp([50] * 10, device="cpu"), np.ones((2000, 50), "float32")
    network.predict(x[:10])
    gc.collect()
    tracemalloc.start()
    network.predict(x, batch_size=2000)
    network.forward(x, training=False)
    gc.collect()
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert left < 100_000


# --- summary --------------------------------------------------------------------------------------------------------


def test_the_summary_counts_parameters_bytes_and_multiply_adds():
    network = gm.Sequential(
        gm.Linear(784, 500).freeze(), gm.ReLU(), gm.BatchNorm1d(500), gm.Linear(500, 10), device="cpu"
    )
    text = network.summary()
    lines = text.split("\n")
    first, total = lines[2].split(), next(line for line in lines if "total" in line).split()
    assert first == [
        "0",
        "Linear(784,",
        "500)",
        "(frozen)",
        "(rows,",
        "500)",
        "392,500",
        "1,570,000",
        "392,000",
    ]
    parameters = 784 * 500 + 500 + 2 * 500 + 500 * 10 + 10
    assert total == ["total", f"{parameters:,}", f"{4 * parameters:,}", f"{784 * 500 + 500 * 10:,}"]
    assert (
        f"trainable: {1000 + 5010:,} of {parameters:,} parameters; float32; device: cpu (NumPy)" in lines[-1]
    )
    assert sum(row[2] for row in network.layer_table()) == parameters


def test_columns_of_the_summary_stand_under_their_heads():
    lines = gm.mlp([3, 5, 2], dtype="float64").summary().split("\n")
    assert lines[0].split() == ["layer", "output", "parameters", "bytes", "multiply-adds"]
    rows = [lines[0], *lines[2:5], lines[6]]
    assert len({len(line) for line in rows}) == 1
    assert lines[2].split()[-2:] == ["160", "15"]  # (3 5 + 5) parameters of 8 bytes, 3 5 multiply-adds
