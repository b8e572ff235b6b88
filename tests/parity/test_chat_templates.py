"""Chat templates give the text, ids and masks that Transformers gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import transformers
from transformers.utils import get_json_schema as reference_schema

import gptrio
from gptrio.errors import ChatTemplateError, GptrioWarning, TokenizationError, UnsupportedError
from gptrio.utils import get_json_schema
from tests.tiny_tokenizers import write_gpt2, write_gpt_neox

CHAT = [
    {"role": "system", "content": "You are  helpful."},
    {"role": "user", "content": "  Größe <b>&</b> 'x'? \n"},
    {"role": "assistant", "content": "Yes: 東京 😊."},
    {"role": "user", "content": "a b c"},
    {"role": "assistant", "content": " d e \n\n f "},
]
SHORT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
DOCUMENTS = [{"title": "One", "text": "First"}, {"title": "Two", "text": "Second"}]
CALLS = [
    *SHORT,
    {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}],
    },
    {"role": "tool", "name": "weather", "content": "12.5"},
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}]}
]

TEMPLATES = {
    name: template.removesuffix("\n")
    for name, template in (
        part.split("\n", 1)
        for part in Path(__file__).with_name("chat_templates.txt").read_text(encoding="utf-8").split("==== ")[1:]
    )
}
CHATML, GENERATION = TEMPLATES["chatml"], TEMPLATES["generation blocks"]


def weather(city: str, days: int = 1, unit: str | None = None) -> float:
    """Give the forecast.

    It is for a city.

    Args:
        city: where,
            in the world
        days: how many days
        unit: one of two (choices: ["celsius", "fahrenheit"])

    Returns:
        the temperature
    """
    return 12.5


TOKENIZERS = {"slow": "GPT2Tokenizer", "fast": "GPT2TokenizerFast", "neox": "GPTNeoXTokenizerFast"}


@pytest.fixture(scope="module", params=TOKENIZERS)
def both(request, tmp_path_factory):
    """(ours, theirs) over one vocabulary, with a padding token."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (write_gpt_neox if request.param == "neox" else write_gpt2)(folder)
    classes = [getattr(library, TOKENIZERS[request.param]) for library in (gptrio, transformers)]
    return tuple(cls.from_pretrained(folder, pad_token="<|endoftext|>", model_max_length=4000) for cls in classes)


def plain(value):
    """Lists in place of arrays, a dict in place of an encoding."""
    if hasattr(value, "items"):
        return {name: plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) or hasattr(value, "tolist") else value


def same(both, conversation, **arguments):
    ours, theirs = (plain(tokenizer.apply_chat_template(conversation, **arguments)) for tokenizer in both)
    assert ours == theirs
    return ours


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_feature_of_a_template_gives_the_same_text_and_ids(both, name):
    chats = {"content parts": PARTS, "tool calls": CALLS}
    arguments = {"chat_template": TEMPLATES[name], "tools": [weather, {"type": "function"}], "documents": DOCUMENTS}
    if name == "tools":
        arguments["tools"] = [weather, reference_schema(weather)]
    if name == "own variables":
        arguments |= {"greeting": "Hi", "enable_thinking": True}
    for add_generation_prompt in (False, True):
        arguments["add_generation_prompt"] = add_generation_prompt
        assert same(both, chats.get(name, CHAT), tokenize=False, **arguments)
        assert same(both, chats.get(name, CHAT), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"tokenize": False},
        {"padding": True},
        {"padding": True, "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 300, "truncation": True, "return_tensors": "np", "return_dict": True},
        {"truncation": True, "max_length": 20, "return_dict": True},
        {"return_dict": True, "tokenizer_kwargs": {"return_length": True, "padding_side": "left"}, "padding": True},
        {"continue_final_message": True, "tokenize": False},
        {"add_generation_prompt": True},
    ],
)
def test_batches_and_arguments_of_the_call_give_the_same(both, arguments):
    for conversation in (CHAT, [CHAT, SHORT], (tuple(SHORT),)):
        same(both, conversation, chat_template=CHATML, **arguments)


