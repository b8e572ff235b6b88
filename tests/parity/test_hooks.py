"""A census of hooks: every submodule of every class fires when the reference's does, with its values, and is obeyed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import peft
import pytest
import torch
from torch import Tensor, nn

from gptrio import Int4Config, Int8Config
from gptrio.quantization import quantize
from gptrio.testing import assert_close
from tests.reference import loss_of, model_pair, padded, task_inputs, token_ids
from tests.sizes import SIZES

LANGUAGE_MODELS = ["GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM"]
HEADS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
CLASSES = [*LANGUAGE_MODELS, "GPT2DoubleHeadsModel", *(family + head for family in SIZES for head in HEADS)]


class Event(NamedTuple):
    """A call of a module: its name, the first tensor that it got, and all that it returned."""

    name: str
    given: Tensor | None
    returned: Any


def plain(value: Any) -> Any:
    """What a module returned, as tensors in tuples and dictionaries."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(plain(item) for item in value)
    return "cache" if hasattr(value, "get_seq_length") else value


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    found = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    return None if found is None else found.detach().clone()


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Event]]:
    """Every call of every submodule, in the order in which they end."""
    events: list[Event] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs, output: events.append(Event(name, first_tensor(args, kwargs), plain(output)))

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in model.named_modules()]
    yield events
    for handle in handles:
        handle.remove()


def assert_same(actual: Any, expected: Any, what: str) -> None:
    """Same structure, shapes and values."""
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor), f"{what}: {actual} for a tensor"
        assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} for {tuple(expected.shape)}"
        assert_close(actual, expected, 2e-5, what)
    elif isinstance(expected, dict):
        assert isinstance(actual, dict) and actual.keys() == expected.keys(), f"{what}: {actual} for {expected.keys()}"
        for key, value in expected.items():
            assert_same(actual[key], value, f"{what}.{key}")
    elif isinstance(expected, tuple):
        assert isinstance(actual, tuple), f"{what}: a {type(actual).__name__} for a tuple"
        assert len(actual) == len(expected), f"{what}: {len(actual)} for {len(expected)}"
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, f"{what}[{i}]")
    else:
        assert actual == expected, f"{what}: {actual} for {expected}"


def assert_same_events(ours: list[Event], oracle: list[Event]) -> None:
    assert [event.name for event in ours] == [event.name for event in oracle]
    for i, (one, other) in enumerate(zip(ours, oracle, strict=True)):
        assert_same(one.returned, other.returned, f"call {i}, output of {one.name}")
        if one.name and one.given is not None and other.given is not None:
            assert_same(one.given, other.given, f"call {i}, input of {one.name}")


def bent(x: Tensor) -> Tensor:
    """Something else of the same shape, which no norm undoes."""
    return x * torch.linspace(0.2, 1.5, x.shape[-1]) + 0.125


def pair(class_name: str, **config: Any) -> tuple[Any, Any]:
    return model_pair(class_name, pad_token_id=0, num_labels=4 if "Classification" in class_name else 2, **config)


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"output_attentions": True, "output_hidden_states": True}]
)
@pytest.mark.parametrize("class_name", CLASSES)
def test_every_module_fires_in_a_forward(class_name: str, options: dict[str, Any]) -> None:
    """The reference's eager calls, whatever the back end: what a hook looks at is computed."""
    oracle, ours = pair(class_name, attn_implementation="sdpa" if "output_attentions" in options else "eager")
    inputs = task_inputs(class_name)
    if class_name.endswith("QuestionAnswering"):
        options = {key: value for key, value in options.items() if key != "use_cache"}
    if class_name.endswith("DoubleHeadsModel"):
        inputs["input_ids"][..., -1] = 3
    else:
        inputs["attention_mask"] = padded([11, 7], 11, "right")
    assert {name for name, _ in ours.named_modules()} == {name for name, _ in oracle.named_modules()}
    with torch.no_grad(), watched(oracle) as expected, watched(ours) as actual:
        oracle(**inputs, **options)
        ours(**inputs, **options)
    assert_same_events(actual, expected)


@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_every_module_fires_over_a_cache(class_name: str) -> None:
    oracle, ours = pair(class_name)
    ids = token_ids(2, 12)
    with torch.no_grad(), watched(oracle) as expected, watched(ours) as actual:
        for model in (oracle, ours):
            past = model(ids[:, :9]).past_key_values
            model(ids[:, 9:], past_key_values=past)
    assert_same_events(actual, expected)


