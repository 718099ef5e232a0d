import copy
import itertools
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpumlp.schedules import (
    SCHEDULES,
    ConstantRate,
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    OneCycle,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
    get_schedule,
)

# Recorded with torch 2.13.0: SGD([...], lr=0.1), then n times: note param_groups[0]["lr"]; optimizer.step();
# scheduler.step(). `torch_schedulers` below builds the same schedulers.
RECORDED = {
    "step": [0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0125],
    "exponential": [0.1, 0.085, 0.07225, 0.0614125, 0.052200625, 0.04437053125],
    "cosine": [
        *(0.1, 0.0965745789630079, 0.08681980515339463, 0.07222075445642905, 0.055, 0.03777924554357096),
        *(0.023180194846605363, 0.013425421036992097, 0.01),
    ],
    "warm_cosine": [
        *(0.025, 0.05, 0.07500000000000001, 0.1, 0.09509795896116975, 0.08136274519200731),
        *(0.061514786230837566, 0.03948521376916245, 0.019637254807992697, 0.005902041038830259),
    ],
    "one_cycle_cos": [
        *(0.004, 0.052, 0.1, 0.09504846320134738, 0.0811745653949763, 0.06112620219362893),
        *(0.03887419780637107, 0.0188258346050237, 0.004951936798652629, 4e-07),
    ],
    "one_cycle_linear": [
        *(0.01, 0.03368421052631579, 0.057368421052631575, 0.08105263157894736, 0.097225, 0.08335),
        *(0.069475, 0.0556, 0.041725, 0.02785, 0.013975, 0.0001),
    ],
}
OURS: dict[str, Schedule] = {
    "step": StepDecay(0.1, 0.5, every=3, unit="steps"),
    "exponential": ExponentialDecay(0.1, 0.85, every=1, unit="steps"),
    "cosine": CosineDecay(0.1, final=0.01, total=8, unit="steps"),
    "warm_cosine": CosineDecay(0.1, final=0.001, warmup=3, unit="steps"),
    "one_cycle_cos": OneCycle(0.1),
    "one_cycle_linear": OneCycle(
        0.1, pct_start=0.4, div_factor=10, final_div_factor=100, anneal="linear", total=12, unit="steps"
    ),
}

# Recorded with torch 2.13.0: the rate after each ReduceLROnPlateau.step(value), starting from lr=0.1.
LOSSES = [1.0, 0.9, 0.9, 0.95, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.79995, 0.7]
PLATEAUS = [
    (LOSSES, {"factor": 0.5, "patience": 2}, [0.1] * 4 + [0.05] * 4 + [0.025] * 3 + [0.0125] * 3),
    (
        LOSSES,
        {"factor": 0.5, "patience": 1, "cooldown": 2, "min_lr": 0.03},
        [0.1] * 3 + [0.05] * 4 + [0.03] * 7,
    ),
    (
        [1.0] * 14,
        {"factor": 0.5, "patience": 1, "cooldown": 3},
        [0.1] * 2 + [0.05] * 5 + [0.025] * 5 + [0.0125] * 2,
    ),
    (
        [1.0, 1.05, 1.08, 1.2, 1.2, 1.25, 1.2],
        {"mode": "max", "factor": 0.5, "patience": 1, "threshold": 0.1},
        [0.1] * 2 + [0.05] * 3 + [0.025] * 2,
    ),
    (
        [0.5, 0.6, 0.605, 0.6, 0.7, 0.7, 0.7, 0.7],
        {"mode": "max", "patience": 1, "threshold": 0.01, "threshold_mode": "abs"},
        [0.1] * 3 + [0.01] * 3 + [0.001] * 2,
    ),
]

EXAMPLES: list[Schedule] = [
    ConstantRate(0.1),
    *OURS.values(),
    ExponentialDecay(0.05, 0.85, every=400, unit="steps", staircase=True),
    InverseScaling(0.2, power=0.3, unit="steps"),
    ReduceOnPlateau(0.1, factor=0.2, patience=3, monitor="val_accuracy", mode="max"),
]


