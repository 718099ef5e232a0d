import dataclasses
import json
import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumlp.initializers import (
    INITIALIZERS,
    Constant,
    GlorotNormal,
    GlorotTruncatedNormal,
    GlorotUniform,
    HeNormal,
    HeTruncatedNormal,
    HeUniform,
    Initializer,
    LeCunNormal,
    LeCunTruncatedNormal,
    LeCunUniform,
    Normal,
    Orthogonal,
    TruncatedNormal,
    Uniform,
    compute_fans,
    get_initializer,
)

SHAPE = (300, 100)  # 30000 draws: the deviation's own standard error is 0.4 % (normal) or less


def draw(initializer: Initializer, shape=SHAPE, seed=0, fan=None) -> np.ndarray:
    return initializer(np.random.default_rng(seed), shape, fan)


# The deviation that the papers' formulas give for fan_in = 300, fan_out = 100.
GLOROT = math.sqrt(2 / 400)
HE_IN, HE_OUT = math.sqrt(2 / 300), math.sqrt(2 / 100)
LECUN = math.sqrt(1 / 300)

SCALED = [
    (GlorotUniform(), GLOROT, "uniform"),
    (GlorotNormal(), GLOROT, "normal"),
    (GlorotTruncatedNormal(), GLOROT, "truncated"),
    (HeUniform(), HE_IN, "uniform"),
    (HeNormal(), HE_IN, "normal"),
    (HeTruncatedNormal(), HE_IN, "truncated"),
    (HeUniform(mode="fan_out"), HE_OUT, "uniform"),
    (HeNormal(mode="fan_out"), HE_OUT, "normal"),
    (HeTruncatedNormal(mode="fan_out"), HE_OUT, "truncated"),
    (LeCunUniform(), LECUN, "uniform"),
    (LeCunNormal(), LECUN, "normal"),
    (LeCunTruncatedNormal(), LECUN, "truncated"),
    (GlorotUniform(gain=5 / 3), 5 / 3 * GLOROT, "uniform"),
    (HeNormal(gain=0.5), 0.5 * HE_IN, "normal"),
    (LeCunTruncatedNormal(gain=2), 2 * LECUN, "truncated"),
]


@pytest.mark.parametrize(("initializer", "std", "distribution"), SCALED, ids=lambda v: str(v))
def test_scaled_forms_have_the_mean_deviation_and_shape_of_their_formula(initializer, std, distribution):
    from scipy import stats

    values = draw(initializer)
    assert values.dtype == np.float64
    assert values.shape == SHAPE
    assert values.mean() == pytest.approx(0, abs=5 * std / math.sqrt(values.size))
    assert values.std() == pytest.approx(std, rel=0.02)
    # SciPy's own distributions; truncnorm(-2, 2) has the deviation 0.8796, so it is widened by as much
    reference = {
        "uniform": stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std),
        "normal": stats.norm(0, std),
        "truncated": stats.truncnorm(-2, 2, scale=std / stats.truncnorm(-2, 2).std()),
    }[distribution]
    assert stats.kstest(values.ravel(), reference.cdf).pvalue > 1e-3
    assert np.abs(values).max() <= reference.support()[1]


def test_truncation_correction_is_the_deviation_of_a_normal_cut_at_two_deviations():
    from scipy import stats

    from gpumlp.initializers import _STD_OF_TRUNCATED

    assert pytest.approx(stats.truncnorm(-2, 2).std(), rel=1e-14) == _STD_OF_TRUNCATED


def test_truncated_normal_takes_its_deviation_before_the_cut_as_keras_does():
    values = draw(TruncatedNormal(mean=1.0, std=0.5))
    assert values.min() >= 0.0
    assert values.max() <= 2.0
    assert values.max() > 1.95  # the bound is two deviations, not less
    assert values.mean() == pytest.approx(1.0, abs=0.01)
    assert values.std() == pytest.approx(0.5 * 0.8796, rel=0.02)