def test_cross_attention_fires() -> None:
    oracle, ours = pair("GPT2LMHeadModel", add_cross_attention=True)
    inputs = {"input_ids": token_ids(), "encoder_hidden_states": torch.randn(2, 5, 32)}
    for options in ({}, {"output_attentions": True}):
        with torch.no_grad(), watched(oracle) as expected, watched(ours) as actual:
            oracle(**inputs, **options)
            ours(**inputs, **options)
        assert_same_events(actual, expected)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # that of a table, whose ids have no gradient
@pytest.mark.parametrize("class_name", CLASSES)
def test_every_module_fires_in_a_backward(class_name: str) -> None:
    """In training mode, without dropout, whose draws no two programs share."""
    grads: list[dict[str, Any]] = []
    inputs = task_inputs(class_name)
    for model in pair(class_name):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.train()
        seen: dict[str, Any] = {}
        for name, module in model.named_modules():
            if name not in ("", model.base_model_prefix):  # which return no tensors
                module.register_full_backward_hook(
                    lambda _, into, out, name=name, seen=seen: seen.update({name: plain(out)})
                )
        loss_of(model(**inputs)).backward()
        grads.append(seen)
    expected, actual = grads
    assert list(actual) == list(expected)
    for name, values in expected.items():
        assert_same(actual[name], values, f"gradient of the output of {name}")


def last_position(event: Event) -> Event:
    """The event, with logits (B, T, V) and inputs (B, T, C) of the last position alone."""
    returned = event.returned
    if isinstance(returned, dict):
        return event._replace(returned={**returned, "logits": returned["logits"][:, -1:]})
    return event._replace(given=event.given[:, -1:], returned=returned[:, -1:])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_every_module_fires_in_every_step_of_generate(class_name: str, rows: int, options: dict[str, Any]) -> None:
    oracle, ours = pair(class_name)
    ids = token_ids(rows, 7)
    call = {
        "max_new_tokens": 5,
        "min_new_tokens": 5,
        "do_sample": False,
        "attention_mask": torch.ones_like(ids),
        **options,
    }
    with watched(oracle) as expected, watched(ours) as actual:
        wanted, got = oracle.generate(ids, **call), ours.generate(ids, **call)
    assert torch.equal(got, wanted)
    if class_name == "GPTNeoForCausalLM":  # whose head reads every position in the reference, the last one here
        expected = [last_position(event) if event.name in ("", "lm_head") else event for event in expected]
        actual = [last_position(event) if event.name in ("", "lm_head") else event for event in actual]
    assert_same_events(actual, expected)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_every_module_fires_with_weights_of_few_bits(class_name: str, bits: int) -> None:
    """The same modules, in a call and in every step; watching changes no number, and each gets what the last gave."""
    oracle, ours = pair(class_name)
    quantize(ours, Int8Config() if bits == 8 else Int4Config(group_size=32))
    ids = token_ids(1, 7)
    call = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = ours(ids).logits
        with watched(oracle) as full, watched(ours) as few:
            oracle(ids)
            actual = ours(ids).logits
        assert_close(actual, expected, 2e-2)
        assert [event.name for event in few] == [event.name for event in full]
        check_acts(ours, few)
        with watched(ours) as steps:
            ours.generate(ids, **call)
    assert [event.name for event in steps] == 4 * [event.name for event in full]
    check_acts(ours, steps)


def check_acts(model: nn.Module, events: list[Event]) -> None:
    """The activation gets what the layer before it gave, gives its function of that, and the next layer gets it."""
    seen = 0
    for before, event, after in zip(events, events[1:], events[2:], strict=False):
        if event.name.endswith("mlp.act"):
            assert torch.equal(event.given, before.returned)
            assert torch.equal(event.returned, model.get_submodule(event.name).forward(event.given))
            assert torch.equal(after.given, event.returned)
            seen += 1
    assert seen >= 3


@pytest.mark.filterwarnings("ignore")  # of PEFT: base models without a name
@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_every_module_fires_under_an_adapter(class_name: str) -> None:
    models = [peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM")) for model in pair(class_name)]
    oracle, ours = (model.eval() for model in models)
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.3)
    ours.load_state_dict(oracle.state_dict(), strict=False)
    ids = token_ids(1, 7)
    call = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad(), watched(oracle) as expected, watched(ours) as actual:
        oracle(input_ids=ids)
        ours(input_ids=ids)
    assert_same_events(actual, expected)
    with watched(oracle.base_model.model) as expected, watched(ours.base_model.model) as actual:
        assert torch.equal(ours.generate(input_ids=ids, **call), oracle.generate(input_ids=ids, **call))
    if class_name == "GPTNeoForCausalLM":
        expected, actual = (
            [last_position(e) if e.name in ("", "lm_head") else e for e in es] for es in (expected, actual)
        )
    assert_same_events(actual, expected)


