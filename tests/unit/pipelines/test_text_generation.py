"""Text generation: batches give what single calls give."""

from __future__ import annotations

from typing import Any

import pytest

from gptrio import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

NAME = "gptrio/stdlib-gpt2"
PROMPTS = ["import os", "def main(args):\n", "class A", "for i in range(10", "x"]


@pytest.fixture(scope="module")
def generator() -> Any:
    return pipeline("text-generation", NAME, dtype="float32", device="cpu")  # bfloat16 rounds by the size of a batch


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


def test_what_the_caller_of_pipeline_sets_to_a_default_wins_over_the_models_value() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(NAME), AutoTokenizer.from_pretrained(NAME)
    model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, top_k=3, eos_token_id=4095)
    greedy = pipeline("text-generation", model, tokenizer=tokenizer, do_sample=False, max_new_tokens=8)
    assert {greedy(PROMPTS[0])[0]["generated_text"] for _ in range(4)} == {
        tokenizer.decode(
            model.generate(**tokenizer(PROMPTS[0], return_tensors="pt"), do_sample=False, max_new_tokens=8)[0]
        )
    }
    wide = pipeline("text-generation", model, tokenizer=tokenizer, temperature=1.0, top_k=50, max_new_tokens=8)
    expected = model.generate(
        **tokenizer(PROMPTS[0], return_tensors="pt"), seed=2, temperature=1.0, top_k=50, max_new_tokens=8
    )
    assert wide(PROMPTS[0], seed=2)[0]["generated_text"] == tokenizer.decode(expected[0])
