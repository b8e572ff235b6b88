"""Odd but possible values of configurations: built and run with Transformers' numbers; the others refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.activations import ACT2FN

import gptrio
from gptrio.testing import assert_close
from tests.reference import randomise
from tests.sizes import SIZES, SPECIAL_TOKENS

LANGUAGE_MODELS = {"GPT2": "GPT2LMHeadModel", "GPTNeo": "GPTNeoForCausalLM", "GPTNeoX": "GPTNeoXForCausalLM"}
IDS = torch.tensor([[5, 6, 7, 8], [9, 1, 3, 2]])
FLAGS = ("use_cache", "return_dict", "output_hidden_states", "tie_word_embeddings", "is_decoder", "torchscript")
EVERYWHERE: list[dict[str, Any]] = [
    *({name: value} for name in FLAGS for value in (0, 1, None, 1.0) if name != "torchscript" or not value),
    {"bos_token_id": 3.0}, {"bos_token_id": [1]}, {"eos_token_id": [1, 2]}, {"pad_token_id": 50.0},
    {"pad_token_id": -1}, {"num_beams": 2.0}, {"max_length": 30.0}, {"dtype": "float64"}, {"dtype": "double"},
    {"torch_dtype": torch.float64}, {"dtype": torch.bfloat16}, {"initializer_range": 0},
    {"chunk_size_feed_forward": None}, {"unknown": {"a": (1, 2)}},
]  # fmt: skip
ODD: dict[str, list[dict[str, Any]]] = {
    "GPT2": [
        {"layer_norm_epsilon": 0}, {"layer_norm_epsilon": 0.0}, {"resid_pdrop": False, "attn_pdrop": 0}, {"n_layer": 0},
        {"scale_attn_weights": 0}, {"scale_attn_by_inverse_layer_idx": 1}, {"reorder_and_upcast_attn": None},
        {"summary_use_proj": 0}, {"n_inner": 7}, {"n_head": 1}, {"embd_pdrop": True},
    ],
    "GPTNeo": [
        {"layer_norm_epsilon": 0}, {"resid_dropout": False}, {"num_layers": 0, "attention_types": []}, {"num_heads": 1},
        {"intermediate_size": 7}, {"window_size": 1},
    ],
    "GPTNeoX": [
        {"layer_norm_eps": 0}, {"hidden_dropout": False}, {"num_hidden_layers": 0}, {"rotary_pct": 0},
        {"rotary_pct": 1}, {"rotary_emb_base": 1}, {"use_parallel_residual": 0}, {"attention_bias": 0},
        {"max_position_embeddings": 32.0},
    ],
}  # fmt: skip
CASES = [(family, values) for family in ODD for values in (*EVERYWHERE, *ODD[family])]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("GPT2", {"use_cache": "yes"}), ("GPT2", {"use_cache": 2}), ("GPT2", {"n_layer": -1}), ("GPT2", {"n_layer": True}),
    ("GPT2", {"n_embd": 32.5}), ("GPT2", {"layer_norm_epsilon": float("nan")}), ("GPT2", {"bos_token_id": 1.5}),
    ("GPTNeo", {"window_size": 0}), ("GPTNeoX", {"rotary_pct": 2}), ("GPTNeoX", {"rotary_emb_base": 0}),
]  # fmt: skip


def configs(family: str, values: dict[str, Any]) -> tuple[Any, Any]:
    arguments = {**SIZES[family], **SPECIAL_TOKENS, **values}
    ours = getattr(gptrio, f"{family}Config")(**arguments)
    return ours, getattr(transformers, f"{family}Config")(**arguments)


def models(family: str, values: dict[str, Any]) -> tuple[Any, Any]:
    """Both models of these values, with the same weights, built as `from_config` builds them."""
    ours, theirs = configs(family, values)
    oracle = getattr(transformers, LANGUAGE_MODELS[family])._from_config(theirs, attn_implementation="eager").eval()
    randomise(oracle)
    model = getattr(gptrio, LANGUAGE_MODELS[family])._from_config(ours).eval()
    model.load_state_dict(oracle.state_dict())
    return model, oracle


@torch.no_grad()
@pytest.mark.parametrize(("family", "values"), CASES, ids=str)
def test_possible_values_run_with_the_same_numbers(family: str, values: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, about layers without elements
        ours, theirs = models(family, values)
    assert ours.dtype == theirs.dtype
    output, expected = ours(IDS), theirs(IDS)
    assert isinstance(output, tuple) == isinstance(expected, tuple)
    assert len(output) == len(expected)
    limit = 0.1 if theirs.dtype == torch.bfloat16 else 1e-5
    assert_close(output[0].double(), expected[0].double(), limit)


@pytest.mark.parametrize(("family", "values"), CASES, ids=str)
def test_dictionaries_of_these_values_are_equal(family: str, values: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = configs(family, values)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.to_diff_dict() == theirs.to_diff_dict()
    assert json.loads(ours.to_json_string()) == json.loads(theirs.to_json_string())
    assert json.loads(ours.to_json_string(use_diff=False)) == json.loads(theirs.to_json_string(False))


@pytest.mark.parametrize(("family", "values"), REFUSED, ids=str)
def test_values_that_mean_nothing_are_refused_by_name(family: str, values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(gptrio.ConfigError, match=f"{name}="):
        getattr(gptrio, f"{family}Config")(**{**SIZES[family], **values})


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in ACT2FN if name != "xielu"])
@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_every_activation(family: str, name: str) -> None:
    field = "hidden_act" if family == "GPTNeoX" else "activation_function"
    ours, theirs = models(family, {field: name})
    assert_close(ours(IDS).logits, theirs(IDS).logits, 1e-5)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_impossible_generation_options_do_not_keep_a_model_from_running(family: str) -> None:
    config, _ = configs(family, {"top_k": -1, "no_repeat_ngram_size": 2})
    with pytest.warns(gptrio.GptrioWarning, match="top_k=-1 is out of range.* generate leaves it out"):
        model = getattr(gptrio, LANGUAGE_MODELS[family])(config)
    assert (model.generation_config.top_k, model.generation_config.no_repeat_ngram_size) == (50, 2)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
@pytest.mark.parametrize(
    "values",
    [{"dtype": "float16"}, {"torch_dtype": "float16"}, {"dtype": "bfloat16", "torch_dtype": "float16"}, {}],
    ids=str,
)
def test_the_dtype_under_both_names(family: str, values: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = configs(family, values)
    assert ours.dtype == theirs.dtype
    for library, config in ((gptrio, ours), (transformers, theirs)):
        assert config.torch_dtype == config.dtype
        config.save_pretrained(tmp_path / library.__name__)
    texts = [(tmp_path / name / "config.json").read_text() for name in ("gptrio", "transformers")]
    assert texts[0] == texts[1]
    arguments = {"return_unused_kwargs": True, **values}
    results = []
    for library in (gptrio, transformers):
        cls = getattr(library, f"{family}Config")
        read, unused = cls.from_pretrained(tmp_path / "transformers", **arguments)
        older = {**read.to_dict(), "torch_dtype": "float64", "dtype": None}
        results.append(
            (
                str(read.dtype).removeprefix("torch."),
                {k: str(v) for k, v in unused.items()},
                str(cls.from_dict(older).dtype),
            )
        )
    assert results[0] == results[1]
    for library, config in ((gptrio, ours), (transformers, theirs)):
        built = getattr(library, LANGUAGE_MODELS[family])._from_config(config)
        assert built.dtype == (theirs.dtype or torch.float32)
