"""The device of a GPU on stand-ins for CuPy and nvmath: what it asks of them is right where there are neither."""

# mypy: ignore-errors
# The stand-ins are modules and classes put together from attributes, which types cannot follow.

import gc
import threading
import weakref

import numpy as np
import pytest

import gpumlp as gm
from gpumlp import executors, feed
from gpumlp.executors import graph, tailoring
from gpumlp.executors.gang import WORDS
from gpumlp.failure import NonFiniteLossError
from gpumlp.kernels.cuda import OPERATIONS
from tests.kernels.stand_in_cupy import CUDA, NULL, Stream

# --- trainings -------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_library(monkeypatch):
    """Networks of any size on the graph executor, with all products by the library."""
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(graph, "OWN_PRODUCT", 0)


@pytest.fixture(params=["graph", "library", "resident", "streaming"])
def kind(request, monkeypatch):
    monkeypatch.setattr(executors, "RESIDENT_MULTIPLY_ADDS", 1 << 40 if request.param == "resident" else 0)
    if request.param == "library":
        request.getfixturevalue("by_library")
    if request.param == "streaming":
        monkeypatch.setattr(feed, "_must_stream", lambda backend, *_: backend.is_gpu)
        monkeypatch.setattr(feed, "CHUNK_BYTES", 2000)
    return request.param


RNG = np.random.default_rng(1)
X = RNG.normal(size=(70, 5)).astype(np.float32)
LABELS = RNG.integers(0, 3, 70)


WIDE = (5, 24, 20, 18)  # no layer has few outputs: every product is the library's


def train(
    device, activation="relu", dtype="float32", epochs=2, batch_size=16, sizes=(5, 24, 16, 3), **settings
):
    network = gm.mlp(sizes, activation=activation, device=device, dtype=dtype, seed=1)
    precision = settings.pop("precision", "float32")
    trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.Adam(1e-2), seed=5, precision=precision)
    history = trainer.fit(X, LABELS, epochs=epochs, batch_size=batch_size, progress=False, **settings)
    return network.state_dict(), history["loss"], network.predict(X[:9])


def assert_same(found, expected, tolerance=1e-4):
    for name, value in expected[0].items():
        error = np.linalg.norm(found[0][name] - value) / max(np.linalg.norm(value), 1e-3)
        assert error < tolerance, name
    np.testing.assert_allclose(found[1], expected[1], rtol=tolerance)
    np.testing.assert_allclose(found[2], expected[2], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": gm.GELU(approximate="tanh")},
        {"dtype": "float64"},
        {"batch_size": None},
        {"batch_size": 1, "epochs": 1},
        {"validation_split": 0.2},
    ],
    ids=str,
)
def test_a_training_gives_what_the_cpu_gives(settings, kind, gpu):
    gpu()
    assert_same(train("fake:0", **settings), train("cpu", **settings))


def test_the_second_gpu_has_its_own_device_current_for_all_it_does(kind, gpu):
    gpu(1)
    assert_same(train("fake:1"), train("cpu"))
    assert CUDA.device == 0
    assert CUDA.stream is NULL


def test_what_is_done_by_hand_on_the_second_gpu_stays_there(gpu):
    backend = gpu(1)
    networks = [gm.mlp((5, 8, 3), device=device, seed=1) for device in ("fake:1", "cpu")]
    outputs, gradients = [], []
    for network in networks:
        network.load_state_dict(networks[0].copy().state_dict())
        network.layers[0].bias = np.full(8, 0.5)
        outputs.append(network.backend.to_host(network.forward(X)))
        gradients.append(network.backend.to_host(network.backward(np.ones((70, 3)))))
    assert backend.owns(networks[0].forward(X))
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_the_best_weights_are_restored_on_the_second_gpu(gpu):
    gpu(1)
    stop = gm.EarlyStopping(patience=1, restore_best=True)
    network = gm.mlp((5, 8, 3), device="fake:1", seed=1)
    trainer = gm.Trainer(network, loss="cross_entropy", optimizer=gm.SGD(2.0), seed=1, callbacks=[stop])
    history = trainer.fit(X, LABELS, epochs=30, validation_split=0.3, progress=False)
    arrays, values = trainer.state_dict()
    trainer.load_state_dict(arrays, values)
    assert len(history) < 30


