"""Names of tensors: prefixes, heads, old spellings, buffers, ties."""

from __future__ import annotations

import subprocess
import sys

from gptrio.checkpoint.keys import plan_keys

BASE = ["wte.weight", "h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.attn.c_attn.bias"]
HEAD = [f"transformer.{key}" for key in BASE] + ["lm_head.weight"]
TIED = {"lm_head.weight": "transformer.wte.weight"}


def test_same_names() -> None:
    plan = plan_keys(HEAD, HEAD, base_model_prefix="transformer", tied=TIED)
    assert plan.sources == {key: key for key in HEAD}
    assert (plan.missing, plan.unexpected) == ([], [])


def test_base_checkpoint_into_a_head_class() -> None:
    plan = plan_keys(HEAD, BASE, base_model_prefix="transformer", tied=TIED)
    assert plan.sources == {f"transformer.{key}": key for key in BASE}
    assert (plan.missing, plan.unexpected) == ([], [])


def test_untied_head_that_the_checkpoint_lacks_is_missing() -> None:
    plan = plan_keys(HEAD, BASE, base_model_prefix="transformer")
    assert plan.missing == ["lm_head.weight"]


def test_head_checkpoint_into_a_base_model() -> None:
    plan = plan_keys(BASE, HEAD, base_model_prefix="transformer")
    assert plan.sources == {key: f"transformer.{key}" for key in BASE}
    assert (plan.missing, plan.unexpected) == ([], ["lm_head.weight"])


def test_either_of_two_tied_names_is_enough() -> None:
    keys = [key for key in HEAD if key != "transformer.wte.weight"]
    plan = plan_keys(HEAD, keys, base_model_prefix="transformer", tied=TIED)
    assert plan.missing == []
    neither = [key for key in keys if key != "lm_head.weight"]
    plan = plan_keys(HEAD, neither, base_model_prefix="transformer", tied=TIED)
    assert plan.missing == ["transformer.wte.weight", "lm_head.weight"]


def test_heads_of_other_names() -> None:
    for ours, theirs in (("embed_out.weight", "lm_head.weight"), ("lm_head.weight", "embed_out.weight")):
        plan = plan_keys([ours, "gpt_neox.embed_in.weight"], [theirs, "gpt_neox.embed_in.weight"])
        assert plan.sources[ours] == theirs
        assert (plan.missing, plan.unexpected) == ([], [])


def test_old_layer_norm_names() -> None:
    plan = plan_keys(HEAD, ["h.0.ln_1.gamma", "h.0.ln_1.beta"], base_model_prefix="transformer", tied=TIED)
    assert plan.sources["transformer.h.0.ln_1.weight"] == "h.0.ln_1.gamma"
    assert plan.sources["transformer.h.0.ln_1.bias"] == "h.0.ln_1.beta"
    assert plan.unexpected == []


def test_masks_and_rotary_tables_are_passed_over() -> None:
    buffers = [
        "h.0.attn.bias",
        "h.0.attn.masked_bias",
        "h.0.crossattention.bias",
        "transformer.h.0.attn.attention.bias",
        "transformer.h.0.attn.attention.masked_bias",
        "gpt_neox.layers.0.attention.bias",
        "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
        "gpt_neox.rotary_emb.inv_freq",
    ]
    plan = plan_keys(HEAD, HEAD + buffers, base_model_prefix="transformer")
    assert (plan.missing, plan.unexpected) == ([], [])
    plan = plan_keys([], ["h.0.attn.c_attn.bias", "layers.0.attention.dense.bias"])
    assert plan.unexpected == ["h.0.attn.c_attn.bias", "layers.0.attention.dense.bias"]


def test_exact_name_wins_over_a_spelling() -> None:
    plan = plan_keys(BASE, ["h.0.ln_1.gamma", *BASE], base_model_prefix="transformer")
    assert plan.sources["h.0.ln_1.weight"] == "h.0.ln_1.weight"
    assert plan.unexpected == ["h.0.ln_1.gamma"]


def test_a_backbone_takes_nothing_of_a_head_with_the_same_names() -> None:
    plan = plan_keys(BASE, ["wte.weight", *HEAD], base_model_prefix="transformer")
    assert plan.sources == {key: f"transformer.{key}" for key in BASE}
    assert plan.unexpected == ["wte.weight", "lm_head.weight"]


def test_patterns_silence_reports() -> None:
    plan = plan_keys(["a", "score.weight"], ["b"], ignore_missing=["^score"], ignore_unexpected=["^b$"])
    assert (plan.missing, plan.unexpected) == (["a"], [])


def test_import_is_light() -> None:
    code = "import sys, gptrio.checkpoint.keys, gptrio.checkpoint.locate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
