"""What `generate` refuses, warns of, and offers beyond the reference's behaviour."""

from __future__ import annotations

import json

import pytest
import torch

import gptrio
from gptrio.errors import GptrioWarning, InputError, OptionError, TokenIdError, UnsupportedError
from gptrio.generation.sampling import most_likely
from gptrio.testing import byte_tokenizer, tiny_config
from tests.cases import first

IDS = torch.tensor([[5, 9, 36]])  # is not soon ended by the model below


def model_of(family="gpt2", seed=0, **overrides):
    torch.manual_seed(seed)
    config = tiny_config(family, initializer_range=0.3, **overrides)
    return gptrio.AutoModelForCausalLM.from_config(config).eval()


MODEL = model_of()
NO_BOS = model_of(bos_token_id=None)
NO_ENDS = model_of(eos_token_id=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_token": 5}, "did you mean 'max_new_tokens'"),
        ({"do_sampel": True}, "did you mean 'do_sample'"),
        ({"strategy": "beam"}, "has no option 'strategy'"),
        ({"temperature": "hot"}, "wrong type"),
        ({"do_sample": True, "temperature": 0}, "do_sample=False"),
        ({"top_p": 1.5, "do_sample": True}, "out of range"),
        ({"max_new_tokens": 0}, "out of range"),
        ({"max_length": 3}, "the prompt has 3 tokens and max_length=3"),
        ({"num_return_sequences": 2}, "would be 2 copies"),
        ({"num_beams": 2, "num_return_sequences": 3}, "more than num_beams"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "not a multiple"),
        ({"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty must be above 0"),
        ({"force_words_ids": [[1]], "num_beams": 1}, "need beams"),
        ({"force_words_ids": [], "num_beams": 2}, "are empty"),
        ({"stop_strings": ["x"]}, "tokenizer"),
        ({"stop_strings": [""], "tokenizer": byte_tokenizer()}, "none of them empty"),
        ({"token_healing": True}, "tokenizer"),
        ({"overflow": "truncate"}, "truncate_left"),
        ({"cache_implementation": "magic"}, "not known"),
        ({"generation_config": {"max_length": 9}}, "GenerationConfig"),
        ({"assistant_model": MODEL, "use_cache": False}, "use_cache=False"),
        ({"assistant_model": MODEL, "cache_implementation": "static"}, "cache_implementation='static'"),
        ({"assistant_model": MODEL, "guidance_scale": 2.0}, "guidance_scale does not go"),
        ({"assistant_model": MODEL, "assistant_tokenizer": byte_tokenizer()}, "leave assistant_tokenizer out"),
        ({"assistant_model": model_of(vocab_size=300)}, "the draft model has 300 tokens"),
        ({"assistant_early_exit": 2}, "must be below the model's 2 layers"),
    ],
    ids=str,
)
def test_impossible_options(options, message):
    with pytest.raises(OptionError, match=message):
        MODEL.generate(IDS, **options)


def test_more_tokens_asked_for_than_allowed():
    with pytest.warns(GptrioWarning, match="at least 8 tokens were asked for and at most 7"):
        assert MODEL.generate(IDS, min_new_tokens=5, max_new_tokens=4).shape[1] == IDS.shape[1] + 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": [[1, 2]]}, InputError, "must be a tensor of token ids"),
        ({"inputs": IDS[0]}, InputError, r"shape \(3,\)"),
        ({"inputs": IDS.float()}, InputError, "float32"),
        ({"inputs": torch.zeros(0, 3, dtype=torch.long)}, InputError, r"shape \(0, 3\)"),
        ({"inputs": IDS, "input_ids": IDS}, InputError, "given twice"),
        ({"inputs": torch.tensor([[5, 257]])}, TokenIdError, "token id 257; the model knows 0 to 256"),
        ({"inputs": torch.tensor([[5, -1]])}, TokenIdError, "token id -1"),
        ({"inputs": IDS, "attention_mask": torch.ones(1, 4)}, InputError, r"\(1, 4\); expected \(1, 3\)"),
        ({"inputs": IDS, "attention_mask": torch.ones(1, 1, 3, 3)}, InputError, "attention_mask has shape"),
        ({"inputs_embeds": torch.zeros(1, 32)}, InputError, "inputs_embeds must be"),
        ({"inputs": IDS, "past_key_values": "cache"}, InputError, "past_key_values is a str"),
        ({"inputs": IDS, "custom_generate": "repo/name"}, UnsupportedError, "never run"),
    ],
    ids=str,
)
def test_impossible_inputs(arguments, error, message):
    with pytest.raises(error, match=message):
        MODEL.generate(**arguments)


