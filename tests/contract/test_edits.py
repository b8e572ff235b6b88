"""An edit of any weight between two calls is seen by the next, whatever way it decodes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gptrio import Int4Config, Int8Config
from gptrio.quantization import quantize
from tests.cases import where
from tests.contract.families import FAMILIES, Family, tokens
from tests.reference import randomise

FORMATS = ["float32", "bfloat16", "int8", "int4"]
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "compiled": (1, {}),
    "packed": (1, {"disable_compile": True}),
    "40 rows": (40, {}),
    "beams": (2, {"num_beams": 3}),
    "no cache": (2, {"use_cache": False}),
}


def build(family: Family, number_format: str) -> Any:
    """A model whose weights are large enough to be packed."""
    width: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 4}
    if family.model_type == "gpt_neo":
        width.update(num_layers=1, attention_types=[[["local"], 1]])
    else:
        width["num_hidden_layers"] = 1
    model = family.build(eos_token_id=None, **width)
    if number_format == "bfloat16":
        return model.bfloat16()
    if number_format != "float32":
        quantize(model, Int8Config() if number_format == "int8" else Int4Config())
    return model


def stored(model: Any) -> list[Tensor]:
    """All tensors that hold weights, biases and norms, codes and scales."""
    return [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if "weight" in name)]


def edit(tensor: Tensor) -> None:
    """Change one element in a way that shows, unseen by version counters."""
    flat = tensor.data.view(-1)
    place = torch.randint(0, flat.numel(), ())
    flat[place] = -flat[place] * 3 + 5 if tensor.is_floating_point() else flat[place] ^ 0x55


def draw(tensors: list[Tensor]) -> Tensor:
    return tensors[int(torch.randint(0, len(tensors), ()))]


# what sees an edit knows no family; the compiled step does, which reads the same formats
@pytest.mark.parametrize(
    ("family", "number_format", "way"),
    where(lambda family, kind, _: family is FAMILIES[0] or kind == FORMATS[0], FAMILIES, FORMATS, WAYS),
    ids=str,
)
def test_edits_between_calls_are_seen(family: Family, number_format: str, way: str) -> None:
    """A model that has run gives after each edit what a copy that has never run gives."""
    model = build(family, number_format)
    rows, options = WAYS[way]
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, **options}
    ids = tokens(rows, 6)

    def logits_of_next(one: Any) -> Tensor:
        return one.generate(ids, **options)

    results = [logits_of_next(model)]
    for _ in range(2):
        for _ in range(3):
            edit(draw(stored(model)))
        results.append(logits_of_next(model))
        assert torch.equal(results[-1], logits_of_next(copy.deepcopy(model)))
    with torch.no_grad():
        randomise(model)
        assert torch.equal(logits_of_next(model), logits_of_next(copy.deepcopy(model)))
    assert not all(torch.equal(result, results[0]) for result in results)


def in_the_head(model: Any, token: int) -> Callable[[], None]:
    """Edit one row of the head, so that its token always wins."""
    head = model.get_output_embeddings()

    def change() -> None:
        head.weight.data[token] = 100 * torch.sign(torch.randn(256))
        model.base_model.final_norm.bias.data.copy_(head.weight.data[token] / 10)

    return change


@pytest.mark.parametrize("way", WAYS)
def test_an_edited_row_of_the_head_wins(family: Family, way: str) -> None:
    model = build(family, "float32")
    rows, options = WAYS[way]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, **options}
    ids = tokens(rows, 6)
    model.generate(ids, **options)
    for token in (9, 200):
        in_the_head(model, token)()
        assert (model.generate(ids, **options)[:, 6:] == token).all()
        model.get_output_embeddings().weight.data[token].zero_()
