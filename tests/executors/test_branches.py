"""Branches of a graph: launches that share no memory run side by side, and no others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpumlp as gm
from gpumlp.executors import branches, graph
from gpumlp.executors.branches import MAX_LANES, Access, access, assign_lanes, branch
from gpumlp.executors.graph import GraphExecutor
from gpumlp.kernels.cuda.device import Node
from tests.executors.programs import memory_of, step_program


def reading(*ranges):
    return Access(reads=list(ranges))


def writing(*ranges):
    return Access(writes=list(ranges))


A, B, C = (0, 10), (10, 20), (20, 30)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (writing(A), reading(A)),
        (reading(A), writing(A)),
        (writing(A), writing(A)),
        (writing((0, 6)), reading((5, 9))),
    ],
)
def test_a_launch_waits_for_one_that_uses_the_memory_that_it_writes_or_writes_what_it_uses(first, second):
    assert assign_lanes([first, second]) == [(0, ()), (0, ())]


@pytest.mark.parametrize(
    ("first", "second"), [(reading(A), reading(A)), (writing(A), writing(B)), (writing(A), reading(B))]
)
def test_launches_that_share_nothing_or_only_read_take_two_lanes(first, second):
    assert assign_lanes([first, second]) == [(0, ()), (1, ())]


def test_a_launch_follows_one_that_it_waits_for_and_names_the_others():
    found = assign_lanes([writing(A), writing(B), Access([A, B], [C])])
    assert found == [(0, ()), (1, ()), (1, (0,))]


def test_what_is_waited_for_through_another_is_not_named():
    # the third waits for the second, and so for the first
    assert assign_lanes([writing(A), Access([A], [B]), Access([A, B], [C])]) == [(0, ()), (0, ()), (0, ())]


def test_a_lane_is_taken_again_by_what_waits_for_its_last_launch():
    found = assign_lanes([writing(A), Access([A], [B]), Access([A], [C]), Access([B, C], [A]), reading(A)])
    assert [lane for lane, _ in found] == [0, 0, 1, 1, 1]
    assert [after for _, after in found] == [(), (), (0,), (1,), ()]


def test_a_launch_follows_the_latest_that_it_waits_for():
    d, e = (30, 40), (40, 50)
    found = assign_lanes([writing(A), writing(B), writing(C), Access([B, C], [d]), Access([B, d], [e])])
    assert found[-1] == (2, ())


def test_what_is_waited_for_through_another_lane_is_not_named():
    d, e = (30, 40), (40, 50)
    found = assign_lanes([writing(A), writing(B), Access([A, B], [C]), writing(d), Access([A, B, C, d], [e])])
    assert found[-1][1] == (2,)


def test_where_every_lane_is_taken_the_one_that_ends_first_goes_on():
    assert [lane for lane, _ in assign_lanes([writing((i, i + 1)) for i in range(6)])] == [0, 1, 2, 3, 0, 1]


RANGE = st.tuples(st.integers(0, 12), st.integers(1, 3)).map(lambda t: (t[0], t[0] + t[1]))
ACCESS = st.builds(Access, st.lists(RANGE, max_size=3), st.lists(RANGE, max_size=2))


@given(st.lists(ACCESS, max_size=30))
def test_launches_whose_order_matters_are_always_in_order(accesses):
    """Behind each other in a lane, or one named by the other, directly or through others."""
    placed = assign_lanes(accesses)
    before: list[set[int]] = []
    tails: dict[int, int] = {}
    for j, (lane, after) in enumerate(placed):
        assert 0 <= lane < MAX_LANES
        waited = {*after, *([tails[lane]] if lane in tails else [])}
        before.append(waited.union(*(before[i] for i in waited)))
        tails[lane] = j

    def overlap(one, other):
        return any(a < d and c < b for a, b in one for c, d in other)

    for j, own in enumerate(accesses):
        for i, earlier in enumerate(accesses[:j]):
            if overlap(own.reads, earlier.writes) or overlap(own.writes, earlier.writes + earlier.reads):
                assert i in before[j]


# --- of programs --------------------------------------------------------------------------------------------------


def linked_step(backend, net):
    program = step_program(net)
    executor = GraphExecutor(backend, memory_of(net))
    executor.prepare(program)
    return executor, executor.linked(program)


@pytest.fixture
def by_library(monkeypatch):
    """All products by the device's library, whatever their size."""
    monkeypatch.setattr(graph, "OWN_PRODUCT", 0)


