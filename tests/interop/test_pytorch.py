"""A live torch.nn.Sequential, and state_dicts as mappings of arrays."""

import re
import warnings

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.interop import from_torch, load_torch_state_dict, to_torch, to_torch_state_dict
from gpumlp.interop.state_dicts import state_arrays


@pytest.fixture(scope="module")
def torch():
    """PyTorch, where it is installed."""
    return pytest.importorskip("torch", reason="PyTorch is not installed; recorded files stand in for it")


# --- state_dicts, which need no PyTorch -------------------------------------------------------------------------------


def twin(network: gm.Sequential) -> gm.Sequential:
    """The same layers with values of their own."""
    return gm.Sequential.from_dict({**network.to_dict(), "seed": 99}, device="cpu")


def renamed(network: gm.Sequential, names: dict[str, str]) -> dict[str, np.ndarray]:
    """The arrays of a network under other prefixes, in the order of those."""
    arrays = state_arrays(network)
    return {
        f"{new}.{name.partition('.')[2]}": array
        for old, new in names.items()
        for name, array in arrays.items()
        if name.partition(".")[0] == old
    }


def test_weights_are_out_by_in_and_a_counter_stands_with_the_running_statistics(mixed):
    arrays = state_arrays(mixed)
    assert arrays["0.weight"].shape == (7, 3)
    np.testing.assert_array_equal(arrays["0.weight"], mixed.state_dict()["0.weight"].T)
    np.testing.assert_array_equal(arrays["2.running_var"], mixed.state_dict()["2.running_var"])
    assert arrays["2.num_batches_tracked"].dtype == np.int64
    assert "3.bias" not in arrays
    assert all(array.flags.c_contiguous for array in arrays.values())


def test_arrays_come_back_as_they_were(mixed, rows):
    other = twin(mixed)
    load_torch_state_dict(other, state_arrays(mixed))
    np.testing.assert_array_equal(other.predict(rows), mixed.predict(rows))


@pytest.mark.parametrize(
    "names",
    [
        {"0": "fc1", "2": "fc2", "4": "fc10"},
        {"4": "fc10", "0": "fc1", "2": "fc2"},
        {"0": "module.net.0.linear", "2": "module.net.3.linear", "4": "module.net.12.linear"},
    ],
)
def test_layers_are_found_by_the_numbers_in_their_names_whatever_their_order(names, randomized, rows):
    network = randomized(gm.mlp([3, 3, 3, 3], device="cpu"))  # shapes tell nothing
    other = twin(network)
    load_torch_state_dict(other, renamed(network, names))
    np.testing.assert_array_equal(other.predict(rows), network.predict(rows))


def test_each_kind_of_layer_is_numbered_apart(randomized, rows):
    layers = [gm.Linear(3, 4), gm.BatchNorm1d(4), gm.Linear(4, 4), gm.BatchNorm1d(4), gm.LayerNorm(4)]
    network = randomized(gm.Sequential(*layers, device="cpu"))
    names = {"4": "norm", "3": "bn2", "1": "bn1", "0": "fc1", "2": "fc2"}
    other = twin(network)
    load_torch_state_dict(other, renamed(network, names))
    np.testing.assert_array_equal(other.predict(rows), network.predict(rows))


def test_names_without_numbers_are_told_apart_by_shapes(randomized, rows):
    network = randomized(gm.mlp([3, 5, 4, 2], device="cpu"))
    other = twin(network)
    load_torch_state_dict(other, renamed(network, {"4": "head", "2": "body", "0": "stem"}))
    np.testing.assert_array_equal(other.predict(rows), network.predict(rows))


def test_names_that_neither_numbers_nor_shapes_order_are_asked_for(randomized, rows):
    network = randomized(gm.mlp([3, 3, 3, 2], device="cpu"))
    arrays = renamed(network, {"2": "body", "0": "stem", "4": "head"})
    other = twin(network)
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"neither numbers nor shapes tell their order; give names="):
        load_torch_state_dict(other, arrays)
    np.testing.assert_array_equal(other.state_dict()["0.weight"], before["0.weight"])
    load_torch_state_dict(other, arrays, names=["stem", "body", "head"])
    np.testing.assert_array_equal(other.predict(rows), network.predict(rows))
    with pytest.raises(ValueError, match="expected one for each of 3 layers"):
        load_torch_state_dict(other, arrays, names=["stem", "body"])


def changed(arrays: dict[str, np.ndarray], **changes) -> dict[str, np.ndarray]:
    return {**arrays, **{name.replace("_", "."): value for name, value in changes.items()}}


