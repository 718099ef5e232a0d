"""Rules say what holds, what does not, and both in words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpumlp.recipes import Rule

CASES = [
    ({"interval": [0.0, 1.0]}, None, [0.0, 0.5, 1.0], [-0.01, 1.01, math.nan]),
    ({"at_least": 0.9}, None, [0.9, 2.0], [0.899, math.nan]),
    ({"at_most": 0.9}, None, [0.9, -2.0], [0.901, math.inf]),
    ({"within": 0.005}, 0.97, [0.965, 0.97, 0.975], [0.9649, 0.9751]),
    ({"within": 0.005, "better": "higher"}, 0.97, [0.965, 1.0], [0.9649]),
    ({"within": 0.005, "better": "lower"}, 0.97, [0.975, 0.0], [0.9751]),
    ({"within": 0, "better": "lower"}, 0.337, [0.337, 0.1], [0.3371]),
    ({"factor_at_least": 4}, 10, [40, 100], [39.9]),
    ({"factor_at_most": 0.5}, 10, [5, 0.1], [5.1]),
    ({"order": "increasing"}, None, [[1, 2, 3]], [[1, 3, 2], [1, 1, 2], [3, 2, 1]]),
    ({"order": "decreasing"}, None, [[3, 2, 1]], [[1, 2, 3], [2, 2, 1], [3, math.nan, 1]]),
    ({"order": "increasing", "gap": 0.5}, None, [[1, 2, 3]], [[1, 1.5, 3]]),
]


@pytest.mark.parametrize(("spec", "published", "good", "bad"), CASES)
def test_a_rule_holds_for_the_good_and_fails_for_the_bad(spec, published, good, bad):
    rule = Rule(spec)
    assert all(rule.judge(figure, published).holds for figure in good)
    assert not any(rule.judge(figure, published).holds for figure in bad)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3))
def test_a_margin_counts_the_published_figure_and_both_ends_in(published, margin):
    rule = Rule({"within": margin})
    assert rule.judge(published, published).holds
    assert rule.judge(published + margin, published).holds
    assert not rule.judge(published + 2 * margin + 1, published).holds


@pytest.mark.parametrize(
    ("spec", "published", "words"),
    [
        ({"interval": [4, 6]}, None, "from 4 to 6"),
        ({"interval": [5, 5]}, None, "exactly 5"),
        ({"at_least": 97}, None, "at least 97"),
        ({"within": 0.5, "better": "higher"}, 98.0, "within 0.5 of the published figure, or higher"),
        ({"factor_at_least": 4}, 2, "at least 4 times the published figure"),
        ({"factor_at_least": 1}, 2, "at least the published figure"),
        ({"order": "increasing"}, None, "each above the one before"),
    ],
)
def test_a_rule_says_itself_in_words(spec, published, words):
    figure = [1, 2] if "order" in spec else 1.0
    assert Rule(spec).judge(figure, published).rule == words


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "expected exactly one of"),
        ({"at_least": 1, "at_most": 2}, "expected exactly one of"),
        ({"at_last": 1}, "did you mean 'at_least'"),
        ({"interval": [2, 1]}, "the lower one first"),
        ({"interval": [1]}, "two numbers"),
        ({"within": "much"}, "expected a finite number"),
        ({"within": 1, "better": "more"}, '"higher" or "lower"'),
        ({"at_least": 1, "better": "higher"}, "better goes with within"),
        ({"at_least": 1, "gap": 1}, "gap goes with order"),
        ({"order": "up"}, '"increasing" or "decreasing"'),
        ({"at_least": math.nan}, "expected a finite number"),
    ],
)
def test_a_rule_that_says_nothing_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        Rule(spec)


def test_a_rule_refuses_figures_that_it_cannot_compare():
    with pytest.raises(ValueError, match="published number"):
        Rule({"within": 1}).judge(1.0, "good")
    with pytest.raises(ValueError, match="several figures"):
        Rule({"order": "increasing"}).judge(1.0)
    with pytest.raises(ValueError, match="one figure"):
        Rule({"at_least": 1}).judge([1.0, 2.0])
