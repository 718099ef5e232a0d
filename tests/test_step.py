"""The programs of training: one step worked by hand, and what stands in them."""

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import step
from gpumlp.kernels import CATALOGUE
from gpumlp.losses import get_loss
from gpumlp.program import call_operands
from gpumlp.step import DataShape, training_plan

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(10, 3)), RNG.integers(0, 2, 10)

# A 2-2-1 network with ReLU, the mean squared error of two rows, and gradient descent with the rate 0.5. All numbers
# are sums of a few powers of 2, and so exact in float32 too.
#
#   x = [[1, 2], [2, -1]]    weight1 = [[0.5, -1], [0.25, 0.5]]  bias1 = [0, 0.5]
#   t = [[1], [3]]           weight2 = [[2], [-1]]               bias2 = [0.5]
#
#   z = x weight1 + bias1 = [[1, 0.5], [0.75, -2]]     h = relu(z) = [[1, 0.5], [0.75, 0]]
#   y = h weight2 + bias2 = [[2], [2]]                 loss = ((2 - 1)^2 + (2 - 3)^2) / 2 = 1
#   dy = 2 (y - t) / 2 = [[1], [-1]]
#   dweight2 = h' dy = [[0.25], [0.5]]                 dbias2 = 1 - 1 = [0]
#   dh = dy weight2' = [[2, -1], [-2, 1]]              dz = dh where z > 0 = [[2, -1], [-2, 0]]
#   dweight1 = x' dz = [[-2, -1], [6, -2]]             dbias1 = [0, -1]
#
#   weight1 - 0.5 dweight1 = [[1.5, -0.5], [-2.75, 1.5]]   bias1 - 0.5 dbias1 = [0, 1]
#   weight2 - 0.5 dweight2 = [[1.875], [-1.25]]            bias2 = [0.5]
BY_HAND_X, BY_HAND_T = np.array([[1.0, 2.0], [2.0, -1.0]]), np.array([[1.0], [3.0]])
BY_HAND_GRADIENTS = {
    "0.weight": [[-2, -1], [6, -2]],
    "0.bias": [0, -1],
    "2.weight": [[0.25], [0.5]],
    "2.bias": [0],
}
BY_HAND_AFTER = {
    "0.weight": [[1.5, -0.5], [-2.75, 1.5]],
    "0.bias": [0, 1],
    "2.weight": [[1.875], [-1.25]],
    "2.bias": [0.5],
}


def by_hand(dtype, backend):
    network = gm.Sequential(gm.Linear(2, 2), gm.ReLU(), gm.Linear(2, 1), dtype=dtype, device=backend)
    network[0].weight, network[0].bias = [[0.5, -1], [0.25, 0.5]], [0, 0.5]
    network[2].weight, network[2].bias = [[2], [-1]], [0.5]
    return network


@pytest.mark.parametrize("shuffle", [False, True])
def test_one_step_of_training_is_that_worked_by_hand(shuffle, dtype, backend):
    network = by_hand(dtype, backend)
    trainer = gm.Trainer(network, loss="mse", optimizer=gm.SGD(lr=0.5))
    history = trainer.fit(BY_HAND_X, BY_HAND_T, epochs=1, batch_size=None, shuffle=shuffle, progress=False)
    assert history["loss"] == [1.0]
    for name, expected in BY_HAND_AFTER.items():
        np.testing.assert_array_equal(network.state_dict()[name], expected, err_msg=name)
    for name, expected in BY_HAND_GRADIENTS.items():
        np.testing.assert_array_equal(network.gradients.to_host()[name], expected, err_msg=name)


def test_forward_and_backward_by_hand_give_the_same_numbers(dtype, backend):
    network = by_hand(dtype, backend)
    y = backend.to_host(network.forward(backend.asarray(BY_HAND_X)))
    np.testing.assert_array_equal(y, [[2], [2]])
    dx = backend.to_host(network.backward(backend.asarray(np.array([[1.0], [-1.0]]))))
    # dz weight1' = [[2, -1], [-2, 0]] [[0.5, 0.25], [-1, 0.5]]
    np.testing.assert_array_equal(dx, [[2, 0], [-1, -0.5]])
    for name, expected in BY_HAND_GRADIENTS.items():
        np.testing.assert_array_equal(network.gradients.to_host()[name], expected, err_msg=name)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_ring_holds_the_loss_of_a_step_and_the_weight_of_its_rows(reduction, training_step):
    """From these the loss of an epoch is put together, short last batch and all."""
    weight = RNG.uniform(0.5, 2, 10)
    network = gm.mlp([3, 2], dtype="float64", device="cpu")
    step = training_step(network, gm.CrossEntropy(reduction=reduction), X, Y, weight, batch_rows=4)
    step.run(3)
    weights = [weight[:4].sum(), weight[4:8].sum(), weight[8:].sum()]
    np.testing.assert_allclose(np.array(step.ring)[:3, 1], weights, rtol=1e-14)
    whole = training_step(network, gm.CrossEntropy(reduction=reduction), X, Y, weight).loss()
    losses = np.array(step.ring)[:3, 0]
    total = losses @ weights / weight.sum() if reduction == "mean" else losses.sum()
    np.testing.assert_allclose(total, whole, rtol=1e-13)


