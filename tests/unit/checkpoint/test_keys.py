"""Names of tensors: prefixes, heads, old spellings, buffers, ties."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gptrio import GPT2Model, GPTNeoModel, GPTNeoXModel
from gptrio.checkpoint.keys import KeyRules, plan_keys

BASE = ["wte.weight", "h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.attn.c_attn.bias"]
HEAD = [f"transformer.{key}" for key in BASE] + ["lm_head.weight"]
TIED = {"lm_head.weight": "transformer.wte.weight"}
OLD_NORMS = KeyRules("transformer", {r"\.gamma$": ".weight", r"\.beta$": ".bias"}, tied=TIED)


def test_same_names() -> None:
    plan = plan_keys(HEAD, HEAD, KeyRules(base_model_prefix="transformer", tied=TIED))
    assert plan.sources == {key: key for key in HEAD}
    assert (plan.missing, plan.unexpected) == ([], [])


def test_base_checkpoint_into_a_head_class() -> None:
    plan = plan_keys(HEAD, BASE, KeyRules(base_model_prefix="transformer", tied=TIED))
    assert plan.sources == {f"transformer.{key}": key for key in BASE}
    assert (plan.missing, plan.unexpected) == ([], [])


def test_untied_head_that_the_checkpoint_lacks_is_missing() -> None:
    plan = plan_keys(HEAD, BASE, KeyRules(base_model_prefix="transformer"))
    assert plan.missing == ["lm_head.weight"]


def test_head_checkpoint_into_a_base_model() -> None:
    plan = plan_keys(BASE, HEAD, KeyRules(base_model_prefix="transformer"))
    assert plan.sources == {key: f"transformer.{key}" for key in BASE}
    assert (plan.missing, plan.unexpected) == ([], ["lm_head.weight"])


def test_either_of_two_tied_names_is_enough() -> None:
    keys = [key for key in HEAD if key != "transformer.wte.weight"]
    plan = plan_keys(HEAD, keys, KeyRules(base_model_prefix="transformer", tied=TIED))
    assert plan.missing == []
    neither = [key for key in keys if key != "lm_head.weight"]
    plan = plan_keys(HEAD, neither, KeyRules(base_model_prefix="transformer", tied=TIED))
    assert plan.missing == ["transformer.wte.weight", "lm_head.weight"]


def test_aliases_stand_for_names_that_the_model_lacks() -> None:
    rules = KeyRules("gpt_neox", {r"^lm_head\.": "embed_out."})
    table = "gpt_neox.embed_in.weight"
    plan = plan_keys(["embed_out.weight", table], ["lm_head.weight", table], rules)
    assert plan.sources == {"embed_out.weight": "lm_head.weight", table: table}
    assert (plan.missing, plan.unexpected) == ([], [])
    plan = plan_keys(["lm_head.weight", table], ["lm_head.weight", table], rules)
    assert plan.sources == {"lm_head.weight": "lm_head.weight", table: table}
    plan = plan_keys(["embed_out.weight"], ["head.weight"], rules)
    assert (plan.missing, plan.unexpected) == (["embed_out.weight"], ["head.weight"])


def test_old_layer_norm_names() -> None:
    plan = plan_keys(HEAD, ["h.0.ln_1.gamma", "h.0.ln_1.beta"], OLD_NORMS)
    assert plan.sources["transformer.h.0.ln_1.weight"] == "h.0.ln_1.gamma"
    assert plan.sources["transformer.h.0.ln_1.bias"] == "h.0.ln_1.beta"
    assert plan.unexpected == []


@pytest.mark.parametrize(
    ("family", "computed", "weights"),
    [
        (
            GPT2Model,
            ["h.0.attn.bias", "h.0.attn.masked_bias", "transformer.h.0.crossattention.bias"],
            ["h.0.attn.c_attn.bias", "h.0.crossattention.q_attn.bias"],
        ),
        (
            GPTNeoModel,
            ["h.0.attn.attention.bias", "transformer.h.0.attn.attention.masked_bias"],
            ["h.0.attn.attention.out_proj.bias"],
        ),
        (
            GPTNeoXModel,
            ["layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias", "rotary_emb.inv_freq"],
            ["layers.0.attention.dense.bias"],
        ),
    ],
)
def test_families_compute_masks_and_rotary_tables_themselves(family, computed, weights) -> None:
    rules = KeyRules(ignore_unexpected=family.computed_buffers)
    assert plan_keys([], [*computed, *weights], rules).unexpected == weights


def test_exact_name_wins_over_a_spelling() -> None:
    plan = plan_keys(BASE, ["h.0.ln_1.gamma", *BASE], OLD_NORMS)
    assert plan.sources["h.0.ln_1.weight"] == "h.0.ln_1.weight"
    assert plan.unexpected == ["h.0.ln_1.gamma"]


def test_a_backbone_takes_nothing_of_a_head_with_the_same_names() -> None:
    plan = plan_keys(BASE, ["wte.weight", *HEAD], KeyRules(base_model_prefix="transformer"))
    assert plan.sources == {key: f"transformer.{key}" for key in BASE}
    assert plan.unexpected == ["wte.weight", "lm_head.weight"]


def test_patterns_silence_reports() -> None:
    plan = plan_keys(["a", "score.weight"], ["b"], KeyRules(ignore_missing=["^score"], ignore_unexpected=["^b$"]))
    assert (plan.missing, plan.unexpected) == (["a"], [])


def test_import_is_light() -> None:
    code = "import sys, gptrio.checkpoint.keys, gptrio.checkpoint.locate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
