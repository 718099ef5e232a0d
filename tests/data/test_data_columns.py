"""Columns: where a value is missing, and what numbers are as text."""

from decimal import Decimal

import pytest

from gpumlp.data.columns import as_column, first_missing, text


@pytest.mark.parametrize(
    ("values", "row"),
    [([None, 1], 0), ([float("nan"), 1.0], 0), (["a", None, None], 1), ([1, 2], None), ([], None)],
)
def test_the_first_missing_value_is_found_in_any_row(values, row):
    assert first_missing(as_column(values)) == row


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3.0, "3"),
        (0.5, "0.5"),
        (Decimal("3.00"), "3"),
        (Decimal("0.50"), "0.5"),
        (1e17, "100000000000000000"),
        (-1e17, "-100000000000000000"),
        (2.0**63, "9.223372036854776e+18"),  # above the largest int64
        (True, "true"),
    ],
)
def test_numbers_are_text_without_a_point_where_they_are_whole(value, expected):
    assert text(as_column([value])).to_pylist() == [expected]