def test_an_empty_prompt_starts_from_the_beginning_token():
    expected = MODEL.generate(torch.tensor([[256]]), max_new_tokens=3)
    assert torch.equal(MODEL.generate(max_new_tokens=3), expected)
    assert torch.equal(MODEL.generate(torch.zeros(1, 0, dtype=torch.long), max_new_tokens=3), expected)
    with pytest.raises(OptionError, match="no bos_token_id"):
        NO_BOS.generate()


def prefilled(model, ids):
    return model.generate(ids, max_new_tokens=1, return_dict_in_generate=True).past_key_values


def test_a_cache_that_does_not_fit():
    cache = prefilled(MODEL, torch.tensor([[5, 9, 36, 4]]))
    with pytest.raises(InputError, match="hold 4 positions and the prompt has 3"):
        MODEL.generate(IDS, past_key_values=cache)
    for other in (prefilled(MODEL, IDS.repeat(2, 1)), prefilled(model_of(num_attention_heads=2), IDS)):
        with pytest.raises(InputError, match="past_key_values hold"):
            MODEL.generate(torch.tensor([[5, 9, 36, 4]]), past_key_values=other)
    with pytest.raises(InputError, match="layers"):
        cache = prefilled(model_of(num_hidden_layers=1), IDS)
        MODEL.generate(torch.tensor([[5, 9, 36, 4]]), past_key_values=cache)
    with pytest.raises(OptionError, match="both given"):
        MODEL.generate(IDS, past_key_values=prefilled(MODEL, IDS[:, :2]), cache_implementation="dynamic")


LONG = torch.arange(1, 81)[None]  # the models have 64 positions


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_a_prompt_past_the_context(family):
    model = model_of(family)
    with pytest.raises(OptionError, match=r"80 tokens and the model 64 positions.*truncate_left"):
        model.generate(LONG, max_new_tokens=5)
    result = model.generate(LONG, max_new_tokens=5, overflow="truncate_left")
    assert torch.equal(result, model.generate(LONG[:, -60:], max_new_tokens=5))
    assert model.generate(LONG, overflow="truncate_left").shape[1] <= 65
    assert model.generate(LONG, overflow="truncate_left", max_length=40, eos_token_id=None).shape == (1, 40)
    with pytest.raises(OptionError, match="alone is more than the model's 64 positions"):
        model.generate(LONG, max_new_tokens=65, overflow="truncate_left")


def test_more_tokens_than_positions():
    ids = LONG[:, :60]
    with pytest.raises(OptionError, match="60 tokens of prompt and 10 new ones"):
        MODEL.generate(ids, max_new_tokens=10, eos_token_id=None)
    assert MODEL.generate(ids, max_new_tokens=5, eos_token_id=None).shape == (1, 65)  # the last one is never fed
    ends = MODEL.generate(ids, max_new_tokens=3)[0, -1]
    assert MODEL.generate(ids, max_new_tokens=100, eos_token_id=int(ends)).shape[1] <= 63  # it ends in time
    with pytest.raises(OptionError, match="64 positions"):
        MODEL.generate(
            ids, max_new_tokens=100, eos_token_id=MODEL.generate(ids, max_length=61).add(1)[0, -1].item() % 7
        )


def test_padding_does_not_use_positions_up():
    ids = torch.cat([torch.zeros(1, 40, dtype=torch.long), LONG[:, :30]], dim=1)
    mask = (torch.arange(70) >= 40).long()[None]
    result = MODEL.generate(ids, attention_mask=mask, max_new_tokens=5)
    assert torch.equal(result[:, 40:], MODEL.generate(LONG[:, :30], max_new_tokens=5))


