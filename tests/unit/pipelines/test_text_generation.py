"""Text generation: batches give what single calls give."""

from __future__ import annotations

from typing import Any

import pytest

from gptrio import pipeline

PROMPTS = ["import os", "def main(args):\n", "class A", "for i in range(10", "x"]


@pytest.fixture(scope="module")
def generator() -> Any:
    return pipeline("text-generation", "gptrio/stdlib-gpt2", device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"seed": 3},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2, "return_tensors": True},
        {"do_sample": False, "repetition_penalty": 1.5},
        {"do_sample": False, "batch_size": 2},
        {"do_sample": False, "stop_strings": ["\n"]},
        {"do_sample": False, "max_new_tokens": None, "max_length": 14},
    ],
    ids=str,
)
def test_a_list_gives_what_single_calls_give(generator: Any, options: dict[str, Any]) -> None:
    options = {"max_new_tokens": 8, **options}
    assert generator(PROMPTS, **options) == [generator(prompt, **options) for prompt in PROMPTS]