BAD = {
    "another shape": ({"0_weight": np.ones((4, 5))}, r"weight of '0' has shape \(4, 5\); .* takes \(5, 3\)"),
    "transposed": ({"0_weight": np.ones((3, 5))}, r"weight of '0' has shape \(3, 5\); .* takes \(5, 3\)"),
    "nan": ({"2_bias": np.full(2, np.nan)}, "bias of '2' holds nan"),
    "integers": ({"2_bias": np.ones(2, np.int8)}, "bias of '2' has dtype int8"),
    "one layer more": ({"9_weight": np.ones((2, 2))}, "2 Linear with values; the state_dict has 3"),
    "another kind": ({"9_weight": np.ones(2)}, "0 LayerNorm with values; the state_dict has 1: '9'"),
    "foreign": ({"0_weight_g": np.ones(2)}, "expected tensors of dense layers"),
    "a checkpoint": ({"optimizer": {"lr": 1.0}}, "give the state_dict alone"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(changes, message, randomized):
    network = randomized(gm.mlp([3, 5, 2], device="cpu"))
    arrays = changed(state_arrays(gm.mlp([3, 5, 2], device="cpu")), **changes)
    before = network.state_dict()
    with pytest.raises(ValueError, match=message):
        load_torch_state_dict(network, arrays)
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_missing_layer_and_a_missing_bias_are_refused():
    network = gm.mlp([3, 5, 2], device="cpu")
    arrays = state_arrays(network)
    without = {name: value for name, value in arrays.items() if name != "0.bias"}
    with pytest.raises(ValueError, match="'0' has weight; layer 0"):
        load_torch_state_dict(network, without)
    with pytest.raises(ValueError, match="2 Linear with values; the state_dict has 1: '0'"):
        load_torch_state_dict(network, {"0.weight": arrays["0.weight"]})


def test_a_path_is_refused_with_the_way_that_reads_no_pickle():
    with pytest.raises(TypeError, match=r"a pickle, which is never read here: safetensors\.torch\.save_file"):
        load_torch_state_dict(gm.mlp([3, 2], device="cpu"), "model.pt")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"takes a live model.*load_safetensors"):
        from_torch("model.pt")
    with pytest.raises(TypeError, match="does not tell the activations"):
        from_torch({"0.weight": np.ones((2, 3))})


def test_noise_and_mixed_units_have_no_like_in_pytorch():
    noise = gm.Sequential(gm.Linear(3, 2), gm.GaussianNoise(0.1), device="cpu")
    with pytest.raises(ValueError, match=r"layer 1, GaussianNoise\(\), has no like in torch\.nn; make a"):
        to_torch(noise)
    units = gm.Sequential(gm.Linear(3, 2), gm.PerUnit(["relu", "tanh"]), device="cpu")
    with pytest.raises(ValueError, match=r"layer 1, PerUnit.* has no like"):
        to_torch(units)


# --- live models --------------------------------------------------------------------------------------------


def outputs(torch, model, x):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.asarray(x))).numpy()


def test_a_live_model_and_a_network_give_equal_outputs_both_ways(
    torch, maker, recorded, assert_equal_outputs
):
    model = maker.torch_model()
    network = from_torch(model, device="cpu")
    x = recorded["x"]
    assert_equal_outputs(network.predict(x), outputs(torch, model, x))
    assert_equal_outputs(network.predict(x), recorded["torch_y"])
    back = to_torch(network)
    assert_equal_outputs(outputs(torch, back, x), recorded["torch_y"])
    flat = [m for m in model.modules() if not isinstance(m, torch.nn.Sequential | torch.nn.Flatten)]
    assert [repr(m) for m in back] == [repr(m) for m in flat]


def test_every_activation_goes_there_and_back(torch, activation, randomized, rows, assert_equal_outputs):
    network = randomized(gm.Sequential(gm.Linear(3, 5), activation, device="cpu"))
    model = to_torch(network)
    assert_equal_outputs(outputs(torch, model, rows), network.predict(rows))
    back = from_torch(model, device="cpu")
    assert [layer.to_dict() for layer in back.layers[1:]] == [layer.to_dict() for layer in network.layers[1:]]


def test_a_network_in_float64_stays_in_it(torch, randomized, rows, assert_equal_outputs):
    network = randomized(gm.mlp([3, 5, 2], activation="tanh", device="cpu", dtype="float64"))
    model = to_torch(network)
    x = rows.astype(np.float64)
    assert_equal_outputs(outputs(torch, model, x), network.predict(x), 1e-14)
    assert from_torch(model, device="cpu").dtype == "float64"
    assert from_torch(model.bfloat16(), device="cpu").dtype == "float32"
    assert from_torch(model, device="cpu", dtype="float64").dtype == "float64"