@pytest.mark.parametrize("sorted_on_host_from", [10, 1 << 14])
def test_a_lost_loss_is_explained_as_on_the_cpu(sorted_on_host_from, kind, gpu, monkeypatch):
    monkeypatch.setattr(graph, "SORTED_BY_LIBRARY_FROM", sorted_on_host_from)
    gpu(1)
    bad = X.copy()
    bad[33] = 1e30
    messages = []
    for device in ("fake:1", "cpu"):
        network = gm.mlp((5, 16, 2), device=device, seed=1)
        with pytest.raises(NonFiniteLossError) as error:
            gm.Trainer(network, loss="mse", optimizer=gm.SGD(0.01), seed=5).fit(
                bad, X[:, :2], epochs=9, batch_size=16, progress=False
            )
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("first", [0, 1])
def test_a_part_of_a_larger_array_of_the_gpu_lies_aligned_for_the_kernels(first, gpu):
    device = gpu().device
    large = device.allocate(4 * (X.size + 1)).view(np.float32)
    # at an address that 16 does not divide, where first is 1
    part = large[first : first + X.size].reshape(X.shape)
    device.copy_in(part, X)
    found = feed.Shared().upload(gm.get_backend("fake:0"), part)
    assert found.data.ptr % 16 == 0
    assert (found is part) is (first == 0)
    np.testing.assert_array_equal(device.copy_out(found), X)


def test_a_graph_takes_epilogues_along(gpu, by_library):
    gpu()
    train("fake:0", sizes=WIDE)
    assert CUDA.graphs
    assert {"RELU_BIAS", "BIAS"} <= set(CUDA.products)


def test_a_graph_takes_gradients_along_in_epilogues_where_it_is_told_to(gpu, by_library, monkeypatch):
    monkeypatch.setattr(graph, "SLOW_EPILOGUES", frozenset())
    gpu()
    found = train("fake:0", sizes=WIDE)
    assert {"RELU_AUX_BIAS", "DRELU_BGRAD", "BGRADA", "BIAS"} <= set(CUDA.products)
    for name, value in train("cpu", sizes=WIDE)[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "types_of_a_product"),
    [
        ("float32", ("COMPUTE_32F", "CUDA_R_32F", "CUDA_R_32F", "CUDA_R_32F")),
        ("tf32", ("COMPUTE_32F_FAST_TF32", "CUDA_R_32F", "CUDA_R_32F", "CUDA_R_32F")),
        ("bf16", ("COMPUTE_32F", "CUDA_R_16BF", "CUDA_R_16BF", "CUDA_R_32F")),  # gradients of the weights
        ("bf16", ("COMPUTE_32F", "CUDA_R_16BF", "CUDA_R_16BF", "CUDA_R_16BF")),  # what lies between layers
    ],
)
def test_products_are_of_the_precision_that_was_asked_for(precision, types_of_a_product, gpu, by_library):
    gpu()
    found = train("fake:0", precision=precision)
    np.testing.assert_allclose(found[1], train("cpu")[1], rtol=3e-2)
    assert types_of_a_product in CUDA.types


@pytest.mark.parametrize("index", [0, 1])
def test_a_full_batch_in_tf32_reads_a_turned_copy_of_the_data(index, gpu, by_library, monkeypatch):
    gpu(index)
    turned = []
    turn = graph.GraphExecutor._turn_data
    monkeypatch.setattr(graph.GraphExecutor, "_turn_data", lambda e: turned.append(turn(e)))
    monkeypatch.setattr(graph, "TURNED_FROM", 0)
    monkeypatch.setattr("gpumlp.executors.turned.ROWS_TOGETHER", 1)
    found = train(f"fake:{index}", precision="tf32", batch_size=None)
    assert turned
    assert_same(found, train("cpu", batch_size=None))


def test_descriptions_are_destroyed_with_what_they_describe(gpu, library, by_library):
    gpu()
    counts = []
    for _ in range(3):
        train("fake:0", epochs=1)
        gc.collect()
        counts.append(sum(isinstance(t, tuple) or "compute" in t for t in library.things.values()))
    assert counts[0] == counts[1] == counts[2]


# --- the device by itself -----------------------------------------------------------------------------------------


def test_a_host_array_may_be_changed_as_soon_as_it_is_copied_in(gpu):
    device = gpu().device
    target, source = device.allocate(64), np.arange(64, dtype=np.uint8)
    device.copy_in(target, source)
    source[:] = 0
    assert device.copy_out(target).tolist() == list(range(64))


def test_a_staged_copy_is_there_once_it_was_waited_for(gpu):
    device = gpu().device
    target, source = device.allocate(64), device.pinned((64,), "uint8")
    source[:] = 7
    wait = device.stage(target, source)
    assert not device.copy_out(target).any()  # it does not hold up the stream
    wait()
    assert (device.copy_out(target) == 7).all()


def test_a_stream_of_the_users_own_and_the_devices_wait_for_each_other(gpu):
    device = gpu().device
    with device.active():
        own = CUDA.stream
    CUDA.waits.clear()
    with Stream(non_blocking=True) as users, device.active(), device.active():
        assert CUDA.stream is own
    assert CUDA.waits == [(own.ptr, users.ptr), (users.ptr, own.ptr)]


def test_the_devices_stream_is_in_order_with_the_default_one(gpu):
    with gpu().device.active():
        assert not CUDA.stream.non_blocking


