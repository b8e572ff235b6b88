"""Padding anywhere: under every attention mask a row is decoded as if it stood alone, in every family and mode."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from gptrio import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    InputError,
    PretrainedConfig,
)

ROOM, NEW = 64, 5
SHARED: dict[str, Any] = {"vocab_size": 200, "max_position_embeddings": ROOM, "hidden_size": 32}
CONFIGS: dict[str, PretrainedConfig] = {  # heads of 16, so that steps are compiled; windows shorter than the prompts
    "gpt2": GPT2Config(**SHARED, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=None),
    "gpt_neo": GPTNeoConfig(
        **SHARED,
        num_layers=4,
        num_heads=2,
        attention_types=[[["global", "local"], 2]],
        window_size=5,
        eos_token_id=None,
    ),
    "gpt_neox": GPTNeoXConfig(
        **SHARED, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, eos_token_id=None
    ),
}
FAMILIES = tuple(CONFIGS)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "plain": {"disable_compile": True},
    "sample": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained": {"num_beams": 3, "force_words_ids": [[7, 8]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "lookup": {"prompt_lookup_num_tokens": 2},
    "no cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "offloaded": {"cache_implementation": "offloaded"},
    "chunks": {"prefill_chunk_size": 3},
    "many": {"disable_compile": True, "output_scores": True, "return_dict_in_generate": True},
}
BATCHES, ROWS = 2, 3  # 3 families * 14 modes * 2 batches * 3 rows = 252 masks


@functools.cache
def model_of(family: str) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.25)
    return model


def random_batch(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask (rows, T) with real tokens anywhere, one at least in each row."""
    length = int(torch.randint(1, 16, ()))
    ids = torch.randint(1, 200, (rows, length))
    mask = (torch.rand(rows, length) < torch.tensor([0.2, 0.5, 0.8, 1.0])[torch.randint(0, 4, (rows, 1))]).long()
    mask[torch.arange(rows), torch.randint(0, length, (rows,))] = 1
    return ids, mask


