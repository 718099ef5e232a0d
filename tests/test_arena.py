from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumlp.arena import Arena, Run, Segment, aligned, lay_out, trainable_runs
from gpumlp.backend import ALIGNMENT, address, get_backend

shapes = st.lists(st.integers(1, 20), min_size=1, max_size=2).map(tuple)


@st.composite
def segments(draw, dtype="float32"):
    flags = draw(st.lists(st.tuples(shapes, st.booleans(), st.booleans()), min_size=1, max_size=8))
    return [
        Segment(f"s{i}", shape, dtype, decays=decays, trainable=trainable)
        for i, (shape, decays, trainable) in enumerate(flags)
    ]


def make(backend=None, dtype="float32"):
    """An arena of a weight (4, 3) that decays, a bias (3,), and a weight (3, 2) that decays."""
    given_segments = [
        Segment("0.weight", (4, 3), dtype, decays=True),
        Segment("0.bias", (3,), dtype),
        Segment("1.weight", (3, 2), dtype, decays=True),
    ]
    return Arena(backend or get_backend("cpu"), lay_out(given_segments))


@pytest.mark.parametrize(
    ("nbytes", "expected"), [(0, 0), (1, 256), (256, 256), (257, 512), (2**40 + 1, 2**40 + 256)]
)
def test_aligned_rounds_up_to_256_bytes(nbytes, expected):
    assert aligned(nbytes) == expected


@given(given_segments=segments())
def test_segments_are_aligned_and_do_not_overlap_and_those_that_decay_come_first(given_segments):
    placed = lay_out(given_segments)
    assert sorted(s.name for s in placed) == sorted(s.name for s in given_segments)
    end = 0
    for s in placed:
        assert s.offset % ALIGNMENT == 0
        assert s.offset >= end
        end = s.offset + s.nbytes
    flags = [s.decays for s in placed]
    assert flags == sorted(flags, reverse=True)
    for decays in (True, False):  # the order within is that of the layers
        order = [s.name for s in given_segments if s.decays == decays]
        assert [s.name for s in placed if s.decays == decays] == order


def test_flags_survive_the_layout():
    placed = lay_out(
        [Segment("a", (2,), "float64", trainable=False), Segment("b", (3,), "float64", decays=True)]
    )
    assert [(s.name, s.shape, s.dtype, s.decays, s.trainable) for s in placed] == [
        ("b", (3,), "float64", True, True),
        ("a", (2,), "float64", False, False),
    ]


def test_memory_starts_at_zero_and_at_an_aligned_address(backend):
    arena = make(backend)
    for name, view in arena.items():
        place = address(view)
        assert place % ALIGNMENT == 0, name
        assert not backend.to_host(view).any()


def test_offsets_are_of_64_bits():
    big = Segment("big", (3_000_000, 1000), "float64", decays=True)
    placed = lay_out([big, Segment("behind", (2,), "float64")])
    assert placed[1].offset == 24_000_000_000  # beyond 2^32, and a multiple of 256


def test_a_tensor_is_a_view_and_assignment_copies_into_the_arena(backend):
    arena = make(backend)
    view = arena["0.bias"]
    view[...] = backend.asarray(np.array([1.0, 2.0, 3.0], "float32"))
    start = arena.segments["0.bias"].offset // 4
    np.testing.assert_array_equal(backend.to_host(arena.flat("float32")[start : start + 3]), [1, 2, 3])
    arena.flat("float32")[start] = 9
    assert float(view[0]) == 9
    assert arena["0.bias"] is view


def test_flat_holds_all_segments_and_gaps_that_stay_zero(backend):
    arena = make(backend)
    for _, view in arena.items():
        view[...] = 1
    flat = np.array(backend.to_host(arena.flat("float32")))
    assert flat.size * 4 == arena.nbytes == 3 * ALIGNMENT
    assert flat.sum() == 12 + 3 + 6


def test_fill_copies_a_value_into_every_tensor_and_nothing_between(backend):
    arena = make(backend)
    values: dict[str, Any] = {"0.weight": np.full((4, 3), 2.0), "0.bias": np.array([1, 2, 3]), "1.weight": 5}
    arena.fill(values)
    for name, value in arena.to_host().items():
        np.testing.assert_array_equal(value, np.broadcast_to(values[name], value.shape))
    assert backend.to_host(arena.flat("float32")).sum() == 24 + 6 + 30


def test_layouts_are_equal_where_each_tensor_lies_at_the_same_place(backend):
    arena = make(backend)
    assert arena.layout == make(backend).layout == arena.twin().layout
    others = make(backend, "float64"), Arena(backend, list(arena.segments.values())[:2])
    assert all(other.layout != arena.layout for other in others)


def test_a_twin_has_the_layout_and_memory_of_its_own(backend):
    arena = make(backend)
    arena["0.weight"][...] = 5
    twin = arena.twin()
    assert twin.segments == arena.segments
    assert not backend.to_host(twin["0.weight"]).any()
    twin["0.weight"][...] = 7
    assert float(arena["0.weight"][0, 0]) == 5


def test_to_host_copies(backend):
    arena = make(backend)
    values = arena.to_host()
    assert set(values) == set(arena) == {"0.weight", "0.bias", "1.weight"}
    values["0.bias"][...] = 4
    assert float(arena["0.bias"][0]) == 0
    assert len(arena) == 3
    assert "0.bias" in arena
    assert "1.bias" not in arena


def test_arenas_can_share_memory():
    backend = get_backend("cpu")
    shared = backend.allocate(1024)
    first, second = (Arena(backend, [Segment(n, (4,), "float32")], shared) for n in "ab")
    first["a"][...] = 3
    np.testing.assert_array_equal(second["b"], 3)


def test_an_arena_of_nothing():
    arena = Arena(get_backend("cpu"), [])
    assert arena.nbytes == 0
    assert arena.flat("float32").size == 0
    assert arena.to_host() == {}


def test_runs_are_one_range_when_all_is_trained_alike():
    arena = make(dtype="float64")
    assert trainable_runs(arena.segments.values(), split_by_decay=False) == [Run(0, 3 * 32, False)]


def test_runs_split_where_decay_ends():
    arena = make(dtype="float64")  # 256 bytes are 32 elements; both weights come first
    assert trainable_runs(arena.segments.values(), split_by_decay=True) == [
        Run(0, 64, True),
        Run(64, 96, False),
    ]


def test_runs_leave_frozen_segments_out():
    placed = lay_out([Segment(n, (4,), "float32", trainable=n != "b") for n in "abc"])
    assert trainable_runs(placed, split_by_decay=False) == [Run(0, 64, False), Run(128, 192, False)]
    frozen = lay_out([Segment("a", (4,), "float32", trainable=False)])
    assert trainable_runs(frozen, split_by_decay=True) == []


@given(given_segments=segments(), split=st.booleans())
def test_runs_cover_every_trainable_element_once_and_no_other(given_segments, split):
    placed = lay_out(given_segments)
    arena = Arena(get_backend("cpu"), placed)
    hits = np.zeros(arena.nbytes // 4, int)
    decay = np.full(arena.nbytes // 4, -1)
    for run in trainable_runs(placed, split):
        hits[run.start : run.stop] += 1
        decay[run.start : run.stop] = run.decays
    for s in placed:
        span = slice(s.offset // 4, s.offset // 4 + s.size)
        assert (hits[span] == s.trainable).all()
        if s.trainable:
            assert (decay[span] == (s.decays and split)).all()