def test_rotary_models_go_on_with_one_warning():
    model = model_of("gpt_neox")
    with pytest.warns(GptrioWarning, match="64 positions") as caught:
        result = model.generate(LONG[:, :60], max_new_tokens=10, eos_token_id=None)
    assert result.shape == (1, 70) and len(caught) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 4, "max_length": 9}, "max_new_tokens=4 wins"),
        ({"temperature": 0.5}, "have no effect: temperature=0.5"),
        ({"output_scores": True}, "without return_dict_in_generate"),
        ({"min_length": 30, "max_new_tokens": 4}, "generation ends at 7"),
        ({"input_ids": torch.tensor([[256, 4], [5, 6]])}, "pass the tokenizer's attention_mask"),
    ],
    ids=str,
)
def test_one_warning_for_one_cause(arguments, message):
    with pytest.warns(GptrioWarning, match=message) as caught:
        MODEL.generate(**{"input_ids": IDS, **arguments})
    assert len(caught) == 1


def test_nothing_wrong_gives_no_warning(recwarn):
    MODEL.generate(IDS)
    MODEL.generate(IDS, max_new_tokens=5, do_sample=True)
    MODEL.generate(IDS, penalty_alpha=0.6, top_k=4)
    MODEL.generate(torch.tensor([[0, 4], [5, 6]]), pad_token_id=0, num_beams=2)
    assert not recwarn.list


def test_greedy_search_asked_for_does_not_warn_of_the_models_sampling_options(recwarn):
    model = model_of()
    greedy = model.generate(IDS, max_new_tokens=5)
    model.generation_config = gptrio.GenerationConfig(do_sample=True, temperature=0.1, top_k=3, top_p=0.5)
    assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), greedy)
    contrastive = model.generate(IDS, max_new_tokens=5, do_sample=False, penalty_alpha=0.6)
    assert torch.equal(contrastive, MODEL.generate(IDS, max_new_tokens=5, penalty_alpha=0.6, top_k=3))
    assert not recwarn.list
    with pytest.warns(GptrioWarning, match="have no effect: top_p=0.9 without"):
        model.generate(IDS, max_new_tokens=5, do_sample=False, top_p=0.9)


def test_the_caller_config_stays_as_it_is():
    config = gptrio.GenerationConfig(max_new_tokens=4, do_sample=True, top_k=7)
    before, own = config.to_dict(), MODEL.generation_config.to_dict()
    result = MODEL.generate(IDS, config, do_sample=False, top_k=50)
    assert config.to_dict() == before and MODEL.generation_config.to_dict() == own
    assert torch.equal(result, MODEL.generate(IDS, max_new_tokens=4))


@pytest.mark.parametrize("defaults", [None, True, False])
def test_the_models_own_defaults(defaults):
    model = model_of()
    model.generation_config = gptrio.GenerationConfig(max_new_tokens=3, eos_token_id=256, repetition_penalty=1.5)
    config = gptrio.GenerationConfig(max_new_tokens=6)
    result = model.generate(IDS, generation_config=config, use_model_defaults=defaults)
    penalty = 1.0 if defaults is False else 1.5
    expected = MODEL.generate(IDS, max_new_tokens=6, repetition_penalty=penalty)
    assert torch.equal(result, expected)


def test_a_result_can_be_trained_on():
    model = model_of()
    ids = model.generate(IDS, max_new_tokens=4)
    model(ids, labels=ids).loss.backward()
    result = model.generate(IDS, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    assert not any(tensor.is_inference() for tensor in [result.sequences, *result.logits])


def test_hooks_see_tensors_that_autograd_can_use():
    model = model_of()
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.generate(IDS, max_new_tokens=3)
    handle.remove()
    assert len(seen) == 3 and not any(tensor.is_inference() for tensor in seen)


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_the_prompt_in_pieces(size):
    ids, mask = torch.tensor([[0, 5, 9, 33, 8, 7], [4, 5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])
    expected = MODEL.generate(ids, attention_mask=mask, max_new_tokens=5)
    assert torch.equal(MODEL.generate(ids, attention_mask=mask, max_new_tokens=5, prefill_chunk_size=size), expected)


@pytest.mark.parametrize(
    "name", ["dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "sliding_window", "hybrid"]
)
@pytest.mark.parametrize("family", first(["gpt_neo", "gpt2", "gpt_neox"]))  # others: cache/test_generation_modes.py
@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"num_beams": 3},
        {"penalty_alpha": 0.5, "top_k": 3},
        {"do_sample": True, "num_return_sequences": 2, "seed": 1},
    ],
    ids=str,
)
def test_caches_by_name(name, family, mode):
    model = model_of(family)
    ids, mask = torch.tensor([[0, 5, 9, 33, 8, 7], [4, 5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])
    options = {"attention_mask": mask, "max_new_tokens": 12, "eos_token_id": None, **mode}
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options, cache_implementation=name), expected)


