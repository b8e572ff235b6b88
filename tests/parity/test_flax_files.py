"""Ours and the reference's, of Flax and of PyTorch: each class reads what the others write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import gptrio
from tests.flax_models import assert_near, flax_model, token_ids
from tests.reference import model_pair

CLASSES = ["GPTNeoForCausalLM", "GPT2LMHeadModel"]
WAYS = {
    "one file": {},
    "shards": {"max_shard_size": "30KB"},
    "safetensors": {"safe_serialization": True},
    "safetensors in shards": {"safe_serialization": True, "max_shard_size": "30KB"},
}


def torch_logits(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return model.eval()(torch.tensor(token_ids())).logits.numpy()


def readers_of_flax(class_name: str, folder: Path, is_sharded_safetensors: bool) -> dict[str, Callable[[], Any]]:
    readers: dict[str, Callable[[], Any]] = {
        "ours": lambda: getattr(gptrio, f"Flax{class_name}").from_pretrained(folder)(token_ids()).logits,
        "our PyTorch": lambda: torch_logits(getattr(gptrio, class_name).from_pretrained(folder, from_flax=True)),
    }
    if not is_sharded_safetensors:  # which the reference's Flax classes do not read
        oracle = getattr(transformers, f"Flax{class_name}")
        readers["theirs"] = lambda: oracle.from_pretrained(folder)(token_ids()).logits
    return readers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("class_name", CLASSES)
def test_what_our_flax_class_writes(class_name: str, way: str, tmp_path: Path) -> None:
    model = flax_model(f"Flax{class_name}")
    model.save_pretrained(tmp_path, **WAYS[way])
    expected = model(token_ids()).logits
    for name, read in readers_of_flax(class_name, tmp_path, way == "safetensors in shards").items():
        assert_near(read(), expected, name=name)


@pytest.mark.parametrize("way", ["one file", "shards", "safetensors"])
@pytest.mark.parametrize("class_name", CLASSES)
def test_what_the_flax_class_of_the_reference_writes(class_name: str, way: str, tmp_path: Path) -> None:
    model = flax_model(f"Flax{class_name}")
    cls = getattr(transformers, f"Flax{class_name}")
    oracle = cls(cls.config_class(**{**model.config.to_dict(), "transformers_version": None}))
    oracle.params = model.params
    oracle.save_pretrained(tmp_path, **WAYS[way])
    for name, read in readers_of_flax(class_name, tmp_path, False).items():
        assert_near(read(), model(token_ids()).logits, name=name)


@pytest.mark.parametrize("writer", ["ours", "theirs"])
@pytest.mark.parametrize("way", ["safetensors", "safetensors in shards"])
@pytest.mark.parametrize("class_name", CLASSES)
def test_what_pytorch_classes_write(class_name: str, way: str, writer: str, tmp_path: Path) -> None:
    oracle, ours = model_pair(class_name)
    (ours if writer == "ours" else oracle).save_pretrained(tmp_path, **WAYS[way])
    loaded = getattr(gptrio, f"Flax{class_name}").from_pretrained(tmp_path)
    assert_near(loaded(token_ids()).logits, torch_logits(oracle))
