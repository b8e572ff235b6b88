"""Text generation by pipelines, value by value beside Transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.pipelines.text_generation import ReturnType as TheirType

import gptrio
from gptrio.errors import InputError, OptionError
from gptrio.pipelines.pt_utils import KeyDataset, PipelineDataset
from gptrio.pipelines.text_generation import ReturnType
from tests.cases import first
from tests.contract.families import FAMILIES, Family
from tests.parity.pipelines import assert_alike, both, families, save

PROMPTS = ["It was", "no", "a fine, fine film"]
GREEDY = {"do_sample": False, "max_new_tokens": 6}
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [{"role": "user", "content": "hi"}]
PREFILLED = [*CHAT, {"role": "assistant", "content": "I am"}]


@pytest.fixture(scope="module", params=first(FAMILIES), ids=str)
def generators(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    pair = both("text-generation", save(tmp_path_factory.mktemp("generator"), request.param))
    for each in pair:
        each.tokenizer.chat_template = TEMPLATE
    return pair


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"return_full_text": False},
        {"return_full_text": True},
        {"return_text": True},
        {"return_tensors": True},
        {"prefix": "Well. "},
        {"prefix": "Well. ", "max_new_tokens": None, "max_length": 24},
        {"stop_sequence": "e"},
        {"num_beams": 3, "num_return_sequences": 2},
        {"clean_up_tokenization_spaces": False},
        {"skip_special_tokens": False},
        {"add_special_tokens": True},
        {"truncation": True, "tokenizer_encode_kwargs": {"max_length": 2}},
        {"repetition_penalty": 1.3},
        {"handle_long_generation": "hole", "max_new_tokens": 55},
        {"max_new_tokens": None, "max_length": 20},
        {"min_new_tokens": 3, "eos_token_id": [97, 101]},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=str,
)
def test_prompts_continue_as_in_the_reference(generators: tuple[Any, Any], arguments: dict[str, Any]) -> None:
    theirs, ours = generators
    arguments = {**GREEDY, **arguments}
    expected = theirs(PROMPTS, **arguments)
    assert_alike(ours(PROMPTS, **arguments), expected)
    assert_alike(list(ours((prompt for prompt in PROMPTS), **arguments)), expected)
    assert_alike(
        list(ours(KeyDataset([{"p": prompt} for prompt in PROMPTS], "p"), batch_size=2, **arguments)), expected
    )
    assert_alike(ours(PROMPTS[2], **arguments), theirs(PROMPTS[2], **arguments))


@pytest.mark.parametrize("kind", ReturnType)
def test_the_type_of_results_is_that_of_the_reference(generators: tuple[Any, Any], kind: ReturnType) -> None:
    theirs, ours = generators
    assert_alike(ours(PROMPTS, **GREEDY, return_type=kind), theirs(PROMPTS, **GREEDY, return_type=TheirType[kind.name]))
    with pytest.raises(OptionError, match="return_type=0 is not known"):
        ours("hi", return_type=0)


@pytest.mark.parametrize("chats", [CHAT, PREFILLED, [CHAT, PREFILLED], [CHAT, CHAT]], ids=str)
@pytest.mark.parametrize("arguments", [{}, {"return_full_text": False}, {"continue_final_message": False}], ids=str)
def test_chats_continue_as_in_the_reference(generators: tuple[Any, Any], chats: Any, arguments: dict[str, Any]) -> None:
    theirs, ours = generators
    assert_alike(ours(chats, **GREEDY, **arguments), theirs(chats, **GREEDY, **arguments))
    given = (chat for chat in chats)
    expected = theirs(chats, **GREEDY, **arguments)
    assert_alike(
        ours(given, **GREEDY, **arguments) if chats[0] is CHAT[0] else list(ours(given, **GREEDY, **arguments)),
        expected,
    )


def test_datasets_of_chats_give_what_lists_give(generators: tuple[Any, Any]) -> None:
    theirs, ours = generators
    chats = [CHAT, PREFILLED]
    expected = theirs(chats, **GREEDY)
    assert_alike(ours(KeyDataset([{"c": chat} for chat in chats], "c"), **GREEDY), expected)
    assert_alike(list(ours(PipelineDataset(chats, list, {}), **GREEDY)), expected)  # Transformers fails


def test_a_message_without_a_role_is_refused(generators: tuple[Any, Any]) -> None:
    for each in generators:
        with pytest.raises(ValueError, match="'content'"):
            each([{"text": "hi"}])


@pytest.mark.parametrize(
    "wrong", [None, 3, {"text": "hi"}, ["hi", 3], [None], pytest.param(iter(["hi"]), id="iterator")], ids=str
)
def test_an_input_that_is_neither_text_nor_chat_is_named(generators: tuple[Any, Any], wrong: Any) -> None:
    with pytest.raises(InputError, match=r"an input is .*; expected a text, or a chat"):
        generators[1](wrong, **GREEDY)
    with pytest.raises(InputError, match=r"an input is .*; expected a text, or a chat"):
        list(generators[1]((text for text in (wrong if isinstance(wrong, list) else ["hi", wrong])), **GREEDY))


@pytest.mark.parametrize("prompts", ["hi", ["hi", "you"]], ids=str)
def test_options_in_a_dictionary_are_refused_with_the_class_to_use(generators: tuple[Any, Any], prompts: Any) -> None:
    with pytest.raises(OptionError, match="is a dict; expected a gptrio"):
        generators[1](prompts, generation_config={"max_new_tokens": 2})


def test_a_second_prompt_without_a_list_is_refused(generators: tuple[Any, Any]) -> None:
    for each in generators:
        with pytest.raises(TypeError, match="positional"):
            each("hi", "you", **GREEDY)


@pytest.mark.parametrize("given", [{"return_text": True}, {"return_tensors": True}], ids=str)
def test_contradictory_arguments_are_refused(generators: tuple[Any, Any], given: dict[str, Any]) -> None:
    for each in generators:
        with pytest.raises(ValueError, match="mutually exclusive"):
            each("hi", return_full_text=True, **given)
        with pytest.raises(ValueError, match="handle_long_generation"):
            each("hi", handle_long_generation="cut")
        with pytest.raises(ValueError, match="max"):
            each("hi", handle_long_generation="hole", max_new_tokens=70)


def test_datasets_and_generators_give_results_in_order(generators: tuple[Any, Any]) -> None:
    theirs, ours = generators
    expected = theirs(PROMPTS, **GREEDY)
    assert_alike(list(ours((prompt for prompt in PROMPTS), **GREEDY)), expected)
    assert_alike(list(ours(KeyDataset([{"p": prompt} for prompt in PROMPTS], "p"), **GREEDY)), expected)
    assert_alike(ours(tuple(PROMPTS), **GREEDY), expected)


def test_a_seeded_program_draws_the_samples_of_the_reference(generators: tuple[Any, Any]) -> None:
    theirs, ours = generators
    for arguments in ({}, {"temperature": 1.3, "top_k": 5}, {"num_return_sequences": 2}):
        torch.manual_seed(1)
        expected = theirs(PROMPTS, max_new_tokens=6, **arguments)
        torch.manual_seed(1)
        assert_alike(ours(PROMPTS, max_new_tokens=6, **arguments), expected)


def test_batches_that_are_asked_for_are_those_of_the_reference(generators: tuple[Any, Any]) -> None:
    theirs, ours = generators
    expected = theirs(PROMPTS, **GREEDY)
    assert_alike(ours(PROMPTS, batch_size=2, **GREEDY), expected)


@families
def test_options_come_from_the_call_then_the_pipeline_then_the_model(tmp_path: Path, family: Family) -> None:
    folder = save(tmp_path, family)
    options = {"max_new_tokens": 5, "do_sample": False, "repetition_penalty": 1.2}
    transformers.GenerationConfig(repetition_penalty=1.9, max_length=33).save_pretrained(folder)
    for given in ({}, options):
        theirs, ours = both("text-generation", folder, **given)
        for name in ("max_new_tokens", "max_length", "do_sample", "repetition_penalty", "pad_token_id"):
            assert getattr(ours.generation_config, name) == getattr(theirs.generation_config, name), name
    assert_alike(ours(PROMPTS), theirs(PROMPTS))
    config = {"max_new_tokens": 4, "do_sample": False}
    expected = theirs(PROMPTS, generation_config=transformers.GenerationConfig(**config))
    assert_alike(ours(PROMPTS, generation_config=gptrio.GenerationConfig(**config)), expected)


def test_task_specific_options_of_the_configuration_are_obeyed(tmp_path: Path) -> None:
    own = {"text-generation": {"do_sample": False, "max_new_tokens": 3, "prefix": "So: "}}
    theirs, ours = both("text-generation", save(tmp_path, FAMILIES[0], task_specific_params=own))
    assert_alike(ours(PROMPTS), theirs(PROMPTS))


@families
def test_an_assistant_model_gives_the_same_text(tmp_path: Path, family: Family) -> None:
    folder = save(tmp_path / "model", family)
    assistant = save(tmp_path / "assistant", family)
    theirs, ours = both("text-generation", folder, assistant_model=str(assistant))
    plain = gptrio.pipeline("text-generation", folder, device="cpu")
    assert_alike(ours(PROMPTS, **GREEDY), theirs(PROMPTS, **GREEDY))
    assert_alike(ours(PROMPTS, **GREEDY), plain(PROMPTS, **GREEDY))