def test_a_capture_that_fails_leaves_nothing_captured(gpu):
    device = gpu().device

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        device.capture([lambda: None, fail])
    assert CUDA.here.captures is None
    assert CUDA.stream is NULL


def test_a_graph_of_nothing_does_nothing(gpu):
    gpu().device.capture([])()
    assert CUDA.graphs == 0


def test_a_graph_does_its_launches_in_their_order_and_none_while_it_is_captured(gpu):
    done = []
    launches = [lambda i=i: CUDA.stream.put(lambda: done.append(i)) for i in range(3)]
    launch = gpu().device.capture(launches)
    assert done == []
    launch()
    launch()
    assert done == [0, 1, 2, 0, 1, 2]


def test_nothing_is_collected_while_a_graph_is_captured(gpu):
    """A graph that is destroyed meanwhile would end the capture."""
    seen = []
    device = gpu().device

    def look():
        seen.append(gc.isenabled())
        CUDA.stream.put(lambda: None)

    assert gc.isenabled()
    device.capture([look])
    assert seen == [False]
    assert gc.isenabled()


def test_threads_that_want_the_same_kernels_compile_them_once(gpu):
    device = gpu().device
    found = []
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait()
        found.append(device.kernels("float32", {"relu", "advance"}, walked={"relu"}))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert CUDA.modules == 1
    assert len(set(map(id, found))) == 1


def test_launches_of_other_sizes_do_not_take_shared_memory_from_a_large_one(gpu):
    device = gpu().device
    kernels = device.kernels("float32", (), walked=sorted(OPERATIONS))
    networks = device.allocate(8 * WORDS).view(np.int64)  # no step to do
    large = kernels.launch_resident(networks, 1, 256, 90 * 1024)
    kernels.launch_resident(networks, 1, 256, 1024)
    with device.active():
        large()


def test_tailored_kernels_are_compiled_once_and_give_the_bits_of_general_ones(kind, gpu):
    gpu()
    general, modules = train("fake:0"), CUDA.modules
    with tailoring.at_once():
        found = [train("fake:0") for _ in range(2)]
    # a part of the data that is streamed has steps of its own kind
    assert CUDA.modules == modules + 1
    for weights, losses, _ in found:
        for name, value in general[0].items():
            np.testing.assert_array_equal(weights[name], value)
        np.testing.assert_array_equal(losses, general[1])


def test_too_little_memory_says_what_was_asked_for_and_what_is_free(gpu):
    device = gpu().device
    CUDA.free = 1000
    with pytest.raises(
        MemoryError, match="the GPU has 1,000 of 1,000,000,000 bytes free; 2,000 were asked for"
    ):
        device.allocate(2000)


def test_an_array_of_another_gpu_is_copied_to_this_one(gpu):
    device = gpu(1).device
    other = CUDA.copied(np.arange(3.0))
    assert not device.owns(other)
    found = device.adopt(other)
    assert device.owns(found)
    assert found.tolist() == [0, 1, 2]


def test_a_member_of_a_gang_that_fails_lets_the_others_end(gpu, monkeypatch):
    gpu()
    y = np.stack([X[:, 0] * X[:, 1], np.sin(X[:, 2])], axis=1)
    trainers = [
        gm.Trainer(gm.mlp((5, 8, 2), device="fake:0"), loss="mse", optimizer=gm.SGD(lr), seed=1)
        for lr in (0.01, 1e6, 0.02)
    ]
    with pytest.raises(NonFiniteLossError):
        gm.fit_many(trainers, X, y, epochs=4, batch_size=16, progress=False)
    assert [len(t.history) for t in (trainers[0], trainers[2])] == [4, 4]
    alone = gm.Trainer(gm.mlp((5, 8, 2), device="fake:0"), loss="mse", optimizer=gm.SGD(0.01), seed=1)
    alone.fit(X, y, epochs=4, batch_size=16, progress=False)
    for name, value in alone.network.state_dict().items():
        np.testing.assert_array_equal(trainers[0].network.state_dict()[name], value)


def test_memory_goes_with_the_training_that_took_it(kind, gpu, monkeypatch):
    gpu()
    taken: list[weakref.ref] = []
    allocate = CUDA.allocate

    def noted(*given):
        array = allocate(*given)
        taken.append(weakref.ref(array.base))
        return array

    monkeypatch.setattr(CUDA, "allocate", noted, raising=False)
    left = []
    for _ in range(3):
        train("fake:0", epochs=1)
        gc.collect()  # layers and their network refer to each other
        left.append(sum(memory() is not None for memory in taken))
    assert len(taken) > 30
    assert left[0] == left[1] == left[2] <= 1  # the workspace of the library


def test_trainings_in_several_threads_do_not_meet(kind, gpu):
    gpu(1)
    expected, found = train("fake:1")[0], []
    threads = [threading.Thread(target=lambda: found.append(train("fake:1")[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for weights in found:
        for name, value in expected.items():
            np.testing.assert_array_equal(weights[name], value)