def steps_to(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_rates_are_pytorchs_recorded_ones(name):
    recorded = RECORDED[name]
    rates = OURS[name].rates(steps_to(len(recorded)), 5, len(recorded))
    assert rates.dtype == np.float64
    np.testing.assert_allclose(rates, recorded, rtol=1e-10, atol=1e-15)


def test_rates_are_those_of_the_torch_that_is_installed():
    torch = pytest.importorskip("torch")
    s = torch.optim.lr_scheduler

    def warm_cosine(optimizer):
        linear = s.LinearLR(optimizer, start_factor=1 / 4, total_iters=3)
        cosine = s.CosineAnnealingLR(optimizer, T_max=7, eta_min=0.001)
        return s.SequentialLR(optimizer, [linear, cosine], [3])

    torch_schedulers = {
        "step": lambda o: s.StepLR(o, step_size=3, gamma=0.5),
        "exponential": lambda o: s.ExponentialLR(o, gamma=0.85),
        "cosine": lambda o: s.CosineAnnealingLR(o, T_max=8, eta_min=0.01),
        "warm_cosine": warm_cosine,
        "one_cycle_cos": lambda o: s.OneCycleLR(o, max_lr=0.1, total_steps=10),
        "one_cycle_linear": lambda o: s.OneCycleLR(
            o, 0.1, 12, pct_start=0.4, div_factor=10.0, final_div_factor=100.0, anneal_strategy="linear"
        ),
    }
    for name, make in torch_schedulers.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SequentialLR warns of its own use of an old argument
            scheduler = make(optimizer)
            expected = []
            for _ in RECORDED[name]:
                expected.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
        rates = OURS[name].rates(steps_to(len(expected)), 5, len(expected))
        np.testing.assert_allclose(rates, expected, rtol=1e-10, atol=1e-15, err_msg=name)


def test_one_cycle_is_torchs_at_every_position_of_the_peak():
    torch = pytest.importorskip("torch")
    for pct_start, total in itertools.product([0.0, 0.1, 0.25, 0.3, 0.77], [2, 3, 7, 40]):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total, pct_start=pct_start)
        expected = []
        for _ in range(total):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        rates = OneCycle(0.1, pct_start=pct_start).rates(steps_to(total), 1, total)
        np.testing.assert_allclose(rates, expected, rtol=1e-10, atol=1e-15, err_msg=f"{pct_start} of {total}")


def test_step_decay_counts_epochs_of_the_given_number_of_steps():
    rates = StepDecay(1.0, 0.1, every=2).rates(steps_to(18), 3, 18)
    np.testing.assert_allclose(rates, [1] * 6 + [0.1] * 6 + [0.01] * 6, rtol=1e-14)


def test_exponential_staircase_holds_the_rate_for_each_period():
    # report tnm112: lr 0.05, x 0.85 every 400 steps
    staircase = ExponentialDecay(0.05, 0.85, every=400, unit="steps", staircase=True)
    rates = staircase.rates(np.array([0, 399, 400, 799, 800, 8000]), 80, 8000)
    np.testing.assert_allclose(rates, 0.05 * 0.85 ** np.array([0, 0, 1, 1, 2, 20.0]), rtol=1e-14)
    smooth = ExponentialDecay(0.05, 0.85, every=400, unit="steps").rates([200], 80, 8000)
    np.testing.assert_allclose(smooth, 0.05 * math.sqrt(0.85), rtol=1e-14)


def test_parts_of_an_epoch_are_rounded_to_whole_steps():
    # 0.29 epochs of 100 steps are 29 steps, though 0.29 * 100 is 28.999999999999996
    rates = StepDecay(1.0, 0.5, every=0.29).rates([28, 29, 57, 58], 100, 100)
    np.testing.assert_array_equal(rates, [1, 0.5, 0.5, 0.25])
    assert StepDecay(1.0, 0.5, every=0.01).rates([1], 10, 15) == 0.5  # never less than one step


def test_warm_up_rises_in_equal_steps_from_above_zero_to_the_rate():
    rates = CosineDecay(0.6, warmup=1).rates(steps_to(10), 5, 10)
    np.testing.assert_allclose(rates[:6], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], rtol=1e-14)
    assert (np.diff(rates[5:]) < 0).all()


