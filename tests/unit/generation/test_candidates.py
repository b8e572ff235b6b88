"""How many tokens are drafted, and the model of the first layers."""

from __future__ import annotations

import pytest
import torch

import gptrio
from gptrio.errors import OptionError
from gptrio.generation.strategies.candidates import DraftLengthPolicy, first_layers, relative_cost
from gptrio.testing import tiny_config


def lengths(policy, rounds, num_accepted):
    """Numbers of drafted tokens when `num_accepted(number)` of them prove right."""
    drafted = []
    for _ in range(rounds):
        drafted.append(policy.next())
        policy.learn(drafted[-1], num_accepted(drafted[-1]))
    return drafted


def test_a_right_draft_grows_to_the_most():
    assert lengths(DraftLengthPolicy(20, "constant", 0.05), 40, lambda number: number)[-1] == 20


def test_a_wrong_draft_is_given_up_and_tried_seldom():
    drafted = lengths(DraftLengthPolicy(20, "constant", 0.1), 600, lambda number: 0)
    assert sum(drafted[:20]) < 15 and sum(drafted) < 45 and max(drafted[300:]) <= 3
    assert any(drafted[300:]), "it must be tried now and then"


def test_a_draft_that_becomes_right_is_taken_up_again():
    policy = DraftLengthPolicy(8, "constant", 0.1)
    lengths(policy, 100, lambda number: 0)
    assert sum(lengths(policy, 200, lambda number: number)[-50:]) > 150


def test_other_schedules_move_the_most():
    policy = DraftLengthPolicy(4, "heuristic", 0.0)
    lengths(policy, 10, lambda number: number)
    assert policy.most > 10
    lengths(policy, 100, lambda number: 0)
    assert policy.most < 10


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gpt_neox"])
def test_the_first_layers_are_a_model_that_shares_weights(family):
    kinds = {"gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}}
    model = gptrio.AutoModelForCausalLM.from_config(
        tiny_config(family, **kinds.get(family, {"num_hidden_layers": 4}))
    ).eval()
    shallow = first_layers(model, 2)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        base = model.base_model
        expected = model.get_output_embeddings()(base.final_norm(states[2]))
        torch.testing.assert_close(shallow(ids).logits, expected)
    assert model.config.num_hidden_layers == 4 and len(base.blocks) == 4
    assert {id(p) for p in shallow.parameters()} < {id(p) for p in model.parameters()}
    assert 0.2 < relative_cost(shallow, model) <= 0.5
    with pytest.raises(OptionError, match="below the model's 4 layers"):
        first_layers(model, 4)