def generate(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    result = model.generate(ids, **{"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options})
    return result if isinstance(result, torch.Tensor) else result.sequences


def alone(model: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    """New tokens of one row (T,) without its padding, on the plain path."""
    row = ids[mask.bool()][None]
    return generate(model, row, **{**options, "disable_compile": True})[:, row.shape[1] :]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_under_any_mask_continues_as_it_does_alone(family: str, mode: str) -> None:
    model, options = model_of(family), MODES[mode]
    for batch in range(BATCHES):
        every, masks = random_batch()
        size = 1 if mode == "lookup" else ROWS  # which takes one row
        for ids, mask in zip(every.split(size), masks.split(size), strict=True):
            seeds = {"seed": [batch + i for i in range(len(ids))]} if mode == "sample" else {}
            result = generate(model, ids, attention_mask=mask, **options, **seeds)
            copies = options.get("num_return_sequences", 1)
            assert torch.equal(result[:, : ids.shape[1]], ids.repeat_interleave(copies, dim=0))
            for i, own in enumerate(result[:, ids.shape[1] :].split(copies)):
                seed = {"seed": [batch + i]} if mode == "sample" else {}
                assert torch.equal(own, alone(model, ids[i], mask[i], **options, **seed)), mask[i].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_cache", [True, False], ids=["cache", "ids alone"])
def test_a_caller_continues_its_own_output(family: str, with_cache: bool) -> None:
    model = model_of(family)
    for _ in range(4):
        ids, mask = random_batch()
        expected = [alone(model, ids[i], mask[i], max_new_tokens=3 * NEW) for i in range(ROWS)]
        sequences, cache = ids, None
        for _ in range(3):
            options: dict[str, Any] = {"past_key_values": cache} if cache is not None else {}
            output = model.generate(
                sequences,
                attention_mask=mask,
                max_new_tokens=NEW,
                pad_token_id=0,
                return_dict_in_generate=True,
                **options,
            )
            sequences, cache = output.sequences, output.past_key_values if with_cache else None
            mask = torch.cat([mask, torch.ones(ROWS, NEW, dtype=torch.long)], dim=1)
        assert torch.equal(sequences[:, ids.shape[1] :], torch.cat(expected))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_cache_with_padding_in_it_is_put_in_order(family: str) -> None:
    model = model_of(family)
    for _ in range(6):
        ids, mask = random_batch()
        if ids.shape[1] < 4:
            continue
        held = ids.shape[1] // 2
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, :held]
        with torch.no_grad():
            first = model(ids[:, :held], attention_mask=mask[:, :held], position_ids=positions)
        result = generate(model, ids, attention_mask=mask, past_key_values=first.past_key_values)
        for i in range(ROWS):
            assert torch.equal(result[i : i + 1, ids.shape[1] :], alone(model, ids[i], mask[i])), mask[i].tolist()


def test_a_window_that_has_let_go_a_real_token_is_refused() -> None:
    config = GPTNeoConfig(
        **{**SHARED, "max_position_embeddings": 200}, num_layers=2, num_heads=2, window_size=5,
        attention_types=[[["global", "local"], 1]],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    ids, mask = torch.randint(1, 200, (1, 160)), torch.ones(1, 160, dtype=torch.long)
    mask[:, 40:159] = 0  # what a local layer has let go lies before this padding
    cache = None
    with torch.no_grad():
        for end in range(1, 160):
            cache = model(ids[:, end - 1 : end], attention_mask=mask[:, :end], past_key_values=cache).past_key_values
    with pytest.raises(InputError, match="pass the prompt without past_key_values"):
        generate(model, ids, attention_mask=mask, past_key_values=cache)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_states_and_weights_of_a_prompt_come_back_in_the_callers_order(family: str) -> None:
    model = model_of(family)
    ids, mask = torch.randint(1, 200, (3, 8)), torch.ones(3, 8, dtype=torch.long)
    mask[0, 5:], mask[1, [0, 3]], mask[2, 2:6] = 0, 0, 0

    model.set_attn_implementation("eager")
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=2, output_hidden_states=True, output_attentions=True,
        return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip
    with torch.no_grad():
        right = model(
            ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), output_hidden_states=True,
            output_attentions=True,
        )  # fmt: skip
    model.set_attn_implementation("sdpa")
    real = mask.bool()
    for own, other in zip(found.hidden_states[0], right.hidden_states, strict=True):
        torch.testing.assert_close(own[real], other[real], atol=1e-5, rtol=1e-5)
    for own, other in zip(found.attentions[0], right.attentions, strict=True):
        torch.testing.assert_close(own.transpose(1, 2)[real], other.transpose(1, 2)[real], atol=1e-5, rtol=1e-5)
    last = found.attentions[1][0]  # (B, H, 1, 9), of the first new token
    assert last.shape[-1] == 9 and float(last.transpose(1, 3)[:, :8][~real].abs().max()) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_under_any_mask(family: str) -> None:
    model = model_of(family)
    ids, mask = random_batch()
    embeds = model.get_input_embeddings()(ids).detach()
    result = generate(model, None, inputs_embeds=embeds, attention_mask=mask)
    for i in range(ROWS):
        assert torch.equal(result[i : i + 1], alone(model, ids[i], mask[i]))


def test_token_types_and_positions_move_with_their_tokens() -> None:
    model, ids = model_of("gpt2"), torch.tensor([[5, 6, 7, 8, 9]])
    mask, types = torch.tensor([[1, 0, 1, 1, 0]]), torch.tensor([[11, 12, 13, 14, 15]])
    positions = torch.tensor([[3, 0, 9, 10, 0]])
    result = generate(model, ids, attention_mask=mask, token_type_ids=types, position_ids=positions)
    real = mask.bool()
    right = generate(model, ids[real][None], token_type_ids=types[real][None], position_ids=positions[real][None])
    assert torch.equal(result[:, 5:], right[:, 3:])


def test_a_streamer_is_handed_the_callers_prompt() -> None:
    parts: list[torch.Tensor] = []

    class Collector:
        def put(self, value: torch.Tensor) -> None:
            parts.append(value)

        def end(self) -> None:
            pass

    ids, mask = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 0]])
    model_of("gpt2").generate(ids, attention_mask=mask, max_new_tokens=2, streamer=Collector(), pad_token_id=0)
    assert torch.equal(parts[0], ids)


def test_a_negative_prompt_padded_on_the_right_is_the_one_without_padding() -> None:
    model, ids = model_of("gpt2"), torch.tensor([[5, 6, 7]])
    negative, mask = torch.tensor([[9, 8, 3, 3]]), torch.tensor([[1, 1, 0, 0]])
    options: dict[str, Any] = {"guidance_scale": 2.0}
    padded = generate(model, ids, negative_prompt_ids=negative, negative_prompt_attention_mask=mask, **options)
    assert torch.equal(padded, generate(model, ids, negative_prompt_ids=negative[:, :2], **options))
