"""Scores equal log_softmax over the logits of Transformers' model."""

from __future__ import annotations

import pytest
import torch

import gptrio
from gptrio.testing.tiny import byte_tokenizer
from tests.reference import model_pair

CLASSES = ("GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM")
TEXTS = ["the cat sat", "the cat slept on", "a", "the dog barked at the cat", "où ?"]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_scores_are_those_of_the_reference(name, dtype):
    oracle, ours = model_pair(name, "sdpa", dtype, vocab_size=257)
    for result in gptrio.score(ours, byte_tokenizer(), TEXTS):
        ids = torch.tensor([[256, *result.ids]])
        expected = oracle(ids).logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        limit = 1e-5 if dtype is torch.float32 else 0.05
        torch.testing.assert_close(torch.tensor(result.log_probs), expected, atol=limit, rtol=0)
