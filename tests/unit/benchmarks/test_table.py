"""The table and the chart, from made-up measurements."""

from __future__ import annotations

import copy
import json
from xml.etree import ElementTree

import pytest

from _chart import Group, Panel, chart, ticks
from table import ROWS, Row, as_json, drawn, from_json, markdown, put


def outcome(*seconds: float, dtype: str = "float32", missing: str = "", **more: float) -> dict[str, object]:
    return {"dtype": dtype, "seconds": list(seconds), "missing": missing, **more}


FOUND = {
    "settings": {"model": "gpt2", "threads": 2},
    "limits": {"read": 24.0, "float32": 100.0, "bfloat16": 900.0, "float16": 400.0, "int8": 1500.0},
    "rows": [
        {
            "row": {"kind": "decode", "dtype": "float32", "batch": 1},
            "limit": {"seconds": 0.016, "by": "reading weights"},
            "outcomes": {
                "gptrio": outcome(0.02, 0.019, 0.5),
                "transformers": outcome(0.04, agreement=1.0),
                "ctranslate2": outcome(missing="cannot be installed: no wheel (see some.log)"),
            },
        },
        {
            "row": {"kind": "load", "dtype": "16bit", "batch": 1},
            "limit": None,
            "outcomes": {"gptrio": outcome(0.5, dtype="bfloat16"), "transformers": outcome(1.5, dtype="float16")},
        },
    ],
}


def test_cells_are_how_many_times_faster_gptrio_is():
    lines = markdown(FOUND).splitlines()
    assert "| decode, batch 1, float32 | 2.00 |  |" in lines
    assert "| load to first token, 16 bit | 3.00 |  |" in lines


def test_times_stand_beside_the_limit_and_what_limits():
    lines = markdown(FOUND).splitlines()
    assert "| decode, batch 1, float32 | 20.0 | 16.0 | 80% | reading weights | 40.0 |  |" in lines
    assert "| load to first token, 16 bit | 0.50 bf16 |  |  |  | 1.50 f16 |  |" in lines


@pytest.mark.parametrize("seconds", [(-0.0128,), (0.02, -0.5), (0.0,), (float("nan"), 0.02), (float("inf"),)])
def test_a_time_that_cannot_be_is_not_measured(seconds):
    spoilt = copy.deepcopy(FOUND)
    spoilt["rows"][0]["outcomes"]["gptrio"] = outcome(*seconds)
    lines = markdown(spoilt).splitlines()
    assert "| decode, batch 1, float32 |  |  |" in lines  # nor is anything faster than it
    assert "| decode, batch 1, float32 | not measured |  |  |  | 40.0 |  |" in lines
    assert lines[-1] == "- A cell says 'not measured' where the machine was disturbed and the figure cannot be."
    assert "decode, batch 1, float32" not in drawn(spoilt) and ElementTree.fromstring(drawn(spoilt)) is not None


def test_a_peer_that_was_not_measured_is_not_missing():
    spoilt = copy.deepcopy(FOUND)
    spoilt["rows"][0]["outcomes"]["transformers"] = outcome(missing="not measured")
    assert "| decode, batch 1, float32 | 20.0 | 16.0 | 80% | reading weights | not measured |  |" in markdown(spoilt)
    assert "transformers 4.56.2 is missing" not in markdown(spoilt)


def test_no_share_of_a_limit_is_more_than_all_of_it():
    fast = copy.deepcopy(FOUND)
    fast["rows"][0]["outcomes"]["gptrio"] = outcome(0.01)
    assert "| 10.0 | 16.0 | not measured | reading weights |" in markdown(fast)


def test_notes_say_which_tokens_agree_and_who_is_missing():
    notes = markdown(FOUND)
    assert "decode, batch 1, float32: transformers 4.56.2 100%." in notes
    assert notes.endswith("- CTranslate2 is missing: cannot be installed: no wheel.")


def test_measurements_survive_their_file():
    rows = json.loads(json.dumps(FOUND["rows"]))
    assert json.loads(json.dumps(as_json(from_json(rows)))) == rows


def test_rows_have_names_of_their_own():
    assert len({row.title for row in ROWS}) == len(ROWS)
    assert Row("decode", "16bit", 8).title == "decode, batch 8, 16 bit"


def test_a_document_gets_its_table_once():
    once = put("# Title\n", "gpt2", "old")
    assert once.startswith("# Title\n\n<!-- gpt2")
    both = put(put(once, "pythia", "other"), "gpt2", r"new \1")
    assert "old" not in both and both.count("<!-- gpt2") == 2 and r"new \1" in both and "other" in both


def test_the_chart_is_svg_with_tokens_a_second_of_each_contender():
    texts = [element.text for element in ElementTree.fromstring(drawn(FOUND)).iter() if element.text]
    assert "gptrio 50" in texts and "transformers 4.56.2 25" in texts


def test_names_in_a_chart_are_escaped():
    drawing = chart([Panel("a & b", "unit", {"<c>": Group({"d": 1.0}, limit=2.0)})])
    assert {"a & b", "<c>", "unit", "d 1"} <= {element.text for element in ElementTree.fromstring(drawing).iter()}


@pytest.mark.parametrize(
    ("most", "expected"), [(9.0, [0, 2, 4, 6, 8]), (130.0, [0, 20, 40, 60, 80, 100, 120]), (1000, range(0, 1001, 200))]
)
def test_an_axis_has_round_numbers(most, expected):
    assert ticks(most) == pytest.approx(list(expected))
