"""ONNX files, written and read: by the standard's own evaluator, and as PyTorch exported them."""

import numpy as np
import pytest

import gpumlp as gm
from gpumlp.interop import export_onnx, import_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402


def evaluated(path, x):
    """The output by onnx's own reference evaluator."""
    (y,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    return y


def kinds(network):
    return [type(layer).__name__ for layer in network.layers]


# --- written by gpumlp --------------------------------------------------------------------------------------------


def test_a_network_gives_equal_outputs_in_onnx_and_back(mixed, rows, tmp_path, assert_equal_outputs):
    path = tmp_path / "m.onnx"
    export_onnx(mixed, path)
    assert_equal_outputs(evaluated(path, rows), mixed.predict(rows))
    back = import_onnx(path, device="cpu")
    np.testing.assert_allclose(back.predict(rows), mixed.predict(rows), rtol=1e-6)
    # dropout and identities are gone; the others are there with their settings
    assert kinds(back) == [kind for kind in kinds(mixed) if kind not in ("Dropout", "Identity")]
    assert back[2].to_dict() == mixed[2].to_dict()
    assert back[5].to_dict() == mixed[5].to_dict()
    np.testing.assert_array_equal(back[2].running_var, mixed[2].running_var)


def test_every_activation_goes_there_and_back(activation, randomized, rows, tmp_path, assert_equal_outputs):
    network = randomized(gm.Sequential(gm.Linear(3, 5), activation, gm.Linear(5, 2), device="cpu"))
    path = tmp_path / "m.onnx"
    export_onnx(network, path)
    assert_equal_outputs(evaluated(path, rows), network.predict(rows))
    back = import_onnx(path, device="cpu")
    assert_equal_outputs(back.predict(rows), network.predict(rows))
    expected = [] if isinstance(activation, gm.Identity) else [activation.to_dict()]
    assert [layer.to_dict() for layer in back.layers[1:-1]] == expected


def test_the_file_is_of_operator_set_20_with_any_number_of_rows(mixed, tmp_path):
    path = tmp_path / "m.onnx"
    export_onnx(mixed, path)
    model = onnx.load(path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert model.ir_version == 9
    assert model.producer_name == "gpumlp"
    (start,), (end,) = model.graph.input, model.graph.output
    assert [start.name, end.name] == ["x", "y"]
    dims = [(d.dim_param, d.dim_value) for d in start.type.tensor_type.shape.dim]
    assert dims == [("rows", 0), ("", 3)]
    for n in (1, 9):
        assert evaluated(path, np.ones((n, 3), np.float32)).shape == (n, 2)
    export_onnx(mixed, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_float64_is_written_and_read_in_float64(randomized, rows, tmp_path, assert_equal_outputs):
    network = randomized(gm.mlp([3, 6, 2], activation="elu", device="cpu", dtype="float64"))
    export_onnx(network, tmp_path / "m.onnx")
    x = rows.astype(np.float64)
    assert_equal_outputs(evaluated(tmp_path / "m.onnx", x), network.predict(x), 1e-13)
    back = import_onnx(tmp_path / "m.onnx", device="cpu")
    assert back.dtype == "float64"
    assert import_onnx(tmp_path / "m.onnx", device="cpu", dtype="float32").dtype == "float32"
    np.testing.assert_allclose(back.predict(x), network.predict(x), rtol=1e-14)


@pytest.mark.parametrize(
    ("loss", "outputs"), [("cross_entropy", 3), ("binary_cross_entropy", 1), ("softmax_mse", 2), ("mse", 2)]
)
def test_a_model_and_a_trainer_give_what_they_predict(
    loss, outputs, randomized, rows, tmp_path, assert_equal_outputs
):
    trainer = gm.Trainer(randomized(gm.mlp([3, 6, outputs], device="cpu")), loss=loss)
    export_onnx(trainer, tmp_path / "t.onnx")
    assert_equal_outputs(evaluated(tmp_path / "t.onnx", rows), trainer.predict(rows))
    model = gm.Model(trainer.network, trainer.loss)
    export_onnx(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == (tmp_path / "t.onnx").read_bytes()


def test_a_model_gives_its_target_in_its_units(randomized, rows, tmp_path, assert_equal_outputs):
    network = randomized(gm.mlp([3, 6, 2], device="cpu"))
    model = gm.Model(network, gm.MSE(), target_scaler=gm.data.TargetScaler([3.0, -40.0], [0.5, 7.0]))
    export_onnx(model, tmp_path / "m.onnx")
    assert_equal_outputs(evaluated(tmp_path / "m.onnx", rows), model.predict(rows))


def test_a_network_that_does_nothing_is_written(rows, tmp_path):
    export_onnx(gm.Sequential(gm.Dropout(0.5), in_features=3, device="cpu"), tmp_path / "m.onnx")
    np.testing.assert_array_equal(evaluated(tmp_path / "m.onnx", rows), rows)


def test_what_onnx_cannot_hold_is_refused_and_no_file_is_left(tmp_path, monkeypatch):
    units = gm.Sequential(gm.Linear(3, 2), gm.PerUnit(["relu", "tanh"]), device="cpu")
    with pytest.raises(ValueError, match=r"layer 1, PerUnit.* has no like in the operators of ONNX"):
        export_onnx(units, tmp_path / "m.onnx")
    preprocessor = gm.data.Preprocessor().fit(np.random.default_rng(0).normal(size=(9, 3)))
    model = gm.Model(gm.mlp([3, 2], device="cpu"), gm.MSE(), preprocessor=preprocessor)
    with pytest.raises(ValueError, match=r"has a preprocessor, .* feed it what model\.inputs\(X\) gives"):
        export_onnx(model, tmp_path / "m.onnx")
    with pytest.raises(TypeError, match=r"expected a gm\.Sequential, gm\.Model or gm\.Trainer"):
        export_onnx(gm.Linear(3, 2), tmp_path / "m.onnx")
    monkeypatch.setattr("gpumlp.interop.onnx_export.LIMIT", 8 * 4 - 1)
    with pytest.raises(ValueError, match="the network takes 32 bytes; an ONNX file holds 2 GB"):
        export_onnx(gm.mlp([3, 2], device="cpu"), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


# --- written by PyTorch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [20, 17])
def test_files_of_pytorch_give_the_recorded_outputs(opset, recorded, recorded_files, assert_equal_outputs):
    """Set 17 knows neither Gelu nor Mish, and the former exporter writes both out."""
    path = recorded_files / f"torch_opset{opset}.onnx"
    ops = {node.op_type for node in onnx.load(path).graph.node}
    assert ("Erf" in ops) == (opset == 17)
    network = import_onnx(path, device="cpu")
    assert_equal_outputs(network.predict(recorded["x"]), recorded["torch_y"])
    expected = (
        "Linear GELU BatchNorm1d Linear GELU LayerNorm Linear SiLU Linear Mish Softplus LeakyReLU Linear ELU"
    )
    assert kinds(network) == [*expected.split(), "SELU", "Linear", "Tanh"]
    assert network[4].approximate == "tanh"
    assert network[10].beta == pytest.approx(2.0)


@pytest.mark.filterwarnings("ignore")  # of the exporters, about themselves
@pytest.mark.parametrize("opset", [17, 18, 20])
def test_what_pytorch_exports_now_is_read(opset, maker, recorded, tmp_path, assert_equal_outputs):
    pytest.importorskip("torch", reason="PyTorch is not installed; recorded files stand in for it")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed; recorded files stand in for it")
    maker.export_by_torch(maker.torch_model(), tmp_path / "m.onnx", opset)
    assert_equal_outputs(
        import_onnx(tmp_path / "m.onnx", device="cpu").predict(recorded["x"]), recorded["torch_y"]
    )


def test_onnxruntime_agrees(mixed, rows, tmp_path, assert_equal_outputs):
    ort = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed; onnx's own evaluator stands in"
    )
    export_onnx(mixed, tmp_path / "m.onnx")
    (y,) = ort.InferenceSession(tmp_path / "m.onnx").run(None, {"x": rows})
    assert_equal_outputs(y, mixed.predict(rows))


# --- graphs written by hand ---------------------------------------------------------------------------------------


RNG = np.random.default_rng(8)
W, B = RNG.normal(size=(3, 4)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
W2 = RNG.normal(size=(4, 4)).astype(np.float32)
CONSTANTS = {
    "W": W,
    "Wt": W.T.copy(),
    "B": B,
    "B1": B[None],
    "W2": W2,
    "half": np.array(0.5, np.float32),
    "scalar": np.array([0.25], np.float32),
    "column": B[:, None],
    "yes": np.array(True),
    "I": np.ones((3, 4), np.int8),
    "nan": np.full((3, 4), np.nan, np.float32),
    "ones": np.ones(4, np.float32),
}


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], **attributes)


def write(path, *nodes, shape=("rows", 3), inputs=("x",), outputs=("y",), domain=""):
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "out"]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


READ = {
    "Gemm with transB": [node("Gemm", "x Wt B", "y", transB=1)],
    "Gemm with alpha and beta": [node("Gemm", "x W B", "y", alpha=0.5, beta=2.0)],
    "Gemm without bias": [node("Gemm", "x W", "y")],
    "Gemm with a scalar bias": [node("Gemm", "x W scalar", "y")],
    "Gemm with a row as bias": [node("Gemm", "x W B1", "y")],
    "MatMul": [node("MatMul", "x W", "y")],
    "MatMul and Add": [node("MatMul", "x W", "h"), node("Add", "h B", "y")],
    "Add and MatMul the other way": [node("MatMul", "x W", "h"), node("Add", "B1 h", "y")],
    "Flatten, Identity, Dropout": [
        node("Flatten", "x", "a", axis=1),
        node("Identity", "a", "b"),
        node("Dropout", "b", "c"),
        node("MatMul", "c W", "y"),
    ],
    "Softmax over axis 1": [node("Gemm", "x W B", "h"), node("Softmax", "h", "y", axis=1)],
    "constants as nodes": [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(W)),
        node("Identity", "k", "same"),
        node("MatMul", "x same", "y"),
    ],
    "LayerNormalization without a shift": [
        node("Gemm", "x W B", "h"),
        node("LayerNormalization", "h ones", "y"),
    ],
    "BatchNormalization": [
        node("Gemm", "x W B", "h"),
        node("BatchNormalization", "h B B B ones", "y", epsilon=1e-3),
    ],
    "the input used twice": [node("Sigmoid", "x", "s"), node("Mul", "s x", "h"), node("Gemm", "h W B", "y")],
}


@pytest.mark.parametrize("nodes", READ.values(), ids=READ)
def test_a_graph_gives_what_the_reference_gives(nodes, rows, tmp_path, assert_equal_outputs):
    path = write(tmp_path / "m.onnx", *nodes)
    assert_equal_outputs(import_onnx(path, device="cpu").predict(rows), evaluated(path, rows))


REFUSED = {
    "another operator": ([node("Gemm", "x W B", "h"), node("Sin", "h", "y")], "node 'y' .* is Sin, which"),
    "an Add alone": ([node("Gemm", "x W B", "h"), node("Add", "h B", "y")], "is Add, which"),
    "transA": ([node("Gemm", "W x", "y", transA=1)], "do(es)? not stand in a chain|transA"),
    "a column as bias": ([node("MatMul", "x W", "h"), node("Add", "h column", "y")], "bias of shape"),
    "a product of data": ([node("Gemm", "x W B", "h"), node("MatMul", "h h", "y")], "not an initializer"),
    "a branch": (
        [
            node("Gemm", "x W B", "h"),
            node("Gemm", "h W2", "a"),
            node("Relu", "h", "b"),
            node("Add", "a b", "y"),
        ],
        "does not stand in a chain",
    ),
    "a residual": (
        [node("Gemm", "x W B", "h"), node("Relu", "h", "a"), node("Add", "a h", "y")],
        "is Relu, which gpumlp cannot take in",
    ),
    "softmax over rows": (
        [node("Gemm", "x W B", "h"), node("Softmax", "h", "y", axis=0)],
        "Softmax over the",
    ),
    "dropout in training": (
        [node("Dropout", "x half yes", "h"), node("Gemm", "h W", "y")],
        "in training mode",
    ),
    "another domain": (
        [helper.make_node("Gelu", ["x"], ["h"], domain="com.microsoft"), node("Gemm", "h W", "y")],
        "is Gelu of com.microsoft",
    ),
    "integers": ([node("MatMul", "x I", "y")], "dtype int8"),
    "nan": ([node("Gemm", "x nan", "y")], "weight of node 'y' .* holds nan"),
    "a name": (
        [node("Gemm", "x W", "y", name="first"), node("Gemm", "y W2", "z")],
        "does not lead from its input",
    ),
}


@pytest.mark.parametrize(("nodes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_gpumlp_has_not_is_refused_with_its_place(nodes, message, tmp_path, monkeypatch):
    # some of these are refused by the checker of onnx already, and gpumlp's own words are to be seen
    monkeypatch.setattr(onnx.checker, "check_model", lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match=message) as caught:
        import_onnx(write(tmp_path / "m.onnx", *nodes))
    assert "\n" not in str(caught.value)


def test_several_inputs_or_outputs_and_images_are_refused(tmp_path):
    gemm = node("Gemm", "x W B", "y")
    with pytest.raises(ValueError, match="has 2 inputs and 1 outputs"):
        import_onnx(write(tmp_path / "m.onnx", gemm, inputs=("x", "z")))
    with pytest.raises(ValueError, match="has 1 inputs and 2 outputs"):
        import_onnx(write(tmp_path / "m.onnx", gemm, node("Relu", "y", "z"), outputs=("y", "z")))
    with pytest.raises(ValueError, match=r"takes an input of 3 axes; expected \(rows, features\)"):
        import_onnx(write(tmp_path / "m.onnx", node("MatMul", "x W", "y"), shape=("rows", 2, 3)))


def test_missing_and_damaged_files_are_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*none\.onnx'; expected an ONNX model"):
        import_onnx(tmp_path / "none.onnx")
    for name, data in {"text": b"weights, honestly", "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="is no ONNX model, or a damaged one") as caught:
            import_onnx(tmp_path / name)
        assert "\n" not in str(caught.value)
