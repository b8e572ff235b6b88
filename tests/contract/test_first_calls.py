"""What a model keeps from its first call serves later ones, whatever traced or watched that call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from gptrio.testing import assert_close
from tests.contract.families import Family, tokens

FirstCall = Callable[[Any, Tensor], Any]


class Logits(nn.Module):
    """A module from ids (B, T) alone to logits (B, T, V)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Any:
        return self.model(ids, use_cache=False, return_dict=False)[0]


def fake(model: Any, ids: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(ids)


def proxies(model: Any, ids: Tensor) -> None:
    make_fx(Logits(model), tracing_mode="fake", _allow_non_fake_inputs=True)(ids)


def gradient(model: Any, ids: Tensor) -> None:
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    torch.func.grad(lambda own: torch.func.functional_call(model, own, (ids,)).logits.sum())(weights)


FIRST_CALLS = [fake, proxies, gradient]


@pytest.mark.parametrize("first_call", FIRST_CALLS)
def test_a_transformed_first_call_leaves_nothing_behind(family: Family, first_call: FirstCall) -> None:
    model, plain, ids = family.build(), family.build(), tokens()
    plain.load_state_dict(model.state_dict())
    first_call(model, ids)
    logits = model(ids).logits
    assert type(logits) is Tensor
    assert_close(logits, plain(ids).logits)
    prompt = ids[:, :9]
    tokens_of = [each.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0) for each in (model, plain)]
    assert torch.equal(*tokens_of)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
def test_traced_forward_is_checked_and_serves_other_shapes(family: Family) -> None:
    model = family.build()
    traced = torch.jit.trace(Logits(model), tokens())
    for rows, length in ((1, 5), (3, 21), (2, 30)):
        ids = tokens(rows, length)
        assert_close(traced(ids), model(ids).logits)