def test_normal_has_its_mean_and_deviation():
    values = draw(Normal(mean=0.035, std=0.1))
    assert values.mean() == pytest.approx(0.035, abs=0.003)
    assert values.std() == pytest.approx(0.1, rel=0.02)


def test_uniform_fills_its_interval_and_no_more():
    values = draw(Uniform(low=-1, high=3))
    assert values.min() >= -1
    assert values.max() < 3
    assert values.mean() == pytest.approx(1, abs=0.04)
    assert values.std() == pytest.approx(4 / math.sqrt(12), rel=0.02)  # (high - low) / sqrt(12)


def test_constants_by_class_name_and_number():
    for initializer, value in [(Constant(2.5), 2.5), (get_initializer("zeros"), 0), (get_initializer(7), 7)]:
        np.testing.assert_array_equal(draw(initializer, (2, 3)), np.full((2, 3), float(value)))
    assert get_initializer("ones") == Constant(1)
    assert get_initializer(np.float32(0.5)) == Constant(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (9, 9), (1, 5), (5, 1)])
def test_orthogonal_has_orthonormal_columns_when_tall_and_rows_when_wide(shape):
    values = draw(Orthogonal(gain=3), shape)
    assert values.shape == shape
    gram = values.T @ values if shape[0] >= shape[1] else values @ values.T
    np.testing.assert_allclose(gram, 9 * np.eye(min(shape)), atol=1e-12)


def test_orthogonal_matrices_are_not_of_one_sign_only():
    # when every rotation is equally likely an entry of a 3 x 3 has the mean 0 and the variance 1 / 3;
    # without the correction of the signs the first entry of LAPACK's Q is never positive
    rng = np.random.default_rng(1)
    first = np.array([Orthogonal()(rng, (3, 3))[0, 0] for _ in range(800)])
    assert abs(first.mean()) < 5 * math.sqrt(1 / 3 / 800)
    assert first.var() == pytest.approx(1 / 3, rel=0.15)


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_the_same_generator_state_gives_the_same_bits(name):
    initializer = get_initializer(name)
    np.testing.assert_array_equal(draw(initializer, (6, 4), seed=3), draw(initializer, (6, 4), seed=3))
    if not isinstance(initializer, Constant):
        assert not np.array_equal(draw(initializer, (6, 4), seed=3), draw(initializer, (6, 4), seed=4))


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_every_entry_comes_back_from_its_dict_and_from_its_repr(name):
    initializer = get_initializer(name)
    as_dict = json.loads(json.dumps(initializer.to_dict()))
    assert get_initializer(as_dict) == initializer
    assert eval(repr(initializer)) == initializer
    assert hash(get_initializer(as_dict)) == hash(initializer)
    assert get_initializer(initializer) is initializer


def test_settings_survive_the_dict_and_decide_equality():
    initializer = HeUniform(gain=np.float32(0.5), mode="fan_out")  # type: ignore[arg-type]
    assert initializer.to_dict() == {"name": "he_uniform", "gain": 0.5, "mode": "fan_out"}
    assert get_initializer(initializer.to_dict()) == initializer
    assert repr(initializer) == "HeUniform(gain=0.5, mode='fan_out')"
    assert initializer != HeUniform(gain=0.5)
    assert GlorotNormal() != LeCunNormal()


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ("xavier_uniform", GlorotUniform()),
        ("Xavier-Normal", GlorotNormal()),
        ("kaiming_uniform", HeUniform()),
        ("kaiming_normal", HeNormal()),
        (GlorotUniform, GlorotUniform()),
    ],
)
def test_aliases_classes_and_any_spelling_are_understood(alias, expected):
    assert get_initializer(alias) == expected


@pytest.mark.parametrize(
    ("shape", "fans"),
    [((), (1, 1)), ((8,), (8, 8)), ((8, 3), (8, 3)), ((5, 8, 3), (40, 15)), ((0, 3), (1, 3))],
)
def test_fans_are_read_from_the_shape_by_keras_rule(shape, fans):
    assert compute_fans(shape) == fans


