"""Values alone in a safetensors file, in PyTorch's names and layout."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpumlp as gm
from gpumlp.interop import load_safetensors, save_safetensors


def torch_twin() -> gm.Sequential:
    """The layers of the recorded model of PyTorch, whose Flatten and inner Sequential change the numbers."""
    return gm.Sequential(
        *(gm.Linear(3, 7), gm.GELU(), gm.BatchNorm1d(7, eps=1e-3, momentum=0.2)),
        *(gm.Linear(7, 5, bias=False), gm.GELU("tanh"), gm.Dropout(0.3), gm.LayerNorm(5)),
        *(gm.Linear(5, 6), gm.SiLU(), gm.Linear(6, 4), gm.Mish(), gm.Softplus(2.0), gm.LeakyReLU(0.05)),
        *(gm.Linear(4, 9), gm.ELU(0.7), gm.SELU(), gm.Linear(9, 2), gm.Tanh()),
        device="cpu",
    )


def test_a_file_of_pytorch_gives_the_recorded_outputs(
    recorded, recorded_files, tmp_path, assert_equal_outputs
):
    """Its linear layers are 1, 4, 8, 9.1, 12, 15: two forms of name, which the shapes put in order."""
    network = torch_twin()
    load_safetensors(network, recorded_files / "torch_dense.safetensors")
    assert_equal_outputs(network.predict(recorded["x"]), recorded["torch_y"])


def test_bfloat16_is_read(recorded, recorded_files, assert_equal_outputs):
    network = torch_twin()
    load_safetensors(network, recorded_files / "torch_bfloat16.safetensors")
    assert_equal_outputs(network.predict(recorded["x"]), recorded["torch_bfloat16_y"])
    # the upper half of each number is there, no more
    assert not (network.state_dict()["0.weight"].view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_other_floats_are_read(dtype, tmp_path):
    weight = np.array([[0.5, -2.0, 1.25], [3.0, 0.0, -0.125]], dtype)
    save_file({"0.weight": weight, "0.bias": np.zeros(2, dtype)}, tmp_path / "m.safetensors")
    network = gm.Sequential(gm.Linear(3, 2), device="cpu")
    load_safetensors(network, tmp_path / "m.safetensors")
    np.testing.assert_array_equal(network[0].weight, weight.T)


def test_a_network_comes_back_from_its_file(mixed, rows, tmp_path):
    path = tmp_path / "m.safetensors"
    save_safetensors(mixed, path)
    other = gm.Sequential.from_dict({**mixed.to_dict(), "seed": 7}, device="cpu")
    load_safetensors(other, path)
    np.testing.assert_array_equal(other.predict(rows), mixed.predict(rows))


def test_the_file_is_laid_out_as_pytorch_does(mixed, tmp_path):
    path = tmp_path / "m.safetensors"
    save_safetensors(mixed, path)
    arrays = load_file(path)
    assert arrays["0.weight"].shape == (7, 3)
    np.testing.assert_array_equal(arrays["0.weight"].T, mixed.state_dict()["0.weight"])
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"] == {"format": "pt"}


def test_pytorch_reads_the_file(mixed, rows, tmp_path, assert_equal_outputs):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from safetensors.torch import load_file as load_by_torch

    from gpumlp.interop import to_torch

    save_safetensors(mixed, tmp_path / "m.safetensors")
    model = to_torch(gm.Sequential.from_dict({**mixed.to_dict(), "seed": 7}, device="cpu")).eval()
    model.load_state_dict(load_by_torch(tmp_path / "m.safetensors"), strict=True)
    assert_equal_outputs(model(torch.from_numpy(rows)).detach().numpy(), mixed.predict(rows))


def test_a_model_file_of_gpumlp_is_not_taken_for_pytorchs(tmp_path):
    """Its square weights would fit either way, transposed."""
    network = gm.Sequential(gm.Linear(3, 3), device="cpu")
    gm.Model(network, gm.MSE()).save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"gm\.load_model reads it"):
        load_safetensors(network, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "start", [b"PK\x03\x04rest of an archive", b"\x80\x02rest of a pickle"], ids=["zip", "pickle"]
)
def test_a_pickle_of_pytorch_is_refused_unread(start, tmp_path):
    (tmp_path / "model.pt").write_bytes(start)
    with pytest.raises(ValueError, match=r"is a pickle of torch\.save, which is never read; use safetensors"):
        load_safetensors(gm.mlp([3, 2], device="cpu"), tmp_path / "model.pt")


def test_missing_damaged_and_other_files_are_told_in_one_line(tmp_path, recorded_files):
    network = gm.mlp([3, 2], device="cpu")
    with pytest.raises(ValueError, match=r"cannot read .*No such file"):
        load_safetensors(network, tmp_path / "none.safetensors")
    whole = (recorded_files / "torch_dense.safetensors").read_bytes()
    for name, data in {"cut": whole[:-7], "empty": b"", "text": b"weights, honestly"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="truncated, damaged, or no safetensors file") as caught:
            load_safetensors(network, tmp_path / name)
        assert "\n" not in str(caught.value)


def test_tensors_of_other_types_are_refused(tmp_path):
    save_file({"0.weight": np.ones((2, 3), np.int8)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"'0.weight' .* has type I8; expected float64"):
        load_safetensors(gm.Sequential(gm.Linear(3, 2), device="cpu"), tmp_path / "m.safetensors")
