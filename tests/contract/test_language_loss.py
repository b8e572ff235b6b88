"""`logits=False`: the loss and the gradients of a language model, and no logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptrio import GptrioWarning, InputError
from gptrio.models.base.language_loss import full_logits_reason
from gptrio.nn import linear_loss
from gptrio.testing import assert_close
from tests.contract.families import Family, tokens
from tests.reference import assert_same_gradients


def labels_of(ids: Tensor) -> Tensor:
    return ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"num_items_in_batch": 11}, {"label_smoothing": 0.1}, {"shift_labels": True}], ids=str
)
def test_loss_and_gradients_are_those_with_logits(family: Family, tied: bool, options: dict[str, Any]) -> None:
    plain = family.build(tie_word_embeddings=tied)
    lean = copy.deepcopy(plain)
    assert (lean.get_output_embeddings().weight is lean.get_input_embeddings().weight) is tied
    assert full_logits_reason(lean) is None
    ids = tokens()
    given = {"labels": labels_of(ids), **options}
    if "shift_labels" in options:
        given["shift_labels"], given["labels"] = given["labels"], None
    expected, actual = plain(input_ids=ids, **given), lean(input_ids=ids, **given, logits=False)
    assert actual.logits is None and actual.past_key_values is not None
    assert_close(actual.loss, expected.loss, 1e-6)
    expected.loss.backward()
    actual.loss.backward()
    assert_same_gradients(lean, plain, 3e-6)


def test_the_scores_of_all_positions_are_never_there(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loss, "CHUNK_BYTES", 4 * 257 * 8)
    model, ids = family.build().train(), tokens()
    with torch.profiler.profile(record_shapes=True) as profile:
        model(input_ids=ids, labels=ids, logits=False).loss.backward()
    rows = {shape[0] for event in profile.events() for shape in event.input_shapes if shape and shape[-1] == 257}
    assert rows and max(rows - {32, 257}) <= 8


def test_tuples_and_kept_positions(family: Family) -> None:
    model, ids = family.build(), tokens()
    loss, *_ = model(input_ids=ids, labels=ids, logits=False, return_dict=False)
    assert_close(loss, model(input_ids=ids, labels=ids).loss)
    kept = model(input_ids=ids, labels=ids[:, -5:], logits_to_keep=5, logits=False).loss
    assert_close(kept, model(input_ids=ids, labels=ids[:, -5:], logits_to_keep=5).loss)


class OtherLinear(nn.Linear):
    """A head that is no plain product."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


def other_head(model: Any, head: nn.Module) -> nn.Module:
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    return head


def changed(model: Any, case: str) -> None:
    """Give a model's head what a sum over chunks of rows would miss."""
    head = model.get_output_embeddings()
    if case == "hook":
        head.register_forward_hook(lambda module, args, output: output / 2)
    elif case == "forward":
        original = head.forward
        head.forward = lambda input: original(input) / 2
    elif case == "subclass":
        other_head(model, OtherLinear(32, 257, bias=False))
    elif case == "bias":
        other_head(model, nn.Linear(32, 257))
    elif case == "loss_function":
        model.loss_function = lambda logits, labels, vocab_size: logits.square().mean()


@pytest.mark.parametrize("case", ["hook", "forward", "subclass", "bias", "loss_function"])
def test_heads_that_are_more_than_a_product_compute_their_logits(family: Family, case: str) -> None:
    model, ids = family.build(), tokens()
    before = model(input_ids=ids, labels=ids).loss
    changed(model, case)
    assert full_logits_reason(model)
    out = model(input_ids=ids, labels=ids, logits=False)
    assert out.logits is None
    assert_close(out.loss, model(input_ids=ids, labels=ids).loss)
    assert abs(out.loss - before) > 1e-3


def test_a_wrong_label_or_none_is_named(family: Family) -> None:
    model, ids = family.build(), tokens()
    with pytest.raises(InputError, match="pass labels"):
        model(input_ids=ids, logits=False)
    with pytest.raises(InputError, match="label 300 is none of the 257 classes"):
        model(input_ids=ids, labels=ids.masked_fill(ids == ids[0, 3], 300), logits=False)
    with pytest.warns(GptrioWarning, match="does not know num_items,"):
        model(input_ids=ids, labels=ids, logits=False, num_items=3)
