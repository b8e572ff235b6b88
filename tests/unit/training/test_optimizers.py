"""Optimizers by name: the reference's classes, arguments and groups."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers

import gptrio
from gptrio import MissingDependencyError, OptionError, UnsupportedError
from gptrio.training.optimizers import (
    get_decay_parameter_names,
    get_parameter_names,
    optimizer_class,
    parameter_groups,
    parse_options,
)
from tests.reference import model_pair

CLASSES = ["GPT2LMHeadModel", "GPTNeoForTokenClassification", "GPTNeoXForCausalLM"]


def arguments(optim: str, optim_args: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        optim=optim, optim_args=optim_args, learning_rate=3e-4, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7
    )


@pytest.mark.parametrize("class_name", CLASSES)
def test_the_parameters_that_decay_are_the_reference_s(class_name):
    oracle, ours = model_pair(class_name)
    expected = transformers.Trainer.get_decay_parameter_names(None, oracle)
    assert sorted(get_decay_parameter_names(ours)) == sorted(expected)
    patterns = ["bias", "attn"]
    by_hand = transformers.trainer_pt_utils.get_parameter_names(oracle, [torch.nn.Embedding], patterns)
    assert sorted(get_parameter_names(ours, [torch.nn.Embedding], patterns)) == sorted(by_hand)


def test_frozen_parameters_are_in_no_group_and_tied_ones_in_one():
    _, ours = model_pair("GPT2LMHeadModel")
    ours.transformer.wpe.requires_grad_(False)
    groups = parameter_groups(ours, get_decay_parameter_names(ours), 0.1)
    members = [id(p) for group in groups for p in group["params"]]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert sorted(members) == sorted(id(p) for p in ours.parameters() if p.requires_grad)
    assert id(ours.lm_head.weight) in {id(p) for p in groups[0]["params"]}


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop"])
def test_an_optimizer_takes_the_reference_s_first_steps(optim):
    pair = [torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)]
    pair[1].load_state_dict(pair[0].state_dict())
    args = transformers.TrainingArguments(optim=optim, learning_rate=3e-4, adam_beta1=0.8, weight_decay=0.1)
    theirs_class, theirs_options = transformers.Trainer.get_optimizer_cls_and_kwargs(args)
    ours_class, ours_options = optimizer_class(args)
    made = [ours_class(pair[0].parameters(), **ours_options), theirs_class(pair[1].parameters(), **theirs_options)]
    for _ in range(3):
        inputs = torch.randn(7, 5)
        for layer, optimizer in zip(pair, made, strict=True):
            optimizer.zero_grad()
            layer(inputs).pow(2).sum().backward()
            optimizer.step()
    assert type(made[0]) is type(made[1])
    torch.testing.assert_close(pair[0].weight, pair[1].weight, rtol=1e-6, atol=1e-7)


def test_options_of_an_optimizer_are_read_from_a_text():
    made, options = optimizer_class(arguments("sgd", "momentum=0.9, nesterov=True"))
    assert made is torch.optim.SGD
    assert options == {"lr": 3e-4, "momentum": 0.9, "nesterov": True}
    assert parse_options("a=1,b=none,c=word") == {"a": 1, "b": None, "c": "word"}
    with pytest.raises(OptionError, match="optim_args='momentum' is malformed"):
        optimizer_class(arguments("sgd", "momentum"))


def test_adafactor_lowers_a_loss():
    made, options = optimizer_class(arguments("adafactor"))
    layer, inputs = torch.nn.Linear(5, 3), torch.randn(7, 5)
    optimizer = made(layer.parameters(), **options)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = layer(inputs).pow(2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_an_optimizer_that_is_not_there_is_answered_with_the_way_out():
    with pytest.raises(UnsupportedError, match=r"optim='galore_adamw' is not available.*Trainer\(optimizers="):
        optimizer_class(arguments("galore_adamw"))


def test_eight_bits_need_bitsandbytes(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match="needs bitsandbytes"):
        optimizer_class(arguments("adamw_8bit"))


def test_names_are_public():
    assert gptrio.get_scheduler(
        "constant", torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    ).get_last_lr() == [1.0]