def test_cosine_and_one_cycle_hold_their_last_rate_after_the_end():
    np.testing.assert_allclose(CosineDecay(1.0, final=0.2).rates([10, 11, 1000], 1, 10), 0.2, rtol=1e-14)
    np.testing.assert_allclose(OneCycle(1.0).rates([9, 10, 1000], 1, 10), 1 / 25 / 1e4, rtol=1e-14)


def test_a_total_of_its_own_goes_before_the_planned_length():
    epochs = CosineDecay(1.0, total=3).rates(steps_to(30), 10, 500)
    np.testing.assert_array_equal(epochs, CosineDecay(1.0).rates(steps_to(30), 10, 30))
    cycle = OneCycle(1.0, total=30, unit="steps").rates(steps_to(30), 10, 500)
    np.testing.assert_array_equal(cycle, OneCycle(1.0).rates(steps_to(30), 10, 30))


def test_one_cycle_of_one_step_and_with_the_peak_at_step_zero_is_defined():
    np.testing.assert_allclose(OneCycle(1.0).rates([0], 1, 1), 1 / 25 / 1e4)
    assert OneCycle(1.0, pct_start=0.1).rates([0], 1, 10) == 1.0


def test_one_cycle_may_rise_to_its_end_and_divide_by_one():
    schedule = OneCycle(1, pct_start=1.0, div_factor=1, final_div_factor=1)
    np.testing.assert_array_equal(schedule.rates(np.arange(5), 5, 5), np.ones(5))


def test_inverse_scaling_is_scikit_learns_with_the_samples_as_scale():
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    n = 30
    x = np.linspace(0, 1, n)[:, None]
    settings = {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.2, "power_t": 0.4}
    expected = [0.2]  # scikit-learn starts with learning_rate_init and sets the next rate after each epoch
    for epochs in (1, 2, 3):
        model = MLPRegressor(hidden_layer_sizes=(2,), max_iter=epochs, random_state=0, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, x[:, 0])
        expected.append(model._optimizer.learning_rate)
    rates = InverseScaling(0.2, power=0.4, scale=n).rates([0, 5, 10, 15], 5, 20)
    np.testing.assert_allclose(rates, expected, rtol=1e-14)


def test_inverse_scaling_by_hand():
    np.testing.assert_allclose(InverseScaling(1.0, unit="steps").rates([0, 3, 8], 1, 9), [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(InverseScaling(1.0).rates([0, 4, 5, 15], 5, 20), [1, 1, 2**-0.5, 1 / 2])


# ---- ReduceOnPlateau ----


@pytest.mark.parametrize(("values", "arguments", "recorded"), PLATEAUS)
def test_plateau_reduces_when_pytorchs_recorded_one_does(values, arguments, recorded):
    schedule = ReduceOnPlateau(0.1, **arguments)
    fell, after = [], []
    for value in values:
        fell.append(schedule.observe(value))
        after.append(float(schedule.rates([0], 1, 1)[0]))
    np.testing.assert_allclose(after, recorded, rtol=1e-12)
    assert fell == [b < a for a, b in zip([0.1, *after], after, strict=False)]


def test_plateau_follows_the_torch_that_is_installed():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=200).tolist()
    values[17] = math.nan
    for mode, threshold_mode, cooldown in itertools.product(["min", "max"], ["rel", "abs"], [0, 3]):
        arguments = {"mode": mode, "threshold_mode": threshold_mode, "cooldown": cooldown, "threshold": 0.05}
        arguments |= {"factor": 0.3, "patience": 2, "min_lr": 1e-4}
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **arguments)
        ours = ReduceOnPlateau(0.1, **arguments)  # type: ignore[arg-type]
        for i, value in enumerate(values):
            theirs.step(value)
            ours.observe(value)
            lr = optimizer.param_groups[0]["lr"]
            assert ours.current_lr == pytest.approx(lr, rel=1e-12), (arguments, i)


