"""The bridge between models: the class of the other library over the same parameters, with the same numbers."""

from __future__ import annotations

import copy
import sys
from typing import Any

import accelerate
import peft
import pytest
import torch
import transformers

import gptrio
from gptrio import InputError, MissingDependencyError, UnsupportedError, from_transformers, to_transformers
from tests.reference import assert_same_output, loss_of, model_pair, task_inputs, token_ids

CLASSES = [
    name
    for name in gptrio.__all__
    if name.startswith("GPT")
    and hasattr(transformers, name)
    and (name.endswith("Model") or "For" in name)
    and "PreTrained" not in name
]
CAUSAL = ("GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM")


def assert_same_storage(one: Any, other: Any) -> None:
    first, second = (dict(model.named_parameters(remove_duplicate=False)) for model in (one, other))
    assert first.keys() == second.keys()
    assert all(first[name] is second[name] for name in first)
    assert one.state_dict().keys() == other.state_dict().keys()


def test_every_class_of_the_reference_is_bridged() -> None:
    assert len(CLASSES) == 16


@pytest.mark.parametrize("class_name", CLASSES)
def test_both_ways_share_parameters_and_give_the_same(class_name: str) -> None:
    torch.manual_seed(0)
    oracle, ours = model_pair(class_name, num_labels=4, pad_token_id=0)
    inputs = task_inputs(class_name)
    theirs = to_transformers(ours)
    assert type(theirs) is type(oracle) and not theirs.training
    assert_same_storage(theirs, ours)
    assert_same_output(ours(**inputs), theirs(**inputs))
    again = from_transformers(theirs)
    assert type(again) is type(ours)
    assert_same_storage(again, ours)
    assert_same_output(again(**inputs), ours(**inputs), 0.0)
    assert {**again.config.to_dict(), "dtype": None} == {**ours.config.to_dict(), "dtype": None}
    assert_same_output(from_transformers(oracle)(**inputs), oracle(**inputs))


@pytest.mark.parametrize("class_name", CAUSAL)
def test_training_one_trains_the_other(class_name: str) -> None:
    torch.manual_seed(0)
    _, ours = model_pair(class_name)
    inputs = task_inputs(class_name)
    theirs = to_transformers(ours.train())
    assert theirs.training
    for trained in (theirs, ours):
        before = ours.eval()(**inputs).logits
        loss_of(trained(**inputs)).backward()
        torch.optim.SGD(trained.parameters(), lr=0.1).step()
        theirs.eval()
        after = ours(**inputs)
        assert not torch.allclose(before, after.logits, atol=1e-3)
        assert_same_output(after, theirs(**inputs))
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        ids = inputs["input_ids"]
        assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))
    ours.to(torch.bfloat16)
    assert theirs.dtype == torch.bfloat16
    if ours.tied_weights():
        assert theirs.lm_head.weight is ours.get_input_embeddings().weight


@pytest.mark.parametrize(
    "options",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"tie_word_embeddings": False},
        {"add_cross_attention": True},
        {"pruned_heads": {0: [1, 3]}},
    ],
    ids=str,
)
def test_whatever_the_configuration_says_is_carried_over(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours = gptrio.GPT2LMHeadModel(gptrio.GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, **options)).eval()
    ids = token_ids()
    assert_same_output(to_transformers(ours)(ids), ours(ids))
    assert_same_storage(from_transformers(to_transformers(ours)), ours)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_stretched_positions_are_carried_over(kind: str) -> None:
    torch.manual_seed(0)
    scaling = {"rope_type": kind, "factor": 2.0}
    _, ours = model_pair("GPTNeoXForCausalLM", rope_scaling=scaling, rotary_pct=0.5)
    ids = token_ids(length=30 if kind == "dynamic" else 9)
    for edit in (1, 3):
        ours.gpt_neox.rotary_emb.inv_freq = ours.gpt_neox.rotary_emb.inv_freq / edit
        theirs = to_transformers(ours)
        assert_same_output(theirs(ids), ours(ids))
        assert_same_output(from_transformers(theirs)(ids), ours(ids))


