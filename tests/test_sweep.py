"""gpumlp.sweep: a network for each point of a grid of settings, and what can be said of them."""

import json

import matplotlib.figure
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp import experiment as experiments
from gpumlp.config import complete_config
from gpumlp.experiment import set_up
from gpumlp.sweep import grid_points, label_of, sweep, sweep_trainers

IRIS = {
    "data": {"source": "iris"},
    "network": {"hidden": [8]},
    "training": {"epochs": 4, "batch_size": 32, "validation_split": 0.2},
    "optimizer": {"name": "sgd", "lr": 0.1},
}
RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (60, 2)).astype(np.float32)
Y = np.sin(3 * X[:, :1]) + X[:, 1:]


def make_trainer(lr=0.05, hidden=8, seed=0):
    return gm.Trainer(
        gm.mlp((2, hidden, 1), activation="tanh", device="cpu"), loss="mse", optimizer=gm.SGD(lr), seed=seed
    )


def test_each_member_is_what_its_settings_give_alone():
    found = sweep(IRIS, {"optimizer.lr": [0.1, 0.01], "network.hidden": [[8], [6, 5]]}, progress=False)
    assert [m.settings for m in found.members] == [
        {"optimizer.lr": 0.1, "network.hidden": [8]},
        {"optimizer.lr": 0.1, "network.hidden": [6, 5]},
        {"optimizer.lr": 0.01, "network.hidden": [8]},
        {"optimizer.lr": 0.01, "network.hidden": [6, 5]},
    ]
    own = {**IRIS, "network": {"hidden": [6, 5]}, "optimizer": {"name": "sgd", "lr": 0.01}}
    alone = set_up(complete_config(own))
    alone.fit(progress=False)
    member = found[3]
    assert member.history["loss"] == alone.trainer.history["loss"]
    assert member.history["val_loss"] == alone.trainer.history["val_loss"]
    for name, value in alone.trainer.network.state_dict().items():
        np.testing.assert_array_equal(value, member.network.state_dict()[name])
    expected = experiments.score(alone.model(), alone.prepared.X_test, alone.y[alone.prepared.n_train :])
    assert member.scores["test"] == expected.scores
    assert member.config == alone.config


def test_data_are_read_once_for_members_that_have_the_same(monkeypatch):
    read = []
    load = experiments._load

    def noted(data):
        read.append(data["seed"])
        return load(data)

    monkeypatch.setattr(experiments, "_load", noted)
    found = sweep(IRIS, {"data.seed": [0, 1], "training.seed": [0, 1, 2]}, progress=False)
    assert read == [0, 1]
    assert len({id(m.model.preprocessor) for m in found.members}) == 2


def test_members_that_differ_in_epochs_and_batches_are_trained_as_they_say():
    found = sweep(
        IRIS,
        [
            {"training.epochs": 2, "training.batch_size": "full"},
            {"training.epochs": 3, "training.batch_size": 16},
            {"network.activation": "tanh"},
        ],
        progress=False,
    )
    assert [(len(m.history), m.history.steps) for m in found.members] == [(2, 2), (3, 18), (4, 12)]
    assert found[2].label == "activation=tanh"


def test_a_lost_loss_is_the_failure_of_its_member_alone():
    config = {"data": {"source": "diabetes"}, "network": {"hidden": [8]}, "training": {"epochs": 30}}
    found = sweep(
        config, {"optimizer": [{"name": "sgd", "lr": 1e4}, {"name": "sgd", "lr": 0.01}]}, progress=False
    )
    lost, good = found.members
    assert lost.failure.startswith("the loss was not finite in epoch")
    assert lost.scores == {}
    assert good.failure == ""
    assert found.best("test.loss") is good
    assert lost.failure in found.table().splitlines()[1]
    assert found.members[0].label == "optimizer=sgd(lr 10000)"


def test_a_function_gives_trainers_and_fit_takes_the_keys_that_it_has_not():
    found = sweep_trainers(
        make_trainer,
        {"lr": [0.05, 0.2], "batch_size": [8, 20]},
        X,
        Y,
        epochs=5,
        test=(X[:9], Y[:9]),
        progress=False,
    )
    assert [m.label for m in found.members] == [
        "lr=0.05, batch_size=8",
        "lr=0.05, batch_size=20",
        "lr=0.2, batch_size=8",
        "lr=0.2, batch_size=20",
    ]
    assert [m.history.steps for m in found.members] == [40, 15, 40, 15]
    alone = make_trainer(lr=0.2)
    alone.fit(X, Y, epochs=5, batch_size=20, progress=False)
    assert found[3].history["loss"] == alone.history["loss"]
    assert found[3].scores["test"]["loss"] == alone.evaluate(X[:9], Y[:9])["loss"]