def test_a_legacy_cache_goes_in_and_comes_out():
    result = MODEL.generate(IDS, max_new_tokens=3, return_dict_in_generate=True, return_legacy_cache=True)
    assert isinstance(result.past_key_values, tuple) and result.past_key_values[0][0].shape == (1, 4, 5, 8)
    longer = torch.cat([result.sequences, torch.tensor([[4]])], dim=1)
    expected = MODEL.generate(longer, max_new_tokens=3)
    assert torch.equal(MODEL.generate(longer, max_new_tokens=3, past_key_values=result.past_key_values), expected)


def test_several_sequences_from_one_cache():
    cache = prefilled(MODEL, IDS)
    longer = torch.tensor([[5, 9, 36, 8]])
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 4, "seed": 2}
    expected = MODEL.generate(longer, **options)
    assert torch.equal(MODEL.generate(longer, **options, past_key_values=cache), expected)


def test_a_decoding_loop_of_the_callers_own():
    def loop(model, ids, logits_processor, stopping_criteria, generation_config, **arguments):
        assert arguments["attention_mask"].shape == ids.shape and generation_config.max_length == 6
        while not stopping_criteria(ids, None).all():
            logits = model(ids).logits[:, -1]
            ids = torch.cat([ids, logits_processor(ids, logits).argmin(-1, keepdim=True)], dim=1)
        return ids

    result = MODEL.generate(IDS, max_new_tokens=3, custom_generate=loop)
    assert result.shape == (1, 6) and not torch.equal(result, MODEL.generate(IDS, max_new_tokens=3))


def test_a_model_that_prepares_its_own_inputs():
    class Shifted(gptrio.GPT2LMHeadModel):
        """Sees every token one higher."""

        def prepare_inputs_for_generation(self, input_ids, **kwargs):
            return super().prepare_inputs_for_generation((input_ids + 1) % 257, **kwargs)

    model = Shifted(MODEL.config).eval()
    model.load_state_dict(MODEL.state_dict())
    logits = [MODEL((IDS + 1) % 257).logits[0, -1]]
    first = int(logits[0].argmax())
    assert model.generate(IDS, max_new_tokens=2)[0, 3] == first
    for options in ({"use_cache": False}, {"num_beams": 2}, {"attention_mask": torch.ones_like(IDS)}):
        assert model.generate(IDS, max_new_tokens=2, **options).shape[1] <= 5


def test_streamers_get_the_end_of_each_row():
    class Recorder:
        """Keeps what it is given."""

        def __init__(self):
            self.tokens, self.ended, self.finished = [], [], False

        def put(self, value):
            self.tokens.append(value)

        def end_row(self, row):
            self.ended.append(row)

        def end(self):
            self.finished = True

    ids = torch.tensor([[5, 9], [4, 7], [8, 1]])
    free = MODEL.generate(ids, max_new_tokens=4, eos_token_id=None)
    recorder = Recorder()
    result = MODEL.generate(ids, max_new_tokens=4, eos_token_id=int(free[1, 2]), pad_token_id=0, streamer=recorder)
    assert torch.equal(recorder.tokens[0], ids) and recorder.finished and 1 in recorder.ended
    assert torch.equal(torch.stack(recorder.tokens[1:], dim=1), result[:, 2:])
    with pytest.raises(OptionError, match="cannot show beams"):
        MODEL.generate(ids, num_beams=2, streamer=Recorder())