# --- what the programs hold ------------------------------------------------------------------------------------------


def kernels(program):
    return [call.kernel for call in program.calls]


def make(training_step, *layers, batch_rows=None, shuffle=False, **settings):
    network = gm.Sequential(
        *(layers or (gm.Linear(3, 4), gm.ReLU(), gm.Linear(4, 2))), in_features=3, device="cpu"
    )
    return training_step(network, "cross_entropy", X, Y, batch_rows=batch_rows, shuffle=shuffle, **settings)


def test_the_first_layer_takes_no_gradient_of_its_input(training_step):
    program = make(training_step).plan.batch
    # three products of the second layer, two of the first
    assert kernels(program).count("matmul") == 5


def test_nothing_is_computed_below_the_first_layer_that_learns(training_step):
    layers = gm.Linear(3, 4).freeze(), gm.ReLU(), gm.Linear(4, 2)
    program = make(training_step, *layers).plan.batch
    assert kernels(program).count("matmul") == 3
    assert "relu_grad" not in kernels(program)


def test_a_network_that_learns_nothing_has_no_backward_pass(training_step):
    program = make(training_step, gm.Linear(3, 4).freeze(), gm.ReLU(), gm.Linear(4, 2).freeze()).plan.batch
    assert kernels(program).count("matmul") == 2
    assert not {"relu_grad", "sgd"} & set(kernels(program))


def test_the_loss_is_checked_before_the_backward_pass_and_gradients_before_the_update(training_step):
    step = make(training_step, optimizer=gm.SGD(0.1, clip_value=1.0, clip_norm=2.0))
    names, marks = kernels(step.plan.batch), step.plan.batch.marks
    assert names[marks["backward"] - 1] == "check_loss"
    assert names[marks["update"] :] == ["check_gradients", "clip_by_value", "clip_by_norm", "sgd"]
    changed = [
        i
        for i, call in enumerate(step.plan.batch.calls)
        for o, name in zip(call.operands, CATALOGUE[call.kernel].operands, strict=True)
        if o is not None and o.arena == "parameters" and name in CATALOGUE[call.kernel].updates
    ]
    assert min(changed) >= marks["update"]


def test_an_update_is_one_call_and_two_where_biases_do_not_decay(training_step):
    plain = make(training_step, optimizer=gm.Adam(0.1))
    decaying = make(training_step, optimizer=gm.AdamW(0.1, weight_decay=0.1))
    everything = make(training_step, optimizer=gm.AdamW(0.1, weight_decay=0.1, decay_bias=True))
    assert [kernels(s.plan.batch).count("adam") for s in (plain, decaying, everything)] == [1, 2, 1]
    decays = [c.scalars["weight_decay"] for c in decaying.plan.batch.calls if c.kernel == "adam"]
    assert decays == [0.1, 0.0]


@pytest.mark.parametrize(
    ("batch_rows", "steps", "last"),
    [(None, 1, None), (10, 1, None), (5, 2, None), (4, 3, 2), (1, 10, None), (9, 2, 1)],
)
def test_an_epoch_has_the_steps_that_cover_the_rows(batch_rows, steps, last, training_step):
    plan = make(training_step, batch_rows=batch_rows).plan
    assert plan.steps == steps
    assert (plan.last.rows if plan.last else None) == last
    assert plan.batch.rows * (steps - (last is not None)) + (last or 0) == 10


def test_an_epoch_is_shuffled_where_it_has_batches(training_step):
    assert kernels(make(training_step, batch_rows=4, shuffle=True).plan.begin) == ["shuffle"]
    assert kernels(make(training_step, batch_rows=4).plan.begin) == ["copy_rows"]
    assert kernels(make(training_step, shuffle=True).plan.begin) == ["copy_rows"]  # a full batch has no order


def test_labels_values_and_weights_are_gathered_as_what_they_are(training_step):
    assert kernels(make(training_step, batch_rows=4).plan.batch)[:2] == ["gather_rows", "gather_labels"]
    weighted = make(training_step, batch_rows=4, weight=np.ones(10))
    assert kernels(weighted.plan.batch)[:3] == ["gather_rows", "gather_labels", "gather_weights"]
    network = gm.mlp([3, 2], device="cpu")
    values = training_step(network, "mse", X, RNG.normal(size=(10, 2)), batch_rows=4)
    assert kernels(values.plan.batch)[:2] == ["gather_rows", "gather_rows"]


