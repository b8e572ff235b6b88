"""The progress bar of a pipeline, which a terminal shows after a second."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import gptrio
from gptrio import pipeline

NAME = "gptrio/stdlib-gpt2"


class Bar:
    """Keeps what a bar is told."""

    bars: list[Bar]

    def __init__(self, **options: Any) -> None:
        self.options, self.n, self.seen = options, 0.0, [0.0]
        self.disable = options["disable"]
        Bar.bars.append(self)

    def update(self, by: float) -> None:
        self.n += by
        self.seen.append(self.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    Bar.bars = []
    monkeypatch.setattr(gptrio.logging, "is_progress_bar_enabled", lambda: True)
    monkeypatch.setattr(gptrio.logging, "tqdm", Bar)
    return Bar.bars


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"do_sample": False, "num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str
)
@pytest.mark.parametrize(
    ("make", "count", "total"),
    [
        (lambda: "import os", 1, 1),
        (lambda: ["import os", "def f("], 2, 2),
        (lambda: (text for text in ["a", "b", "c"]), 3, None),
    ],
    ids=["text", "list", "generator"],
)
def test_a_bar_moves_with_every_token(bars: list[Bar], make: Any, count: int, total: int | None, options: Any) -> None:
    generator = pipeline("text-generation", NAME, device="cpu", max_new_tokens=10, eos_token_id=None)
    assert len(list(generator(make(), **options))) == count
    (bar,) = bars
    assert (bar.options["total"], bar.options["delay"], bar.options["disable"]) == (total, 1, None)
    assert bar.seen == sorted(bar.seen)
    assert bar.n == pytest.approx(count)
    assert len(set(bar.seen)) > 3 * count


def test_a_call_without_a_terminal_or_with_a_streamer_is_not_watched(
    bars: list[Bar], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = pipeline("text-generation", NAME, device="cpu", max_new_tokens=4, do_sample=False)
    shown = gptrio.BatchTextStreamer(generator.tokenizer)
    monkeypatch.setattr(shown, "on_row_text", lambda *args, **kwargs: None)
    generator("import os", streamer=shown)
    assert bars[0].seen == [0.0, 1.0]
    monkeypatch.setattr(gptrio.logging, "is_progress_bar_enabled", lambda: False)
    generator("import os")
    assert bars[1].options["disable"] is True and bars[1].seen == [0.0]


def test_lists_of_other_tasks_move_a_bar_with_every_batch(bars: list[Bar]) -> None:
    extractor = pipeline("feature-extraction", NAME, device="cpu")
    extractor("import os")
    assert bars == []
    extractor(["import os", "import re", "x"], batch_size=2)
    assert bars[0].seen == [0.0, 2.0, 3.0]


def test_a_bar_of_the_package_tqdm_shows_the_number_of_inputs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(gptrio.logging, "is_progress_bar_enabled", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    tqdm = gptrio.logging.tqdm
    monkeypatch.setattr(gptrio.logging, "tqdm", lambda **options: tqdm(**{**options, "delay": 0, "mininterval": 0}))
    pipeline("text-generation", NAME, device="cpu", max_new_tokens=4, do_sample=False)("import os")
    shown = capsys.readouterr().err
    assert " 50%|" in shown and "1/1 [" in shown
