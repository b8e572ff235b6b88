"""With eager attention, a seed drops the same values here and in Transformers."""

from __future__ import annotations

import pytest
import torch

from gptrio.testing import assert_close
from tests.reference import assert_same_gradients, model_pair, token_ids

RATES = {
    "GPT2LMHeadModel": ("embd_pdrop", "resid_pdrop", "attn_pdrop"),
    "GPTNeoForCausalLM": ("embed_dropout", "resid_dropout", "attention_dropout"),
    "GPTNeoXForCausalLM": ("hidden_dropout", "attention_dropout"),
}


@pytest.mark.parametrize("class_name", RATES)
def test_one_seed_gives_one_loss(class_name: str) -> None:
    models = model_pair(class_name, **dict.fromkeys(RATES[class_name], 0.1))
    ids, losses = token_ids(), []
    for model in models:
        torch.manual_seed(7)
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.detach())
    undropped = models[0].eval()(input_ids=ids, labels=ids).loss.detach()
    assert_close(losses[1], losses[0], 1e-6)
    assert abs(losses[0] - undropped) > 1e-3
    assert_same_gradients(models[1], models[0])
