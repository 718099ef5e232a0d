import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumlp.kernels import EPOCH, SEED, STEP
from gpumlp.kernels.philox import DROPOUT, NOISE, permutation, philox, random_normals, random_words
from gpumlp.kernels.reference import kernel
from gpumlp.program import new_control

# kat_vectors of Random123 1.14 (Salmon et al. 2011), philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

seeds = st.integers(0, 2**63 - 1)


def make_control(seed=0, step=0, epoch=0):
    control = new_control(seed)
    control[[STEP, EPOCH]] = step, epoch
    return control


def dropped(x, rate, backend, seed=0, step=0, layer=0):
    x = backend.asarray(x)
    y = backend.xp.empty_like(x)
    kernel("dropout")(backend.xp, make_control(seed, step), x, y, rate=rate, layer=layer)
    return np.array(backend.to_host(y))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected, backend):
    xp = backend.xp
    words = tuple(xp.asarray([word], dtype=xp.uint64) for word in counter)
    result = philox(xp, words, key[0] | key[1] << 32)
    assert tuple(int(word[0]) for word in result) == expected


def test_philox_agrees_with_numpys_own_over_many_counters():
    """NumPy's Philox is the 4x64 one, so the rounds are written out here with Python's whole numbers."""

    def by_hand(c, k):
        for _ in range(10):
            p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = (
                (p1 >> 32) ^ c[1] ^ k[0],
                p1 & 0xFFFFFFFF,
                (p0 >> 32) ^ c[3] ^ k[1],
                p0 & 0xFFFFFFFF,
            )
            k = ((k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF)
        return c

    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (4, 50), dtype=np.uint64)
    seed = 0x0123456789ABCDEF
    result = np.array(philox(np, tuple(counters), seed))
    for i in range(50):
        expected = by_hand(tuple(int(c) for c in counters[:, i]), (seed & 0xFFFFFFFF, seed >> 32))
        assert tuple(int(w) for w in result[:, i]) == expected


@given(n=st.integers(1, 300), seed=seeds, epoch=st.integers(0, 2**31))
def test_permutation_holds_every_row_once(n, seed, epoch):
    assert sorted(permutation(np, n, seed, epoch)) == list(range(n))


def test_permutation_is_that_of_seed_and_epoch(backend):
    first = np.array(backend.to_host(permutation(backend.xp, 200, 7, 3)))
    np.testing.assert_array_equal(first, permutation(np, 200, 7, 3))
    assert (first != permutation(np, 200, 8, 3)).any()
    assert (first != permutation(np, 200, 7, 4)).any()
    assert (first != permutation(np, 200, 7 + (1 << 32), 3)).any()  # the upper half of the seed counts