@pytest.mark.parametrize("return_tensors", [None, "pt", "np"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_masks_of_what_the_assistant_says_are_the_same(both, return_tensors, padding_side):
    ascii_chat = [{**message, "content": message["content"].encode("ascii", "ignore").decode()} for message in CHAT]
    arguments = {"return_dict": True, "return_assistant_tokens_mask": True, "return_tensors": return_tensors}
    arguments |= {"chat_template": GENERATION, "tokenizer_kwargs": {"padding_side": padding_side}}
    if not both[0].is_fast:
        with pytest.raises(UnsupportedError, match="fast tokenizers only"):
            both[0].apply_chat_template(SHORT, **arguments)
        return
    result = same(both, ascii_chat, **arguments)
    assert 0 < np.sum(result["assistant_masks"]) < np.size(result["assistant_masks"])
    same(both, [ascii_chat, SHORT], padding=True, **arguments)
    same(both, [ascii_chat, SHORT], padding=True, truncation=True, max_length=30, **arguments)


def test_a_mask_covers_all_bytes_of_a_character_and_a_block_at_the_start(both):
    tokenizer, _ = both
    if not tokenizer.is_fast:
        return
    template = "{% generation %}{{ messages[0].content }}{% endgeneration %} end"
    arguments = {"return_dict": True, "return_assistant_tokens_mask": True, "chat_template": template}
    result = tokenizer.apply_chat_template([{"role": "assistant", "content": "so 😊"}], **arguments)
    masked = [index for index, mask in zip(result["input_ids"], result["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(masked) == "so 😊"


def test_a_mask_without_a_generation_block_is_empty_with_a_warning(both):
    if both[0].is_fast:
        both[0]._warned.clear()
        with pytest.warns(GptrioWarning, match="no {% generation %} block"):
            result = both[0].apply_chat_template(
                SHORT, chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
            )
        assert set(result["assistant_masks"]) == {0}


CONTINUED = ["end", " end", "end ", "  two words \n", "twice twice", ""]


@pytest.mark.parametrize("last", CONTINUED)
@pytest.mark.parametrize("name", ["chatml", "generation blocks", "plain"])
def test_continued_messages_end_at_the_same_place(both, name, last):
    conversation = [SHORT[0], {"role": "assistant", "content": last}]
    arguments = {"chat_template": TEMPLATES[name], "continue_final_message": True}
    same(both, conversation, tokenize=False, **arguments)
    same(both, [conversation, SHORT], **arguments)


def test_continued_content_parts_end_at_the_last_text(both):
    arguments = {"chat_template": TEMPLATES["content parts"], "continue_final_message": True, "tokenize": False}
    assert same(both, PARTS, **arguments) == "one<image>two"


@pytest.mark.parametrize(
    "arguments",
    [
        {"return_dict": True, "tokenize": False},
        {"return_assistant_tokens_mask": True},
        {"continue_final_message": True, "add_generation_prompt": True},
        {"continue_final_message": True, "return_assistant_tokens_mask": True, "return_dict": True},
        {"continue_final_message": True, "chat_template": "nothing"},
        {"tools": ["weather"]},
        {"tools": [print]},
        {"tokenizer_kwargs": {"padding": True}},
        {"chat_template": "{{ raise_exception('no system messages') }}"},
        {"chat_template": "{{ nothing.at.all }}"},
        {"chat_template": "{% if %}"},
    ],
)
def test_both_refuse_the_same_arguments(both, arguments):
    arguments = {"chat_template": CHATML} | arguments
    with pytest.raises((ValueError, TypeError, ImportError, Exception)) as theirs:
        both[1].apply_chat_template(CHAT, **arguments)
    with pytest.raises(TokenizationError) as ours:
        both[0].apply_chat_template(CHAT, **arguments)
    known = (ValueError, TypeError) if not isinstance(ours.value, ChatTemplateError) else (Exception,)
    assert isinstance(theirs.value, known)


def test_a_message_is_encoded_after_its_history_in_the_same_way(both):
    for tokenizer in both:
        tokenizer.chat_template = CHATML
    for history in (None, [], CHAT[:2]):
        ours, theirs = (tokenizer.encode_message_with_chat_template(CHAT[2], history) for tokenizer in both)
        assert ours == theirs
    with pytest.raises(TokenizationError, match="add_generation_prompt"):
        both[0].encode_message_with_chat_template(CHAT[2], add_generation_prompt=True)


def test_named_templates_are_chosen_in_the_same_way(both):
    for tokenizer in both:
        tokenizer.chat_template = {"default": "d", "tool_use": "t", "other": "o"}
    for arguments in ({}, {"tools": [weather]}, {"chat_template": "other"}, {"chat_template": "{{ 1 }}"}):
        assert both[0].get_chat_template(**arguments) == both[1].get_chat_template(**arguments)
        same(both, SHORT, tokenize=False, **arguments)
    for tokenizer in both:
        tokenizer.chat_template = {"one": "1", "two": "2"}
        with pytest.raises(ValueError, match=r"\['one', 'two'\]"):
            tokenizer.get_chat_template()


def test_a_tokenizer_without_a_template_shows_how_to_set_one(both):
    both[0].chat_template = None
    with pytest.raises(TokenizationError, match="has no chat_template") as caught:
        both[0].apply_chat_template(SHORT)
    example = str(caught.value).split('= "')[1].split('", or')[0].replace("\\n", "\n")
    assert (
        both[0].apply_chat_template(SHORT, chat_template=example, tokenize=False) == "user: hello\nassistant: world\n"
    )


@pytest.mark.parametrize("conversation", [[], "hello", None, {}])
def test_what_is_no_conversation_is_named(both, conversation):
    with pytest.raises(TokenizationError, match="expected a list of messages"):
        both[0].apply_chat_template(conversation, chat_template=CHATML)


def no_arguments():
    """Do nothing."""


def everything(
    a: int,
    b: float,
    c: str,
    d: bool,
    e: list,
    f: list[int],
    g: dict,
    h: dict[str, list[float]],
    i: tuple[int, str],
    j: int | str,
    k: list[int] | str | None,
    m: None = None,
) -> list[str]:
    """Take everything.

    Args:
        a: first
        b: second (Choices: ["x", " y "])
        c: third: with a colon
        d: fourth

        e: fifth
           goes on
        f: f
        g: g
        h: h
        i: i
        j: j
        k: k
        m: m

    Raises:
        ValueError: never
    """  # fmt: skip
    return []


@pytest.mark.parametrize("function", [weather, no_arguments, everything])
def test_functions_have_the_same_json_schemas(function):
    assert get_json_schema(function) == reference_schema(function)


def undocumented(x: int):
    pass


def incomplete(x: int, y: int):
    """Add.

    Args:
        x: first
    """


def untyped(x):
    """Add.

    Args:
        x: first
    """


def single(x: tuple[int]):
    """Add.

    Args:
        x: first
    """


@pytest.mark.parametrize("function", [undocumented, incomplete, untyped, single])
def test_functions_without_a_schema_are_refused_alike(function):
    errors = []
    for schema in (get_json_schema, reference_schema):
        with pytest.raises(Exception, match=r".") as caught:
            schema(function)
        errors.append(type(caught.value).__name__)
    assert errors[0] == errors[1]
