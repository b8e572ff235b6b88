"""Every reason against an optimisation is found, and said in the log; without one, the optimisation is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gptrio
from gptrio.cache import DynamicCache, OffloadedStaticCache, StaticCache
from gptrio.errors import OptionError
from gptrio.generation.inputs import ModelInputs
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.prompt import Prompt
from gptrio.generation.runners import select
from gptrio.generation.runners.cpu_decode import CpuDecodeRunner
from gptrio.generation.runners.protocol import Step
from gptrio.generation.runners.select import (
    choose_runner,
    direct_calls,
    fast_path,
    fast_steps,
    next_logits,
    shared_prefill,
)
from gptrio.kernels import cuda_graph
from gptrio.kernels.cpu_decode import NOT_INSTALLED, Reason
from gptrio.kernels.cpu_decode.compilation import NotYet
from gptrio.nn.fast_call import hook_reason, is_dispatch_skipped, skip_hook_dispatch
from gptrio.testing import tiny_config

IDS = torch.tensor([[5, 9, 36], [7, 7, 80]])


def build(**config: Any) -> Any:
    return gptrio.AutoModelForCausalLM.from_config(tiny_config("gpt2", **config)).eval()


class OwnForward(gptrio.GPT2LMHeadModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class OwnPreparation(gptrio.GPT2LMHeadModel):
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return super().prepare_inputs_for_generation(*args, **kwargs)


def reason(path: Any, model: Any = None, copies: int = 1, skips: bool = True, **given: Any) -> Reason | None:
    """What `fast_path` returns for a call of `generate` with these options, columns and cache."""
    model = build() if model is None else model
    prompt = Prompt(given.pop("ids", IDS))
    columns = {name: given.pop(name) for name in tuple(given) if hasattr(prompt, name)}
    cache = given.pop("past_key_values", DynamicCache())
    for name, value in columns.items():
        setattr(prompt, name, value)
    with skip_hook_dispatch(None if skips else "with streams the caller sees tensors"):
        hooks = None if is_dispatch_skipped() else hook_reason(model)
        return fast_path(model, ModelInputs(prompt, GenerationConfig(**given), copies, cache, hooks), path)


def hooked() -> Any:
    model = build()
    model.lm_head.register_forward_hook(lambda *_: None)
    return model


def test_few_new_tokens_leave_compiled_code_unloaded(monkeypatch):
    asked = []
    monkeypatch.setattr(select, "unloaded_reason", lambda steps: asked.append(steps) or Reason("too few"))
    assert reason(fast_steps, max_length=20) == "too few"
    assert asked == [20 - IDS.shape[1]]


MASK = torch.tensor([[False, True, True], [True, True, True]])
CODE = {
    "OwnForward has a forward of its own": lambda: {"model": OwnForward(tiny_config("gpt2")).eval()},
    "OwnPreparation has a prepare_inputs_for_generation of its own": lambda: {
        "model": OwnPreparation(tiny_config("gpt2")).eval()
    },
    "the forward needs head_mask": lambda: {"constants": {"head_mask": torch.ones(4)}},
    "the forward needs output_attentions": lambda: {
        "output_attentions": True,
        "return_dict_in_generate": True,
    },
}
TOKENS = {
    **CODE,
    "with streams the caller sees tensors": lambda: {"skips": False},
    "there is no cache": lambda: {"past_key_values": None},
    "the cache is OwnCache, not DynamicCache": lambda: {"past_key_values": type("OwnCache", (DynamicCache,), {})()},
    "the prompt has position_ids, token_type_ids or inputs_embeds": lambda: {"token_type_ids": IDS % 2},
}
Case = tuple[Callable[..., Any], str, Callable[[], dict[str, Any]]]
CASES: list[Case] = [
    *((next_logits, sentence, make) for sentence, make in TOKENS.items()),
    (next_logits, "the prompts are padded", lambda: {"attention_mask": MASK}),
    *((fast_steps, sentence, make) for sentence, make in TOKENS.items()),
    (fast_steps, "disable_compile is set", lambda: {"disable_compile": True}),
    (fast_steps, "33 rows are faster by whole matrix products", lambda: {"ids": IDS[:1], "copies": 33}),
    (
        fast_steps,
        "guidance_scale runs the model between the steps, on all threads",
        lambda: {"guidance_scale": 1.5},
    ),
    (
        fast_steps,
        "padding stands after or between the tokens of a row",
        lambda: {"attention_mask": MASK.flip(1)},
    ),
    (shared_prefill, "there is no cache", lambda: {"past_key_values": None}),
    (shared_prefill, "a Linear has hooks, a compiled form", lambda: {"model": hooked(), "skips": False}),
    (
        shared_prefill,
        "OwnPreparation has a prepare_inputs_for_generation of its own",
        lambda: {"model": OwnPreparation(tiny_config("gpt2")).eval()},
    ),
]


@pytest.mark.parametrize(
    ("path", "sentence", "make"), CASES, ids=[f"{case[0].__name__}-{case[1][:40]}" for case in CASES]
)
def test_what_stands_against_an_optimisation_is_returned_and_logged(
    path: Any, sentence: str, make: Callable[[], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gptrio"):
        found = reason(path, **make())
    assert isinstance(found, Reason)
    assert found.startswith(sentence)
    assert caplog.messages == [f"generate goes on without {path.__name__.replace('_', ' ')}: {found}"]


def static(**given: Any) -> dict[str, Any]:
    model = given.pop("model", None) or build(**given)
    return {"model": model, "past_key_values": StaticCache(model.config, 20)}


GRAPHS: dict[str, Callable[[], dict[str, Any]]] = {
    "disable_compile is set": lambda: {**static(), "disable_compile": True},
    "the model is in training mode, or autocast is on": lambda: static(model=build().train()),
    "the model has cross-attention": lambda: static(add_cross_attention=True),
    "a Linear has hooks": lambda: {**static(model=hooked()), "skips": False},
    "the forward needs head_mask": lambda: {**static(), "constants": {"head_mask": torch.ones(4)}},
    "OwnForward has a forward of its own": lambda: static(model=OwnForward(tiny_config("gpt2")).eval()),
}


@pytest.mark.parametrize("sentence", GRAPHS)
def test_what_stands_against_a_cuda_graph(sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cuda_graph.CAPTURE_BY_DEVICE, "cpu", lambda compute, device: compute)
    assert reason(fast_steps, **static()) is None
    assert str(reason(fast_steps, **GRAPHS[sentence]())).startswith(sentence)


def test_a_cuda_graph_needs_one_device_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(fast_steps, **static()) == "there are no CUDA graphs on cpu"
    monkeypatch.setitem(cuda_graph.CAPTURE_BY_DEVICE, "cpu", lambda compute, device: compute)
    split = build()
    split.lm_head.to("meta")
    assert reason(fast_steps, **static(model=split)) == "the model lies on several devices"
    cache = OffloadedStaticCache(split.config, 20)
    assert reason(fast_steps, build(), past_key_values=cache) == "the cache is OffloadedStaticCache, not DynamicCache"
    with torch.autocast("cpu", torch.bfloat16):
        assert reason(fast_steps, **static()) == "the model is in training mode, or autocast is on"


def test_a_cuda_graph_needs_layers_of_fixed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cuda_graph.CAPTURE_BY_DEVICE, "cpu", lambda compute, device: compute)
    given = static()
    given["past_key_values"].layers.clear()
    assert reason(fast_steps, **given) == "the static cache has other layers than its own, or none"


def test_nothing_stands_against_a_plain_call(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gptrio"):
        assert [reason(path, copies=2) for path in (shared_prefill, next_logits, fast_steps)] == [None] * 3
        assert reason(fast_steps, attention_mask=MASK) is None
        assert reason(shared_prefill, skips=False, attention_mask=MASK, return_dict_in_generate=True) is None
    assert caplog.messages == []


def test_steps_are_not_compiled_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "is_installed", lambda: False)
    assert reason(fast_steps) == NOT_INSTALLED


@pytest.mark.parametrize(
    "name",
    ["logits_processor", "stopping_criteria", "past_key_values", "custom_generate", "return_dict_in_generate"],
)
def test_modules_are_called_with_hooks_where_the_caller_sees_tensors(name: str) -> None:
    assert direct_calls([build()], **{name: True}) == f"with {name} the caller sees tensors of the model"
    assert direct_calls([build()], **{name: None}) is None


def test_modules_are_called_with_hooks_where_any_model_has_some() -> None:
    found = direct_calls([build(), hooked()])
    assert found == "a Linear has hooks, a compiled form or a forward of its own"


class Answering:
    """A model whose compiled step is whatever it is given."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), []

    def compiled_step(self, rows: int, left_padding: Any = None) -> Any:
        self.asked.append((rows, None if left_padding is None else left_padding.tolist()))
        return self.answers.pop(0)


