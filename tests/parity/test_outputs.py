"""Result objects, built and changed in every way that the reference allows, hold what the reference's hold."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch.utils import _pytree
from transformers.modeling_outputs import CausalLMOutputWithPast as ReferenceOutput
from transformers.utils import ModelOutput as ReferenceBase

from gptrio import CausalLMOutputWithPast, GPT2Config, GPT2LMHeadModel, InputError, ModelOutput

LOSS, LOGITS = torch.tensor(2.5), torch.arange(6.0).reshape(1, 2, 3)
STATES = (torch.ones(1), torch.zeros(2))


@dataclass
class Wanted(ModelOutput):
    parts: object
    note: object = None


@dataclass
class WantedReference(ReferenceBase):
    parts: object
    note: object = None


def facts(output):
    """Everything that can be read: names, values, attributes."""
    names = [*output.__dataclass_fields__, *(name for name in output if name not in output.__dataclass_fields__)]
    return (
        list(output),
        [id(value) for value in output.values()],
        [id(value) for value in output.to_tuple()],
        {name: id(getattr(output, name)) for name in names},
    )


WAYS = {
    "fields": lambda kind: kind(loss=LOSS, logits=LOGITS),
    "positions": lambda kind: kind(LOSS, LOGITS, None, STATES),
    "first alone": lambda kind: kind(LOSS),
    "nothing": lambda kind: kind(),
    "mapping": lambda kind: kind({"loss": LOSS, "logits": LOGITS}),
    "mapping in another order": lambda kind: kind({"hidden_states": STATES, "loss": LOSS}),
    "mapping with a None": lambda kind: kind({"loss": LOSS, "logits": None, "hidden_states": STATES}),
    "mapping with another name": lambda kind: kind({"loss": LOSS, "logits": LOGITS, "margin": STATES}),
    "pairs": lambda kind: kind([("loss", LOSS), ("logits", LOGITS)]),
    "lists as pairs": lambda kind: kind((["loss", LOSS], ["logits", LOGITS])),
    "items": lambda kind: kind(kind(loss=LOSS, logits=LOGITS).items()),
    "generator": lambda kind: kind(pair for pair in [("loss", LOSS), ("logits", LOGITS)]),
    "itself": lambda kind: kind(kind(loss=LOSS, hidden_states=STATES)),
    "mapping beside a field": lambda kind: kind(WAYS_MAPPING, LOGITS),
}
WAYS_MAPPING = {"a": LOSS}


@pytest.mark.parametrize("way", WAYS)
def test_built_in_any_way_it_holds_what_the_reference_holds(way):
    assert facts(WAYS[way](CausalLMOutputWithPast)) == facts(WAYS[way](ReferenceOutput))


@pytest.mark.parametrize("value", [STATES, [LOSS], "text", 3, ("a", LOSS), [("a", LOSS, 1)], [(1, LOSS)], ["ab", "cd"]])
def test_a_first_field_that_is_no_pairs_stays_itself(value):
    assert facts(Wanted(value)) == facts(WantedReference(value))
    assert Wanted(value).parts is value


@pytest.mark.parametrize("kind", [CausalLMOutputWithPast, ReferenceOutput])
def test_pairs_with_something_else_among_them_are_refused(kind):
    with pytest.raises((InputError, ValueError), match=r"pair|key, value"):
        kind([("loss", LOSS), LOGITS])


def test_a_mapping_without_the_first_field_leaves_it_none():
    output = CausalLMOutputWithPast({"logits": LOGITS})
    assert output.loss is None  # the reference leaves the mapping there
    assert (list(output), output.logits is LOGITS) == (["logits"], True)
    assert (list(CausalLMOutputWithPast({})), CausalLMOutputWithPast({}).loss) == ([], None)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda output: pickle.loads(pickle.dumps(output))])
@pytest.mark.parametrize("kind", [CausalLMOutputWithPast, ReferenceOutput])
def test_copies_keep_fields_and_what_was_added(again, kind):
    output = kind(loss=LOSS, logits=LOGITS)
    output["margin"] = 7
    copied = again(output)
    assert type(copied) is kind and list(copied) == ["loss", "logits", "margin"]
    assert torch.equal(copied.logits, LOGITS) and copied.margin == 7 and copied.attentions is None


@pytest.mark.parametrize("kind", [CausalLMOutputWithPast, ReferenceOutput])
@pytest.mark.parametrize(
    "change",
    [
        lambda output: output.pop("loss"),
        lambda output: output.setdefault("loss", 1),
        lambda output: output.update(loss=1),
        lambda output: output.__delitem__("loss"),
    ],
)
def test_removing_fields_is_refused_and_changes_nothing(kind, change):
    output = kind(loss=LOSS, logits=LOGITS)
    with pytest.raises(Exception, match=r"__delitem__|pop|setdefault|update|deleting"):
        change(output)
    assert (list(output), output.loss is LOSS) == (["loss", "logits"], True)


def test_a_wrapper_that_rebuilds_outputs_gets_loss_and_logits():
    """As accelerate does in mixed precision, and distributed wrappers when they gather."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2)).eval()
    ids = torch.arange(6)[None]
    output = model(ids, labels=ids)
    rebuilt = type(output)(dict(output.items()))
    assert facts(rebuilt) == facts(output)


def test_a_result_class_of_the_users_is_a_tree_of_tensors():
    @dataclass
    class Own(ModelOutput):
        first: torch.Tensor | None = None
        second: torch.Tensor | None = None

    doubled = _pytree.tree_map(lambda tensor: tensor * 2, Own(first=LOSS, second=LOGITS))
    assert type(doubled) is Own
    assert torch.equal(doubled.first, LOSS * 2) and torch.equal(doubled.second, LOGITS * 2)


def test_a_plain_output_is_a_tree_of_tensors_and_a_class_without_fields_is_refused():
    for base in (ModelOutput, ReferenceBase):
        plain = base({"a": 1.0, "c": 2.0})
        leaves, tree = _pytree.tree_flatten(plain)
        assert leaves == [1.0, 2.0]
        assert _pytree.tree_unflatten(leaves, tree) == plain

        class NoDataclass(base):
            a: float

        with pytest.raises(TypeError, match="NoDataclass is not a dataclass"):
            NoDataclass(a=1.0)
