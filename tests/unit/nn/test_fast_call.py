"""Whatever stands between a call of a module and the forward of its class is seen, in a call and in every step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gptrio.nn.fast_call import hook_reason
from tests.contract.families import FAMILIES, Family, tokens

HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]
STEPS = 4


def parts(family: Family) -> dict[str, Callable[[Any], nn.Module]]:
    """Some modules of a language model, from the outermost to the innermost."""
    return {
        "model": lambda model: model,
        "backbone": lambda model: model.base_model,
        "block": lambda model: model.base_model.blocks[0],
        "mlp": lambda model: model.base_model.blocks[1].mlp,
        "act": lambda model: model.base_model.blocks[0].mlp.act,
        "norm": lambda model: model.base_model.final_norm,
        "head": lambda model: model.get_output_embeddings(),
    }


@pytest.mark.parametrize("name", HOOKS)
def test_a_model_with_a_hook_is_not_plain_until_it_is_removed(name: str) -> None:
    model = FAMILIES[0].build()
    handle = getattr(model.base_model.blocks[1].mlp.act, name)(lambda *_: None)
    assert hook_reason(model)
    handle.remove()
    assert hook_reason(model) is None


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_all_modules_are_seen(name: str) -> None:
    model = FAMILIES[0].build()
    handle = getattr(nn.modules.module, name.replace("register", "register_module", 1))(lambda *_: None)
    assert hook_reason(model)
    handle.remove()
    assert hook_reason(model) is None


@contextlib.contextmanager
def counted_forward(module: nn.Module) -> Iterator[list[int]]:
    """A forward set on an instance, which counts its calls."""
    calls: list[int] = []
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    module.forward = forward
    yield calls
    del module.forward


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("part", parts(FAMILIES[0]))
def test_a_forward_set_on_an_instance_runs_in_every_step(family: Family, part: str) -> None:
    model, ids = family.build(eos_token_id=None), tokens(1, 7)
    expected = model.generate(ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    with counted_forward(parts(family)[part](model)) as calls:
        assert hook_reason(model)
        actual = model.generate(ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    assert len(calls) == STEPS
    assert torch.equal(actual, expected)
    assert hook_reason(model) is None


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_subclass_of_the_backbone_runs_its_own_forward(family: Family) -> None:
    model, calls = family.build(eos_token_id=None), []
    backbone = model.base_model

    class Counted(type(backbone)):  # type: ignore[misc]  # a class known at run time only
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return super().forward(*args, **kwargs)

    backbone.__class__ = Counted
    model.generate(tokens(1, 7), max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    assert len(calls) == STEPS


def test_hooks_of_an_assistant_fire() -> None:
    model, assistant = (FAMILIES[0].build(eos_token_id=None) for _ in range(2))
    calls: list[int] = []
    assistant.base_model.blocks[0].mlp.act.register_forward_hook(lambda *_: calls.append(1))
    model.generate(tokens(1, 7), assistant_model=assistant, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    assert calls


def test_a_counter_of_operations_sees_those_of_every_step() -> None:
    model, ids = FAMILIES[0].build(eos_token_id=None), tokens(1, 7)
    with FlopCounterMode(display=False) as few:
        model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    with FlopCounterMode(display=False) as more:
        model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name)
    assert more.get_total_flops() - few.get_total_flops() >= 4 * 2 * weights


def test_a_forward_compiled_by_torch_runs_in_every_step() -> None:
    """`model.forward = torch.compile(model.forward)`, by a backend that counts its runs."""
    model, ids, runs = FAMILIES[0].build(eos_token_id=None), tokens(1, 7), []
    expected = model.generate(ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            runs.append(1)
            return graph(*args)

        return run

    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, backend=backend)
    actual = model.generate(ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    assert torch.equal(actual, expected)
    assert len(runs) >= STEPS


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_hooks_of_accelerate_run_in_every_step(family: Family) -> None:
    """They stand in place of the forward of the instance."""
    hooks = pytest.importorskip("accelerate.hooks")
    calls: list[int] = []

    class Counting(hooks.ModelHook):  # type: ignore[misc,name-defined]  # a class known at run time only
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return args, kwargs

    model, ids = family.build(eos_token_id=None), tokens(1, 7)
    expected = model.generate(ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    part = model.base_model.blocks[1].mlp
    hooks.add_hook_to_module(part, Counting())
    assert torch.equal(model.generate(ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0), expected)
    assert len(calls) == STEPS
    hooks.remove_hook_from_module(part)
    model.generate(ids, max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    assert len(calls) == STEPS