def test_every_tensor_is_written_before_it_is_read(training_step):
    layers = gm.Linear(3, 4), gm.BatchNorm1d(4), gm.GELU(), gm.Dropout(), gm.LayerNorm(4), gm.Linear(4, 2)
    program = make(training_step, *layers, batch_rows=4).plan.batch
    written: set[str] = set()
    for call in program.calls:
        reads, writes = call_operands(call)
        for o in reads:
            assert o.arena not in ("activations", "gradients") or o.name in written or not o.name, (
                f"{o} in {call}"
            )
        written |= {o.name for o in writes}


def test_running_statistics_change_after_the_loss_was_found_finite(training_step):
    program = make(training_step, gm.Linear(3, 4), gm.BatchNorm1d(4), gm.Linear(4, 2)).plan.batch
    assert kernels(program).index("running_average") > program.marks["update"]


# --- the programs of trainings that are alike ------------------------------------------------------------------------


def plan_of(
    layers=None, loss="cross_entropy", optimizer=None, rows=10, batch_rows=4, dtype="float32", **data
):
    network = gm.Sequential(
        layers or [gm.Linear(3, 4), gm.ReLU(), gm.Dropout(0.5), gm.Linear(4, 2)], dtype=dtype, device="cpu"
    )
    shape = DataShape(rows, rows, 3, **{"target": (), "weighted": False, **data})
    return training_plan(network, get_loss(loss), optimizer or gm.SGD(0.1), shape, batch_rows, True)


def test_trainings_that_are_alike_have_the_same_programs():
    """Whatever their rates, first values and weights of classes."""
    layers = [gm.Linear(3, 4, weight_init="zeros"), gm.ReLU(), gm.Dropout(0.5), gm.Linear(4, 2)]
    loss = gm.CrossEntropy(class_weight=[1.0, 2.0])
    assert plan_of() is plan_of(layers, loss, gm.SGD(gm.StepDecay(0.5, every=2)))


def frozen():
    return [gm.Linear(3, 4).freeze(), gm.ReLU(), gm.Dropout(0.5), gm.Linear(4, 2)]


def dropping_less():
    return [gm.Linear(3, 4), gm.ReLU(), gm.Dropout(0.25), gm.Linear(4, 2)]


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": frozen()},
        {"layers": dropping_less()},
        {"loss": gm.CrossEntropy(label_smoothing=0.1)},
        {"loss": gm.CrossEntropy(reduction="sum")},
        {"optimizer": gm.SGD(0.1, momentum=0.5)},
        {"optimizer": gm.SGD(0.1, weight_decay=0.5)},
        {"rows": 11},
        {"batch_rows": 5},
        {"dtype": "float64"},
        {"weighted": True},
    ],
)
def test_trainings_that_differ_have_other_programs(settings):
    assert plan_of() != plan_of(**settings)


def test_programs_follow_a_setting_that_is_changed_in_place():
    def units(slope):
        return [gm.Linear(3, 2), gm.layers.PerUnit([gm.LeakyReLU(slope), gm.Tanh()])]

    optimizer, layers = gm.SGD(0.1, momentum=0.5), units(0.5)
    before = plan_of(layers, optimizer=optimizer)
    optimizer.momentum = 0.25
    assert plan_of(units(0.5), optimizer=optimizer) == plan_of(
        units(0.5), optimizer=gm.SGD(0.1, momentum=0.25)
    )
    changed = units(0.5)
    changed[1].units[0].negative_slope = 0.25
    assert plan_of(changed) == plan_of(units(0.25)) != before


def test_what_classes_of_a_users_own_write_is_written_anew():
    class Weighed(gm.MSE):
        scale = 1.0

        def emit(self, b, *operands):
            super().emit(b, *operands)
            b.call("clip_by_value", operands[-1], limit=self.scale)

    def limits():
        plan = plan_of([gm.Linear(3, 2)], Weighed(), target=(2,))
        return [call.scalars["limit"] for call in plan.batch.calls if call.kernel == "clip_by_value"]

    assert limits() == [1.0]
    Weighed.scale = 2.0
    assert limits() == [2.0]


def test_a_layer_that_was_given_an_attribute_trains():
    noted = gm.Linear(3, 2)
    noted.notes = ["the first"]
    assert plan_of([noted]) == plan_of([gm.Linear(3, 2)])


def test_so_many_plans_are_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(step, "_PLANS", {})
    monkeypatch.setattr(step, "MOST_PLANS", 2)
    first = plan_of(rows=10)
    plan_of(rows=11)
    assert plan_of(rows=10) is first  # used again: the other goes first
    plan_of(rows=12)
    assert plan_of(rows=10) is first
    assert len(step._PLANS) == 2
