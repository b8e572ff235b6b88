"""Attention functions of users, registered under a name in both libraries."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gptrio.integrations.sdpa_attention import sdpa_attention_forward
from gptrio.models.gpt2.modeling_gpt2 import eager_attention_forward
from torch import Tensor
from transformers import masking_utils as their_masks
from transformers import modeling_utils as theirs

import gptrio
from gptrio import masking_utils as our_masks
from gptrio import modeling_utils as ours
from gptrio.kernels.cpu_decode import Reason
from gptrio.models.base.compiled import compiled_step
from gptrio.nn.masks import AttentionMask
from gptrio.testing import assert_close, byte_tokenizer
from tests.parity.generation import FAMILIES, pair_of_models
from tests.reference import assert_same_output, model_pair, padded, positions_of, run_in_chunks, token_ids

NAMES = ["GPT2LMHeadModel", "GPTNeoXForCausalLM"]
REGISTRIES = [
    (theirs.AttentionInterface, their_masks.AttentionMaskInterface),
    (ours.AttentionInterface, our_masks.AttentionMaskInterface),
]


@pytest.fixture
def calls() -> Iterator[list[tuple[int, int]]]:
    """The numbers of queries and keys of each call; the functions have their names in this test alone."""
    found: list[tuple[int, int]] = []

    def soft_capped(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **given: Any) -> Any:
        """Attention with scores that a tanh limits, which no back end computes."""
        found.append((query.shape[2], key.shape[2]))
        scores = 5 * torch.tanh(query @ key.transpose(2, 3) * query.shape[3] ** -0.5)
        if attention_mask is None:
            shape = scores.shape[-2:]
            attention_mask = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask[..., : key.shape[2]], torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask[..., : key.shape[2]]
        weights = torch.softmax(scores, -1)
        if given["head_mask"] is not None:
            weights = weights * given["head_mask"]
        return (weights @ value).transpose(1, 2).contiguous(), weights

    before = [dict(registry._global_mapping) for pair in REGISTRIES for registry in pair]
    for functions, masks in REGISTRIES:
        functions.register("capped", soft_capped)
        for kind in ("sdpa", "eager"):
            functions.register(f"capped_{kind}", soft_capped)
            masks.register(f"capped_{kind}", masks()[kind])
    yield found
    for registry, content in zip([each for pair in REGISTRIES for each in pair], before, strict=True):
        registry._global_mapping.clear()
        registry._global_mapping.update(content)


@pytest.mark.parametrize("class_name", NAMES)
@pytest.mark.parametrize("name", ["capped", "capped_sdpa", "capped_eager"])
def test_logits_and_weights_are_those_of_the_reference(calls: list, class_name: str, name: str) -> None:
    oracle, model = model_pair(class_name)
    for each in (oracle, model):
        each.set_attn_implementation(name)
    inputs: dict[str, Any] = {"input_ids": token_ids(3, 9)}
    if name != "capped":  # without a function for its mask, the reference's sees padding
        inputs["attention_mask"] = padded([9, 4, 7], 9, "left")
        inputs["position_ids"] = positions_of(inputs["attention_mask"])
    real = inputs.get("attention_mask", torch.ones(3, 9)).bool()
    heads = torch.tensor([[1.0, 0.0, 0.5, 1.0]] * model.config.num_hidden_layers)
    for options in ({}, {"head_mask": heads[:, : model.config.num_attention_heads]}):
        if options and class_name == "GPTNeoXForCausalLM":
            continue  # the reference adds the least number to the mask of a head that is removed
        expected = oracle(**inputs, **options, output_attentions=True)
        actual = model(**inputs, **options, output_attentions=True)
        assert_close(actual.logits[real], expected.logits[real], 1e-5)
        for one, other in zip(actual.attentions, expected.attentions, strict=True):
            assert_close(one.transpose(1, 2)[real], other.transpose(1, 2)[real], 1e-5)
    eager = model_pair(class_name)[1].eval()
    eager.load_state_dict(model.state_dict())
    assert not torch.allclose(eager(**inputs).logits[real], model(**inputs).logits[real], atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("name", ["capped", "capped_sdpa"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_tokens_are_those_of_the_reference(calls: list, family: str, name: str, options: dict) -> None:
    model, oracle = pair_of_models(family, seed=3)
    ids = token_ids(2, 6, model.config.vocab_size - 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name != "capped":
        inputs["attention_mask"][0, :2] = 0
    elif options.get("cache_implementation") == "static":
        pytest.skip("without a mask, the reference's function sees the empty slots")
    kept = model.config._attn_implementation, oracle.config._attn_implementation
    try:
        found = []
        for each in (oracle, model):
            each.set_attn_implementation(name)
            calls.clear()
            tokens = each.generate(**inputs, **options, max_new_tokens=7, do_sample=False, disable_compile=True)
            found.append((tokens.tolist(), calls[:]))
        assert found[1] == found[0]
    finally:
        model.set_attn_implementation(kept[0])
        oracle.set_attn_implementation(kept[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mask", [None, "eager", "sdpa"])
def test_windows_padding_and_chunks_are_masked(calls: list, family: str, mask: str | None) -> None:
    model = pair_of_models(family)[0]
    functions, masks = REGISTRIES[1]
    functions.register("formula", eager_attention_forward)
    functions.register("torch", sdpa_attention_forward_of_a_user)
    if mask is not None:
        masks.register("formula", masks()["eager"])
        masks.register("torch", masks()[mask])
    ids, real = token_ids(2, 21, 250), padded([21, 17], 21, "left")  # GPT-Neo's window is 8
    inputs = {"input_ids": ids, "attention_mask": real, "position_ids": positions_of(real)}
    kept = model.config._attn_implementation
    try:
        found = []
        for name in ("eager", "formula", "torch"):
            model.set_attn_implementation(name)
            chunks = run_in_chunks(model, ids, [16, 5], real)[real.bool()]
            start = {"input_ids": ids, "attention_mask": real, "max_new_tokens": 6, "do_sample": False}
            tokens = [model.generate(**start), model.generate(**start, cache_implementation="static")]
            found.append((model(**inputs).logits[real.bool()], chunks, *map(Tensor.float, tokens)))
        for other in found[1:]:
            for actual, expected in zip(other, found[0], strict=True):
                assert_close(actual, expected, 1e-5)
    finally:
        model.set_attn_implementation(kept)


def sdpa_attention_forward_of_a_user(*args: Any, **kwargs: Any) -> Any:
    return sdpa_attention_forward(*args, **kwargs)


def test_attention_to_an_encoder_is_the_references(calls: list) -> None:
    oracle, model = model_pair("GPT2LMHeadModel", add_cross_attention=True)
    states, real = torch.randn(2, 7, model.config.n_embd), padded([7, 3], 7, "right")
    for each in (oracle, model):
        each.set_attn_implementation("capped_eager")
        each.transformer._attn_implementation = "capped_eager"  # where the reference looks for it
    inputs = {"input_ids": token_ids(2, 5), "encoder_hidden_states": states, "encoder_attention_mask": real}
    assert_close(model(**inputs).logits, oracle(**inputs).logits, 1e-5)
    assert {keys for _, keys in calls} == {5, 7}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_is_given_wherever_a_model_is_made(calls: list, family: str, tmp_path: Path) -> None:
    model = pair_of_models(family)[0]
    model.save_pretrained(tmp_path)
    auto, ids = gptrio.AutoModelForCausalLM, token_ids(1, 5)
    made = [
        auto.from_pretrained(tmp_path, attn_implementation="capped"),
        auto.from_config(copy.deepcopy(model.config), attn_implementation="capped"),
        type(model)(type(model.config)(**{**model.config.to_dict(), "attn_implementation": "capped"})),
        auto.from_pretrained(tmp_path, attn_implementation={"": "capped"}),
    ]
    for each in made:
        calls.clear()
        each.eval()(ids)
        assert calls == [(5, 5)] * each.config.num_hidden_layers
    made[0].save_pretrained(tmp_path / "again")
    assert auto.from_pretrained(tmp_path / "again").attn_implementation == "sdpa"


def test_a_name_that_nothing_has_is_refused_with_those_that_there_are(calls: list) -> None:
    model = pair_of_models("gpt2")[0]
    with pytest.raises(ValueError, match=r"'cap'.*eager, sdpa, flash_attention_2, capped, capped_sdpa"):
        model.set_attn_implementation("cap")
    with pytest.raises(ValueError, match="'cap'"):
        gptrio.AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="cap")


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_paths_step_aside(calls: list, family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = gptrio.AutoModelForCausalLM.from_config(gptrio.testing.tiny_config(family)).eval()
    model.set_attn_implementation("capped")
    reason = compiled_step(model)
    assert isinstance(reason, Reason) and "'capped'" in reason
    with caplog.at_level("INFO", "gptrio"):
        model.generate(token_ids(1, 5), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert "generate goes on without next logits: attention is the registered function 'capped'" in caplog.text
    layers = model.config.num_hidden_layers
    assert [queries for queries, _ in calls] == [5] * layers + [1] * 3 * layers


def test_texts_are_scored_by_a_registered_function(calls: list) -> None:
    model, tokenizer = gptrio.GPTNeoForCausalLM(gptrio.testing.tiny_config("gpt_neo")).eval(), byte_tokenizer()
    functions, _ = REGISTRIES[1]
    functions.register("formula", eager_attention_forward)
    texts = ["a text, longer than the window", "another", "a text that begins alike"]
    expected = [each.log_probs for each in gptrio.score(model, tokenizer, texts)]
    model.set_attn_implementation("formula")
    for actual, other in zip(gptrio.score(model, tokenizer, texts), expected, strict=True):
        assert_close(torch.tensor(actual.log_probs), torch.tensor(other), 1e-5)


def test_a_back_end_can_be_replaced(calls: list) -> None:
    oracle, model = model_pair("GPTNeoXForCausalLM", "sdpa")
    oracle.set_attn_implementation("sdpa")
    ids, (functions, _) = token_ids(), REGISTRIES[1]
    before = model(ids).logits
    for library in (theirs, ours):
        library.ALL_ATTENTION_FUNCTIONS["sdpa"] = functions()["capped"]
    try:
        assert_close(model(ids).logits, oracle(ids).logits, 1e-5)
        assert not torch.allclose(model(ids).logits, before, atol=1e-3)
    finally:
        for library in (theirs, ours):
            del library.ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert torch.equal(model(ids).logits, before)


def test_a_result_of_another_shape_is_refused() -> None:
    model = model_pair("GPT2LMHeadModel")[1]
    functions, _ = REGISTRIES[1]
    functions.register("sideways", lambda module, query, key, value, attention_mask, **kwargs: (query, None))
    try:
        model.set_attn_implementation("sideways")
        with pytest.raises(ValueError, match=r"'sideways' returned .*transpose"):
            model(token_ids(2, 7))
    finally:
        functions._global_mapping.pop("sideways")


# masks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdpa_mask", "eager_mask", "flash_attention_mask"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("real", [None, 7, 5])
@pytest.mark.parametrize("geometry", [(0, 6, 0, 6), (4, 2, 1, 5), (5, 1, 0, 6), (0, 4, 0, 9)])
def test_masks_are_those_of_the_reference(
    name: str, window: int | None, real: int | None, geometry: tuple[int, ...]
) -> None:
    start, queries, offset, keys = geometry
    given = None if real is None else padded([real, 3], real, "left").bool()
    if given is not None and name == "flash_attention_mask" and real < keys:
        pytest.skip("a mask of flash attention is as long as the keys")
    found = []
    for library in (their_masks, our_masks):
        kind = library.causal_mask_function if window is None else library.sliding_window_causal_mask_function(window)
        found.append(
            getattr(library, name)(
                batch_size=2,
                cache_position=torch.arange(start, start + queries),
                kv_length=keys,
                kv_offset=offset,
                mask_function=kind,
                attention_mask=given,
                local_size=window,
                allow_is_causal_skip=True,
                dtype=torch.float32,
            )
        )
    expected, actual = found
    assert (actual is None) == (expected is None)
    if expected is not None:
        assert actual.dtype == expected.dtype and torch.equal(actual, expected)


def test_mask_functions_are_joined_as_in_the_reference() -> None:
    packed = torch.tensor([[0, 0, 1, 1, 1]])
    found = []
    for library in (their_masks, our_masks):
        both = library.and_masks(library.causal_mask_function, library.packed_sequence_mask_function(packed))
        either = library.or_masks(both, library.sliding_window_overlay(2))
        found.append(library.sdpa_mask(1, torch.arange(5), 5, mask_function=either, allow_is_causal_skip=False))
    assert torch.equal(found[1], found[0])


def test_keys_in_slots_have_the_mask_of_their_positions() -> None:
    slots = torch.tensor([5, 6, -1, 3, 4])
    real = torch.tensor([[1, 1, 1, 1, 0, 1, 1]]).bool()
    mask = AttentionMask(1, 5, slots.device, window=3, attention_mask=real, positions=torch.tensor([6]))
    mask.key_positions = slots
    made = our_masks.mask_for("eager", torch.zeros(1, 1, 1, 4), mask, None)
    assert (made == 0).flatten().tolist() == [True, True, False, False, False]


def test_flex_attention_is_computed_by_sdpa_where_the_reference_has_it() -> None:
    oracle, model = model_pair("GPTNeoXForCausalLM", "flex_attention")
    ids = token_ids()
    mask = padded([7, 11], 11, "right")
    assert model.config._attn_implementation == "flex_attention" and model.attn_implementation == "sdpa"
    assert_same_output(model(ids, attention_mask=mask), oracle(ids, attention_mask=mask), real=mask)
    again = gptrio.GPTNeoXForCausalLM(gptrio.GPTNeoXConfig.from_dict(model.config.to_dict()))
    again.set_attn_implementation("flex_attention")
    assert again.attn_implementation == "sdpa"
    assert gptrio.to_transformers(model).config._attn_implementation == "flex_attention"
    for config_class in (gptrio.GPT2Config, gptrio.GPTNeoConfig):
        with pytest.raises(gptrio.UnsupportedError, match="attn_implementation='flex_attention' is not known"):
            gptrio.AutoModel.from_config(config_class(attn_implementation="flex_attention"))


def doubled(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **given: Any) -> Any:
    """Twice the values, over the mask that Transformers gives, and the table that its layers of GPT-2 hold."""
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5 + attention_mask[..., : key.shape[2]]
    if hasattr(module, "bias"):
        queries, keys = query.shape[2], key.shape[2]
        scores = torch.where(module.bias[:, :, keys - queries : keys, :keys], scores, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1)
    return (weights @ (2 * value)).transpose(1, 2), weights


@pytest.mark.parametrize("path", ["gpt2.modeling_gpt2", "gpt_neox.modeling_gpt_neox"])
def test_the_eager_function_of_a_family_may_be_replaced(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    pair = model_pair("GPT2LMHeadModel" if "gpt2" in path else "GPTNeoXForCausalLM")
    ids, mask = token_ids(2, 9), padded([9, 6], 9, "left")
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = pair[1](ids).logits
    with monkeypatch.context() as patched:
        for library in ("transformers", "gptrio"):
            patched.setattr(f"{library}.models.{path}.eager_attention_forward", doubled)
        given = {"attention_mask": mask, "position_ids": positions_of(mask)}
        expected, found = (model(ids, **given) for model in pair)
        assert_close(found.logits[mask.bool()], expected.logits[mask.bool()], 2e-5)
        assert torch.equal(*(model.generate(ids, **options) for model in pair))
        assert isinstance(compiled_step(pair[1], 2), Reason)
        pair[1].set_attn_implementation("sdpa")
        assert_close(pair[1](ids).logits, plain, 2e-5)
    pair[1].set_attn_implementation("eager")
    assert_close(pair[1](ids).logits, plain, 2e-5)


@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
def test_attn_of_gpt_neo_may_be_replaced(monkeypatch: pytest.MonkeyPatch, back_end: str) -> None:
    pair = model_pair("GPTNeoForCausalLM", back_end)
    ids = token_ids(2, 9)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for model in pair:
        kind = type(model.transformer.h[0].attn.attention)

        def doubling(self: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, inner: Any = kind._attn) -> Any:
            return inner(self, query, key, 2 * value, *args)

        monkeypatch.setattr(kind, "_attn", doubling)
    expected, found = (model(ids) for model in pair)
    assert_close(found.logits, expected.logits, 2e-5)
    assert torch.equal(*(model.generate(ids, **options) for model in pair))
    oracle, ours = (model.transformer.h[1].attn.attention for model in pair)
    x = torch.randn(2, 9, 32)
    q, k, v = (layer._split_heads(x, 4, 8) for layer in (oracle, ours, ours))
    assert_close(ours._merge_heads(ours._attn(q, k, v)[0], 4, 8), oracle._merge_heads(oracle._attn(q, k, v)[0], 4, 8))