def test_the_best_is_by_the_sense_of_its_score():
    found = sweep(IRIS, {"optimizer.lr": [1e-5, 0.3]}, progress=False)
    low, high = found.members
    assert found.best() is found.best("test.accuracy") is high
    assert found.best("val_loss") is high
    assert found.best("train.misclassification") is high
    assert low.value("test.accuracy") < high.value("test.accuracy")


def test_curves_and_the_plot_have_one_curve_a_member():
    found = sweep(IRIS, {"optimizer.lr": [0.1, 0.01]}, record_steps=True, progress=False)
    curves = found.curves("val_loss")
    assert list(curves) == ["lr=0.1", "lr=0.01"]
    assert curves["lr=0.1"] == ([1, 2, 3, 4], found[0].history["val_loss"])
    x, values = found.curves("step_loss")["lr=0.01"]
    assert (len(x), x[-1], values) == (12, 12.0, found[1].history.step_losses)
    figure = found.plot("loss")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["lr=0.1", "lr=0.01"]
    assert "lr=0.01 from" in str(figure.get_label())


def test_many_numbers_have_a_colour_scale():
    points = {"lr": [0.2, 0.1, 0.05, 0.02, 0.001]}
    found = sweep_trainers(make_trainer, points, X, Y, epochs=2, progress=False)
    _, bar = found.plot("loss").axes
    assert bar.get_ylabel() == "lr"
    assert bar.get_yscale() == "log"


def test_all_but_the_networks_can_be_written_as_json():
    found = sweep(IRIS, {"training.seed": [0, 1]}, progress=False)
    plain = json.loads(json.dumps(found.to_dict()))
    assert [m["settings"] for m in plain["members"]] == [{"training.seed": 0}, {"training.seed": 1}]
    assert plain["members"][1]["history"]["epochs"]["loss"] == found[1].history["loss"]


@given(
    st.dictionaries(
        st.sampled_from(["a.x", "b.x", "c", "d.y"]),
        st.lists(st.integers(), min_size=1, max_size=3, unique=True),
        min_size=1,
    )
)
def test_a_grid_has_every_combination_once_and_its_labels_differ(grid):
    points = grid_points(grid)
    assert len(points) == np.prod([len(values) for values in grid.values()])
    assert len({label_of(point) for point in points}) == len(points)
    assert all(point[key] in grid[key] for point in points for key in grid)
    assert grid_points(points) == points


@pytest.mark.parametrize(
    ("points", "kind", "message"),
    [
        ({}, ValueError, "at least one value of one setting"),
        ({"optimizer.lr": []}, ValueError, "at least one value of one setting"),
        ([], ValueError, "at least one value"),
        ({"optimizer.lr": 0.1}, TypeError, "got 0.1; expected a list of values"),
        ({"network.activation": "relu"}, TypeError, "got 'relu'; expected a list of values"),
        ({"optimizer.lr": [0.1, 0.1]}, ValueError, "twice"),
        ({"optimizer.rate": [0.1]}, ValueError, "sweep, rate=0.1: unknown key optimizer.rate"),
        ({"training.epochs": [1, 0]}, ValueError, "sweep, epochs=0: training.epochs is 0"),
        ({"training.device": ["quantum"]}, ValueError, "training.device"),
    ],
)
def test_a_mistake_is_one_clear_line_before_anything_is_trained(points, kind, message):
    with pytest.raises(kind, match=message):
        sweep(IRIS, points, progress=False)


def test_mistakes_of_a_sweep_over_a_function_are_one_clear_line():
    with pytest.raises(
        ValueError, match=r"unknown setting 'batchsize' of a sweep; did you mean 'batch_size'"
    ):
        sweep_trainers(make_trainer, {"batchsize": [1, 2]}, X, Y)
    one = make_trainer()
    with pytest.raises(ValueError, match="the same network twice"):
        sweep_trainers(lambda lr: one, {"lr": [1, 2]}, X, Y)
    found = sweep_trainers(make_trainer, {"lr": [0.1]}, X, Y, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"unknown score 'test\.loss' of a sweep"):
        found.best("test.loss")
    with pytest.raises(ValueError, match="no member of the sweep has the column 'los'; did you mean 'loss'"):
        found.curves("los")
