"""Pipelines of Flax models give what the PyTorch models of the same checkpoint give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptrio
from gptrio import pipeline
from gptrio.errors import InputError, OptionError, UnsupportedError
from gptrio.testing import byte_tokenizer, tiny_config
from tests.reference import randomise

TEXTS = ["Sarah lives in London.", "Hello", "I met Ben Smith in Rome."]
CLASSES = {
    "feature-extraction": "GPTNeoModel",
    "text-classification": "GPTNeoForSequenceClassification",
    "token-classification": "GPTNeoForTokenClassification",
    "question-answering": "GPTNeoForQuestionAnswering",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each task, with its tokenizer."""
    torch.manual_seed(0)
    folders = {}
    for task, name in {**CLASSES, "text-generation": "GPTNeoForCausalLM"}.items():
        folders[task] = tmp_path_factory.mktemp(task)
        model = getattr(gptrio, name)(tiny_config("gpt_neo", num_labels=3, max_position_embeddings=64))
        randomise(model)
        model.save_pretrained(folders[task])
        byte_tokenizer().save_pretrained(folders[task])
    return folders


def flatten(value: Any) -> list[Any]:
    """The leaves of nested lists and dictionaries."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *flatten(value[key]))]
    return [leaf for item in value for leaf in flatten(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("task", CLASSES)
def test_results_equal_those_of_pytorch(task: str, checkpoints: dict[str, Path]) -> None:
    inputs: Any = TEXTS
    if task == "question-answering":
        inputs = [{"question": "Who?", "context": text} for text in TEXTS]
    pipes = [pipeline(task, str(checkpoints[task]), framework=framework) for framework in ("pt", "flax")]
    assert [pipe.framework for pipe in pipes] == ["pt", "flax"]
    expected, actual = (flatten(pipe(inputs)) for pipe in pipes)
    assert len(expected) > 3
    assert actual == [
        pytest.approx(x, rel=2e-5, abs=2e-5) if isinstance(x, (float, np.floating)) else x for x in expected
    ]


def test_a_batch_of_a_model_with_a_padding_token(checkpoints: dict[str, Path]) -> None:
    folder = str(checkpoints["text-classification"])
    results = []
    for framework in ("pt", "flax"):
        config = gptrio.GPTNeoConfig.from_pretrained(folder, pad_token_id=0)
        pipe = pipeline("text-classification", folder, config=config, framework=framework)
        results.append([entry["score"] for entry in pipe(TEXTS, batch_size=3)])
    assert results[1] == pytest.approx(results[0], rel=2e-5)


@pytest.fixture(scope="module")
def generators(checkpoints: dict[str, Path]) -> list[Any]:
    folder = str(checkpoints["text-generation"])
    model = gptrio.FlaxGPTNeoForCausalLM.from_pretrained(folder)
    tokenizer = gptrio.AutoTokenizer.from_pretrained(folder)
    return [pipeline("text-generation", folder), pipeline("text-generation", model, tokenizer=tokenizer)]


def test_generated_tokens_equal_those_of_pytorch(generators: list[Any]) -> None:
    free = generators[0](TEXTS, max_new_tokens=8, do_sample=False, return_tensors=True)
    end = free[0][0]["generated_token_ids"][len(TEXTS[0]) + 3]  # a token that ends one of the rows early
    options = {"max_new_tokens": 8, "do_sample": False, "return_tensors": True, "eos_token_id": end}
    expected, actual = (pipe(TEXTS, **options) for pipe in generators)
    assert actual == expected
    assert len(actual[0][0]["generated_token_ids"]) == len(TEXTS[0]) + 4
    texts = [pipe(TEXTS[0], max_new_tokens=8, do_sample=False, return_full_text=False) for pipe in generators]
    assert texts[0] == texts[1]


def test_sampling_follows_the_seed(generators: list[Any]) -> None:
    _, flax = generators
    drawn = []
    for seed in (0, 0, 1):
        gptrio.set_seed(seed)
        drawn.append(flax(TEXTS[0], max_new_tokens=8, num_return_sequences=2, eos_token_id=None))
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


def test_a_pipeline_is_saved_and_shows_its_model(generators: list[Any], tmp_path: Path) -> None:
    _, flax = generators
    assert type(flax.model.flax_model) is gptrio.FlaxGPTNeoForCausalLM
    assert flax.model.params is flax.model.flax_model.params
    flax.save_pretrained(tmp_path)
    again = pipeline("text-generation", str(tmp_path), framework="flax", dtype="bfloat16")
    assert str(again.model.dtype) == "bfloat16"


def test_what_does_not_fit(generators: list[Any], checkpoints: dict[str, Path]) -> None:
    torch_pipe, flax = generators
    folder = str(checkpoints["text-generation"])
    with pytest.raises(UnsupportedError, match="framework='tf' is not supported"):
        pipeline("text-generation", folder, framework="tf")
    with pytest.raises(InputError, match="'flax' was given for a GPTNeoForCausalLM, whose framework is 'pt'"):
        pipeline("text-generation", torch_pipe.model, tokenizer=flax.tokenizer, framework="flax")
    with pytest.raises(UnsupportedError, match="device_map is for PyTorch models"):
        pipeline("text-generation", folder, framework="flax", device_map="auto")
    with pytest.raises(OptionError, match="device=0 was given"):
        pipeline("text-generation", folder, framework="flax", device=0)
    with pytest.raises(UnsupportedError, match="pass prng_key"):
        flax("a", seed=3)
    with pytest.raises(OptionError, match="streamer"):
        flax("a", streamer=None)