def test_streaming_a_drafted_text_gives_the_text():
    tokenizer = byte_tokenizer()
    streamer = gptrio.TextIteratorStreamer(tokenizer, skip_prompt=True)
    result = MODEL.generate(IDS, max_new_tokens=12, assistant_model=MODEL, streamer=streamer, eos_token_id=None)
    assert "".join(streamer) == tokenizer.decode(result[0, 3:].tolist())


def test_token_healing_keeps_the_text_and_may_lengthen_its_last_token(tmp_path):
    letters = ["h", "t", "p", "s", ":", "/", "Ġ", "ht", "htt", "http", "https", ":/", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh t\nht t\nhtt p\nhttp s\n: /\n")
    tokenizer = gptrio.GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    model = model_of(vocab_size=len(letters), bos_token_id=12, eos_token_id=12)
    ids = tokenizer("s http", return_tensors="pt")["input_ids"]
    healed = model.generate(ids, token_healing=True, tokenizer=tokenizer, max_new_tokens=1)
    assert tokenizer.decode(healed[0, :-1].tolist()).startswith("s http")
    logits = model(ids[:, :-1]).logits[0, -1]
    expected = 10 if logits[10] > logits[9] + 1 else 9
    assert healed[0, ids.shape[1] - 1] == expected


def test_guidance_follows_beams():
    negative = torch.tensor([[7, 8, 9]])
    options = {"guidance_scale": 1.7, "negative_prompt_ids": negative, "max_new_tokens": 6, "num_beams": 3}
    flags = {"return_dict_in_generate": True, "output_scores": True}
    results = [MODEL.generate(IDS, **options, **flags, use_cache=use_cache) for use_cache in (True, False)]
    assert torch.equal(results[0].sequences, results[1].sequences)
    torch.testing.assert_close(results[0].sequences_scores, results[1].sequences_scores)


def test_names_of_the_package():
    from gptrio import generation

    assert generation.LogitsProcessorList is gptrio.LogitsProcessorList
    assert generation.GreedySearchDecoderOnlyOutput is gptrio.GenerateDecoderOnlyOutput
    assert generation.GPT2Model is gptrio.GPT2Model  # as in every module of Transformers' paths
    with pytest.raises(AttributeError, match="GPT2Nothing"):
        getattr(generation, "GPT2" + "Nothing")


def test_lengths_without_a_number():
    assert MODEL.generate(IDS, max_length=None, eos_token_id=None).shape == (1, 64)
    assert MODEL.generate(IDS, eos_token_id=None).shape == (1, 23)  # 20 new tokens, as upstream


def test_the_most_likely_token_is_the_first_of_the_largest() -> None:
    scores = torch.tensor([[0.0, 2.0, 2.0, 1.0], [float("-inf")] * 4, [1.0, float("nan"), 3.0, float("nan")]])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert most_likely(scores.to(dtype)).tolist() == scores.to(dtype).argmax(-1).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"do_sample": True, "seed": 1}, {"prompt_lookup_num_tokens": 2}]
)
@pytest.mark.parametrize("pad", [None, 0])
def test_an_empty_list_of_end_tokens_is_none(options, pad):
    ids = torch.tensor([[1, 2, 3, 1, 2]])
    options = {"max_new_tokens": 12, "pad_token_id": pad, "min_new_tokens": 2, "bad_words_ids": [[5]], **options}
    assert torch.equal(MODEL.generate(ids, eos_token_id=[], **options), NO_ENDS.generate(ids, **options))


@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id", "bos_token_id"])
def test_tokens_past_all_tensors_are_named(name):
    ids = {} if name == "bos_token_id" else {"inputs": torch.tensor([[1, 2], [3, 4]])}
    with pytest.raises(OptionError, match=f"{name}=.*must be a token id"):
        NO_BOS.generate(**ids, max_new_tokens=2, **{name: 2**64})


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True, "seed": 1, "num_return_sequences": 2}], ids=str
)
def test_a_prompt_in_chunks_may_have_several_continuations(options):
    ids = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    options = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, **options}
    assert torch.equal(MODEL.generate(ids, prefill_chunk_size=4, **options), MODEL.generate(ids, **options))
