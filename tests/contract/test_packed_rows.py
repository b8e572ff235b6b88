"""Documents packed into one row: logits, loss and gradients of each alone, with or without a cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from gptrio import DataCollatorWithFlattening, DynamicCache, InputError, StaticCache
from gptrio.testing import assert_close
from tests.contract.families import Family
from tests.reference import assert_same_gradients

LENGTHS = [[19, 3, 12], [1, 30, 3]]  # of the documents in each row; some longer than two windows of the local layers


def documents() -> list[list[Tensor]]:
    return [[torch.randint(1, 250, (1, length)) for length in row] for row in LENGTHS]


def packed(rows: list[list[Tensor]], how: str) -> dict[str, Any]:
    """The batch of all rows, by the collator's positions or by segments."""
    ids = torch.cat([torch.cat(row, 1) for row in rows])
    if how == "segment_ids":
        numbers = [[i for i, part in enumerate(row) for _ in range(part.shape[1])] for row in rows]
        return {"input_ids": ids, "segment_ids": torch.tensor(numbers)}
    positions = torch.stack([torch.cat([torch.arange(part.shape[1]) for part in row]) for row in rows])
    return {"input_ids": ids, "position_ids": positions, "packed": True}


@pytest.mark.parametrize("how", ["positions", "segment_ids"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
def test_logits_loss_and_gradients_are_those_of_each_document(
    family: Family, back_end: str, use_cache: bool, how: str
) -> None:
    alone = family.build(attn_implementation=back_end)
    together, rows = copy.deepcopy(alone), documents()
    batch = packed(rows, how)
    out = together(**batch, labels=batch["input_ids"], use_cache=use_cache)
    lean = together(**batch, labels=batch["input_ids"], use_cache=use_cache, logits=False).loss
    parts = [[alone(input_ids=part, labels=part, num_items_in_batch=1) for part in row] for row in rows]
    for row, results in enumerate(parts):
        assert_close(out.logits[row], torch.cat([result.logits[0] for result in results]), 1e-6)
    count = sum(length - 1 for row in LENGTHS for length in row)
    loss = sum(result.loss for row in parts for result in row) / count
    assert_close(out.loss, loss, 1e-6)
    assert_close(lean, loss, 1e-6)
    out.loss.backward()
    loss.backward()
    assert_same_gradients(together, alone, 3e-6)


def test_no_document_sees_another(family: Family) -> None:
    model, rows = family.build(), documents()
    before = model(**packed(rows, "positions")).logits
    rows[0][0] = (rows[0][0] + 1) % 250
    after = model(**packed(rows, "positions")).logits
    length = LENGTHS[0][0]
    assert (before - after)[0, :length].abs().amax(-1).min() > 0
    assert torch.equal(before[0, length:], after[0, length:]) and torch.equal(before[1], after[1])


def test_a_row_of_the_collator(family: Family) -> None:
    model, rows = family.build(), documents()
    examples = [{"input_ids": part[0].tolist()} for row in rows for part in row]
    batch = DataCollatorWithFlattening()(examples)
    loss = model(**batch, packed=True).loss
    assert_close(loss, model(**packed(rows, "positions"), labels=torch.cat([torch.cat(r, 1) for r in rows])).loss, 1e-6)


def test_padding_beside_packed_documents_is_not_seen(family: Family) -> None:
    model, rows = family.build(), documents()
    batch = packed(rows, "segment_ids")
    mask = torch.ones_like(batch["input_ids"])
    mask[:, -3:] = 0
    out = model(**batch, attention_mask=mask).logits[:, :-3]
    assert_close(out, model(**batch).logits[:, :-3], 1e-6)


def test_what_cannot_be_packed_is_named(family: Family) -> None:
    model, rows = family.build(), documents()
    batch = packed(rows, "segment_ids")
    with pytest.raises(InputError, match="needs position_ids"):
        model(input_ids=batch["input_ids"], packed=True)
    with pytest.raises(InputError, match="segment_ids have shape"):
        model(input_ids=batch["input_ids"], segment_ids=batch["segment_ids"][:, 1:])
    past = model(input_ids=batch["input_ids"], past_key_values=DynamicCache(config=model.config)).past_key_values
    for cache in (past, StaticCache(model.config, max_cache_len=40)):
        with pytest.raises(InputError, match="have no past"):
            model(**batch, past_key_values=cache)