@pytest.mark.parametrize("k", range(len(LOSSES)))
def test_plateau_state_goes_on_where_it_was_saved(k):
    whole, first = ReduceOnPlateau(0.1, patience=1, cooldown=1), ReduceOnPlateau(0.1, patience=1, cooldown=1)
    assert json.loads(json.dumps(first.state_dict())) == {"lr": 0.1, "best": None, "bad": 0, "cooldown": 0}
    for value in LOSSES[:k]:
        whole.observe(value)
        first.observe(value)
    second = ReduceOnPlateau(0.1, patience=1, cooldown=1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for value in LOSSES[k:]:
        assert second.observe(value) == whole.observe(value)
    assert second.state_dict() == whole.state_dict() != first.state_dict()


def test_plateau_reset_forgets_and_a_copy_has_a_state_of_its_own():
    schedule = ReduceOnPlateau(0.1, patience=0)
    other = copy.deepcopy(schedule)
    schedule.observe(1.0)
    assert schedule.observe(2.0)
    assert schedule.current_lr == pytest.approx(0.01)
    assert other.current_lr == 0.1
    assert schedule == other  # equal by settings, whatever the state
    schedule.reset()
    assert schedule.state_dict() == other.state_dict()


@pytest.mark.parametrize("mode", ["rel", "abs"])
def test_plateau_without_a_threshold_takes_any_improvement(mode):
    schedule = ReduceOnPlateau(0.1, patience=0, threshold=0, threshold_mode=mode)
    below = np.nextafter(1.0, 0)
    assert [schedule.observe(value) for value in (1.0, below, below)] == [False, False, True]


def test_plateau_counts_nan_as_no_improvement():
    schedule = ReduceOnPlateau(0.1, patience=1)
    assert [schedule.observe(math.nan) for _ in range(2)] == [False, True]
    assert schedule.state_dict()["best"] is None


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"lr": 0.1}, "expected .*'best'"),
        ({"lr": -1.0, "best": None, "bad": 0, "cooldown": 0}, "lr is -1.0"),
        ({"lr": 0.1, "best": None, "bad": 0.5, "cooldown": 0}, "bad is 0.5"),
    ],
)
def test_plateau_refuses_a_foreign_state_and_keeps_its_own(state, message):
    schedule = ReduceOnPlateau(0.1)
    with pytest.raises(ValueError, match=message):
        schedule.load_state_dict(state)
    assert schedule.current_lr == 0.1


# ---- all of them ----


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(EXAMPLES),
    st.lists(st.integers(0, 10_000), max_size=20),
    st.integers(1, 50),
    st.integers(5, 3000),
)
def test_the_rate_of_a_step_does_not_depend_on_the_steps_asked_with_it(schedule, steps, per_epoch, total):
    together = schedule.rates(np.array(steps, np.int64), per_epoch, total)
    alone = [float(schedule.rates(np.array(step), per_epoch, total)) for step in steps]
    assert together.shape == (len(steps),)
    np.testing.assert_array_equal(together, alone)
    assert (together >= 0).all()


def test_there_is_an_example_of_every_schedule_here():
    assert {type(schedule) for schedule in EXAMPLES} == set(SCHEDULES.values())


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_every_schedule_comes_back_from_its_dict_and_from_its_repr(schedule):
    as_dict = json.loads(json.dumps(schedule.to_dict()))
    assert get_schedule(as_dict) == schedule
    assert eval(repr(schedule)) == schedule
    assert hash(get_schedule(as_dict)) == hash(schedule)
    assert get_schedule(schedule) is schedule


def test_a_number_is_a_constant_rate():
    assert get_schedule(0.1) == get_schedule(np.float64(0.1)) == ConstantRate(0.1)
    np.testing.assert_array_equal(get_schedule(1).rates([[0, 5], [7, 9]], 2, 10), np.ones((2, 2)))


