"""`GPT2DoubleHeadsModel.generate`: the tokens of the language model with the same weights, and the reference's."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers

from gptrio import GPT2Config, GPT2DoubleHeadsModel, GPT2LMHeadModel

SIZES = {"vocab_size": 200, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "eos_token_id": None}
IDS = torch.tensor([[3, 5, 8, 13, 21, 34, 55], [2, 4, 6, 8, 10, 12, 14], [9, 9, 7, 5, 3, 1, 99]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [1] * 7])
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "seed": 1},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained": {"num_beams": 3, "force_words_ids": [[7, 8]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "guided": {"guidance_scale": 1.5},
    "static": {"cache_implementation": "static"},
    "quantized": {"cache_implementation": "quantized"},
    "offloaded": {"cache_implementation": "offloaded"},
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 4},
    "lookup": {"prompt_lookup_num_tokens": 2},
}


@functools.cache
def models() -> tuple[Any, Any, Any]:
    """Double heads, the language model, and the reference's double heads, all of the same weights."""
    torch.manual_seed(0)
    double = GPT2DoubleHeadsModel(GPT2Config(**SIZES)).eval()
    with torch.no_grad():
        for parameter in double.parameters():
            parameter.normal_(std=0.25)
    language = GPT2LMHeadModel(GPT2Config(**SIZES)).eval()
    language.load_state_dict({k: v for k, v in double.state_dict().items() if not k.startswith("multiple_choice")})
    reference = transformers.GPT2DoubleHeadsModel(transformers.GPT2Config(**SIZES)).eval()
    reference.load_state_dict(double.state_dict())
    return double, language, reference


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_language_models_tokens(mode: str, compiled: bool) -> None:
    double, language, _ = models()
    rows = slice(0, 1) if mode == "lookup" else slice(None)
    options = {
        "max_new_tokens": 6,
        "pad_token_id": 0,
        "do_sample": False,
        "disable_compile": not compiled,
        **MODES[mode],
    }
    found, expected = (m.generate(IDS[rows], attention_mask=MASK[rows], **options) for m in (double, language))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
def test_tokens_and_scores_are_the_references(options: dict[str, Any]) -> None:
    double, _, reference = models()
    arguments: dict[str, Any] = {
        "attention_mask": MASK, "max_new_tokens": 6, "pad_token_id": 0, "do_sample": False, "output_scores": True,
        "output_hidden_states": True, "return_dict_in_generate": True, **options,
    }  # fmt: skip
    found, expected = double.generate(IDS, **arguments), reference.generate(IDS, **arguments)
    assert torch.equal(found.sequences, expected.sequences)
    for own, other in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)
    assert len(found.hidden_states) == len(expected.hidden_states)


def test_embeddings_in_place_of_ids() -> None:
    double, language, _ = models()
    embeds = double.get_input_embeddings()(IDS).detach()
    found, expected = (
        m.generate(inputs_embeds=embeds, attention_mask=MASK, max_new_tokens=5, pad_token_id=0, num_beams=2)
        for m in (double, language)
    )
    assert torch.equal(found, expected)


def test_a_forward_of_the_users_without_logits_to_keep_is_generated_with() -> None:
    class Mine(GPT2LMHeadModel):
        def forward(self, input_ids=None, past_key_values=None, attention_mask=None, position_ids=None, **kwargs):
            assert "logits_to_keep" not in kwargs
            return super().forward(
                input_ids, past_key_values, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )

    _, language, _ = models()
    mine = Mine(GPT2Config(**SIZES)).eval()
    mine.load_state_dict(language.state_dict())
    for options in ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        found, expected = (
            m.generate(IDS[:1], max_new_tokens=5, pad_token_id=0, do_sample=False, **options) for m in (mine, language)
        )
        assert torch.equal(found, expected)
