"""Gradient checkpointing, head masks, masks turned round and pruning, on every class, beside the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptrio import InputError
from gptrio.errors import GptrioWarning
from tests.reference import (
    SIZES,
    assert_same_gradients,
    assert_same_output,
    loss_of,
    model_pair,
    task_inputs,
    token_ids,
)

LANGUAGE_MODELS = ["GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM"]
HEADS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
CLASSES = [*LANGUAGE_MODELS, "GPT2DoubleHeadsModel", *(family + head for family in SIZES for head in HEADS)]


def training_pair(class_name: str, **config: Any) -> tuple[Any, Any]:
    """Models that train without dropout, whose draws no two programs share."""
    labels = 4 if "Classification" in class_name else 2
    models = model_pair(class_name, pad_token_id=0, num_labels=labels, **config)
    for model in models:
        for module in model.train().modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return models


def runs_of_blocks(model: Any) -> list[int]:
    """How often the blocks run in a step of training, counted."""
    runs: list[int] = []
    for module in model.modules():
        if type(module).__name__.endswith(("Block", "Layer")):
            module.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize("how", ["call", "configuration"])
@pytest.mark.parametrize("class_name", CLASSES)
def test_checkpointing_changes_no_number(class_name: str, how: str) -> None:
    inputs = task_inputs(class_name)
    oracle, ours = training_pair(class_name)
    if how == "configuration":
        ours.config.gradient_checkpointing = True
        again = type(ours)(ours.config).train()
        again.load_state_dict(ours.state_dict())
        assert not hasattr(again.config, "gradient_checkpointing")
        ours = again
        for module in ours.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    else:
        ours.gradient_checkpointing_enable()
    assert ours.supports_gradient_checkpointing
    assert ours.is_gradient_checkpointing and ours.gradient_checkpointing and ours.base_model.gradient_checkpointing
    runs = runs_of_blocks(ours)
    oracle.config.use_cache = ours.config.use_cache = False  # which does not go with it
    expected, actual = oracle(**inputs), ours(**inputs)
    assert_same_output(actual, expected)
    for output in (expected, actual):
        loss_of(output).backward()
    assert_same_gradients(ours, oracle)
    assert len(runs) == 6  # three blocks, forward and again
    ours.gradient_checkpointing_disable()
    assert not ours.is_gradient_checkpointing and not ours.gradient_checkpointing


@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_some_blocks_alone_can_be_checkpointed(class_name: str) -> None:
    oracle, ours = training_pair(class_name)
    ours.gradient_checkpointing_enable()
    for block in ours.base_model.blocks[1:]:
        block.gradient_checkpointing = False
    runs, inputs = runs_of_blocks(ours), task_inputs(class_name)
    for model in (oracle, ours):
        loss_of(model(**inputs, use_cache=False)).backward()
    assert_same_gradients(ours, oracle)
    assert len(runs) == 4


@pytest.mark.parametrize("how", ["keyword", "option"])
def test_every_n_layers_is_ignored_with_a_warning(how: str) -> None:
    _, ours = training_pair("GPT2LMHeadModel")
    with pytest.warns(GptrioWarning, match="every_n_layers has no effect"):
        if how == "keyword":
            ours.gradient_checkpointing_enable(every_n_layers=2)
        else:
            ours.gradient_checkpointing_enable({"every_n_layers": 2})
    runs = runs_of_blocks(ours)
    loss_of(ours(**task_inputs("GPT2LMHeadModel"), use_cache=False)).backward()
    assert len(runs) == 6


@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
@pytest.mark.parametrize("how", ["reentrant", "frozen"])
def test_inputs_can_require_gradients(class_name: str, how: str) -> None:
    """Frozen weights before a trained head of adapters: gradients arrive only if the embeddings require them."""
    oracle, ours = training_pair(class_name)
    for model in (oracle, ours):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("c_fc" in name or "h_to_4h" in name)
        model.gradient_checkpointing_enable({"use_reentrant": how == "reentrant"})
        model.enable_input_require_grads()
    inputs = task_inputs(class_name)
    for model in (oracle, ours):
        loss_of(model(**inputs, use_cache=False)).backward()
    assert_same_gradients(ours, oracle)
    assert any(parameter.grad is not None for parameter in ours.parameters())


@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
@pytest.mark.parametrize("shape", [(4,), (3, 4), None])
@pytest.mark.parametrize("chunked", [False, True])
def test_get_head_mask(class_name: str, shape: tuple[int, ...] | None, chunked: bool) -> None:
    oracle, ours = model_pair(class_name, dtype=torch.bfloat16)
    mask = None if shape is None else torch.rand(shape)
    expected, actual = (model.get_head_mask(mask, 3, chunked) for model in (oracle, ours))
    if mask is None:
        assert actual == expected == [None] * 3
    else:
        assert actual.dtype == expected.dtype and torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", [torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.randint(0, 2, (2, 4, 3))])
def test_invert_attention_mask(dtype: torch.dtype, mask: Tensor) -> None:
    oracle, ours = model_pair("GPT2Model", dtype=dtype)
    expected, actual = (model.invert_attention_mask(mask) for model in (oracle, ours))
    assert actual.dtype == dtype and torch.equal(actual, expected)
    with pytest.raises(InputError, match="shape"):
        ours.invert_attention_mask(mask[0, 0])


@pytest.mark.parametrize("class_name", ["GPT2LMHeadModel"])  # the family that the reference prunes
def test_heads_of_layers_counted_from_the_last_are_pruned(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    for model in (oracle, ours):
        model.prune_heads({-1: [0, 2], 0: [1]})
    ids = token_ids()
    with torch.no_grad():
        assert_same_output(ours(ids), oracle(ids))
    assert ours.config.pruned_heads == {0: [1], 2: [0, 2]}
    again = type(ours)(ours.config).eval()
    again.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(again(ids).logits, ours(ids).logits)
    with pytest.raises(InputError, match="layer -4"):
        ours.prune_heads({-4: [0]})