def test_modes_names_and_generation_options_are_handed_over() -> None:
    _, ours = model_pair("GPTNeoXForCausalLM", dtype=torch.bfloat16)
    ours.generation_config = gptrio.GenerationConfig(max_new_tokens=7, do_sample=True, top_k=3, pad_token_id=0)
    ours.name_or_path = ours.config.name_or_path = "somewhere/there"
    ours.gpt_neox.layers[1].train()
    ours.gradient_checkpointing_enable()
    ours.embed_out.weight.requires_grad_(False)
    theirs = to_transformers(ours)
    assert theirs.dtype == theirs.config.dtype == torch.bfloat16 and theirs.name_or_path == "somewhere/there"
    assert theirs.gpt_neox.rotary_emb.inv_freq.dtype == torch.float32
    assert theirs.gpt_neox.layers[1].training and not theirs.gpt_neox.layers[0].training
    assert not theirs.embed_out.weight.requires_grad and theirs.is_gradient_checkpointing
    assert (theirs.generation_config.max_new_tokens, theirs.generation_config.top_k) == (7, 3)
    again = from_transformers(theirs)
    assert again.generation_config.to_diff_dict() == {
        **ours.generation_config.to_diff_dict(),
        "transformers_version": again.generation_config.transformers_version,
    }
    assert again.gpt_neox.layers[1].training and again.is_gradient_checkpointing
    assert again.name_or_path == "somewhere/there" and again.dtype == torch.bfloat16


def test_a_model_without_storage_has_none_on_the_other_side() -> None:
    with torch.device("meta"):
        ours = gptrio.GPT2LMHeadModel(gptrio.GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4))
    theirs = to_transformers(ours)
    assert all(parameter.is_meta for parameter in theirs.parameters())
    assert_same_storage(theirs, ours)


def test_classes_of_users_become_those_they_derive_from() -> None:
    class Mine(gptrio.GPT2LMHeadModel):
        pass

    class Theirs(transformers.GPT2LMHeadModel):
        pass

    oracle, ours = model_pair("GPT2LMHeadModel")
    assert type(to_transformers(Mine(ours.config))) is transformers.GPT2LMHeadModel
    assert type(from_transformers(Theirs(oracle.config))) is gptrio.GPT2LMHeadModel


@pytest.mark.parametrize("load_in", ["nf4", "llm_int8"])
def test_layers_of_bitsandbytes_are_shared(load_in: str) -> None:
    pytest.importorskip("bitsandbytes")
    ours = gptrio.GPT2LMHeadModel.from_pretrained("gptrio/stdlib-gpt2", load_in=load_in)
    theirs = to_transformers(ours)
    ids = token_ids(1)
    actual, expected = theirs(ids).logits.float(), ours(ids).logits.float()
    assert (actual - expected).std() < 0.02 * expected.std()  # half precision
    assert theirs.transformer.h[0].mlp.c_fc is ours.transformer.h[0].mlp.c_fc
    assert theirs.is_quantized and theirs.config.quantization_config.load_in_4bit == (load_in == "nf4")
    again = from_transformers(theirs)
    assert torch.equal(again(ids).logits, ours(ids).logits)


def test_what_cannot_be_bridged_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, ours = model_pair("GPT2LMHeadModel")
    quantized = gptrio.GPT2LMHeadModel.from_pretrained("gptrio/stdlib-gpt2", load_in="int8")
    with pytest.raises(UnsupportedError, match="load it without quantization, or with BitsAndBytesConfig"):
        to_transformers(quantized)
    for model, convert in ((copy.deepcopy(ours), to_transformers), (copy.deepcopy(oracle), from_transformers)):
        model.add_adapter(peft.LoraConfig(r=2, fan_in_fan_out=True))
        with pytest.raises(UnsupportedError, match="before layers are replaced or adapters added"):
            convert(model)
    adapted = peft.get_peft_model(copy.deepcopy(ours), peft.LoraConfig(r=2, fan_in_fan_out=True))
    with pytest.raises(InputError, match=r"PEFT has wrapped; merge_and_unload\(\) gives"):
        to_transformers(adapted)
    assert to_transformers(adapted.merge_and_unload())
    for model, convert in ((copy.deepcopy(ours), to_transformers), (copy.deepcopy(oracle), from_transformers)):
        with pytest.raises(UnsupportedError, match="dispatch the other one"):
            convert(accelerate.cpu_offload(model))
    ours.transformer.h[0].mlp.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedError, match=r"h\.0\.mlp\.extra\.weight"):
        to_transformers(ours)
    with pytest.raises(InputError, match="a model or tokenizer of gptrio; got GPT2LMHeadModel"):
        to_transformers(oracle)
    with pytest.raises(InputError, match="a model or tokenizer of Transformers; got str"):
        from_transformers("gpt2")
    with pytest.raises(UnsupportedError, match="gptrio has no class like BertModel"):
        from_transformers(transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, vocab_size=9)))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="pip install 'transformers"):
        to_transformers(ours)
