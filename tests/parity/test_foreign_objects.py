"""Objects of Transformers handed to our models and to `generate`: read as what they are, caches filled in place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.integrations import executorch

import gptrio
from gptrio.cache.transformers import TransformersCache, as_own_cache
from gptrio.foreign import CACHE, CONFIGURATION, is_foreign
from tests.reference import model_pair, token_ids
from tests.tiny_tokenizers import write_gpt2, write_gpt_neox

CLASSES = ("GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM")
CACHES: dict[str, Callable[[Any], Any]] = {
    "dynamic": lambda config: transformers.DynamicCache(),
    "dynamic of a configuration": lambda config: transformers.DynamicCache(config=config),
    "static": lambda config: transformers.StaticCache(config, max_cache_len=24),
}
MODES: tuple[dict[str, Any], ...] = (
    {},
    {"num_beams": 3},
    {"penalty_alpha": 0.6, "top_k": 3},
    {"prompt_lookup_num_tokens": 3},
    {"num_beams": 2, "num_return_sequences": 2},
)
CHUNKS = ((0, 4), (4, 9), (9, 10), (10, 11))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("class_name", CLASSES)
@torch.no_grad()
def test_a_cache_of_transformers_is_filled_in_place_and_returned(class_name: str, kind: str) -> None:
    torch.manual_seed(0)
    oracle, ours = model_pair(class_name)
    ids = token_ids()
    expected = oracle(ids).logits
    cache, reference = (CACHES[kind](oracle.config) for _ in range(2))
    for start, end in CHUNKS:
        positions = torch.arange(start, end)
        output = ours(ids[:, start:end], past_key_values=cache, cache_position=positions)
        assert output.past_key_values is cache and cache.get_seq_length() == end
        close(output.logits, expected[:, start:end])
        if (class_name, kind) != ("GPTNeoForCausalLM", "static"):  # the reference's windows are wrong there
            oracle(ids[:, start:end], past_key_values=reference, cache_position=positions)
            for mine, theirs in zip(cache.layers, reference.layers, strict=True):
                close(mine.keys, theirs.keys)
                close(mine.values, theirs.values)
    assert ours(ids[:, :1], past_key_values=cache, use_cache=False).past_key_values is None


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("class_name", CLASSES)
def test_generate_over_a_cache_of_transformers_gives_the_tokens_of_ours(
    class_name: str, kind: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    oracle, ours = model_pair(class_name, eos_token_id=None)
    ids = token_ids(1)
    options = {**options, "max_new_tokens": 8, "do_sample": False}
    cache = CACHES[kind](oracle.config)
    output = ours.generate(ids, past_key_values=cache, return_dict_in_generate=True, **options)
    expected = ours.generate(ids, return_dict_in_generate=True, **options)
    assert torch.equal(output.sequences, expected.sequences)
    assert output.past_key_values is cache
    assert cache.get_seq_length() == expected.past_key_values.get_seq_length()


@pytest.mark.parametrize("kind", CACHES)
def test_a_filled_cache_of_transformers_continues(kind: str) -> None:
    torch.manual_seed(0)
    oracle, ours = model_pair("GPT2LMHeadModel", eos_token_id=None)
    ids = token_ids(1)
    cache = CACHES[kind](oracle.config)
    oracle(ids[:, :6], past_key_values=cache, cache_position=torch.arange(6))
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(ours.generate(ids, past_key_values=cache, **options), ours.generate(ids, **options))


@torch.no_grad()
def test_a_cross_attention_cache_of_transformers_is_filled_once() -> None:
    torch.manual_seed(0)
    oracle, ours = model_pair("GPT2LMHeadModel", add_cross_attention=True)
    ids, states = token_ids(), torch.randn(2, 5, 32)
    cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
    expected = oracle(ids, encoder_hidden_states=states).logits
    for start, end in CHUNKS:
        output = ours(ids[:, start:end], past_key_values=cache, encoder_hidden_states=states)
        close(output.logits, expected[:, start:end])
        assert output.past_key_values is cache
        assert cache.cross_attention_cache.get_seq_length() == 5 and cache.is_updated[0]


@torch.no_grad()
def test_a_full_static_cache_and_a_sliding_one_are_refused() -> None:
    oracle, ours = model_pair("GPT2LMHeadModel")
    with pytest.raises(gptrio.InputError, match="has 11 positions, but the cache was made for 8"):
        ours(token_ids(), past_key_values=transformers.StaticCache(oracle.config, max_cache_len=8))
    sliding = transformers.DynamicCache(config=transformers.MistralConfig(num_hidden_layers=3, sliding_window=4))
    with pytest.raises(gptrio.UnsupportedError, match="has a sliding window"):
        ours(token_ids(), past_key_values=sliding)


def test_a_view_crops_selects_and_forgets_in_the_original() -> None:
    oracle, ours = model_pair("GPT2LMHeadModel")
    for kind in ("dynamic", "static"):
        original = CACHES[kind](oracle.config)
        ours(token_ids(2), past_key_values=original)
        cache = as_own_cache(original)
        assert isinstance(cache, TransformersCache) and as_own_cache(cache) is cache
        keys = original.layers[1].keys.clone()
        cache.batch_select_indices(torch.tensor([1, 0]))
        close(original.layers[1].keys, keys[[1, 0]])
        cache.crop(7)
        assert original.get_seq_length() == cache.get_seq_length() == 7
        close(cache[1][0], keys[[1, 0], :, :7])
        cache.crop(-2)
        assert original.get_seq_length() == 5
        cache.reset()
        assert cache.get_seq_length() == 0


def test_generation_configs_of_transformers_say_what_they_say() -> None:
    torch.manual_seed(0)
    oracle, ours = model_pair("GPT2LMHeadModel")
    ids = token_ids()
    given = transformers.GenerationConfig(
        max_new_tokens=9,
        num_beams=3,
        length_penalty=0.3,
        repetition_penalty=1.4,
        bad_words_ids=[[3]],
        pad_token_id=0,
    )
    expected = oracle.generate(ids, generation_config=given)
    assert torch.equal(ours.generate(ids, generation_config=given), expected)
    marked = transformers.GenerationConfig(
        max_new_tokens=9, pad_token_id=0, watermarking_config=transformers.WatermarkingConfig(bias=9.0)
    )
    assert torch.equal(ours.generate(ids, generation_config=marked), oracle.generate(ids, generation_config=marked))
    oracle.generation_config = ours.generation_config = given
    assert torch.equal(ours.generate(ids, num_beams=2), oracle.generate(ids, num_beams=2))


def test_a_generation_config_given_to_from_pretrained_is_the_models(tmp_path: Path) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel")
    oracle.save_pretrained(tmp_path)
    ids = token_ids()
    for library in (transformers, gptrio):
        given = library.GenerationConfig(max_new_tokens=5, num_beams=2, pad_token_id=0, eos_token_id=None)
        model = type(ours).from_pretrained(tmp_path, generation_config=given)
        expected = type(oracle).from_pretrained(tmp_path, generation_config=given).generate(ids)
        assert torch.equal(model.generate(ids), expected)
        assert model.generation_config.max_new_tokens == 5 and model.generation_config is not given


@pytest.mark.parametrize("class_name", CLASSES)
def test_configurations_of_transformers_build_our_models(class_name: str, tmp_path: Path) -> None:
    oracle, ours = model_pair(class_name, num_labels=3)
    theirs = oracle.config
    theirs.name_or_path = "somewhere"
    theirs.save_pretrained(tmp_path)
    expected = gptrio.AutoConfig.from_pretrained(tmp_path)
    for model in (
        type(ours)(theirs),
        gptrio.AutoModelForCausalLM.from_config(theirs),
        type(ours).from_pretrained(None, config=theirs, state_dict=oracle.state_dict()),
    ):
        assert model.config is model.base_model.config
        expected.dtype = model.config.dtype
        assert model.config == expected and model.config.num_labels == 3
        assert model.attn_implementation == "eager"  # as it is there
    oracle.save_pretrained(tmp_path)
    ids = token_ids()
    loaded = gptrio.AutoModelForCausalLM.from_pretrained(tmp_path, config=theirs)
    close(loaded(ids).logits, oracle(ids).logits)
    with pytest.raises(gptrio.UnsupportedError, match="model_type='mistral'"):
        gptrio.AutoModelForCausalLM.from_config(transformers.MistralConfig())


def test_quantization_configs_of_transformers_are_taken() -> None:
    pytest.importorskip("bitsandbytes")
    options: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    options["bnb_4bit_compute_dtype"] = torch.bfloat16
    given, own = transformers.BitsAndBytesConfig(**options), gptrio.BitsAndBytesConfig(**options)
    ids = token_ids(1)
    logits = []
    for config in (given, own):
        model = gptrio.GPT2LMHeadModel.from_pretrained("gptrio/stdlib-gpt2", quantization_config=config)
        logits.append(model(ids).logits)
    assert torch.equal(*logits)


def test_tokenizers_processors_rules_and_streamers_of_transformers_are_called(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_gpt2(tmp_path)
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    oracle, ours = model_pair("GPT2LMHeadModel", vocab_size=len(tokenizer), eos_token_id=None)
    ids = torch.randint(5, len(tokenizer), (1, 6))
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    stop = tokenizer.decode(ours.generate(ids, **options)[0, -6:-5])
    processors = transformers.LogitsProcessorList([transformers.RepetitionPenaltyLogitsProcessor(1.3)])
    rules = transformers.StoppingCriteriaList([transformers.MaxLengthCriteria(15)])

    class Kept(transformers.TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            shown.append(text)

    for extra in (
        {"stop_strings": [stop], "tokenizer": tokenizer},
        {"logits_processor": processors, "stopping_criteria": rules},
    ):
        shown: list[str] = []
        expected = oracle.generate(ids, **options, **extra)
        assert torch.equal(ours.generate(ids, **options, **extra, streamer=Kept(tokenizer)), expected)
        assert "".join(shown) == tokenizer.decode(expected[0])


def test_tokenizers_of_transformers_translate_the_drafts_of_another_vocabulary(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizers = []
    for name, write in (("GPT2TokenizerFast", write_gpt2), ("GPTNeoXTokenizerFast", write_gpt_neox)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        tokenizers.append(getattr(transformers, name).from_pretrained(tmp_path / name))
    _, ours = model_pair("GPT2LMHeadModel", vocab_size=len(tokenizers[0]), n_positions=64, eos_token_id=None)
    _, draft = model_pair("GPTNeoXForCausalLM", vocab_size=len(tokenizers[1]), eos_token_id=None)
    ids = tokenizers[0]("Hello world", return_tensors="pt").input_ids
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    helped = ours.generate(
        ids, assistant_model=draft, tokenizer=tokenizers[0], assistant_tokenizer=tokenizers[1], **options
    )
    assert torch.equal(helped, ours.generate(ids, **options))


def test_names_alone_make_no_foreign_object() -> None:
    class Cache:
        pass

    assert not is_foreign(Cache(), CACHE) and as_own_cache("text") == "text"
    assert is_foreign(transformers.GPT2Config(), CONFIGURATION)
    assert not is_foreign(gptrio.GPT2Config(), CONFIGURATION)


def test_transformers_is_not_imported_for_it() -> None:
    code = """
import sys, gptrio
from gptrio.testing import tiny_config
model = gptrio.GPT2LMHeadModel(tiny_config())
model.generate(model.dummy_inputs["input_ids"], max_new_tokens=2)
assert "transformers" not in sys.modules and "peft" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("class_name", CLASSES)
def test_functions_of_transformers_export_our_models_with_its_caches(class_name: str) -> None:
    _, model = model_pair(class_name, "sdpa")
    ids = token_ids(1, 6)
    expected = model(ids).logits
    static = {"batch_size": 1, "max_cache_len": 12, "device": "cpu"}
    model.generation_config = gptrio.GenerationConfig(cache_implementation="static", cache_config=static)
    step = executorch.convert_and_export_with_cache(model, strict=False).module()
    steps = [step(input_ids=ids[:, [i]], cache_position=torch.tensor([i])) for i in range(6)]
    close(torch.cat(steps, dim=1), expected)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole = executorch.export_with_dynamic_cache(model, **{f"example_{name}": x for name, x in inputs.items()}).module()
    out = whole(**inputs, past_key_values=transformers.DynamicCache(), use_cache=True)
    close(out.logits, expected)
    close(out.past_key_values.layers[1].keys, model(ids, use_cache=True).past_key_values[1][0])
