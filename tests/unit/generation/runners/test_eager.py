"""The eager runner gives the forward's numbers for every step, and `next_logits`' where these are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gptrio
from gptrio.cache import DynamicCache, StaticCache
from gptrio.generation.inputs import ModelInputs
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.prompt import Prompt
from gptrio.generation.runners.eager import EagerRunner, own_preparation
from gptrio.generation.runners.protocol import Logits, Step
from gptrio.testing import assert_close, tiny_config

IDS = torch.tensor([[5, 9, 36, 8], [7, 7, 80, 3]])
MASK = torch.tensor([[False, True, True, True], [True, True, True, True]])


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return gptrio.AutoModelForCausalLM.from_config(tiny_config("gpt2", initializer_range=0.3)).eval()


def runner_of(
    model: Any, cache: Any, prompt: Prompt, has_next_logits: bool = False, hooks: Any = None, **options: Any
) -> EagerRunner:
    return EagerRunner(model, ModelInputs(prompt, GenerationConfig(**options), 1, cache, hooks), has_next_logits)


def step_of(ids: Tensor, start: int, cache: Any, keep: int = 1, **flags: Any) -> Step:
    return Step(ids, ids[:, start:], start, ids.shape[1], cache, keep, flags, keep == 1 and not flags)


def test_plain_steps_take_next_logits_and_others_the_forward(model: Any) -> None:
    want = model(IDS).logits
    cache = DynamicCache()
    runner = runner_of(model, cache, Prompt(IDS[:, :2]), has_next_logits=True)
    first = runner.run(step_of(IDS[:, :3], 0, cache))
    assert type(first) is Logits
    assert_close(first.logits, want[:, 2:3])
    second = runner.run(step_of(IDS, 3, cache, keep=1, output_hidden_states=True))
    assert_close(second.logits, want[:, 3:])
    assert_close(second.hidden_states[-1], model(IDS, output_hidden_states=True).hidden_states[-1][:, 3:])
    cache.crop(1)
    assert_close(runner.run(step_of(IDS, 1, cache, keep=2)).logits, want[:, 2:])


@pytest.mark.parametrize("make", [DynamicCache, lambda: None], ids=["cache", "none"])
def test_positions_do_not_count_padding(model: Any, make: Any) -> None:
    cache = make()
    runner = runner_of(model, cache, Prompt(IDS[:, :3], MASK[:, :3]))
    runner.run(step_of(IDS[:, :3], 0, cache))
    got = runner.run(step_of(IDS, 0 if cache is None else 3, cache)).logits
    assert_close(got[:1], model(IDS[:1, 1:]).logits[:, -1:])
    assert_close(got[1:], model(IDS[1:]).logits[:, -1:])


def test_a_forward_without_logits_to_keep_is_cut(model: Any) -> None:
    class Whole(gptrio.GPT2LMHeadModel):
        def forward(self, input_ids: Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
            assert "logits_to_keep" not in kwargs
            return super().forward(input_ids, past_key_values=past_key_values, **kwargs)

    own = Whole(model.config).eval()
    own.load_state_dict(model.state_dict())
    output = runner_of(own, None, Prompt(IDS)).run(step_of(IDS, 0, None, keep=2))
    assert_close(output.logits, model(IDS).logits[:, -2:])


def test_a_models_own_preparation_gets_all_ids_and_gives_the_arguments(model: Any) -> None:
    class Shifted(gptrio.GPT2LMHeadModel):
        def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> Any:
            seen.update(kwargs, input_ids=input_ids)
            return {"input_ids": input_ids + 1, "use_cache": False, "logits_to_keep": 7}

    seen: dict[str, Any] = {}
    own = Shifted(model.config).eval()
    own.load_state_dict(model.state_dict())
    assert own_preparation(model) is None
    assert own_preparation(own) is not None
    output = runner_of(own, None, Prompt(IDS, MASK)).run(step_of(IDS, 2, None))
    assert_close(output.logits, model(IDS + 1).logits[:, -1:])
    assert torch.equal(seen["input_ids"], IDS)
    assert seen["attention_mask"].tolist() == MASK.long().tolist()
    assert seen["cache_position"].tolist() == [2, 3]
    assert "position_ids" not in seen


def arguments(start: int, end: int, prompt: Prompt, cache: Any = None, hooks: Any = None) -> dict[str, Any]:
    inputs = ModelInputs(prompt, GenerationConfig(output_attentions=False), 1, cache, hooks)
    ids = torch.zeros(2, end, dtype=torch.long)
    given = inputs.arguments(Step(ids, ids[:, start:], start, end, cache, 1, {}, True))
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in given.items()}


def test_columns_after_the_prompt_are_real_and_go_on_counting() -> None:
    given = arguments(1, 6, Prompt(IDS, MASK))
    assert given["attention_mask"] == [[False] + [True] * 5, [True] * 6]
    assert given["position_ids"] == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert arguments(5, 6, Prompt(IDS, MASK))["position_ids"] == [[4], [5]]
    positions = torch.tensor([[4, 5, 6, 7], [0, 9, 1, 3]])
    assert arguments(3, 5, Prompt(IDS, position_ids=positions))["position_ids"] == [[7, 8], [3, 4]]


def test_token_types_are_those_of_the_last_column_after_the_prompt() -> None:
    types = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert arguments(2, 6, Prompt(IDS, token_type_ids=types))["token_type_ids"] == [[2, 3, 3, 3], [1, 0, 0, 0]]


def test_hooks_see_positions_and_caches_of_fixed_size_get_columns(model: Any) -> None:
    cache = StaticCache(model.config, 9)
    assert arguments(2, 4, Prompt(IDS), cache)["cache_position"] == [2, 3]
    assert arguments(2, 4, Prompt(IDS), hooks="a Linear has hooks")["position_ids"] == [[2, 3], [2, 3]]
    assert set(arguments(2, 4, Prompt(IDS), DynamicCache())) == {"past_key_values", "use_cache", "input_ids"}
