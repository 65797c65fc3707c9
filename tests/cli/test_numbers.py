"""Sizes and times as people write them."""

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cli import numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16000000", 16_000_000),
        ("16,000,000", 16_000_000),
        ("16_000_000", 16_000_000),
        ("16MB", 16_000_000),
        ("16 mb", 16_000_000),
        ("150k", 150_000),
        ("1.5MiB", 1_572_864),
        ("0", 0),
    ],
)
def test_sizes_with_units_and_commas(text: str, value: int) -> None:
    assert numbers.size(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("600", 600.0), ("10m", 600.0), ("1h30m", 5400.0), ("1.5 h", 5400.0), ("90s", 90.0), ("1,200", 1200.0)],
)
def test_times_with_units(text: str, value: float) -> None:
    assert numbers.seconds(text) == value


@pytest.mark.parametrize("text", ["", "16XB", "1,6", "12,34,567", "0.5", "-4", "MB", "1e6", "007"])
def test_an_invalid_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="16,000,000 or 16MB"):
        numbers.size(text)


@pytest.mark.parametrize("text", ["", "10x", "1 2", "10m5", "-4", "m"])
def test_an_invalid_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="10m or 1h30m"):
        numbers.seconds(text)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=4))
def test_several_sizes_in_every_form(values: list[int]) -> None:
    assert numbers.sizes([str(value) for value in values]) == values
    assert numbers.sizes([f"{value:,}" for value in values]) == values
    assert numbers.sizes([",".join(f"{value}b" for value in values)]) == values
