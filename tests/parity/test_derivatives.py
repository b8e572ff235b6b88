"""Derivatives beyond the gradient, through attention by fused kernels, beside those of the oracle's formula."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from gptrio.testing import assert_close
from tests.reference import model_pair, padded, token_ids


@pytest.mark.parametrize("class_name", ["GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM"])
@pytest.mark.parametrize("way", ["reverse over reverse", "forward over reverse", "forward"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # of torch.func
def test_derivatives_of_second_order(class_name: str, way: str) -> None:
    oracle, ours = model_pair(class_name, "sdpa")
    ids = token_ids(2, 12)
    mask, x = padded([12, 7], 12, "right"), torch.randn(2, 12, 32)
    direction, labels, found = torch.randn_like(x), ids.masked_fill(mask == 0, -100), []
    for model in (oracle, ours):

        def loss(x: Tensor, model: Any = model) -> Tensor:
            return cast(Tensor, model(inputs_embeds=x, attention_mask=mask, labels=labels, use_cache=False).loss)

        if way == "forward":
            found.append(torch.func.jvp(loss, (x,), (direction,))[1])
        elif way == "forward over reverse":
            found.append(torch.func.jvp(torch.func.grad(loss), (x,), (direction,))[1])
        else:
            found.append(torch.autograd.functional.hvp(loss, x, direction)[1])
    assert found[0].abs().max() > 1e-3
    assert_close(found[1], found[0], 2e-5)
