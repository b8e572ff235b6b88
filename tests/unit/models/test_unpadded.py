"""Heads that leave padding out: the losses, gradients and scores of the whole batch, and every call that reads more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gptrio import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
from gptrio.errors import InputError, TokenIdError
from gptrio.models.base.backbone import Backbone
from gptrio.testing import tiny_config

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gpt_neox"])
HEADS = {
    "language": AutoModelForCausalLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}
LENGTHS = torch.tensor([40, 7, 1, 23, 12])
PAD = 256
WHOLE = {"output_hidden_states": True}  # a call that shows states of padding


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the tokens that were computed without padding."""
    seen, real = list[int](), Backbone.forward_real

    def noted(self: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
        seen.append(int(mask.sum()))
        return real(self, ids, mask)

    monkeypatch.setattr(Backbone, "forward_real", noted)
    return seen


def model_of(family: str, head: str, **settings: Any) -> Any:
    dropped = [name for name in vars(tiny_config(family)) if name.endswith(("dropout", "_pdrop"))]
    config = tiny_config(family, pad_token_id=PAD, num_labels=3, **dict.fromkeys(dropped, 0.0))
    torch.manual_seed(0)
    return HEADS[head].from_config(config, **settings).train()


def batch_of(head: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    real = torch.arange(40) < LENGTHS[:, None]
    ids = torch.where(real, torch.randint(0, 256, real.shape), PAD)
    if head == "sequence":
        labels = torch.randint(0, 3, (len(ids),))
    else:
        labels = torch.where(real, ids if head == "language" else ids % 3, -100)
    return {"input_ids": ids, "attention_mask": real.long(), "labels": labels}


def called(model: Any, head: str, **given: Any) -> Any:
    given = {"use_cache": False, **given} if head != "token" else given
    alone = {"logits": False} if head != "sequence" else {}
    torch.manual_seed(2)
    return model(**{**batch_of(head), **alone, **given})


def gradients(loss: Tensor, model: Any) -> dict[str, Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return {name: value for name, value in zip(names, found, strict=True) if value is not None}


@FAMILIES
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_loss_and_gradients_are_those_of_the_whole_batch(
    family: str, head: str, implementation: str, calls: list[int]
) -> None:
    model = model_of(family, head, attn_implementation=implementation)
    model.config.use_cache = False
    found = called(model, head)
    assert calls == [int(LENGTHS.sum())]
    whole = called(model, head, **WHOLE)
    assert len(calls) == 1
    torch.testing.assert_close(found.loss, whole.loss, rtol=1e-6, atol=1e-6)
    if head == "sequence":
        torch.testing.assert_close(found.logits, whole.logits, rtol=1e-5, atol=1e-6)
    mine, its = gradients(found.loss, model), gradients(whole.loss, model)
    torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


@FAMILIES
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore:the batch is padded on the left")
def test_padding_on_both_sides(family: str, head: str, calls: list[int]) -> None:
    model, given = model_of(family, head), batch_of(head)
    model.config.use_cache = False
    given["labels"][..., 0] = -100 if head == "language" else 0  # what the padding before it would predict
    offsets = torch.tensor([0, 33, 20, 17, 0])
    turned = {
        name: value
        if value.dim() < 2
        else torch.stack([row.roll(int(n)) for row, n in zip(value, offsets, strict=True)])
        for name, value in given.items()
    }
    found, whole = called(model, head, **turned), called(model, head, **turned, **WHOLE)
    assert calls == [int(LENGTHS.sum())]
    torch.testing.assert_close(found.loss, whole.loss, rtol=1e-6, atol=1e-6)
    mine, its = gradients(found.loss, model), gradients(whole.loss, model)
    torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_with_recomputed_blocks_adapters_and_no_gradients(head: str, calls: list[int]) -> None:
    peft = pytest.importorskip("peft")
    model = model_of("gpt2", head)
    model.config.use_cache = False
    whole = called(model, head, **WHOLE).loss
    with torch.no_grad():
        torch.testing.assert_close(called(model, head).loss, whole, rtol=1e-6, atol=1e-6)
    settings = peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    adapted = peft.get_peft_model(model, settings)
    torch.testing.assert_close(called(adapted, head).loss, whole, rtol=1e-6, atol=1e-6)
    model = adapted.unload().requires_grad_()
    expected = gradients(called(model, head, **WHOLE).loss, model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(called(model, head).loss, model), expected, rtol=1e-4, atol=1e-6)
    assert calls == [int(LENGTHS.sum())] * 3


def hooked(model: Any) -> Any:
    model.base_model.h[0].register_forward_hook(lambda module, inputs, outputs: None)
    return model


def own_loss(model: Any) -> Any:
    given = model.loss_function
    model.loss_function = lambda *args, **kwargs: given(*args, **kwargs)
    return model


class Own(torch.nn.Dropout):
    """A module of another package, which may expect rows."""


def foreign(model: Any) -> Any:
    model.base_model.drop = Own(0.0)
    return model


@pytest.mark.parametrize("change", [hooked, own_loss, foreign], ids=lambda change: change.__name__)
@pytest.mark.parametrize("head", HEADS)
def test_a_model_that_others_changed_computes_the_whole_batch(
    head: str, change: Callable[[Any], Any], calls: list[int]
) -> None:
    model = model_of("gpt2", head)
    expected = called(model, head, **WHOLE).loss
    found = called(change(model), head)
    assert not calls
    torch.testing.assert_close(found.loss, expected)


def left_padded(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value
        if value.dim() < 2
        else torch.stack([row.roll(40 - int(n)) for row, n in zip(value, LENGTHS, strict=True)])
        for name, value in given.items()
    }


def labels_on_padding(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**given, "labels": given["labels"].clamp(min=0)}


def with_gaps(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Windows of GPT-Neo count the gaps."""
    mask = given["attention_mask"].clone()
    mask[0, 10:12] = 0
    return {**given, "attention_mask": mask, "labels": given["labels"].masked_fill(mask == 0, -100)}


def hardly_padded(given: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = torch.ones_like(given["attention_mask"])
    mask[0, -1] = 0
    return {**given, "input_ids": given["input_ids"] % 256, "attention_mask": mask, "labels": given["input_ids"] % 256}


@pytest.mark.parametrize(
    "change", [left_padded, with_gaps, labels_on_padding, hardly_padded], ids=lambda change: change.__name__
)
def test_batches_that_need_padding_or_gain_nothing(change: Any, calls: list[int]) -> None:
    model, given = model_of("gpt_neox", "language"), change(batch_of("language"))
    found = model(**given, logits=False, use_cache=False).loss
    assert not calls
    torch.testing.assert_close(found, model(**given, use_cache=False).loss, rtol=1e-5, atol=1e-6)


def test_what_the_caller_asks_for_is_computed(calls: list[int]) -> None:
    model = model_of("gpt2", "sequence")
    assert called(model, "sequence", use_cache=True).past_key_values.get_seq_length() == 40
    assert len(called(model, "sequence", **WHOLE).hidden_states) == 3
    positions = torch.arange(40).expand(5, -1)
    called(model, "sequence", position_ids=positions)
    assert not calls


def test_bad_input_has_its_own_errors() -> None:
    model = model_of("gpt2", "sequence")
    outside = batch_of("sequence")["input_ids"].masked_fill(~(torch.arange(40) < LENGTHS[:, None]), 300)
    model.config.pad_token_id = 300
    with pytest.raises(TokenIdError, match="token id 300 is outside the table of 257 rows"):
        called(model, "sequence", input_ids=outside)
    with pytest.raises(InputError, match="needs labels"):
        called(model_of("gpt2", "token"), "token", labels=None)
