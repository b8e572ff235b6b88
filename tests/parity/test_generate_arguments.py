"""Arguments of `generate` besides options, against transformers 4.56.2."""

from __future__ import annotations

import random

import pytest
import torch

import gptrio
from tests.parity.generation import FAMILIES, pair_of_models, random_batch

transformers = pytest.importorskip("transformers")

MODES = [{}, {"num_beams": 3}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
every_mode = pytest.mark.parametrize("mode", MODES, ids=["greedy", "beams", "groups"])


def batch_of(seed, rows=2):
    return random_batch(random.Random(seed), 257, rows=rows, padded=True)


def compare(models, arguments, **options):
    result, expected = (model.generate(**arguments, **options, pad_token_id=0) for model in models)
    assert torch.equal(result, expected), (result, expected)
    return result


@every_mode
@pytest.mark.parametrize("family", FAMILIES)
def test_allowed_tokens(family, mode):
    def allowed(row, ids):
        return [(int(ids[-1]) * 7 + k + row) % 257 for k in range(1, 9)]

    compare(pair_of_models(family), batch_of(1), max_new_tokens=6, prefix_allowed_tokens_fn=allowed, **mode)


@every_mode
@pytest.mark.parametrize("family", FAMILIES)
def test_own_processors_and_criteria(family, mode):
    class Favour:
        """Raises the scores of even tokens; not derived from any library's class."""

        def __call__(self, input_ids, scores):
            scores = scores.clone()
            scores[:, ::2] += 1.0
            return scores

    class Enough:
        """Ends a row after a token that divides by 3."""

        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] % 3 == 0

    results = []
    for library, model in zip((gptrio, transformers), pair_of_models(family), strict=True):
        processors = library.LogitsProcessorList([Favour()])
        criteria = library.StoppingCriteriaList([Enough()])
        options = {"max_new_tokens": 8, "pad_token_id": 7, "eos_token_id": [9, 11], **mode}
        results.append(
            model.generate(**batch_of(2), logits_processor=processors, stopping_criteria=criteria, **options)
        )
    assert torch.equal(*results)


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_with_a_negative_prompt(family):
    negative = torch.tensor([[7, 8, 9], [1, 2, 3]])
    options = {"guidance_scale": 1.7, "negative_prompt_ids": negative, "max_new_tokens": 6}
    compare(pair_of_models(family), batch_of(3), **options)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    ours, _ = pair_of_models(family)
    result = ours.generate(**batch_of(3), **options, negative_prompt_attention_mask=mask)
    alone = ours.generate(
        **{name: value[:1] for name, value in batch_of(3).items()},
        **{**options, "negative_prompt_ids": torch.tensor([[8, 9]])},
    )
    assert torch.equal(result[0, : alone.shape[1]], alone[0])


@every_mode
def test_token_types(mode):
    batch = batch_of(4)
    batch["token_type_ids"] = torch.randint(0, 257, batch["input_ids"].shape)
    compare(pair_of_models("gpt2"), batch, max_new_tokens=6, **mode)


@every_mode
def test_cross_attention(mode):
    ours, theirs = pair_of_models("gpt2", add_cross_attention=True)
    batch = batch_of(5)
    batch["encoder_hidden_states"] = torch.randn(2, 5, 32)
    batch["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    for use_cache in (True, False):
        compare((ours, theirs), batch, max_new_tokens=6, use_cache=use_cache, **mode)


@every_mode
@pytest.mark.parametrize("family", FAMILIES)
def test_configuration_objects(family, mode):
    results = []
    for library, model in zip((gptrio, transformers), pair_of_models(family), strict=True):
        config = library.GenerationConfig(max_new_tokens=5, repetition_penalty=1.3, pad_token_id=0, **mode)
        results.append(model.generate(**batch_of(6), generation_config=config, repetition_penalty=1.5))
    assert torch.equal(*results)


@every_mode
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_without_a_mask(family, mode):
    ids = batch_of(7)["input_ids"]
    compare(pair_of_models(family), {"input_ids": ids}, max_new_tokens=5, **mode)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_loop_of_ones_own_may_pass_all_arguments_on_to_the_model(family):
    """As the reference's guide has it; among them are `streamer` and `synced_gpus`."""

    def loop(model, input_ids, attention_mask, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        tokens = input_ids
        while input_ids.shape[1] < stopping_criteria[0].max_length:
            logits = model(tokens, attention_mask=attention_mask, **model_kwargs).logits
            tokens = logits_processor(input_ids, logits[:, -1, :]).argmax(-1)[:, None]
            input_ids = torch.cat((input_ids, tokens), dim=-1)
            attention_mask = torch.cat((attention_mask, torch.ones_like(tokens)), dim=-1)
        return input_ids

    results = [
        model.generate(torch.tensor([[3, 9, 4]]), max_new_tokens=5, pad_token_id=1, custom_generate=loop)
        for model in pair_of_models(family)
    ]
    assert torch.equal(*results)
