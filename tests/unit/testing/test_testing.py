"""The public test helpers."""

from __future__ import annotations

import pytest
import torch

from gptrio.errors import UnsupportedError
from gptrio.testing import VOCABULARY_SIZE, assert_close, byte_tokenizer, relative_difference, tiny_config

FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_config_is_of_its_family_and_fits_the_byte_tokenizer(family):
    config = tiny_config(family, hidden_size=16)
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == (family, 16, 2)
    assert config.vocab_size == len(byte_tokenizer())


def test_tiny_config_of_another_family_is_refused():
    with pytest.raises(UnsupportedError, match="llama"):
        tiny_config("llama")


def test_byte_tokenizer_gives_each_byte_its_number():
    tokenizer = byte_tokenizer()
    assert tokenizer("aé\n").input_ids == list("aé\n".encode())
    assert tokenizer.decode(tokenizer("Größe 😊").input_ids) == "Größe 😊"
    assert tokenizer.eos_token_id == VOCABULARY_SIZE - 1


@pytest.mark.parametrize(
    ("actual", "expected", "difference"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.5], [0.0], 0.5),
        ([float("-inf"), 1.0], [float("-inf"), 1.0], 0.0),
        ([1.0, 1.0], [float("inf"), 1.0], float("inf")),
        ([float("nan")], [1.0], float("inf")),
        ([], [], 0.0),
    ],
)
def test_relative_difference(actual, expected, difference):
    assert relative_difference(torch.tensor(actual), torch.tensor(expected)) == difference


def test_assert_close_names_what_differs_and_by_how_much():
    with pytest.raises(AssertionError, match=r"logits: relative difference 5.00e-01, allowed 1e-05"):
        assert_close(torch.tensor([1.0]), torch.tensor([2.0]), name="logits")
    with pytest.raises(AssertionError, match="shapes"):
        assert_close(torch.zeros(1), torch.zeros(2))