@pytest.mark.parametrize(
    "initializer", [LeCunUniform(gain=1 / math.sqrt(3)), HeNormal(), GlorotTruncatedNormal()]
)
def test_a_bias_takes_the_fans_of_its_layer(initializer):
    own = draw(initializer, (20000,), fan=(25, 100)).std()
    assert own == pytest.approx(draw(initializer, (25, 100)).std(), rel=0.08)
    assert own > 2 * draw(initializer, (20000,)).std()  # by the rule for (n,), n is 20000


def test_pytorchs_default_bias_is_a_lecun_uniform_of_gain_one_over_root_three():
    # torch.nn.Linear.reset_parameters: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and bias
    values = draw(LeCunUniform(gain=1 / math.sqrt(3)), (20000,), fan=(16, 4))
    assert np.abs(values).max() <= 0.25
    assert np.abs(values).max() > 0.249


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(set(INITIALIZERS) - {"orthogonal"})), st.lists(st.integers(0, 6), max_size=3))
def test_any_shape_is_filled_with_finite_float64(name, shape):
    values = draw(get_initializer(name), tuple(shape))
    assert values.shape == tuple(shape)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()


def test_a_users_initializer_takes_part():
    @dataclasses.dataclass(frozen=True)
    class Identity(Initializer):
        name: ClassVar[str] = "identity"
        scale: float = 1.0

        def draw(self, rng, shape, fan):
            return self.scale * np.eye(*shape, dtype=np.float32)

    identity = get_initializer(Identity(scale=2))
    np.testing.assert_array_equal(draw(identity, (2, 2)), [[2, 0], [0, 2]])
    assert draw(identity, (2, 2)).dtype == np.float64
    assert identity.to_dict() == {"name": "identity", "scale": 2}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Normal(std=-0.1), ValueError, "std is -0.1; expected a finite number >= 0"),
        (lambda: Normal(mean=math.nan), ValueError, "mean is nan; expected a finite number"),
        (lambda: TruncatedNormal(std=math.inf), ValueError, "std is inf; expected a finite number >= 0"),
        (lambda: Uniform(low=1, high=0), ValueError, "low is 1.0 and high is 0.0; expected low <= high"),
        (lambda: Uniform(low=-1e308, high=1e308), ValueError, "beyond float64"),
        (lambda: Constant(math.inf), ValueError, "value is inf; expected a finite number"),
        (lambda: Constant("1"), TypeError, "value is '1'; expected a finite number"),  # type: ignore[arg-type]
        (lambda: Normal(std=True), TypeError, "std is True; expected a finite number >= 0"),
        (lambda: HeNormal(gain=0), ValueError, "gain is 0; expected a finite number > 0"),
        (lambda: Orthogonal(gain=-1), ValueError, "gain is -1; expected a finite number > 0"),
        (lambda: HeNormal(mode="fan_avg"), ValueError, "mode is 'fan_avg'; expected 'fan_in' or 'fan_out'"),  # type: ignore[arg-type]
        (lambda: draw(Orthogonal(), (3,)), ValueError, "give the bias another initializer"),
        (lambda: HeNormal()(0, (2, 2)), TypeError, "np.random.default_rng"),  # type: ignore[arg-type]
        (lambda: draw(HeNormal(), (3,), fan=(0, 3)), ValueError, r"fan is \(0, 3\); expected"),
        (lambda: get_initializer("he_norml"), ValueError, "did you mean 'he_normal'"),
        (lambda: get_initializer({"name": "normal", "sdt": 1}), ValueError, "did you mean 'std'"),
        (lambda: get_initializer({"std": 1}), ValueError, "needs a name"),
        (lambda: get_initializer(None), TypeError, "initializer is a NoneType"),  # type: ignore[arg-type]
        (lambda: get_initializer(True), TypeError, "initializer is a bool"),
    ],
)
def test_a_mistake_ends_in_one_line_that_says_what_was_expected(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