def test_names_forgive_case_and_hyphens():
    assert get_schedule({"name": "One-Cycle", "max_lr": 1}) == OneCycle(1.0)
    assert get_schedule({"name": "invscaling", "lr": 1}) == InverseScaling(1.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: get_schedule(-0.1), ValueError, "lr is -0.1; expected a finite number >= 0, such as 0.01"),
        (lambda: get_schedule(math.nan), ValueError, "lr is nan; expected a finite number >= 0"),
        (lambda: get_schedule(True), TypeError, "schedule is a bool"),
        (lambda: get_schedule("cosin"), ValueError, "did you mean 'cosine'"),
        (lambda: get_schedule("cosine"), ValueError, "needs the setting 'lr'"),
        (lambda: get_schedule({"name": "step", "lr": 1, "evry": 2}), ValueError, "did you mean 'every'"),
        (lambda: get_schedule({"name": "step", "lr": 1}), ValueError, "needs the setting 'every'"),
        (lambda: ConstantRate("0.1"), TypeError, "lr is '0.1'; expected a finite number"),  # type: ignore[arg-type]
        (lambda: OneCycle(math.inf), ValueError, "max_lr is inf; expected a finite number >= 0"),
        (lambda: StepDecay(1, every=0), ValueError, "every is 0; expected a number of epochs > 0"),
        (lambda: StepDecay(1, every=1.5, unit="steps"), ValueError, "every is 1.5; expected a whole number"),
        (lambda: StepDecay(1, every=1, unit="epoch"), ValueError, "unit is 'epoch'; expected 'epochs' or"),  # type: ignore[arg-type]
        (lambda: StepDecay(1, -1, every=1), ValueError, "factor is -1; expected a finite number > 0"),
        (lambda: ExponentialDecay(1, math.nan, 1), ValueError, "factor is nan; expected a finite"),
        (lambda: ExponentialDecay(1, 0.5, 1, staircase="yes"), TypeError, "staircase is 'yes'"),  # type: ignore[arg-type]
        (lambda: CosineDecay(math.nan), ValueError, "^lr is nan; expected a finite number >= 0"),
        (lambda: CosineDecay(math.inf), ValueError, "^lr is inf; expected a finite number >= 0"),
        (lambda: CosineDecay(0.1, final=0.5), ValueError, "final is 0.5, above lr, 0.1"),
        (lambda: CosineDecay(0.1, warmup=-1), ValueError, "warmup is -1; expected a number of epochs >= 0"),
        (lambda: CosineDecay(0.1, total=0), ValueError, "total is 0; expected a number of epochs > 0"),
        (lambda: CosineDecay(0.1, warmup=2).rates([0], 5, 10), ValueError, "10 steps .* whole schedule 10"),
        (lambda: OneCycle(1, pct_start=1.5), ValueError, "pct_start is 1.5; expected a number from 0 to 1"),
        (lambda: OneCycle(1, div_factor=0), ValueError, "div_factor is 0; expected a finite number >= 1"),
        (lambda: OneCycle(1, final_div_factor=0.5), ValueError, "final_div_factor is 0.5; expected a finite"),
        (lambda: OneCycle(1, total=0), ValueError, "total is 0; expected a number of epochs > 0"),
        (lambda: OneCycle(1, anneal="sin"), ValueError, "anneal is 'sin'; expected 'cos' or 'linear'"),  # type: ignore[arg-type]
        (lambda: InverseScaling(1, power=-1), ValueError, "power is -1; expected a finite number >= 0"),
        (
            lambda: ReduceOnPlateau(1, factor=1),
            ValueError,
            "factor is 1; expected a number above 0 and below",
        ),
        (lambda: ReduceOnPlateau(1, patience=-1), ValueError, "patience is -1; expected a whole number >= 0"),
        (lambda: ReduceOnPlateau(1, mode="less"), ValueError, "mode is 'less'; expected 'min' or 'max'"),  # type: ignore[arg-type]
        (lambda: ReduceOnPlateau(1, threshold=2), ValueError, "threshold is 2; expected a part of the best"),
        (lambda: ReduceOnPlateau(1, eps=-1), ValueError, "eps is -1; expected a finite number >= 0"),
        (lambda: ReduceOnPlateau(1, monitor=3), TypeError, "monitor is 3; expected the name"),  # type: ignore[arg-type]
        (lambda: ConstantRate(1).rates([-1], 1, 1), ValueError, "steps must be whole numbers from 0 on"),
        (lambda: ConstantRate(1).rates([0.5], 1, 1), ValueError, "steps must be whole numbers from 0 on"),
        (lambda: ConstantRate(1).rates([0], 0, 1), ValueError, "steps_per_epoch is 0"),
        (lambda: ExponentialDecay(1, 10, 1).rates([999], 1, 1000), ValueError, "rate of inf at step 999"),
    ],
)
def test_a_mistake_ends_in_one_line_that_says_what_was_expected(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
