"""Declared fields: bounds in numbers and words, and the types that annotations name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest

from gptrio import ConfigError
from gptrio.config.fields import Bounds, count, declare, has_type, number, probability


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Bounds(ge=0, le=1), (0, 0.5, 1), (-0.1, 1.1, float("nan")), "at least 0 and at most 1"),
        (Bounds(gt=0), (1e-9, float("inf")), (0, -1, float("nan")), "above 0"),
        (Bounds(lt=2**31), (-5, 2**31 - 1), (2**31,), "below 2147483648"),
        (Bounds(), (-1e300, 10**400), (), ""),
    ],
)
def test_bounds_hold_numbers_inside_and_name_themselves(bounds, inside, outside, words):
    assert all(bounds.hold(value) for value in inside)
    assert not any(bounds.hold(value) for value in outside)
    assert str(bounds) == words


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (False, float, False),
        (1.0, int, False),
        (True, bool, True),
        (None, int | None, True),
        ((1, 2), list[int], True),
        ([1, True], list[int], False),
        ([[1], (2, 3)], list[list[int]], True),
        ({"a": 1}, dict[str, int], True),
        (object(), Any, True),
    ],
)
def test_has_type_follows_annotations(value, hint, expected):
    assert has_type(value, hint) is expected


def test_rules_accept_convert_and_refuse():
    @dataclass
    class Fields:
        size: int = count(4, most=8)
        rate: float = number(0.5, gt=0)
        dropout: float = probability(0.1)
        note: str = declare("", help="a note")

    rules = {row.name: row.metadata.get("rule") for row in fields(Fields)}
    assert rules["size"].convert(3.0) == 3
    assert isinstance(rules["size"].convert(3.0), int)
    assert isinstance(rules["rate"].convert(3.0), float)
    assert rules["note"] is None
    for name, good, bad in (("size", 8, 9), ("rate", 1e-9, float("inf")), ("dropout", False, 1.5)):
        rules[name].check("Fields", name, good)
        with pytest.raises(ConfigError, match=rf"Fields: {name}={bad} is not possible; expected "):
            rules[name].check("Fields", name, bad)
