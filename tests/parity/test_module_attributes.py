"""What every submodule says of itself, beside the reference's instance attributes of the same name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import gptrio
from gptrio.models.base.compiled import CompiledStep, compiled_step
from gptrio.testing import assert_close
from tests.reference import assert_same_output, model_pair, token_ids

SIZES: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {
        "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
    },
    "GPTNeoForCausalLM": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "window_size": 4,
        "attention_types": [[["global", "local"], 1]],
    },
    "GPTNeoXForCausalLM": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 64, "rotary_pct": 0.5,
    },
}  # fmt: skip
SCALINGS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
)
LEFT_OUT = {
    "act": "the function inside an activation's module; ours are torch's modules",
    "rope_init_fn": "compared by what it returns",
    "device_map": "filled by the reference's `parallelize`",
    "config": "compared elsewhere",
    "generation_config": "compared elsewhere",
}


def facts(module: nn.Module) -> dict[str, Any]:
    """Public attributes of an instance and its buffers, without parts and hooks."""
    held = {**vars(module), **dict(module.named_buffers(recurse=False))}
    return {name: value for name, value in held.items() if not name.startswith("_") and name not in LEFT_OUT}


def assert_same_facts(reference: nn.Module, ours: nn.Module) -> int:
    compared, parts = 0, dict(ours.named_modules())
    for path, module in reference.named_modules():
        for name, expected in facts(module).items():
            found = getattr(parts[path], name)
            where = f"{path}.{name}: {found} instead of {expected}"
            if isinstance(expected, torch.Tensor):
                torch.testing.assert_close(found, expected, msg=where)
            else:
                assert found == expected, where
            compared += 1
    return compared


@pytest.mark.parametrize("class_name", SIZES)
def test_every_attribute_is_the_references(class_name: str) -> None:
    config_name = class_name.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "Config"
    reference, ours = (
        getattr(library, class_name)(getattr(library, config_name)(vocab_size=50, **SIZES[class_name]))
        for library in (transformers, gptrio)
    )
    assert assert_same_facts(reference, ours) > 100
    if class_name != "GPTNeoForCausalLM" and hasattr(reference.base_model, "h"):
        for model in (reference, ours):
            model.prune_heads({0: [1, 2]})
        attention = [model.base_model.h[0].attn for model in (reference, ours)]
        names = ("num_heads", "split_size", "embed_dim", "head_dim")
        assert [[getattr(each, name) for name in names] for each in attention] == [[2, 16, 32, 8]] * 2


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda each: each and each["rope_type"])
def test_rotary_modules_tell_their_frequencies(scaling: dict[str, Any] | None) -> None:
    sizes = SIZES["GPTNeoXForCausalLM"]
    reference, ours = (
        library.GPTNeoXModel(library.GPTNeoXConfig(vocab_size=50, **sizes, rope_scaling=scaling)).rotary_emb
        for library in (transformers, gptrio)
    )
    assert assert_same_facts(reference, ours) >= 5
    for length in (None, 200):
        expected, found = (each.rope_init_fn(each.config, torch.device("cpu"), length) for each in (reference, ours))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def _replace(rotary: Any) -> None:
    rotary.inv_freq = rotary.inv_freq / 3


def _replace_both(rotary: Any) -> None:
    rotary.inv_freq = rotary.original_inv_freq = rotary.inv_freq / 3


EDITS = {
    "replaced": _replace,
    "both replaced": _replace_both,
    "in place": lambda rotary: rotary.inv_freq.mul_(0.3),
    "registered": lambda rotary: rotary.register_buffer("inv_freq", rotary.inv_freq / 3, persistent=False),
    "fewer": lambda rotary: setattr(rotary, "inv_freq", rotary.inv_freq[:3]),
    "the original": lambda rotary: setattr(rotary, "original_inv_freq", rotary.inv_freq / 3),
    "the factor": lambda rotary: setattr(rotary, "attention_scaling", 1.3),
}


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        (kind, edit)
        for kind in ("default", "dynamic", "longrope")
        for edit in EDITS
        if (kind, edit) != ("dynamic", "fewer")
    ],
)
def test_frequencies_can_be_edited(kind: str, edit: str) -> None:
    factors = {"factor": 2.0, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 3.5]}
    scaling = {"rope_type": kind, **(factors if kind == "longrope" else {"factor": 2.0})}
    sizes = {"hidden_size": 64, "rotary_pct": 0.5, "max_position_embeddings": 16}
    oracle, ours = model_pair("GPTNeoXForCausalLM", **sizes, rope_scaling=None if kind == "default" else scaling)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = token_ids()
    before = ours.generate(ids, **options)
    for model in (oracle, ours):
        EDITS[edit](model.gpt_neox.rotary_emb)
    assert isinstance(compiled_step(ours, 2), CompiledStep)
    assert_close(ours(ids).logits, oracle(ids).logits, 2e-5)
    if edit != "the original":
        assert not torch.equal(ours.generate(ids, **options), before) or kind == "longrope"
    assert torch.equal(ours.generate(ids, **options), oracle.generate(ids, **options))
    longer = token_ids(1, 23)
    if kind != "dynamic" or edit != "the factor":  # which the oracle then sets back for good
        assert_close(ours(longer).logits, oracle(longer).logits, 2e-5)


def test_what_is_told_cannot_be_set_without_effect() -> None:
    attention = gptrio.GPT2Model(gptrio.GPT2Config(vocab_size=50, **SIZES["GPT2LMHeadModel"])).h[0].attn
    for name in ("reorder_and_upcast_attn", "num_heads", "embed_dim"):
        with pytest.raises(AttributeError):
            setattr(attention, name, 0)


@pytest.mark.parametrize(
    ("class_name", "edits"),
    [
        ("GPT2LMHeadModel", {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}),
        ("GPTNeoXForCausalLM", {"scaling": 1.5}),
    ],
)
def test_the_scale_of_a_layer_can_be_set(class_name: str, edits: dict[str, Any]) -> None:
    oracle, ours = model_pair(class_name, **({"hidden_size": 64} if "NeoX" in class_name else {"n_embd": 64}))
    ids, options = token_ids(), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for name, value in edits.items():
        assert torch.equal(ours.generate(ids, **options), oracle.generate(ids, **options))
        for model in (oracle, ours):
            block = model.base_model.h[1] if hasattr(model.base_model, "h") else model.base_model.layers[1]
            attention = block.attn if hasattr(block, "attn") else block.attention
            before = model(ids).logits
            setattr(attention, name, value)
            assert getattr(attention, name) == value
            assert not torch.allclose(model(ids).logits, before)
        assert_close(ours(ids).logits, oracle(ids).logits, 2e-5)
    assert torch.equal(ours.generate(ids, **options), oracle.generate(ids, **options))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("class_name", SIZES)
def test_causality_can_be_switched_off_where_the_reference_reads_the_switch(
    class_name: str, implementation: str
) -> None:
    oracle, ours = model_pair(class_name, implementation)
    oracle.set_attn_implementation("eager" if "NeoFor" in class_name else implementation)
    ids = token_ids()
    for model in (oracle, ours):
        for module in model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False
    whole = torch.ones_like(ids)
    padding = whole.clone()
    padding[0, -3:] = 0
    for mask in (None, whole, padding):
        assert_same_output(ours(ids, attention_mask=mask), oracle(ids, attention_mask=mask), real=mask)
    sees_later = not torch.allclose(ours(ids).logits[:, :5], ours(ids[:, :5]).logits, atol=1e-3)
    assert sees_later == (class_name == "GPTNeoXForCausalLM" and implementation == "sdpa")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(ours.generate(ids, **options), oracle.generate(ids, **options))