def step_of(inputs: ModelInputs) -> Step:
    return Step(IDS, IDS[:, -1:], 2, 3, inputs.cache, 1, {}, True)


def test_a_compiled_step_is_asked_for_until_it_is_ready_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    compiled = type("Compiled", (), {"threads": 2})()
    model: Any = Answering(NotYet("compiling"), NotYet("compiling"), compiled)
    inputs = ModelInputs(Prompt(IDS, MASK), GenerationConfig(), 1, DynamicCache(), None)
    last: Reason | None = NotYet("the prompt is computed first")
    with caplog.at_level(logging.INFO, "gptrio"):
        for _ in range(2):
            found = choose_runner(model, inputs, step_of(inputs), last)
            assert type(found) is NotYet
            last = found
        found = choose_runner(model, inputs, step_of(inputs), last)
    assert isinstance(found, CpuDecodeRunner)
    assert found.threads == 2
    assert model.asked == [(2, [1, 0])] * 3
    assert caplog.messages == [
        "generate goes on without fast steps: compiling",
        "decoding steps run compiled for this processor, on 2 threads",
    ]


def test_generate_says_why_its_steps_are_not_compiled(caplog: pytest.LogCaptureFixture) -> None:
    model = build(activation_function="gelu_fast")
    with caplog.at_level(logging.INFO, "gptrio"):
        model.generate(IDS, max_new_tokens=3, eos_token_id=None, pad_token_id=0)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("generate goes on without fast steps: ")


def test_an_unknown_way_of_compiling_is_refused_before_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    class Streamer:
        def put(self, value: Any) -> None:
            pytest.fail("something ran")

        def end(self) -> None:
            pytest.fail("something ran")

    monkeypatch.setenv("GPTRIO_COMPILE", "later")
    with pytest.raises(OptionError, match="GPTRIO_COMPILE='later'"):
        build().generate(IDS[:1], max_new_tokens=3, streamer=Streamer())