def on_stand_in(activation="relu"):
    """A network without layers of few outputs, whose gradients are one launch."""
    return gm.mlp((7, 130, 40, 18), activation=activation, seed=3, device="stand-in")


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_gradients_of_weights_and_of_inputs_run_side_by_side(activation, stand_in, by_library):
    executor, linked = linked_step(stand_in(), on_stand_in(activation))
    nodes = branch(linked, [lambda: None] * len(linked.groups), executor.memory, 132)
    kernels = [linked.steps[first] for first, _ in linked.groups]
    gradients = [
        node.lane
        for node, step in zip(nodes, kernels, strict=True)
        if step.call is not None and step.call.operands[2].arena == "gradients"
    ]
    assert len(gradients) == 3
    assert len(set(gradients)) == 3
    waiting = next(n for n, s in zip(nodes, kernels, strict=True) if s.operation == "check_gradients")
    assert (
        len(waiting.after) == 3
    )  # for all three, one of them in its own lane, and for sums of the last layer


@pytest.mark.parametrize(("multiprocessors", "in_epilogue"), [(1, True), (132, False)])
def test_biases_have_their_gradients_in_an_epilogue_only_beside_a_product_that_fills_the_gpu(
    multiprocessors, in_epilogue, stand_in, by_library
):
    backend = stand_in()
    backend.device.multiprocessors = multiprocessors
    net = gm.mlp((130, 140, 150, 130), activation="relu", seed=3, device="stand-in")
    program = step_program(net)
    executor = GraphExecutor(backend, memory_of(net))
    executor.prepare(program)
    kernels = {call.kernel for call in executor.linked(program).program.calls}
    assert ("product_bias_grad" in kernels) == in_epilogue
    assert ("relu_grad_bias" in kernels) == (not in_epilogue)
    assert "product_relu_grad" not in kernels  # slower than what stands in its place


def test_products_that_fill_the_gpu_stay_in_one_lane(stand_in):
    executor, linked = linked_step(stand_in(), on_stand_in())
    launches = [lambda: None] * len(linked.groups)
    assert branch(linked, launches, executor.memory, multiprocessors=0) == [
        Node(launch) for launch in launches
    ]


def test_what_a_step_writes_is_in_its_access_and_so_is_its_working_memory(stand_in):
    executor, linked = linked_step(stand_in(), on_stand_in())
    starts = {step.operation: i for i, step in enumerate(linked.steps)}
    loss, finish = starts["softmax_cross_entropy_labels"], starts["finish_loss"]
    own, behind = (access(linked, [i], executor.memory) for i in (loss, finish))
    assert set(own.writes) & set(behind.writes)  # the losses of the rows
    control = executor.memory.arrays["control"]
    assert any(start == control.ctypes.data for start, _ in behind.writes)


@pytest.mark.parametrize("order", ["ascending", "descending", "random:3"])
def test_branches_in_any_order_give_the_bits_of_one_lane(order, stand_in, monkeypatch):
    found = []
    for lanes in (branches.MAX_LANES, 1):
        monkeypatch.setattr(branches, "MAX_LANES", lanes)
        stand_in(order=order)
        rng = np.random.default_rng(0)
        trainer = gm.Trainer(on_stand_in("tanh"), loss="cross_entropy", optimizer="adam", seed=5)
        monkeypatch.setattr("gpumlp.executors.RESIDENT_MULTIPLY_ADDS", 0)
        trainer.fit(rng.normal(size=(70, 7)), rng.integers(0, 3, 70), epochs=3, batch_size=16, progress=False)
        found.append(trainer.network.state_dict())
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value)


def test_a_branch_that_did_not_wait_would_be_noticed(stand_in, monkeypatch):
    """The stand-in runs branches in another order than they stand in: this test tests those above."""
    plain = branches.assign_lanes

    def impatient(accesses):  # the update does not wait for all gradients
        *others, (lane, _) = plain(accesses)
        return [*others, (lane, ())]

    monkeypatch.setattr(branches, "assign_lanes", impatient)
    with pytest.raises(AssertionError):
        test_branches_in_any_order_give_the_bits_of_one_lane("ascending", stand_in, monkeypatch)
