"""Conversations as text and ids, by the tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from inspect import isfunction
from typing import TYPE_CHECKING, Any

from gptrio.errors import TokenizationError, UnknownArgumentError
from gptrio.tokenization.batch_encoding import BatchEncoding
from gptrio.tokenization.encoding import EncodingMixin, short

if TYPE_CHECKING:
    from gptrio.tokenization.templates.limits import Rendering

Message = Mapping[str, Any]
Tool = Mapping[str, Any] | Callable[..., Any]

_EXAMPLE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplateMixin(EncodingMixin):
    """The methods of a tokenizer that take conversations."""

    chat_template: str | dict[str, str] | None

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[Tool] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write a conversation, or a batch of them, as the model was trained to read it.

        Args:
            conversation: messages, each with "role" and "content"; or a list of conversations.
            tools: functions that the model may call: JSON schemas, or functions for `get_json_schema`.
            documents: texts to answer from, each with "title" and "text".
            chat_template: a jinja2 template, or the name of one of the tokenizer's (its own when None).
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end within the last message, which the model is to continue.
            tokenize: return ids instead of text.
            padding, truncation, max_length, return_tensors: see `EncodeOptions`.
            return_dict: return every entry of the encoding instead of the ids alone.
            return_assistant_tokens_mask: add `assistant_masks`, 1 for each token of the template's
                `{% generation %}` blocks; fast tokenizers only.
            tokenizer_kwargs: further arguments of the tokenizer's call.
            **kwargs: further variables of the template.

        Returns:
            Text, ids (T,), or a `BatchEncoding`; a list of them, or rows, for a batch.

        Raises:
            ChatTemplateError: the template is malformed, fails, or does more than it may.
            TokenizationError: there is no template, or arguments contradict.
        """
        _check(tokenize, return_dict, return_assistant_tokens_mask, add_generation_prompt, continue_final_message)
        template = self.get_chat_template(chat_template, tools)
        conversations, is_batch = _conversations(conversation)
        variables = {
            "tools": _schemas(tools),
            "documents": _documents(documents),
            "add_generation_prompt": add_generation_prompt,
            **self.special_tokens_map,
            **kwargs,
        }
        if return_assistant_tokens_mask and not _GENERATION_TAG.search(template):
            self._warn_once("no generation tag", "the chat template has no {% generation %} block: no token is masked")
        renderings = [_render(template, messages, variables) for messages in conversations]
        texts = ["".join(rendering.blocks) for rendering in renderings]
        if continue_final_message:
            from gptrio.tokenization.templates.render import continue_at

            texts = [continue_at(text, messages) for text, messages in zip(texts, conversations, strict=True)]
        if not tokenize:
            return texts if is_batch else texts[0]
        options = {"padding": padding, "truncation": truncation, "max_length": max_length}
        options |= {"add_special_tokens": False, "return_tensors": return_tensors}
        encoding = self(texts if is_batch else texts[0], **_merged(options, tokenizer_kwargs or {}))
        if return_assistant_tokens_mask:
            masks = [_mask(encoding, row, rendering) for row, rendering in enumerate(renderings)]
            encoding["assistant_masks"] = masks if is_batch or return_tensors else masks[0]
            encoding.convert_to_tensors(return_tensors)
        return encoding if return_dict else encoding["input_ids"]

    def encode_message_with_chat_template(
        self, message: Message, conversation_history: Sequence[Message] | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids that a message adds to a conversation.

        Args:
            message: the newest message.
            conversation_history: the messages before it.
            **kwargs: see `apply_chat_template`.

        Returns:
            The ids of the whole conversation from the first one that differs from those of the history.
        """
        if "add_generation_prompt" in kwargs:
            raise TokenizationError(
                "encode_message_with_chat_template does not take add_generation_prompt; encode that prompt separately"
            )
        history = list(conversation_history or [])
        ids: list[int] = self.apply_chat_template([*history, message], **kwargs)
        known = self.apply_chat_template(history, **kwargs) if history else []
        pairs = enumerate(zip(known, ids, strict=False))
        return ids[next((index for index, (old, new) in pairs if old != new), min(len(known), len(ids))) :]

    def get_chat_template(self, chat_template: str | None = None, tools: Sequence[Tool] | None = None) -> str:
        """Return the template that `apply_chat_template` uses.

        Args:
            chat_template: a template, or the name of one of the tokenizer's.
            tools: where given, the tokenizer's template "tool_use" is used if there is one.

        Raises:
            TokenizationError: there is no template, or several without a default one.
        """
        named = self.chat_template
        if isinstance(named, dict):
            if chat_template is not None:
                return named.get(chat_template, chat_template)
            name = "tool_use" if tools is not None and "tool_use" in named else "default"
            if name in named:
                return named[name]
            raise TokenizationError(
                f"the tokenizer has the chat templates {sorted(named)} and none called 'default'; name one of them: "
                "apply_chat_template(..., chat_template=NAME)"
            )
        template = named if chat_template is None else chat_template
        if template is None:
            raise TokenizationError(
                "the tokenizer has no chat_template, as its model was not trained on conversations; set one, e.g. "
                f'tokenizer.chat_template = "{_EXAMPLE}", or pass chat_template=...'
            )
        return template


def _check(tokenize: bool, as_dict: bool, masked: bool, prompted: bool, continued: bool) -> None:
    if as_dict and not tokenize:
        raise TokenizationError("return_dict=True needs tokenize=True: a text has no entries")
    if masked and not as_dict:
        raise TokenizationError("return_assistant_tokens_mask=True needs return_dict=True, as the mask is an entry")
    if continued and prompted:
        raise TokenizationError(
            "continue_final_message=True contradicts add_generation_prompt=True: the model either continues the last "
            "message or begins a new one"
        )
    if continued and masked:
        raise TokenizationError("continue_final_message=True cannot be used with return_assistant_tokens_mask=True")


def _conversations(conversation: Any) -> tuple[list[Any], bool]:
    """The conversations, and whether a batch was given; objects with `messages` are conversations."""
    if hasattr(conversation, "messages"):
        return [conversation.messages], False
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise TokenizationError(f"conversation is {short(conversation)}; expected a list of messages")
    first = conversation[0]
    if isinstance(first, (list, tuple)) or hasattr(first, "messages"):
        return [getattr(messages, "messages", messages) for messages in conversation], True
    return [conversation], False


def _schemas(tools: Sequence[Any] | None) -> list[Any] | None:
    """JSON schemas of tools."""
    from gptrio.utils.json_schema import get_json_schema

    if tools is None:
        return None
    for tool in tools:
        if not isinstance(tool, dict) and not isfunction(tool):
            raise TokenizationError(f"tool {short(tool)}: expected a JSON schema or a function with type hints")
    return [get_json_schema(tool) if isfunction(tool) else tool for tool in tools]


def _documents(documents: Sequence[Any] | None) -> Sequence[Any] | None:
    for document in documents or ():
        if not isinstance(document, dict):
            raise TokenizationError(f"document {short(document)}: expected a dict with 'title' and 'text'")
    return documents


def _render(template: str, messages: Any, variables: Mapping[str, Any]) -> Rendering:
    from gptrio.tokenization.templates.render import render  # imports jinja2

    return render(template, {"messages": messages, **variables})


def _merged(options: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    twice = sorted(options.keys() & others.keys())
    if twice:
        raise UnknownArgumentError(f"tokenizer_kwargs has {twice[0]!r}, which apply_chat_template sets itself")
    return {**options, **others}


def _mask(encoding: BatchEncoding, row: int, rendering: Rendering) -> list[int]:
    """Return 1 for each token that has characters of a `{% generation %}` block, 0 for the others."""
    inside = bytearray(rendering.length)
    for start, end in rendering.spans:
        inside[start:end] = b"\1" * (end - start)
    places = [encoding.token_to_chars(row, index) for index in range(len(encoding.tokens(row)))]
    return [int(place is not None and any(inside[place.start : place.end])) for place in places]