def test_settings_statistics_and_frozen_layers_survive(torch, mixed):
    mixed[0].freeze()
    mixed[2].freeze()
    model = to_torch(mixed)
    assert model.training
    assert not model[0].weight.requires_grad
    assert model[3].weight.requires_grad
    assert not model[2].training
    back = from_torch(model, device="cpu")
    assert [layer.trainable for layer in back.layers] == [layer.trainable for layer in mixed.layers]
    assert [layer.to_dict() for layer in back.layers if not isinstance(layer, gm.Linear)] == [
        layer.to_dict() for layer in mixed.layers if not isinstance(layer, gm.Linear)
    ]
    for name, value in back.state_dict().items():
        np.testing.assert_array_equal(value, mixed.state_dict()[name])


def test_training_goes_on_as_in_pytorch(torch, rows, assert_close):
    """Batch normalisation too: ten steps of plain descent, and the running statistics."""
    layers = [gm.Linear(3, 7), gm.BatchNorm1d(7, momentum=0.3), gm.Tanh(), gm.Linear(7, 2)]
    network = gm.Sequential(*layers, device="cpu", dtype="float64", seed=4)
    model = to_torch(network)
    x, y = rows.astype(np.float64), rows[:, :2].astype(np.float64) ** 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    gm.Trainer(network, loss="mse", optimizer=gm.SGD(0.1)).fit(
        x, y, epochs=10, batch_size=len(x), progress=False
    )
    after = from_torch(model, device="cpu").state_dict()
    for name, value in network.state_dict().items():
        assert_close(after[name], value, 1e-9)


def test_the_state_dict_of_a_network_loads_strictly(torch, mixed, rows, assert_equal_outputs):
    model = to_torch(gm.Sequential.from_dict({**mixed.to_dict(), "seed": 8}, device="cpu"))
    model.load_state_dict(to_torch_state_dict(mixed), strict=True)
    assert_equal_outputs(outputs(torch, model, rows), mixed.predict(rows))


def test_the_state_dict_of_a_module_of_ones_own_is_taken(torch, rows, assert_equal_outputs):
    class Net(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self):
            super().__init__()
            self.norm1, self.fc1 = torch.nn.LayerNorm(3), torch.nn.Linear(3, 6)
            self.fc2 = torch.nn.Linear(6, 6)
            self.fc3 = torch.nn.Linear(6, 2)

        def forward(self, x):
            return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(self.norm1(x))))))

    model = Net()
    layers = [gm.LayerNorm(3), gm.Linear(3, 6), gm.ReLU(), gm.Linear(6, 6), gm.ReLU(), gm.Linear(6, 2)]
    network = gm.Sequential(*layers, device="cpu")
    load_torch_state_dict(network, model.state_dict())
    assert_equal_outputs(network.predict(rows), outputs(torch, model, rows))
    with pytest.raises(ValueError, match="has no like in gpumlp; make the network in gpumlp"):
        from_torch(model)


def test_layer_norm_without_a_bias_gets_one_of_zeros(torch, rows):
    network = from_torch(torch.nn.LayerNorm(3, bias=False), device="cpu")
    np.testing.assert_array_equal(network[0].bias, [0, 0, 0])


def _weight_norm(nn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(3, 2))


REFUSED = {
    "LogSoftmax": (lambda nn: nn.LogSoftmax(-1), "leave it off and use a loss that takes logits"),
    "PReLU": (lambda nn: nn.PReLU(), "has no like in gpumlp"),
    "Conv1d": (lambda nn: nn.Conv1d(3, 2, 1), "has no like in gpumlp"),
    "BatchNorm without statistics": (
        lambda nn: nn.BatchNorm1d(3, track_running_stats=False),
        "keeps no moving average",
    ),
    "BatchNorm with a cumulative average": (
        lambda nn: nn.BatchNorm1d(3, momentum=None),
        "keeps no moving average",
    ),
    "softmax over the rows": (lambda nn: nn.Softmax(0), "does not go over the features"),
    "LayerNorm of two axes": (lambda nn: nn.LayerNorm((3, 3)), "normalises over 2 axes"),
    "weight norm": (_weight_norm, "has no like in gpumlp"),
    "parametrized": (lambda nn: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "has no like"),
    "lazy": (lambda nn: nn.LazyLinear(3), "has no like in gpumlp"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_gpumlp_has_not_is_refused_with_its_place(torch, make, message):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Sequential(make(torch.nn)))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        from_torch(model)
    assert "\n" not in str(caught.value)


def test_shared_weights_are_refused_and_shared_activations_are_not(torch):
    nn = torch.nn
    relu, linear = nn.ReLU(), nn.Linear(3, 3)
    network = from_torch(nn.Sequential(linear, relu, nn.Linear(3, 3), relu), device="cpu")
    assert [type(layer).__name__ for layer in network.layers] == ["Linear", "ReLU"] * 2
    with pytest.raises(ValueError, match=r"uses '0.weight', also called '2.weight', in two places"):
        from_torch(nn.Sequential(linear, relu, linear))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Sequential"):
        from_torch(3)
    with pytest.raises(ValueError, match="the model has no layers"):
        from_torch(nn.Sequential())
