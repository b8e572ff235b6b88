"""Our Flax classes against our PyTorch classes: one checkpoint, the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptrio
from tests.cases import first
from tests.flax_models import SIZES, assert_near, padding, positions_of, token_ids
from tests.reference import randomise
from tests.sizes import SPECIAL_TOKENS

FAMILIES = {"GPT2": "LMHeadModel", "GPTNeo": "ForCausalLM", "GPTNeoX": "ForCausalLM"}
HEADS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
LANGUAGE_MODELS = [family + head for family, head in FAMILIES.items()]
CLASSES = [*LANGUAGE_MODELS, *(family + head for family in FAMILIES for head in HEADS)]
SHORT = {"max_position_embeddings": 8, "rotary_pct": 1.0}  # shorter than the input
FLAGS: list[tuple[str, dict[str, Any]]] = [
    ("GPT2LMHeadModel", {"scale_attn_weights": False, "activation_function": "gelu"}),
    ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False}),
    ("GPT2LMHeadModel", {"reorder_and_upcast_attn": True, "n_inner": 48, "activation_function": "quick_gelu"}),
    ("GPTNeoForCausalLM", {"tie_word_embeddings": False, "intermediate_size": 48, "activation_function": "silu"}),
    ("GPTNeoForCausalLM", {"window_size": 64, "activation_function": "relu"}),
    ("GPTNeoXForCausalLM", {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_fast"}),
    ("GPTNeoXForCausalLM", {"tie_word_embeddings": True, "rotary_pct": 1.0, "rotary_emb_base": 500}),
    ("GPTNeoXForCausalLM", {"rotary_pct": 0.0, "hidden_act": "relu"}),
    ("GPTNeoXForCausalLM", {**SHORT, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
]


def pair(class_name: str, folder: Path, **config: Any) -> tuple[Any, Any]:
    """Our PyTorch model, and the Flax model of the checkpoint that it writes."""
    family = next(name for name in SIZES if class_name.startswith(name))
    cls = getattr(gptrio, class_name)
    model = cls(cls.config_class(**{**SIZES[family], **SPECIAL_TOKENS, "pad_token_id": 60, **config})).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model, getattr(gptrio, f"Flax{class_name}").from_pretrained(folder)


def torch_outputs(model: Any, ids: Any, mask: Any, **arguments: Any) -> dict[str, Any]:
    with torch.no_grad():
        out = model(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions_of(mask)),
            **arguments,
        )
    return {name: value for name, value in out.items() if name != "past_key_values"}


def at_real_tokens(value: Any, mask: np.ndarray[Any, Any]) -> Any:
    """An array (B, T, ...), or each of a tuple, at real tokens; attentions (B, H, T, S) as (B, T, H, S)."""
    if isinstance(value, tuple):
        return [at_real_tokens(item, mask) for item in value]
    array = np.asarray(value)
    array = array.swapaxes(1, 2) if array.ndim == 4 else array
    return array[mask == 1] if array.shape[:2] == mask.shape else array


@pytest.mark.parametrize("class_name", CLASSES)
def test_every_output_of_every_class(class_name: str, tmp_path: Path) -> None:
    model, flax = pair(class_name, tmp_path)
    arguments = {"output_hidden_states": True, "output_attentions": True}
    for side in ("left", "right"):
        mask = padding(side)
        ids = np.where(mask == 1, token_ids(), 60)
        expected = torch_outputs(model, ids, mask, **arguments)
        actual = flax(ids, mask, positions_of(mask), **arguments)
        assert set(actual) == set(expected)
        for name, value in expected.items():
            assert_near(at_real_tokens(actual[name], mask), at_real_tokens(value, mask), name=f"{name}, {side}")


@pytest.mark.parametrize("class_name", first(LANGUAGE_MODELS))
def test_a_cache(class_name: str, tmp_path: Path) -> None:
    model, flax = pair(class_name, tmp_path)
    ids, mask = token_ids(), padding("left")
    expected = torch_outputs(model, ids, mask)["logits"].numpy()
    whole = np.concatenate([mask, np.ones((2, 3), np.int32)], axis=1)
    cache, parts = flax.init_cache(2, 14), []
    for columns in (slice(0, 7), slice(7, 10), slice(10, 11)):
        out = flax(ids[:, columns], whole, positions_of(mask)[:, columns], past_key_values=cache)
        cache, parts = out.past_key_values, [*parts, out.logits]
    assert_near(np.concatenate(parts, axis=1)[mask == 1], expected[mask == 1])


@pytest.mark.parametrize(("class_name", "config"), FLAGS, ids=str)
def test_settings_that_change_the_computation(class_name: str, config: dict[str, Any], tmp_path: Path) -> None:
    model, flax = pair(class_name, tmp_path, **config)
    mask = padding("left")
    expected = torch_outputs(model, token_ids(), mask)["logits"].numpy()
    assert_near(flax(token_ids(), mask, positions_of(mask)).logits[mask == 1], expected[mask == 1])


@pytest.mark.parametrize("class_name", ["GPT2LMHeadModel", "GPTNeoForCausalLM"])
def test_a_backbone_and_a_head_load_each_others_files(class_name: str, tmp_path: Path) -> None:
    backbone = class_name.replace("LMHeadModel", "Model").replace("ForCausalLM", "Model")
    model, flax = pair(class_name, tmp_path / "safetensors")
    model.save_pretrained(tmp_path / "torch", safe_serialization=False)
    for folder in ("safetensors", "torch"):
        loaded = getattr(gptrio, f"Flax{backbone}").from_pretrained(tmp_path / folder, from_pt=True)
        assert_near(loaded.params, flax.params["transformer"], 0)
    loaded.save_pretrained(tmp_path / "backbone")
    again = getattr(gptrio, f"Flax{class_name}").from_pretrained(tmp_path / "backbone")
    assert_near(again.params, flax.params, 0)


@pytest.mark.parametrize("kind", first(["causal_lm", "base", "token_classification"]))
def test_auto_classes_choose_by_the_configuration(kind: str, tmp_path: Path) -> None:
    name = {"causal_lm": "ForCausalLM", "base": "", "token_classification": "ForTokenClassification"}[kind]
    auto = getattr(gptrio, f"FlaxAutoModel{name}")
    class_name = f"GPTNeoX{name or 'Model'}"
    _, flax = pair(class_name, tmp_path)
    loaded = auto.from_pretrained(tmp_path, output_attentions=True)
    assert type(loaded) is type(flax)
    assert type(auto.from_config(flax.config)) is type(flax)
    assert_near(loaded.params, flax.params, 0)
    assert loaded(token_ids()).attentions