@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_hooks_of_all_modules_fire(class_name: str) -> None:
    """`register_module_forward_hook` is for every module there is."""
    models = pair(class_name)
    names = {module: (i, name) for i, model in enumerate(models) for name, module in model.named_modules()}
    fired: list[tuple[int, str]] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: fired.append(names[module]))
    with torch.no_grad():
        for model in models:
            model(token_ids())
    handle.remove()
    assert [name for i, name in fired if i == 1] == [name for i, name in fired if i == 0]


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_what_a_hook_returns_is_used(class_name: str, attn_implementation: str) -> None:
    """For every submodule that returns one tensor, or a tuple that starts with one."""
    oracle, ours = model_pair(class_name, attn_implementation)
    ids, before = token_ids(1, 9), None
    names = [name for name, module in oracle.named_modules() if name and not isinstance(module, nn.ModuleList)]

    def changed(_: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return bent(output)
        if type(output) is tuple:
            return (bent(output[0]), *output[1:])
        output.last_hidden_state = bent(output.last_hidden_state)
        return output

    with torch.no_grad():
        before = ours(ids).logits
        for name in names:
            handles = [model.get_submodule(name).register_forward_hook(changed) for model in (oracle, ours)]
            actual = ours(ids).logits
            assert_close(actual, oracle(ids).logits, 2e-5, name)
            for handle in handles:
                handle.remove()
            assert (actual - before).abs().max() > 1e-4, name
        assert torch.equal(ours(ids).logits, before)


@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_what_a_hook_before_a_call_returns_is_used(class_name: str) -> None:
    oracle, ours = pair(class_name)
    ids = token_ids(1, 9)

    def changed(_: nn.Module, args: Any) -> Any:
        return (bent(args[0]), *args[1:]) if args and args[0].is_floating_point() else None

    with torch.no_grad():
        for name, module in oracle.named_modules():
            if name and not isinstance(module, nn.ModuleList):
                handles = [model.get_submodule(name).register_forward_pre_hook(changed) for model in (oracle, ours)]
                assert_close(ours(ids).logits, oracle(ids).logits, 2e-5, name)
                for handle in handles:
                    handle.remove()


@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_an_edit_by_a_hook_steers_generate(class_name: str) -> None:
    oracle, ours = pair(class_name)
    ids = token_ids(2, 7)
    call = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    before = ours.generate(ids, **call)
    for model in (oracle, ours):
        block = model.base_model.h[1] if hasattr(model.base_model, "h") else model.base_model.layers[1]
        block.mlp.act.register_forward_hook(lambda _, args, output: output - 3.0)
    after = ours.generate(ids, **call)
    assert torch.equal(after, oracle.generate(ids, **call))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("class_name", [*LANGUAGE_MODELS, *(f"{family}ForQuestionAnswering" for family in SIZES)])
def test_the_backbone_gets_the_ids_by_position(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    ids = token_ids()
    for model in (oracle, ours):
        model.base_model.register_forward_pre_hook(lambda _, args: ((args[0] + 1) % 59, *args[1:]))
    for found, expected in zip(ours(ids).to_tuple(), oracle(ids).to_tuple(), strict=True):
        if isinstance(expected, Tensor):
            assert_close(found, expected, 2e-5)


@pytest.mark.parametrize("class_name", LANGUAGE_MODELS)
def test_the_last_hidden_state_has_a_gradient(class_name: str) -> None:
    grads = []
    ids = token_ids()
    for model in model_pair(class_name):
        out = model(ids, output_hidden_states=True)
        for states in out.hidden_states:
            states.retain_grad()
        out.logits[0, -1, 3].backward()
        grads.append([states.grad for states in out.hidden_states])
    for expected, found in zip(*grads, strict=True):
        assert_close(found, expected, 2e-5)


@pytest.mark.parametrize("place", ["", ".attn", ".attn.attention"])
def test_hooks_of_gpt_neo_see_the_weights_in_every_back_end(place: str) -> None:
    oracle, ours = model_pair("GPTNeoForCausalLM", "sdpa")
    ids, seen = token_ids(), []
    for model in (oracle, ours):
        part = model.get_submodule("transformer.h.1" + place)
        part.register_forward_hook(lambda _, args, output: seen.append(output[1]))
        model(ids)
    assert_close(seen[1], seen[0], 2e-5)