def test_permutation_puts_each_row_at_each_place_equally_often():
    """Chi-squared over 4 rows and 4 places, 2000 epochs: 9 degrees of freedom, 99.99 % below 33.7."""
    counts = np.zeros((4, 4))
    for epoch in range(2000):
        counts[np.arange(4), permutation(np, 4, 1, epoch)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 33.7


@given(rows=st.integers(1, 9), more=st.integers(1, 9), columns=st.integers(1, 13), seed=seeds)
def test_words_of_a_row_do_not_depend_on_how_many_rows_there_are(rows, more, columns, seed):
    few = random_words(np, rows, columns, DROPOUT, seed, 5, 2)
    many = random_words(np, rows + more, columns, DROPOUT, seed, 5, 2)
    np.testing.assert_array_equal(few, many[:rows])


def test_words_lie_a_quarter_of_a_row_apart():
    """The four words of counter (row, block, step, use and layer) are the columns block, block + blocks, ..."""
    seed, step, layer, columns = 9, 4, 6, 10
    blocks = 3
    words = random_words(np, 2, columns, NOISE, seed, step, layer)
    for row in range(2):
        for column in range(columns):
            lane, block = divmod(column, blocks)
            expected = philox(np, (row, block, step, (NOISE << 16) | layer), seed)[lane]
            assert words[row, column] == expected


@pytest.mark.parametrize("changed", [{"use": NOISE}, {"seed": 4}, {"step": 2}, {"layer": 1}])
def test_words_differ_by_use_seed_step_and_layer(changed):
    key = {"use": DROPOUT, "seed": 3, "step": 1, "layer": 0}
    first = random_words(np, 20, 8, **key)
    assert (first == random_words(np, 20, 8, **{**key, **changed})).mean() < 0.01


def test_normals_have_the_moments_of_the_normal_distribution(backend):
    """200,000 draws: the standard errors of mean, variance, skewness and kurtosis are 1, 1.4, 2.4, 4.9 / sqrt(n)."""
    z = np.array(backend.to_host(random_normals(backend.xp, 2000, 100, NOISE, 1, 2, 3)))
    error = 1 / np.sqrt(z.size)
    assert abs(z.mean()) < 4 * error
    assert abs(z.var() - 1) < 4 * 1.42 * error
    assert abs((z**3).mean()) < 4 * 3.9 * error
    assert abs((z**4).mean() - 3) < 4 * 9.8 * error
    assert np.isfinite(z).all()


def test_normals_of_a_row_are_not_correlated_with_each_other():
    """50,000 rows: a correlation of independent columns has the standard error 1 / sqrt(50000)."""
    correlation = np.corrcoef(random_normals(np, 50_000, 8, NOISE, 1, 2, 3).T)
    assert np.abs(correlation - np.eye(8)).max() < 4.5 / np.sqrt(50_000)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.93])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate, backend, dtype):
    """200,000 draws: the standard error of the share is sqrt(rate (1 - rate) / n)."""
    y = dropped(np.ones((2000, 100), dtype), rate, backend)
    share = (y == 0).mean()
    assert abs(share - rate) < 4 * np.sqrt(rate * (1 - rate) / y.size)
    np.testing.assert_array_equal(np.unique(y), np.array([0, 1 / (1 - rate)], dtype))


def test_dropout_of_rate_0_keeps_everything(backend):
    x = np.random.default_rng(0).normal(size=(5, 6))
    np.testing.assert_array_equal(dropped(x, 0.0, backend), x)


@given(rows=st.integers(1, 8), more=st.integers(1, 8), columns=st.integers(1, 9), seed=seeds)
def test_the_mask_of_a_row_does_not_depend_on_how_many_rows_the_batch_has(rows, more, columns, seed, backend):
    few = dropped(np.ones((rows, columns)), 0.5, backend, seed)
    many = dropped(np.ones((rows + more, columns)), 0.5, backend, seed)
    np.testing.assert_array_equal(few, many[:rows])


@pytest.mark.parametrize("changed", [{"seed": 1}, {"step": 1}, {"layer": 1}])
def test_the_mask_differs_by_seed_step_and_layer(changed, backend):
    x = np.ones((50, 20))
    assert (dropped(x, 0.5, backend) != dropped(x, 0.5, backend, **changed)).mean() > 0.4


def test_the_mask_is_the_same_in_both_types(backend):
    single = dropped(np.ones((20, 9), "float32"), 0.3, backend) > 0
    np.testing.assert_array_equal(single, dropped(np.ones((20, 9)), 0.3, backend) > 0)


def test_the_gradient_of_dropout_has_the_mask_of_the_forward_pass(backend):
    dy = np.random.default_rng(0).normal(size=(7, 5))
    control, xp = make_control(seed=3, step=8), backend.xp
    dx = xp.empty_like(backend.asarray(dy))
    kernel("dropout_grad")(xp, control, backend.asarray(dy), dx, rate=0.4, layer=2)
    mask = dropped(np.ones((7, 5)), 0.4, backend, seed=3, step=8, layer=2)
    np.testing.assert_allclose(backend.to_host(dx), dy * mask, rtol=1e-15)


def test_the_control_block_keys_the_mask():
    control = make_control(seed=5)
    assert control[SEED] == 5
    x = np.ones((10, 10))
    y = np.empty_like(x)
    kernel("dropout")(np, control, x, y, rate=0.5, layer=1)
    words = random_words(np, 10, 10, DROPOUT, 5, 0, 1)
    np.testing.assert_array_equal(y, 2.0 * (words >= 2**31))
