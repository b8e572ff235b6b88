"""The drawings of a run's losses."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

from gptrio.training.curve import draw_svg, draw_text, losses

HISTORY = [{"loss": 8.0 - step, "step": step} for step in range(1, 5)]
EVALUATED = [*HISTORY, {"eval_loss": 5.0, "step": 4}, {"loss": math.nan, "step": 5}, {"train_loss": 5.5, "step": 5}]


def test_losses_of_each_side_without_what_is_not_finite() -> None:
    assert losses(EVALUATED) == {
        "training": [(1, 7.0), (2, 6.0), (3, 5.0), (4, 4.0)],
        "evaluation": [(4, 5.0)],
    }
    assert losses([{"train_loss": 1.0, "step": 2}]) == {}


def test_the_columns_fall_with_the_losses() -> None:
    assert draw_text(HISTORY, height=2).split("\n") == [
        "   7.000 ┤█▃  ",
        "   4.000 ┤██▆▁",
        "          1 4 updates",
    ]
    assert draw_text(HISTORY[:1]) == ""


def test_a_long_run_fills_the_width_and_each_column_is_a_mean() -> None:
    lines = draw_text([{"loss": float(step % 2), "step": step} for step in range(1000)], width=50, height=3).split("\n")
    assert {len(line) for line in lines[:-1]} == {10 + 50} and "0.500" in lines[0] and "0.500" in lines[2]


def test_the_svg_is_well_formed_and_has_each_point_in_place() -> None:
    root = ElementTree.fromstring(draw_svg(EVALUATED, "a < b"))
    name = "{http://www.w3.org/2000/svg}"
    training, evaluation = (line.get("points", "").split() for line in root.iter(f"{name}polyline"))
    places = [tuple(map(float, point.split(","))) for point in training]
    assert len(places) == 4 and places == sorted(places) and places[0][1] < places[-1][1]  # the loss falls: y grows
    assert places[-1][0] == float(evaluation[0].split(",")[0])
    assert next(text.text for text in root.iter(f"{name}text")) == "a < b"
